"""The workers: they take keys from the queue, have them looked at, and put them back in time.

The queue decides which key and when; here is only the waiting. A worker that is told to stop finishes the
look it is in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime

from hermes_operator.metrics import Metrics
from hermes_operator.observed import RunKey
from hermes_operator.queue import WorkQueue
from hermes_operator.reconcile import Done, Failed, Reconciler

_IDLE_SECONDS_MAX = 3600.0


class Workers:
    """Some workers at one queue."""

    def __init__(
        self,
        *,
        queue: WorkQueue[RunKey],
        reconciler: Reconciler,
        metrics: Metrics,
        clock: Callable[[], float],
        now: Callable[[], datetime],
        may_act: Callable[[], bool],
    ) -> None:
        """`clock` never goes back, `now` gives aware UTC; nothing is looked at unless `may_act`."""
        self._queue = queue
        self._reconciler = reconciler
        self._metrics = metrics
        self._clock = clock
        self._now = now
        self._may_act = may_act
        self._woken = asyncio.Event()
        self._is_stopping = False

    def wake(self, keys: Iterable[RunKey]) -> None:
        """Something about these runs has changed."""
        for key in keys:
            self._queue.wake(key)
        self._woken.set()

    def stop(self) -> None:
        """Take nothing more; `work` returns after the look it is in."""
        self._is_stopping = True
        self._woken.set()

    async def work(self) -> None:
        """One worker: look at one run after another until told to stop."""
        while not self._is_stopping and self._may_act():
            key = self._queue.take(self._clock())
            if key is None:
                await self._wait()
                continue
            with self._metrics.reconcile_seconds.time():
                outcome = await self._reconciler.reconcile(key)
            match outcome:
                case Done():
                    next_at = outcome.next_at
                    delay = None if next_at is None else (next_at - self._now()).total_seconds()
                    self._queue.done(key, None if delay is None else self._clock() + max(0.0, delay))
                    if outcome.has_acted:
                        self._queue.wake(key)
                    self._metrics.reconciles.labels("acted" if outcome.has_acted else "in step").inc()
                case Failed():
                    now, asked = self._clock(), outcome.retry_after_seconds
                    self._queue.failed(key, now, None if asked is None else now + asked)
                    self._metrics.reconciles.labels("failed").inc()
            moved = self._reconciler.moved()
            if moved:
                self.wake(moved)

    async def _wait(self) -> None:
        self._woken.clear()
        next_at = self._queue.next_at()
        seconds = _IDLE_SECONDS_MAX if next_at is None else max(0.0, next_at - self._clock())
        try:
            async with asyncio.timeout(min(seconds, _IDLE_SECONDS_MAX)):
                await self._woken.wait()
        except TimeoutError:
            pass
