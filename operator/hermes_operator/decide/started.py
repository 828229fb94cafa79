"""Whether a driver runs, and if not, what it waits for.

Decided here: the phases Starting and Running, and Suspended by a queue. Called last, once everything that
a run needs is there.
"""

from __future__ import annotations

from dataclasses import replace

from hermes_operator.decide import waiting
from hermes_operator.decide.view import Step, View
from hermes_operator.names import Condition, Phase, Reason
from hermes_operator.status import Status


def started(view: View, status: Status) -> Step:
    """Tell what is seen."""
    now, generation = view.now, view.run.generation
    if view.is_queued and (view.job is None or view.job.is_suspended):
        queued = replace(status, phase=Phase.SUSPENDED, attempt_started_at=None)
        if queued.running_at is None:
            queued = queued.with_condition(
                Condition.STARTED, "False", Reason.WAITING_IN_QUEUE, now=now, generation=generation
            )
        return Step(status=queued)
    running_at = status.running_at or view.driver_started_at
    if running_at is not None:
        running = replace(status, phase=Phase.RUNNING, running_at=running_at)
        return Step(
            status=running.with_condition(
                Condition.STARTED, "True", Reason.DRIVER_STARTED, now=now, generation=generation
            )
        )
    trouble, left = waiting.trouble(view.pods, view.installation.model_claim), None
    if trouble is None and view.job is not None:
        trouble, left = waiting.without_pods(view, view.job, view.pods)
    reason, message = (trouble.reason, trouble.message) if trouble else (Reason.WAITING_FOR_PODS, "")
    status, announcements = waiting.waits(view, replace(status, phase=Phase.STARTING), reason, message)
    return Step(status=status, announcements=announcements, next_at=None if left is None else now + left)
