"""A run's progress that also goes into the termination message, after every result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from hermes_runtime.evaluate.progress import Progress, Tally
from hermes_runtime.evaluate.results import Result
from hermes_runtime.evaluate.termination import Termination


class Reporting:
    """A `Progress` that counts in `told`, has `tell` write it, and then hands on to another."""

    def __init__(self, shown: Progress, told: Termination, tell: Callable[[], None]) -> None:
        self._shown = shown
        self._told = told
        self._tell = tell
        self._tally = Tally(time.monotonic)

    def run_started(self, total: int, arms: Sequence[str], *, done: Sequence[Result] = ()) -> None:
        self._tally.start(total, arms, done)
        self._count()
        self._shown.run_started(total, arms, done=done)

    def phase(self, instance: str, arm: str, phase: str, round: int = 0) -> None:
        self._shown.phase(instance, arm, phase, round)

    def finished(self, result: Result) -> None:
        self._tally.add(result)
        self._count()
        self._shown.finished(result)

    def note(self, text: str) -> None:
        self._shown.note(text)

    def run_finished(self, path: Path) -> None:
        self._shown.run_finished(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def _count(self) -> None:
        tally, told = self._tally, self._told
        told.done, told.total = tally.done, tally.total
        told.arms = {arm: (tried, tally.solved[arm]) for arm, tried in tally.tried.items()}
        self._tell()
