"""A document that cannot be run here ends the run before anything is made."""

from __future__ import annotations

from dataclasses import replace

from hermes_operator.names import Condition, Phase, Reason, Who
from tests.unit.sample_cluster import FILE, HUB, a_job, a_run, begun, decided, done_to


def test_what_a_cluster_cannot_do_ends_the_run_once():
    run = a_run(**FILE)
    decision = decided(run)
    assert decision.actions == ()
    assert decision.status.phase is Phase.FAILED
    assert decision.status.failure is not None
    assert decision.status.failure.who is Who.USER
    assert decision.status.conditions[Condition.ACCEPTED].reason is Reason.NOT_ON_A_CLUSTER
    assert [one.is_warning for one in decision.announcements] == [True]
    again = decided(replace(run, status=decision.status), seconds=60)
    assert again.status == decision.status
    assert again.announcements == ()


def test_an_unreadable_document_ends_the_run_and_stops_its_job():
    run = a_run()
    broken = replace(run, status=begun(run), document="spec.seed: is missing")
    decision = decided(broken, a_job(run))
    assert done_to(decision) == ["Delete Job"]
    assert decision.status.failure is not None
    assert decision.status.failure.reason is Reason.DOCUMENT_INVALID
    assert decided(replace(broken, status=decision.status)).status == decision.status


def test_a_run_that_never_began_begins_once_its_document_can_be_read():
    run = a_run()
    refused = decided(replace(run, document="not a document")).status
    assert refused.attempt == 0
    assert decided(replace(run, status=refused)).status.phase is Phase.STARTING


def test_what_runs_is_not_stopped_because_the_installation_changed():
    run = a_run(source=HUB)
    accepted = replace(run, status=begun(run))
    view = replace(accepted, generation=2)
    assert decided(view).status.conditions[Condition.ACCEPTED].status == "True"
