"""Waiting for a turn, when the installation runs only so many runs at a time.

Decided here: what waits, and what its status says. Who is next is decided over all runs, elsewhere; the
position comes in. A run with a queue's label waits in that queue instead.
"""

from __future__ import annotations

from dataclasses import replace

from hermes_operator.decide.view import Step, View
from hermes_operator.names import Condition, Phase, Reason
from hermes_operator.status import Status


def turn(view: View, status: Status) -> Step:
    """Go on, or wait."""
    has_begun = status.phase in (Phase.PULLING, Phase.STARTING, Phase.RUNNING) or (
        view.job is not None and not view.job.is_suspended
    )
    if view.queue_position is None or view.is_queued or has_begun:
        return Step(status=replace(status, queue_position=None))
    waiting = replace(
        status, phase=Phase.PENDING, queue_position=view.queue_position, attempt_started_at=None
    )
    if waiting.running_at is None:
        waiting = waiting.with_condition(
            Condition.STARTED,
            "False",
            Reason.WAITING_FOR_TURN,
            now=view.now,
            generation=view.run.generation,
        )
    return Step(status=waiting, is_last=True)
