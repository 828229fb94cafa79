"""Which run is looked at next, and when.

Keys coalesce: a key waits at most once, and one that is being worked on comes once more if it was woken
meanwhile. One key is never worked on twice at a time. First come, first served. A key that failed is held
back for longer and longer, and no wake shortens that. Nothing here waits, reads a clock or rolls dice:
times and jitter come in; the workers around it do the waiting.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

BACKOFF_SECONDS_FIRST = 0.5
BACKOFF_SECONDS_MAX = 60.0

_HEAP_SLACK = 64
"""Outdated entries that the heap of times may hold before it is made anew."""


class WorkQueue(Generic[Key]):
    """A queue of keys. Times are seconds of one clock that never goes back."""

    def __init__(self, *, jitter: Callable[[], float]) -> None:
        """`jitter` gives numbers in [0, 1)."""
        self._jitter = jitter
        self._ready: dict[Key, None] = {}
        self._busy: set[Key] = set()
        self._woken_while_busy: set[Key] = set()
        self._due: dict[Key, float] = {}
        self._held: set[Key] = set()
        self._heap: list[tuple[float, int, Key]] = []
        self._failures: dict[Key, int] = {}
        self._pushed = 0

    def wake(self, key: Key) -> None:
        """Something about the key has changed."""
        if key in self._busy:
            self._woken_while_busy.add(key)
        elif key not in self._held:
            self._ready.setdefault(key)

    def take(self, now: float) -> Key | None:
        """The next key; the caller owes `done` or `failed` for it."""
        self._move_due(now)
        if not self._ready:
            return None
        key = next(iter(self._ready))
        del self._ready[key]
        self._due.pop(key, None)  # whoever has looked says anew when to look again
        self._busy.add(key)
        return key

    def done(self, key: Key, next_at: float | None = None) -> None:
        """The key was looked at; look again at `next_at` even if nothing wakes it."""
        self._busy.remove(key)
        self._failures.pop(key, None)
        if key in self._woken_while_busy:
            self._woken_while_busy.remove(key)
            self._ready.setdefault(key)
        elif next_at is not None:
            self._schedule(key, next_at)

    def failed(self, key: Key, now: float, not_before: float | None = None) -> float:
        """The look at the key failed. Returns when it is looked at again."""
        self._busy.remove(key)
        self._woken_while_busy.discard(key)
        failures = self._failures.get(key, 0) + 1
        self._failures[key] = failures
        delay = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_FIRST * 2.0 ** min(failures - 1, 30))
        at = now + delay * (0.5 + 0.5 * self._jitter())
        if not_before is not None:
            at = max(at, not_before)
        self._held.add(key)
        self._schedule(key, at)
        return at

    def next_at(self) -> float | None:
        """When `take` gives a key again if nothing is woken; None: never. A time past means now."""
        if self._ready:
            return float("-inf")
        self._drop_outdated()
        return self._heap[0][0] if self._heap else None

    @property
    def waiting(self) -> int:
        """Keys that could be taken now, but for their time."""
        return len(self._ready)

    @property
    def held_back(self) -> int:
        """Keys that failed and are not due yet."""
        return len(self._held)

    @property
    def is_idle(self) -> bool:
        """Nothing is ready and nobody works."""
        return not self._ready and not self._busy

    def _schedule(self, key: Key, at: float) -> None:
        self._due[key] = at
        self._pushed += 1
        heapq.heappush(self._heap, (at, self._pushed, key))
        if len(self._heap) > 2 * len(self._due) + _HEAP_SLACK:
            self._heap = [(at, i, key) for i, (key, at) in enumerate(self._due.items())]
            self._pushed = len(self._heap)
            heapq.heapify(self._heap)

    def _drop_outdated(self) -> None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)

    def _move_due(self, now: float) -> None:
        while True:
            self._drop_outdated()
            if not self._heap or self._heap[0][0] > now:
                return
            _, _, key = heapq.heappop(self._heap)
            del self._due[key]
            self._held.discard(key)
            self._ready.setdefault(key)
