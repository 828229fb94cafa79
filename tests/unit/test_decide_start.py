"""What a run needs is made once, in order, and never beside something that may still work."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hermes_operator.names import Condition, Phase, Reason
from hermes_operator.observed import Apply
from hermes_operator.status import Manifest
from tests.unit.sample_cluster import a_job, a_pod, a_run, begun, decided, done_to, exited

ALL = ["Apply ServiceAccount", "Apply NetworkPolicy", "Apply Job"]


def test_account_policy_and_job_are_made_in_that_order():
    decision = decided(a_run())
    assert done_to(decision) == ALL
    job = decision.actions[2]
    assert isinstance(job, Apply)
    assert job.manifest["metadata"]["name"] == "hermes-a-1"
    assert decision.status.phase is Phase.STARTING
    assert decision.status.shards.total == 2
    assert decision.status.total == 8


def test_nothing_is_made_while_the_job_is_there():
    run = a_run()
    run = replace(run, status=begun(run))
    decision = decided(run, a_job(run))
    assert decision.actions == ()
    assert decision.status == run.status


def test_a_job_that_was_deleted_in_mid_run_is_made_again_in_the_same_attempt():
    run = a_run()
    running = decided(replace(run, status=begun(run)), job := a_job(run), a_pod(job)).status
    assert running.phase is Phase.RUNNING
    decision = decided(replace(run, status=running))
    assert done_to(decision) == ALL
    assert decision.status.attempt == 1


def _leaving(manifest: Manifest) -> Manifest:
    return {**manifest, "metadata": {**manifest["metadata"], "deletionTimestamp": "2030-01-01T12:00:00Z"}}


def _of_another(manifest: Manifest) -> Manifest:
    owners = [{"kind": "HermesRun", "uid": "another"}]
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": owners}}


RUN = a_run()
GONE = a_job(RUN, uid="gone")


@pytest.mark.parametrize(
    "in_the_way",
    [
        pytest.param(_leaving(a_job(RUN)), id="its own Job is being deleted"),
        pytest.param(_of_another(a_job(RUN)), id="the Job of a deleted run of the same name"),
        pytest.param(a_pod(GONE), id="a live pod of a Job that is gone"),
    ],
)
def test_nothing_is_made_beside_what_may_still_work(in_the_way: Manifest):
    decision = decided(RUN, in_the_way)
    assert decision.actions == ()
    assert decision.status.conditions[Condition.STARTED].reason is Reason.PODS_OF_BEFORE
    assert decision.next_at is not None


def test_a_dead_pod_of_a_job_that_is_gone_is_in_nobodys_way():
    assert done_to(decided(RUN, a_pod(GONE, phase="Failed", driver=exited(143)))) == ALL


def test_a_deleted_run_is_left_to_the_cluster():
    run = replace(a_run(), is_deleted=True)
    decision = decided(run)
    assert (decision.actions, decision.status) == ((), run.status)
