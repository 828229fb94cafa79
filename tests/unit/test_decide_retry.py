"""A higher spec.attempt starts an ended run again; an ended run is deleted when its time is over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hermes_operator.names import Condition, Phase
from hermes_operator.observed import Delete
from tests.unit.sample_cluster import (
    HUB,
    a_job,
    a_pod,
    a_pull,
    a_run,
    at,
    begun,
    decided,
    done_to,
    ended,
    exited,
)

RUN = a_run(backoffLimit=0)
JOB = a_job(RUN, failedIndexes="0-1", conditions=ended("Failed", "FailedIndexes"))
PODS = tuple(a_pod(JOB, index, phase="Failed", driver=exited(1)) for index in (0, 1))
FAILED = decided(replace(RUN, status=begun(RUN)), JOB, *PODS).status
ALL = ["Apply ServiceAccount", "Apply NetworkPolicy", "Apply Job"]


def test_a_new_attempt_deletes_the_old_job_first_and_starts_when_it_is_gone():
    again = a_run(backoffLimit=0, attempt=2, status=FAILED)
    first = decided(again, JOB, *PODS)
    assert done_to(first) == ["Delete Job"]
    assert (first.status.attempt, first.status.failure, first.status.finished_at) == (2, None, None)
    assert is_beginning(first.status.phase)
    assert done_to(decided(replace(again, status=first.status), *PODS)) == ALL


def is_beginning(phase: Phase) -> bool:
    return phase in (Phase.PENDING, Phase.STARTING)


def test_a_higher_attempt_waits_for_the_one_at_work():
    again = a_run(attempt=2, status=begun(a_run()))
    decision = decided(again, a_job(again))
    assert (decision.actions, decision.status.attempt) == ((), 1)


def test_a_new_attempt_verifies_its_model_anew():
    run = a_run(source=HUB, attempt=2, status=replace(FAILED, phase=Phase.FAILED))
    decision = decided(run, a_pull(run, conditions=ended("Complete")))
    assert done_to(decision) == ["Delete Job"]
    assert Condition.MODEL_VERIFIED not in decision.status.conditions
    assert done_to(decided(replace(run, status=decision.status))) == ["Apply Job"]


def test_a_run_may_begin_with_a_higher_attempt():
    decision = decided(a_run(attempt=3))
    assert decision.status.attempt == 3
    assert done_to(decision) == ALL


@pytest.mark.parametrize(("seconds", "is_over"), [(0, False), (94, False), (95, True), (9_999, True)])
def test_an_ended_run_is_deleted_when_its_time_is_over(seconds: float, is_over: bool):
    run = a_run(ttlSecondsAfterFinished=100, status=FAILED)
    decision = decided(run, JOB, *PODS, seconds=seconds)
    assert decision.status == FAILED
    assert any(isinstance(one, Delete) and one.kind == "HermesRun" for one in decision.actions) == is_over
    assert (decision.next_at is None) == is_over


def test_no_job_of_an_ended_run_goes_on():
    decision = decided(a_run(status=FAILED), a_job(RUN))
    assert done_to(decision) == ["Delete Job"]
    assert FAILED.finished_at is not None
    assert at(-5) == FAILED.finished_at.strftime("%Y-%m-%dT%H:%M:%SZ")
