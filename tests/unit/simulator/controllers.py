"""The played controllers: Jobs, a queue that admits them, the garbage collector.

The Job controller does what that of Kubernetes 1.34 does with the Jobs that the operator makes; methods name
the functions of pkg/controller/job/job_controller.go (for indexes, of indexed_job_utils.go) that they play.
"""

from __future__ import annotations

from datetime import datetime

from hermes_operator import names
from hermes_operator.decide import indexes
from hermes_operator.status import Manifest
from tests.unit.simulator.faults import Broken
from tests.unit.simulator.kubelet import Kubelet
from tests.unit.simulator.server import EPOCH, NAMESPACE, Change, clone
from tests.unit.simulator.truth import (
    FAILURES,
    IGNORED,
    INDEX,
    TRACKING,
    Ground,
    JobTruth,
    exit_code_of,
    failures_before,
    fatal_codes,
    finished_at,
    ignored_before,
    index_of,
    is_counted,
    main_container,
    owner_of,
)

BACKOFF_SECONDS, BACKOFF_SECONDS_MAX = 10.0, 600.0
"""Before a failed pod is replaced: doubled with each failure."""

Delayed = dict[int, Manifest]
"""By index: the failed pod that is kept until its replacement has taken over its count."""


class Controllers:
    """Kubernetes' own controllers and a queue's."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._kubelet = Kubelet(ground, self._sync_soon)
        self._pods = 0
        self._syncing: set[str] = set()
        ground.server.listeners.append(self._heard)

    # The garbage collector

    def delete(self, kind: str, name: str) -> None:
        """Delete in the background."""
        if kind == "Pod":
            self._kubelet.stop(name)
            return
        uid = str(self._ground.server.objects[kind, name]["metadata"]["uid"])
        self._ground.server.remove(kind, name)
        self._ground.clock.after(self._ground.dice.uniform(0.05, 4.0), lambda: self._collect(uid))

    def _collect(self, uid: str) -> None:
        for (kind, name), one in list(self._ground.server.objects.items()):
            if any(owner["uid"] == uid for owner in one["metadata"].get("ownerReferences") or ()):
                self.delete(kind, name)

    def _heard(self, change: Change) -> None:
        """The cluster's own controllers hear of everything at once."""
        metadata = change.manifest["metadata"]
        if not change.is_deletion:
            owner = owner_of(change.manifest)
            if owner and owner not in self._ground.server.uids:
                self._ground.clock.after(self._ground.dice.uniform(0.05, 4.0), lambda: self._collect(owner))
        if change.kind == "Job":
            if not change.is_deletion and str(metadata["uid"]) not in self._ground.jobs:
                self._know_job(change.manifest)
            self._sync_soon(str(metadata["name"]))
        elif change.kind == "Pod":
            self._sync_soon(str(metadata["labels"]["job-name"]))

    # The Job controller

    def _know_job(self, job: Manifest) -> None:
        metadata = job["metadata"]
        run = next((one for one in self._ground.runs.values() if one.uid == owner_of(job)), None)
        truth = JobTruth(
            run_uid=owner_of(job),
            name=str(metadata["name"]),
            uid=str(metadata["uid"]),
            is_pull=metadata["labels"][names.LABEL_COMPONENT] == names.COMPONENT_PULL,
            completions=int(job["spec"].get("completions") or 1),
            limit_seconds=int(job["spec"].get("activeDeadlineSeconds") or 0),
        )
        self._ground.jobs[truth.uid] = truth
        if run is not None:
            run.jobs.append(truth)
        if metadata["labels"].get(names.LABEL_QUEUE) and self._ground.dice.random() < 0.9:
            self._ground.clock.after(self._ground.dice.uniform(1.0, 60.0), lambda: self._admit(truth))

    def _sync_soon(self, name: str) -> None:
        if name not in self._syncing:
            self._syncing.add(name)
            self._ground.clock.after(self._ground.dice.uniform(0.02, 0.3), lambda: self._sync(name))

    def _sync(self, name: str) -> None:
        """syncJob: count, end, or manage."""
        self._syncing.discard(name)
        ground = self._ground
        job = ground.server.get("Job", name)
        if job is None:
            self._release_orphans(name)
            return
        truth = ground.jobs[str(job["metadata"]["uid"])]
        pods = [one for one in ground.server.all("Pod") if owner_of(one) == truth.uid]
        if not truth.ended:
            status: Manifest = clone(job.get("status") or {})
            self._sync_job(job, truth, pods, status)
            ground.server.change("Job", name, lambda found: found.update(status=status))
        for pod in pods:
            self._let_go(truth, str(pod["metadata"]["name"]))

    def _sync_job(self, job: Manifest, truth: JobTruth, pods: list[Manifest], status: Manifest) -> None:
        spec, is_suspended = job["spec"], bool(job["spec"].get("suspend"))
        if is_suspended:
            truth.going_since = None
        elif truth.going_since is None:
            truth.going_since = self._ground.clock.now
        if "startTime" not in status and not is_suspended:
            status["startTime"] = self._ground.clock.written()
        live = [one for one in pods if one["status"]["phase"] not in ("Succeeded", "Failed")]
        active = [one for one in live if not one["metadata"].get("deletionTimestamp")]
        tracked = [one for one in pods if _is_tracked(one)]
        self._count(spec, truth, tracked)
        if not truth.ending:
            truth.ending, truth.message = self._failure(spec, truth, pods, status)
        if not truth.ending and len(truth.failed | truth.completed) >= truth.completions and truth.failed:
            truth.ending = "FailedIndexes"
        delayed = {} if truth.is_pull else _delayed(truth, tracked, active)
        if truth.ending:
            for pod in active:  # deleteActivePods: they keep their finalizers, and count
                self._kubelet.stop(pod["metadata"]["name"])
        elif is_suspended:
            self._remove(active)
        else:
            self._manage(job, truth, active, len(live) - len(active), delayed)
        if not truth.ending and len(truth.completed) >= truth.completions and not active:
            truth.ending = "Complete"
        for pod in tracked:
            is_over = pod["status"]["phase"] in ("Succeeded", "Failed")
            if is_over and (truth.ending or delayed.get(index_of(pod)) is not pod):
                self._untrack(pod)
        if truth.ending:
            self._close(truth, status, is_still=not live)
        else:
            self._tell_suspended(status, is_suspended=is_suspended)
        status |= {
            "active": len(active),
            "succeeded": len(truth.completed),
            "failed": truth.failures,
            "completedIndexes": indexes.write(truth.completed),
            "failedIndexes": indexes.write(truth.failed),
        }

    def _count(self, spec: Manifest, truth: JobTruth, tracked: list[Manifest]) -> None:
        """calculateSucceededIndexes, calculateFailedIndexes: only pods that still have the finalizer."""
        for pod in tracked:
            index = index_of(pod)
            if pod["status"]["phase"] in ("Succeeded", "Failed"):
                truth.told.add(str(pod["metadata"]["uid"]))
            if pod["status"]["phase"] == "Succeeded":
                truth.completed.add(index)
            elif pod["status"]["phase"] == "Failed" and is_counted(truth, pod):
                limit = spec.get("backoffLimitPerIndex")
                if not truth.is_pull and limit is not None and failures_before(pod) >= limit:
                    truth.failed.add(index)
                if str(pod["metadata"]["uid"]) not in truth.counted:
                    truth.counted.add(str(pod["metadata"]["uid"]))
                    truth.failures += 1
                    truth.last_failure_at = finished_at(pod)

    def _failure(
        self, spec: Manifest, truth: JobTruth, pods: list[Manifest], status: Manifest
    ) -> tuple[str, str]:
        """Why the Job has failed, in syncJob's order; of an exit code that ends it every pod is asked, be it
        one that was removed and does not count (getFailJobMessage)."""
        for pod in pods:
            code = exit_code_of(pod)
            if pod["status"]["phase"] == "Failed" and is_counted(truth, pod) and code in fatal_codes(truth):
                return "PodFailurePolicy", (
                    f"Container {main_container(truth)} for pod {NAMESPACE}/{pod['metadata']['name']} "
                    f"failed with exit code {code} matching FailJob rule at index {1 if truth.is_pull else 2}"
                )
        if truth.is_pull and truth.failures > int(spec.get("backoffLimit", 6)):
            return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        limit = spec.get("activeDeadlineSeconds")
        if limit and not spec.get("suspend"):
            # pastActiveDeadline: of a Job that has just been resumed this is still the old startTime.
            began = datetime.fromisoformat(status["startTime"]).timestamp() - EPOCH.timestamp()
            if self._ground.clock.now >= began + limit:
                assert truth.going_since is not None
                truth.deadline_after = (self._ground.clock.now - truth.going_since, float(limit))
                return "DeadlineExceeded", "Job was active longer than specified deadline"
            self._sync_at(truth, began + limit + 0.01)
        return "", ""

    def _manage(
        self, job: Manifest, truth: JobTruth, active: list[Manifest], leaving: int, delayed: Delayed
    ) -> None:
        """manageJob: remove what is too much, or make what is missing once its time has come."""
        spec = job["spec"]
        wanted = min(truth.completions - len(truth.completed), int(spec.get("parallelism", 1)))
        if len(active) > wanted:
            pending_first = sorted(active, key=lambda pod: str(pod["status"]["phase"]))
            self._remove(pending_first[: len(active) - wanted])
            return
        busy = {index_of(pod) for pod in self._ground.server.all("Pod") if _is_busy(pod, truth)}
        over = truth.completed | truth.failed | busy
        missing = [index for index in range(truth.completions) if index not in over]
        missing = missing[: max(0, wanted - leaving - len(active))]
        due = {index: self._due(truth, delayed.get(index)) for index in missing}
        ready = [index for index in missing if due[index] <= self._ground.clock.now]
        for index in ready:
            self._make_pod(job, truth, index, delayed.get(index))
        if missing and not ready:
            self._sync_at(truth, min(due.values()) + 0.01)

    def _due(self, truth: JobTruth, replaced: Manifest | None) -> float:
        """getRemainingTimePerIndex; of a Job that is not Indexed, of all its failures."""
        failures = truth.failures if truth.is_pull else 0
        at = truth.last_failure_at
        if replaced is not None:
            failures = failures_before(replaced) + ignored_before(replaced) + 1
            at = finished_at(replaced)
        if not failures:
            return 0.0
        return at + min(BACKOFF_SECONDS * 2.0 ** (failures - 1), BACKOFF_SECONDS_MAX)

    def _remove(self, pods: list[Manifest]) -> None:
        """deleteJobPods: the finalizer goes first, so whatever becomes of these pods does not count."""
        for pod in pods:
            self._untrack(pod)
            self._kubelet.stop(pod["metadata"]["name"])

    def _untrack(self, pod: Manifest) -> None:
        name = str(pod["metadata"]["name"])
        self._ground.server.change("Pod", name, lambda found: found["metadata"].update(finalizers=[]))

    def _let_go(self, truth: JobTruth, name: str) -> None:
        """The kubelet removes a pod that was deleted and is over, once nothing keeps it."""
        pod = self._ground.server.get("Pod", name)
        if pod is None or _is_tracked(pod) or not pod["metadata"].get("deletionTimestamp"):
            return
        if pod["status"]["phase"] not in ("Succeeded", "Failed"):
            return
        if str(pod["metadata"]["uid"]) in truth.told:
            truth.vanished.add(index_of(pod))
        self._ground.server.remove("Pod", name)

    def _close(self, truth: JobTruth, status: Manifest, *, is_still: bool) -> None:
        """First what it will be, then, once no pod is left at work, that it is so (enactJobFinished)."""
        is_complete = truth.ending == "Complete"
        reason = "CompletionsReached" if is_complete else truth.ending
        early = "SuccessCriteriaMet" if is_complete else "FailureTarget"
        conditions = status.setdefault("conditions", [])
        if not any(one["type"] == early for one in conditions):
            conditions.append(self._condition(early, reason, truth.message))
            self._sync_soon(truth.name)
        elif is_still:
            truth.ended = truth.ending
            kind = "Complete" if is_complete else "Failed"
            conditions.append(self._condition(kind, reason, truth.message))

    def _tell_suspended(self, status: Manifest, *, is_suspended: bool) -> None:
        """The condition Suspended; a Job that is resumed begins anew, but only here."""
        conditions = status.setdefault("conditions", [])
        known = next((one for one in conditions if one["type"] == "Suspended"), None)
        if is_suspended and (known is None or known["status"] != "True"):
            if known is not None:
                conditions.remove(known)
            conditions.append(self._condition("Suspended", "JobSuspended", "Job suspended"))
        elif not is_suspended and known is not None and known["status"] == "True":
            known |= {"status": "False", "reason": "JobResumed", "message": "Job resumed"}
            known["lastTransitionTime"] = self._ground.clock.written()
            status["startTime"] = self._ground.clock.written()

    def _condition(self, kind: str, reason: str, message: str) -> Manifest:
        return {
            "type": kind,
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": self._ground.clock.written(),
        }

    def _sync_at(self, truth: JobTruth, when: float) -> None:
        """Once for each instant."""
        if when not in truth.alarms:
            truth.alarms.add(when)
            self._ground.clock.at(when, lambda: self._sync_soon(truth.name))

    def _release_orphans(self, job_name: str) -> None:
        """Nobody counts pods of a Job that is gone."""
        for pod in self._ground.server.all("Pod"):
            is_over = pod["status"]["phase"] in ("Succeeded", "Failed")
            is_leaving = is_over and pod["metadata"].get("deletionTimestamp")
            if pod["metadata"]["labels"]["job-name"] == job_name and is_leaving:
                self._ground.server.remove("Pod", pod["metadata"]["name"])

    # The queue

    def _admit(self, truth: JobTruth) -> None:
        job = self._ground.server.get("Job", truth.name)
        if job is None or job["metadata"]["uid"] != truth.uid or truth.ended:
            return
        self._ground.server.change("Job", truth.name, lambda found: found["spec"].update(suspend=False))
        if self._ground.dice.random() < 0.2:
            self._ground.clock.after(self._ground.dice.uniform(1.0, 100.0), lambda: self._evict(truth))

    def _evict(self, truth: JobTruth) -> None:
        job = self._ground.server.get("Job", truth.name)
        if job is None or job["metadata"]["uid"] != truth.uid or truth.ending:
            return
        self._ground.server.change("Job", truth.name, lambda found: found["spec"].update(suspend=True))
        # So does Kueue, lest the deadline count from before (its Stop of a batch/v1 Job).
        self._ground.clock.after(self._ground.dice.uniform(0.05, 0.5), lambda: self._forget_start(truth))
        self._ground.clock.after(self._ground.dice.uniform(1.0, 60.0), lambda: self._admit(truth))

    def _forget_start(self, truth: JobTruth) -> None:
        job = self._ground.server.get("Job", truth.name)
        if job is not None and job["metadata"]["uid"] == truth.uid and not truth.ending:
            kept = {name: one for name, one in (job.get("status") or {}).items() if name != "startTime"}
            self._ground.server.change("Job", truth.name, lambda found: found.update(status=kept))

    # The kubelet and its containers

    def _make_pod(self, job: Manifest, truth: JobTruth, index: int, replaced: Manifest | None) -> None:
        """`replaced`: the failed pod whose count goes on (addIndexFailureCountAnnotation). Where none is
        kept, as after a suspension, the count begins anew."""
        self._pods += 1
        name = f"{truth.name}-{index}-{self._pods}"
        labels = {**job["metadata"]["labels"], "job-name": truth.name}
        self._check_alone(truth)
        failures, ignored = 0, 0
        if replaced is not None:
            is_failure = is_counted(truth, replaced)
            failures = failures_before(replaced) + is_failure
            ignored = ignored_before(replaced) + (not is_failure)
        annotations: Manifest = {INDEX: str(index), FAILURES: str(failures), IGNORED: str(ignored)}
        self._ground.server.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": NAMESPACE,
                    "labels": labels,
                    "annotations": annotations,
                    "finalizers": [TRACKING],
                    "ownerReferences": [{"kind": "Job", "name": truth.name, "uid": truth.uid}],
                },
                "spec": {},
                "status": {"phase": "Pending"},
            }
        )
        self._kubelet.take(truth, name)

    def _check_alone(self, truth: JobTruth) -> None:
        """Two attempts never work at the same time, nor two Jobs of one, if events come in time."""
        odds = self._ground.odds
        is_late = odds.event_late or odds.watch_silent or odds.lost_after_list
        for other in self._ground.server.all("Pod"):
            known = self._ground.jobs[owner_of(other)]
            is_at_work = other["status"]["phase"] == "Running" and not other["metadata"].get(
                "deletionTimestamp"
            )
            is_same_run = known.run_uid == truth.run_uid and known.is_pull == truth.is_pull
            is_another = known.name != truth.name or (known.uid != truth.uid and not is_late)
            if is_at_work and is_same_run and is_another and not truth.is_pull:
                raise Broken(f"pods of {known.name} and of {truth.name} work at the same time")


def _is_tracked(pod: Manifest) -> bool:
    """It has the finalizer: the Job has not counted it, nor given it up."""
    return TRACKING in (pod["metadata"].get("finalizers") or ())


def _is_busy(pod: Manifest, truth: JobTruth) -> bool:
    """Its index is not free yet: podReplacementPolicy Failed waits for what is on its way out."""
    return owner_of(pod) == truth.uid and pod["status"]["phase"] not in ("Succeeded", "Failed")


def _delayed(truth: JobTruth, tracked: list[Manifest], active: list[Manifest]) -> Delayed:
    """getPodsWithDelayedDeletionPerIndex."""
    busy = {index_of(pod) for pod in active} | truth.completed | truth.failed
    failed = [pod for pod in tracked if pod["status"]["phase"] == "Failed" and index_of(pod) not in busy]
    return {
        index_of(pod): pod for pod in sorted(failed, key=lambda pod: (failures_before(pod), finished_at(pod)))
    }
