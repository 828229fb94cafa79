"""Whose failure it is: from what containers and Jobs say to one (reason, who) that can be.

Decided here: which triples (phase, reason, who) are legal, which of many traces is the cause, what a run
ends with. When a run ends is not. Called by the policies that end one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from hermes_operator.decide import report
from hermes_operator.decide.view import DRIVER, PULL, Container, Ended, Pod, View, whose_container
from hermes_operator.names import Phase, Reason, Who
from hermes_operator.status import Failure, Status, cut

_WHO: dict[Reason, tuple[Who, ...]] = {
    Reason.DOCUMENT_INVALID: (Who.USER,),
    Reason.NOT_ON_A_CLUSTER: (Who.USER,),
    Reason.GATED: (Who.USER,),
    Reason.REVISION_NOT_FOUND: (Who.USER,),
    Reason.TREE_DAMAGED: (Who.CLUSTER,),
    Reason.PULL_FAILED: (Who.USER, Who.CLUSTER),
    Reason.PRE_RUNNING_DEADLINE_EXCEEDED: (Who.MODEL, Who.AGENT, Who.CLUSTER),
    Reason.ACTIVE_DEADLINE_EXCEEDED: (Who.USER,),
    Reason.BAD_INPUT: (Who.USER,),
    Reason.MODEL_FAILED: (Who.MODEL,),
    Reason.AGENT_FAILED: (Who.AGENT,),
    Reason.SANDBOX_FAILED: (Who.SANDBOX,),
    Reason.OUT_OF_MEMORY: (Who.MODEL, Who.AGENT, Who.CLUSTER),
    Reason.STORE_LOST: (Who.CLUSTER,),
    Reason.SHARDS_FAILED: (Who.CLUSTER,),
    Reason.OPERATOR_FAILED: (Who.OPERATOR,),
}

LEGAL = frozenset((Phase.FAILED, reason, who) for reason, all_who in _WHO.items() for who in all_who)
"""Every triple that a status may show. A run that has not failed shows none."""

DEFAULT_REASON = {
    Who.USER: Reason.BAD_INPUT,
    Who.MODEL: Reason.MODEL_FAILED,
    Who.AGENT: Reason.AGENT_FAILED,
    Who.SANDBOX: Reason.SANDBOX_FAILED,
    Who.CLUSTER: Reason.SHARDS_FAILED,
    Who.OPERATOR: Reason.OPERATOR_FAILED,
}
"""Reason of a failure that says who, in words of its own."""

BAD_INPUT_CODE, DAMAGED_CODE = 2, 3
"""Exit codes: the user can mend it; what the pull found is damaged."""

_STOPPED_CODES = frozenset({137, 143})
"""SIGKILL and SIGTERM: a sidecar that ended so was stopped with its pod."""


def is_legal(status: Status) -> bool:
    """The status says who failed exactly if it failed, and in a way that can be."""
    if status.failure is None:
        return status.phase is not Phase.FAILED
    return (status.phase, status.failure.reason, status.failure.who) in LEGAL


def failure(who: Who, reason: Reason, message: str) -> Failure:
    """That failure. A pair that is not legal is a mistake of the policies."""
    assert (Phase.FAILED, reason, who) in LEGAL, (reason, who)
    return Failure(who=who, reason=reason, message=cut(message))


def said(told: report.FailureReport, *, default: Who) -> Failure:
    """What a process says of its failure; its own words go to the message where they are no known reason."""
    who = Who(told.who) if told.who in tuple(Who) else default
    reason = Reason(told.reason) if told.reason in tuple(Reason) else None
    if reason is not None and (Phase.FAILED, reason, who) in LEGAL:
        return failure(who, reason, told.message)
    return failure(who, DEFAULT_REASON[who], ": ".join(p for p in (told.reason, told.message) if p))


def of_pod(pod: Pod) -> Failure | None:
    """Why this pod failed, from the deepest trace to the shallowest; None if it did not or does not tell."""
    containers = tuple(pod.containers())
    return next(_traces(pod, containers), None)


def _traces(pod: Pod, containers: Iterable[Container]) -> Iterator[Failure]:
    sidecars = [one for one in containers if one.name != DRIVER]
    driver = next((one for one in containers if one.name == DRIVER), None)
    for one in containers:
        for ended in (one.exit, one.last_exit):
            if ended is not None and ended.reason == "OOMKilled":
                message = f"{one.name} ran out of memory; raise its limit"
                yield failure(whose_container(one.name), Reason.OUT_OF_MEMORY, message)
    if driver is not None and driver.exit is not None and driver.exit.code != 0:
        told = report.read(report.DriverReport, driver.exit.message)
        if told is not None and told.failure is not None:
            yield said(told.failure, default=Who.AGENT)
        if driver.exit.code == BAD_INPUT_CODE:
            yield failure(Who.USER, Reason.BAD_INPUT, driver.exit.message or "driver exited 2")
    yield from crashes(sidecars)
    if driver is not None and driver.exit is not None and driver.exit.code != 0:
        code = driver.exit.code
        if code in _STOPPED_CODES:
            yield failure(Who.CLUSTER, Reason.SHARDS_FAILED, f"driver was stopped ({code})")
        yield failure(Who.AGENT, Reason.AGENT_FAILED, driver.exit.message or f"driver exited {code}")
    if pod.phase == "Failed":
        yield failure(Who.CLUSTER, Reason.SHARDS_FAILED, pod.reason or "a pod failed without a word")


def crashes(sidecars: Iterable[Container]) -> Iterator[Failure]:
    """Sidecars that ended by themselves."""
    for one in sidecars:
        for ended in (one.exit, one.last_exit):
            if ended is None or ended.code == 0:
                continue
            who = whose_container(one.name)
            if ended.reason == "OOMKilled":
                message = f"{one.name} ran out of memory; raise its limit"
                yield failure(who, Reason.OUT_OF_MEMORY, message)
            elif ended.code not in _STOPPED_CODES:
                reason = Reason.STORE_LOST if who is Who.CLUSTER else DEFAULT_REASON[who]
                yield failure(
                    who, reason, f"{one.name} exited {ended.code}: {_last_line(ended.message)}".rstrip(": ")
                )


def _last_line(log: str) -> str:
    """What a process said at its end."""
    return next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")


def of_shards(view: View, ended: Ended) -> Failure | None:
    """Why the attempt's Job failed; None if its pods do not tell (yet)."""
    if ended.reason == "DeadlineExceeded":
        seconds = view.spec.active_deadline_seconds
        message = f"ran longer than spec.activeDeadlineSeconds, {seconds}; what is recorded is kept"
        return failure(Who.USER, Reason.ACTIVE_DEADLINE_EXCEEDED, message)
    assert view.job is not None
    failed = view.job.failed
    if ended.reason == "PodFailurePolicy":
        pods = {i: pod for i, pod in view.newest_pods.items() if _exit_code(pod) == BAD_INPUT_CODE}
    else:
        pods = {i: pod for i, pod in view.newest_pods.items() if i in failed and not pod.is_disrupted}
    causes = [(i, cause) for i, pod in sorted(pods.items()) if (cause := of_pod(pod)) is not None]
    if not causes:
        return None
    commonest = Counter((cause.who, cause.reason) for _, cause in causes).most_common(1)[0][0]
    index, first = next((i, cause) for i, cause in causes if (cause.who, cause.reason) == commonest)
    if view.job.completions == 1:
        return first
    count = max(len(failed), len(causes))
    return failure(
        first.who, first.reason, f"{count} of {view.job.completions} shards; shard {index}: {first.message}"
    )


def untold(ended: Ended) -> Failure:
    """The failure of a Job none of whose pods tells why."""
    if ended.reason == "PodFailurePolicy":
        # The one exit code of a driver that ends its Job at once.
        return failure(Who.USER, Reason.BAD_INPUT, ended.message)
    message = ": ".join(part for part in (ended.reason, ended.message) if part)
    return failure(Who.CLUSTER, Reason.SHARDS_FAILED, message or "the Job failed and its pods are gone")


def of_pull(pods: Iterable[Pod]) -> Failure | None:
    """Why the model could not be fetched or verified; None if no pod tells (yet)."""
    for pod in sorted(pods, key=lambda one: one.age_key, reverse=True):
        container = pod.container(PULL)
        if container is None or container.exit is None or container.exit.code == 0:
            continue
        code, message = container.exit.code, container.exit.message
        told = report.read(report.PullReport, message)
        words = told.failure if told is not None else None
        if code == DAMAGED_CODE:
            return failure(Who.CLUSTER, Reason.TREE_DAMAGED, words.message if words else message)
        if words is not None:
            found = said(words, default=Who.USER if code == BAD_INPUT_CODE else Who.CLUSTER)
            if (found.who, found.reason) in _PULLED:
                return found
        who = Who.USER if code == BAD_INPUT_CODE else Who.CLUSTER
        text = f"{words.reason}: {words.message}" if words else message or f"the pull exited {code}"
        return failure(who, Reason.PULL_FAILED, text)
    return None


def untold_pull(ended: Ended) -> Failure:
    """The failure of a pull none of whose pods tells why: its Job names the exit code that ended it."""
    if f"exit code {DAMAGED_CODE} " in ended.message:
        return failure(Who.CLUSTER, Reason.TREE_DAMAGED, ended.message)
    if f"exit code {BAD_INPUT_CODE} " in ended.message:
        return failure(Who.USER, Reason.PULL_FAILED, ended.message)
    return failure(Who.CLUSTER, Reason.PULL_FAILED, f"{ended.reason}: {ended.message}".strip(": "))


_PULLED = frozenset(
    (who, reason)
    for reason in (Reason.GATED, Reason.REVISION_NOT_FOUND, Reason.TREE_DAMAGED, Reason.PULL_FAILED)
    for who in _WHO[reason]
)


def _exit_code(pod: Pod) -> int | None:
    driver = pod.container(DRIVER)
    return driver.exit.code if driver is not None and driver.exit is not None else None
