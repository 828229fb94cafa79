"""What is seen while a run goes on: a live view on a terminal, lines elsewhere, JSON for machines.

Everything goes to stderr (or the stream given); stdout is for results. The driver calls a `Progress`
and knows none of the kinds; `progress_for` chooses one. Nothing here may fail a run: a closed stream ends
the showing and not the run.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self, TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from hermes_runtime.evaluate.results import Result
from hermes_runtime.evaluate.shown import duration, shown

Clock = Callable[[], float]


class Progress(Protocol):
    """What the driver tells. Calls return at once and never raise."""

    def run_started(self, total: int, arms: Sequence[str], *, done: Sequence[Result] = ()) -> None:
        """`total` results are wanted, over all arms; `done` are there from an earlier start."""
        ...

    def phase(self, instance: str, arm: str, phase: str, round: int = 0) -> None:
        """What is being done: "baseline", "localize", "propose", "test", "grade"."""
        ...

    def finished(self, result: Result) -> None:
        """A result is in."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line: a restart, a retry."""
        ...

    def run_finished(self, path: Path) -> None:
        """All is done; `path` is the report or the run's folder."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Tally:
    """Counts and times that every view shows."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.total = 0
        self.done = 0
        self.resumed = 0
        self.solved: dict[str, int] = {}
        self.tried: dict[str, int] = {}
        self._started = clock()

    def start(self, total: int, arms: Sequence[str], done: Sequence[Result]) -> None:
        """Begin; results of an earlier start count as done, but not for the time left."""
        self.total, self.done, self.resumed = total, 0, len(done)
        self.solved, self.tried = dict.fromkeys(arms, 0), dict.fromkeys(arms, 0)
        self._started = self._clock()
        for result in done:
            self.add(result)

    def add(self, result: Result) -> None:
        """Count a result."""
        self.done += 1
        self.tried[result.arm] = self.tried.get(result.arm, 0) + 1
        self.solved[result.arm] = self.solved.get(result.arm, 0) + result.grade.resolved

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since this start."""
        return max(0.0, self._clock() - self._started)

    @property
    def left_seconds(self) -> float | None:
        """Expected seconds to the end, at the mean pace of this start; None before its first result."""
        paced = self.done - self.resumed
        if paced < 1:
            return None
        return self.elapsed_seconds / paced * max(0, self.total - self.done)

    @property
    def counts(self) -> str:
        """A 3/5, C 4/5."""
        return ", ".join(f"{arm} {self.solved[arm]}/{tried}" for arm, tried in self.tried.items())


def outcome(result: Result) -> str:
    """One word or two."""
    if result.grade.resolved:
        return "solved"
    if result.plausible:
        return "plausible"
    return "wrong" if result.patch else "no patch"


class _Quiet:
    """Shows nothing; the base of the other views."""

    def __init__(self, clock: Clock) -> None:
        self._tally = Tally(clock)

    def run_started(self, total: int, arms: Sequence[str], *, done: Sequence[Result] = ()) -> None:
        self._tally.start(total, arms, done)

    def phase(self, instance: str, arm: str, phase: str, round: int = 0) -> None:
        pass

    def finished(self, result: Result) -> None:
        self._tally.add(result)

    def note(self, text: str) -> None:
        pass

    def run_finished(self, path: Path) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class NoProgress(_Quiet):
    """Shows nothing."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)


class _Watched(io.TextIOBase):
    """A stream that its reader may leave: then it takes what is written and drops it.

    Without it Rich answers a broken pipe by turning stdout away and leaving the process.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream
        self._is_terminal = stream.isatty()

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
            except (OSError, ValueError):  # a closed pipe, a lost terminal, a closed file
                self._stream = None
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):  # as in write
                self._stream = None

    def isatty(self) -> bool:
        return self._is_terminal


class _Written(_Quiet):
    """Writes lines."""

    def __init__(self, stream: TextIO, clock: Clock) -> None:
        super().__init__(clock)
        self._stream = _Watched(stream)

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class LineProgress(_Written):
    """One line for each event: for logs and for terminals that cannot move the cursor."""

    def __init__(self, stream: TextIO, *, clock: Clock = time.monotonic) -> None:
        super().__init__(stream, clock)

    def run_started(self, total: int, arms: Sequence[str], *, done: Sequence[Result] = ()) -> None:
        super().run_started(total, arms, done=done)
        resumed = f", {len(done)} done before" if done else ""
        self._write(f"run started: {total} results over {', '.join(map(shown, arms))}{resumed}")

    def phase(self, instance: str, arm: str, phase: str, round: int = 0) -> None:
        self._write(f"{shown(instance)} {shown(arm)}: {shown(phase)}" + (f", round {round}" if round else ""))

    def finished(self, result: Result) -> None:
        super().finished(result)
        tally = self._tally
        left = tally.left_seconds
        ahead = f", {duration(left)} left" if left and tally.done < tally.total else ""
        self._write(
            f"[{tally.done}/{tally.total}] {shown(result.instance_id)} {shown(result.arm)}: "
            f"{outcome(result)} in {duration(result.times.total)}, {result.rounds} rounds, "
            f"{result.test_runs} test runs (solved {tally.counts}{ahead})"
        )

    def note(self, text: str) -> None:
        self._write(" ".join(shown(text).split()))

    def run_finished(self, path: Path) -> None:
        tally = self._tally
        self._write(
            f"run finished in {duration(tally.elapsed_seconds)}: solved {tally.counts}; "
            f"see {shown(str(path))}"
        )


class JsonProgress(_Written):
    """One JSON object a line, every event, with its time: for machines."""

    def __init__(
        self,
        stream: TextIO,
        *,
        clock: Clock = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(stream, clock)
        self._now = now

    def _event(self, event: str, fields: Mapping[str, object]) -> None:
        at = self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._write(json.dumps({"event": event, "at": at, **fields}))

    def run_started(self, total: int, arms: Sequence[str], *, done: Sequence[Result] = ()) -> None:
        super().run_started(total, arms, done=done)
        self._event("run_started", {"total": total, "arms": list(arms), "done": len(done)})

    def phase(self, instance: str, arm: str, phase: str, round: int = 0) -> None:
        self._event("phase", {"instance": instance, "arm": arm, "phase": phase, "round": round})

    def finished(self, result: Result) -> None:
        super().finished(result)
        tally = self._tally
        left = tally.left_seconds
        self._event(
            "finished",
            {
                "instance": result.instance_id,
                "arm": result.arm,
                "outcome": outcome(result),
                "resolved": result.grade.resolved,
                "seconds": round(result.times.total, 3),
                "rounds": result.rounds,
                "test_runs": result.test_runs,
                "done": tally.done,
                "total": tally.total,
                "left_seconds": None if left is None else round(left, 1),
            },
        )

    def note(self, text: str) -> None:
        self._event("note", {"text": text})

    def run_finished(self, path: Path) -> None:
        self._event(
            "run_finished",
            {
                "path": str(path),
                "seconds": round(self._tally.elapsed_seconds, 3),
                "solved": self._tally.solved,
            },
        )


class LiveProgress(_Quiet):
    """A view that redraws itself: arms with what they solved, what goes on, time gone and left."""

    LATEST = 4
    """Latest results and notes shown."""

    def __init__(
        self,
        stream: TextIO,
        *,
        environment: Mapping[str, str],
        clock: Clock = time.monotonic,
        width: int | None = None,
    ) -> None:
        super().__init__(clock)
        self._console = Console(
            file=cast(IO[str], _Watched(stream)),
            no_color="NO_COLOR" in environment,
            highlight=False,
            width=width,
            _environ=dict(environment),
        )
        self._clock_now = clock
        self._per_arm = 0
        self._latest: deque[Text] = deque(maxlen=self.LATEST)
        self._doing = Text("starting")
        self._doing_since = clock()
        self._spinner = Spinner("dots")
        self._live = Live(
            console=self._console,
            get_renderable=self.view,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._live.stop()
            if kind is not None and self._tally.total:
                tally = self._tally
                self._console.print(
                    Text(
                        f"stopped after {tally.done} of {tally.total}: solved {tally.counts}", style="yellow"
                    )
                )
        except (OSError, ValueError):  # the terminal went away
            pass

    def run_started(self, total: int, arms: Sequence[str], *, done: Sequence[Result] = ()) -> None:
        super().run_started(total, arms, done=done)
        self._per_arm = -(-total // max(1, len(arms)))
        if done:
            self.note(f"{len(done)} results were there already")

    def phase(self, instance: str, arm: str, phase: str, round: int = 0) -> None:
        where = f", round {round}" if round else ""
        self._doing = Text.assemble((shown(instance), "bold"), f" under {shown(arm)}: {shown(phase)}{where}")
        self._doing_since = self._clock_now()

    def finished(self, result: Result) -> None:
        super().finished(result)
        word = outcome(result)
        style = {"solved": "green", "plausible": "yellow"}.get(word, "red")
        self._latest.append(
            Text.assemble(
                (f"{word:<10}", style),
                f"{shown(result.instance_id)} {shown(result.arm)}  ",
                (duration(result.times.total), "dim"),
            )
        )

    def note(self, text: str) -> None:
        self._latest.append(Text(" ".join(shown(text).split()), style="yellow"))

    def run_finished(self, path: Path) -> None:
        tally = self._tally
        self._live.stop()
        self._console.print(
            Text.assemble(
                ("done", "bold green"),
                f" in {duration(tally.elapsed_seconds)}: solved {tally.counts}\n",
                shown(str(path)),
            ),
            soft_wrap=True,
        )

    def view(self) -> Group:
        """What is on the screen now."""
        tally = self._tally
        arms = Table.grid(padding=(0, 2))
        # copies: the view is drawn by Rich's thread while the driver goes on counting
        for arm, tried in list(tally.tried.items()):
            arms.add_row(
                Text(shown(arm), style="bold"),
                ProgressBar(total=max(1, self._per_arm), completed=tried, width=28),
                Text(f"{tried}/{self._per_arm}", style="dim"),
                Text(f"{tally.solved[arm]} solved", style="green" if tally.solved[arm] else "dim"),
            )
        left = tally.left_seconds
        spent = f"{tally.done} of {tally.total} · {duration(tally.elapsed_seconds)} gone"
        since = duration(max(0.0, self._clock_now() - self._doing_since))
        self._spinner.update(text=Text.assemble(self._doing, (f"  {since}", "dim")))
        return Group(
            arms,
            Text(spent + (f" · about {duration(left)} left" if left is not None else ""), style="dim"),
            self._spinner,
            *tuple(self._latest),
        )


def progress_for(
    stream: TextIO,
    *,
    as_json: bool = False,
    environment: Mapping[str, str] | None = None,
    clock: Clock = time.monotonic,
) -> Progress:
    """The view for `stream` (stderr): live on a terminal that can move its cursor, else lines.

    `environment` is where TERM, CI and NO_COLOR are looked up; by default this process's.
    """
    if as_json:
        return JsonProgress(stream, clock=clock)
    known = os.environ if environment is None else environment
    if stream.isatty() and known.get("TERM", "") not in ("", "dumb") and not known.get("CI"):
        return LiveProgress(stream, environment=known, clock=clock)
    return LineProgress(stream, clock=clock)
