"""How a run's status looks once it has ended, whatever ended it.

Decided here: what is set, what is cleared, what is announced. When and why is decided by the caller.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from hermes_operator.decide.view import Step, View
from hermes_operator.names import Condition, Phase, Reason
from hermes_operator.observed import Action, Announcement
from hermes_operator.status import Failure, Status


def succeeded(view: View, status: Status, *, at: datetime, message: str) -> Step:
    """The run has ended well."""
    status = _closed(status, Phase.SUCCEEDED, at).with_condition(
        Condition.COMPLETE,
        "True",
        Reason.ALL_SHARDS_DONE,
        message,
        now=view.now,
        generation=view.run.generation,
    )
    told = Announcement(is_warning=False, reason=Reason.ALL_SHARDS_DONE, message=message)
    return Step(status=status, announcements=(told,), is_last=True)


def failed(
    view: View, status: Status, why: Failure, *, at: datetime, actions: tuple[Action, ...] = ()
) -> Step:
    """The run has ended without success."""
    return Step(
        status=failed_status(status, why, at=at, now=view.now, generation=view.run.generation),
        actions=actions,
        announcements=(failed_announcement(why),),
        is_last=True,
    )


def failed_status(status: Status, why: Failure, *, at: datetime, now: datetime, generation: int) -> Status:
    """The status of a run that failed; the message stands in the failure alone."""
    closed = replace(_closed(status, Phase.FAILED, at), failure=why)
    return closed.with_condition(Condition.COMPLETE, "False", why.reason, now=now, generation=generation)


def failed_announcement(why: Failure) -> Announcement:
    """What is announced of it."""
    return Announcement(is_warning=True, reason=why.reason, message=f"{why.who}: {why.message}")


def _closed(status: Status, phase: Phase, at: datetime) -> Status:
    """What was for counting and waiting alone is dropped."""
    return replace(
        status,
        phase=phase,
        finished_at=at,
        queue_position=None,
        counted_indexes="",
        counted_job="",
        moved_at=None,
        shards=replace(status.shards, active=0),
    )
