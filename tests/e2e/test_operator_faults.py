"""The operator under faults: killed after any write, events lost, watches silent, an API that is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.e2e.fake_api import FakeApi, Fault, Object, Seen, cluster, new_run, phase
from tests.e2e.operator_process import operated, operator_process, until, until_async

WRITES_OF_A_RUN = 8


def _told(status: Object) -> Object:
    """A status without what differs from one run to the next."""
    kept = {key: status[key] for key in ("phase", "attempt", "shards", "loaded", "manifestRef")}
    conditions = {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}
    # A run that began and ended unseen does not say how its model was verified.
    assert conditions.pop("ModelVerified", None) in (None, ("True", "Bundled"))
    return {**kept, "progress": {**status["progress"], "movedAt": ""}, "conditions": conditions}


class _Life:
    """One run's life, seen from the API: what was written, how its status was last."""

    def __init__(self, api: FakeApi, name: str) -> None:
        self.name = name
        self.writes = 0
        self.status: Object = {}
        self._api = api
        api.on_change.append(self._changed)

    def kill_after(self, write: int, kill: Callable[[], None]) -> None:
        """Kill when that write is done and not answered yet."""

        def strike(seen: Seen) -> None:
            if seen.resource != "leases":
                self.writes += 1
                if self.writes == write:
                    kill()

        self._api.on_write = strike

    def ended(self) -> bool:
        return self._api.get("hermesruns", "research", self.name) is None

    def jobs_made(self) -> int:
        return sum(one.verb == "apply" and one.name == f"hermes-{self.name}-1" for one in self._api.requests)

    def _changed(self, resource: str, manifest: Object) -> None:
        if resource == "hermesruns" and manifest["metadata"]["name"] == self.name:
            self.status = manifest.get("status") or self.status


async def test_killed_after_any_single_write_of_a_run_it_goes_on_where_it_was(tmp_path: Path):
    """Every write of a life in turn: the process is gone before it sees the answer."""
    async with cluster() as api, AsyncExitStack() as running:
        lives = [_Life(api, f"killed-{write}") for write in range(1, WRITES_OF_A_RUN + 1)]
        operator = await running.enter_async_context(operated(api, tmp_path))
        for write, life in enumerate(lives, start=1):
            life.kill_after(write, operator.kill)
            api.put("hermesruns", new_run(life.name, ttlSecondsAfterFinished=1))
            assert await operator.ended() == -9
            operator = await running.enter_async_context(operated(api, tmp_path))
            await until(life.ended)
            assert life.jobs_made() == 1, "a Job that is there is not applied again"

        assert [api.of(kind) for kind in ("jobs", "pods", "serviceaccounts", "networkpolicies")] == [[]] * 4
        ends = [_told(life.status) for life in lives]
        assert ends[0]["phase"] == "Succeeded"
        assert [one for one in ends if one != ends[0]] == []


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(409), id="409"),
        pytest.param(Fault(429, retry_after="1"), id="429"),
        pytest.param(Fault(500), id="500"),
        pytest.param(Fault(503), id="503"),
        pytest.param(Fault(0), id="cut"),
        pytest.param(Fault(500, is_done_first=True), id="done, answered 500"),
        pytest.param(Fault(0, is_done_first=True), id="done, cut"),
    ],
)
async def test_every_kind_of_write_may_fail_once_and_the_run_succeeds_all_the_same(tmp_path, fault):
    async with cluster() as api, operated(api, tmp_path):
        failed: set[tuple[str, str]] = set()

        def once(seen: Seen) -> Fault | None:
            kind = (seen.verb, seen.resource)
            if not seen.is_write or seen.resource == "leases" or kind in failed:
                return None
            failed.add(kind)
            return fault

        api.fault = once
        api.put("hermesruns", new_run("first", ttlSecondsAfterFinished=3))
        await until(lambda: phase(api, "first") == "Succeeded")
        await until(lambda: api.get("hermesruns", "research", "first") is None)

        assert len(failed) == 6, failed
        assert len([one for one in api.requests if one.verb == "apply" and one.resource == "jobs"]) <= 2


async def test_an_error_that_stays_is_told_in_the_status_and_the_tale_ends_with_it(tmp_path):
    async with cluster() as api, operated(api, tmp_path) as operator:
        api.fault = lambda seen: Fault(403) if (seen.verb, seen.resource) == ("apply", "jobs") else None
        api.put("hermesruns", new_run("first"))

        def reconciled() -> tuple[str, str]:
            status = (api.get("hermesruns", "research", "first") or {}).get("status") or {}
            found = {one["type"]: (one["status"], one["reason"]) for one in status.get("conditions", ())}
            return found.get("Reconciled", ("", ""))

        await until(lambda: reconciled() == ("False", "ApiError"))
        tries = len([one for one in api.requests if one.resource == "jobs" and one.verb == "apply"])
        writes = len([one for one in api.requests if one.resource == "hermesruns/status"])
        api.put("hermesruns", new_run("other"))
        await until(lambda: any(one.name == "hermes-other-1" for one in api.requests))
        assert await operator.metric("hermes_operator_queue_held_back") >= 1
        api.fault = lambda seen: None
        await until(lambda: phase(api, "first") == "Succeeded")

        assert (tries, writes) == (3, 1), "back-off, and one tale"
        assert reconciled() == ("True", "InStep")


async def test_retry_after_is_kept(tmp_path):
    async with cluster() as api, operated(api, tmp_path):
        refused_at: list[float] = []

        def refuse(seen: Seen) -> Fault | None:
            if (seen.verb, seen.resource) == ("apply", "serviceaccounts"):
                refused_at.append(time.monotonic())
                return Fault(429, retry_after="2") if len(refused_at) == 1 else None
            return None

        api.fault = refuse
        api.put("hermesruns", new_run("first"))
        await until(lambda: phase(api, "first") == "Succeeded")

        assert refused_at[1] - refused_at[0] >= 2.0


async def test_what_happens_between_the_list_and_the_watch_is_not_lost(tmp_path):
    async with cluster() as api:
        api.watches_lose_their_past = True

        def create(resource: str) -> None:
            api.before_watch = lambda resource: None
            api.put("hermesruns", new_run("between"))

        api.before_watch = create
        async with operated(api, tmp_path):
            await until(lambda: phase(api, "between") == "Succeeded")


async def test_a_deletion_between_the_list_and_the_watch_is_seen(tmp_path):
    async with cluster(ends=False) as api:
        async with operated(api, tmp_path) as operator:
            api.put("hermesruns", new_run("first"))
            await until(lambda: phase(api, "first") == "Running")
            await operator.stopped()
        api.watches_lose_their_past = True

        def delete_job(resource: str) -> None:
            if api.get("jobs", "research", "hermes-first-1") is not None and resource == "jobs":
                api.before_watch = lambda resource: None
                api.remove("jobs", "research", "hermes-first-1")

        api.before_watch = delete_job
        async with operated(api, tmp_path):
            await until(lambda: api.get("jobs", "research", "hermes-first-1"))


async def test_an_event_that_a_reopened_watch_has_lost_is_found_by_the_next_list(tmp_path):
    async with cluster() as api, operated(api, tmp_path, HERMES_RESYNC_SECONDS="1.5") as operator:
        api.watches_lose_their_past = True

        def create(resource: str) -> None:
            if resource == "hermesruns":
                api.before_watch = lambda resource: None
                api.put("hermesruns", new_run("lost"))

        api.before_watch = create
        api.cut_watches()
        await until(lambda: phase(api, "lost") == "Succeeded")

        assert await operator.metric("hermes_operator_lost_events_total", kind="HermesRun") >= 1


async def test_a_watch_that_says_nothing_for_too_long_fails_livez(tmp_path):
    async with cluster() as api, operated(api, tmp_path, HERMES_WATCH_SILENCE_SECONDS="2") as operator:
        assert (await operator.ask("/livez"))[0] == 200
        api.watches_are_silent = True

        async def is_dead() -> bool:
            return (await operator.ask("/livez"))[0] == 503

        await until_async(is_dead)
        watches = [one for one in api.requests if one.verb == "watch"]
        assert len(watches) > 3, "it was tried anew before it was given up"
        api.watches_are_silent = False

        async def is_alive() -> bool:
            return (await operator.ask("/livez"))[0] == 200

        await until_async(is_alive)


async def test_bookmarks_alone_keep_a_watch_alive(tmp_path):
    async with cluster() as api, operated(api, tmp_path, HERMES_WATCH_SILENCE_SECONDS="2") as operator:
        until_at = time.monotonic() + 4
        while time.monotonic() < until_at:
            assert (await operator.ask("/livez"))[0] == 200
            await asyncio.sleep(0.1)
        assert len([one for one in api.requests if one.verb == "watch"]) == 3


async def test_a_short_absence_of_the_api_is_waited_out(tmp_path):
    async with cluster() as api, operated(api, tmp_path) as operator:
        api.is_away = True
        api.cut_watches()
        api.put("hermesruns", new_run("first"))
        await asyncio.sleep(3)
        api.is_away = False
        await until(lambda: phase(api, "first") == "Succeeded")

        assert operator.process.returncode is None


async def test_without_the_api_the_lease_is_lost_and_the_next_start_goes_on(tmp_path):
    async with cluster() as api:
        async with operated(api, tmp_path) as operator:
            api.put("hermesruns", new_run("first", suspend=True))
            await until(lambda: phase(api, "first") == "Suspended")
            api.is_away = True
            api.cut_watches()
            assert await operator.ended() == 1
        api.change("hermesruns", "research", "first", {"spec": {"suspend": False}})
        async with operator_process(tmp_path / "kubeconfig", tmp_path):
            await asyncio.sleep(2)  # it starts without an API
            api.is_away = False
            await until(lambda: phase(api, "first") == "Succeeded")


async def test_an_operator_that_starts_before_its_definition_is_installed_waits_for_it(tmp_path):
    async with cluster() as api:
        api.has_no_definition = True
        async with operator_process(api.kubeconfig(tmp_path / "kubeconfig"), tmp_path) as operator:
            await until(lambda: "is not installed" in operator.log.read_text("utf-8"))
            assert (await operator.ask("/readyz"))[0] == 503
            api.has_no_definition = False
            api.put("hermesruns", new_run("first"))
            await until(lambda: phase(api, "first") == "Succeeded")
