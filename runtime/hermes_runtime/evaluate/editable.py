"""Which files of an instance a patch may touch, where the instance does not say."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from hermes_runtime.evaluate.instances import Instance

NOT_CODE = frozenset({"test", "tests", "testing", "docs", "doc", "examples", "benchmarks", "build", "venv"})


def editable_files(instance: Instance, tree: Path) -> tuple[str, ...]:
    """What the instance says, else every .py file that is neither a test nor beside the code."""
    if instance.editable_files:
        return instance.editable_files
    found = (file.relative_to(tree).as_posix() for file in tree.rglob("*.py"))
    return tuple(sorted(path for path in found if _is_code(PurePosixPath(path))))


def _is_code(path: PurePosixPath) -> bool:
    if any(part in NOT_CODE or part.startswith(".") for part in path.parts[:-1]):
        return False
    name = path.name
    return not (name.startswith("test_") or name.endswith("_test.py") or name in ("conftest.py", "setup.py"))
