"""What the operator has seen of runs, Jobs and pods, kept small.

Fed by watches, by own lists and by the answers to own writes, in any order: an older version never
replaces a newer one, and what was deleted does not come back. Each call says whose picture has changed.
No client and no clock; `reconcile` reads snapshots from here.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from hermes_operator.names import API_VERSION, KIND, LABEL_MANAGED_BY, LABEL_RUN, MANAGER
from hermes_operator.observed import Children, Run, RunKey
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
    seen: Run | Manifest


class Cache:
    """Runs and their children."""

    def __init__(self) -> None:
        self._entries: dict[Kind, dict[tuple[str, str], _Entry]] = {kind: {} for kind in Kind}
        self._children: dict[Kind, dict[RunKey, dict[str, Manifest]]] = {Kind.JOB: {}, Kind.POD: {}}
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
        seen: Run | Manifest
        match kind:
            case Kind.RUN:
                seen = _run(key, manifest, known.seen if known is not None else None)
                self.runs_version += 1
            case Kind.JOB:
                seen = _job(manifest)
            case Kind.POD:
                seen = _pod(manifest)
        self._entries[kind][namespace, name] = _Entry(key, uid, version, seen)
        if not isinstance(seen, Run):
            self._children[kind].setdefault(key, {})[name] = seen
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
        if isinstance(known.seen, Run):
            known.seen = replace(known.seen, is_deleted=True)
            self.runs_version += 1
        else:
            metadata = known.seen["metadata"]
            metadata.setdefault("deletionTimestamp", at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
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
        return entry.seen if entry is not None and isinstance(entry.seen, Run) else None

    def runs(self) -> Iterator[Run]:
        """All runs."""
        for entry in self._entries[Kind.RUN].values():
            if isinstance(entry.seen, Run):
                yield entry.seen

    def children(self, key: RunKey) -> Children:
        """Everything that bears the run's label, its predecessors' too; owners tell them apart."""
        return Children(
            jobs=dict(self._children[Kind.JOB].get(key, {})), pods=dict(self._children[Kind.POD].get(key, {}))
        )

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


def _run(key: RunKey, manifest: Mapping[str, Any], known: object) -> Run:
    metadata = manifest["metadata"]
    uid, generation = str(metadata["uid"]), int(metadata.get("generation") or 0)
    document: HermesRun | str
    if isinstance(known, Run) and (known.uid, known.generation) == (uid, generation):
        document = known.document  # a status does not change it
    else:
        document = _document(manifest)
    return Run(
        key=key,
        uid=uid,
        generation=generation,
        created_at=read_instant(metadata.get("creationTimestamp")) or datetime.fromtimestamp(0, UTC),
        is_deleted=bool(metadata.get("deletionTimestamp")),
        labels=_interned(metadata.get("labels") or {}),
        document=document,
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
    kept = {"metadata": _metadata(manifest), "spec": spec, "status": manifest.get("status") or {}}
    return _interned(kept)


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
    return _interned(
        {
            "metadata": _metadata(manifest),
            "spec": {"nodeName": node} if node else {},
            "status": kept,
        }
    )


_INTERNED_CHARACTERS_MAX = 32


def _interned(manifest: Mapping[str, Any]) -> Manifest:
    """The same JSON, equal short strings kept once: they are most of a thousand objects."""
    return {sys.intern(str(name)): _interned_value(value) for name, value in manifest.items()}


def _interned_value(value: object) -> object:
    if isinstance(value, str):
        return sys.intern(value) if len(value) <= _INTERNED_CHARACTERS_MAX else value
    if isinstance(value, Mapping):
        return _interned(value)
    if isinstance(value, list):
        return [_interned_value(one) for one in value]
    return value
