"""The played API server without faults or delay, and the virtual time that it lives in.

It keeps objects and versions and tells whoever listens. Who asks through faults is `process`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from hermes_operator.status import Manifest

EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
NAMESPACE = "lab"


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
