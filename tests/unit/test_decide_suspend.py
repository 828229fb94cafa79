"""Suspending stops everything; in a queue, the queue decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hermes_operator.names import Condition, Phase, Reason
from hermes_operator.observed import Patch
from hermes_operator.status import Manifest
from tests.unit.sample_cluster import HUB, a_job, a_pod, a_pull, a_run, begun, decided, done_to


def test_a_run_made_suspended_makes_nothing():
    decision = decided(a_run(suspend=True))
    assert decision.actions == ()
    assert decision.status.phase is Phase.SUSPENDED
    assert decision.status.attempt_started_at is None
    assert decision.next_at is None


def test_suspending_suspends_the_job_once():
    run = a_run()
    suspended = replace(a_run(suspend=True), status=begun(run))
    (patch,) = decided(suspended, a_job(run)).actions
    assert isinstance(patch, Patch)
    assert patch.patch == {"spec": {"suspend": True}}
    assert decided(suspended, a_job(run, suspend=True)).actions == ()


def test_resuming_sets_the_job_going_and_the_clock_anew():
    run = a_run()
    status = decided(replace(a_run(suspend=True), status=begun(run)), a_job(run)).status
    decision = decided(replace(run, status=status), a_job(run, suspend=True), seconds=500)
    (patch,) = decision.actions
    assert isinstance(patch, Patch)
    assert patch.patch == {"spec": {"suspend": False}}
    assert decision.status.phase is Phase.STARTING
    assert (decision.status.attempt_started_at or begun(run)) != begun(run).attempt_started_at


def test_a_job_is_resumed_without_a_deadline_that_would_count_from_before_and_gets_it_back():
    run = a_run(activeDeadlineSeconds=100)
    status = decided(replace(run, status=begun(run)), a_job(run)).status
    stopped = [{"type": "Suspended", "status": "True"}]

    def patched(**job: Any) -> list[Manifest]:
        decision = decided(replace(run, status=status), a_job(run, conditions=stopped, **job), seconds=500)
        return [one.patch["spec"] for one in decision.actions if isinstance(one, Patch)]

    assert patched(suspend=True) == [{"suspend": False, "activeDeadlineSeconds": None}]
    assert patched(suspend=False, activeDeadlineSeconds=None) == []
    stopped[0]["status"] = "False"
    assert patched(suspend=False, activeDeadlineSeconds=None) == [{"activeDeadlineSeconds": 100}]
    assert patched(suspend=False) == []


def test_a_job_that_was_just_resumed_is_not_blamed_for_having_no_pod():
    run = a_run()
    stopped = [{"type": "Suspended", "status": "True"}]
    job = a_job(run, activeDeadlineSeconds=None, conditions=stopped)
    decision = decided(replace(run, status=begun(run)), job, seconds=500)
    assert decision.announcements == ()
    assert decision.status.conditions[Condition.STARTED].message == ""


def test_a_resumed_run_waits_for_its_turn_like_any_other():
    run = a_run()
    status = decided(replace(a_run(suspend=True), status=begun(run)), a_job(run)).status
    decision = decided(replace(run, status=status), a_job(run, suspend=True), position=1)
    assert (decision.actions, decision.status.phase) == ((), Phase.PENDING)


def test_a_pull_is_stopped_too():
    run = a_run(source=HUB)
    suspended = replace(a_run(source=HUB, suspend=True), status=begun(run))
    assert done_to(decided(suspended, a_pull(run))) == ["Delete Job"]


def test_a_queue_lets_a_job_run_and_the_operator_does_not():
    run = a_run(queue="gpus")
    made = decided(run)
    assert made.status.phase is Phase.SUSPENDED
    assert made.status.conditions[Condition.STARTED].reason is Reason.WAITING_IN_QUEUE
    assert made.status.attempt_started_at is None
    waiting = replace(run, status=made.status)
    held = decided(waiting, a_job(run, suspend=True), seconds=90_000)
    assert (held.actions, held.status) == ((), made.status)
    admitted = decided(waiting, a_job(run, suspend=False))
    assert (admitted.actions, admitted.status.phase) == ((), Phase.STARTING)
    assert admitted.status.attempt_started_at is not None


def test_a_queued_job_is_deleted_to_suspend_it_for_its_queue_would_set_it_going_again():
    run = a_run(queue="gpus", suspend=True)
    assert decided(run, a_job(run)).wants_fresh, "what it may have come to is not forgotten"
    assert done_to(decided(run, a_job(run), is_fresh=True)) == ["Delete Job"]


def test_a_driver_that_has_run_stays_told_while_suspended():
    run = a_run()
    job = a_job(run)
    running = decided(replace(run, status=begun(run)), job, a_pod(job)).status
    status = decided(replace(a_run(suspend=True), status=running), job, a_pod(job)).status
    assert (status.phase, status.shards.active) == (Phase.SUSPENDED, 0)
    assert status.conditions[Condition.STARTED].status == "True"
