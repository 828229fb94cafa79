"""The played controllers: Jobs, a queue that admits them, the garbage collector.

The Job controller does what pkg/controller/job of Kubernetes does with the Jobs that the operator makes.
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
    Ground,
    JobTruth,
    exit_code_of,
    index_of,
    is_disrupted,
    main_container,
    owner_of,
)


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
        self._syncing.discard(name)
        job = self._ground.server.get("Job", name)
        if job is None:
            self._release_orphans(name)
            return
        truth = self._ground.jobs[str(job["metadata"]["uid"])]
        pods = [one for one in self._ground.server.all("Pod") if owner_of(one) == truth.uid]
        for pod in pods:
            if pod["status"]["phase"] in ("Succeeded", "Failed"):
                self._count(job, truth, pod)
        if truth.ended:
            return
        active = [one for one in pods if one["status"]["phase"] not in ("Succeeded", "Failed")]
        status: Manifest = clone(job.get("status") or {})
        if job["spec"].get("suspend"):
            status.pop("startTime", None)
            for pod in active:
                self._kubelet.stop(pod["metadata"]["name"])
        else:
            self._run_job(job, truth, active, status)
        status |= {
            "active": len(active),
            "succeeded": len(truth.completed),
            "failed": sum(truth.failures.values()),
            "completedIndexes": indexes.write(truth.completed),
            "failedIndexes": indexes.write(truth.failed),
        }
        self._ground.server.change("Job", name, lambda found: found.update(status=status))

    def _run_job(self, job: Manifest, truth: JobTruth, active: list[Manifest], status: Manifest) -> None:
        name, spec = truth.name, job["spec"]
        limit = spec.get("activeDeadlineSeconds")
        if "startTime" not in status:
            status["startTime"] = self._ground.clock.written()
            if limit:
                self._ground.clock.after(float(limit) + 0.5, lambda: self._sync_soon(name))
        began = (datetime.fromisoformat(status["startTime"].replace("Z", "+00:00")) - EPOCH).total_seconds()
        over = truth.completed | truth.failed
        if not truth.ending:
            if limit and self._ground.clock.now >= began + limit:
                truth.ending = "DeadlineExceeded"
            elif truth.is_pull and truth.failures[0] > int(spec.get("backoffLimit", 6)):
                truth.ending = "BackoffLimitExceeded"
            elif len(over) >= truth.completions:
                truth.ending = "FailedIndexes" if truth.failed else "Complete"
        if truth.ending:
            for pod in active:
                self._kubelet.stop(pod["metadata"]["name"])
            early = "SuccessCriteriaMet" if truth.ending == "Complete" else "FailureTarget"
            conditions = status.setdefault("conditions", [])
            if not conditions:
                conditions.append(self._condition(early, truth.ending, truth.message))
                self._sync_soon(name)
            elif not active:
                truth.ended = truth.ending
                kind = "Complete" if truth.ending == "Complete" else "Failed"
                conditions.append(self._condition(kind, truth.ending, truth.message))
            return
        room = int(spec.get("parallelism", 1)) - len(active)
        busy = {index_of(pod) for pod in active}
        for index in range(truth.completions):
            if room > 0 and index not in over and index not in busy:
                self._make_pod(job, truth, index)
                room -= 1

    def _condition(self, kind: str, reason: str, message: str) -> Manifest:
        return {
            "type": kind,
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": self._ground.clock.written(),
        }

    def _count(self, job: Manifest, truth: JobTruth, pod: Manifest) -> None:
        uid, index = str(pod["metadata"]["uid"]), index_of(pod)
        if uid not in truth.counted:
            truth.counted.add(uid)
            code = exit_code_of(pod)
            if pod["status"]["phase"] == "Succeeded":
                truth.completed.add(index)
            elif not is_disrupted(pod) and (code != 143 or truth.is_pull):
                fatal = (2, 3) if truth.is_pull else (2,)
                if code in fatal and not truth.ending:
                    truth.ending = "PodFailurePolicy"
                    truth.message = (
                        f"Container {main_container(truth)} for pod {NAMESPACE}/{pod['metadata']['name']} "
                        f"failed with exit code {code} matching FailJob rule at index "
                        f"{1 if truth.is_pull else 2}"
                    )
                truth.failures[index] += 1
                limit = job["spec"].get("backoffLimitPerIndex")
                if not truth.is_pull and limit is not None and truth.failures[index] > limit:
                    truth.failed.add(index)
            self._sync_soon(truth.name)
        if pod["metadata"].get("deletionTimestamp"):
            truth.vanished.add(index)
            self._ground.server.remove("Pod", pod["metadata"]["name"])

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
        self._ground.clock.after(self._ground.dice.uniform(1.0, 60.0), lambda: self._admit(truth))

    # The kubelet and its containers

    def _make_pod(self, job: Manifest, truth: JobTruth, index: int) -> None:
        self._pods += 1
        name = f"{truth.name}-{index}-{self._pods}"
        labels = {**job["metadata"]["labels"], "job-name": truth.name}
        self._check_alone(truth)
        annotations: Manifest = {
            "batch.kubernetes.io/job-completion-index": str(index),
            "batch.kubernetes.io/job-index-failure-count": str(truth.failures[index]),
        }
        self._ground.server.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": NAMESPACE,
                    "labels": labels,
                    "annotations": annotations,
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
