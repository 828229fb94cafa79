"""What `agents/patch.py` makes, the real programs take."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hermes_runtime.agents.patch import make_patch

PROGRAMS = {
    "git": ["git", "apply", "--whitespace=nowarn", "-"],
    "patch": ["patch", "--batch", "--forward", "--fuzz=0", "--no-backup-if-mismatch", "-p1"],
}
CASES = [
    pytest.param("1\n2\n3\n", "1\nx\n3\n", id="edit"),
    pytest.param("1\n2", "1\n3", id="no newline at the end of either"),
    pytest.param("1\n2", "1\n2\n", id="newline added"),
    pytest.param("1\n2\n", "1\n2", id="newline taken"),
    pytest.param(None, "new\n", id="new file"),
    pytest.param(None, "", id="new empty file"),
    pytest.param("old\n", None, id="deleted"),
    pytest.param("", "x\n", id="filled"),
    pytest.param("\n".join(map(str, range(40))), "0.5\n" + "\n".join(map(str, range(39))), id="two hunks"),
]


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(("before", "after"), CASES)
def test_git_and_patch_apply_what_is_made(
    tmp_path: Path, name: str, before: str | None, after: str | None
) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    # `patch` finds no name with a blank where a diff has no hunks
    path = "pkg/m.py" if after == "" else "a dir/m.py"
    file = tmp_path / path
    file.parent.mkdir()
    if before is not None:
        file.write_bytes(before.encode())
    text = make_patch(path, before, after)
    done = subprocess.run(PROGRAMS[name], cwd=tmp_path, input=text.encode(), capture_output=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    if after is None:
        assert not file.exists()
    else:
        assert file.read_bytes() == after.encode()
