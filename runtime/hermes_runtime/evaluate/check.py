"""Proves an instance: its unpatched tree fails FAIL_TO_PASS and passes PASS_TO_PASS, its gold resolves.

Called by `hermes dataset check`, for any instance, ours or a user's. What does not hold is said test
by test; an instance that cannot be run at all is a problem like any other, not an exception.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hermes_runtime.errors import HermesError
from hermes_runtime.evaluate.checkout import checkout
from hermes_runtime.evaluate.grading import code_part, grade, is_kept, is_passed, run_patched
from hermes_runtime.evaluate.instances import Instance
from hermes_runtime.sandbox import Ending, Sandbox

NAMED_MAX = 5
"""Tests that are named for each thing that does not hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was found of one instance."""

    instance_id: str
    problems: tuple[str, ...]
    """Empty: the instance holds."""
    notes: tuple[str, ...] = ()
    """What could not be proved, and why; no fault."""
    seconds: float = 0.0
    """One run of all its tests, on the unpatched tree."""


async def check(instance: Instance, sandbox: Sandbox) -> Checked:
    """Run the instance's tests on its unpatched tree and with its gold patch."""
    problems: list[str] = []
    notes: list[str] = []
    seconds = 0.0
    try:
        with tempfile.TemporaryDirectory(prefix="hermes-check-") as scratch:
            tree = await asyncio.to_thread(checkout, instance, Path(scratch, "tree"))
            problems += [
                f"editable_files names {path}, which is not in the tree"
                for path in instance.editable_files
                if not (tree / path).is_file()
            ]
            report = await run_patched(instance, tree, "", sandbox)
            seconds = report.seconds
            if report.ending is not Ending.EXITED:
                problems.append(
                    f"the tests of the unpatched tree {report.ending.value} after {seconds:.1f} s; "
                    "raise test_timeout_seconds or choose fewer tests"
                )
            passing = [test for test in instance.FAIL_TO_PASS if is_passed(report.results.get(test))]
            failing = [test for test in instance.PASS_TO_PASS if not is_kept(report.results.get(test))]
            problems += _tests("FAIL_TO_PASS, but passed by the unpatched tree", passing)
            problems += _tests("PASS_TO_PASS, but not passed by the unpatched tree", failing)
            if instance.patch:
                problems += await _gold(instance, tree, sandbox)
            else:
                notes.append("no gold patch: that the instance can be resolved is not proved")
    except HermesError as error:
        problems.append(str(error))
    return Checked(
        instance_id=instance.instance_id, problems=tuple(problems), notes=tuple(notes), seconds=seconds
    )


async def check_all(instances: Iterable[Instance], sandbox: Sandbox, jobs: int) -> list[Checked]:
    """Check all, `jobs` at a time; in the order given."""
    places = asyncio.Semaphore(jobs)

    async def one(instance: Instance) -> Checked:
        async with places:
            return await check(instance, sandbox)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(instance), name=instance.instance_id) for instance in instances]
    return [task.result() for task in tasks]


async def _gold(instance: Instance, tree: Path, sandbox: Sandbox) -> list[str]:
    if not code_part(instance.patch, instance, tree):
        return ["the gold patch changes nothing but tests, which grading leaves out"]
    graded = await grade(instance, tree, instance.patch, sandbox)
    if not graded.applied:
        return [f"the gold patch does not fit the unpatched tree: {graded.log}"]
    return [
        *_tests(
            "FAIL_TO_PASS, but not passed with the gold patch",
            [t for t, ok in graded.fail_to_pass.items() if not ok],
        ),
        *_tests(
            "PASS_TO_PASS, but not passed with the gold patch",
            [t for t, ok in graded.pass_to_pass.items() if not ok],
        ),
    ]


def _tests(what: str, tests: list[str]) -> list[str]:
    if not tests:
        return []
    more = f" and {len(tests) - NAMED_MAX} more" if len(tests) > NAMED_MAX else ""
    return [f"in {what}: {', '.join(tests[:NAMED_MAX])}{more}"]
