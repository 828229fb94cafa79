"""The end of an attempt whose Job has ended.

Decided here: how long to wait for pods that have not told yet (the cluster tells of Jobs and of pods in no
order), what was hermetic, what ended well. An end is never taken back.
"""

from __future__ import annotations

from dataclasses import replace

from hermes_operator.decide import end
from hermes_operator.decide.count import counted
from hermes_operator.decide.failure import of_shards, untold
from hermes_operator.decide.view import Step, View
from hermes_operator.names import Condition, Reason
from hermes_operator.status import Status


def finish(view: View, status: Status) -> Step:
    """End the run, if its Job has ended."""
    job = view.job
    if job is None or job.ended is None:
        return Step(status=status)
    ended = job.ended
    at = ended.at or view.now
    found = counted(view, status, job, is_end=True)
    why = None if ended.is_complete else of_shards(view, ended)
    is_told = not found.untold and (ended.is_complete or why is not None)
    is_still = ended.is_complete or not any(pod.is_live for pod in view.pods)
    if not (is_told and is_still) and (wait := view.until_told(ended, status)) is not None:
        return wait
    closed = _hermetic(view, _started(view, found.status))
    if not ended.is_complete:
        return end.failed(view, closed, why or untold(ended), at=at)
    message = f"{closed.done} of {closed.total} recorded"
    if found.untold:
        message += f"; the counts of {found.untold} shards were not seen, their results are kept"
    return end.succeeded(view, closed, at=at, message=message)


def _started(view: View, status: Status) -> Status:
    """A run may end before it was seen to run."""
    has_run = view.driver_started_at is not None or status.shards.succeeded > 0
    if status.running_at is not None or not has_run:
        return status
    assert view.job is not None
    at = view.driver_started_at or view.job.unsuspended_at or view.now
    return replace(status, running_at=at).with_condition(
        Condition.STARTED, "True", Reason.DRIVER_STARTED, now=view.now, generation=view.run.generation
    )


def _hermetic(view: View, status: Status) -> Status:
    """True by the evidence of every shard and not by less."""
    known = status.conditions.get(Condition.HERMETIC)
    if not view.spec.hermetic or (known is not None and known.reason is Reason.SOCKET_ATTEMPTED):
        return status
    shards, told = status.shards.total, status.hermetic_shards
    is_shown = 0 < shards <= told
    return status.with_condition(
        Condition.HERMETIC,
        "True" if is_shown else "Unknown",
        Reason.NO_SOCKET_ATTEMPTED if is_shown else Reason.NO_EVIDENCE_YET,
        f"{min(told, shards)} of {shards} shards counted no attempt",
        now=view.now,
        generation=view.run.generation,
    )
