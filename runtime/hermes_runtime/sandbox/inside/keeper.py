"""One attempt, outside its wall: prepare it, watch its limits, kill all of it, say how it ended.

The keeper is trusted code between the zygote and the tested program. It reads the request from the
host, lets the wall start the program, and looks every few milliseconds at what the program's whole
tree of processes uses. The end of the host's socket is an order to kill. Nothing of the program
outlives the keeper's last frame.
"""

from __future__ import annotations

import base64
import contextlib
import os
import resource
import select
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any, Protocol

from . import frames, kernel

TICK_SECONDS = 0.02
REPORT = 3
"""Descriptor of the program's report: eight bytes of start time, then what the program writes."""
Program = Callable[[dict[str, Any], int], None]
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CLOCK = os.sysconf("SC_CLK_TCK")


class Settings:
    """What the host says once, at the start of a session."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.wall: str = given["wall"]
        self.preload: list[str] = given["preload"]
        self.import_roots: list[str] = given["import_roots"]
        self.lower: str = given["lower"]
        """The tree, never written."""
        self.scratch: str = given["scratch"]
        """Where attempts are made: a mount point, or a folder of the session's own."""
        self.readable: list[str] = given["readable"]
        """Landlock: what may be read and executed."""
        self.filter: bytes = base64.b64decode(given["filter"])
        self.path: str = given["path"]
        """PATH of the program."""
        self.warm_folder: str = given["warm_folder"]
        """A folder that the zygote may write."""
        self.temporary: str = given["temporary"]
        """Namespaces: where an attempt's folder for temporary files is seen."""


class Limits:
    """What the attempt may use."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.wall_seconds: float = given["wall_seconds"]
        self.cpu_seconds: int = given["cpu_seconds"]
        self.memory_bytes: int = given["memory_bytes"]
        self.processes: int = given["processes"]
        self.file_bytes: int = given["file_bytes"]


class Place:
    """Where the program finds itself."""

    def __init__(self, tree: str, temporary: str) -> None:
        self.tree = tree
        self.temporary = temporary


class Wall(Protocol):
    """What holds an attempt in; one object for a session, forked with every attempt."""

    def open_session(self) -> None: ...

    def enter(self, limits: Limits) -> Place: ...

    def start(self, program: Callable[[], None]) -> int: ...

    def confine(self, place: Place) -> None: ...

    def status(self, main_process: int) -> int: ...

    def scratch_bytes(self) -> int: ...

    def kill_all(self) -> None: ...

    def leave(self) -> None: ...


def keep(wall: Wall, settings: Settings, descriptors: list[int], program: Program) -> None:
    """One attempt from its first frame to its last; runs in a fork of the zygote."""
    begun = time.monotonic()
    host, output, report = socket.socket(fileno=descriptors[0]), descriptors[1], descriptors[2]
    try:
        request: Any = frames.receive(host)  # JSON of our own host
        if request is None:
            return
        limits = Limits(request["limits"])
        place = wall.enter(limits)
        try:
            write_files(place.tree, request["files"])
            main_process = wall.start(
                lambda: _become_program(
                    wall, settings, limits, place, output, report, request["request"], program
                )
            )
            os.close(output)
            os.close(report)
            ending, code = _watch(wall, host, main_process, limits, begun)
        finally:
            wall.kill_all()
        _say(host, {"ending": ending, "exit_code": code})
    except OSError as error:
        with contextlib.suppress(OSError):
            _say(host, {"error": str(error)})
    finally:
        host.close()
        wall.leave()


def _say(host: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        host.sendall(frames.pack(message))


def _become_program(
    wall: Wall,
    settings: Settings,
    limits: Limits,
    place: Place,
    output: int,
    report: int,
    request: dict[str, Any],
    program: Program,
) -> None:
    """Turn this fork into the tested program: everything is given up before its first instruction."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    high = max(output, report, REPORT) + 1
    os.dup2(output, high)
    os.dup2(report, high + 1)
    empty = os.open(os.devnull, os.O_RDWR)
    os.dup2(empty, 0)
    os.dup2(high, 1)
    os.dup2(high, 2)
    os.dup2(high + 1, REPORT, inheritable=False)
    os.closerange(REPORT + 1, 1 << 20)
    os.chdir(place.tree)
    roots = [os.path.normpath(os.path.join(place.tree, root)) for root in settings.import_roots]
    os.environ.clear()
    os.environ.update(
        HOME=place.temporary,
        TMPDIR=place.temporary,
        PATH=settings.path,
        LANG="C.UTF-8",
        TZ="UTC",
        PYTHONPATH=os.pathsep.join(roots),
        PYTHONHASHSEED="0",
        PYTHONDONTWRITEBYTECODE="1",
        COVERAGE_CORE="ctrace",
    )
    tempfile.tempdir = None
    _limit(limits)
    wall.confine(place)
    kernel.seccomp(settings.filter)
    os.write(REPORT, _start_time())
    program(dict(request, tree=place.tree, temporary=place.temporary, import_roots=roots), REPORT)


def _start_time() -> bytes:
    return int(time.monotonic() * 1e9).to_bytes(8, "little")


def _limit(limits: Limits) -> None:
    mapped = int(_read("/proc/self/statm").split()[0]) * _PAGE
    for what, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, 1024),
        # one process may ask for no more than twice what all together may use: a single absurd request
        # is a MemoryError there and then; the keeper watches what is really used
        (resource.RLIMIT_AS, mapped + 2 * limits.memory_bytes),
    ):
        _lower(what, value, value)
    _lower(resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 1)


def _lower(what: int, soft: int, hard: int) -> None:
    ceiling = resource.getrlimit(what)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(what, (soft, hard))


def _watch(
    wall: Wall, host: socket.socket, main_process: int, limits: Limits, begun: float
) -> tuple[str, int | None]:
    """Wait until the program ends, breaks a limit or is to be killed: (ending, exit code)."""
    descriptor = os.pidfd_open(main_process)
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    waiting.register(host, select.POLLIN)
    deadline = begun + limits.wall_seconds
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return "timed out", None
        ready = dict(waiting.poll(max(1, int(min(left, TICK_SECONDS) * 1000))))
        if descriptor in ready:
            os.close(descriptor)
            return _ending(wall.status(main_process), limits)
        if host.fileno() in ready:  # an order to kill, or the host is gone
            order = frames.receive(host)
            return str(order["kill"]) if order else "signalled", None
        broken = _broken_limit(wall, limits)
        if broken:
            return broken, None


def _ending(status: int, limits: Limits) -> tuple[str, int | None]:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = used.ru_utime + used.ru_stime >= limits.cpu_seconds
        if number == signal.SIGXCPU or (number == signal.SIGKILL and spent):
            return "timed out", None
        return "signalled", -number
    return "exited", os.WEXITSTATUS(status)


def _broken_limit(wall: Wall, limits: Limits) -> str | None:
    ticks = pages = threads = 0
    family = descendants(os.getpid(), limits.processes * 4)
    for process in family:
        fields = _read("/proc/%d/stat" % process).rpartition(")")[2].split()
        if len(fields) < 22:  # it has just ended
            continue
        ticks += sum(map(int, fields[11:15]))
        threads += int(fields[17])
        pages += int(fields[21])
    if threads > limits.processes:
        return "process limit"
    if ticks > limits.cpu_seconds * _CLOCK:
        return "timed out"
    files = wall.scratch_bytes()
    if pages * _PAGE + files > limits.memory_bytes and _proportional(family) + files > limits.memory_bytes:
        return "out of memory"
    return None


def _proportional(family: list[int]) -> int:
    """Bytes in memory, pages that forks share counted once."""
    total = 0
    for process in family:
        for line in _read("/proc/%d/smaps_rollup" % process).splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) << 10
    return total


def children(process: int) -> list[int]:
    """Direct children, of all threads."""
    out: list[int] = []
    try:
        tasks = os.listdir("/proc/%d/task" % process)
    except OSError:
        return out
    for task in tasks:
        out += map(int, _read("/proc/%d/task/%s/children" % (process, task)).split())
    return out


def descendants(process: int, most: int = 1 << 30) -> list[int]:
    """Processes below `process`; stops looking at `most`."""
    out: list[int] = []
    left = [process]
    while left and len(out) < most:
        found = children(left.pop())
        out += found
        left += found
    return out


def kill(process: int, number: int | signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def write_files(tree: str, files: dict[str, str]) -> None:
    """Put base64 `files` into the attempt's tree, following no link on the way."""
    for path, content in files.items():
        *folders, name = path.split("/")
        if name in ("", ".", "..") or any(folder in ("", ".", "..") for folder in folders):
            raise OSError("file %r does not stay in the tree" % path)
        here = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for folder in folders:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, 0o755, dir_fd=here)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(folder, flags, dir_fd=here)
                os.close(here)
                here = below
            mode = 0o644
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=here, follow_symlinks=False)
                mode = found.st_mode & 0o777
                os.unlink(name, dir_fd=here)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(name, flags, mode, dir_fd=here), "wb") as file:
                file.write(base64.b64decode(content))
        finally:
            os.close(here)


def copy_tree(source: str, target: str) -> None:
    """Copy folders, files and links, with modes and times; `.git` and what is none of these stay behind."""
    os.mkdir(target, 0o700)
    with os.scandir(source) as entries:
        for entry in entries:
            to = os.path.join(target, entry.name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), to)
            elif entry.is_dir():
                if entry.name != ".git":
                    copy_tree(entry.path, to)
            elif entry.is_file():
                _copy_file(entry, to)


def _copy_file(entry: os.DirEntry[str], target: str) -> None:
    found = entry.stat()
    reading = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        writing = os.open(target, flags, (found.st_mode & 0o777) | 0o600)
        try:
            offset = 0
            while offset < found.st_size:
                sent = os.sendfile(writing, reading, offset, found.st_size - offset)
                if not sent:
                    break
                offset += sent
            os.utime(writing, ns=(found.st_atime_ns, found.st_mtime_ns))
        finally:
            os.close(writing)
    finally:
        os.close(reading)
