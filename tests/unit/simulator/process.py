"""The operator's process in the played world: its requests, its watches, its workers, its sudden end.

The reconciler, cache and queue in it are the real ones. Only the API around them is played, with faults.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any

from hermes_operator import names
from hermes_operator.cache import Cache, Kind
from hermes_operator.decide import decide
from hermes_operator.observed import Delete, Patch, RunKey
from hermes_operator.queue import WorkQueue
from hermes_operator.reconcile import ApiFailure, Done, Outcome, Reconciler
from hermes_operator.status import Manifest
from hermes_operator.turn import positions
from tests.unit.simulator.faults import Broken
from tests.unit.simulator.server import EPOCH, NAMESPACE, Change, clone
from tests.unit.simulator.world import Killed, World

RESYNC_SECONDS = 600.0
SILENT_SECONDS = 180.0
WORKERS = 3


class Sleep:
    """Awaited by the operator's requests; its seconds reach `Operator`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __await__(self) -> Generator[float, None, None]:
        yield self._seconds


class FaultyApi:
    """The API as the operator's requests find it."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def apply(self, manifest: Manifest) -> Manifest:
        return await self._write(f"apply {manifest['kind']}", lambda: self._applied(manifest))

    async def apply_status(self, manifest: Manifest) -> Manifest:
        return await self._write("status", lambda: self._status_applied(manifest))

    async def patch(self, patch: Patch) -> Manifest:
        return await self._write(f"patch {patch.kind}", lambda: self._patched(patch))

    async def delete(self, delete: Delete) -> bool:
        return await self._write(f"delete {delete.kind}", lambda: self._deleted(delete))

    async def create_event(self, manifest: Manifest) -> None:
        await self._write("event", lambda: None)

    async def read_run(self, key: RunKey) -> Manifest | None:
        return await self._read("read", lambda: self._world.server.get(names.KIND, key.name))

    async def list_children(self, key: RunKey) -> list[tuple[Kind, Manifest]]:
        def found() -> list[tuple[Kind, Manifest]]:
            every = ((kind, one) for kind in (Kind.JOB, Kind.POD) for one in self._world.server.all(kind))
            return [(k, one) for k, one in every if one["metadata"]["labels"][names.LABEL_RUN] == key.name]

        return await self._read("list", found)

    async def _read(self, what: str, effect: Callable[[], Any]) -> Any:
        world = self._world
        await Sleep(world.dice.uniform(0.001, 0.05))
        world.count_request(what)
        if world.is_api_away() or world.dice.random() < world.odds_now().write_fails:
            raise ApiFailure(what, code=None, message="connection refused")
        found = effect()
        await Sleep(world.dice.uniform(0.001, 0.05))
        return found

    async def _write(self, what: str, effect: Callable[[], Any]) -> Any:
        world = self._world
        await Sleep(world.dice.uniform(0.001, 0.05))
        world.count_request(what)
        if world.is_api_away():
            raise ApiFailure(what, code=None, message="connection refused")
        is_faulty = world.dice.random() < world.odds_now().write_fails
        code = world.dice.choice((409, 429, 500, None)) if is_faulty else 200
        if code in (409, 429, 500):
            wait = 2.0 if code == 429 else None
            raise ApiFailure(what, code=code, message="injected", retry_after_seconds=wait)
        found = effect()
        world.may_kill()
        await Sleep(world.dice.uniform(0.001, 0.05))
        if code is None:
            raise ApiFailure(what, code=None, message="the answer was lost")
        return found

    def _applied(self, manifest: Manifest) -> Manifest:
        server, kind, name = self._world.server, str(manifest["kind"]), str(manifest["metadata"]["name"])
        known = server.get(kind, name)
        if known is None:
            self._world.check_made(manifest)
            return server.create(manifest)
        for field_name in ("completions", "template"):
            wanted = (manifest.get("spec") or {}).get(field_name)
            if kind == "Job" and wanted != known["spec"].get(field_name):
                raise ApiFailure(f"apply {kind}", code=422, message=f"spec.{field_name} is immutable")

        def edit(found: Manifest) -> None:
            found["spec"] = {**(found.get("spec") or {}), **(manifest.get("spec") or {})}
            owners = manifest["metadata"].get("ownerReferences") or []
            found["metadata"] |= {"labels": manifest["metadata"].get("labels"), "ownerReferences": owners}

        return server.change(kind, name, edit)

    def _status_applied(self, manifest: Manifest) -> Manifest:
        world, name = self._world, str(manifest["metadata"]["name"])
        known = world.server.get(names.KIND, name)
        if known is None:
            raise ApiFailure("status", code=404, message="not found")
        if known["metadata"]["resourceVersion"] != manifest["metadata"]["resourceVersion"]:
            raise ApiFailure("status", code=409, message="another version")
        world.check_status(known, manifest["status"])
        return world.server.change(
            names.KIND, name, lambda found: found.update(status=clone(manifest["status"]))
        )

    def _patched(self, patch: Patch) -> Manifest:
        known = self._world.server.get(patch.kind, patch.name)
        if known is None:
            raise ApiFailure("patch", code=404, message="not found")
        return self._world.server.change(
            patch.kind, patch.name, lambda found: found["spec"].update(patch.patch["spec"])
        )

    def _deleted(self, delete: Delete) -> bool:
        known = self._world.server.get(delete.kind, delete.name)
        if known is None:
            return False
        if known["metadata"]["uid"] != delete.uid:
            raise ApiFailure("delete", code=409, message="another uid")
        if delete.kind == names.KIND:
            self._world.check_deleted(known)
        self._world.controllers.delete(delete.kind, delete.name)
        return True


class Operator:
    """One life of the operator's process: primed by lists, woken by watches, until it is killed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.is_alive = True
        self._cache = Cache()
        self._queue: WorkQueue[RunKey] = WorkQueue(jitter=world.dice.random)
        self._reconciler = Reconciler(
            cache=self._cache,
            api=FaultyApi(world),
            decide=decide,
            positions=positions,
            installation=world.installation,
            now=world.clock.instant,
        )
        self._working: dict[RunKey, Coroutine[Any, Any, Outcome]] = {}
        self._told_until: dict[str, float] = {}
        self._deaf_until: dict[str, int] = {}
        self._silent: set[str] = set()
        self.list_all()
        if world.odds_now().lost_after_list:
            world.clock.after(world.dice.uniform(0.0, 5.0), lambda: self._listen(is_late=True))
        else:
            self._listen(is_late=False)
        self._resync()

    def list_all(self) -> None:
        """Lists heal whatever was lost."""
        server = self._world.server
        for kind in Kind:
            found = server.all(kind.value)
            for one in found:
                self._remember(kind, one)
            present = {str(one["metadata"]["name"]) for one in found}
            for key in self._cache.drop_absent(kind, NAMESPACE, present, str(server.version)):
                self._queue.wake(key)
        for known in list(self._cache.runs()):
            self._queue.wake(known.key)
        self._poll()

    def _listen(self, *, is_late: bool) -> None:
        if not self.is_alive:
            return
        self._world.server.listeners.append(self.heard)
        if self._world.odds_now().watch_silent and not is_late:
            kind = self._world.dice.choice(tuple(Kind)).value
            self._world.clock.after(self._world.dice.uniform(0, 120), lambda: self._fall_silent(kind))

    def _fall_silent(self, kind: str) -> None:
        if not self.is_alive:
            return
        self._silent.add(kind)
        # The liveness probe notices, and the kubelet restarts the container.
        self._world.clock.after(SILENT_SECONDS, lambda: self._world.kill(self))

    def _resync(self) -> None:
        def again() -> None:
            if self.is_alive:
                self.list_all()
                self._resync()

        self._world.clock.after(RESYNC_SECONDS, again)

    def heard(self, change: Change) -> None:
        """Deliver a watch's event later, each kind in its own order."""
        if not self.is_alive or change.kind not in tuple(Kind) or change.kind in self._silent:
            return
        world, odds = self._world, self._world.odds_now()
        delay = world.dice.uniform(0.0, 20.0) if world.dice.random() < odds.event_late else 0.01
        when = max(world.clock.now + delay, self._told_until.get(change.kind, 0.0))
        self._told_until[change.kind] = when
        world.clock.at(when, lambda: self._told(change))
        if world.dice.random() < odds.event_twice:
            world.clock.at(when + world.dice.uniform(0.0, 60.0), lambda: self._told(change))

    def _told(self, change: Change) -> None:
        if not self.is_alive or change.kind in self._silent:
            return
        kind = Kind(change.kind)
        if change.is_deletion:
            key = self._cache.forget(kind, change.manifest)
            if key is not None:
                self._queue.wake(key)
        else:
            self._remember(kind, change.manifest)
        self._poll()

    def _remember(self, kind: Kind, manifest: Manifest) -> None:
        key = self._cache.remember(kind, manifest)
        if key is not None:
            self._queue.wake(key)

    def _poll(self) -> None:
        """Let idle workers take what is due, and come back for the rest."""
        clock = self._world.clock
        for moved in self._reconciler.moved():
            self._queue.wake(moved)
        while self.is_alive and len(self._working) < WORKERS:
            key = self._queue.take(clock.now)
            if key is None:
                break
            work = self._reconciler.reconcile(key)
            self._working[key] = work
            self._step(key, work)
        due = self._queue.next_at()
        if self.is_alive and due is not None and due > clock.now:
            clock.at(due, self._poll_if_alive)

    def _poll_if_alive(self) -> None:
        if self.is_alive:
            self._poll()

    def _step(self, key: RunKey, work: Coroutine[Any, Any, Outcome]) -> None:
        if not self.is_alive:
            return
        try:
            seconds = work.send(None)
        except StopIteration as stop:
            del self._working[key]
            self._finished(key, stop.value)
            self._world.clock.after(0.0, self._poll_if_alive)
            return
        except Killed:
            self._world.kill(self)
            return
        self._world.clock.after(float(seconds), lambda: self._step(key, work))

    def _finished(self, key: RunKey, outcome: Outcome) -> None:
        now = self._world.clock.now
        if isinstance(outcome, Done):
            next_at = None if outcome.next_at is None else (outcome.next_at - EPOCH).total_seconds()
            self._queue.done(key, next_at)
            if outcome.has_acted:
                self._queue.wake(key)
            return
        self._world.failed_looks[outcome.error.partition(":")[0]] += 1
        if "injected" not in outcome.error and "Error:" in outcome.error:
            raise Broken(f"the reconciler failed by itself: {outcome.error}")
        wait = outcome.retry_after_seconds
        self._queue.failed(key, now, None if wait is None else now + wait)

    def close(self) -> None:
        """The process is gone, in the middle of whatever it did."""
        self.is_alive = False
        for work in self._working.values():
            work.close()
