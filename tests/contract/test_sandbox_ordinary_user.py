# ruff: noqa: E501  (the attackers are programs in strings)
"""Both sandboxes for a user without any privilege, whatever user runs these tests."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.sandbox_bench import make_environment, make_tree

ROOT = Path(__file__).resolve().parents[2] / "runtime"
NOBODY = 65534
SCRIPT = """
import asyncio, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from hermes_runtime.sandbox import Bench, Limits
from hermes_runtime.sandbox.choose import choose
from hermes_runtime.sandbox.suite import open_suite
EVIL = b'''
import os, socket, subprocess, sys, time, pytest
def test_walls():
    with pytest.raises(OSError): socket.socket()
    with pytest.raises(OSError): open("/etc/x", "w")
    with pytest.raises(OSError): os.listdir("/home")
def test_daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        time.sleep(1000)
def test_bomb():
    while True:
        try: os.fork()
        except OSError: pass
'''
async def main():
    sandbox = choose(sys.argv[2])
    suite = await open_suite(sandbox, Bench(tree=Path(sys.argv[3]), python=Path(sys.argv[4])))
    told = []
    for tests in (["tests/test_sums.py::test_box"], ["e.py::test_walls", "e.py::test_daemon"], ["e.py::test_bomb"],
                  ["tests/test_sums.py::test_box"]):
        report = await suite.run(tests, files={"e.py": EVIL}, coverage=["pkg/sums.py"], limits=Limits(processes=24))
        told.append([report.ending.value, *(one.value for one in report.results.values())])
    await suite.close()
    print(json.dumps(told))
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hermes-ordinary-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="the other suite runs as an ordinary user already")
@pytest.mark.parametrize("name", [pytest.param("bubblewrap", marks=pytest.mark.bubblewrap), "landlock"])
def test_an_ordinary_user_is_as_safe(name: str, place: Path) -> None:
    system = Path("/usr/bin/python3")
    version = "import sys; print(sys.version_info >= (3, 11))"
    if not system.exists() or b"True" not in subprocess.check_output([system, "-c", version]):
        pytest.skip("no interpreter of 3.11 or newer that everybody can run")
    tree = place / name
    make_tree(tree)
    for path in (tree, *tree.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    python = make_environment(place / f"venv-{name}", str(system))
    done = subprocess.run(
        [system, "-c", SCRIPT, str(ROOT), name, str(tree), str(python)],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env={"PATH": "/usr/bin:/bin"},
        cwd="/",
        capture_output=True,
        timeout=120,
        check=False,
    )
    if b"no sandbox for tests" in done.stderr:
        pytest.skip(done.stderr.decode().splitlines()[-1])
    assert done.returncode == 0, done.stderr.decode()
    well, walls, bomb, again = json.loads(done.stdout)
    assert well == again == ["exited", "passed"]
    assert walls == ["exited", "passed", "passed"]
    assert bomb == ["process limit", "error"]
    assert {path.name for path in tree.iterdir()} == {"pkg", "tests"}
