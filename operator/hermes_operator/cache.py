"""What the operator has seen of runs, Jobs and pods, kept small: what decisions look at, compressed.

Fed by watches, by own lists and by the answers to own writes, in any order: an older version never
replaces a newer one, and what was deleted does not come back. Each call says whose picture has changed.
No client and no clock; `reconcile` reads snapshots from here.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from hermes_operator.names import API_VERSION, KIND, LABEL_MANAGED_BY, LABEL_QUEUE, LABEL_RUN, MANAGER
from hermes_operator.observed import Children, Run, RunInLine, RunKey
from hermes_operator.status import Manifest, Status, read_instant
from hermes_runtime.document import DocumentError, HermesRun, read

GONE_MAX = 10_000
"""Deleted objects that are remembered as such. A late word of an older one could bring it back, until
the next list."""


class Kind(StrEnum):
    """What is watched."""

    RUN = KIND
    JOB = "Job"
    POD = "Pod"


@dataclass(slots=True)
class _Entry:
    """One object as last seen."""

    key: RunKey
    uid: str
    version: int
    packed: bytes
    """Thousands of objects as dicts would take ten times the memory, and each is looked at rarely."""
    generation: int = 0
    line: RunInLine | None = None
    """Of a run: what is looked at whenever any run changes."""


class Cache:
    """Runs and their children."""

    def __init__(self) -> None:
        self._entries: dict[Kind, dict[tuple[str, str], _Entry]] = {kind: {} for kind in Kind}
        self._children: dict[Kind, dict[RunKey, dict[str, _Entry]]] = {Kind.JOB: {}, Kind.POD: {}}
        self._gone: dict[str, None] = {}
        self.runs_version = 0
        """Counts changes of runs; equal means: `runs` gives the same."""

    def remember(self, kind: Kind, manifest: Mapping[str, Any]) -> RunKey | None:
        """An object as the API gave it. Returns the run it is about, or None if that is nothing new."""
        key, uid, version = _key(kind, manifest), _uid(manifest), _version(manifest)
        if key is None or uid in self._gone:
            return None
        namespace, name = key.namespace, str(manifest["metadata"]["name"])
        known = self._entries[kind].get((namespace, name))
        if known is not None and version <= known.version:
            return None
        if known is not None and known.key != key:
            self._remove(kind, namespace, name)
        match kind:
            case Kind.RUN:
                entry = _run_entry(key, uid, version, manifest, known)
                self.runs_version += 1
            case Kind.JOB:
                entry = _Entry(key, uid, version, _packed(_job(manifest)))
            case Kind.POD:
                entry = _Entry(key, uid, version, _packed(_pod(manifest)))
        self._entries[kind][namespace, name] = entry
        if kind is not Kind.RUN:
            self._children[kind].setdefault(key, {})[name] = entry
        return key

    def forget(self, kind: Kind, manifest: Mapping[str, Any]) -> RunKey | None:
        """An object is gone, and will not come back: another of its name has another uid."""
        uid = _uid(manifest)
        self._bury(uid)
        metadata = manifest["metadata"]
        return self._gone_now(kind, str(metadata["namespace"]), str(metadata["name"]), uid)

    def forget_uid(self, kind: Kind, namespace: str, name: str, uid: str) -> RunKey | None:
        """The API knows no such object; one of its name that was made since is another."""
        self._bury(uid)
        return self._gone_now(kind, namespace, name, uid)

    def deletion_asked(self, kind: Kind, namespace: str, name: str, uid: str, at: datetime) -> RunKey | None:
        """We have deleted an object; it counts as being deleted until the API says more."""
        known = self._entries[kind].get((namespace, name))
        if known is None or known.uid != uid:
            return None
        manifest = _unpacked(known.packed)
        manifest["metadata"].setdefault(
            "deletionTimestamp", at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        )
        known.packed = _packed(manifest)
        if known.line is not None:
            known.line = replace(known.line, is_deleted=True)
            self.runs_version += 1
        return known.key

    def drop_absent(self, kind: Kind, namespace: str, present: Collection[str], version: str) -> list[RunKey]:
        """A whole list of the namespace, taken at `version`, had only the names in `present`."""
        listed_at = int(version)
        absent = [
            (name, entry)
            for (where, name), entry in self._entries[kind].items()
            if where == namespace and name not in present and entry.version <= listed_at
        ]
        changed = []
        for name, entry in absent:
            self._bury(entry.uid)
            self._remove(kind, namespace, name)
            changed.append(entry.key)
        return changed

    def run(self, key: RunKey) -> Run | None:
        """The run as last seen."""
        entry = self._entries[Kind.RUN].get((key.namespace, key.name))
        return None if entry is None else _run(key, _unpacked(entry.packed))

    def runs(self) -> Iterator[Run]:
        """All runs, each read anew; `line` is what to ask often."""
        for entry in self._entries[Kind.RUN].values():
            yield _run(entry.key, _unpacked(entry.packed))

    def line(self) -> Iterator[RunInLine]:
        """All runs, in short."""
        for entry in self._entries[Kind.RUN].values():
            if entry.line is not None:
                yield entry.line

    def children(self, key: RunKey) -> Children:
        """Everything that bears the run's label, its predecessors' too; owners tell them apart."""
        jobs, pods = (
            {name: _unpacked(entry.packed) for name, entry in self._children[kind].get(key, {}).items()}
            for kind in (Kind.JOB, Kind.POD)
        )
        return Children(jobs=jobs, pods=pods)

    def counts(self) -> dict[Kind, int]:
        """How many objects of each kind."""
        return {kind: len(entries) for kind, entries in self._entries.items()}

    def _gone_now(self, kind: Kind, namespace: str, name: str, uid: str) -> RunKey | None:
        known = self._entries[kind].get((namespace, name))
        if known is None or known.uid != uid:
            return None
        self._remove(kind, namespace, name)
        return known.key

    def _remove(self, kind: Kind, namespace: str, name: str) -> None:
        entry = self._entries[kind].pop((namespace, name))
        if kind is Kind.RUN:
            self.runs_version += 1
            return
        siblings = self._children[kind][entry.key]
        del siblings[name]
        if not siblings:
            del self._children[kind][entry.key]

    def _bury(self, uid: str) -> None:
        self._gone[uid] = None
        if len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]


def _key(kind: Kind, manifest: Mapping[str, Any]) -> RunKey | None:
    metadata = manifest["metadata"]
    if kind is Kind.RUN:
        return RunKey(sys.intern(metadata["namespace"]), metadata["name"])
    labels = metadata.get("labels") or {}
    if labels.get(LABEL_MANAGED_BY) != MANAGER or LABEL_RUN not in labels:
        return None
    return RunKey(sys.intern(metadata["namespace"]), labels[LABEL_RUN])


def _uid(manifest: Mapping[str, Any]) -> str:
    return str(manifest["metadata"]["uid"])


def _version(manifest: Mapping[str, Any]) -> int:
    # Versions of one server are numbers that grow; Kubernetes has promised it since 1.35 (KEP-5504).
    return int(manifest["metadata"]["resourceVersion"])


def _run_entry(
    key: RunKey, uid: str, version: int, manifest: Mapping[str, Any], known: _Entry | None
) -> _Entry:
    metadata = {**_metadata(manifest), "resourceVersion": str(version)}
    kept = {
        "metadata": metadata,
        "spec": manifest.get("spec") or {},
        "status": manifest.get("status") or {},
    }
    generation = int(metadata.get("generation") or 0)
    if known is not None and known.line is not None and (known.uid, known.generation) == (uid, generation):
        status = Status.from_manifest(kept["status"])  # it does not change the document
        line = replace(
            known.line,
            is_deleted=bool(metadata.get("deletionTimestamp")),
            has_queue=LABEL_QUEUE in (metadata.get("labels") or {}),
            attempt=status.attempt,
            phase=status.phase,
        )
    else:
        line = _run(key, kept).in_line
    return _Entry(key, uid, version, _packed(kept), generation, line)


def _run(key: RunKey, manifest: Mapping[str, Any]) -> Run:
    metadata = manifest["metadata"]
    return Run(
        key=key,
        uid=str(metadata["uid"]),
        generation=int(metadata.get("generation") or 0),
        created_at=read_instant(metadata.get("creationTimestamp")) or datetime.fromtimestamp(0, UTC),
        is_deleted=bool(metadata.get("deletionTimestamp")),
        labels=dict(metadata.get("labels") or {}),
        document=_document(manifest),
        status=Status.from_manifest(manifest.get("status") or {}),
        version=str(metadata.get("resourceVersion") or ""),
    )


def _document(manifest: Mapping[str, Any]) -> HermesRun | str:
    # A list's items do not say what they are.
    try:
        return read({**manifest, "apiVersion": API_VERSION, "kind": KIND})
    except DocumentError as error:
        return str(error)


_METADATA = (
    "name",
    "namespace",
    "uid",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "labels",
    "annotations",
    "ownerReferences",
)
_ANNOTATIONS_KEPT = ("hermes.dev/", "batch.kubernetes.io/", "batch.alpha.kubernetes.io/")
_CONTAINER_STATUS = ("name", "state", "lastState", "restartCount", "ready", "started")
_POD_STATUS = ("phase", "reason", "message", "conditions", "startTime")
_SPEC_LARGE = ("template", "selector", "podFailurePolicy", "successPolicy")


def _metadata(manifest: Mapping[str, Any]) -> Manifest:
    kept = {name: manifest["metadata"][name] for name in _METADATA if name in manifest["metadata"]}
    annotations = kept.pop("annotations", None) or {}
    annotations = {k: v for k, v in annotations.items() if k.startswith(_ANNOTATIONS_KEPT)}
    return {**kept, "annotations": annotations} if annotations else kept


def _job(manifest: Mapping[str, Any]) -> Manifest:
    """A Job without its pod template, which no decision looks at."""
    spec = {k: v for k, v in (manifest.get("spec") or {}).items() if k not in _SPEC_LARGE}
    return {"metadata": _metadata(manifest), "spec": spec, "status": manifest.get("status") or {}}


def _pod(manifest: Mapping[str, Any]) -> Manifest:
    """A pod's state and how its containers are; of one that succeeded only what its driver left."""
    status = manifest.get("status") or {}
    kept: Manifest = {name: status[name] for name in _POD_STATUS if name in status}
    for name in ("initContainerStatuses", "containerStatuses"):
        if name in status:
            kept[name] = [
                {field: one[field] for field in _CONTAINER_STATUS if one.get(field) not in (None, {})}
                for one in status[name]
            ]
    if kept.get("phase") == "Succeeded":
        kept.pop("initContainerStatuses", None)
        kept.pop("conditions", None)
    node = (manifest.get("spec") or {}).get("nodeName")
    return {
        "metadata": _metadata(manifest),
        "spec": {"nodeName": node} if node else {},
        "status": kept,
    }


def _packed(manifest: Manifest) -> bytes:
    return zlib.compress(json.dumps(manifest, separators=(",", ":")).encode(), 1)


def _unpacked(packed: bytes) -> Manifest:
    found: Manifest = json.loads(zlib.decompress(packed))
    return found
