"""The sandbox of Landlock: no namespaces and no privileges, for pods and hosts without bubblewrap.

The warm interpreter is a plain child process; `inside/confined.py` confines each attempt, whose tree
is a copy in a folder of its own.

Not stopped: what bubblewrap's does not stop either, and: seeing which process ids exist; filling the
disk with many files; stat(2) of any path; reading the host's /etc/passwd; below Landlock version 6
signals to other processes of the same user. Tests that connect Unix sockets by name or need /dev/shm fail.
"""

from __future__ import annotations

import base64
import socket
import sys
import tempfile
from pathlib import Path

from hermes_runtime.errors import Unsupported
from hermes_runtime.sandbox import Bench, Session
from hermes_runtime.sandbox.inside import kernel
from hermes_runtime.sandbox.interpreter import ETC, SYSTEM, interpreter_of
from hermes_runtime.sandbox.session import ENVIRONMENT, INSIDE, WarmSession, zygote_command
from hermes_runtime.supervise import seccomp


class Landlock:
    """See the module."""

    name = "landlock"

    def unavailable(self) -> str | None:
        """Why the kernel cannot do it."""
        if not sys.platform.startswith("linux"):
            return f"Landlock is a part of Linux, and this is {sys.platform}: run in a Linux container"
        if kernel.landlock_abi() == 0:
            return (
                "the kernel has no Landlock, or it is switched off: use Linux 5.13 or newer with `landlock` "
                "in the kernel's boot option `lsm=` (see /sys/kernel/security/lsm), or set "
                "spec.evaluate.sandbox: bubblewrap"
            )
        return None

    async def open(self, bench: Bench) -> Session:
        """See the port."""
        reason = self.unavailable()
        if reason is not None:
            raise Unsupported(reason)
        interpreter = interpreter_of(bench.python)
        folder = Path(tempfile.mkdtemp(prefix="hermes-sandbox-"))
        scratch = folder / "attempts"
        scratch.mkdir(mode=0o700)
        control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = {
            "wall": "confined",
            "preload": list(bench.preload),
            "import_roots": list(bench.import_roots),
            "lower": str(bench.tree.resolve()),
            "scratch": str(scratch),
            "warm_folder": str(folder),
            "temporary": "",
            "readable": [*SYSTEM, *ETC, *interpreter.folders, str(INSIDE)],
            "filter": base64.b64encode(seccomp.program(seccomp.BENCH_ON_HOST)).decode(),
            "path": f"{bench.python.absolute().parent}:{ENVIRONMENT['PATH']}",
        }
        command = zygote_command(str(bench.python.absolute()), str(INSIDE), control[1].fileno())
        return await WarmSession.start(command, settings, control=control, folder=folder)
