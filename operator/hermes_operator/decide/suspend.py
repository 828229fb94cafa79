"""Suspending: nothing is started, and what runs is stopped, until spec.suspend is false again.

Decided here: how a Job is stopped. A Job that waits in a queue is deleted and made again on resumption: a
queue that has admitted it would set it going again at once. Resuming is an edit like any other.
"""

from __future__ import annotations

from dataclasses import replace

from hermes_operator.decide.view import Step, View
from hermes_operator.names import Condition, Phase, Reason
from hermes_operator.observed import Action, Patch
from hermes_operator.status import Status


def suspend(view: View, status: Status) -> Step:
    """Stop, if that is wanted."""
    if not view.spec.suspend:
        return Step(status=status)
    actions: list[Action] = []
    if view.job is not None and view.is_queued:
        if not view.children.is_fresh:
            # With the Job goes what it could still tell: that it has ended, say.
            return Step(status=status, wants_fresh=True, is_last=True)
        actions.append(view.job.delete(view.namespace))
    elif view.job is not None and not view.job.is_suspended:
        actions.append(
            Patch(
                api_version="batch/v1",
                kind="Job",
                namespace=view.namespace,
                name=view.job.name,
                patch={"spec": {"suspend": True}},
            )
        )
    if view.pull is not None and view.pull.ended is None:
        actions.append(view.pull.delete(view.namespace))
    stopped = replace(
        status,
        phase=Phase.SUSPENDED,
        attempt_started_at=None,
        queue_position=None,
        shards=replace(status.shards, active=0),
    )
    if stopped.running_at is None:
        stopped = stopped.with_condition(
            Condition.STARTED, "False", Reason.SUSPENDED, now=view.now, generation=view.run.generation
        )
    return Step(status=stopped, actions=tuple(actions), is_last=True)
