"""Which of several operators is the one that acts: the holder of a Lease.

`Election` decides without I/O: a Lease may be taken when nobody holds it, or when it has not changed for
as long as it says, by our own clock from when we saw it, so that no two machines' clocks are compared.
Whoever could not renew it for a while counts it as lost before anybody else may take it. `Elector` reads
and writes; losing the Lease is an exception that ends the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from hermes_operator.reconcile import ApiFailure
from hermes_operator.status import Manifest

log = logging.getLogger(__name__)

DURATION_SECONDS = 15
"""How long a Lease is good after it was renewed."""
RENEW_SECONDS = 10 / 3
"""How often it is renewed."""
RENEW_DEADLINE_SECONDS = 10.0
"""Without a renewal for so long it counts as lost: five seconds before another may take it."""
RETRY_SECONDS = 1.0
"""How often it is looked at by those who wait, and how soon a failed renewal is tried again."""
RELEASE_SECONDS_MAX = 1.5
"""How long an orderly stop waits for the Lease to be given back."""


class LeaseLost(Exception):
    """Another operator acts now, or may soon."""


class LeaseApi(Protocol):
    """What the election needs of the Kubernetes API. Every method raises ApiFailure."""

    async def read_lease(self, namespace: str, name: str) -> Manifest | None:
        """The Lease; None: there is none."""

    async def write_lease(self, manifest: Manifest) -> Manifest:
        """Create the Lease, or replace the version that it names; ApiFailure 409: it has changed."""


class Election:
    """What is known of the Lease. `now` is seconds of a clock that never goes back."""

    def __init__(self, *, namespace: str, name: str, identity: str) -> None:
        self.namespace = namespace
        self.name = name
        self.identity = identity
        self._lease: Manifest | None = None
        self._seen_at = 0.0
        self._renewed_at: float | None = None
        self.has_looked = False
        """The Lease was read at least once."""

    def saw(self, lease: Manifest | None, now: float) -> None:
        """The Lease as the API has it; None: there is none."""
        self.has_looked = True
        if lease is None or self._lease is None or _version(lease) != _version(self._lease):
            self._seen_at = now
        self._lease = lease
        if self.holder != self.identity:
            self._renewed_at = None

    @property
    def holder(self) -> str:
        """Who holds the Lease as far as we know; "": nobody."""
        return str(self._spec.get("holderIdentity") or "")

    def claim(self, at: datetime, now: float) -> Manifest | None:
        """The Lease to be written to take or renew it; None: another holds it."""
        holder = self.holder
        age = now - self._seen_at
        if holder not in ("", self.identity) and age < float(self._spec.get("leaseDurationSeconds") or 0):
            return None
        written = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_taken_over = holder != self.identity
        return self._with(
            {
                **self._spec,
                "holderIdentity": self.identity,
                "leaseDurationSeconds": DURATION_SECONDS,
                "acquireTime": written if is_taken_over else self._spec.get("acquireTime", written),
                "renewTime": written,
                "leaseTransitions": int(self._spec.get("leaseTransitions") or 0)
                + (1 if is_taken_over and self._lease is not None else 0),
            }
        )

    def won(self, lease: Manifest, asked_at: float, now: float) -> None:
        """The claim was written; it counts from when it was asked for."""
        self.saw(lease, now)
        self._renewed_at = asked_at

    def is_held(self, now: float) -> bool:
        """We hold it and may act."""
        return self._renewed_at is not None and now < self._renewed_at + RENEW_DEADLINE_SECONDS

    def lost_at(self) -> float:
        """When it counts as lost unless it is renewed."""
        return 0.0 if self._renewed_at is None else self._renewed_at + RENEW_DEADLINE_SECONDS

    def release(self, at: datetime) -> Manifest | None:
        """The Lease to be written so that the next may take it at once; None: it is not ours."""
        if self._renewed_at is None or self.holder != self.identity:
            return None
        written = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return self._with(
            {**self._spec, "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": written}
        )

    @property
    def _spec(self) -> Manifest:
        return (self._lease or {}).get("spec") or {}

    def _with(self, spec: Manifest) -> Manifest:
        metadata: Manifest = {"namespace": self.namespace, "name": self.name}
        if self._lease is not None:
            metadata["resourceVersion"] = self._lease["metadata"]["resourceVersion"]
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": spec,
        }


class Elector:
    """Takes, keeps and gives back the Lease."""

    def __init__(
        self,
        election: Election,
        api: LeaseApi,
        *,
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        """`clock` never goes back; `now` gives aware UTC."""
        self.election = election
        self._api = api
        self._clock = clock
        self._now = now

    @property
    def is_leader(self) -> bool:
        """This process may act."""
        return self.election.is_held(self._clock())

    async def acquire(self) -> None:
        """Return once the Lease is ours."""
        told: str | None = None
        while True:
            try:
                await self._look()
                if await self._try():
                    log.info("the Lease is ours")
                    return
                if told != self.election.holder:
                    told = self.election.holder
                    log.info("the Lease is held by %s", told)
            except ApiFailure as failure:
                log.warning("the Lease cannot be taken: %s", failure)
            await asyncio.sleep(RETRY_SECONDS)

    async def keep(self) -> None:
        """Renew the Lease for ever.

        Raises:
            LeaseLost: another holds it, or it could not be renewed in time.
        """
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                async with asyncio.timeout(self.election.lost_at() - self._clock()):
                    await self._renew()
            except TimeoutError as error:
                raise LeaseLost(
                    f"the Lease could not be renewed for {RENEW_DEADLINE_SECONDS:.0f} s"
                ) from error

    async def release(self) -> None:
        """Give the Lease back if it is ours; if that fails, it ends by itself."""
        lease = self.election.release(self._now())
        if lease is None:
            return
        try:
            async with asyncio.timeout(RELEASE_SECONDS_MAX):
                self.election.saw(await self._api.write_lease(lease), self._clock())
            log.info("the Lease is given back")
        except (ApiFailure, TimeoutError) as error:
            log.warning("the Lease is not given back: %s", error)

    async def _renew(self) -> None:
        while True:
            try:
                if await self._try():
                    return
            except ApiFailure as failure:
                log.warning("the Lease is not renewed: %s", failure)
                if failure.code == 409:
                    await self._look_again()
                    continue
            if self.election.holder != self.election.identity:
                raise LeaseLost(f"the Lease is held by {self.election.holder or 'nobody'}")
            await asyncio.sleep(RETRY_SECONDS)

    async def _look_again(self) -> None:
        try:
            await self._look()
        except ApiFailure as failure:
            log.warning("the Lease cannot be read: %s", failure)
            await asyncio.sleep(RETRY_SECONDS)

    async def _look(self) -> None:
        election = self.election
        election.saw(await self._api.read_lease(election.namespace, election.name), self._clock())

    async def _try(self) -> bool:
        asked_at = self._clock()
        claim = self.election.claim(self._now(), asked_at)
        if claim is None:
            return False
        self.election.won(await self._api.write_lease(claim), asked_at, self._clock())
        return True


def _version(lease: Manifest) -> str:
    return str(lease["metadata"]["resourceVersion"])
