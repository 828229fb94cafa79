"""Making what a run needs: its account, its policy, its Job, in that order.

Decided here: that they are made only when the attempt's Job is missing, and never beside something that
may still work. A Job that somebody deleted in mid-run is made again, in the same attempt.
"""

from __future__ import annotations

from dataclasses import replace

from hermes_operator.decide import waiting
from hermes_operator.decide.view import Step, View
from hermes_operator.manifests import run_account, run_job, run_policy
from hermes_operator.names import Phase, Reason
from hermes_operator.observed import Apply
from hermes_operator.status import Status


def start(view: View, status: Status) -> Step:
    """Make the Job, if it is missing and nothing is in its way."""
    if view.job is not None:
        return Step(status=status)
    if view.is_in_the_way:
        if status.running_at is not None:
            return Step(status=replace(status, phase=Phase.RUNNING), is_last=True)
        message = "waits for pods of an earlier Job to be gone"
        held, _ = waiting.waits(view, replace(status, phase=Phase.STARTING), Reason.PODS_OF_BEFORE, message)
        return Step(status=held, is_last=True)
    made = (
        run_account(view.run),
        run_policy(view.run, view.installation),
        run_job(view.run, view.installation, view.attempt),
    )
    return Step(status=status, actions=tuple(Apply(manifest=one) for one in made))
