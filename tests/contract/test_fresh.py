"""What is generated is as its source says; what is pinned is pinned."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_generated_protocols_are_fresh(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run(["sh", ROOT / "proto" / "generate.sh", tmp_path], env=environment, check=True, timeout=120)
    committed = {p.relative_to(ROOT / "proto" / "gen"): p for p in (ROOT / "proto" / "gen").rglob("*.py*")}
    committed = {path: file for path, file in committed.items() if "__pycache__" not in path.parts}
    made = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*.py*")}
    assert made.keys() == committed.keys()
    for path, file in made.items():
        assert file.read_text() == committed[path].read_text(), f"{path} is stale: run `make generate`"


def test_the_protocols_pass_buf_lint():
    buf = Path(sys.executable).with_name("buf")
    done = subprocess.run(
        [buf, "lint"], cwd=ROOT / "proto", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["runtime.txt", "dev.txt"])
def test_every_requirement_has_one_version_and_hashes_and_no_address(name):
    text = (ROOT / "requirements" / name).read_text()
    assert "://" not in text
    for entry in re.split(r"\n(?=[a-z])", text.split("\n", 1)[1] if text.startswith("#") else text):
        if entry.strip() and not entry.startswith("#"):
            assert re.match(r"[a-zA-Z0-9_.\-]+==[^ ]+ \\\n +--hash=sha256:", entry), entry[:80]


def test_no_package_named_operator_shadows_the_standard_library():
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_every_arm_of_the_document_is_an_arm_that_can_be_run():
    from hermes_runtime.acts.arms import ARMS
    from hermes_runtime.document import ArmName
    from hermes_runtime.evaluate.desk import CONTROL

    assert {arm.value for arm in ArmName} | {CONTROL} == set(ARMS)


def test_the_wheel_carries_everything_that_runs(tmp_path):
    """Templates, the sandbox's inside, pins and the bundled model are no modules, and must be there."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
    ]
    subprocess.run([*pip, tmp_path, ROOT], check=True, timeout=180, cwd=tmp_path)
    shutil.unpack_archive(next(tmp_path.glob("*.whl")), tmp_path / "wheel", "zip")
    inside = {path.relative_to(tmp_path / "wheel").as_posix() for path in (tmp_path / "wheel").rglob("*")}
    for wanted in (
        "hermes/act/v1/act_pb2.py",
        "hermes_operator/__init__.py",
        "hermes_runtime/document.py",
        "hermes_runtime/evaluate/datasets/packages.txt",
        "hermes_runtime/evaluate/templates/report.html.j2",
        "hermes_runtime/sandbox/inside/keeper.py",
        "hermes_runtime/models/bundled/repair/model.safetensors",
    ):
        assert wanted in inside
