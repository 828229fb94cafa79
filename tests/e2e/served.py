"""Processes of `hermes` that a test starts, waits for by their ready files, and ends."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.e2e.conftest import environment, hermes_command


async def until_there(process: asyncio.subprocess.Process, file: Path) -> str:
    """The text of a ready file, once it is there. Fails with what the process said if it ends instead."""
    while not file.exists():
        if process.returncode is not None:
            said = await process.stderr.read() if process.stderr else b""
            raise AssertionError(f"ended with {process.returncode} before it was ready:\n{said.decode()}")
        await asyncio.sleep(0.02)
    return file.read_text().strip()


async def start(*words: str | Path, **more: str) -> asyncio.subprocess.Process:
    """Start `hermes`, with `more` in its environment."""
    return await asyncio.create_subprocess_exec(
        *hermes_command(*words),
        env={**environment(), **more},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


async def stop(process: asyncio.subprocess.Process, number: signal.Signals = signal.SIGTERM) -> int:
    """Ask a process to end; its exit code."""
    if process.returncode is None:
        process.send_signal(number)
    async with asyncio.timeout(30):
        await process.communicate()
    assert process.returncode is not None
    return process.returncode


@asynccontextmanager
async def serving(
    *words: str | Path, ready: Path, **more: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process that serves, and what its ready file says."""
    process = await start(*words, "--ready-file", ready, **more)
    try:
        async with asyncio.timeout(60):
            where = await until_there(process, ready)
        yield process, where
    finally:
        code = await stop(process)
    assert code < 0 or not ready.exists()  # one that is killed leaves it behind
