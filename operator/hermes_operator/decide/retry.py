"""Which attempt a run is in, and when a new one begins: spec.attempt raised over one that has ended.

Decided here: what a new attempt forgets and deletes. That it starts only once the old one is gone is
decided where Jobs are started.
"""

from __future__ import annotations

from hermes_operator.decide.view import Step, View
from hermes_operator.names import ENDED, Condition, Reason
from hermes_operator.status import ConditionStatus, Status


def attempt_of(status: Status, wanted: int) -> int:
    """The attempt to work on: a new one when the last has ended and a higher one is wanted."""
    if status.attempt == 0 or (status.phase in ENDED and wanted > status.attempt):
        return wanted
    return status.attempt


def retry(view: View, status: Status) -> Step:
    """Begin the first attempt, or a new one."""
    if status.attempt == view.attempt:
        return Step(status=status)
    kept: dict[Condition, ConditionStatus] = {
        kind: one for kind, one in status.conditions.items() if kind is Condition.RECONCILED
    }
    fresh = Status(attempt=view.attempt, run_id=view.run.run_id, conditions=kept).with_condition(
        Condition.COMPLETE, "False", Reason.IN_PROGRESS, now=view.now, generation=view.run.generation
    )
    if view.pull is None or status.attempt == 0:
        return Step(status=fresh)
    # The model is verified anew: what was verified for the last attempt may have been damaged since.
    return Step(status=fresh, actions=(view.pull.delete(view.namespace),), next_at=view.now, is_last=True)


def clear(view: View, status: Status) -> Step:
    """Delete Jobs of other attempts."""
    old = [job for job in view.jobs_of_before if not job.is_deleted]
    return Step(status=status, actions=tuple(job.delete(view.namespace) for job in old))
