"""One seed: runs, users, faults, and what must be true in the end."""

from __future__ import annotations

from functools import partial

from hermes_operator import names
from hermes_operator.names import ENDED, Phase, Reason, Who
from hermes_operator.status import Manifest, Status
from tests.unit.simulator.faults import CALM, HORIZON_SECONDS, QUIET_SECONDS, Broken, Odds
from tests.unit.simulator.process import Operator
from tests.unit.simulator.server import EPOCH, NAMESPACE
from tests.unit.simulator.truth import ARMS, INSTANCES_PER_SHARD, JobTruth, RunTruth, owner_of
from tests.unit.simulator.world import World

PRE_RUNNING_SECONDS, ACTIVE_SECONDS = 300, 900


class Schedule:
    """One seed: runs, users, faults, and what must be true in the end."""

    def __init__(self, seed: int, odds: Odds, *, runs: int | None = None, shards: int | None = None) -> None:
        self.world = World(seed, odds, Operator)
        self.world.check_end = self._check_end
        self._shards = shards
        self._resumed_at: dict[str, float] = {}
        dice = self.world.dice
        for number in range(runs or dice.randint(1, 3)):
            name = f"run{number}"
            self.world.clock.at(dice.uniform(0.0, 60.0), partial(self.create, name))
        for _ in range(odds.user_acts):
            self.world.clock.at(dice.uniform(5.0, 1_500.0), self._act)

    def run(self) -> World:
        """Live through it all; raises Broken."""
        world = self.world
        world.start_operator()
        world.clock.run_until(HORIZON_SECONDS)
        self._check()
        world.clock.run_until(HORIZON_SECONDS + QUIET_SECONDS)
        if world.operator is not None:
            world.operator.close()
        return world

    def create(self, name: str) -> None:
        """A user applies a document."""
        world, dice, odds = self.world, self.world.dice, self.world.odds
        is_queued, is_pulled = dice.random() < odds.queued, dice.random() < odds.pulls
        shards = self._shards or dice.randint(1, 4)
        source = {"repo": "Org/Model", "revision": "0" * 40} if is_pulled else {"bundled": "repair"}
        manifest = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "labels": {names.LABEL_QUEUE: "gpus"} if is_queued else {},
            },
            "spec": {
                "model": {"source": source},
                "evaluate": {
                    "instances": {"mutants": {"count": shards * INSTANCES_PER_SHARD}},
                    "arms": list(ARMS),
                },
                "shardSize": INSTANCES_PER_SHARD,
                "parallelism": dice.randint(1, 3),
                "backoffLimit": dice.randint(0, 2),
                "preRunningDeadlineSeconds": PRE_RUNNING_SECONDS,
                "activeDeadlineSeconds": dice.choice((40, ACTIVE_SECONDS))
                if odds != CALM
                else ACTIVE_SECONDS,
                "ttlSecondsAfterFinished": dice.choice((60, 1_000_000)) if odds != CALM else 60,
            },
        }
        made = world.server.create(manifest)
        uid = str(made["metadata"]["uid"])
        starts = dice.random() >= odds.never_starts
        world.runs[uid] = RunTruth(
            uid=uid,
            name=name,
            trouble="" if starts else dice.choice(("unschedulable", "image", "model", "memory")),
            is_pull_failing=is_pulled and dice.random() < odds.pull_fails,
        )

    def _act(self) -> None:
        """A user does something."""
        world, dice = self.world, self.world.dice
        known = world.server.all(names.KIND)
        if not known:
            return
        run = dice.choice(known)
        name = str(run["metadata"]["name"])
        pods = [p for p in world.server.all("Pod") if p["metadata"]["labels"][names.LABEL_RUN] == name]
        jobs = [j for j in world.server.all("Job") if j["metadata"]["labels"][names.LABEL_RUN] == name]
        match dice.choice(("suspend", "suspend", "delete", "again", "attempt", "edit", "job", "pod", "pod")):
            case "suspend":
                self._edit(name, suspend=True)
                world.clock.after(30.0, lambda: self._check_suspended(name))
                if dice.random() < 0.7:
                    world.clock.after(dice.uniform(0.5, 400.0), lambda: self._edit(name, suspend=False))
            case "delete":
                world.controllers.delete(names.KIND, name)
            case "again":
                world.controllers.delete(names.KIND, name)
                world.clock.after(dice.uniform(0.0, 3.0), lambda: self._create_again(name))
            case "attempt":
                status = Status.from_manifest(run.get("status") or {})
                self._edit(name, attempt=max(1, status.attempt) + 1)
            case "edit":
                self._edit(name, parallelism=dice.randint(1, 4), activeDeadlineSeconds=ACTIVE_SECONDS + 7)
            case "job" if jobs:
                world.controllers.delete("Job", str(dice.choice(jobs)["metadata"]["name"]))
            case "pod" if pods:
                world.controllers.delete("Pod", str(dice.choice(pods)["metadata"]["name"]))
            case _:
                return

    def _create_again(self, name: str) -> None:
        if self.world.server.get(names.KIND, name) is None:
            self.create(name)

    def _edit(self, name: str, **fields: object) -> None:
        if fields.get("suspend") is False:
            self._resumed_at[name] = self.world.clock.now
        if self.world.server.get(names.KIND, name) is not None:
            self.world.server.change(names.KIND, name, lambda found: found["spec"].update(fields))

    # What must be true in the end

    def _check(self) -> None:
        server = self.world.server
        for manifest in server.all(names.KIND):
            truth = self.world.runs[str(manifest["metadata"]["uid"])]
            try:
                self._check_run(manifest, truth)
            except Broken as broken:
                raise Broken(f"{truth.name}: {broken}; status {manifest.get('status')}; {truth}") from broken
        for kind in ("Job", "Pod"):
            for one in server.all(kind):
                if one["metadata"]["labels"][names.LABEL_RUN] not in {
                    run["metadata"]["name"] for run in server.all(names.KIND)
                }:
                    raise Broken(f"{kind} {one['metadata']['name']} outlives its run")

    def _check_run(self, manifest: Manifest, truth: RunTruth) -> None:
        status, spec = Status.from_manifest(manifest.get("status") or {}), manifest["spec"]
        attempt = int(spec.get("attempt", 1))
        job_name = names.job_name(truth.name, status.attempt)
        job = next((one for one in reversed(truth.jobs) if one.name == job_name), None)
        self._check_children(truth, status, is_suspended=bool(spec.get("suspend")))
        if status.phase not in ENDED:
            is_queued = bool(manifest["metadata"]["labels"].get(names.LABEL_QUEUE))
            if not spec.get("suspend") and not (is_queued and status.phase is Phase.SUSPENDED):
                raise Broken("it is stuck")
            if job is not None and job.ended:
                raise Broken("its Job has ended")
            return
        if attempt > status.attempt:
            raise Broken("a higher attempt is wanted")
        if spec["ttlSecondsAfterFinished"] < 1_000:
            raise Broken("its time is over")
        self._check_end(status, truth)

    def _check_end(self, status: Status, truth: RunTruth) -> None:
        """When an end is written, and at rest again, it is what happened."""
        job_name = names.job_name(truth.name, status.attempt)
        job = next((one for one in reversed(truth.jobs) if one.name == job_name), None)
        if status.phase is Phase.SUCCEEDED:
            self._check_success(status, truth, job)
        else:
            self._check_failure(status, truth, job)

    def _check_suspended(self, name: str) -> None:
        """A while after it was suspended, nothing of a run works, if nothing kept its operator from it."""
        odds, run = self.world.odds, self.world.server.get(names.KIND, name)
        is_hindered = odds.write_fails or odds.event_late or odds.kill
        if is_hindered or odds.api_away or odds.watch_silent or odds.lost_after_list or run is None:
            return
        uids = {one.uid for one in self.world.runs[str(run["metadata"]["uid"])].jobs}
        at_work = [
            pod
            for pod in self.world.server.all("Pod")
            if owner_of(pod) in uids and pod["status"]["phase"] == "Running"
        ]
        # Between two suspensions of one run it may be resumed.
        began = self._resumed_at.get(name, -100.0)
        if run["spec"].get("suspend") and self.world.clock.now - began > 30.0 and at_work:
            raise Broken(f"{name} is suspended and works")

    def _check_children(self, truth: RunTruth, status: Status, *, is_suspended: bool) -> None:
        """At rest nothing works for a run that has ended or is suspended, and old attempts are gone."""
        server = self.world.server
        known = (names.job_name(truth.name, status.attempt), names.pull_name(truth.name))
        for job in server.all("Job"):
            if owner_of(job) == truth.uid and job["metadata"]["name"] not in known:
                raise Broken(f"{job['metadata']['name']} is left over")
        uids = {one.uid for one in truth.jobs}
        for pod in server.all("Pod"):
            is_live = owner_of(pod) in uids and pod["status"]["phase"] not in ("Succeeded", "Failed")
            if is_live and (is_suspended or status.phase in ENDED):
                raise Broken(f"{pod['metadata']['name']} is at work")

    def _check_success(self, status: Status, truth: RunTruth, job: JobTruth | None) -> None:
        if job is None or job.ended != "Complete":
            raise Broken("its Job is not complete")
        if (status.shards.succeeded, status.shards.failed) != (job.completions, 0):
            raise Broken("not every shard is counted")
        if job.vanished:
            if status.done > status.total:
                raise Broken("more is done than there is")
            return
        solved = {arm: sum(truth.solved[i, arm] for i in range(job.completions)) for arm in ARMS}
        if status.done != status.total or {arm.name: arm.solved for arm in status.arms} != solved:
            raise Broken(f"solved are {solved}")

    def _check_failure(self, status: Status, truth: RunTruth, job: JobTruth | None) -> None:
        failure = status.failure
        assert failure is not None
        pulls = [one for one in truth.jobs if one.is_pull]
        match failure.reason:
            case Reason.PRE_RUNNING_DEADLINE_EXCEEDED:
                started = None if job is None else job.driver_started_at
                is_late = self.world.odds.api_away or self.world.odds.kill > 0
                assert status.finished_at is not None
                ended = (status.finished_at - EPOCH).total_seconds()
                if started is not None and started < ended - 2.0:
                    raise Broken("a driver had started")
                is_model = truth.trouble in ("model", "memory") and status.attempt == 1 and job is not None
                if is_model and not is_late and failure.who is not Who.MODEL:
                    raise Broken("it was the model's failure")
            case Reason.ACTIVE_DEADLINE_EXCEEDED:
                if (
                    job is not None
                    and job.driver_started_at is None
                    and job.limit_seconds > PRE_RUNNING_SECONDS
                ):
                    raise Broken("it never ran, and should have ended long before")
                if job is None or job.ended != "DeadlineExceeded":
                    raise Broken("no deadline was exceeded")
                assert job.deadline_after is not None
                seconds, limit = job.deadline_after
                if seconds < limit - 2.0:
                    raise Broken(f"it was stopped after {seconds:.0f} of {limit:.0f} seconds")
            case Reason.GATED | Reason.TREE_DAMAGED | Reason.PULL_FAILED:
                if not pulls or not pulls[-1].ended:
                    raise Broken("no pull has ended")
                culprits = pulls[-1].culprits | ({Who.CLUSTER} if pulls[-1].vanished else set())
                if failure.who not in (culprits or {Who.CLUSTER}):
                    raise Broken("the pull did not fail so")
            case _:
                if job is None or job.ended in ("", "Complete", "DeadlineExceeded"):
                    raise Broken("its Job has not failed")
                culprits = job.culprits | ({Who.CLUSTER} if job.vanished else set())
                if failure.who not in culprits:
                    raise Broken(f"it was {culprits}")
                if (status.shards.succeeded, status.shards.failed) != (len(job.completed), len(job.failed)):
                    raise Broken("shards are miscounted")
