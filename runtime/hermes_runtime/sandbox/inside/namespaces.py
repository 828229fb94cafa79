"""The wall of bubblewrap's sandbox: nested namespaces for each attempt, over what bubblewrap made.

bubblewrap gives the session a read-only system. Here the zygote takes a network and a process
namespace of its own (bubblewrap's --unshare-net needs a netlink socket, which a sealed run has not),
and each attempt its own user, mount, process and IPC namespaces with an overlay of the tree.

Not stopped: bugs of the kernel; CPU side channels; reading the read-only system and the interpreter's
environment; filling `memory_bytes` of memory; forging its own test results from within the test process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable

from . import kernel
from .keeper import Limits, Place, Settings, copy_tree

TREE = "/testbed"


class Wall:
    """See the module."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._init: int | None = None
        self._scratch = -1
        self._status = (-1, -1)

    def open_session(self) -> None:
        """Returns in the first process of new namespaces; the process that called waits for its end."""
        owner = os.getuid(), os.getgid()  # unmapped, they read as nobody
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNET | kernel.CLONE_NEWPID | kernel.CLONE_NEWNS)
        _map_own_user(*owner)
        first = os.fork()
        if first:
            os.closerange(3, 1 << 16)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)
        kernel.die_with_parent(signal.SIGKILL)
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)

    def enter(self, limits: Limits) -> Place:
        """New namespaces and a fresh tree, for this process and what it starts."""
        owner = os.getuid(), os.getgid()
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC)
        _map_own_user(*owner)
        scratch = self._settings.scratch
        quiet = kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        kernel.mount("tmpfs", scratch, "tmpfs", quiet, "size=%d,mode=0755" % limits.memory_bytes)
        for folder in ("upper", "work", "tmp", "shm"):
            os.mkdir(os.path.join(scratch, folder), 0o755)
        self._mount_tree(quiet)
        kernel.mount(scratch + "/tmp", self._settings.temporary, None, kernel.MS_BIND)
        kernel.mount(scratch + "/shm", "/dev/shm", None, kernel.MS_BIND)
        self._scratch = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return Place(TREE, self._settings.temporary)

    def _mount_tree(self, flags: int) -> None:
        lower, scratch = self._settings.lower, self._settings.scratch
        if os.stat(lower).st_uid == os.getuid():  # the overlay can copy up only what this user owns
            layers = "lowerdir=%s,upperdir=%s/upper,workdir=%s/work,userxattr" % (lower, scratch, scratch)
            with contextlib.suppress(OSError):  # kernels before 5.11 and some hardened ones refuse it
                kernel.mount("overlay", TREE, "overlay", flags, layers)
                return
        copy_tree(lower, scratch + "/copy")
        kernel.mount(scratch + "/copy", TREE, None, kernel.MS_BIND)

    def start(self, program: Callable[[], None]) -> int:
        """Start `program` below an init of its own; returns the init's process id."""
        reading, writing = os.pipe()
        self._status = (reading, writing)
        init = os.fork()
        if init == 0:
            try:
                _init(self._settings.scratch, program, writing)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(125)
        os.close(writing)
        self._init = init
        return init

    def confine(self, place: Place) -> None:
        """In the program: the namespaces hold it already."""

    def status(self, main_process: int) -> int:
        """The program's wait status, handed on by the ended init."""
        os.waitpid(main_process, 0)
        self._init = None
        told = os.read(self._status[0], 8)
        return int.from_bytes(told, "little") if told else signal.SIGKILL

    def scratch_bytes(self) -> int:
        """Bytes of files in the attempt's memory file system."""
        found = os.fstatvfs(self._scratch)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def kill_all(self) -> None:
        """With its init a process namespace ends, whatever its processes ignore."""
        if self._init is not None:
            os.kill(self._init, signal.SIGKILL)
            os.waitpid(self._init, 0)
            self._init = None

    def leave(self) -> None:
        """Nothing is left: the mounts end with the last process."""


def _map_own_user(user: int, group: int) -> None:
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", "%d %d 1" % (user, user)),
        ("gid_map", "%d %d 1" % (group, group)),
    ):
        with open("/proc/self/" + name, "w", encoding="ascii") as file:
            file.write(text)


def _init(scratch: str, program: Callable[[], None], status: int) -> None:
    """First process of the attempt's namespace: collects the dead, and hands on how the program ended."""
    kernel.unshare(kernel.CLONE_NEWNS)  # the keeper goes on seeing its own /proc, to watch the limits
    # read-only: where the host's user is root, /proc/sys would take its writes
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC | kernel.MS_RDONLY
    kernel.mount("proc", "/proc", "proc", flags)
    kernel.mount("tmpfs", scratch, "tmpfs", flags, "size=4k,mode=0555")  # hides the overlay's layers
    kernel.drop_capabilities()
    kernel.no_new_privileges()
    kernel.set_dumpable(False)
    main = os.fork()
    if main == 0:
        kernel.set_dumpable(True)
        try:
            program()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(125)
    os.closerange(0, status)
    os.closerange(status + 1, 1 << 16)
    while True:
        ended, how = os.wait()
        if ended == main:
            os.write(status, how.to_bytes(8, "little"))
            os._exit(0)
