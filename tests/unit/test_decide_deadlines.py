"""A run that cannot start ends by itself, and says whose failure that is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hermes_operator.names import Phase, Reason, Who
from hermes_operator.status import Manifest
from tests.unit.sample_cluster import (
    HUB,
    a_job,
    a_pod,
    a_pull,
    a_run,
    begun,
    decided,
    done_to,
    exited,
    waiting,
)

RUN = a_run(preRunningDeadlineSeconds=100)
BEGUN = replace(RUN, status=begun(RUN))
JOB = a_job(RUN)


def test_the_run_is_looked_at_again_when_its_time_is_over():
    next_at, began = (
        decided(BEGUN, JOB, a_pod(JOB, phase="Pending", driver=waiting(""))).next_at,
        BEGUN.status,
    )
    assert next_at is not None
    assert began.attempt_started_at is not None
    assert (next_at - began.attempt_started_at).total_seconds() == 100


def test_children_are_listed_before_a_run_is_given_up():
    decision = decided(BEGUN, JOB, seconds=100)
    assert decision.wants_fresh
    assert (decision.actions, decision.status) == ((), BEGUN.status)


CRASHED: Manifest = {"model": {"state": waiting("CrashLoopBackOff"), "lastState": exited(1)}}
NO_IMAGE = a_pod(JOB, phase="Pending", driver=waiting("ErrImagePull"))
NO_MODEL = a_pod(JOB, phase="Pending", driver=waiting("PodInitializing"), sidecars=CRASHED)


@pytest.mark.parametrize(
    ("children", "who"),
    [
        pytest.param((JOB,), Who.CLUSTER, id="no pod"),
        pytest.param((JOB, NO_IMAGE), Who.CLUSTER, id="no image"),
        pytest.param((JOB, NO_MODEL), Who.MODEL, id="a model that crashes"),
    ],
)
def test_a_run_that_did_not_start_in_time_fails_and_its_job_is_deleted(
    children: tuple[Manifest, ...], who: Who
):
    decision = decided(BEGUN, *children, seconds=100, is_fresh=True)
    assert done_to(decision) == ["Delete Job"]
    assert decision.status.phase is Phase.FAILED
    failure = decision.status.failure
    assert failure is not None
    assert (failure.who, failure.reason) == (who, Reason.PRE_RUNNING_DEADLINE_EXCEEDED)


def test_the_cause_is_remembered_when_the_pods_are_gone():
    seen = decided(BEGUN, JOB, NO_MODEL).status
    failure = decided(replace(RUN, status=seen), seconds=100, is_fresh=True).status.failure
    assert failure is not None
    assert failure.who is Who.MODEL


def test_a_pull_counts_too():
    run = a_run(source=HUB, preRunningDeadlineSeconds=100)
    pulling = replace(run, status=begun(run))
    assert done_to(decided(pulling, a_pull(run), seconds=100, is_fresh=True)) == ["Delete Job"]


def test_a_run_whose_driver_has_started_has_no_such_deadline():
    decision = decided(BEGUN, JOB, a_pod(JOB), seconds=100)
    assert (decision.status.phase, decision.actions) == (Phase.RUNNING, ())
