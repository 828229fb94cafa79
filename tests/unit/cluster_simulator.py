"""A cluster in one thread and in virtual time, for trying the operator under faults from a seed.

Real: the decisions, the reconciler, its cache and its queue. Played: the API server (versions, server-side
apply, garbage collection, watches), the Job controller, a queue's admission, the kubelet and its
containers, users, and everything that goes wrong. `Schedule.run` raises Broken where an invariant does
not hold; the seed gives the same schedule again.
"""

from __future__ import annotations

import heapq
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from hermes_operator import names
from hermes_operator.cache import Cache, Kind
from hermes_operator.decide import decide, indexes
from hermes_operator.decide.failure import is_legal
from hermes_operator.names import ENDED, Phase, Reason, Who
from hermes_operator.observed import Delete, Installation, Patch, RunKey
from hermes_operator.queue import WorkQueue
from hermes_operator.reconcile import ApiFailure, Done, Outcome, Reconciler
from hermes_operator.status import Manifest, Status
from hermes_operator.turn import positions

EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
NAMESPACE = "lab"
STATUS_BYTES_MAX = 4096
RESYNC_SECONDS = 600.0
SILENT_SECONDS = 180.0
WORKERS = 3

PRE_RUNNING_SECONDS, ACTIVE_SECONDS = 300, 900
HORIZON_SECONDS = 12_000.0
"""By then every schedule has come to rest."""
QUIET_SECONDS = 1_500.0
"""After that, so long nothing may be written: two resyncs."""

ARMS = ("A", "C", "PM")
INSTANCES_PER_SHARD = 4


class Broken(BaseException):
    """An invariant does not hold. No mistake of the operator's, which would survive one."""


@dataclass(frozen=True, kw_only=True)
class Odds:
    """How often what goes wrong, in [0, 1], for each draw."""

    write_fails: float = 0.0
    """An API request is answered with 409, 429 or 500, or the answer is lost after it was done."""
    event_late: float = 0.0
    event_twice: float = 0.0
    kill: float = 0.0
    """The operator is killed after a write."""
    api_away: bool = False
    """For 60 s the API answers nobody."""
    watch_silent: bool = False
    """A watch says nothing more, until the operator is restarted for it."""
    lost_after_list: bool = False
    """What happens between a list and its watch is never told."""
    driver_fails: float = 0.0
    bad_input: float = 0.0
    out_of_memory: float = 0.0
    disrupted: float = 0.0
    node_lost: float = 0.0
    never_starts: float = 0.0
    """For the whole run: unschedulable, no image, or a model that crashes."""
    user_acts: int = 0
    pulls: float = 0.0
    pull_fails: float = 0.0
    queued: float = 0.0
    cap: int = 0


CALM = Odds()


def clone(value: Any) -> Any:
    """A deep copy of JSON."""
    if isinstance(value, dict):
        return {key: clone(one) for key, one in value.items()}
    if isinstance(value, list):
        return [clone(one) for one in value]
    return value


class Clock:
    """Virtual time and what is to happen in it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self.at(self.now + seconds, what)

    def run_until(self, end: float) -> None:
        while self._heap and self._heap[0][0] <= end:
            self.now, _, what = heapq.heappop(self._heap)
            what()
        self.now = end

    def instant(self) -> datetime:
        return EPOCH + timedelta(seconds=self.now)

    def written(self) -> str:
        return self.instant().strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(kw_only=True)
class Change:
    """One event of a watch."""

    version: int
    kind: str
    is_deletion: bool
    manifest: Manifest


class Server:
    """The API server, as the cluster's own parts see it: no faults, no delay."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.version = 0
        self.objects: dict[tuple[str, str], Manifest] = {}
        self.uids: set[str] = set()
        self.listeners: list[Callable[[Change], None]] = []
        self._made = 0

    def get(self, kind: str, name: str) -> Manifest | None:
        return self.objects.get((kind, name))

    def all(self, kind: str) -> list[Manifest]:
        return [one for (found, _), one in list(self.objects.items()) if found == kind]

    def create(self, manifest: Manifest) -> Manifest:
        found = clone(manifest)
        self._made += 1
        found["metadata"] |= {
            "uid": f"{self._made:08x}-0000",
            "creationTimestamp": self.clock.written(),
            "generation": 1,
        }
        self.uids.add(found["metadata"]["uid"])
        return self._put(found)

    def change(self, kind: str, name: str, edit: Callable[[Manifest], None]) -> Manifest:
        """Change a copy of the object (of its fields and theirs); no new version if nothing differs."""
        known = self.objects[kind, name]
        found = {key: dict(one) if isinstance(one, dict) else one for key, one in known.items()}
        edit(found)
        if found == known:
            return known
        if found.get("spec") != known.get("spec"):
            found["metadata"]["generation"] += 1
        return self._put(found)

    def remove(self, kind: str, name: str) -> None:
        found = self.objects.pop((kind, name))
        self.uids.discard(found["metadata"]["uid"])
        self._tell(found, is_deletion=True)

    def _put(self, found: Manifest) -> Manifest:
        self._tell(found, is_deletion=False)
        self.objects[found["kind"], found["metadata"]["name"]] = found
        return found

    def _tell(self, found: Manifest, *, is_deletion: bool) -> None:
        self.version += 1
        found["metadata"] = {**found["metadata"], "resourceVersion": str(self.version)}
        change = Change(version=self.version, kind=found["kind"], is_deletion=is_deletion, manifest=found)
        self.clock.at(self.clock.now, lambda: self._shout(change))

    def _shout(self, change: Change) -> None:
        for listen in tuple(self.listeners):
            listen(change)


class Sleep:
    """Awaited by the operator's requests; its seconds reach `Operator`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __await__(self) -> Generator[float, None, None]:
        yield self._seconds


class FaultyApi:
    """The API as the operator's requests find it."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def apply(self, manifest: Manifest) -> Manifest:
        return await self._write(f"apply {manifest['kind']}", lambda: self._applied(manifest))

    async def apply_status(self, manifest: Manifest) -> Manifest:
        return await self._write("status", lambda: self._status_applied(manifest))

    async def patch(self, patch: Patch) -> Manifest:
        return await self._write(f"patch {patch.kind}", lambda: self._patched(patch))

    async def delete(self, delete: Delete) -> bool:
        return await self._write(f"delete {delete.kind}", lambda: self._deleted(delete))

    async def create_event(self, manifest: Manifest) -> None:
        await self._write("event", lambda: None)

    async def read_run(self, key: RunKey) -> Manifest | None:
        return await self._read("read", lambda: self._world.server.get(names.KIND, key.name))

    async def list_children(self, key: RunKey) -> list[tuple[Kind, Manifest]]:
        def found() -> list[tuple[Kind, Manifest]]:
            every = ((kind, one) for kind in (Kind.JOB, Kind.POD) for one in self._world.server.all(kind))
            return [(k, one) for k, one in every if one["metadata"]["labels"][names.LABEL_RUN] == key.name]

        return await self._read("list", found)

    async def _read(self, what: str, effect: Callable[[], Any]) -> Any:
        world = self._world
        await Sleep(world.dice.uniform(0.001, 0.05))
        world.count_request(what)
        if world.is_api_away() or world.dice.random() < world.odds_now().write_fails:
            raise ApiFailure(what, code=None, message="connection refused")
        found = effect()
        await Sleep(world.dice.uniform(0.001, 0.05))
        return found

    async def _write(self, what: str, effect: Callable[[], Any]) -> Any:
        world = self._world
        await Sleep(world.dice.uniform(0.001, 0.05))
        world.count_request(what)
        if world.is_api_away():
            raise ApiFailure(what, code=None, message="connection refused")
        is_faulty = world.dice.random() < world.odds_now().write_fails
        code = world.dice.choice((409, 429, 500, None)) if is_faulty else 200
        if code in (409, 429, 500):
            wait = 2.0 if code == 429 else None
            raise ApiFailure(what, code=code, message="injected", retry_after_seconds=wait)
        found = effect()
        world.may_kill()
        await Sleep(world.dice.uniform(0.001, 0.05))
        if code is None:
            raise ApiFailure(what, code=None, message="the answer was lost")
        return found

    def _applied(self, manifest: Manifest) -> Manifest:
        server, kind, name = self._world.server, str(manifest["kind"]), str(manifest["metadata"]["name"])
        known = server.get(kind, name)
        if known is None:
            self._world.check_made(manifest)
            return server.create(manifest)
        for field_name in ("completions", "template"):
            wanted = (manifest.get("spec") or {}).get(field_name)
            if kind == "Job" and wanted != known["spec"].get(field_name):
                raise ApiFailure(f"apply {kind}", code=422, message=f"spec.{field_name} is immutable")

        def edit(found: Manifest) -> None:
            found["spec"] = {**(found.get("spec") or {}), **(manifest.get("spec") or {})}
            owners = manifest["metadata"].get("ownerReferences") or []
            found["metadata"] |= {"labels": manifest["metadata"].get("labels"), "ownerReferences": owners}

        return server.change(kind, name, edit)

    def _status_applied(self, manifest: Manifest) -> Manifest:
        world, name = self._world, str(manifest["metadata"]["name"])
        known = world.server.get(names.KIND, name)
        if known is None:
            raise ApiFailure("status", code=404, message="not found")
        if known["metadata"]["uid"] != manifest["metadata"]["uid"]:
            raise ApiFailure("status", code=409, message="another uid")
        if known["metadata"]["resourceVersion"] != manifest["metadata"]["resourceVersion"]:
            raise ApiFailure("status", code=409, message="another version")
        world.check_status(known, manifest["status"])
        return world.server.change(
            names.KIND, name, lambda found: found.update(status=clone(manifest["status"]))
        )

    def _patched(self, patch: Patch) -> Manifest:
        known = self._world.server.get(patch.kind, patch.name)
        if known is None:
            raise ApiFailure("patch", code=404, message="not found")
        return self._world.server.change(
            patch.kind, patch.name, lambda found: found["spec"].update(patch.patch["spec"])
        )

    def _deleted(self, delete: Delete) -> bool:
        known = self._world.server.get(delete.kind, delete.name)
        if known is None:
            return False
        self._world.delete(delete.kind, delete.name)
        return True


class Operator:
    """One life of the operator's process: primed by lists, woken by watches, until it is killed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.is_alive = True
        self._cache = Cache()
        self._queue: WorkQueue[RunKey] = WorkQueue(jitter=world.dice.random)
        self._reconciler = Reconciler(
            cache=self._cache,
            api=FaultyApi(world),
            decide=decide,
            positions=positions,
            installation=world.installation,
            now=world.clock.instant,
        )
        self._working: dict[RunKey, Coroutine[Any, Any, Outcome]] = {}
        self._told_until: dict[str, float] = {}
        self._deaf_until: dict[str, int] = {}
        self._silent: set[str] = set()
        self.list_all()
        if world.odds_now().lost_after_list:
            world.clock.after(world.dice.uniform(0.0, 5.0), lambda: self._listen(is_late=True))
        else:
            self._listen(is_late=False)
        self._resync()

    def list_all(self) -> None:
        """Lists heal whatever was lost."""
        server = self._world.server
        for kind in Kind:
            found = server.all(kind.value)
            for one in found:
                self._remember(kind, one)
            present = {str(one["metadata"]["name"]) for one in found}
            for key in self._cache.drop_absent(kind, NAMESPACE, present, str(server.version)):
                self._queue.wake(key)
        for known in list(self._cache.runs()):
            self._queue.wake(known.key)
        self._poll()

    def _listen(self, *, is_late: bool) -> None:
        if not self.is_alive:
            return
        self._world.server.listeners.append(self._heard)
        if self._world.odds_now().watch_silent and not is_late:
            kind = self._world.dice.choice(tuple(Kind)).value
            self._world.clock.after(self._world.dice.uniform(0, 120), lambda: self._fall_silent(kind))

    def _fall_silent(self, kind: str) -> None:
        if not self.is_alive:
            return
        self._silent.add(kind)
        # The liveness probe notices, and the kubelet restarts the container.
        self._world.clock.after(SILENT_SECONDS, lambda: self._world.kill(self))

    def _resync(self) -> None:
        def again() -> None:
            if self.is_alive:
                self.list_all()
                self._resync()

        self._world.clock.after(RESYNC_SECONDS, again)

    def _heard(self, change: Change) -> None:
        """Deliver a watch's event later, each kind in its own order."""
        if not self.is_alive or change.kind not in tuple(Kind) or change.kind in self._silent:
            return
        world, odds = self._world, self._world.odds_now()
        delay = world.dice.uniform(0.0, 20.0) if world.dice.random() < odds.event_late else 0.01
        when = max(world.clock.now + delay, self._told_until.get(change.kind, 0.0))
        self._told_until[change.kind] = when
        world.clock.at(when, lambda: self._told(change))
        if world.dice.random() < odds.event_twice:
            world.clock.at(when + world.dice.uniform(0.0, 60.0), lambda: self._told(change))

    def _told(self, change: Change) -> None:
        if not self.is_alive or change.kind in self._silent:
            return
        kind = Kind(change.kind)
        if change.is_deletion:
            key = self._cache.forget(kind, change.manifest)
            if key is not None:
                self._queue.wake(key)
        else:
            self._remember(kind, change.manifest)
        self._poll()

    def _remember(self, kind: Kind, manifest: Manifest) -> None:
        key = self._cache.remember(kind, manifest)
        if key is not None:
            self._queue.wake(key)

    def _poll(self) -> None:
        """Let idle workers take what is due, and come back for the rest."""
        clock = self._world.clock
        for moved in self._reconciler.moved():
            self._queue.wake(moved)
        while self.is_alive and len(self._working) < WORKERS:
            key = self._queue.take(clock.now)
            if key is None:
                break
            work = self._reconciler.reconcile(key)
            self._working[key] = work
            self._step(key, work)
        due = self._queue.next_at()
        if self.is_alive and due is not None and due > clock.now:
            clock.at(due, self._poll_if_alive)

    def _poll_if_alive(self) -> None:
        if self.is_alive:
            self._poll()

    def _step(self, key: RunKey, work: Coroutine[Any, Any, Outcome]) -> None:
        if not self.is_alive:
            return
        try:
            seconds = work.send(None)
        except StopIteration as stop:
            del self._working[key]
            self._finished(key, stop.value)
            self._world.clock.after(0.0, self._poll_if_alive)
            return
        except _Killed:
            self._world.kill(self)
            return
        self._world.clock.after(float(seconds), lambda: self._step(key, work))

    def _finished(self, key: RunKey, outcome: Outcome) -> None:
        now = self._world.clock.now
        if isinstance(outcome, Done):
            next_at = None if outcome.next_at is None else (outcome.next_at - EPOCH).total_seconds()
            self._queue.done(key, next_at)
            if outcome.has_acted:
                self._queue.wake(key)
            return
        self._world.failed_looks[outcome.error.partition(":")[0]] += 1
        if "injected" not in outcome.error and "Error:" in outcome.error:
            raise Broken(f"the reconciler failed by itself: {outcome.error}")
        wait = outcome.retry_after_seconds
        self._queue.failed(key, now, None if wait is None else now + wait)

    def close(self) -> None:
        """The process is gone, in the middle of whatever it did."""
        self.is_alive = False
        for work in self._working.values():
            work.close()


class _Killed(BaseException):
    """Raised in the middle of a request of a process that is killed there."""


@dataclass(kw_only=True)
class JobTruth:
    """What the cluster knows of a Job, whatever became of the object."""

    run_uid: str
    name: str
    uid: str
    is_pull: bool
    completions: int
    limit_seconds: int
    counted: set[str] = field(default_factory=set)
    failures: Counter[int] = field(default_factory=Counter)
    completed: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    culprits: set[Who] = field(default_factory=set)
    """Who made pods fail."""
    vanished: set[int] = field(default_factory=set)
    """Shards of which a pod that had ended is gone."""
    driver_started_at: float | None = None
    ending: str = ""
    message: str = ""
    ended: str = ""
    """"Complete" or the reason of its failure."""


@dataclass(kw_only=True)
class RunTruth:
    """One HermesRun."""

    uid: str
    name: str
    trouble: str
    """What keeps its first attempt from starting; "": nothing."""
    is_pull_failing: bool
    jobs: list[JobTruth] = field(default_factory=list)
    solved: dict[tuple[int, str], int] = field(default_factory=dict)
    recorded: Counter[int] = field(default_factory=Counter)
    """Results of each shard in the store, under each arm: what was recorded stays."""


class World:
    """Everything, and what must hold of it."""

    def __init__(self, seed: int, odds: Odds) -> None:
        self.dice = random.Random(seed)
        self.seed, self.odds = seed, odds
        self.clock = Clock()
        self.server = Server(self.clock)
        self.installation = Installation(
            runtime_image="hermes:test",
            model_claim="models",
            max_concurrent_runs=odds.cap,
        )
        self.runs: dict[str, RunTruth] = {}
        self.jobs: dict[str, JobTruth] = {}
        self.requests: Counter[str] = Counter()
        self.requests_late = 0
        self.writes_since: float = 0.0
        self.failed_looks: Counter[str] = Counter()
        self.kills = 0
        self.faults_until = 1_800.0
        self.api_away_at = self.dice.uniform(0.0, 600.0) if odds.api_away else None
        self.ended: dict[tuple[str, int], Manifest] = {}
        self._pods = 0
        self._syncing: set[str] = set()
        self._admitted: set[str] = set()
        self.server.listeners.append(self._cluster_heard)
        self.operator: Operator | None = None
        self.check_end: Callable[[Status, RunTruth], None] = lambda status, truth: None

    # What is asked by the operator's side

    def odds_now(self) -> Odds:
        return self.odds if self.clock.now < self.faults_until else CALM

    def count_request(self, what: str) -> None:
        self.requests[what] += 1
        if self.clock.now > HORIZON_SECONDS:
            raise Broken(f"{what} although nothing has changed")

    def is_api_away(self) -> bool:
        at = self.api_away_at
        return at is not None and at <= self.clock.now < at + 60.0

    def may_kill(self) -> None:
        if self.dice.random() < self.odds_now().kill:
            raise _Killed

    def start_operator(self) -> None:
        if self.is_api_away():
            self.clock.after(5.0, self.start_operator)
            return
        self.operator = Operator(self)

    def kill(self, operator: Operator) -> None:
        if not operator.is_alive:
            return
        self.kills += 1
        self.server.listeners = [one for one in self.server.listeners if one != operator._heard]
        operator.close()
        self.clock.after(self.dice.uniform(0.5, 20.0), self.start_operator)

    # What must hold

    def check_made(self, manifest: Manifest) -> None:
        """Before the operator makes an object."""
        labels = manifest["metadata"]["labels"]
        if manifest["kind"] != "Job" or labels[names.LABEL_COMPONENT] != names.COMPONENT_RUN:
            return
        owner = _owner(manifest)
        for other in self.server.all("Job"):
            is_run = other["metadata"]["labels"][names.LABEL_COMPONENT] == names.COMPONENT_RUN
            if is_run and _owner(other) == owner:
                raise Broken(f"{manifest['metadata']['name']} is made beside {other['metadata']['name']}")
        truth = next((one for one in self.runs.values() if one.uid == owner), None)
        if truth is not None:
            known = self.server.get(names.KIND, truth.name)
            status = Status.from_manifest((known or {}).get("status") or {})
            attempt = int(labels[names.LABEL_ATTEMPT])
            is_ours = known is not None and known["metadata"]["uid"] == owner
            if is_ours and status.phase in ENDED and status.attempt >= attempt:
                raise Broken(f"a Job of attempt {attempt}, which has ended")

    def check_status(self, run: Manifest, status: Manifest) -> None:
        """Before the operator writes a status."""
        size = len(json.dumps(status, ensure_ascii=False, separators=(",", ":")).encode())
        if size > STATUS_BYTES_MAX:
            raise Broken(f"a status of {size} bytes")
        new = Status.from_manifest(status)
        if not is_legal(new):
            raise Broken(f"not a legal status: {new.phase} {new.failure}")
        key = (str(run["metadata"]["uid"]), new.attempt)
        kept = {
            part: clone(status.get(part)) for part in ("phase", "failure", "shards", "progress", "finishedAt")
        }
        if key in self.ended and self.ended[key] != kept:
            raise Broken(f"an end was taken back: {self.ended[key]} -> {kept}")
        if new.phase in ENDED and new.attempt and key not in self.ended:
            self.ended[key] = kept
            self.check_end(new, self.runs[key[0]])

    # The garbage collector

    def delete(self, kind: str, name: str) -> None:
        """Delete in the background."""
        if kind == "Pod":
            self._stop_pod(name)
            return
        uid = str(self.server.objects[kind, name]["metadata"]["uid"])
        self.server.remove(kind, name)
        self.clock.after(self.dice.uniform(0.05, 4.0), lambda: self._collect(uid))

    def _collect(self, uid: str) -> None:
        for (kind, name), one in list(self.server.objects.items()):
            if any(owner["uid"] == uid for owner in one["metadata"].get("ownerReferences") or ()):
                self.delete(kind, name)

    def _cluster_heard(self, change: Change) -> None:
        """The cluster's own controllers hear of everything at once."""
        metadata = change.manifest["metadata"]
        if not change.is_deletion:
            owner = _owner(change.manifest)
            if owner and owner not in self.server.uids:
                self.clock.after(self.dice.uniform(0.05, 4.0), lambda: self._collect(owner))
        if change.kind == "Job":
            if not change.is_deletion and str(metadata["uid"]) not in self.jobs:
                self._know_job(change.manifest)
            self._sync_soon(str(metadata["name"]))
        elif change.kind == "Pod":
            self._sync_soon(str(metadata["labels"]["job-name"]))

    # The Job controller

    def _know_job(self, job: Manifest) -> None:
        metadata = job["metadata"]
        run = next((one for one in self.runs.values() if one.uid == _owner(job)), None)
        truth = JobTruth(
            run_uid=_owner(job),
            name=str(metadata["name"]),
            uid=str(metadata["uid"]),
            is_pull=metadata["labels"][names.LABEL_COMPONENT] == names.COMPONENT_PULL,
            completions=int(job["spec"].get("completions") or 1),
            limit_seconds=int(job["spec"].get("activeDeadlineSeconds") or 0),
        )
        self.jobs[truth.uid] = truth
        if run is not None:
            run.jobs.append(truth)
        if metadata["labels"].get(names.LABEL_QUEUE) and self.dice.random() < 0.9:
            self.clock.after(self.dice.uniform(1.0, 60.0), lambda: self._admit(truth))

    def _sync_soon(self, name: str) -> None:
        if name not in self._syncing:
            self._syncing.add(name)
            self.clock.after(self.dice.uniform(0.02, 0.3), lambda: self._sync(name))

    def _sync(self, name: str) -> None:
        self._syncing.discard(name)
        job = self.server.get("Job", name)
        if job is None:
            self._release_orphans(name)
            return
        truth = self.jobs[str(job["metadata"]["uid"])]
        pods = [one for one in self.server.all("Pod") if _owner(one) == truth.uid]
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
                self._stop_pod(pod["metadata"]["name"])
        else:
            self._run_job(job, truth, active, status)
        status |= {
            "active": len(active),
            "succeeded": len(truth.completed),
            "failed": sum(truth.failures.values()),
            "completedIndexes": indexes.write(truth.completed),
            "failedIndexes": indexes.write(truth.failed),
        }
        self.server.change("Job", name, lambda found: found.update(status=status))

    def _run_job(self, job: Manifest, truth: JobTruth, active: list[Manifest], status: Manifest) -> None:
        name, spec = truth.name, job["spec"]
        limit = spec.get("activeDeadlineSeconds")
        if "startTime" not in status:
            status["startTime"] = self.clock.written()
            if limit:
                self.clock.after(float(limit) + 0.5, lambda: self._sync_soon(name))
        began = (datetime.fromisoformat(status["startTime"].replace("Z", "+00:00")) - EPOCH).total_seconds()
        over = truth.completed | truth.failed
        if not truth.ending:
            if limit and self.clock.now >= began + limit:
                truth.ending = "DeadlineExceeded"
            elif truth.is_pull and truth.failures[0] > int(spec.get("backoffLimit", 6)):
                truth.ending = "BackoffLimitExceeded"
            elif len(over) >= truth.completions:
                truth.ending = "FailedIndexes" if truth.failed else "Complete"
        if truth.ending:
            for pod in active:
                self._stop_pod(pod["metadata"]["name"])
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
        busy = {_index(pod) for pod in active}
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
            "lastTransitionTime": self.clock.written(),
        }

    def _count(self, job: Manifest, truth: JobTruth, pod: Manifest) -> None:
        uid, index = str(pod["metadata"]["uid"]), _index(pod)
        if uid not in truth.counted:
            truth.counted.add(uid)
            code = _exit_code(pod)
            if pod["status"]["phase"] == "Succeeded":
                truth.completed.add(index)
            elif not _is_disrupted(pod) and (code != 143 or truth.is_pull):
                fatal = (2, 3) if truth.is_pull else (2,)
                if code in fatal and not truth.ending:
                    truth.ending = "PodFailurePolicy"
                    truth.message = (
                        f"Container {_main(truth)} for pod {NAMESPACE}/{pod['metadata']['name']} failed with "
                        f"exit code {code} matching FailJob rule at index {1 if truth.is_pull else 2}"
                    )
                truth.failures[index] += 1
                limit = job["spec"].get("backoffLimitPerIndex")
                if not truth.is_pull and limit is not None and truth.failures[index] > limit:
                    truth.failed.add(index)
            self._sync_soon(truth.name)
        if pod["metadata"].get("deletionTimestamp"):
            truth.vanished.add(index)
            self.server.remove("Pod", pod["metadata"]["name"])

    def _release_orphans(self, job_name: str) -> None:
        """Nobody counts pods of a Job that is gone."""
        for pod in self.server.all("Pod"):
            is_over = pod["status"]["phase"] in ("Succeeded", "Failed")
            is_leaving = is_over and pod["metadata"].get("deletionTimestamp")
            if pod["metadata"]["labels"]["job-name"] == job_name and is_leaving:
                self.server.remove("Pod", pod["metadata"]["name"])

    # The queue

    def _admit(self, truth: JobTruth) -> None:
        job = self.server.get("Job", truth.name)
        if job is None or job["metadata"]["uid"] != truth.uid or truth.ended:
            return
        self.server.change("Job", truth.name, lambda found: found["spec"].update(suspend=False))
        if self.dice.random() < 0.2:
            self.clock.after(self.dice.uniform(1.0, 100.0), lambda: self._evict(truth))

    def _evict(self, truth: JobTruth) -> None:
        job = self.server.get("Job", truth.name)
        if job is None or job["metadata"]["uid"] != truth.uid or truth.ending:
            return
        self.server.change("Job", truth.name, lambda found: found["spec"].update(suspend=True))
        self.clock.after(self.dice.uniform(1.0, 60.0), lambda: self._admit(truth))

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
        self.server.create(
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
        self.clock.after(self.dice.uniform(0.05, 0.5), lambda: self._schedule_pod(truth, name))

    def _check_alone(self, truth: JobTruth) -> None:
        """Two attempts never work at the same time, nor two Jobs of one, if events come in time."""
        odds = self.odds
        is_late = odds.event_late or odds.watch_silent or odds.lost_after_list
        for other in self.server.all("Pod"):
            known = self.jobs[_owner(other)]
            is_at_work = other["status"]["phase"] == "Running" and not other["metadata"].get(
                "deletionTimestamp"
            )
            is_same_run = known.run_uid == truth.run_uid and known.is_pull == truth.is_pull
            is_another = known.name != truth.name or (known.uid != truth.uid and not is_late)
            if is_at_work and is_same_run and is_another and not truth.is_pull:
                raise Broken(f"pods of {known.name} and of {truth.name} work at the same time")

    def _schedule_pod(self, truth: JobTruth, name: str, tries: int = 0) -> None:
        run = next((one for one in self.runs.values() if one.uid == truth.run_uid), None)
        trouble = run.trouble if run is not None and truth.name.endswith(("-1", "-pull")) else ""
        if self._pod(name) is None:
            return
        is_waiting = trouble == "unschedulable" or (tries == 0 and self.dice.random() < 0.05)
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
                self.clock.after(20.0, lambda: self._schedule_pod(truth, name, tries + 1))
            return
        conditions = [{"type": "PodScheduled", "status": "True"}]
        sidecars: list[Manifest] = [{"name": "model", "state": {"waiting": {"reason": "PodInitializing"}}}]
        main: list[Manifest] = [{"name": _main(truth), "state": {"waiting": {"reason": "PodInitializing"}}}]
        waiting = {"phase": "Pending", "conditions": conditions, "containerStatuses": main}
        if trouble == "image":
            reason = ("ErrImagePull", "ImagePullBackOff")[tries % 2]
            main[0]["state"] = {"waiting": {"reason": reason, "message": f"{reason}: hermes:test"}}
            if tries < 5:
                self.clock.after(20.0, lambda: self._schedule_pod(truth, name, tries + 1))
        elif trouble in ("model", "memory") and not truth.is_pull:
            reason, code = ("Error", 1) if trouble == "model" else ("OOMKilled", 137)
            sidecars[0] = {
                "name": "model",
                "restartCount": tries,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": code, "reason": reason}},
            }
            if tries < 5:
                self.clock.after(20.0, lambda: self._schedule_pod(truth, name, tries + 1))
        else:
            self.clock.after(self.dice.uniform(1.0, 8.0), lambda: self._run_pod(truth, name))
        self._set_pod(name, {**waiting, "initContainerStatuses": sidecars})

    def _run_pod(self, truth: JobTruth, name: str) -> None:
        if self._pod(name) is None:
            return
        if truth.driver_started_at is None:
            truth.driver_started_at = self.clock.now
        self._set_pod(
            name, self._containers(truth, "Running", {"running": {"startedAt": self.clock.written()}})
        )
        self.clock.after(self.dice.uniform(2.0, 30.0), lambda: self._end_pod(truth, name))

    def _containers(
        self, truth: JobTruth, phase: str, state: Manifest, model: Manifest | None = None
    ) -> Manifest:
        sidecar = {
            "name": "model",
            "state": {"running": {"startedAt": self.clock.written()}},
            **(model or {}),
        }
        return {
            "phase": phase,
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"name": _main(truth), "state": state}],
            "initContainerStatuses": [] if truth.is_pull else [sidecar],
        }

    def _end_pod(self, truth: JobTruth, name: str) -> None:
        pod = self._pod(name)
        if pod is None:
            return
        if truth.is_pull:
            self._end_pull(truth, name)
            return
        odds, roll, index = self.odds, self.dice.random(), _index(pod)
        run = next(one for one in self.runs.values() if one.uid == truth.run_uid)
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
            solved = run.solved.setdefault((index, arm), self.dice.randint(0, INSTANCES_PER_SHARD))
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
        terminated = {"exitCode": code, "message": message, "startedAt": self.clock.written()}
        phase = "Succeeded" if code == 0 else "Failed"
        self._set_pod(name, self._containers(truth, phase, {"terminated": terminated}, model))

    def _exit_failed(self, run: RunTruth, truth: JobTruth, name: str, index: int) -> None:
        self._record_some(run, index)
        who = self.dice.choice((Who.MODEL, Who.AGENT, Who.SANDBOX, Who.CLUSTER, Who.OPERATOR))
        failure = {"who": who.value, "reason": "SomeReason", "message": "words"}
        message = self._report(run, index, failure)
        if self.dice.random() < 0.3:
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
        terminated = {"exitCode": 143, "message": "", "startedAt": self.clock.written()}
        status = self._containers(truth, "Failed", {"terminated": terminated})
        status["conditions"].append({"type": "DisruptionTarget", "status": "True"})
        self._set_pod(name, status)

    def _lose_node(self, run: RunTruth, truth: JobTruth, name: str, index: int) -> None:
        """The pod says nothing more; after a while the cluster gives it up."""

        def give_up() -> None:
            pod = self.server.get("Pod", name)
            if pod is not None:
                status = clone(pod["status"])
                status["phase"] = "Failed"
                status["conditions"] = [{"type": "DisruptionTarget", "status": "True"}]
                self._set_pod(name, status)
                self._stop_pod(name)

        self.clock.after(self.dice.uniform(20.0, 80.0), give_up)

    def _record_some(self, run: RunTruth, index: int) -> None:
        run.recorded[index] = min(
            INSTANCES_PER_SHARD - 1, run.recorded[index] + self.dice.randint(0, INSTANCES_PER_SHARD - 1)
        )

    def _end_pull(self, truth: JobTruth, name: str) -> None:
        run = next(one for one in self.runs.values() if one.uid == truth.run_uid)
        told: Manifest = {"version": 1, "treeSha256": "ab" * 32, "bytes": 5, "files": 2, "failure": None}
        code = 0
        if run.is_pull_failing:
            code = self.dice.choice((1, 2, 3))
            who, reason = {
                1: ("cluster", "PullFailed"),
                2: ("user", "Gated"),
                3: ("cluster", "TreeDamaged"),
            }[code]
            told["failure"] = {"who": who, "reason": reason, "message": "words"}
            truth.culprits.add(Who(who))
        self._exit(truth, name, code, json.dumps(told))

    def _stop_pod(self, name: str) -> None:
        """A pod is deleted: SIGTERM, some grace, gone."""
        pod = self.server.get("Pod", name)
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            return
        written = self.clock.written()
        self.server.change("Pod", name, lambda found: found["metadata"].update(deletionTimestamp=written))
        self.clock.after(self.dice.uniform(0.1, 3.0), lambda: self._stopped(name))

    def _stopped(self, name: str) -> None:
        pod = self.server.get("Pod", name)
        if pod is None:
            return
        truth = self.jobs[_owner(pod)]
        if pod["status"]["phase"] == "Running":
            terminated = {"exitCode": 143, "message": "", "startedAt": self.clock.written()}
            truth.culprits.add(Who.CLUSTER)
            status = self._containers(truth, "Failed", {"terminated": terminated})
        elif pod["status"]["phase"] == "Pending":
            truth.culprits.add(Who.CLUSTER)
            status = {**pod["status"], "phase": "Failed"}
        else:
            status = pod["status"]
        self._set_pod(name, status)
        self._sync_soon(truth.name)

    def _pod(self, name: str) -> Manifest | None:
        """The pod, if its containers may still go on."""
        pod = self.server.get("Pod", name)
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            return None
        return None if pod["status"]["phase"] in ("Succeeded", "Failed") else pod

    def _set_pod(self, name: str, status: Manifest) -> None:
        self.server.change("Pod", name, lambda found: found.update(status=clone(status)))


def _main(truth: JobTruth) -> str:
    return "pull" if truth.is_pull else "driver"


def _owner(manifest: Manifest) -> str:
    owners = manifest["metadata"].get("ownerReferences") or ()
    return str(owners[0]["uid"]) if owners else ""


def _index(pod: Manifest) -> int:
    return int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])


def _exit_code(pod: Manifest) -> int | None:
    for one in pod["status"].get("containerStatuses") or ():
        if "terminated" in one["state"]:
            return int(one["state"]["terminated"]["exitCode"])
    return None


def _is_disrupted(pod: Manifest) -> bool:
    return any(one["type"] == "DisruptionTarget" for one in pod["status"].get("conditions") or ())


class Schedule:
    """One seed: runs, users, faults, and what must be true in the end."""

    def __init__(self, seed: int, odds: Odds, *, runs: int | None = None, shards: int | None = None) -> None:
        self.world = World(seed, odds)
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
                world.delete(names.KIND, name)
            case "again":
                world.delete(names.KIND, name)
                world.clock.after(dice.uniform(0.0, 3.0), lambda: self._create_again(name))
            case "attempt":
                status = Status.from_manifest(run.get("status") or {})
                self._edit(name, attempt=max(1, status.attempt) + 1)
            case "edit":
                self._edit(name, parallelism=dice.randint(1, 4), activeDeadlineSeconds=ACTIVE_SECONDS + 7)
            case "job" if jobs:
                world.delete("Job", str(dice.choice(jobs)["metadata"]["name"]))
            case "pod" if pods:
                world.delete("Pod", str(dice.choice(pods)["metadata"]["name"]))
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
            if _owner(pod) in uids and pod["status"]["phase"] == "Running"
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
            if _owner(job) == truth.uid and job["metadata"]["name"] not in known:
                raise Broken(f"{job['metadata']['name']} is left over")
        uids = {one.uid for one in truth.jobs}
        for pod in server.all("Pod"):
            is_live = _owner(pod) in uids and pod["status"]["phase"] not in ("Succeeded", "Failed")
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


def storms(seed: int) -> Odds:
    """What goes wrong in this schedule: each kind of fault is there or not."""
    dice = random.Random(seed * 7919 + 1)

    def sometimes(odds: float, chance: float = 0.4) -> float:
        return odds if dice.random() < chance else 0.0

    return Odds(
        write_fails=sometimes(0.15),
        event_late=sometimes(0.3),
        event_twice=sometimes(0.2),
        kill=sometimes(0.15),
        api_away=dice.random() < 0.2,
        watch_silent=dice.random() < 0.15,
        lost_after_list=dice.random() < 0.2,
        driver_fails=sometimes(0.25),
        bad_input=sometimes(0.1, 0.2),
        out_of_memory=sometimes(0.15, 0.3),
        disrupted=sometimes(0.2, 0.3),
        node_lost=sometimes(0.15, 0.3),
        never_starts=sometimes(0.5, 0.3),
        user_acts=dice.randint(0, 4),
        pulls=sometimes(0.6, 0.3),
        pull_fails=sometimes(0.4, 0.3),
        queued=sometimes(0.6, 0.25),
        cap=dice.choice((0, 0, 0, 1, 2)),
    )


BUSY_USERS = Odds(user_acts=12)
LOST_ANSWERS = Odds(write_fails=0.4, event_late=0.6, never_starts=0.3, pulls=0.3)
