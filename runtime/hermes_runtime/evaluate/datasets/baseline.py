"""A package's tests before any mutation: which are sound, and which lines each of them runs.

The suite runs twice under coverage; a test is sound if it passes both times. Others are dropped, with
the reason; a package most of whose tests fail is refused. What was found is kept in the cache under a
digest of the tree, the tests and the interpreter, so that it is found once.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from hermes_runtime.errors import BadInput
from hermes_runtime.evaluate.checkout import LEFT_OUT
from hermes_runtime.evaluate.datasets.packages import Say, Subject
from hermes_runtime.evaluate.grading import is_protected
from hermes_runtime.sandbox import Ending, Limits
from hermes_runtime.sandbox.suite import Status, TestSuite

FORMAT = "1"
"""Changed whenever a baseline or a decision made by older code must not be used."""

SUITE_LIMITS = Limits(wall_seconds=300.0, cpu_seconds=200)
FAILING_SHARE_MAX = 0.2
"""Largest share of a suite that may fail before any mutation."""


class Baseline(BaseModel):
    """What the cache keeps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tests: tuple[str, ...]
    """Sound tests, in the order they run."""
    dropped: dict[str, str]
    """Other tests, and why."""
    lines: dict[str, dict[int, tuple[int, ...]]]
    """For each code file and line: which sound tests run it, by index. Lines run at import: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """A subject's files, relative to its tree, in order."""

    code: tuple[str, ...]
    tests: tuple[str, ...]


def files_of(subject: Subject) -> Files:
    """Code and test files. BadInput if there are none of either."""
    skipped = tuple(skip for skip in subject.skip if "::" not in skip)
    code = [path for path in _python_files(subject.tree, subject.code) if not is_protected(path)]
    tests = [
        path
        for place in subject.tests
        for path in _python_files(subject.tree, place)
        if Path(path).name.startswith("test_") or path.endswith("_test.py") or path == place
    ]
    tests = [path for path in dict.fromkeys(tests) if not path.startswith(skipped)]
    for what, found in (("code", code), ("tests", tests)):
        if not found:
            raise BadInput(f"{subject.name}: no Python files of {what} in {subject.tree}")
    return Files(code=tuple(code), tests=tuple(tests))


def key_of(subject: Subject) -> str:
    """What a baseline depends on, as a digest."""
    digest = hashlib.sha256()
    version = f"{sys.implementation.cache_tag} {sys.version_info[:3]}"
    for word in (FORMAT, version, _environment_of(subject), subject.name, subject.code, *subject.tests):
        digest.update(word.encode() + b"\0")
    for words in (subject.import_roots, subject.skip):
        digest.update("\0".join(words).encode() + b"\0\0")
    for folder, subfolders, names in os.walk(subject.tree):
        subfolders[:] = sorted(set(subfolders) - LEFT_OUT)
        for name in sorted(names):
            file = Path(folder, name)
            if file.is_file() and file.suffix != ".pyc":
                digest.update(file.relative_to(subject.tree).as_posix().encode() + b"\0")
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:32]


def read(place: Path) -> Baseline | None:
    """The baseline kept at `place`; None if there is none that can be used."""
    try:
        return Baseline.model_validate_json(place.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write(baseline: Baseline, place: Path) -> None:
    """Keep it, whole or not at all; a cache that cannot be written keeps nothing."""
    if is_read_only(place.parent):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=place.parent, delete=False) as file:
        json.dump(baseline.model_dump(mode="json"), file, separators=(",", ":"))
    Path(file.name).replace(place)


def is_read_only(folder: Path) -> bool:
    """Whether the folder, or what it would be made in, is there and may not be written: an image's cache."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    return not os.access(there, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


async def measure(subject: Subject, files: Files, suite: TestSuite, say: Say) -> Baseline:
    """Run the suite twice. BadInput if too much of it fails before any mutation."""
    wanted = [
        unit
        for path in files.tests
        for unit in units_of((subject.tree / path).read_text(encoding="utf-8"), path, subject.skip)
    ]
    results: list[Mapping[str, Status]] = []
    coverage: Mapping[str, Mapping[int, frozenset[str]]] = {}
    for _ in range(2):
        report = await suite.run(wanted, coverage=files.code, limits=SUITE_LIMITS)
        if report.ending is not Ending.EXITED or not report.results:
            tail = report.log[-1500:]
            raise BadInput(f"{subject.name}: its tests {report.ending.value} before any mutation:\n{tail}")
        results.append(report.results)
        coverage = report.coverage
    found = judge(subject.name, set(wanted), *results)
    for test, why in sorted(found.dropped.items()):
        say(f"{subject.name}: {test} is not used: {why}")
    place = {test: index for index, test in enumerate(found.tests)}
    lines = {
        path: {
            line: tuple(sorted(place[test] for test in tests if test in place))
            for line, tests in sorted(by_line.items())
        }
        for path, by_line in sorted(coverage.items())
    }
    return Baseline(tests=found.tests, dropped=found.dropped, lines=lines)


def judge(name: str, wanted: set[str], first: Mapping[str, Status], second: Mapping[str, Status]) -> Baseline:
    """Which tests are sound, from two runs. `wanted` may hold classes and families of tests."""
    sound: list[str] = []
    dropped: dict[str, str] = {}
    failing: list[str] = []
    for test in dict.fromkeys((*first, *second)):
        pair = (first.get(test, Status.MISSING), second.get(test, Status.MISSING))
        if pair == (Status.PASSED, Status.PASSED):
            sound.append(test)
        elif test in wanted and set(pair) <= {Status.MISSING}:
            continue  # a class or a family: its tests are there by their own names
        elif pair[0] is not pair[1]:
            dropped[test] = f"flaky: {pair[0].value}, then {pair[1].value}"
        elif pair[0] in (Status.FAILED, Status.ERROR):
            failing.append(test)
            dropped[test] = f"{pair[0].value} before any mutation"
    ran = len(sound) + len(failing)
    if len(failing) > FAILING_SHARE_MAX * ran or not sound:
        examples = ", ".join(failing[:3]) or "none ran at all"
        raise BadInput(
            f"{name}: {len(failing)} of {ran} tests fail before any mutation, for example {examples}; "
            "mutants need tests that pass: mend them, or skip them"
        )
    return Baseline(tests=tuple(sound), dropped=dropped, lines={})


def units_of(source: str, path: str, skip: Sequence[str]) -> Iterator[str]:
    """Node ids of a test file's functions and classes; of its methods where some are skipped."""
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test"):
            name = f"{path}::{node.name}"
            if not name.startswith(tuple(skip)):
                yield name
        elif isinstance(node, ast.ClassDef):
            methods = [
                item.name
                for item in node.body
                if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)) and item.name.startswith("test")
            ]
            name = f"{path}::{node.name}"
            # a mixin is no test by itself: pytest would find none in it
            is_collected = node.name.startswith("Test") or any(
                "TestCase" in ast.dump(base) for base in node.bases
            )
            if not is_collected or name.startswith(tuple(skip)):
                continue
            if any(entry.startswith(f"{name}::") for entry in skip):
                for method in methods:
                    if not f"{name}::{method}".startswith(tuple(skip)):
                        yield f"{name}::{method}"
            else:
                yield name


def _python_files(tree: Path, place: str) -> list[str]:
    root = tree / place
    if root.is_file():
        return [place]
    found = (file.relative_to(tree) for file in root.rglob("*.py"))
    return sorted(path.as_posix() for path in found if not LEFT_OUT & set(path.parts))


def _environment_of(subject: Subject) -> str:
    """Names and versions of what the interpreter has installed."""
    site = (subject.python.parent.parent / "lib").glob("python3*/site-packages/*.dist-info")
    return " ".join(sorted(folder.name for folder in site))
