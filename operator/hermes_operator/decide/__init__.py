"""The decisions: what to do about a run, from what is seen of it now and never from what woke the operator.

`decide` walks through the policies below, each a file; a policy adds to the status and to the actions, or
ends the walk. Nothing here reads a clock or talks to a cluster. `view` reads the children, `report` the
words of containers, `failure` says who failed, `count` adds up, `end` closes a status.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from hermes_operator.decide.accept import accept, unreadable
from hermes_operator.decide.deadlines import deadlines
from hermes_operator.decide.edit import edit
from hermes_operator.decide.finish import finish
from hermes_operator.decide.progress import progress
from hermes_operator.decide.pull import pull
from hermes_operator.decide.retry import attempt_of, clear, retry
from hermes_operator.decide.start import start
from hermes_operator.decide.started import started
from hermes_operator.decide.suspend import suspend
from hermes_operator.decide.ttl import ttl
from hermes_operator.decide.turn import turn
from hermes_operator.decide.view import Step, View
from hermes_operator.names import Condition, Reason
from hermes_operator.observed import Action, Announcement, Children, Decision, Installation, Run
from hermes_operator.status import Status

API_REQUESTS_PER_RUN_MAX = 8
"""Requests for a run of one shard from its creation to its deletion: 3 applies, 3 status writes, 1 event,
1 delete. Watches and the operator's own lease are not a run's."""

Policy = Callable[[View, Status], Step]

POLICIES: tuple[Policy, ...] = (
    retry,
    ttl,
    accept,
    clear,
    progress,
    finish,
    suspend,
    turn,
    deadlines,
    pull,
    start,
    edit,
    started,
)
"""In the order of the walk: what ends a run comes before what stops it, and that before what starts it."""


def decide(
    run: Run,
    children: Children,
    now: datetime,
    installation: Installation,
    queue_position: int | None,
) -> Decision:
    """The actions and the status that move `children` one step towards the run's document.

    No actions means "in step". `now` is aware UTC. `queue_position` is None for a run whose turn it is.
    """
    now = now.replace(microsecond=0)
    if run.is_deleted:
        return Decision(status=run.status)
    if isinstance(run.document, str):
        return unreadable(run, run.document, children, now)
    view = View(
        run=run,
        document=run.document,
        attempt=attempt_of(run.status, run.document.spec.attempt),
        children=children,
        now=now,
        installation=installation,
        queue_position=queue_position,
    )
    status = run.status
    actions: list[Action] = []
    announcements: list[Announcement] = []
    next_at: datetime | None = None
    for policy in POLICIES:
        step = policy(view, status)
        if step.wants_fresh:
            return Decision(status=run.status, wants_fresh=True)
        status = step.status
        actions.extend(step.actions)
        announcements.extend(step.announcements)
        next_at = min((at for at in (next_at, step.next_at) if at is not None), default=None)
        if step.is_last:
            break
    status = replace(status, observed_generation=run.generation).with_condition(
        Condition.RECONCILED, "True", Reason.IN_STEP, now=now, generation=run.generation
    )
    return Decision(
        actions=tuple(actions), status=status, announcements=tuple(announcements), next_at=next_at
    )
