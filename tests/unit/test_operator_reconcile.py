"""One look at a run: actions in order, then the status, then Events; failures are outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from hermes_operator.cache import Cache, Kind
from hermes_operator.names import API_VERSION, COMPONENT_RUN, KIND, Condition, Phase, Reason, run_labels
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
from hermes_operator.reconcile import FAILURES_SHOWN, ApiFailure, Done, Failed, Reconciler
from hermes_operator.status import Manifest

KEY = RunKey("research", "first")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {
        "name": "hermes-first-1",
        "namespace": "research",
        "labels": run_labels("first", COMPONENT_RUN),
    },
    "spec": {"suspend": False},
}


class RecordingApi:
    """An API in memory that answers with what was written."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.run_now: Manifest | None = None
        self.failing: dict[str, ApiFailure] = {}
        self.missing: set[str] = set()
        self._version = 100

    def _did(self, what: str) -> None:
        if what in self.failing:
            raise self.failing[what]
        self.done.append(what)

    def _seen(self, manifest: Manifest) -> Manifest:
        self._version += 1
        metadata = {"uid": f"uid-{manifest['metadata']['name']}", **manifest["metadata"]}
        return {**manifest, "metadata": {**metadata, "resourceVersion": str(self._version)}}

    async def apply(self, manifest: Manifest) -> Manifest:
        self._did(f"apply {manifest['kind']}")
        return self._seen(manifest)

    async def apply_status(self, manifest: Manifest) -> Manifest:
        self._did("status")
        return self._seen({**run_object(0), "status": manifest["status"]})

    async def patch(self, patch: Patch) -> Manifest:
        self._did(f"patch {patch.kind}")
        return self._seen({**JOB, "spec": patch.patch["spec"]})

    async def read_run(self, key: RunKey) -> Manifest | None:
        self._did("read")
        return self.run_now

    async def list_children(self, key: RunKey) -> list[tuple[Kind, Manifest]]:
        self._did("list")
        return [(Kind.JOB, self._seen(JOB))]

    async def delete(self, delete: Delete) -> bool:
        self._did(f"delete {delete.kind}")
        return delete.name not in self.missing

    async def create_event(self, manifest: Manifest) -> None:
        self._did(f"event {manifest['reason']}")


def run_object(version: int) -> Manifest:
    return {
        "metadata": {
            "name": "first",
            "namespace": "research",
            "uid": "uid-first",
            "resourceVersion": str(version),
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"evaluate": {"instances": {"mutants": {"count": 2}}}},
    }


class Bench:
    """A reconciler whose decisions the test makes."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.cache.remember(Kind.RUN, run_object(5))
        self.api = RecordingApi()
        self.choose: Callable[[Run, Children], Decision] = lambda run, _: Decision(status=run.status)
        self.cap = 0
        self.line: Mapping[RunKey, int] = {}

    def reconciler(self) -> Reconciler:
        return Reconciler(
            cache=self.cache,
            api=self.api,
            decide=lambda run, children, *_: self.choose(run, children),
            positions=self._positions,
            installation=Installation(runtime_image="i", max_concurrent_runs=self.cap),
            now=lambda: NOW,
        )

    def _positions(self, runs: Iterable[RunInLine], cap: int) -> Mapping[RunKey, int]:
        assert list(runs)
        return self.line


@pytest.fixture
def bench() -> Bench:
    return Bench()


def moved_on(run: Run, *actions: Action, events: tuple[str, ...] = ()) -> Decision:
    return Decision(
        actions=actions,
        status=replace(run.status, phase=Phase.STARTING),
        announcements=tuple(Announcement(is_warning=True, reason=one, message="m") for one in events),
        next_at=NOW,
    )


JOB_NAME = "hermes-first-1"
DELETE_JOB = Delete(
    api_version="batch/v1", kind="Job", namespace="research", name=JOB_NAME, uid=f"uid-{JOB_NAME}"
)


async def test_actions_come_in_order_then_the_status_then_events(bench):
    account = {**JOB, "kind": "ServiceAccount", "apiVersion": "v1"}
    bench.choose = lambda run, _: moved_on(run, Apply(manifest=account), Apply(manifest=JOB), events=("Why",))

    assert await bench.reconciler().reconcile(KEY) == Done(has_acted=True, next_at=NOW)
    assert bench.api.done == ["apply ServiceAccount", "apply Job", "status", "event Why"]


async def test_a_status_that_is_as_it_was_is_not_written_and_nothing_is_announced(bench):
    bench.choose = lambda run, _: Decision(
        status=run.status, announcements=(Announcement(is_warning=False, reason="Again", message=""),)
    )

    assert await bench.reconciler().reconcile(KEY) == Done(has_acted=False, next_at=None)
    assert bench.api.done == []


async def test_what_was_written_is_seen_by_the_next_look_before_any_watch_tells_of_it(bench):
    seen: list[tuple[set[str], Phase]] = []

    def choose(run: Run, children: Children) -> Decision:
        seen.append((set(children.jobs), run.status.phase))
        return moved_on(run) if children.jobs else moved_on(run, Apply(manifest=JOB))

    bench.choose = choose
    reconciler = bench.reconciler()
    await reconciler.reconcile(KEY)
    await reconciler.reconcile(KEY)

    assert seen == [(set(), Phase.PENDING), ({"hermes-first-1"}, Phase.STARTING)]
    assert bench.api.done == ["apply Job", "status"]


async def test_a_deleted_job_counts_as_being_deleted_and_one_that_was_not_there_is_forgotten(bench):
    await bench.reconciler().reconcile(KEY)
    bench.choose = lambda run, _: Decision(status=run.status, actions=(Apply(manifest=JOB), DELETE_JOB))
    await bench.reconciler().reconcile(KEY)
    assert "deletionTimestamp" in bench.cache.children(KEY).jobs["hermes-first-1"]["metadata"]

    bench.api.missing.add("hermes-first-1")
    bench.choose = lambda run, _: Decision(status=run.status, actions=(DELETE_JOB,))
    await bench.reconciler().reconcile(KEY)
    assert bench.cache.children(KEY).jobs == {}


async def test_a_failed_action_leaves_the_rest_undone_and_is_an_outcome(bench):
    bench.api.failing["apply Job"] = ApiFailure(
        "apply jobs x", code=429, message="slow", retry_after_seconds=7
    )
    bench.choose = lambda run, _: moved_on(run, Apply(manifest=JOB), DELETE_JOB)

    outcome = await bench.reconciler().reconcile(KEY)

    assert outcome == Failed(error="apply jobs x: 429: slow", retry_after_seconds=7)
    assert bench.api.done == []


async def test_after_some_failures_in_a_row_the_status_tells_of_them_once(bench):
    bench.api.failing["apply Job"] = ApiFailure("apply jobs x", code=403, message="no")
    bench.choose = lambda run, _: moved_on(run, Apply(manifest=JOB))
    reconciler = bench.reconciler()
    for _ in range(FAILURES_SHOWN - 1):
        await reconciler.reconcile(KEY)
    assert bench.api.done == []
    for _ in range(5):
        await reconciler.reconcile(KEY)

    assert bench.api.done == ["status"]
    told = bench.cache.run(KEY).status.conditions[Condition.RECONCILED]
    assert (told.status, told.reason, told.message) == ("False", Reason.API_ERROR, "apply jobs x: 403: no")


async def test_a_mistake_of_ours_is_told_in_the_status_of_its_run_and_goes_no_further(bench, caplog):
    def choose(run: Run, children: Children) -> Decision:
        raise ZeroDivisionError("a bug")

    bench.choose = choose
    reconciler = bench.reconciler()
    outcomes = [await reconciler.reconcile(KEY) for _ in range(FAILURES_SHOWN)]

    assert outcomes == [Failed(error="ZeroDivisionError: a bug")] * FAILURES_SHOWN
    assert bench.cache.run(KEY).status.conditions[Condition.RECONCILED].reason == Reason.OPERATOR_FAILED
    assert caplog.records[0].run == "research/first"


async def test_an_event_that_fails_does_not_fail_the_look(bench):
    bench.api.failing["event Why"] = ApiFailure("create events Why", code=500, message="")
    bench.choose = lambda run, _: moved_on(run, events=("Why",))

    assert isinstance(await bench.reconciler().reconcile(KEY), Done)


async def test_the_status_is_bound_to_the_run_and_to_the_version_that_was_looked_at(bench):
    written: list[Manifest] = []
    answer = bench.api.apply_status

    async def apply_status(manifest: Manifest) -> Manifest:
        written.append(manifest)
        return await answer(manifest)

    bench.api.apply_status = apply_status
    bench.choose = lambda run, _: moved_on(run)
    await bench.reconciler().reconcile(KEY)

    assert (written[0]["apiVersion"], written[0]["kind"]) == (API_VERSION, KIND)
    assert written[0]["metadata"] == {
        "namespace": "research",
        "name": "first",
        "uid": "uid-first",
        "resourceVersion": "5",
    }


async def test_after_a_conflict_the_run_is_read_so_that_the_next_look_sees_what_is_there(bench):
    bench.api.failing["status"] = ApiFailure("apply hermesruns/status first", code=409, message="changed")
    bench.api.run_now = {**run_object(60), "status": {"phase": "Succeeded"}}
    bench.choose = lambda run, _: moved_on(run)

    assert isinstance(await bench.reconciler().reconcile(KEY), Failed)
    assert bench.cache.run(KEY).status.phase == Phase.SUCCEEDED

    bench.api.run_now = None
    await bench.reconciler().reconcile(KEY)
    assert bench.cache.run(KEY) is None


async def test_a_decision_in_doubt_is_made_again_on_children_that_were_listed(bench):
    seen: list[tuple[bool, int]] = []

    def choose(run: Run, children: Children) -> Decision:
        seen.append((children.is_fresh, len(children.jobs)))
        return Decision(status=run.status, wants_fresh=not children.is_fresh)

    bench.choose = choose
    await bench.reconciler().reconcile(KEY)

    assert (seen, bench.api.done) == ([(False, 0), (True, 1)], ["list"])


async def test_a_run_that_is_gone_needs_no_look(bench):
    bench.cache.forget(Kind.RUN, run_object(6))

    assert await bench.reconciler().reconcile(KEY) == Done(has_acted=False, next_at=None)


def test_those_whose_place_in_the_line_has_moved_are_told_once(bench):
    bench.cap = 1
    reconciler = bench.reconciler()
    bench.line = {RunKey("research", "a"): 1, RunKey("research", "b"): 2}
    assert sorted(key.name for key in reconciler.moved()) == ["a", "b"]
    assert reconciler.moved() == []

    bench.line = {RunKey("research", "b"): 1}
    assert reconciler.moved() == [], "nothing has changed that could move anybody"
    bench.cache.remember(Kind.RUN, run_object(9))
    assert sorted(key.name for key in reconciler.moved()) == ["a", "b"]


def test_without_a_cap_nobody_stands_in_line(bench):
    bench.line = {KEY: 1}

    assert bench.reconciler().moved() == []
