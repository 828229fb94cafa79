"""The cluster that the operator's benchmark measures on: its API server, its administrator, its audit log.

The administrator creates runs over several connections, and writes what a Job controller and a kubelet
would write of their Jobs and pods: no node is there. `Trail` reads what the operator asked for from the
API server's own audit log, times by the API server's clock. Nothing is measured here.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import aiohttp

from hermes_operator.crd import crd_yaml
from hermes_operator.manifests import run_account, run_job, run_policy
from hermes_operator.names import API_VERSION, GROUP, KIND, PLURAL, job_name
from hermes_operator.observed import Installation, Run
from hermes_operator.status import Manifest
from tests.cluster.apiserver import ApiServer, api_server

NAMESPACE = "research"
ACCOUNT = "operator"
ADMINISTRATOR = "administrator"
IMAGE = "hermes:bench"
INSTALLATION = Installation(runtime_image=IMAGE)
CONNECTIONS = 16
PAGE_OBJECTS = 100

AUDITED = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        # What is written into a run's status is kept: when a run got which phase is read off it.
        {
            "level": "Request",
            "users": [f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"],
            "verbs": ["patch", "update"],
            "resources": [{"group": GROUP, "resources": [PLURAL, f"{PLURAL}/status"]}],
        },
        {"level": "Metadata", "users": [f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"]},
        {
            "level": "Metadata",
            "users": [ADMINISTRATOR],
            "verbs": ["create"],
            "resources": [{"group": GROUP, "resources": [PLURAL]}],
        },
        {"level": "None"},
    ],
}

RUNS = f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/{PLURAL}"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
ACCOUNTS = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
POLICIES = f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies"

MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"

ONE_SHARD = {
    "version": 1,
    "done": 2,
    "total": 2,
    "arms": {"A": {"done": 2, "solved": 1}},
    "hermetic": {"counted": True, "attempts": 0},
    "loaded": {
        "device": "cpu",
        "dtype": "float32",
        "quantization": "none",
        "weightBytes": 13376256,
        "loadSeconds": 1.6,
        "treeSha256": "0" * 64,
    },
    "manifest": "mcp://sha256/" + "0" * 64,
    "failure": None,
}
"""What a driver leaves in its pod."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, as the API server audited it."""

    asked_at: float
    """Seconds of the epoch, by the API server."""
    answered_at: float
    verb: str
    resource: str
    """Plural, with /status where that was asked for."""
    name: str
    code: int


class Trail:
    """The audit log, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.requests: list[Request] = []
        """The operator's, in the order of the log."""
        self.runs: dict[str, Request] = {}
        """The creation of each run."""
        self.jobs: dict[str, Request] = {}
        """The creation of each Job."""
        self.phases: dict[str, set[str]] = defaultdict(set)
        """Runs that ever got a phase."""

    def read(self) -> None:
        """Read on."""
        if self._path.exists():
            with self._path.open("rb") as log:
                log.seek(self._offset)
                for line in log:
                    if not line.endswith(b"\n"):
                        break  # the rest of it is being written
                    self._offset += len(line)
                    self._saw(json.loads(line))

    def _saw(self, event: Manifest) -> None:
        if event["verb"] == "watch" and event["stage"] != "ResponseStarted":
            return  # it was counted when it began
        about = event.get("objectRef") or {}
        below = f"/{about['subresource']}" if "subresource" in about else ""
        one = Request(
            asked_at=_seconds(event["requestReceivedTimestamp"]),
            answered_at=_seconds(event["stageTimestamp"]),
            verb=str(event["verb"]),
            resource=f"{about.get('resource', 'discovery')}{below}",
            name=str(about.get("name", "")),
            code=int((event.get("responseStatus") or {}).get("code") or 0),
        )
        if event["user"]["username"] == ADMINISTRATOR:
            self.runs[one.name] = one
            return
        self.requests.append(one)
        if one.resource == "jobs" and one.code == 201:
            self.jobs[one.name] = one
        phase = _phase(event.get("requestObject"))
        if one.code == 200 and phase:
            self.phases[phase].add(one.name)


def _phase(written: Manifest | list[Manifest] | None) -> str:
    """The phase in what was written into a run, be it an object or a JSON patch."""
    match written:
        case {"status": {"phase": str(phase)}}:
            return phase
        case list():
            values = {one["path"]: one.get("value") for one in written}
            status = values.get("/status")
            whole = status.get("phase") if isinstance(status, dict) else None
            return str(values.get("/status/phase") or whole or "")
    return ""


def _seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


class Refused(RuntimeError):
    """The API server refused what the benchmark itself asked for."""


@dataclass(slots=True)
class Administrator:
    """Who creates the runs, and who stands in for controllers and kubelets."""

    session: aiohttp.ClientSession
    url: str
    pods: dict[str, str] = field(default_factory=dict)
    """The pod of each Job."""

    async def ask(self, method: str, path: str, body: Manifest | None = None, kind: str = "") -> bytes:
        """One request; the body of the answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": kind or "application/json"}
        async with self.session.request(method, self.url + path, data=data, headers=headers) as answer:
            found = await answer.read()
            if answer.status >= 400:
                raise Refused(f"{method} {path}: {answer.status} {found[:500].decode()}")
            return found

    async def create_runs(self, names: Iterable[str], **spec: object) -> None:
        """Create the runs as fast as the connections allow."""

        async def create(name: str) -> None:
            await self.ask("POST", RUNS, manifest_of(name, **spec))

        await at_once(names, create)

    async def apply_children(self, runs: Sequence[Run]) -> None:
        """Apply what the operator applies for a run, without an operator."""

        async def apply(run: Run) -> None:
            wanted = [(ACCOUNTS, run_account(run)), (POLICIES, run_policy(run, INSTALLATION))]
            for path, manifest in [*wanted, (JOBS, run_job(run, INSTALLATION, 1))]:
                where = f"{path}/{manifest['metadata']['name']}?fieldManager=bench&force=true"
                await self.ask("PATCH", where, manifest, APPLY)

        await at_once(runs, apply)

    async def list(self, path: str) -> AsyncIterator[Manifest]:
        """Every object, page by page."""
        following = ""
        while True:
            page = json.loads(await self.ask("GET", f"{path}?limit={PAGE_OBJECTS}&continue={following}"))
            for one in page["items"]:
                yield one
            following = page["metadata"].get("continue", "")
            if not following:
                return

    async def count(self, path: str) -> int:
        """How many objects there are."""
        page = json.loads(await self.ask("GET", f"{path}?limit=1"))
        return len(page["items"]) + int(page["metadata"].get("remainingItemCount") or 0)

    async def start_jobs(self) -> None:
        """What a Job controller, a scheduler and a kubelet write until a driver runs."""
        jobs = [one async for one in self._new_jobs()]
        await at_once(jobs, self._start)

    async def _new_jobs(self) -> AsyncIterator[Manifest]:
        async for job in self.list(JOBS):
            if job["metadata"]["name"] not in self.pods:
                yield job

    async def _start(self, job: Manifest) -> None:
        name, at = job["metadata"]["name"], _now()
        pod = f"{name}-0-abcde"
        self.pods[name] = pod
        await self.ask("POST", PODS, _pod(job, pod))
        counts = {"startTime": at, "active": 1, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}}
        await self.ask("PATCH", f"{JOBS}/{name}/status", {"status": counts}, MERGE)
        status = _pod_status(job, at, "Running", {"running": {"startedAt": at}})
        await self.ask("PATCH", f"{PODS}/{pod}/status", {"status": status}, MERGE)
        await self.ask("PATCH", f"{JOBS}/{name}/status", {"status": {"ready": 1}}, MERGE)

    async def end_jobs(self) -> None:
        """What they write once the drivers have ended well."""
        jobs = [one async for one in self.list(JOBS) if "completionTime" not in one["status"]]
        await at_once(jobs, self._end)

    async def _end(self, job: Manifest) -> None:
        name, at = job["metadata"]["name"], _now()
        ended = {"exitCode": 0, "reason": "Completed", "startedAt": at, "finishedAt": at}
        told = {"terminated": {**ended, "message": json.dumps(ONE_SHARD)}}
        status = _pod_status(job, at, "Succeeded", told)
        await self.ask("PATCH", f"{PODS}/{self.pods[name]}/status", {"status": status}, MERGE)
        reached = {"reason": "CompletionsReached", "message": "Reached expected number of succeeded pods"}
        met = {"status": "True", "lastProbeTime": at, "lastTransitionTime": at, **reached}
        counts = {"active": 0, "ready": 0, "succeeded": 1, "completedIndexes": "0"}
        conditions = [{"type": "SuccessCriteriaMet", **met}, {"type": "Complete", **met}]
        body = {"status": {**counts, "completionTime": at, "conditions": conditions}}
        await self.ask("PATCH", f"{JOBS}/{name}/status", body, MERGE)

    async def delete_runs(self) -> None:
        """Delete every run, one by one as a user would."""
        names = [one["metadata"]["name"] async for one in self.list(RUNS)]

        async def delete(name: str) -> None:
            await self.ask("DELETE", f"{RUNS}/{name}")

        await at_once(names, delete)

    async def sweep(self) -> None:
        """Delete what runs left behind, as the garbage collector would."""
        for path in (PODS, JOBS, POLICIES, ACCOUNTS):
            keep = f"?fieldSelector=metadata.name!={ACCOUNT}" if path is ACCOUNTS else ""
            await self.ask("DELETE", path + keep, {"propagationPolicy": "Background"})
        self.pods.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """An API server with the definition of runs, a namespace and the operator's account."""

    server: ApiServer
    administrator: Administrator
    trail: Trail
    kubeconfig: Path
    """The operator's."""


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    """A fresh one; it is gone with its data when the block is left."""
    audit, policy = folder / "audit.log", folder / "policy.json"
    policy.write_text(json.dumps(AUDITED), encoding="utf-8")
    with api_server(flags=(f"--audit-policy-file={policy}", f"--audit-log-path={audit}")) as server:
        server.kubectl("apply", "--server-side", "-f", "-", stdin=crd_yaml())
        server.kubectl("wait", "--for=condition=Established", f"crd/{PLURAL}.{GROUP}", "--timeout=30s")
        server.kubectl("create", "namespace", NAMESPACE)
        server.kubectl("--namespace", NAMESPACE, "create", "serviceaccount", ACCOUNT)
        who = f"--serviceaccount={NAMESPACE}:{ACCOUNT}"
        server.kubectl("create", "clusterrolebinding", ACCOUNT, "--clusterrole=cluster-admin", who)
        token = server.service_account(NAMESPACE, ACCOUNT)
        trusted = ssl.create_default_context(cafile=str(server.certificate))
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS + 4, ssl=trusted),
            headers={"Authorization": f"Bearer {server.token}"},
        ) as session:
            yield Cluster(
                server=server,
                administrator=Administrator(session, server.url),
                trail=Trail(audit),
                kubeconfig=server.kubeconfig_of(token, folder / "operator.kubeconfig"),
            )


async def at_once(items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Each item by one of CONNECTIONS workers."""
    left = iter(items)

    async def worker() -> None:
        for item in left:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for number in range(CONNECTIONS):
            group.create_task(worker(), name=f"connection {number}")


def manifest_of(name: str, **spec: object) -> Manifest:
    """A run of one shard."""
    evaluate = {"instances": {"mutants": {"count": 2}}, "arms": ["A"]}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"evaluate": evaluate, **spec},
    }


def job_of(run: str) -> str:
    """The Job of a run's first attempt."""
    return job_name(run, 1)


def _pod(job: Manifest, name: str) -> Manifest:
    template, metadata = job["spec"]["template"], job["metadata"]
    index = {"batch.kubernetes.io/job-completion-index": "0"}
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {**template["metadata"]["labels"], **index},
            "annotations": index,
            "ownerReferences": [owner],
        },
        "spec": {**template["spec"], "nodeName": "node-1"},
    }


def _pod_status(job: Manifest, at: str, phase: str, driver: Manifest) -> Manifest:
    spec = job["spec"]["template"]["spec"]
    is_running = phase == "Running"
    stopped = {"exitCode": 143, "reason": "Error", "startedAt": at, "finishedAt": at}
    sidecar = {"running": {"startedAt": at}} if is_running else {"terminated": stopped}
    return {
        "phase": phase,
        "startTime": at,
        "hostIP": "10.0.0.1",
        "podIP": "10.244.0.7",
        "conditions": [
            {"type": kind, "status": "True", "lastTransitionTime": at}
            for kind in ("PodScheduled", "PodReadyToStartContainers", "Initialized")
        ],
        "initContainerStatuses": [
            _container(one, sidecar, is_running=is_running) for one in spec["initContainers"]
        ],
        "containerStatuses": [_container(one, driver, is_running=is_running) for one in spec["containers"]],
    }


def _container(container: Manifest, state: Manifest, *, is_running: bool) -> Manifest:
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "sha256:" + "1" * 64,
        "containerID": "containerd://" + "2" * 64,
        "ready": is_running,
        "started": is_running,
        "restartCount": 0,
        "state": state,
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
