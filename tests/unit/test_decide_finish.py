"""A run ends with its Job, once its pods have told, and an end is never taken back."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from hermes_operator.decide.failure import LEGAL, is_legal
from hermes_operator.names import Condition, Phase, Reason, Who
from hermes_operator.status import Failure, Manifest, Status
from tests.unit.sample_cluster import a_job, a_pod, a_report, a_run, at, begun, decided, ended, exited

RUN = a_run(backoffLimit=0)
BEGUN = replace(RUN, status=begun(RUN))
COMPLETE = a_job(RUN, completedIndexes="0-1", conditions=ended("Complete"))
DONE = tuple(
    a_pod(COMPLETE, index, phase="Succeeded", driver=exited(0, a_report(solved=index))) for index in (0, 1)
)


def failed(*, failed_indexes: str = "0", reason: str = "FailedIndexes", seconds: float = -5) -> Manifest:
    return a_job(RUN, failedIndexes=failed_indexes, conditions=ended("Failed", reason, seconds=seconds))


def test_a_complete_job_ends_the_run_well_with_all_that_was_told():
    decision = decided(BEGUN, COMPLETE, *DONE)
    status = decision.status
    assert (status.phase, status.done, status.shards.succeeded) == (Phase.SUCCEEDED, 8, 2)
    assert [(arm.name, arm.solved) for arm in status.arms] == [("A", 1), ("C", 1)]
    assert status.conditions[Condition.COMPLETE].status == "True"
    assert status.conditions[Condition.STARTED].status == "True"
    assert status.conditions[Condition.HERMETIC].status == "True"
    assert (status.counted_indexes, status.counted_job, status.moved_at) == ("", "", None)
    assert [one.reason for one in decision.announcements] == [Reason.ALL_SHARDS_DONE]


def test_an_end_waits_for_pods_that_have_not_told_then_has_them_listed_then_goes_without():
    assert decided(BEGUN, COMPLETE, DONE[0]).status == BEGUN.status
    assert decided(BEGUN, COMPLETE, DONE[0], seconds=30).wants_fresh
    status = decided(BEGUN, COMPLETE, DONE[0], seconds=30, is_fresh=True).status
    assert (status.phase, status.done, status.shards.succeeded) == (Phase.SUCCEEDED, 4, 2)
    assert "1 shards were not seen" in status.conditions[Condition.COMPLETE].message
    assert status.conditions[Condition.HERMETIC].status == "Unknown"


def test_an_end_stays_whatever_is_seen_later():
    status = decided(BEGUN, COMPLETE, *DONE).status
    run = replace(RUN, status=status)
    for children in ((), (COMPLETE,), (failed(),), DONE):
        decision = decided(run, *children, seconds=60)
        assert (decision.actions, decision.status, decision.announcements) == ((), status, ())


def told(who: str, reason: str) -> Manifest:
    return a_report(failure={"who": who, "reason": reason, "message": "words"})


OOM = {"state": {"running": {}}, "lastState": exited(137, reason="OOMKilled")}
CRASHED = {"state": {"running": {}}, "lastState": exited(1)}


@pytest.mark.parametrize(
    ("driver", "sidecars", "who", "reason"),
    [
        (exited(1, told("model", "ModelFailed")), {}, Who.MODEL, Reason.MODEL_FAILED),
        (exited(1, told("sandbox", "SandboxFailed")), {}, Who.SANDBOX, Reason.SANDBOX_FAILED),
        (exited(1, told("cluster", "StoreLost")), {}, Who.CLUSTER, Reason.STORE_LOST),
        (exited(1, told("operator", "Whatever")), {}, Who.OPERATOR, Reason.OPERATOR_FAILED),
        (exited(1, told("nobody", "Whatever")), {}, Who.AGENT, Reason.AGENT_FAILED),
        (exited(1, told("model", "AgentFailed")), {}, Who.MODEL, Reason.MODEL_FAILED),
        (exited(1, told("agent", "AgentFailed")), {"model": OOM}, Who.MODEL, Reason.OUT_OF_MEMORY),
        (exited(1), {"model": CRASHED}, Who.MODEL, Reason.MODEL_FAILED),
        (exited(1), {"store": CRASHED}, Who.CLUSTER, Reason.STORE_LOST),
        (exited(1), {}, Who.AGENT, Reason.AGENT_FAILED),
        (exited(2), {}, Who.USER, Reason.BAD_INPUT),
        (exited(137, reason="OOMKilled"), {}, Who.AGENT, Reason.OUT_OF_MEMORY),
        (exited(143), {}, Who.CLUSTER, Reason.SHARDS_FAILED),
    ],
)
def test_a_failed_shard_says_who(driver: Manifest, sidecars: dict[str, Manifest], who: Who, reason: Reason):
    job = failed()
    status = decided(BEGUN, job, a_pod(job, phase="Failed", driver=driver, sidecars=sidecars)).status
    assert status.phase is Phase.FAILED
    assert status.failure is not None
    assert (status.failure.who, status.failure.reason) == (who, reason)
    assert is_legal(status)


def test_a_bad_input_ends_the_run_at_once():
    job = failed(failed_indexes="", reason="PodFailurePolicy")
    pod = a_pod(job, phase="Failed", driver=exited(2, told("user", "BadInput")))
    failure = decided(BEGUN, job, pod).status.failure
    assert failure is not None
    assert (failure.who, failure.reason) == (Who.USER, Reason.BAD_INPUT)


def test_the_active_deadline_is_the_jobs_own():
    failure = decided(BEGUN, failed(failed_indexes="", reason="DeadlineExceeded")).status.failure
    assert failure is not None
    assert (failure.who, failure.reason) == (Who.USER, Reason.ACTIVE_DEADLINE_EXCEEDED)


def test_the_commonest_cause_is_told_and_how_many_shards_it_took():
    run = a_run(backoffLimit=0, evaluate={"instances": {"mutants": {"count": 6}}})
    job = a_job(run, failedIndexes="0-2", conditions=ended("Failed", "FailedIndexes"))
    whos = ("agent", "model", "model")
    pods = [
        a_pod(job, i, phase="Failed", driver=exited(1, told(who, f"{who.title()}Failed")))
        for i, who in enumerate(whos)
    ]
    failure = decided(replace(run, status=begun(run)), job, *pods).status.failure
    assert failure is not None
    assert failure.who is Who.MODEL
    assert failure.message == "3 of 3 shards; shard 1: words"


def test_a_failure_none_of_whose_pods_is_left_is_the_clusters():
    job = failed()
    assert decided(BEGUN, job, seconds=30).wants_fresh
    failure = decided(BEGUN, job, seconds=30, is_fresh=True).status.failure
    assert failure is not None
    assert (failure.who, failure.reason) == (Who.CLUSTER, Reason.SHARDS_FAILED)


@pytest.mark.parametrize("phase", list(Phase))
def test_only_what_is_in_the_table_is_legal(phase: Phase):
    assert is_legal(Status(phase=phase)) == (phase is not Phase.FAILED)
    for reason, who in itertools.product(Reason, Who):
        status = Status(phase=phase, failure=Failure(who=who, reason=reason, message=""))
        assert is_legal(status) == ((phase, reason, who) in LEGAL)
        assert phase is Phase.FAILED or not is_legal(status)


@pytest.mark.parametrize("who", [*Who, "nobody"])
def test_whatever_a_driver_says_of_its_failure_is_told_legally(who: str):
    job = failed()
    for reason in (*Reason, "Unheard"):
        status = decided(BEGUN, job, a_pod(job, phase="Failed", driver=exited(1, told(who, reason)))).status
        assert is_legal(status)
        assert status.failure is not None
        assert status.failure.who == (who if who in tuple(Who) else Who.AGENT)


def test_the_newest_pod_of_a_shard_tells_though_the_count_of_failures_began_anew_with_a_resumption():
    job = failed(failed_indexes="", reason="PodFailurePolicy")
    before = a_pod(job, 0, phase="Failed", driver=exited(1, a_report(done=1)), failures=1)
    words = {"who": "user", "reason": "BadInput", "message": "no such package"}
    told = exited(2, a_report(failure=words))
    resumed = a_pod(job, 0, phase="Failed", driver=told, failures=0, name="resumed")
    resumed["metadata"]["creationTimestamp"] = at(-20)

    failure = decided(BEGUN, job, before, resumed).status.failure

    assert failure is not None
    assert (failure.reason, failure.message) == (Reason.BAD_INPUT, "1 of 2 shards; shard 0: no such package")
