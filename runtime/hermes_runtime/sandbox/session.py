"""The host's side of a session: starts the warm interpreter, runs attempts, keeps their output in bounds.

Shared by both sandboxes, which differ in the command line and the settings. An attempt has three
descriptors of its own: a socket to its keeper, a pipe of output, a pipe of the report. Closing the
socket kills the attempt; so a cancelled call, a closed session and a dead host all end the same way.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from hermes_runtime.errors import BadInput, PeerLost, TimedOut
from hermes_runtime.sandbox import Attempt, Ending, Outcome

REPORT_BYTES: Final = 64 << 20
"""Longest report that is taken."""
OPEN_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 30.0
"""How much longer than its limit an attempt's keeper may take before it counts as lost."""
INSIDE: Final = Path(__file__).parent / "inside"

_BOOT = (
    "import importlib.util as u, sys; d = sys.argv[1]; "
    "s = u.spec_from_file_location('hermes_inside', d + '/__init__.py', submodule_search_locations=[d]); "
    "m = u.module_from_spec(s); sys.modules['hermes_inside'] = m; s.loader.exec_module(m); "
    "sys.path = [p for p in sys.path if p]; "
    "from hermes_inside.zygote import main; main(int(sys.argv[2]))"
)


def zygote_command(python: str, inside: str, descriptor: int) -> list[str]:
    """The warm interpreter: no user site, no bytecode written, nothing of the tree on its path."""
    return [python, "-s", "-B", "-c", _BOOT, inside, str(descriptor)]


ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "COVERAGE_CORE": "ctrace",
}


class WarmSession:
    """A session over a started zygote."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, folder: Path) -> None:
        self._process = process
        self._control = control
        self._folder = folder
        self._attempts: set[socket.socket] = set()

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        settings: Mapping[str, object],
        *,
        control: tuple[socket.socket, socket.socket],
        pass_fds: Sequence[int] = (),
        folder: Path,
    ) -> WarmSession:
        """Start `command`, which serves on `control[1]`. `folder` is the session's, removed at its end."""
        ours, theirs = control
        ours.setblocking(False)
        errors = (folder / "stderr").open("w+b")
        with errors, theirs:
            # in the caller's thread: bubblewrap dies with the thread that started it
            process = subprocess.Popen(  # noqa: ASYNC220
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=dict(ENVIRONMENT),
                pass_fds=(theirs.fileno(), *pass_fds),
                cwd="/",
            )
        session = cls(process, ours, folder)
        try:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(OPEN_SECONDS):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    await loop.sock_sendall(ours, json.dumps(settings).encode())
                try:
                    answer = await loop.sock_recv(ours, 1 << 16)
                except ConnectionResetError:
                    answer = b""
            said = json.loads(answer) if answer else {"error": "it ended without a word"}
            if "error" in said:
                wrote = (folder / "stderr").read_text(errors="replace").strip()[-2000:]
                raise BadInput(
                    f"the instance's interpreter did not start in the sandbox ({' '.join(command[:1])}): "
                    f"{said['error']}" + (f"\n{wrote}" if wrote else "")
                )
        except TimeoutError:
            await session.close()
            raise TimedOut(
                f"the instance's interpreter was not ready in the sandbox after {OPEN_SECONDS:.0f} s"
            ) from None
        except BaseException:
            await session.close()
            raise
        return session

    async def run(self, attempt: Attempt) -> Outcome:
        """See the port."""
        begun = time.monotonic()
        if self._control.fileno() < 0:
            raise PeerLost("the sandbox session is closed; open a new one")
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        output_read, output_write = os.pipe()
        report_read, report_write = os.pipe()
        ours.setblocking(False)
        output = _Drain(output_read, attempt.limits.output_bytes)
        report = _Drain(report_read, REPORT_BYTES)
        self._attempts.add(ours)
        try:
            try:
                await self._hand_over([theirs.fileno(), output_write, report_write])
            finally:
                theirs.close()
                os.close(output_write)
                os.close(report_write)
            order = _order(ours)
            output.start(order)
            report.start(order)
            said = None
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                async with asyncio.timeout(attempt.limits.wall_seconds + GRACE_SECONDS):
                    await loop.sock_sendall(ours, _frame(attempt))
                    said = await _answer(ours)
            if said is None:
                raise PeerLost("the sandbox session died during the attempt; open a new one and try again")
            if "error" in said:
                raise BadInput(f"the attempt could not be set up: {said['error']}")
            async with asyncio.timeout(GRACE_SECONDS):  # all writers are dead: the pipes end at once
                await output.ended.wait()
                await report.ended.wait()
            ended = time.monotonic()
        except TimeoutError:
            raise PeerLost(
                "the sandbox session does not answer any more; open a new one and try again"
            ) from None
        finally:
            self._attempts.discard(ours)
            ours.close()
            output.close()
            report.close()
        raw = bytes(report.data)
        first = int.from_bytes(raw[:8], "little") / 1e9 if len(raw) >= 8 else ended
        over = output.is_over or report.is_over
        code = said["exit_code"]
        return Outcome(
            ending=Ending.OUTPUT_LIMIT if over else Ending(str(said["ending"])),
            exit_code=code if isinstance(code, int) and not over else None,
            output=bytes(output.data),
            report=raw[8:] or None,
            setup_seconds=max(0.0, first - begun),
            seconds=ended - begun,
        )

    async def _hand_over(self, descriptors: list[int]) -> None:
        async with asyncio.timeout(GRACE_SECONDS):
            while True:
                try:
                    socket.send_fds(self._control, [b"run"], descriptors)
                    return
                except BlockingIOError:  # many attempts at once; the zygote takes one in a millisecond
                    await asyncio.sleep(0.002)
                except OSError as error:
                    raise PeerLost("the sandbox session has died; open a new one and try again") from error

    async def close(self) -> None:
        """See the port."""
        for one in tuple(self._attempts):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._control.close()
        for _ in range(500):
            if self._process.poll() is not None:
                break
            await asyncio.sleep(0.002)
        else:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        await asyncio.to_thread(shutil.rmtree, self._folder, True)


class _Drain:
    """Everything that comes out of a pipe, up to a limit; reading goes on beyond it and keeps nothing."""

    def __init__(self, descriptor: int, limit: int) -> None:
        self.data = bytearray()
        self.ended = asyncio.Event()
        self.is_over = False
        self._limit = limit
        self._descriptor = descriptor
        self._open = True

    def start(self, order: _Order) -> None:
        self._order = order
        os.set_blocking(self._descriptor, False)
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def _read(self) -> None:
        try:
            part = os.read(self._descriptor, 1 << 18)
        except BlockingIOError:
            return
        if not part:
            self.close()
            self.ended.set()
            return
        room = self._limit - len(self.data)
        self.data += part[:room]
        if len(part) > room and not self.is_over:
            self.is_over = True
            self._order.kill(Ending.OUTPUT_LIMIT)

    def close(self) -> None:
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)


class _Order:
    """Tells a keeper to kill its attempt."""

    def __init__(self, keeper: socket.socket) -> None:
        self._keeper = keeper

    def kill(self, why: Ending) -> None:
        with contextlib.suppress(OSError):  # gone already, or so busy that its own limits will do
            self._keeper.send(_pack({"kill": why.value}))


def _order(keeper: socket.socket) -> _Order:
    return _Order(keeper)


_HEADER = struct.Struct("<I")


def _pack(message: Mapping[str, object]) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    return _HEADER.pack(len(body)) + body


def _frame(attempt: Attempt) -> bytes:
    limits = attempt.limits
    return _pack(
        {
            "request": dict(attempt.request),
            "files": {path: base64.b64encode(data).decode() for path, data in attempt.files.items()},
            "limits": {
                "wall_seconds": limits.wall_seconds,
                "cpu_seconds": limits.cpu_seconds,
                "memory_bytes": limits.memory_bytes,
                "processes": limits.processes,
                "file_bytes": limits.file_bytes,
            },
        }
    )


async def _answer(keeper: socket.socket) -> dict[str, object] | None:
    loop = asyncio.get_running_loop()
    got = bytearray()
    while True:
        if len(got) >= _HEADER.size:
            size = _HEADER.unpack_from(got)[0]
            if len(got) >= _HEADER.size + size:
                message = json.loads(got[_HEADER.size : _HEADER.size + size])
                return message if isinstance(message, dict) else None
        part = await loop.sock_recv(keeper, 1 << 16)
        if not part:
            return None
        got += part
