"""A run's processes: started in order, watched, restarted when they die, stopped in reverse order.

A restart is what makes a lost peer a short wait for its callers; a process that keeps dying is given
up, with the end of its log in the message. What to do about a lost call is for the caller.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hermes_runtime.errors import HermesError, PeerLost

RESTARTS_MAX = 20
"""Restarts of one process in a row, without its having been ready in between, that mean it cannot run."""

STOP_SECONDS = 10.0
"""From SIGTERM to SIGKILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to start. Its standard input is a pipe that closes when this process ends."""

    name: str
    argv: Sequence[str]
    ready: Callable[[], Awaitable[object]]
    """Returns once the process serves; raises PeerLost while it does not yet."""
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_seconds: float = 120.0


@dataclass(slots=True)
class _Child:
    program: Program
    process: asyncio.subprocess.Process
    ready: asyncio.Event
    restarts: int = 0
    unready_restarts: int = 0


class ProcessTree:
    """Use as `async with ProcessTree(logs=...) as tree: await tree.start(program)`.

    Each program's output goes to `logs/<name>.log`. `on_restart(name)` is told of every restart.
    """

    def __init__(self, *, logs: Path, on_restart: Callable[[str], None] = lambda name: None) -> None:
        self._logs = logs
        self._on_restart = on_restart
        self._children: dict[str, _Child] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._pids: set[int] = set()
        self.failed: asyncio.Future[None] | None = None
        """Ends with the error of a process that could not be kept running."""

    async def __aenter__(self) -> ProcessTree:
        self._logs.mkdir(parents=True, exist_ok=True)
        self.failed = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    @property
    def restarts(self) -> dict[str, int]:
        """How often each process was restarted."""
        return {name: child.restarts for name, child in self._children.items()}

    @property
    def pids(self) -> frozenset[int]:
        """Process ids of all programs that were ever started here."""
        return frozenset(self._pids)

    def pid(self, name: str) -> int:
        """Process id of a program as it runs now."""
        return self._children[name].process.pid

    async def start(self, program: Program) -> None:
        """Start `program` and wait until it is ready. HermesError with the end of its log if it is not.

        One that is killed before it is ready is started again; one that exits by itself is not.
        """
        child = _Child(program, await self._spawn(program), asyncio.Event())
        self._children[program.name] = child
        keeping = asyncio.create_task(self._keep(child), name=f"keep {program.name}")
        self._keepers[program.name] = keeping
        ready = asyncio.create_task(child.ready.wait(), name=f"ready {program.name}")
        await asyncio.wait({keeping, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if keeping.done():
            keeping.result()
        keeping.add_done_callback(self._given_up)

    async def until_ready(self, name: str) -> None:
        """Wait until a program that may have been restarted serves again."""
        await self._children[name].ready.wait()

    async def stop(self) -> None:
        """Stop everything, last started first. Idempotent."""
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        for child in reversed(self._children.values()):
            process = child.process
            if process.returncode is None:
                process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
            _close_input(process)
        if self.failed and not self.failed.done():
            self.failed.cancel()

    async def _spawn(self, program: Program) -> asyncio.subprocess.Process:
        with (self._logs / f"{program.name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *program.argv,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **program.environment},
                start_new_session=True,  # Ctrl-C is for the driver, which stops its children in order
            )
        self._pids.add(process.pid)
        return process

    async def _keep(self, child: _Child) -> None:
        """Wait until it is ready, then until it ends; start it again. Raises when that is of no use."""
        while True:
            code = await self._until_ready(child)
            if code is None:
                code = await child.process.wait()
                child.ready.clear()
            elif code >= 0 or child.unready_restarts >= RESTARTS_MAX:
                ending = f"{child.program.name} ended ({_ending(code)}) before it was ready."
                raise HermesError(ending + self._tail(child.program))
            child.restarts += 1
            child.unready_restarts += 1
            self._on_restart(f"{child.program.name} ended ({_ending(code)}) and was started again")
            await asyncio.sleep(min(0.02 * 2**child.unready_restarts, 2.0) - 0.02)
            _close_input(child.process)
            child.process = await self._spawn(child.program)

    async def _until_ready(self, child: _Child) -> int | None:
        """None once it is ready; its exit code if it ends before."""
        program, pause = child.program, 0.02
        try:
            async with asyncio.timeout(program.ready_seconds):
                while (code := child.process.returncode) is None:
                    try:
                        await program.ready()
                    except PeerLost:
                        await asyncio.sleep(pause)
                        pause = min(pause * 1.5, 0.2)
                    else:
                        child.ready.set()
                        child.unready_restarts = 0
                        return None
                return code
        except TimeoutError as error:
            message = (
                f"{program.name} was not ready after {program.ready_seconds:.0f} s.{self._tail(program)}"
            )
            raise HermesError(message) from error

    def _given_up(self, keeping: asyncio.Task[None]) -> None:
        """Hand on why a process could not be kept running."""
        if (
            not keeping.cancelled()
            and (error := keeping.exception())
            and self.failed
            and not self.failed.done()
        ):
            self.failed.set_exception(error)

    def _tail(self, program: Program) -> str:
        path = self._logs / f"{program.name}.log"
        lines = path.read_text(errors="replace").splitlines()[-12:] if path.exists() else []
        return f" The end of {path}:\n  " + "\n  ".join(lines) if lines else f" {path} is empty."


def _close_input(process: asyncio.subprocess.Process) -> None:
    if process.stdin:
        process.stdin.close()


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
