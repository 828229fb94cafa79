"""The deadline before running: a run that cannot start ends by itself.

Decided here: when its clock runs (not while suspended, nor while waiting for a turn or in a queue), what it
deletes, whose failure it is. The deadline while running is the Job's own.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hermes_operator.decide import end, waiting
from hermes_operator.decide.failure import failure
from hermes_operator.decide.view import Step, View
from hermes_operator.names import Condition, Reason, Who
from hermes_operator.status import Status


def deadlines(view: View, status: Status) -> Step:
    """Start the clock, or end the run when its time is over."""
    if view.waits_in_queue:
        return Step(status=replace(status, attempt_started_at=None))
    began = status.attempt_started_at or view.now
    status = replace(status, attempt_started_at=began)
    if status.running_at is not None or view.driver_started_at is not None:
        return Step(status=status)
    seconds = view.spec.pre_running_deadline_seconds
    due = began + timedelta(seconds=seconds)
    if view.now < due:
        return Step(status=status, next_at=due)
    if not view.children.is_fresh:
        return Step(status=status, wants_fresh=True, is_last=True)
    who, what = _cause(view, status)
    message = f"no driver ran within spec.preRunningDeadlineSeconds, {seconds}: {what}"
    jobs = [job for job in (view.pull, view.job) if job is not None and job.ended is None]
    return end.failed(
        view,
        status,
        failure(who, Reason.PRE_RUNNING_DEADLINE_EXCEEDED, message),
        at=view.now,
        actions=tuple(job.delete(view.namespace) for job in jobs),
    )


def _cause(view: View, status: Status) -> tuple[Who, str]:
    """Who can mend what it waited for: by the pods, or by what was last seen of them."""
    trouble = waiting.trouble((*view.pods, *view.pull_pods), view.installation.model_claim)
    if trouble is not None:
        return waiting.WHO[trouble.reason], f"{trouble.reason}: {trouble.message}"
    known = status.conditions.get(Condition.STARTED)
    if known is None:
        return Who.CLUSTER, "nothing was seen of its pods"
    who = waiting.WHO.get(known.reason, Who.CLUSTER)
    return who, f"{known.reason}: {known.message}".removesuffix(": ")
