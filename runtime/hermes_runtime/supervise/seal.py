"""The seal: from here on neither this process nor any it starts can open any but Unix sockets.

The wall is a seccomp filter, which holds against C code and ctypes and cannot be taken off again. Its
refusals are counted by a process of their own where the kernel can tell it (5.7 and newer), else they
are only refused. Called once, after everything is fetched and before anything runs; works in a process
that has threads already.

Not stopped: sockets that were open before; a Unix socket of a proxy outside the seal; processes that
were started earlier.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hermes_runtime.errors import Unsupported
from hermes_runtime.supervise import seccomp
from hermes_runtime.supervise.seal_counter import PROBE_TYPE

GRPC_PROBES: Final = 2
"""Sockets of each family that gRPC tries to open at its start, once in each of its two event engines."""

_ANSWER_SECONDS: Final = 10.0
_ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who tried to open a socket, and how often."""

    pid: int
    comm: str
    syscall: str
    family: str
    count: int


class Seal:
    """A seal that is in force. There is no way to break it, so there is no close."""

    def __init__(self, counter: socket.socket | None, *, inherited: bool = False) -> None:
        self._counter = counter
        self._lock = threading.Lock()
        self._attempts = 0
        self._callers: tuple[Caller, ...] = ()
        self.inherited = inherited
        """An ancestor sealed this process; the counting is the ancestor's."""

    @property
    def counted(self) -> bool:
        """Whether attempts are counted here: False where the kernel cannot, or the counter was killed."""
        self._ask()
        return self._counter is not None

    @property
    def attempts(self) -> int:
        """Refused sockets of this process and all its descendants, up to now."""
        self._ask()
        return self._attempts

    @property
    def attempted_by(self) -> tuple[Caller, ...]:
        """The first 64 different callers."""
        self._ask()
        return self._callers

    def evidence(self) -> dict[str, object]:
        """For `summary.json`."""
        self._ask()
        return {
            "wall": "seccomp",
            "counted": self._counter is not None,
            "attempts": self._attempts,
            "attempted_by": [
                {
                    "pid": one.pid,
                    "comm": one.comm,
                    "syscall": one.syscall,
                    "family": one.family,
                    "count": one.count,
                }
                for one in self._callers
            ],
        }

    def _ask(self) -> None:
        with self._lock:
            if self._counter is None:
                return
            try:
                self._counter.sendall(b"?")
                size = struct.unpack("<I", _exactly(self._counter, 4))[0]
                told = json.loads(_exactly(self._counter, size))
            except (OSError, EOFError):  # the counter was killed: the wall stands, the count is what it was
                self._counter.close()
                self._counter = None
                return
            self._attempts = int(told["attempts"])
            self._callers = tuple(
                Caller(pid=pid, comm=comm, syscall=call, family=family, count=count)
                for pid, comm, call, family, count in told["callers"]
            )


def seal() -> Seal:
    """Seal this process, all its threads and everything it starts from now on. Idempotent.

    Raises:
        Unsupported: not Linux on x86_64 or aarch64, or a thread runs under a filter of its own.
    """
    try:
        return _counting()
    except OSError as error:
        # EBUSY: a listener is there already, perhaps an ancestor's seal
        if error.errno == errno.EBUSY and _is_sealed():
            return Seal(None, inherited=True)
    try:
        seccomp.install(seccomp.SEAL_UNCOUNTED)
    except OSError as error:
        raise Unsupported(
            f"this process cannot be sealed ({error}): a kernel with seccomp is needed; "
            "or set spec.hermetic: false, and nothing keeps the run off the network"
        ) from error
    return Seal(None)


def _counting() -> Seal:
    ours, theirs = socket.socketpair()
    ours.settimeout(_ANSWER_SECONDS)
    try:
        with theirs:
            _start_counter(theirs)
        _exactly_or_oserror(ours)
        listener = seccomp.install(seccomp.SEAL_COUNTED)
        if listener is None:
            raise OSError(errno.EINVAL, "the filter has no listener")
        try:
            socket.send_fds(ours, [b"l"], [listener])
        finally:
            os.close(listener)
    except BaseException:
        ours.close()
        raise
    return Seal(ours)


def _start_counter(theirs: socket.socket) -> None:
    boot = (
        f"import sys; sys.path.insert(0, {str(_ROOT)!r}); "
        f"from hermes_runtime.supervise.seal_counter import main; main({theirs.fileno()})"
    )
    theirs.set_inheritable(True)
    # not a Popen: it outlives this object, and whoever waits for this process's children may collect it
    os.posix_spawn(
        sys.executable, [sys.executable, "-I", "-S", "-c", boot], {"PATH": "/usr/bin:/bin"}, setsid=True
    )


def _exactly_or_oserror(peer: socket.socket) -> None:
    try:
        _exactly(peer, 1)
    except EOFError as error:
        raise OSError(errno.ECHILD, "the counter of attempts did not start") from error


def _exactly(peer: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        part = peer.recv(size - len(got))
        if not part:
            raise EOFError
        got += part
    return got


def _is_sealed() -> bool:
    """Whether a filter answers for Internet sockets; without one this type of socket is EINVAL."""
    try:
        socket.socket(socket.AF_INET, PROBE_TYPE).close()
    except OSError as error:
        return error.errno == errno.EAFNOSUPPORT
    return False


def evidence(seal: Seal | None, pids: Collection[int] = ()) -> dict[str, Any]:
    """How hermetic it was. gRPC, at its start, asks twice in each process that uses it (`pids`, and this
    one) whether a TCP socket can share its port; those refused probes are told apart."""
    if seal is None:
        return {"wall": "none", "counted": False, "attempts": None}
    found: dict[str, Any] = dict(seal.evidence())
    serving = {*pids, os.getpid()}
    probes = [c for c in found["attempted_by"] if c["pid"] in serving and c["count"] <= GRPC_PROBES]
    others = [c for c in found["attempted_by"] if c not in probes]
    found["attempted_by"] = others
    found["attempts"] -= sum(c["count"] for c in probes)
    found["grpc_probes_refused"] = sum(c["count"] for c in probes)
    return found
