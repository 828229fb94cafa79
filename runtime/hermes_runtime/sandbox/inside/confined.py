"""The wall of Landlock's sandbox: a copied tree, Landlock, scoped signals. No privileges, no namespaces.

The keeper enters an outer domain that only scopes signals, the program an inner one that also rules
files and the network. So the keeper can signal every process of the attempt and nothing else, and
one kill(-1) ends them all at once. Below Landlock version 6 it walks /proc instead until none is left.

Not stopped: what `namespaces.py` lists; seeing that other processes exist (not what they are);
filling the disk with many files of `file_bytes`; stat(2) of any path; below version 6 also signals to
other processes of the same user. Tests that connect Unix sockets by name, or use /dev/shm, fail.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import stat
import sys
from collections.abc import Callable

from . import kernel
from .keeper import Limits, Place, Settings, copy_tree, descendants, kill

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK, _TRUNCATE, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_NETWORK = 0b11
"""Bind and connect TCP."""
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_PROC = [
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/version",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/filesystems",
    "/proc/sys/kernel/osrelease",
    "/proc/sys/kernel/pid_max",
    "/proc/sys/kernel/random",
    "/proc/sys/vm/overcommit_memory",
]


def file_rights(version: int) -> int:
    """All rights on files that a version of Landlock can rule."""
    known = (1 << 13) - 1
    for since, bit in ((2, 13), (3, 14), (5, 15)):
        if version >= since:
            known |= 1 << bit
    return known


class Wall:
    """See the module."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._version = kernel.landlock_abi()
        self._folder: str | None = None
        self._scoped = False

    def open_session(self) -> None:
        """Adopt what a killed keeper leaves behind."""
        if self._version == 0:
            raise OSError("the kernel has no Landlock")
        kernel.become_subreaper()
        self._make_spare()

    def _make_spare(self) -> None:
        """A copy of the tree for the attempt after this one, made while nobody waits for it."""
        scratch = self._settings.scratch
        if not any(name.startswith("spare-") for name in os.listdir(scratch)):
            making = os.path.join(scratch, "making-%d" % os.getpid())
            copy_tree(self._settings.lower, making)
            os.rename(making, os.path.join(scratch, "spare-%d" % os.getpid()))

    def _take_tree(self, target: str) -> None:
        for name in os.listdir(self._settings.scratch):
            if name.startswith("spare-"):
                with contextlib.suppress(OSError):  # another attempt was faster
                    os.rename(os.path.join(self._settings.scratch, name), target)
                    return
        copy_tree(self._settings.lower, target)

    def enter(self, limits: Limits) -> Place:
        """A copied tree; this process collects the attempt's orphans."""
        kernel.become_subreaper()
        self._folder = os.path.join(self._settings.scratch, str(os.getpid()))
        os.mkdir(self._folder, 0o700)
        place = Place(self._folder + "/tree", self._folder + "/tmp")
        os.mkdir(place.temporary, 0o700)
        self._take_tree(place.tree)
        if self._version >= 6:
            self._scope_signals()
        elif os.getuid():  # walking /proc could lose a race against many forks: bound them
            most = _threads_of_user() + limits.processes
            resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
        return place

    def _scope_signals(self) -> None:
        kernel.no_new_privileges()
        kernel.landlock_restrict(kernel.landlock_ruleset(self._version, 0, 0, _SCOPE_SIGNALS))
        try:
            os.kill(os.getppid(), 0)
        except PermissionError:
            self._scoped = True  # proven: kill(-1) cannot reach beyond the domain

    def start(self, program: Callable[[], None]) -> int:
        """Start `program`; returns its process id."""
        main = os.fork()
        if main == 0:
            try:
                program()
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(125)
        return main

    def confine(self, place: Place) -> None:
        """In the program: give up everything but the system to read and the attempt's folders to write."""
        handled = file_rights(self._version)
        ruleset = kernel.landlock_ruleset(
            self._version, handled, _NETWORK, _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS
        )
        own = "/proc/%d" % os.getpid()
        rules: list[tuple[str, int]] = [(path, _READ) for path in (*self._settings.readable, *_PROC, own)]
        rules += [(path, _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV) for path in _DEVICES]
        writable = handled & ~(_MAKE_CHAR | _MAKE_BLOCK)
        rules += [(place.tree, writable), (place.temporary, writable)]
        for path, rights in rules:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.stat(path).st_mode):
                    rights &= _FILE_RIGHTS
                kernel.landlock_allow(ruleset, path, rights & handled)
        kernel.no_new_privileges()
        kernel.landlock_restrict(ruleset)
        kernel.drop_capabilities()

    def status(self, main_process: int) -> int:
        """The ended program's wait status."""
        return os.waitpid(main_process, 0)[1]

    def scratch_bytes(self) -> int:
        """Files are on disk here, not in memory."""
        return 0

    def kill_all(self) -> None:
        """Kill every descendant and wait until none is left."""
        while True:
            if self._scoped:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(-1, signal.SIGKILL)
            else:
                for process in descendants(os.getpid()):
                    kill(process, signal.SIGKILL)
            try:
                while os.waitpid(-1, 0 if self._scoped else os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return

    def leave(self) -> None:
        """Remove the attempt's folder, whatever modes the program left."""
        if self._folder is not None:
            _open_up(self._folder)
            shutil.rmtree(self._folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # the session may be gone
                self._make_spare()


def _open_up(folder: str) -> None:
    """Make every folder below removable, following no links."""
    for here, folders, _ in os.walk(folder):
        for name in folders:
            path = os.path.join(here, name)
            with contextlib.suppress(OSError):
                if not os.path.islink(path):
                    os.chmod(path, 0o700)


def _threads_of_user() -> int:
    total = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat("/proc/" + name).st_uid == os.getuid():
                total += len(os.listdir("/proc/%s/task" % name))
    return total
