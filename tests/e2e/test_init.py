"""As process 1 of a container: signals arrive, the dead are collected, exit codes are handed on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.conftest import environment, hermes_command, require

NAMESPACE = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]


@contextlib.asynccontextmanager
async def process_1(*argv: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """`argv` as process 1 of a namespace of its own, and its process id out here."""
    require("unshare")
    outer = await asyncio.create_subprocess_exec(
        *NAMESPACE, *argv, env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            yield outer, await inner(outer)
    finally:
        if outer.returncode is None:
            outer.kill()
        await outer.communicate()


async def inner(outer: asyncio.subprocess.Process) -> int:
    """The one child of `unshare`."""
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    while outer.returncode is None:
        with contextlib.suppress(OSError):
            if found := children.read_text().split():
                return int(found[0])
        await asyncio.sleep(0.01)
    assert outer.stderr
    said = (await outer.stderr.read()).decode()
    if os.environ.get("CI") == "true":
        pytest.fail(f"no namespace can be made: {said}")
    pytest.skip(f"no namespace can be made: {said}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_store_that_is_process_1_ends_when_told_to(tmp_path, number):
    ready = tmp_path / "ready"
    words = (
        "store",
        "serve",
        "--folder",
        tmp_path / "store",
        "--socket",
        tmp_path / "s",
        "--ready-file",
        ready,
    )
    async with process_1(*hermes_command(*words)) as (outer, pid):
        while not ready.exists():
            assert outer.returncode is None
            await asyncio.sleep(0.02)
        before = time.monotonic()
        os.kill(pid, number)
        assert await outer.wait() == 0
        assert time.monotonic() - before < 5


BUSY = """
import sys, time
from hermes_runtime.supervise.init import leave_process_1
leave_process_1()
print("up", flush=True)
time.sleep(60)
"""


async def test_a_program_without_a_handler_ends_too_and_with_the_code_of_the_signal():
    async with process_1(sys.executable, "-c", BUSY) as (outer, pid):
        assert outer.stdout
        assert await outer.stdout.readline() == b"up\n"
        os.kill(pid, signal.SIGTERM)
        assert await outer.wait() == 128 + signal.SIGTERM


ORPHAN = """
import os, subprocess, sys, time
from pathlib import Path
from hermes_runtime.supervise.init import leave_process_1
leave_process_1()
assert os.getpid() != 1
subprocess.run(["sh", "-c", "sleep 0.2 & echo $! > orphan"], check=True)
orphan = Path("/proc", Path("orphan").read_text().strip())
end = time.monotonic() + 30
while orphan.exists() and time.monotonic() < end:
    time.sleep(0.02)
sys.exit(1 if orphan.exists() else 7)
"""


async def test_orphans_are_collected_and_the_exit_code_is_the_programs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with process_1(sys.executable, "-c", ORPHAN) as (outer, _):
        assert await outer.wait() == 7
