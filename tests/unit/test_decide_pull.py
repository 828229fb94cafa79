"""A model of a Hub is fetched and verified first; one that is not verified never starts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hermes_operator.names import Condition, Phase, Reason, Who
from hermes_operator.status import Manifest
from tests.unit.sample_cluster import (
    HUB,
    a_pod,
    a_pull,
    a_run,
    begun,
    decided,
    done_to,
    ended,
    exited,
    waiting,
)

RUN = a_run(source=HUB)
PULLING = replace(RUN, status=begun(RUN))


def told(who: str, reason: str) -> Manifest:
    return {"version": 1, "failure": {"who": who, "reason": reason, "message": "words"}}


def test_the_pull_comes_before_anything_else():
    decision = decided(RUN)
    assert done_to(decision) == ["Apply Job"]
    assert decision.status.phase is Phase.PULLING
    assert decision.status.conditions[Condition.MODEL_VERIFIED].reason is Reason.PULLING


def test_a_pull_at_work_is_left_alone():
    pull = a_pull(RUN)
    decision = decided(PULLING, pull, a_pod(pull))
    assert (decision.actions, decision.status) == ((), PULLING.status)


def test_a_verified_model_starts_at_once():
    pull = a_pull(RUN, conditions=ended("Complete"))
    pod = a_pod(pull, phase="Succeeded", driver=exited(0, {"version": 1, "treeSha256": "ab"}))
    decision = decided(PULLING, pull, pod)
    assert done_to(decision) == ["Apply ServiceAccount", "Apply NetworkPolicy", "Apply Job"]
    verified = decision.status.conditions[Condition.MODEL_VERIFIED]
    assert (verified.status, verified.message) == ("True", "tree ab")


@pytest.mark.parametrize(
    ("code", "message", "who", "reason"),
    [
        (2, told("user", "Gated"), Who.USER, Reason.GATED),
        (2, told("user", "RevisionNotFound"), Who.USER, Reason.REVISION_NOT_FOUND),
        (2, told("user", "LicenceRefused"), Who.USER, Reason.PULL_FAILED),
        (2, "", Who.USER, Reason.PULL_FAILED),
        (3, told("cluster", "TreeDamaged"), Who.CLUSTER, Reason.TREE_DAMAGED),
        (3, "", Who.CLUSTER, Reason.TREE_DAMAGED),
        (1, told("cluster", "PullFailed"), Who.CLUSTER, Reason.PULL_FAILED),
        (1, told("agent", "AgentFailed"), Who.CLUSTER, Reason.PULL_FAILED),
        (1, "no JSON", Who.CLUSTER, Reason.PULL_FAILED),
    ],
)
def test_a_pull_that_failed_ends_the_run(code: int, message: str | Manifest, who: Who, reason: Reason):
    pull = a_pull(RUN, conditions=ended("Failed", "PodFailurePolicy"))
    decision = decided(PULLING, pull, a_pod(pull, phase="Failed", driver=exited(code, message)))
    assert decision.actions == ()
    assert decision.status.phase is Phase.FAILED
    failure = decision.status.failure
    assert failure is not None
    assert (failure.who, failure.reason) == (who, reason)


def test_a_pull_that_failed_waits_a_little_for_its_pod_to_tell_why_and_then_has_it_listed():
    pull = a_pull(RUN, conditions=ended("Failed", "BackoffLimitExceeded"))
    early = decided(PULLING, pull)
    assert (early.status.phase, early.next_at is not None) == (Phase.PULLING, True)
    assert decided(PULLING, pull, seconds=60).wants_fresh
    late = decided(PULLING, pull, seconds=60, is_fresh=True).status
    assert late.failure is not None
    assert late.failure.reason is Reason.PULL_FAILED


def test_a_pull_whose_pod_is_gone_is_judged_by_the_exit_code_that_its_job_names():
    message = "Container pull for pod lab/x failed with exit code 3 matching FailJob rule at index 1"
    conditions = [{**ended("Failed", "PodFailurePolicy")[0], "message": message}]
    pull = a_pull(RUN, conditions=conditions)
    failure = decided(PULLING, pull, seconds=60, is_fresh=True).status.failure
    assert failure is not None
    assert failure.reason is Reason.TREE_DAMAGED


def test_a_pull_that_somebody_deleted_is_made_again():
    assert done_to(decided(PULLING)) == ["Apply Job"]


def test_what_keeps_a_pull_from_starting_is_told():
    pull = a_pull(RUN)
    pod = a_pod(pull, phase="Pending", driver=waiting("ImagePullBackOff", "no such image"))
    assert decided(PULLING, pull, pod).status.conditions[Condition.STARTED].reason is Reason.IMAGE_PULL_FAILED


def test_a_folder_of_the_cache_is_verified_when_it_is_loaded():
    status = begun(a_run(source={"path": "some/model"}))
    assert status.conditions[Condition.MODEL_VERIFIED].reason is Reason.VERIFIED_WHEN_LOADED
