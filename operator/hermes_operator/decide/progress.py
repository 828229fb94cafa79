"""Progress in mid-run: when counts reach the status.

Decided here: that counts move every few seconds at most, at once where a pod is about to vanish, and not
just before the end, which writes them anyway.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hermes_operator.decide.count import counted
from hermes_operator.decide.view import Step, View
from hermes_operator.status import Status

PROGRESS_SECONDS_MIN = 10
"""Between two writes of progress."""


def progress(view: View, status: Status) -> Step:
    """Take the counts over, or leave them for later."""
    job = view.job
    if job is None or job.ended is not None:
        return Step(status=status)
    found = counted(view, status, job, is_end=False)
    if found.status == status:
        return Step(status=status)
    if not found.is_urgent:
        if len(job.completed | job.failed) >= job.completions:
            return Step(status=status)
        if status.moved_at is not None:
            due = status.moved_at + timedelta(seconds=PROGRESS_SECONDS_MIN)
            if view.now < due:
                return Step(status=status, next_at=due)
    return Step(status=replace(found.status, moved_at=view.now))
