"""What the engine's parts decide, without an engine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import runc_within_bounds
from tests.cluster.binaries import content_key
from tests.cluster.engine import CAP_SYS_RESOURCE, has_capability
from tests.cluster.packages import missing_packages


@pytest.mark.parametrize(
    ("effective", "has_it"),
    [
        pytest.param("000001ffffffffff", True, id="a root with everything"),
        pytest.param("000001fffeffffff", False, id="a root without CAP_SYS_RESOURCE"),
        pytest.param("0000000000000000", False, id="nobody"),
    ],
)
def test_a_capability_is_read_from_the_process_status(effective, has_it):
    status = f"Name:\tpython\nCapPrm:\t0000000000000000\nCapEff:\t{effective}\n"
    assert has_capability(status, CAP_SYS_RESOURCE) is has_it


def test_runc_is_asked_for_no_more_than_this_root_may_give(tmp_path: Path):
    asked = {
        "args": ["true"],
        "capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE"], "effective": ["CAP_SYS_RESOURCE"]},
        "oomScoreAdj": -999,
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1048576, "soft": 1048576}],
    }
    given = {"args": ["true"], "capabilities": {"bounding": ["CAP_CHOWN"], "effective": []}, "oomScoreAdj": 0}
    (tmp_path / "config.json").write_text(
        json.dumps({"process": asked, "hostname": "node"}), encoding="utf-8"
    )
    (tmp_path / "process.json").write_text(json.dumps(asked), encoding="utf-8")
    runc = tmp_path / "runc"
    runc.write_text('#!/bin/sh\nprintf "%s " "$@"\n', encoding="utf-8")
    runc.chmod(0o755)
    commands = (
        ["--root", "/r", "create", "--bundle", str(tmp_path), "id"],
        ["--root", "/r", "exec", f"--process={tmp_path}/process.json", "id"],
        ["--root", "/r", "kill", "id", "9"],
    )
    for arguments in commands:
        program = [sys.executable, "-I", "-S", runc_within_bounds.__file__, *arguments]
        done = subprocess.run(
            program, env={"HERMES_RUNC": str(runc)}, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == arguments
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert written == {"process": given, "hostname": "node"}
    assert json.loads((tmp_path / "process.json").read_text(encoding="utf-8")) == given


def test_packages_are_named_once_and_only_where_a_program_is_missing():
    wanted = {"no-such-program": "one", "neither-this": "one", "sh": "dash"}
    assert missing_packages(wanted) == ["one"]


def test_a_key_tells_where_one_file_ends_and_the_next_begins():
    assert content_key({"a": b"xy", "b": b"z"}) != content_key({"a": b"x", "b": b"yz"})
