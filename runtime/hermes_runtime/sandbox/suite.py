"""Tests in a sandbox: node ids in, a status for each, a log and the coverage out.

`TestSuite` keeps one warm session, runs attempts on it, and opens a new one, once, where it has died.
Equal runs give equal reports: what differs by chance (durations, addresses, temporary paths) is taken
out of the log. What a status means for a repair is decided by the callers.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from hermes_runtime.errors import PeerLost
from hermes_runtime.sandbox import Attempt, Bench, Ending, Limits, Outcome, Sandbox, Session


class Status(StrEnum):
    """What became of one test."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    """Its file, its fixtures or its teardown broke, or it ended the whole attempt."""
    SKIPPED = "skipped"
    XFAILED = "xfailed"
    MISSING = "missing"
    """No such test was collected."""
    NOT_RUN = "not run"
    """The attempt ended before its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestReport:
    """What came of one run."""

    __test__ = False

    results: dict[str, Status]
    """Every requested test; where a file, a class or all were requested, every test in it."""
    log: str
    """What pytest printed, without what differs by chance."""
    coverage: Mapping[str, Mapping[int, frozenset[str]]] = field(default_factory=dict)
    """File -> line -> the tests that ran it."""
    ending: Ending
    seconds: float
    setup_seconds: float


class TestSuite:
    """Tests over one tree."""

    __test__ = False

    def __init__(self, sandbox: Sandbox, bench: Bench) -> None:
        self._sandbox = sandbox
        self._bench = bench
        self._session: Session | None = None
        self._opening = asyncio.Lock()

    async def run(
        self,
        tests: Sequence[str],
        *,
        files: Mapping[str, bytes] | None = None,
        coverage: Collection[str] = (),
        stop_at_first: bool = False,
        deselect: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> TestReport:
        """Run `tests` (none: all that pytest finds) on the tree with `files` in place of its own."""
        attempt = Attempt(
            request={
                "tests": list(tests),
                "deselect": list(deselect),
                "coverage": sorted(coverage),
                "stop_at_first": stop_at_first,
            },
            files=files or {},
            limits=limits or Limits(),
        )
        return report_of(tests, await self._run(attempt))

    async def _run(self, attempt: Attempt) -> Outcome:
        if self._session is not None:
            session = self._session
            try:
                return await session.run(attempt)
            except PeerLost:
                await session.close()
                if self._session is session:
                    self._session = None
        return await (await self._open()).run(attempt)

    async def _open(self) -> Session:
        async with self._opening:  # of two runs that lost their session, one opens the next
            if self._session is None:
                self._session = await self._sandbox.open(self._bench)
            return self._session

    async def close(self) -> None:
        """Kill what is left. Idempotent; the next run opens a new session."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


async def open_suite(sandbox: Sandbox, bench: Bench) -> TestSuite:
    """A suite with its session open. Unsupported, BadInput."""
    suite = TestSuite(sandbox, bench)
    await suite._open()
    return suite


def report_of(tests: Sequence[str], outcome: Outcome) -> TestReport:
    """What an attempt's lines say about the requested tests."""
    results: dict[str, Status] = {}
    collected: list[str] = []
    broken: list[str] = []
    coverage: dict[str, dict[int, frozenset[str]]] = {}
    done: int | None = None
    for line in _lines(outcome.report or b""):
        match line:
            case {"collected": [*ids]}:
                collected = [str(one) for one in ids]
            case {"broken": str(name)}:
                broken.append(name)
            case {"test": str(name), "status": str(status)}:
                results[name] = Status(status) if status in _TOLD else Status.ERROR
            case {"done": int(code), **rest}:
                done = code
                coverage = _coverage(rest)
            case _:
                pass
    running = next((one for one in collected if one not in results), None)
    out: dict[str, Status] = {}
    for test in tests or collected:
        for one in _named(test, collected):
            out[one] = results.get(one, Status.NOT_RUN)
        if test not in out and not _named(test, collected):
            out[test] = _uncollected(test, broken, done)
    if done is None and running in out:  # it took the whole attempt with it
        out[running] = Status.ERROR
    return TestReport(
        results=out,
        log=steady(outcome.output.decode(errors="replace")),
        coverage=coverage,
        ending=outcome.ending,
        seconds=outcome.seconds,
        setup_seconds=outcome.setup_seconds,
    )


_TOLD: Final = frozenset({"passed", "failed", "error", "skipped", "xfailed"})
_USAGE_ERRORS: Final = (3, 4)
"""pytest: internal error, usage error (a conftest that cannot be imported is one)."""


def _named(test: str, collected: Sequence[str]) -> list[str]:
    return [one for one in collected if one == test or one.startswith((test + "::", test + "["))]


def _uncollected(test: str, broken: Sequence[str], done: int | None) -> Status:
    if done is None or done in _USAGE_ERRORS:
        return Status.ERROR
    inside = any(not name or test == name or test.startswith(name + "::") for name in broken)
    return Status.ERROR if inside else Status.MISSING


def _lines(report: bytes) -> Iterator[object]:
    for line in report.splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # cut off, or written by the tested code
            continue


def _coverage(told: Mapping[object, object]) -> dict[str, dict[int, frozenset[str]]]:
    match told:
        case {"coverage": dict(files), "covered": [*ids]}:
            pass
        case _:
            return {}
    out: dict[str, dict[int, frozenset[str]]] = {}
    for file, lines in files.items():
        if isinstance(lines, dict):
            out[str(file)] = {int(line): frozenset(_picked(ids, which)) for line, which in lines.items()}
    return out


def _picked(ids: Sequence[object], which: Iterable[object]) -> Iterator[str]:
    for index in which:
        if isinstance(index, int) and 0 <= index < len(ids):
            yield str(ids[index])


_CHANCE: Final = (
    (re.compile(r"\bin \d+(?:\.\d+)?s(?: \(\d+:\d\d:\d\d\))?"), "in 0.00s"),
    (re.compile(r"\b0x[0-9a-fA-F]{6,16}\b"), "0x0"),
    (re.compile(r"/\S*/hermes-sandbox-\w+/attempts/\d+/tree"), "/testbed"),
    (re.compile(r"/\S*/hermes-sandbox-\w+/attempts/\d+/tmp"), "/tmp"),
)


def steady(log: str) -> str:
    """`log` without durations, addresses and temporary paths."""
    for pattern, instead in _CHANCE:
        log = pattern.sub(instead, log)
    return log
