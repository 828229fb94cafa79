"""The operator as a process of its own, as tests start, kill and ask it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import aiohttp

from tests.e2e.fake_api import FakeApi

ROOT = Path(__file__).parents[2]
WAIT_SECONDS_MAX = 60.0

T = TypeVar("T")


class OperatorProcess:
    """One running operator."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log
        self._port: int | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    async def port(self) -> int:
        """Where it serves its health."""
        if self._port is None:
            found = await until(lambda: re.search(r"/metrics on port (\d+)", self.log.read_text("utf-8")))
            self._port = int(found[1])
        return self._port

    async def ask(self, path: str) -> tuple[int, str]:
        """GET of its health; 0: it does not answer."""
        url = f"http://127.0.0.1:{await self.port()}{path}"
        async with aiohttp.ClientSession() as session:
            try:
                async with session.get(url, timeout=aiohttp.ClientTimeout(total=5)) as answer:
                    return answer.status, await answer.text()
            except aiohttp.ClientError:
                return 0, ""

    async def ready(self) -> None:
        await until_async(lambda: self._answers("/readyz"))

    async def leading(self, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        """It holds the Lease and has the whole picture."""
        await until(lambda: "the first lists are taken" in self.log.read_text("utf-8"), seconds_max)

    def processor_seconds(self) -> float:
        """Time of the processor that it has had."""
        fields = Path(f"/proc/{self.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        _, text = await self.ask("/metrics")
        total = 0.0
        for line in text.splitlines():
            is_of_it = line.startswith((f"{name}{{", f"{name} "))
            if is_of_it and all(f'{label}="{value}"' in line for label, value in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total

    def kill(self) -> None:
        """SIGKILL."""
        with suppress(ProcessLookupError):
            self.process.kill()

    async def stopped(self) -> tuple[int, float]:
        """SIGTERM; the exit code, and the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return await self.ended(), time.monotonic() - began

    async def ended(self) -> int:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            return await self.process.wait()

    def memory_bytes(self) -> int:
        """Resident memory now."""
        text = Path(f"/proc/{self.pid}/status").read_text("utf-8")
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        assert found is not None
        return int(found[1]) * 1024

    async def _answers(self, path: str) -> bool:
        return (await self.ask(path))[0] == 200


@asynccontextmanager
async def operator_process(
    kubeconfig: Path, folder: Path, *, name: str = "operator-0", namespaces: str = "research", **settings: str
) -> AsyncIterator[OperatorProcess]:
    """Start one; it is gone when the block is left."""
    log = folder / f"{name}-{time.monotonic_ns()}.log"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "runtime", "proto/gen")),
        "KUBECONFIG": str(kubeconfig),
        "HERMES_NAMESPACES": namespaces,
        "HERMES_RUNTIME_IMAGE": "hermes:test",
        "HERMES_POD_NAME": name,
        "HERMES_HTTP_PORT": "0",
        "HERMES_LOG_FORMAT": "json",
        **settings,
    }
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hermes_operator", "run", env=environment, stderr=stderr, cwd=folder
        )
    try:
        yield OperatorProcess(process, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def operated(api: FakeApi, folder: Path, **settings: str) -> AsyncIterator[OperatorProcess]:
    """An operator that leads."""
    async with operator_process(api.kubeconfig(folder / "kubeconfig"), folder, **settings) as operator:
        await operator.leading()
        yield operator


async def until(found: Callable[[], T | None], seconds_max: float = WAIT_SECONDS_MAX) -> T:
    """What `found` gives once that is true of it: another process is no event of this loop."""
    async with asyncio.timeout(seconds_max):
        while not (value := found()):
            await asyncio.sleep(0.01)
    return value


async def until_async(holds: Callable[[], Awaitable[bool]], seconds_max: float = WAIT_SECONDS_MAX) -> None:
    """Wait until that holds."""
    async with asyncio.timeout(seconds_max):
        while not await holds():
            await asyncio.sleep(0.02)
