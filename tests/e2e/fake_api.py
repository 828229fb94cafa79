"""A Kubernetes API in one process: real HTTP on 127.0.0.1, objects in memory, and faults on demand.

It speaks as much as the operator needs: discovery, LIST in pages, WATCH with bookmarks, server-side apply
of one manager (what it applied before and does not now goes away), merge patch, status, Leases, Events,
and the collection of what a deleted object owned. What it answers to a write over another version or
another object is what a real API server answers. Every request is recorded. `Kubelet` makes pods of Jobs
and lets them end, so that a run lives its whole life.
"""

from __future__ import annotations

import asyncio
import copy
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

Object = dict[str, Any]

BOOKMARK_SECONDS = 0.3

_GROUPS = {
    "": {"pods": "Pod", "serviceaccounts": "ServiceAccount", "namespaces": "Namespace", "events": "Event"},
    "batch": {"jobs": "Job"},
    "hermes.dev": {"hermesruns": "HermesRun"},
    "networking.k8s.io": {"networkpolicies": "NetworkPolicy"},
    "events.k8s.io": {"events": "Event"},
    "coordination.k8s.io": {"leases": "Lease"},
    "apiextensions.k8s.io": {"customresourcedefinitions": "CustomResourceDefinition"},
}
_VERSIONS = {"hermes.dev": "v1alpha1"}
_NEVER_BLIND = {"hermesruns", "leases"}
"""What may not be replaced without saying which version of it."""
_CLUSTER_WIDE = {"namespaces", "customresourcedefinitions"}


@dataclass(frozen=True, slots=True)
class Seen:
    """One request."""

    verb: str
    """apply, patch, create, update, delete, get, list, watch or discover."""
    resource: str
    """plural, with /status where that was asked for."""
    namespace: str
    name: str
    agent: str

    @property
    def is_write(self) -> bool:
        return self.verb in ("apply", "patch", "create", "update", "delete")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is answered instead."""

    code: int = 500
    """0: the connection is cut without an answer."""
    retry_after: str = ""
    is_done_first: bool = False
    """The request is carried out, and only then answered so."""


@dataclass
class _Watcher:
    resource: str
    namespace: str
    selector: str
    queue: asyncio.Queue[Object | None] = field(default_factory=asyncio.Queue)


class FakeApi:
    """The API server's state and behaviour."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[tuple[str, str], Object]] = {}
        self.requests: list[Seen] = []
        self.fault: Callable[[Seen], Fault | None] = lambda seen: None
        """Asked at every request but watches'."""
        self.on_write: Callable[[Seen], None] = lambda seen: None
        """Called after a write was carried out and before it is answered."""
        self.on_change: list[Callable[[str, Object], None]] = []
        self.watches_lose_their_past = False
        """A watch tells only what happens after it was opened, as if its version were the newest."""
        self.watches_are_silent = False
        """Watches tell nothing, not even bookmarks."""
        self.before_watch: Callable[[str], None] = lambda resource: None
        """Called when a watch is asked for, before it begins."""
        self.is_away = False
        """Every connection is cut."""
        self.has_no_definition = False
        """The custom resource definition is not installed."""
        self.version = 100
        self._history: list[tuple[int, str, str, Object]] = []
        self._applied: dict[tuple[str, str, str], Object] = {}
        self._watchers: list[_Watcher] = []
        self.url = ""

    # State, also for tests

    def put(self, resource: str, manifest: Object) -> Object:
        """Create or replace an object, as a user or a controller would."""
        metadata = manifest["metadata"]
        known = self.objects.get(resource, {}).get((metadata["namespace"], metadata["name"]))
        return self._store(resource, copy.deepcopy(manifest), known)

    def change(self, resource: str, namespace: str, name: str, changes: Object) -> Object:
        """Merge changes into an object that is there."""
        known = self.objects[resource][namespace, name]
        return self._store(resource, _merged(copy.deepcopy(known), changes), known)

    def remove(self, resource: str, namespace: str, name: str) -> None:
        """Delete an object and what it owns."""
        known = self.objects[resource].pop((namespace, name))
        self._applied.pop((resource, namespace, name), None)
        self._tell("DELETED", resource, self._versioned(known))
        for owned_resource, owned in list(self.objects.items()):
            for (where, owned_name), one in list(owned.items()):
                owners = one["metadata"].get("ownerReferences") or ()
                if any(owner["uid"] == known["metadata"]["uid"] for owner in owners):
                    with suppress(KeyError):
                        self.remove(owned_resource, where, owned_name)

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        return self.objects.get(resource, {}).get((namespace, name))

    def at(self, resource: str, namespace: str, name: str) -> Object:
        """An object that is there."""
        return self.objects[resource][namespace, name]

    def of(self, resource: str) -> list[Object]:
        return list(self.objects.get(resource, {}).values())

    def cut_watches(self) -> None:
        """Close every watch, as an API server does after some minutes."""
        for watcher in self._watchers:
            watcher.queue.put_nowait(None)

    def written(self, namespace: str | None = None) -> list[Seen]:
        """Writes of the operator but for its Lease."""
        return [
            one
            for one in self.requests
            if one.is_write and one.resource != "leases" and namespace in (None, one.namespace)
        ]

    def counted(self) -> Counter[tuple[str, str]]:
        return Counter((one.verb, one.resource) for one in self.requests)

    def _store(self, resource: str, manifest: Object, known: Object | None) -> Object:
        metadata = manifest["metadata"]
        group = next(group for group, plurals in _GROUPS.items() if resource in plurals)
        version = _VERSIONS.get(group, "v1")
        manifest.setdefault("apiVersion", f"{group}/{version}".lstrip("/"))
        manifest.setdefault("kind", _GROUPS[group][resource])
        if known is None:
            metadata["uid"] = str(uuid.uuid4())
            metadata["creationTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            metadata["generation"] = 1
        else:
            for name in ("uid", "creationTimestamp", "generation"):
                metadata[name] = known["metadata"][name]
            if manifest.get("spec") != known.get("spec"):
                metadata["generation"] += 1
            without = {**manifest, "metadata": {**metadata, "resourceVersion": ""}}
            if without == {**known, "metadata": {**known["metadata"], "resourceVersion": ""}}:
                return known  # a write that changes nothing makes no version
        found = self._versioned(manifest)
        self.objects.setdefault(resource, {})[metadata["namespace"], metadata["name"]] = found
        self._tell("ADDED" if known is None else "MODIFIED", resource, found)
        return found

    def _versioned(self, manifest: Object) -> Object:
        self.version += 1
        return {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": str(self.version)}}

    def _tell(self, change: str, resource: str, manifest: Object) -> None:
        event = {"type": change, "object": manifest}
        namespace = manifest["metadata"]["namespace"]
        self._history.append((self.version, resource, namespace, event))
        for watcher in self._watchers:
            if watcher.resource == resource and watcher.namespace == namespace:
                watcher.queue.put_nowait(event)
        for told in self.on_change:
            told(resource, manifest)

    # HTTP

    @asynccontextmanager
    async def served(self) -> AsyncIterator[FakeApi]:
        """Serve on a free port."""
        app = web.Application(client_max_size=16 << 20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            self.cut_watches()
            await runner.cleanup()

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig for this server."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": {"token": "any"}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        }
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.is_away:
            return _cut(request)
        parts = request.path.strip("/").split("/")
        if parts[0] == "version" or "namespaces" not in parts[:-1]:
            self.requests.append(Seen("discover", "", "", "", _agent(request)))
            return self._discover(parts)
        at = parts.index("namespaces")
        namespace, resource, *rest = parts[at + 1 :]
        name = rest[0] if rest else ""
        is_status = rest[1:] == ["status"]
        is_watch = request.query.get("watch") == "true"
        verb = {
            "GET": "watch" if is_watch else "get" if name else "list",
            "POST": "create",
            "PUT": "update",
            "DELETE": "delete",
            "PATCH": "apply" if "apply-patch" in request.headers.get("Content-Type", "") else "patch",
        }[request.method]
        seen = Seen(verb, resource + ("/status" if is_status else ""), namespace, name, _agent(request))
        self.requests.append(seen)
        if is_watch:
            return await self._watch(request, resource, namespace)
        if self.has_no_definition and resource == "hermesruns":
            return web.Response(status=404, text="404 page not found\n")
        fault = self.fault(seen)
        if fault is not None and not fault.is_done_first:
            return _faulty(request, fault)
        body = await request.json() if request.can_read_body else {}
        status, answer = self._do(seen, body, request)
        if seen.is_write and status < 400:
            self.on_write(seen)
        if fault is not None:
            return _faulty(request, fault)
        return web.json_response(answer, status=status)

    def _do(self, seen: Seen, body: Object, request: web.Request) -> tuple[int, Object]:
        resource, namespace, name = seen.resource.removesuffix("/status"), seen.namespace, seen.name
        known = self.get(resource, namespace, name)
        match seen.verb:
            case "list":
                return self._list(resource, namespace, request)
            case "get":
                return (200, known) if known is not None else _status(404, "NotFound")
            case "create":
                if "generateName" in body["metadata"]:
                    body["metadata"]["name"] = body["metadata"]["generateName"] + uuid.uuid4().hex[:5]
                if self.get(resource, namespace, body["metadata"]["name"]) is not None:
                    return _status(409, "AlreadyExists")
                if body["metadata"].get("resourceVersion"):
                    return _status(500, "InternalError")  # "should not be set on objects to be created"
                body["metadata"]["namespace"] = namespace
                return 201, self._store(resource, body, None)
            case "update":
                version = body["metadata"].get("resourceVersion")
                if known is None and resource == "leases":  # the one kind that is made by replacing it
                    body["metadata"]["namespace"] = namespace
                    return 201, self._store(resource, body, None)
                if known is None:
                    return _status(404, "NotFound")
                if not version and resource in _NEVER_BLIND:
                    return _status(422, "Invalid")
                if version not in (None, known["metadata"]["resourceVersion"]):
                    return _status(409, "Conflict")
                if body["metadata"].get("uid") not in (None, known["metadata"]["uid"]):
                    return _status(409, "Conflict")
                return 200, self._store(resource, body, known)
            case "delete":
                if known is None:
                    return _status(404, "NotFound")
                for wanted in (body.get("preconditions") or {}).items():
                    if wanted not in known["metadata"].items():
                        return _status(409, "Conflict")
                self.remove(resource, namespace, name)
                return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}
            case "patch":
                if known is None:
                    return _status(404, "NotFound")
                refused = _refused(known, body, is_status=seen.resource != resource)
                if refused is not None:
                    return refused
                return 200, self._store(resource, _merged(copy.deepcopy(known), body), known)
            case "apply":
                return self._apply(seen, resource, body, known)
        raise AssertionError(seen)

    def _apply(self, seen: Seen, resource: str, body: Object, known: Object | None) -> tuple[int, Object]:
        is_status = seen.resource != resource
        refused = None if known is None else _refused(known, body, is_status=is_status)
        if refused is not None:
            return refused
        wanted_uid = body["metadata"].pop("uid", None)
        body["metadata"].pop("resourceVersion", None)
        if known is None and is_status:
            return _status(404, "NotFound")
        if known is None and wanted_uid:
            return _status(409, "Conflict")
        key = (seen.resource, seen.namespace, seen.name)
        base = copy.deepcopy(known) if known is not None else {}
        _without(base, self._applied.get(key, {}))
        self._applied[key] = copy.deepcopy(body)
        base["metadata"] = {**(known or {}).get("metadata", {}), **base.get("metadata", {})}
        return (201 if known is None else 200), self._store(resource, _merged(base, body), known)

    def _list(self, resource: str, namespace: str, request: web.Request) -> tuple[int, Object]:
        selector = request.query.get("labelSelector", "")
        start, version = 0, self.version
        if request.query.get("continue"):
            start, version = (int(part) for part in request.query["continue"].split("-"))
        found = [
            one
            for (where, _), one in sorted(self.objects.get(resource, {}).items())
            if where == namespace and _selected(one, selector)
        ]
        limit = int(request.query.get("limit") or 0) or len(found) or 1
        metadata: Object = {"resourceVersion": str(version)}
        if start + limit < len(found):
            metadata["continue"] = f"{start + limit}-{version}"
        items = [{k: v for k, v in one.items() if k not in ("apiVersion", "kind")} for one in found]
        return 200, {
            "kind": "List",
            "apiVersion": "v1",
            "metadata": metadata,
            "items": items[start : start + limit],
        }

    async def _watch(self, request: web.Request, resource: str, namespace: str) -> web.StreamResponse:
        self.before_watch(resource)
        selector = request.query.get("labelSelector", "")
        watcher = _Watcher(resource, namespace, selector)
        since = (
            self.version if self.watches_lose_their_past else int(request.query.get("resourceVersion") or 0)
        )
        for version, told_resource, told_namespace, past in self._history:
            if version > since and (told_resource, told_namespace) == (resource, namespace):
                watcher.queue.put_nowait(past)
        self._watchers.append(watcher)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            await response.prepare(request)
            while True:
                event: Object | None
                try:
                    async with asyncio.timeout(BOOKMARK_SECONDS):
                        event = await watcher.queue.get()
                except TimeoutError:
                    metadata = {"resourceVersion": str(self.version)}
                    event = {"type": "BOOKMARK", "object": {"metadata": metadata}}
                if event is None:
                    return response
                if self.is_away:
                    return _cut(request)
                if self.watches_are_silent or not _selected(event["object"], selector, event["type"]):
                    continue
                await response.write(json.dumps(event).encode() + b"\n")
        except (ConnectionResetError, asyncio.CancelledError):
            return response
        finally:
            self._watchers.remove(watcher)

    def _discover(self, parts: list[str]) -> web.Response:
        match parts:
            case ["version"]:
                return web.json_response({"major": "1", "minor": "36"})
            case ["api"]:
                return web.json_response({"kind": "APIVersions", "versions": ["v1"]})
            case ["apis"]:
                groups = []
                for group in _GROUPS:
                    version = {"version": _VERSIONS.get(group, "v1")}
                    if group and not (self.has_no_definition and group == "hermes.dev"):
                        groups.append({"name": group, "versions": [version], "preferredVersion": version})
                return web.json_response({"kind": "APIGroupList", "groups": groups})
            case ["api", "v1"]:
                return web.json_response(_resources(""))
            case ["apis", group, version] if _VERSIONS.get(group, "v1") == version and group in _GROUPS:
                return web.json_response(_resources(group))
        return web.Response(status=404, text="404 page not found\n")


@asynccontextmanager
async def cluster(*, ends: bool = True, delay_seconds: float = 0.02) -> AsyncIterator[FakeApi]:
    """An API with a kubelet."""
    api = FakeApi()
    kubelet = Kubelet(api, ends=ends, delay_seconds=delay_seconds)
    async with api.served(), asyncio.TaskGroup() as group:
        task = group.create_task(kubelet.run(), name="kubelet")
        try:
            yield api
        finally:
            task.cancel()


def new_run(name: str, namespace: str = "research", **spec: object) -> Object:
    """A run of one shard."""
    evaluate = {"instances": {"mutants": {"count": 2}}, "arms": ["A"]}
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"evaluate": evaluate, **spec}}


def phase(api: FakeApi, name: str, namespace: str = "research") -> str:
    """Where the run is; "" without a status."""
    return str(((api.get("hermesruns", namespace, name) or {}).get("status") or {}).get("phase", ""))


class Kubelet:
    """A Job controller and a kubelet: every Job that is not suspended gets its pods, which run and end."""

    def __init__(self, api: FakeApi, *, delay_seconds: float = 0.0, ends: bool = True) -> None:
        """`ends` False: drivers run for ever."""
        self._api = api
        self._delay_seconds = delay_seconds
        self._ends = ends
        self._due: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        api.on_change.append(self._changed)

    def _changed(self, resource: str, manifest: Object) -> None:
        if resource == "jobs":
            self._due.put_nowait((manifest["metadata"]["namespace"], manifest["metadata"]["name"]))

    async def run(self) -> None:
        """Work for ever."""
        while True:
            namespace, name = await self._due.get()
            job = self._api.get("jobs", namespace, name)
            if job is None or job["spec"].get("suspend") or job.get("status", {}).get("startTime"):
                continue
            await self._live(namespace, name, job)

    async def _live(self, namespace: str, name: str, job: Object) -> None:
        completions = int(job["spec"].get("completions") or 1)
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._set(namespace, name, {"startTime": at, "active": completions, "succeeded": 0, "failed": 0})
        pods = [self._pod(job, index) for index in range(completions)]
        await asyncio.sleep(self._delay_seconds)
        for pod in pods:
            self._api.change("pods", namespace, pod, {"status": _running(at)})
        if not self._ends:
            return
        await asyncio.sleep(self._delay_seconds)
        for pod in pods:
            with suppress(KeyError):
                self._api.change("pods", namespace, pod, {"status": _succeeded(at)})
        done = {
            "type": "Complete",
            "status": "True",
            "reason": "CompletionsReached",
            "lastTransitionTime": at,
        }
        indexes = "0" if completions == 1 else f"0-{completions - 1}"
        status = {"active": 0, "succeeded": completions, "completedIndexes": indexes, "conditions": [done]}
        self._set(namespace, name, {**status, "completionTime": at})

    def _set(self, namespace: str, name: str, status: Object) -> None:
        if self._api.get("jobs", namespace, name) is not None:
            self._api.change("jobs", namespace, name, {"status": status})

    def _pod(self, job: Object, index: int) -> str:
        metadata = job["metadata"]
        name = f"{metadata['name']}-{index}-{uuid.uuid4().hex[:5]}"
        template = job["spec"]["template"]
        self._api.put(
            "pods",
            {
                "metadata": {
                    "name": name,
                    "namespace": metadata["namespace"],
                    "labels": dict(template["metadata"]["labels"]),
                    "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
                    "ownerReferences": [
                        {
                            "apiVersion": "batch/v1",
                            "kind": "Job",
                            "name": metadata["name"],
                            "uid": metadata["uid"],
                            "controller": True,
                        }
                    ],
                },
                "spec": {**template["spec"], "nodeName": "node-1"},
                "status": {"phase": "Pending"},
            },
        )
        return name


SOLVED = {"A": {"done": 2, "solved": 1}}
REPORT = {
    "version": 1,
    "done": 2,
    "total": 2,
    "arms": SOLVED,
    "hermetic": {"counted": True, "attempts": 0},
    "loaded": {"device": "cpu", "dtype": "float32", "quantization": "none", "weightBytes": 5},
    "manifest": "mcp://sha256/" + "0" * 64,
    "failure": None,
}


def _running(at: str) -> Object:
    state = {"state": {"running": {"startedAt": at}}, "ready": True, "restartCount": 0}
    return {"phase": "Running", "containerStatuses": [{"name": "driver", **state}]}


def _succeeded(at: str) -> Object:
    ended = {
        "exitCode": 0,
        "reason": "Completed",
        "startedAt": at,
        "finishedAt": at,
        "message": json.dumps(REPORT),
    }
    return {"phase": "Succeeded", "containerStatuses": [{"name": "driver", "state": {"terminated": ended}}]}


def _resources(group: str) -> Object:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    resources = [
        {
            "name": plural,
            "singularName": kind.lower(),
            "kind": kind,
            "namespaced": plural not in _CLUSTER_WIDE,
            "verbs": verbs,
        }
        for plural, kind in _GROUPS[group].items()
    ]
    return {"kind": "APIResourceList", "resources": resources}


def _selected(manifest: Object, selector: str, change: str = "") -> bool:
    if not selector or change == "BOOKMARK":
        return True
    labels = manifest["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in (one.split("=", 1) for one in selector.split(",")))


def _merged(base: Object, changes: Object) -> Object:
    """JSON merge patch."""
    for key, value in changes.items():
        if value is None:
            base.pop(key, None)
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            _merged(base[key], value)
        else:
            base[key] = value
    return base


def _without(base: Object, applied: Object) -> None:
    """Take away what was applied before."""
    for key, value in applied.items():
        if key in ("metadata", "apiVersion", "kind"):
            continue
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _without(base[key], value)
            if not base[key]:
                del base[key]
        else:
            base.pop(key, None)


def _refused(known: Object, body: Object, *, is_status: bool) -> tuple[int, Object] | None:
    """Why a patch cannot be: it is of another version, or of another object; None: it can be."""
    metadata = body.get("metadata") or {}
    if metadata.get("resourceVersion") not in (None, known["metadata"]["resourceVersion"]):
        return _status(409, "Conflict")
    # With a status the rest of the object is not looked at.
    if not is_status and metadata.get("uid") not in (None, known["metadata"]["uid"]):
        return _status(422, "Invalid")
    return None


def _status(code: int, reason: str) -> tuple[int, Object]:
    content = {"status": "Failure", "message": reason, "reason": reason, "code": code}
    return code, {"kind": "Status", "apiVersion": "v1", **content}


def _faulty(request: web.Request, fault: Fault) -> web.StreamResponse:
    if fault.code == 0:
        return _cut(request)
    code, answer = _status(fault.code, "Fault")
    headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
    return web.json_response(answer, status=code, headers=headers)


def _cut(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


def _agent(request: web.Request) -> str:
    return request.headers.get("User-Agent", "")
