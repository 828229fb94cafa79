"""Instances: SWE-bench's schema, plus where the tree is and which tests the agents may see.

Read from a JSON Lines file; unknown fields are kept by SWE-bench's readers and refused here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hermes_runtime.errors import BadInput, NotFound


def _list(value: object) -> object:
    """SWE-bench writes its lists of tests as JSON strings."""
    return json.loads(value) if isinstance(value, str) else value


Tests = Annotated[tuple[str, ...], BeforeValidator(_list)]


class Instance(BaseModel):
    """One task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    instance_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,120}$")
    repo: str
    """Name of the repository, for example "boltons"."""
    base_commit: str = ""
    """Commit or version of the source."""
    problem_statement: str
    hints_text: str = ""
    created_at: str = ""
    version: str = ""
    environment_setup_commit: str = ""
    patch: str = ""
    """Gold patch as a unified diff against the unpatched tree; never shown to agents; may be empty."""
    test_patch: str = ""
    """Applied before grading; for instances whose tree already holds the tests it is empty."""
    FAIL_TO_PASS: Tests
    """Tests that fail on the unpatched tree and pass on the repaired one (pytest node ids)."""
    PASS_TO_PASS: Tests
    """Tests that pass on both."""
    visible_tests: tuple[str, ...] = ()
    """Tests of FAIL_TO_PASS that agents may see; grading always uses all."""
    source: str
    """Folder of the source tree, absolute or relative to the instances file."""
    setup_patch: str = ""
    """Unified diff that makes the unpatched tree from `source` (a mutant's mutation); may be empty."""
    python: str = ""
    """Interpreter that has pytest, coverage and the package's needs; absolute or relative to the
    instances file. Empty: the interpreter that runs HERMES."""
    import_roots: tuple[str, ...] = (".",)
    """Folders of the tree for the import path, relative to it."""
    editable_files: tuple[str, ...] = ()
    """Files that a patch may touch, relative to the tree; empty: every .py file outside tests."""
    test_timeout_seconds: float = Field(default=60.0, gt=0, le=3600)
    """Wall clock of one run of the tests."""
    bug_kind: str = ""
    """Kind of defect, for tables; never shown to agents."""

    @model_validator(mode="after")
    def _visible_is_a_subset(self) -> Instance:
        unknown = set(self.visible_tests) - set(self.FAIL_TO_PASS)
        if unknown:
            raise ValueError(f"visible_tests not in FAIL_TO_PASS: {sorted(unknown)}")
        both = set(self.FAIL_TO_PASS) & set(self.PASS_TO_PASS)
        if both:
            raise ValueError(f"in FAIL_TO_PASS and in PASS_TO_PASS: {sorted(both)}")
        if not self.FAIL_TO_PASS:
            raise ValueError("FAIL_TO_PASS is empty: nothing would show that the instance is resolved")
        return self


def read_instances(path: Path) -> Iterator[Instance]:
    """Instances of a JSON Lines file, paths made absolute. NotFound, BadInput with the line number."""
    if not path.is_file():
        raise NotFound(f"instances file {path} is not there; `hermes dataset mutants --out {path}` makes one")
    seen: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            instance = Instance.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadInput(f"{path}, line {number}: {where}: {first['msg']}") from error
        if instance.instance_id in seen:
            raise BadInput(f"{path}, line {number}: instance_id {instance.instance_id!r} is there twice")
        seen.add(instance.instance_id)
        yield instance.model_copy(
            update={
                "source": str((path.parent / instance.source).resolve()),
                "python": str(_interpreter(path.parent / instance.python)) if instance.python else "",
            }
        )


def _interpreter(python: Path) -> Path:
    """Its folder resolved, itself not: a virtual environment's interpreter is a link and must stay one."""
    return python.parent.resolve() / python.name


def to_line(instance: Instance) -> str:
    """One line of JSON, keys in schema order: same instance, same bytes."""
    return json.dumps(instance.model_dump(mode="json"), ensure_ascii=False)
