"""The process that answers and counts what a sealed process may not do.

It holds the listener of the seccomp filter: each refused socket(2) is noted, then answered with
EAFNOSUPPORT, so a count that is asked for after a failed call has that call in it. It is a process and
not a thread, because a call made while holding Python's lock would wait for a thread for ever. Should
it die, the kernel answers with ENOSYS. It ends when the last sealed process has; started by `seal.py`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import select
import signal
import socket
import struct
from collections import Counter
from pathlib import Path
from typing import Final

from hermes_runtime.supervise import seccomp

_RECEIVE, _SEND = 0xC0502100, 0xC0182101
"""SECCOMP_IOCTL_NOTIF_RECV and _SEND. Source: include/uapi/linux/seccomp.h."""
_NOTICE: Final = struct.Struct("=QIIiIQ6Q")
_REPLY: Final = struct.Struct("=QqiI")
CALLERS_MAX: Final = 64
"""How many different callers are told apart; the rest are only counted."""
PROBE_TYPE: Final = 0xF
"""A socket type that no kernel has: `seal()` asks with it whether it is sealed, and is not counted."""

Caller = tuple[int, str, str, str]


def main(descriptor: int) -> None:
    """Serve on `descriptor`: say that it is ready, take the listener, answer until nobody is sealed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it goes when the sealed go, not before
    owner = socket.socket(fileno=descriptor)
    # under an inherited filter of some other listener this cannot be: then that one is the wall
    with contextlib.suppress(OSError):
        seccomp.install(seccomp.SEAL_UNCOUNTED)
    owner.sendall(b"r")
    _, handed, _, _ = socket.recv_fds(owner, 1, 1)
    if not handed:  # the owner was sealed already, or cannot be
        return
    listener = handed[0]
    callers: Counter[Caller] = Counter()
    total = 0
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    waiting.register(owner, select.POLLIN)
    while True:
        for ready, events in waiting.poll():
            if ready == listener:
                if not events & select.POLLIN:
                    return
                caller = _answer(listener)
                if caller is not None:
                    total += 1
                    if caller in callers or len(callers) < CALLERS_MAX:
                        callers[caller] += 1
            elif not _tell(owner, total, callers):
                waiting.unregister(owner)


def _answer(listener: int) -> Caller | None:
    """Note who wanted what, then refuse it. None for a probe and for a caller that died meanwhile."""
    raw = bytearray(_NOTICE.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, raw)
    except OSError:  # ENOENT: the caller was killed before its call was taken up
        return None
    notice, process, _, number, _, _, family, kind, *_ = _NOTICE.unpack(raw)
    process, name = _process_of(process)
    with contextlib.suppress(OSError):  # it was killed while it waited
        fcntl.ioctl(listener, _SEND, _REPLY.pack(notice, 0, -errno.EAFNOSUPPORT, 0))
    if kind & 0xF == PROBE_TYPE:
        return None
    return process, name, seccomp.call_name(number), _family(family & 0xFFFFFFFF)


def _process_of(thread: int) -> tuple[int, str]:
    """The process that a thread belongs to, and the thread's name; the thread itself if it is gone."""
    try:
        status = (Path("/proc") / str(thread) / "status").read_text(errors="replace")
    except OSError:
        return thread, "?"
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(fields.get("Tgid", thread)), fields.get("Name", "?").strip()


def _family(number: int) -> str:
    try:
        return socket.AddressFamily(number).name
    except ValueError:
        return str(number)


def _tell(owner: socket.socket, total: int, callers: Counter[Caller]) -> bool:
    """Answer the owner's question; False if it is gone."""
    try:
        if not owner.recv(1):
            return False
        rows = [[*caller, count] for caller, count in callers.items()]
        body = json.dumps({"attempts": total, "callers": rows}).encode()
        owner.sendall(struct.pack("<I", len(body)) + body)
    except OSError:
        return False
    return True
