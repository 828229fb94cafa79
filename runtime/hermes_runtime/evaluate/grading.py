"""Resolved or not, apart from the agents: SWE-bench's rules, in a new sandbox, on a fresh tree.

What a patch does to tests and to what steers them (`is_protected`) is left out before grading: the
tests are those of the unpatched tree plus `test_patch`. FAIL_TO_PASS needs passed or xfailed;
PASS_TO_PASS also takes skipped; a test that is absent has failed, and so has a run cut off by a limit.

Not stopped: code under test shares a process with pytest, so a patch to the package's own code that
reaches into pytest while it is imported, or that recognises the tests, can still say "passed".
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from hermes_runtime.agents.patch import FilePatch, parse, render
from hermes_runtime.errors import BadInput
from hermes_runtime.evaluate.checkout import copy_tree, patch_tree
from hermes_runtime.evaluate.instances import Instance
from hermes_runtime.evaluate.results import Grade
from hermes_runtime.sandbox import Bench, Ending, Limits, Sandbox
from hermes_runtime.sandbox.suite import Status, TestReport, open_suite

LOG_BYTES_MAX = 64 * 1024

_STEERING = frozenset(
    {"conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg"}
    | {"pyproject.toml", ".coveragerc", "sitecustomize.py", "usercustomize.py"}
)
_TEST_FOLDERS = frozenset({"tests", "test"})


async def grade(instance: Instance, tree: Path, patch: str, sandbox: Sandbox) -> Grade:
    """Grade `patch` against `tree`, the unpatched tree, which is only read.

    A patch that is empty or does not fit is not applied, and nothing is resolved; that is no error.
    """
    try:
        report = await run_patched(instance, tree, patch, sandbox) if patch.strip() else None
    except PatchDoesNotFit as error:
        report, log = None, str(error)
    else:
        log = cut(report.log) if report is not None else "the patch is empty"
    results = report.results if report is not None else {}
    fail_to_pass = {test: is_passed(results.get(test)) for test in instance.FAIL_TO_PASS}
    pass_to_pass = {test: is_kept(results.get(test)) for test in instance.PASS_TO_PASS}
    ended = report is not None and report.ending is Ending.EXITED
    return Grade(
        resolved=ended and all(fail_to_pass.values()) and all(pass_to_pass.values()),
        applied=report is not None,
        fail_to_pass=fail_to_pass,
        pass_to_pass=pass_to_pass,
        log=log,
    )


async def run_patched(instance: Instance, tree: Path, patch: str, sandbox: Sandbox) -> TestReport:
    """All tests of an instance on a copy of `tree` with the code of `patch` and the graders' tests."""
    with tempfile.TemporaryDirectory(prefix="hermes-grading-") as scratch:
        fresh = Path(scratch, "tree")
        await asyncio.to_thread(_lay_out, instance, tree, patch, fresh)
        suite = await open_suite(sandbox, bench_of(instance, fresh))
        try:
            wanted = tuple(dict.fromkeys((*instance.FAIL_TO_PASS, *instance.PASS_TO_PASS)))
            return await suite.run(wanted, limits=Limits(wall_seconds=instance.test_timeout_seconds))
        finally:
            await suite.close()


class PatchDoesNotFit(BadInput):
    """The submitted patch is no patch, or does not fit the tree."""


def bench_of(instance: Instance, tree: Path) -> Bench:
    """What a session for this instance is opened on."""
    python = Path(instance.python or sys.executable)
    return Bench(tree=tree, python=python, import_roots=instance.import_roots)


def _lay_out(instance: Instance, tree: Path, patch: str, fresh: Path) -> None:
    copy_tree(tree, fresh)
    if patch.strip():
        try:
            patch_tree(fresh, code_part(patch, instance, tree))
        except BadInput as error:
            raise PatchDoesNotFit(str(error)) from error
    if instance.test_patch:
        patch_tree(fresh, instance.test_patch)


def code_part(patch: str, instance: Instance, tree: Path) -> str:
    """`patch` without what it does to protected files. BadInput if it is no patch."""
    tests = {test.partition("::")[0] for test in (*instance.FAIL_TO_PASS, *instance.PASS_TO_PASS)}
    tests |= {file.path for file in parse(instance.test_patch)}
    installed = _installed(instance)
    kept: list[FilePatch] = []
    for file in parse(patch):
        if file.path in tests or _shadows(file, instance, tree, installed):
            continue
        if file.path in instance.editable_files or not is_protected(file.path):
            kept.append(file)
    return render(kept)


def is_protected(path: str) -> bool:
    """Whether a file holds tests, or steers them or the interpreter."""
    pure = PurePosixPath(path)
    return (
        pure.name in _STEERING
        or pure.suffix in (".pth", ".so", ".pyd", ".pyc")
        or pure.name.startswith("test_")
        or pure.stem.endswith("_test")
        or any(part in _TEST_FOLDERS for part in pure.parts[:-1])
    )


def is_passed(status: Status | None) -> bool:
    """What a test of FAIL_TO_PASS must be."""
    return status in (Status.PASSED, Status.XFAILED)


def is_kept(status: Status | None) -> bool:
    """What a test of PASS_TO_PASS must be."""
    return is_passed(status) or status == Status.SKIPPED


def cut(log: str) -> str:
    """The log, its middle left out where it is too long."""
    data = log.encode()
    if len(data) <= LOG_BYTES_MAX:
        return log
    half = LOG_BYTES_MAX // 2 - 32
    start, end = data[:half].decode(errors="ignore"), data[-half:].decode(errors="ignore")
    return f"{start}\n[... {len(data) - 2 * half} bytes left out ...]\n{end}"


def _shadows(file: FilePatch, instance: Instance, tree: Path, installed: Collection[str]) -> bool:
    """Whether a file is a new top module that would be imported in place of an installed one."""
    for root in instance.import_roots:
        inner = PurePosixPath(file.path)
        if root not in ("", "."):
            if not inner.is_relative_to(root):
                continue
            inner = inner.relative_to(root)
        top = inner.parts[0].partition(".")[0]
        place = tree / root
        is_there = (place / top).exists() or (place / f"{top}.py").exists()
        if not is_there and (top in sys.stdlib_module_names or top in installed):
            return True
    return False


def _installed(instance: Instance) -> frozenset[str]:
    """Top modules of the instance's environment."""
    python = Path(instance.python or sys.executable)
    folders = (python.parent.parent / "lib").glob("python3*/site-packages")
    return frozenset(entry.name.partition(".")[0] for folder in folders for entry in folder.iterdir())
