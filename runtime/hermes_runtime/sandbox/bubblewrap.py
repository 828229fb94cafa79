"""The sandbox of bubblewrap: namespaces of its own, a read-only system, no home, no network.

bubblewrap makes the session's file system; `inside/namespaces.py` makes an attempt's namespaces in it.
Works for an ordinary user where the kernel lets users make namespaces.

Not stopped: bugs of the kernel, which a test can reach through most system calls; CPU side channels;
reading /usr and the instance's environment; using up the limits; forging its own results from inside
the test process (grading therefore runs apart from the agents, on tests that they could not change).
"""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from hermes_runtime.errors import Unsupported
from hermes_runtime.sandbox import Bench, Session
from hermes_runtime.sandbox.interpreter import ETC, SYSTEM, Interpreter, interpreter_of
from hermes_runtime.sandbox.session import ENVIRONMENT, INSIDE, WarmSession, zygote_command
from hermes_runtime.supervise import seccomp

_SELF, _LOWER, _SCRATCH = "/hermes/inside", "/hermes/lower", "/hermes/scratch"
_TMP = "/hermes/tmp"
_UID = 1000


class Bubblewrap:
    """See the module."""

    name = "bubblewrap"

    def __init__(self, program: str = "bwrap") -> None:
        self._program = program

    def unavailable(self) -> str | None:
        """Why it cannot run here, found by running it once."""
        found = shutil.which(self._program)
        if found is None:
            return (
                "bubblewrap is not installed: `apt-get install bubblewrap`, "
                "or set spec.evaluate.sandbox: landlock"
            )
        try:
            done = subprocess.run(
                [found, *_walls(Interpreter(folders=(), links=())), "/usr/bin/env", "true"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=20,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"bubblewrap does not run: {error}; set spec.evaluate.sandbox: landlock"
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            return (
                f"bubblewrap cannot make namespaces here ({said}): allow user namespaces "
                "(on the host: "
                "`sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0`) "
                "or set spec.evaluate.sandbox: landlock"
            )
        return None

    async def open(self, bench: Bench) -> Session:
        """See the port."""
        found = shutil.which(self._program)
        if found is None:
            raise Unsupported(self.unavailable() or "bubblewrap is not installed")
        interpreter = interpreter_of(bench.python)
        folder = Path(tempfile.mkdtemp(prefix="hermes-sandbox-"))
        control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mounts = [
            *("--ro-bind", str(INSIDE), _SELF),
            *("--ro-bind", str(bench.tree.resolve()), _LOWER),
            *("--dir", "/testbed", "--remount-ro", "/"),
        ]
        command = [
            *(found, *_walls(interpreter), *mounts, "--"),
            *zygote_command(str(bench.python.absolute()), _SELF, control[1].fileno()),
        ]
        settings = {
            "wall": "namespaces",
            "preload": list(bench.preload),
            "import_roots": list(bench.import_roots),
            "lower": _LOWER,
            "scratch": _SCRATCH,
            "warm_folder": _SCRATCH,
            # an environment below /tmp would be hidden by an attempt's own /tmp
            "temporary": _TMP if any(one.startswith("/tmp/") for one in interpreter.folders) else "/tmp",
            "readable": [],
            "filter": base64.b64encode(seccomp.program(seccomp.BENCH)).decode(),
            "path": f"{bench.python.absolute().parent}:{ENVIRONMENT['PATH']}",
        }
        return await WarmSession.start(command, settings, control=control, folder=folder)


def _walls(interpreter: Interpreter) -> list[str]:
    """bubblewrap's arguments for everything but the session's own mounts."""
    out = ["--unshare-user", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    out += ["--uid", str(_UID), "--gid", str(_UID), "--hostname", "sandbox"]
    out += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for path in SYSTEM:
        if Path(path).is_symlink():
            out += ["--symlink", str(Path(path).readlink()), path]
        elif Path(path).is_dir():
            out += ["--ro-bind", path, path]
    for path in ETC:
        out += ["--ro-bind-try", path, path]
    out += ["--dir", "/tmp", "--dir", _TMP, "--tmpfs", _SCRATCH]
    for path in interpreter.folders:
        out += ["--ro-bind", path, path]
    for where, what in interpreter.links:
        out += ["--symlink", what, where]
    # the host's /proc only lets the zygote mount its own over it: a user namespace may mount what it sees
    out += ["--bind", "/proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    return out
