"""One look at a run: take its picture, decide, act, write the status if it differs, announce.

Every answer of the API is remembered at once, so that the next look does not act on an older picture.
No exception but a cancellation leaves `Reconciler.reconcile`: a failure is an outcome, and after a few in
a row it is told in the run's condition Reconciled. What is done is decided in `decide`; who calls when,
in the queue and its workers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol, assert_never

from hermes_operator import names
from hermes_operator.cache import Cache, Kind
from hermes_operator.names import Condition, Reason
from hermes_operator.observed import (
    Action,
    Announcement,
    Apply,
    Children,
    Decision,
    Delete,
    Installation,
    Patch,
    Run,
    RunInLine,
    RunKey,
)
from hermes_operator.status import Manifest, Status

log = logging.getLogger(__name__)

FAILURES_SHOWN = 3
"""Failures in a row after which a run's status tells of them."""

CONFLICT = 409
"""HTTP status: the object is not as we know it."""

PAGE_OBJECTS = 50
"""Objects of a list that are in memory at a time: a whole pod, parsed, is some 60 KB."""

NOTE_CHARACTERS_MAX = 1024
"""Longest note of an Event."""


class ApiFailure(Exception):
    """The API refused a request or did not answer. Trying again may help."""

    def __init__(
        self, what: str, *, code: int | None, message: str, retry_after_seconds: float | None = None
    ) -> None:
        """`code` is the HTTP status; None: no answer came."""
        super().__init__(f"{what}: {code if code is not None else 'no answer'}: {message}")
        self.code = code
        self.retry_after_seconds = retry_after_seconds


class Api(Protocol):
    """What a look needs of the Kubernetes API. Every method raises ApiFailure."""

    async def apply(self, manifest: Manifest) -> Manifest:
        """Apply the whole object as its manager; the object as it is now."""

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Apply the status of an object that is there; the object as it is now."""

    async def patch(self, patch: Patch) -> Manifest:
        """Merge a patch into an object that is there; the object as it is now."""

    async def read_run(self, key: RunKey) -> Manifest | None:
        """The run as it is now; None: there is none."""

    async def list_children(self, key: RunKey) -> list[tuple[Kind, Manifest]]:
        """The Jobs and pods of a run as they are now."""

    async def delete(self, delete: Delete) -> bool:
        """Delete the object and, in the background, what it owns. False: it was not there."""

    async def create_event(self, manifest: Manifest) -> None:
        """Create an Event."""


Decide = Callable[[Run, Children, datetime, Installation, int | None], Decision]
Positions = Callable[[Iterable[RunInLine], int], Mapping[RunKey, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The run was looked at."""

    has_acted: bool
    """Something was written: one more look shows whether that was all."""
    next_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The look failed part of the way; what was done by then is remembered."""

    error: str
    retry_after_seconds: float | None = None


Outcome = Done | Failed


class Reconciler:
    """Looks at runs, one at a time for each key."""

    def __init__(
        self,
        *,
        cache: Cache,
        api: Api,
        decide: Decide,
        positions: Positions,
        installation: Installation,
        now: Callable[[], datetime],
        instance: str = names.MANAGER,
    ) -> None:
        """`now` gives aware UTC; `instance` names this process in Events."""
        self._cache = cache
        self._api = api
        self._decide = decide
        self._turns = Turns(cache, positions, installation.max_concurrent_runs)
        self._installation = installation
        self._now = now
        self._instance = instance
        self._failures: dict[RunKey, int] = {}

    async def reconcile(self, key: RunKey) -> Outcome:
        """One look at the run of that key."""
        run = self._cache.run(key)
        if run is None:
            self._failures.pop(key, None)
            return Done(has_acted=False, next_at=None)
        try:
            outcome = await self._look(run)
        except ApiFailure as failure:
            log.warning("the API failed: %s", failure, extra=_about(run))
            if failure.code == CONFLICT:
                await self._refresh(run)
            await self._count_failure(run, Reason.API_ERROR, str(failure))
            return Failed(error=str(failure), retry_after_seconds=failure.retry_after_seconds)
        except Exception as error:
            # A mistake of ours about one run must not stop the others.
            log.exception("the look at the run failed", extra=_about(run))
            message = f"{type(error).__name__}: {error}"
            await self._count_failure(run, Reason.OPERATOR_FAILED, message)
            return Failed(error=message)
        self._failures.pop(key, None)
        return outcome

    def moved(self) -> list[RunKey]:
        """Runs whose place in the line is another than when this was last asked."""
        return self._turns.moved()

    async def _look(self, run: Run) -> Done:
        position, children = self._turns.position(run.key), self._cache.children(run.key)
        decision = self._decide(run, children, self._now(), self._installation, position)
        if decision.wants_fresh:
            for kind, manifest in await self._api.list_children(run.key):
                self._cache.remember(kind, manifest)
            fresh = replace(self._cache.children(run.key), is_fresh=True)
            decision = self._decide(run, fresh, self._now(), self._installation, position)
        for action in decision.actions:
            await self._act(action, run)
        has_written = await self._write(run, decision.status)
        if has_written:
            for announcement in decision.announcements:
                await self._announce(run, announcement)
        return Done(has_acted=bool(decision.actions) or has_written, next_at=decision.next_at)

    async def _act(self, action: Action, run: Run) -> None:
        match action:
            case Apply():
                seen = await self._api.apply(action.manifest)
                self._remember(str(action.manifest["kind"]), seen)
                log.info("applied %s %s", action.manifest["kind"], _name(action.manifest), extra=_about(run))
            case Patch():
                seen = await self._api.patch(action)
                self._remember(action.kind, seen)
                log.info("patched %s %s", action.kind, action.name, extra=_about(run))
            case Delete():
                was_there = await self._api.delete(action)
                kind = _kind(action.kind)
                if kind is not None and was_there:
                    self._cache.deletion_asked(kind, action.namespace, action.name, action.uid, self._now())
                elif kind is not None:
                    self._cache.forget_uid(kind, action.namespace, action.name, action.uid)
                log.info("deleted %s %s", action.kind, action.name, extra=_about(run))
            case _:
                assert_never(action)

    async def _write(self, run: Run, status: Status) -> bool:
        """Write the status unless it is the one that was last seen."""
        wanted = status.to_manifest()
        if wanted == run.status.to_manifest():
            return False
        seen = await self._api.apply_status(
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "metadata": {
                    "namespace": run.key.namespace,
                    "name": run.key.name,
                    # The status can reach neither another run of the same name nor one that has changed:
                    # a write whose answer was lost may have ended the run. It is the version that sees to
                    # both: of a status's uid the API server takes no notice.
                    "uid": run.uid,
                    "resourceVersion": run.version,
                },
                "status": wanted,
            }
        )
        self._cache.remember(Kind.RUN, seen)
        if status.phase != run.status.phase:
            log.info("phase %s", status.phase.value, extra=_about(run))
        return True

    async def _refresh(self, run: Run) -> None:
        """See the run as it is: what was written over was not what is there."""
        key = run.key
        try:
            seen = await self._api.read_run(key)
        except ApiFailure as failure:
            log.warning("the run cannot be read: %s", failure)
            return
        if seen is None:
            self._cache.forget_uid(Kind.RUN, key.namespace, key.name, run.uid)
        else:
            self._cache.remember(Kind.RUN, seen)

    async def _announce(self, run: Run, announcement: Announcement) -> None:
        try:
            await self._api.create_event(_event(run, announcement, self._now(), self._instance))
        except ApiFailure as failure:
            # An Event is news; the status, which has been written, is the truth.
            log.warning("no Event: %s", failure, extra=_about(run))

    async def _count_failure(self, run: Run, reason: Reason, message: str) -> None:
        failures = self._failures.get(run.key, 0) + 1
        self._failures[run.key] = failures
        seen = self._cache.run(run.key)
        if failures < FAILURES_SHOWN or seen is None or seen.is_deleted:
            return
        known = seen.status.conditions.get(Condition.RECONCILED)
        if known is not None and (known.status, known.reason) == ("False", reason):
            return  # told already; the message may vary with every try
        told = seen.status.with_condition(
            Condition.RECONCILED, "False", reason, message, now=self._now(), generation=seen.generation
        )
        try:
            await self._write(seen, told)
        except ApiFailure as failure:
            log.warning("the failure cannot be told: %s", failure, extra=_about(run))

    def _remember(self, kind: str, seen: Manifest) -> None:
        known = _kind(kind)
        if known is not None:
            self._cache.remember(known, seen)


class Turns:
    """Places in the line of runs that wait, computed when runs have changed."""

    def __init__(self, cache: Cache, positions: Positions, cap: int) -> None:
        self._cache = cache
        self._positions = positions
        self._cap = cap
        self._computed_for = -1
        self._known: Mapping[RunKey, int] = {}
        self._told: Mapping[RunKey, int] = {}

    def position(self, key: RunKey) -> int | None:
        """The run's place; None: it need not wait."""
        return self._current().get(key)

    def moved(self) -> list[RunKey]:
        """Runs whose place has changed since this was last asked."""
        known, told = self._current(), self._told
        self._told = known
        if known is told:
            return []
        return [key for key in {**told, **known} if told.get(key) != known.get(key)]

    def _current(self) -> Mapping[RunKey, int]:
        if self._cap and self._computed_for != self._cache.runs_version:
            self._computed_for = self._cache.runs_version
            self._known = self._positions(self._cache.line(), self._cap)
        return self._known


def _kind(kind: str) -> Kind | None:
    return Kind(kind) if kind in tuple(Kind) else None


def _name(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])


def _about(run: Run) -> dict[str, object]:
    """What a line of the log is about."""
    return {"run": f"{run.key.namespace}/{run.key.name}", "attempt": run.status.attempt}


def _event(run: Run, announcement: Announcement, now: datetime, instance: str) -> Manifest:
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": run.key.namespace, "generateName": f"{run.key.name}-"},
        "type": "Warning" if announcement.is_warning else "Normal",
        "reason": announcement.reason,
        "note": announcement.message[:NOTE_CHARACTERS_MAX],
        "action": "Reconcile",
        "eventTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": f"{names.GROUP}/{names.MANAGER}",
        "reportingInstance": instance[:128],
        "regarding": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "namespace": run.key.namespace,
            "name": run.key.name,
            "uid": run.uid,
        },
    }
