"""Counting what drivers reported: each shard once, when its Job says that it has ended.

Decided here: which pod of a shard tells, what is added up, what evidence of hermeticity is. When counts
reach the status is decided by the callers, in mid-run and at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hermes_operator.decide import indexes, report
from hermes_operator.decide.view import DRIVER, Job, Pod, View
from hermes_operator.names import Condition, Reason
from hermes_operator.status import ArmProgress, Loaded, Shards, Status

COUNTED_CHARACTERS_MAX = 600
"""Longest text of counted shards in a status. What does not fit is counted later: pods outlast shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A status with its counts, and what could not be counted."""

    status: Status
    is_urgent: bool
    """A pod that was counted here is about to vanish."""
    untold: int
    """Shards that have ended and whose pods have not told, or not yet."""


def counted(view: View, status: Status, job: Job, *, is_end: bool) -> Counted:
    """Count every shard that has ended and told; at the end, whatever has told."""
    known: frozenset[int] = frozenset()
    if status.counted_job == job.uid:
        known = indexes.read(status.counted_indexes, below=job.completions)
    elif status.counted_job:
        # Made again after somebody deleted it: each shard runs again, finds its results and reports them.
        status = replace(
            status,
            done=0,
            arms=tuple(ArmProgress(name=arm.name) for arm in status.arms),
            hermetic_shards=0,
            counted_indexes="",
            counted_job="",
        )
    completed, failed = job.completed, job.failed
    ended = completed | failed
    telling = {i: pod for i in ended - known if (pod := _teller(view, i, i in completed)) is not None}
    untold = len(ended - known) - len(telling)
    if is_end:
        unfinished = {i: pod for i, pod in view.newest_pods.items() if i not in ended and _exited(pod)}
        now_known = known | telling.keys()
        telling |= unfinished
    else:
        now_known = indexes.as_many(known, telling, characters_max=COUNTED_CHARACTERS_MAX)
        telling = {i: pod for i, pod in telling.items() if i in now_known}
    for index in sorted(telling):
        status = _added(view, status, telling[index])
    at_work = [
        index
        for index, pod in view.newest_pods.items()
        if index not in ended and (driver := pod.container(DRIVER)) is not None and driver.has_started
    ]
    is_stopped = is_end or job.is_suspended or view.spec.suspend
    status = replace(
        status,
        counted_indexes=indexes.write(now_known),
        counted_job=job.uid if now_known else "",
        shards=Shards(
            total=job.completions,
            active=0 if is_stopped else len(at_work),
            succeeded=len(completed),
            failed=len(failed - completed),
        ),
    )
    is_urgent = any(pod.is_deleted for pod in telling.values())
    return Counted(status=status, is_urgent=is_urgent, untold=untold)


def _teller(view: View, index: int, is_completed: bool) -> Pod | None:
    """The pod whose driver ended the shard; None: it was not seen, or not seen to end."""
    pods = view.shard_pods.get(index, [])
    if is_completed:
        return next((pod for pod in pods if _exit_code(pod) == 0), None)
    if not pods or pods[0].failures_before < view.spec.backoff_limit or pods[0].is_live:
        return None
    return pods[0]


def _exit_code(pod: Pod) -> int | None:
    driver = pod.container(DRIVER)
    return driver.exit.code if driver is not None and driver.exit is not None else None


def _exited(pod: Pod) -> bool:
    return _exit_code(pod) is not None


def _added(view: View, status: Status, pod: Pod) -> Status:
    """The status with what this pod's driver tells."""
    driver = pod.container(DRIVER)
    if driver is None or driver.exit is None:
        return status
    told = report.read(report.DriverReport, driver.exit.message)
    if told is None:
        return status
    arms = {arm.name: arm for arm in status.arms}
    for name, arm in told.arms.items():
        before = arms.get(name) or ArmProgress(name=name)
        if name in arms or len(arms) < report.ARMS_MAX:
            arms[name] = replace(before, done=before.done + arm.done, solved=before.solved + arm.solved)
    status = replace(
        status,
        done=status.done + told.done,
        arms=tuple(arms.values()),
        manifest_ref=status.manifest_ref or told.manifest or "",
        loaded=status.loaded or (None if told.loaded is None else Loaded(**told.loaded.model_dump())),
    )
    if told.loaded is not None and told.loaded.tree_sha256:
        status = _verified_when_loaded(view, status, told.loaded.tree_sha256)
    return _evidence(view, status, told.hermetic)


def _verified_when_loaded(view: View, status: Status, tree: str) -> Status:
    """The model process checks every file before it loads one."""
    known = status.conditions.get(Condition.MODEL_VERIFIED)
    if known is None or known.reason is not Reason.VERIFIED_WHEN_LOADED:
        return status
    return status.with_condition(
        Condition.MODEL_VERIFIED,
        "True",
        Reason.TREE_VERIFIED,
        f"tree {tree}",
        now=view.now,
        generation=view.run.generation,
    )


def _evidence(view: View, status: Status, told: report.HermeticReport | None) -> Status:
    """One attempt is enough to say no; every shard is needed to say yes, and that is for the end."""
    if not view.spec.hermetic or told is None:
        return status
    if told.attempts:
        return status.with_condition(
            Condition.HERMETIC,
            "False",
            Reason.SOCKET_ATTEMPTED,
            now=view.now,
            generation=view.run.generation,
        )
    return replace(status, hermetic_shards=status.hermetic_shards + 1) if told.counted else status
