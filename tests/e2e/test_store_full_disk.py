"""A disk that is really full: a small file system of its own, mounted in a user namespace."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import store_load


def on_a_small_disk(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a tmpfs of 6 MiB at `folder`, which nobody else sees."""
    script = f"mount -t tmpfs -o size=6m hermes-test {shlex.quote(str(folder))} && {command}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        ["unshare", "-Ur", "-m", "sh", "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )


def test_a_full_disk_refuses_writes_keeps_reading_and_recovers(tmp_path: Path):
    try:
        probe = on_a_small_disk(tmp_path, "true")
    except FileNotFoundError:
        pytest.skip("no unshare program to mount a small disk with")
    if probe.returncode:
        pytest.skip(f"this host mounts no file system without privileges: {probe.stderr.strip()}")
    program = shlex.join([sys.executable, store_load.__file__, "fill", str(tmp_path)])
    done = on_a_small_disk(tmp_path, program)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("kept") > 10
    refusals = found.pop("refusals")
    assert len(refusals) == 3
    assert all(f"{tmp_path}/store is full: " in text and " bytes needed, " in text for text in refusals)
    assert found == {
        "reads on full disk": True,
        "half written": [],
        "reads after restart": True,
        "written again": True,
    }
