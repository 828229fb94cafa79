"""What becomes of a run that has ended: nothing, until its time is over; then it is deleted.

Decided here: that an ended run stays ended, that none of its Jobs goes on, when it is deleted.
"""

from __future__ import annotations

from datetime import timedelta

from hermes_operator import names
from hermes_operator.decide.view import Step, View
from hermes_operator.observed import Action, Delete
from hermes_operator.status import Status


def ttl(view: View, status: Status) -> Step:
    """Keep, stop, delete."""
    if status.phase not in names.ENDED:
        return Step(status=status)
    running = [job for job in (view.job, view.pull) if job is not None and job.ended is None]
    actions: list[Action] = [job.delete(view.namespace) for job in running]
    due = None
    if status.finished_at is not None:
        due = status.finished_at + timedelta(seconds=view.spec.ttl_seconds_after_finished)
    if due is not None and due <= view.now:
        run = Delete(
            api_version=names.API_VERSION,
            kind=names.KIND,
            namespace=view.namespace,
            name=view.run.key.name,
            uid=view.run.uid,
        )
        return Step(status=status, actions=(run,), is_last=True)
    return Step(status=status, actions=tuple(actions), next_at=due, is_last=True)
