"""The children of a run as the policies look at them: thin, typed readings of Jobs and Pods.

Decided here: which Job is the attempt's, which pods are its pods, when a Job has ended, when a driver has
started. What to do about it is decided in the policies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from hermes_operator import names
from hermes_operator.decide import indexes
from hermes_operator.names import Who
from hermes_operator.observed import Action, Announcement, Children, Delete, Installation, Run
from hermes_operator.status import Manifest, Status, read_instant
from hermes_runtime.document import HermesRun, Spec

DRIVER, PULL = "driver", "pull"
"""Main containers of a run's pod and of a pull's."""

_INDEX = "batch.kubernetes.io/job-completion-index"
_INDEX_FAILURES = "batch.kubernetes.io/job-index-failure-count"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one policy adds to the decision."""

    status: Status
    actions: tuple[Action, ...] = ()
    announcements: tuple[Announcement, ...] = ()
    next_at: datetime | None = None
    wants_fresh: bool = False
    """The children are in doubt; nothing of the decision counts until they are listed."""
    is_last: bool = False
    """The policies after this one have nothing to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a Job ended."""

    is_complete: bool
    reason: str
    message: str
    at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a container ended."""

    code: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container of a pod."""

    name: str
    waiting_reason: str
    waiting_message: str
    started_at: datetime | None
    """When it first ran as it is now; None: it has not."""
    exit: Exit | None
    last_exit: Exit | None
    """How it ended before it was restarted."""

    @property
    def has_started(self) -> bool:
        return self.started_at is not None or self.exit is not None


class Pod:
    """One pod."""

    __slots__ = ("manifest",)

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"].get("name", ""))

    @property
    def job_uid(self) -> str:
        """uid of the Job that made it."""
        owners = self.manifest["metadata"].get("ownerReferences") or ()
        return next((str(o.get("uid")) for o in owners if o.get("kind") == "Job"), "")

    @property
    def index(self) -> int | None:
        """Its shard."""
        text = str((self.manifest["metadata"].get("annotations") or {}).get(_INDEX, ""))
        return int(text) if text.isdecimal() else None

    @property
    def age_key(self) -> tuple[str, int, str]:
        """Grows from one pod of a shard to the next."""
        metadata = self.manifest["metadata"]
        return (str(metadata.get("creationTimestamp", "")), self.failures_before, self.name)

    @property
    def failures_before(self) -> int:
        """Pods of its shard that failed before it and count, since the Job was last resumed."""
        failures = str((self.manifest["metadata"].get("annotations") or {}).get(_INDEX_FAILURES, ""))
        return int(failures) if failures.isdecimal() else 0

    @property
    def phase(self) -> str:
        return str((self.manifest.get("status") or {}).get("phase", "Pending"))

    @property
    def is_live(self) -> bool:
        """It may still do work."""
        return self.phase not in ("Succeeded", "Failed")

    @property
    def is_deleted(self) -> bool:
        return bool(self.manifest["metadata"].get("deletionTimestamp"))

    @property
    def is_disrupted(self) -> bool:
        """The cluster took it away; its Job does not count that."""
        return self.condition("DisruptionTarget") is not None

    @property
    def reason(self) -> str:
        """What the kubelet says of the pod as a whole."""
        status = self.manifest.get("status") or {}
        return ": ".join(str(status[key]) for key in ("reason", "message") if status.get(key))

    def condition(self, kind: str, status: str = "True") -> Manifest | None:
        """The condition, if it has that status."""
        for one in (self.manifest.get("status") or {}).get("conditions") or ():
            if one.get("type") == kind and one.get("status") == status:
                return dict(one)
        return None

    def containers(self) -> Iterator[Container]:
        """Sidecars first, in the order of the pod."""
        status = self.manifest.get("status") or {}
        for key in ("initContainerStatuses", "containerStatuses"):
            for one in status.get(key) or ():
                yield _container(one)

    def container(self, name: str) -> Container | None:
        """The container of that name, once the kubelet tells of it."""
        return next((one for one in self.containers() if one.name == name), None)


class Job:
    """One Job."""

    __slots__ = ("manifest",)

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.manifest["metadata"].get("uid", ""))

    @property
    def is_deleted(self) -> bool:
        return bool(self.manifest["metadata"].get("deletionTimestamp"))

    @property
    def owner_uid(self) -> str:
        """uid of the run that it was made for: not ours, where a run of the same name was deleted before."""
        owners = self.manifest["metadata"].get("ownerReferences") or ()
        return next((str(o.get("uid")) for o in owners if o.get("kind") == names.KIND), "")

    @property
    def is_suspended(self) -> bool:
        return bool(self.manifest["spec"].get("suspend"))

    @property
    def completions(self) -> int:
        return int(self.manifest["spec"].get("completions") or 1)

    @property
    def has_old_start(self) -> bool:
        """It was suspended and its controller has not set it going again: what it tells is when it began
        the time before."""
        conditions = self._status.get("conditions") or ()
        is_stopped = any((one.get("type"), one.get("status")) == ("Suspended", "True") for one in conditions)
        return is_stopped and "startTime" in self._status

    @property
    def unsuspended_at(self) -> datetime | None:
        """When it last began to run."""
        return None if self.has_old_start else read_instant(self._status.get("startTime"))

    @property
    def completed(self) -> frozenset[int]:
        """Shards that are done."""
        return indexes.read(self._status.get("completedIndexes"), below=self.completions)

    @property
    def failed(self) -> frozenset[int]:
        """Shards that are given up."""
        return indexes.read(self._status.get("failedIndexes"), below=self.completions)

    @property
    def ended(self) -> Ended | None:
        """How it ended; None: it has not."""
        for one in self._status.get("conditions") or ():
            if one.get("type") in ("Complete", "Failed") and one.get("status") == "True":
                return Ended(
                    is_complete=one["type"] == "Complete",
                    reason=str(one.get("reason") or ""),
                    message=str(one.get("message") or ""),
                    at=read_instant(one.get("lastTransitionTime")),
                )
        return None

    @property
    def _status(self) -> Manifest:
        return self.manifest.get("status") or {}

    def delete(self, namespace: str) -> Delete:
        """The action that deletes it."""
        return Delete(api_version="batch/v1", kind="Job", namespace=namespace, name=self.name, uid=self.uid)


@dataclass(frozen=True, kw_only=True)
class View:
    """All that a policy looks at, for one attempt."""

    run: Run
    document: HermesRun
    attempt: int
    children: Children
    now: datetime
    installation: Installation
    queue_position: int | None

    @property
    def spec(self) -> Spec:
        return self.document.spec

    @property
    def namespace(self) -> str:
        return self.run.key.namespace

    @property
    def is_queued(self) -> bool:
        """A queue decides when its Job may run."""
        return names.LABEL_QUEUE in self.run.labels

    @cached_property
    def job(self) -> Job | None:
        """The attempt's Job, unless it is going away."""
        return self._job(names.job_name(self.run.key.name, self.attempt))

    @cached_property
    def pull(self) -> Job | None:
        """The Job that fetches the model, unless it is going away."""
        return self._job(names.pull_name(self.run.key.name))

    @property
    def is_pull_there(self) -> bool:
        """The pull Job is there, be it on its way out."""
        return names.pull_name(self.run.key.name) in self.children.jobs

    @cached_property
    def jobs_of_before(self) -> tuple[Job, ...]:
        """Jobs of other attempts."""
        known = (names.job_name(self.run.key.name, self.attempt), names.pull_name(self.run.key.name))
        return tuple(Job(one) for name, one in sorted(self.children.jobs.items()) if name not in known)

    @cached_property
    def pods(self) -> tuple[Pod, ...]:
        """Pods of the attempt's Job."""
        return self._pods_of(self.job)

    @cached_property
    def pull_pods(self) -> tuple[Pod, ...]:
        """Pods of the pull Job."""
        return self._pods_of(self.pull)

    @cached_property
    def is_in_the_way(self) -> bool:
        """Something of an earlier attempt, or of a Job that is gone, may still work."""
        job = self.children.jobs.get(names.job_name(self.run.key.name, self.attempt))
        if self.jobs_of_before or (job is not None and self.job is None):
            return True
        known = {one.uid for one in (self.job, self.pull) if one is not None}
        return any(pod.is_live and pod.job_uid not in known for pod in self._all_pods())

    @cached_property
    def shard_pods(self) -> dict[int, list[Pod]]:
        """For each shard its pods, the newest first."""
        found: dict[int, list[Pod]] = {}
        for pod in self.pods:
            if (index := pod.index) is not None:
                found.setdefault(index, []).append(pod)
        for pods in found.values():
            pods.sort(key=lambda pod: pod.age_key, reverse=True)
        return found

    @property
    def newest_pods(self) -> dict[int, Pod]:
        """For each shard the last of its pods."""
        return {index: pods[0] for index, pods in self.shard_pods.items()}

    @cached_property
    def driver_started_at(self) -> datetime | None:
        """When the first driver of the Job started, as far as its pods tell."""
        drivers = [one for pod in self.pods if (one := pod.container(DRIVER)) is not None]
        return min((one.started_at or self.now for one in drivers if one.has_started), default=None)

    @property
    def waits_in_queue(self) -> bool:
        """Its Job is there and the queue has not let it run."""
        return self.is_queued and self.job is not None and self.job.is_suspended

    def until_told(self, ended: Ended, status: Status) -> Step | None:
        """What to do while pods have not told how their Job ended: wait, then list; None: they never will."""
        due = (ended.at or self.now) + timedelta(seconds=GRACE_SECONDS)
        if self.now < due:
            return Step(status=status, next_at=due, is_last=True)
        if not self.children.is_fresh:
            return Step(status=status, wants_fresh=True, is_last=True)
        return None

    def _job(self, name: str) -> Job | None:
        manifest = self.children.jobs.get(name)
        job = None if manifest is None else Job(manifest)
        if job is None or job.is_deleted or job.owner_uid != self.run.uid:
            return None
        return job

    def _pods_of(self, job: Job | None) -> tuple[Pod, ...]:
        return () if job is None else tuple(pod for pod in self._all_pods() if pod.job_uid == job.uid)

    def _all_pods(self) -> Iterator[Pod]:
        return (Pod(one) for _, one in sorted(self.children.pods.items()))


GRACE_SECONDS = 10
"""For pods to be heard of after their Job has ended; later, they are listed."""


def whose_container(name: str) -> Who:
    """Who can mend it when this container dies."""
    return {"model": Who.MODEL, "store": Who.CLUSTER}.get(name, Who.AGENT)


def _container(status: Manifest) -> Container:
    state = status.get("state") or {}
    waiting, running, terminated = (state.get(key) for key in ("waiting", "running", "terminated"))
    last = (status.get("lastState") or {}).get("terminated")
    return Container(
        name=str(status.get("name", "")),
        waiting_reason=str((waiting or {}).get("reason") or ""),
        waiting_message=str((waiting or {}).get("message") or ""),
        started_at=read_instant((running or terminated or {}).get("startedAt")),
        exit=_exit(terminated),
        last_exit=_exit(last),
    )


def _exit(terminated: Manifest | None) -> Exit | None:
    if not terminated:
        return None
    return Exit(
        code=int(terminated.get("exitCode") or 0),
        reason=str(terminated.get("reason") or ""),
        message=str(terminated.get("message") or ""),
    )
