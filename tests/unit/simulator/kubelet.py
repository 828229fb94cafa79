"""The played kubelets: a pod is scheduled or not, its containers run, end, fail, are stopped or lost.

Exit codes and termination messages are as the real programs give them. Whose pods these are, and what
their ends count for, is the controllers' business.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from hermes_operator.names import Who
from hermes_operator.status import Manifest
from tests.unit.simulator.server import clone
from tests.unit.simulator.truth import (
    ARMS,
    INSTANCES_PER_SHARD,
    Ground,
    JobTruth,
    RunTruth,
    index_of,
    main_container,
    owner_of,
)


class Kubelet:
    """Every node's."""

    def __init__(self, ground: Ground, pod_is_over: Callable[[str], None]) -> None:
        """`pod_is_over` is called with the name of the Job of a pod that was stopped."""
        self._ground = ground
        self._pod_is_over = pod_is_over

    def take(self, truth: JobTruth, name: str) -> None:
        """A pod was made."""
        ground = self._ground
        ground.clock.after(ground.dice.uniform(0.05, 0.5), lambda: self._schedule_pod(truth, name))

    def _schedule_pod(self, truth: JobTruth, name: str, tries: int = 0) -> None:
        run = next((one for one in self._ground.runs.values() if one.uid == truth.run_uid), None)
        trouble = run.trouble if run is not None and truth.name.endswith(("-1", "-pull")) else ""
        if self._pod(name) is None:
            return
        is_waiting = trouble == "unschedulable" or (tries == 0 and self._ground.dice.random() < 0.05)
        if is_waiting:
            message = f"0/{3 + tries} nodes are available: 3 Insufficient nvidia.com/gpu."
            unscheduled = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": message,
            }
            self._set_pod(name, {"phase": "Pending", "conditions": [unscheduled]})
            if tries < 5:
                self._ground.clock.after(20.0, lambda: self._schedule_pod(truth, name, tries + 1))
            return
        conditions = [{"type": "PodScheduled", "status": "True"}]
        sidecars: list[Manifest] = [{"name": "model", "state": {"waiting": {"reason": "PodInitializing"}}}]
        main: list[Manifest] = [
            {"name": main_container(truth), "state": {"waiting": {"reason": "PodInitializing"}}}
        ]
        waiting = {"phase": "Pending", "conditions": conditions, "containerStatuses": main}
        if trouble == "image":
            reason = ("ErrImagePull", "ImagePullBackOff")[tries % 2]
            main[0]["state"] = {"waiting": {"reason": reason, "message": f"{reason}: hermes:test"}}
            if tries < 5:
                self._ground.clock.after(20.0, lambda: self._schedule_pod(truth, name, tries + 1))
        elif trouble in ("model", "memory") and not truth.is_pull:
            reason, code = ("Error", 1) if trouble == "model" else ("OOMKilled", 137)
            truth.culprits.add(Who.MODEL)  # and it stays so if somebody deletes the pod that waits for it
            sidecars[0] = {
                "name": "model",
                "restartCount": tries,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": code, "reason": reason}},
            }
            if tries < 5:
                self._ground.clock.after(20.0, lambda: self._schedule_pod(truth, name, tries + 1))
        else:
            self._ground.clock.after(self._ground.dice.uniform(1.0, 8.0), lambda: self._run_pod(truth, name))
        self._set_pod(name, {**waiting, "initContainerStatuses": sidecars})

    def _run_pod(self, truth: JobTruth, name: str) -> None:
        if self._pod(name) is None:
            return
        if truth.driver_started_at is None:
            truth.driver_started_at = self._ground.clock.now
        self._set_pod(
            name, self._containers(truth, "Running", {"running": {"startedAt": self._ground.clock.written()}})
        )
        self._ground.clock.after(self._ground.dice.uniform(2.0, 30.0), lambda: self._end_pod(truth, name))

    def _containers(
        self, truth: JobTruth, phase: str, state: Manifest, model: Manifest | None = None
    ) -> Manifest:
        sidecar = {
            "name": "model",
            "state": {"running": {"startedAt": self._ground.clock.written()}},
            **(model or {}),
        }
        return {
            "phase": phase,
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"name": main_container(truth), "state": state}],
            "initContainerStatuses": [] if truth.is_pull else [sidecar],
        }

    def _end_pod(self, truth: JobTruth, name: str) -> None:
        pod = self._pod(name)
        if pod is None:
            return
        if truth.is_pull:
            self._end_pull(truth, name)
            return
        odds, roll, index = self._ground.odds, self._ground.dice.random(), index_of(pod)
        run = next(one for one in self._ground.runs.values() if one.uid == truth.run_uid)
        for chance, happening in (
            (odds.node_lost, self._lose_node),
            (odds.disrupted, self._disrupt),
            (odds.bad_input, self._exit_bad_input),
            (odds.out_of_memory, self._exit_out_of_memory),
            (odds.driver_fails, self._exit_failed),
        ):
            if roll < chance:
                happening(run, truth, name, index)
                return
            roll -= chance
        run.recorded[index] = INSTANCES_PER_SHARD
        self._exit(truth, name, 0, self._report(run, index, None))

    def _report(self, run: RunTruth, index: int, failure: Manifest | None) -> str:
        done = run.recorded[index]
        arms = {}
        for arm in ARMS:
            solved = run.solved.setdefault((index, arm), self._ground.dice.randint(0, INSTANCES_PER_SHARD))
            arms[arm] = {"done": done, "solved": min(solved, done)}
        return json.dumps(
            {
                "version": 1,
                "done": done * len(ARMS),
                "total": INSTANCES_PER_SHARD * len(ARMS),
                "arms": arms,
                "hermetic": {"counted": True, "attempts": 0},
                "loaded": {"device": "cpu", "dtype": "float32", "quantization": "none", "weightBytes": 1},
                "manifest": "mcp://sha256/" + "0" * 64,
                "failure": failure,
            }
        )

    def _exit(
        self, truth: JobTruth, name: str, code: int, message: str, model: Manifest | None = None
    ) -> None:
        terminated = self._terminated(code, message)
        phase = "Succeeded" if code == 0 else "Failed"
        self._set_pod(name, self._containers(truth, phase, {"terminated": terminated}, model))

    def _terminated(self, code: int, message: str) -> Manifest:
        now = self._ground.clock.written()
        return {"exitCode": code, "message": message, "startedAt": now, "finishedAt": now}

    def _exit_failed(self, run: RunTruth, truth: JobTruth, name: str, index: int) -> None:
        self._record_some(run, index)
        who = self._ground.dice.choice((Who.MODEL, Who.AGENT, Who.SANDBOX, Who.CLUSTER, Who.OPERATOR))
        failure = {"who": who.value, "reason": "SomeReason", "message": "words"}
        message = self._report(run, index, failure)
        if self._ground.dice.random() < 0.3:
            who, message = Who.AGENT, ""
        truth.culprits.add(who)
        self._exit(truth, name, 1, message)

    def _exit_bad_input(self, run: RunTruth, truth: JobTruth, name: str, index: int) -> None:
        truth.culprits.add(Who.USER)
        failure = {"who": "user", "reason": "BadInput", "message": "no such thing"}
        self._exit(truth, name, 2, self._report(run, index, failure))

    def _exit_out_of_memory(self, run: RunTruth, truth: JobTruth, name: str, index: int) -> None:
        self._record_some(run, index)
        truth.culprits.add(Who.MODEL)
        failure = {"who": "agent", "reason": "AgentFailed", "message": "the model does not answer"}
        last = {"lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
        self._exit(truth, name, 1, self._report(run, index, failure), last)

    def _disrupt(self, run: RunTruth, truth: JobTruth, name: str, index: int) -> None:
        status = self._containers(truth, "Failed", {"terminated": self._terminated(143, "")})
        status["conditions"].append({"type": "DisruptionTarget", "status": "True"})
        self._set_pod(name, status)

    def _lose_node(self, run: RunTruth, truth: JobTruth, name: str, index: int) -> None:
        """The pod says nothing more; after a while the cluster gives it up."""

        def give_up() -> None:
            pod = self._ground.server.get("Pod", name)
            if pod is not None:
                status = clone(pod["status"])
                status["phase"] = "Failed"
                status["conditions"] = [{"type": "DisruptionTarget", "status": "True"}]
                self._set_pod(name, status)
                self.stop(name)

        self._ground.clock.after(self._ground.dice.uniform(20.0, 80.0), give_up)

    def _record_some(self, run: RunTruth, index: int) -> None:
        run.recorded[index] = min(
            INSTANCES_PER_SHARD - 1,
            run.recorded[index] + self._ground.dice.randint(0, INSTANCES_PER_SHARD - 1),
        )

    def _end_pull(self, truth: JobTruth, name: str) -> None:
        run = next(one for one in self._ground.runs.values() if one.uid == truth.run_uid)
        told: Manifest = {"version": 1, "treeSha256": "ab" * 32, "bytes": 5, "files": 2, "failure": None}
        code = 0
        if run.is_pull_failing:
            code = self._ground.dice.choice((1, 2, 3))
            who, reason = {
                1: ("cluster", "PullFailed"),
                2: ("user", "Gated"),
                3: ("cluster", "TreeDamaged"),
            }[code]
            told["failure"] = {"who": who, "reason": reason, "message": "words"}
            truth.culprits.add(Who(who))
        self._exit(truth, name, code, json.dumps(told))

    def stop(self, name: str) -> None:
        """A pod is deleted: SIGTERM, some grace, gone."""
        pod = self._ground.server.get("Pod", name)
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            return
        written = self._ground.clock.written()
        self._ground.server.change(
            "Pod", name, lambda found: found["metadata"].update(deletionTimestamp=written)
        )
        self._ground.clock.after(self._ground.dice.uniform(0.1, 3.0), lambda: self._stopped(name))

    def _stopped(self, name: str) -> None:
        pod = self._ground.server.get("Pod", name)
        if pod is None:
            return
        truth = self._ground.jobs[owner_of(pod)]
        if pod["status"]["phase"] == "Running":
            if not truth.is_pull and self._ground.dice.random() < 0.1:
                # It had just recorded its last result, and ends before the signal reaches it.
                run = next(one for one in self._ground.runs.values() if one.uid == truth.run_uid)
                run.recorded[index_of(pod)] = INSTANCES_PER_SHARD
                self._exit(truth, name, 0, self._report(run, index_of(pod), None))
                return
            truth.culprits.add(Who.CLUSTER)
            status = self._containers(truth, "Failed", {"terminated": self._terminated(143, "")})
        elif pod["status"]["phase"] == "Pending":
            truth.culprits.add(Who.CLUSTER)
            status = {**pod["status"], "phase": "Failed"}
        else:
            status = pod["status"]
        self._set_pod(name, status)
        self._pod_is_over(truth.name)

    def _pod(self, name: str) -> Manifest | None:
        """The pod, if its containers may still go on."""
        pod = self._ground.server.get("Pod", name)
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            return None
        return None if pod["status"]["phase"] in ("Succeeded", "Failed") else pod

    def _set_pod(self, name: str, status: Manifest) -> None:
        self._ground.server.change("Pod", name, lambda found: found.update(status=clone(status)))
