"""Why no driver runs yet, from what the pods say.

Decided here: which trouble is named when there are several, and whose it is. A reason keeps its first
message for as long as it lasts: a scheduler's counts change every minute, a status need not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from hermes_operator.decide.failure import crashes
from hermes_operator.decide.view import DRIVER, PULL, Job, Pod, View
from hermes_operator.names import Condition, Reason, Who
from hermes_operator.observed import Announcement
from hermes_operator.status import Status

NO_PODS_SECONDS = 60
"""After so long without a pod, the Job's controller cannot make one."""

_IMAGE = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})

WHO: dict[Reason, Who] = {
    Reason.WAITING_FOR_MODEL: Who.CLUSTER,
    Reason.WAITING_FOR_PODS: Who.CLUSTER,
    Reason.PODS_OF_BEFORE: Who.CLUSTER,
    Reason.UNSCHEDULABLE: Who.CLUSTER,
    Reason.IMAGE_PULL_FAILED: Who.CLUSTER,
    Reason.VOLUME_NOT_BOUND: Who.CLUSTER,
    Reason.STORE_LOST: Who.CLUSTER,
    Reason.OUT_OF_MEMORY: Who.MODEL,
    Reason.MODEL_FAILED: Who.MODEL,
    Reason.AGENT_FAILED: Who.AGENT,
}
"""Who can mend it, by what a run waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What keeps a run from starting."""

    reason: Reason
    message: str


def trouble(pods: Iterable[Pod], claim: str) -> Trouble | None:
    """The first trouble of the first pod that has one; None: they are on their way.

    `claim`: the only one that pods have; a scheduler may leave out which is not bound.
    """
    for pod in pods:
        if not pod.is_live or pod.is_deleted:
            continue
        unscheduled = pod.condition("PodScheduled", "False")
        if unscheduled is not None and unscheduled.get("reason") == "Unschedulable":
            message = str(unscheduled.get("message") or "")
            is_volume = "persistentvolumeclaim" in message.lower()
            reason = Reason.VOLUME_NOT_BOUND if is_volume else Reason.UNSCHEDULABLE
            if is_volume and claim not in message:
                message = f"claim {claim}: {message}"
            return Trouble(reason=reason, message=message)
        sidecars = [one for one in pod.containers() if one.name not in (DRIVER, PULL)]
        for one in pod.containers():
            if one.waiting_reason in _IMAGE:
                return Trouble(
                    reason=Reason.IMAGE_PULL_FAILED, message=f"{one.name}: {one.waiting_message}".rstrip(": ")
                )
            if one.waiting_reason in _CONFIG:
                message = f"{one.name}: {one.waiting_reason}: {one.waiting_message}"
                return Trouble(reason=Reason.WAITING_FOR_PODS, message=message)
        crash = next(crashes(sidecars), None)
        if crash is not None:
            return Trouble(reason=crash.reason, message=crash.message)
    return None


def without_pods(view: View, job: Job, pods: Iterable[Pod]) -> tuple[Trouble | None, timedelta | None]:
    """Whether the Job has been without pods for too long; else when to look again."""
    began = job.unsuspended_at
    if any(True for _ in pods) or job.is_suspended or began is None:
        return None, None
    left = timedelta(seconds=NO_PODS_SECONDS) - (view.now - began)
    if left > timedelta(0):
        return None, left
    message = f"Job {job.name} has no pod: a quota or an admission policy may refuse it; see its events"
    return Trouble(reason=Reason.WAITING_FOR_PODS, message=message), None


def waits(
    view: View, status: Status, reason: Reason, message: str = ""
) -> tuple[Status, tuple[Announcement, ...]]:
    """The status of a run that waits for that, and what is new in it to announce."""
    known = status.conditions.get(Condition.STARTED)
    is_new = known is None or known.reason is not reason or (not known.message and bool(message))
    if not is_new and known is not None and message:
        message = known.message
    waiting = status.with_condition(
        Condition.STARTED, "False", reason, message, now=view.now, generation=view.run.generation
    )
    told = Announcement(is_warning=True, reason=reason, message=message)
    return waiting, (told,) if is_new and message and reason is not Reason.PODS_OF_BEFORE else ()
