"""The tester: runs tests in a sandbox. Baseline under coverage, then candidates, cheapest check first.

A candidate's failing tests run first; only if all of them pass does the rest. The first candidate that
passes everything ends the round. The warm interpreter of the last task is kept between deliveries.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hermes.act.v1 import act_pb2 as pb
from hermes_runtime.agents.conversation import Assignment, Say, sources_of
from hermes_runtime.agents.patch import apply_patch, paths_of
from hermes_runtime.errors import BadInput
from hermes_runtime.sandbox import Bench, Ending, Limits, Sandbox
from hermes_runtime.sandbox.suite import Status, TestReport, TestSuite, open_suite

PASSING = frozenset({Status.PASSED, Status.XFAILED})
KEEPING = PASSING | {Status.SKIPPED}

PATIENCE_FACTOR, PATIENCE_SECONDS_MIN = 3.0, 2
"""A candidate whose tests take this many times the processor's time that all tests took under coverage
loops: what it has used counts, so that a busy machine gives the same verdict as an idle one."""
WAIT_FACTOR = 5.0
"""How many times as long it may take by the clock; only a candidate that sleeps, or starves, does."""

LOG_BYTES_MAX = 64 * 1024
"""Longest log that is told; the middle of a longer one is cut."""


class Tester:
    """Answers `test_baseline` with Log and Spectrum, `test_patches` with Outcomes and a Log."""

    role = pb.ROLE_TESTER

    def __init__(self, sandbox: Sandbox, *, at_once: int = 1) -> None:
        """`at_once`: candidates that are tried beside each other; no outcome depends on it."""
        self._sandbox = sandbox
        self._at_once = at_once
        self._suite: TestSuite | None = None
        self._suite_of: tuple[str, str] | None = None
        self._baseline_seconds: float | None = None

    async def handle(self, assignment: Assignment) -> Sequence[Say]:
        task = assignment.inbox.task()
        suite = await self._open(task)
        match assignment.inbox.asked.task_type:
            case "test_baseline":
                return await self._baseline(suite, task, assignment)
            case "candidates":
                return await self._candidates(suite, task, assignment)
            case other:
                raise BadInput(f"a tester cannot do {other!r}; it does test_baseline and candidates")

    async def close(self) -> None:
        """End the warm interpreter."""
        if self._suite is not None:
            await self._suite.close()
            self._suite = self._suite_of = self._baseline_seconds = None

    async def _open(self, task: pb.Task) -> TestSuite:
        key = (task.tree, task.python)
        if self._suite is None or self._suite_of != key:
            await self.close()
            bench = Bench(
                tree=Path(task.tree),
                python=Path(task.python),
                import_roots=tuple(task.import_roots) or (".",),
            )
            self._suite, self._suite_of = await open_suite(self._sandbox, bench), key
        return self._suite

    async def _baseline(self, suite: TestSuite, task: pb.Task, assignment: Assignment) -> list[Say]:
        tests = [*task.failing_tests, *task.passing_tests]
        started = time.perf_counter()
        report = await suite.run(tests, coverage=tuple(task.editable_files), limits=limits_of(task, None))
        self._baseline_seconds = time.perf_counter() - started
        assignment.expense.test_seconds += self._baseline_seconds
        assignment.expense.test_runs += 1
        log = _log(report, task)
        return [
            Say(
                kind=pb.ACT_KIND_INFORM,
                content=pb.Content(log=pb.Log(text=log)),
                header=_header(task, "log", assignment, test_name=next(iter(task.failing_tests), "")),
            ),
            Say(
                kind=pb.ACT_KIND_INFORM,
                content=pb.Content(spectrum=spectrum_of(report)),
                header=_header(task, "spectrum", assignment),
            ),
        ]

    async def _candidates(self, suite: TestSuite, task: pb.Task, assignment: Assignment) -> list[Say]:
        candidates = assignment.inbox.candidates()
        outcomes: list[pb.Outcome] = []
        failure_log = ""
        passed = False
        started = time.perf_counter()
        for start in range(0, len(candidates), self._at_once):
            batch = candidates[start : start + self._at_once]
            tried = [] if passed else await self._try_all(suite, task, batch)
            for candidate, (outcome, log) in zip(batch, tried, strict=False):
                if passed:  # a worse candidate that ran beside the one that passed counts as not run
                    outcome, log = _skipped(candidate), ""
                outcomes.append(outcome)
                passed = passed or outcome.verdict == pb.VERDICT_PASSED
                failure_log = failure_log or log
            outcomes += [_skipped(candidate) for candidate in batch[len(tried) :]]
        assignment.expense.test_seconds += time.perf_counter() - started
        assignment.expense.test_runs += sum(o.verdict != pb.VERDICT_SKIPPED for o in outcomes)
        said = [
            Say(
                kind=pb.ACT_KIND_CONFIRM if passed else pb.ACT_KIND_INFORM,
                content=pb.Content(outcomes=pb.Outcomes(outcomes=outcomes)),
                header=_header(task, "outcomes", assignment),
            )
        ]
        if failure_log and not passed:
            first = next((o.failed_test for o in outcomes if o.failed_test), "")
            log_content = pb.Content(log=pb.Log(text=failure_log))
            header = _header(task, "log", assignment, test_name=first)
            said.append(Say(kind=pb.ACT_KIND_INFORM, content=log_content, header=header))
        return said

    async def _try_all(
        self, suite: TestSuite, task: pb.Task, batch: Sequence[pb.Candidate]
    ) -> list[tuple[pb.Outcome, str]]:
        """What the tests say of each, all tried at once, each on a tree of its own."""
        async with asyncio.TaskGroup() as team:
            tasks = [
                team.create_task(self._try(suite, task, candidate), name=candidate.id) for candidate in batch
            ]
        return [task.result() for task in tasks]

    async def _try(self, suite: TestSuite, task: pb.Task, candidate: pb.Candidate) -> tuple[pb.Outcome, str]:
        """What the tests say of one candidate, and the log if one fails."""
        outcome = pb.Outcome(candidate_id=candidate.id, patch=candidate.patch)
        try:
            files = patched_files(task, candidate.patch)
        except BadInput as error:
            outcome.verdict = pb.VERDICT_BROKEN
            return outcome, str(error)
        failing = list(task.failing_tests)
        report = await suite.run(
            failing, files=files, stop_at_first=True, limits=limits_of(task, self._baseline_seconds)
        )
        outcome.fixed_count = sum(report.results.get(test) in PASSING for test in failing)
        if verdict := _verdict(report, failing, PASSING, pb.VERDICT_FAILED):
            outcome.verdict, outcome.failed_test = verdict
            return outcome, _log(report, task)
        passing = list(task.passing_tests)
        if passing:
            report = await suite.run(
                passing, files=files, stop_at_first=True, limits=limits_of(task, self._baseline_seconds)
            )
            if verdict := _verdict(report, passing, KEEPING, pb.VERDICT_REGRESSED):
                outcome.verdict, outcome.failed_test = verdict
                return outcome, _log(report, task)
        outcome.verdict = pb.VERDICT_PASSED
        return outcome, ""


def _skipped(candidate: pb.Candidate) -> pb.Outcome:
    return pb.Outcome(candidate_id=candidate.id, patch=candidate.patch, verdict=pb.VERDICT_SKIPPED)


def patched_files(task: pb.Task, patch: str) -> Mapping[str, bytes]:
    """Contents of the files that a patch changes. BadInput if it may not touch one or does not apply."""
    paths = paths_of(patch)
    for path in paths:
        if task.editable_files and path not in task.editable_files:
            raise BadInput(f"the patch touches {path}, which may not be edited")
    after = apply_patch(sources_of(task, paths), patch)
    return {path: text.encode() for path, text in after.items()}


def spectrum_of(report: TestReport) -> pb.Spectrum:
    """Counts of failing and passing tests for each line that any ran."""
    failing = {test for test, status in report.results.items() if status in (Status.FAILED, Status.ERROR)}
    passing = {test for test, status in report.results.items() if status in PASSING}
    spectrum = pb.Spectrum(failing_count=len(failing), passing_count=len(passing))
    for path in sorted(report.coverage):
        file = pb.FileSpectrum(file_path=path)
        before = 0
        for line in sorted(report.coverage[path]):
            tests = report.coverage[path][line]
            if ran_failing := len(tests & failing):
                file.line_steps.append(line - before)
                before = line
                file.failing.append(ran_failing)
                file.passing.append(len(tests & passing))
        if file.line_steps:
            spectrum.files.append(file)
    return spectrum


def _verdict(
    report: TestReport, tests: Sequence[str], good: frozenset[Status], bad: pb.Verdict.ValueType
) -> tuple[pb.Verdict.ValueType, str] | None:
    """None if every test is as it should be; else what to say, and the first test that is not."""
    if report.ending == Ending.TIMED_OUT:
        return pb.VERDICT_TIMED_OUT, ""
    first = next((test for test in tests if report.results.get(test) not in good), None)
    if first is None:
        return None
    known = any(status != Status.MISSING for status in report.results.values())
    return (bad if known else pb.VERDICT_BROKEN), first


def limits_of(task: pb.Task, baseline_seconds: float | None) -> Limits:
    """The instance's limit; for a candidate less, where it is known how long all its tests took before."""
    seconds = task.test_timeout_seconds or 60.0
    if baseline_seconds is None:
        return Limits(wall_seconds=seconds, cpu_seconds=math.ceil(seconds))
    patience = max(PATIENCE_SECONDS_MIN, math.ceil(PATIENCE_FACTOR * baseline_seconds))
    return Limits(
        wall_seconds=min(seconds, WAIT_FACTOR * patience), cpu_seconds=min(math.ceil(seconds), patience)
    )


def _log(report: TestReport, task: pb.Task) -> str:
    text = report.log.replace(task.tree.rstrip("/") + "/", "")
    if len(text) <= LOG_BYTES_MAX:
        return text
    half = LOG_BYTES_MAX // 2
    return f"{text[:half]}\n[... {len(text) - LOG_BYTES_MAX} characters cut ...]\n{text[-half:]}"


def _header(task: pb.Task, task_type: str, assignment: Assignment, *, test_name: str = "") -> pb.Header:
    return pb.Header(
        repo=task.repo,
        task_type=task_type,
        tool="pytest",
        test_name=test_name,
        round=assignment.inbox.asked.round,
    )
