"""The election for the Lease: who may take it when, and when it counts as lost."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from hermes_operator.lease import (
    DURATION_SECONDS,
    RENEW_DEADLINE_SECONDS,
    RENEW_SECONDS,
    RETRY_SECONDS,
    Election,
    Elector,
)
from hermes_operator.reconcile import ApiFailure
from hermes_operator.status import Manifest

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def election() -> Election:
    return Election(namespace="system", name="lease", identity="me")


def lease(version: int, holder: str, seconds: int = DURATION_SECONDS) -> Manifest:
    return {
        "metadata": {"name": "lease", "namespace": "system", "resourceVersion": str(version)},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": seconds, "leaseTransitions": 3},
    }


def win(election: Election, now: float, version: int = 2) -> None:
    claim = election.claim(AT, now)
    assert claim is not None
    metadata = {**claim["metadata"], "resourceVersion": str(version)}
    election.won({**claim, "metadata": metadata}, now, now)


def test_a_lease_that_is_not_there_is_created(election):
    election.saw(None, 0.0)

    assert election.claim(AT, 0.0) == {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"namespace": "system", "name": "lease"},
        "spec": {
            "holderIdentity": "me",
            "leaseDurationSeconds": DURATION_SECONDS,
            "acquireTime": "2026-01-01T00:00:00.000000Z",
            "renewTime": "2026-01-01T00:00:00.000000Z",
            "leaseTransitions": 0,
        },
    }


def test_a_lease_that_was_given_back_is_taken_at_once(election):
    election.saw(lease(1, ""), 0.0)

    claim = election.claim(AT, 0.0)
    assert claim is not None
    assert claim["metadata"]["resourceVersion"] == "1"
    assert (claim["spec"]["holderIdentity"], claim["spec"]["leaseTransitions"]) == ("me", 4)


def test_another_holders_lease_is_taken_when_it_has_not_changed_for_its_duration(election):
    election.saw(lease(1, "other"), 100.0)
    election.saw(lease(1, "other"), 110.0)  # seen again, unchanged

    assert election.claim(AT, 100.0 + DURATION_SECONDS - 0.01) is None
    assert election.claim(AT, 100.0 + DURATION_SECONDS) is not None


def test_a_renewal_by_the_other_starts_its_time_anew(election):
    election.saw(lease(1, "other"), 100.0)
    election.saw(lease(2, "other"), 110.0)

    assert election.claim(AT, 110.0 + DURATION_SECONDS - 0.01) is None


def test_our_own_lease_of_before_is_taken_at_once_and_is_no_transition(election):
    election.saw(lease(1, "me"), 0.0)

    assert not election.is_held(0.0)
    claim = election.claim(AT, 0.0)
    assert claim is not None
    assert claim["spec"]["leaseTransitions"] == 3


def test_it_counts_as_lost_before_another_may_take_it(election):
    election.saw(None, 0.0)
    win(election, 50.0)

    assert election.is_held(50.0 + RENEW_DEADLINE_SECONDS - 0.01)
    assert not election.is_held(50.0 + RENEW_DEADLINE_SECONDS)
    assert RENEW_SECONDS < RENEW_DEADLINE_SECONDS < DURATION_SECONDS


def test_a_renewal_counts_from_when_it_was_asked_for(election):
    election.saw(None, 0.0)
    claim = election.claim(AT, 10.0)
    assert claim is not None
    election.won({**claim, "metadata": {**claim["metadata"], "resourceVersion": "2"}}, 10.0, 14.0)

    assert election.lost_at() == 10.0 + RENEW_DEADLINE_SECONDS


def test_it_is_lost_as_soon_as_another_holds_it(election):
    election.saw(None, 0.0)
    win(election, 0.0)
    election.saw(lease(9, "other"), 1.0)

    assert not election.is_held(1.0)
    assert election.release(AT) is None


def test_giving_it_back_names_nobody_and_a_short_time(election):
    election.saw(None, 0.0)
    win(election, 0.0, version=7)

    released = election.release(AT)
    assert released is not None
    assert released["metadata"]["resourceVersion"] == "7"
    assert (released["spec"]["holderIdentity"], released["spec"]["leaseDurationSeconds"]) == ("", 1)


class OneLease:
    """A Lease in memory with its versions."""

    def __init__(self) -> None:
        self.now: Manifest | None = None
        self.version = 0

    async def read_lease(self, namespace: str, name: str) -> Manifest | None:
        return self.now

    async def write_lease(self, manifest: Manifest) -> Manifest:
        known = None if self.now is None else self.now["metadata"]["resourceVersion"]
        if manifest["metadata"].get("resourceVersion") != known:
            raise ApiFailure("update leases lease", code=409, message="it has changed")
        self.version += 1
        self.now = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": str(self.version)}}
        return self.now


def elector(api: OneLease, identity: str) -> Elector:
    election = Election(namespace="system", name="lease", identity=identity)
    return Elector(election, api, clock=asyncio.get_running_loop().time, now=lambda: AT)


async def test_of_two_that_ask_at_the_same_time_one_gets_it_and_the_other_after_its_release():
    api = OneLease()
    first, second = elector(api, "first"), elector(api, "second")
    await first.acquire()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(second.acquire(), name="second")
        await asyncio.sleep(0)
        assert (first.is_leader, second.is_leader) == (True, False)
        await first.release()
        async with asyncio.timeout(RETRY_SECONDS + 1):
            await waiting

    assert (first.is_leader, second.is_leader) == (False, True)
