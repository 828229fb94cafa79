"""An operator as a process with a bound on its memory, and what it and the cluster's programs have used.

The bound is a memory cgroup where one can be made (below this process' own, else below the root), and the
kernel kills at it as it kills a container; else it is RLIMIT_DATA, and allocation fails at it. Nothing is
measured here but by the kernel's own counters.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CGROUPS = Path("/sys/fs/cgroup")
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A bound on memory."""

    kind: str
    prefix: tuple[str, ...]
    """A command after these words runs under the bound."""
    folder: Path | None = None
    """The cgroup, where it is one."""

    def kills(self) -> int:
        """How often the kernel killed for it."""
        if self.folder is None:
            return 0
        for name in ("memory.oom_control", "memory.events"):
            if (self.folder / name).exists():
                found = re.search(r"^oom_kill (\d+)", (self.folder / name).read_text("ascii"), re.MULTILINE)
                return int(found[1]) if found else 0
        return 0


@contextmanager
def memory_limit(limit_bytes: int) -> Iterator[Limit]:
    """Bound to this; 0: no bound. The process must have ended when the block is left."""
    if not limit_bytes:
        yield Limit(kind="none", prefix=())
        return
    for parent, name in _homes():
        folder = parent / f"hermes-bench-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / name).write_text(str(limit_bytes), encoding="ascii")
        except OSError:
            folder.rmdir()
            continue
        enter = ("sh", "-c", 'echo $$ > "$0" && exec "$@"', str(folder / "cgroup.procs"))
        try:
            yield Limit(kind=f"cgroup, {name}", prefix=enter, folder=folder)
        finally:
            folder.rmdir()
        return
    yield Limit(kind="RLIMIT_DATA", prefix=("prlimit", f"--data={limit_bytes}", "--"))


def _homes() -> Iterator[tuple[Path, str]]:
    """Cgroups below which one may be made, and the name of the bound there."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text("ascii").splitlines())
    for mounted, path, name in (
        (CGROUPS / "memory", own.get("memory"), "memory.limit_in_bytes"),
        (CGROUPS, own.get(""), "memory.max"),
    ):
        if path is not None:
            yield mounted / path.strip("/"), name
            yield mounted, name


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A started operator."""

    process: asyncio.subprocess.Process
    log: Path
    limit: Limit

    @property
    def has_ended(self) -> bool:
        return self.process.returncode is not None

    def resident_mib(self) -> float:
        """Memory now."""
        return self._memory("VmRSS")

    def peak_mib(self) -> float:
        """The most it ever had."""
        return self._memory("VmHWM")

    def processor_seconds(self) -> float:
        """What it has used of the processors."""
        return 0.0 if self.has_ended else processor_seconds(self.process.pid)

    def _memory(self, name: str) -> float:
        if self.has_ended:
            return 0.0
        text = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0


@asynccontextmanager
async def running(
    command: Sequence[str], *, environment: Mapping[str, str], folder: Path, limit_bytes: int
) -> AsyncIterator[Running]:
    """Start `python` with these arguments; it is gone when the block is left."""
    sources = os.pathsep.join(str(ROOT / part) for part in ("operator", "runtime", "proto/gen", "."))
    log = folder / "operator.log"
    with memory_limit(limit_bytes) as limit, log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *limit.prefix,
            sys.executable,
            *command,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": sources, **environment},
            stdout=output,
            stderr=output,
            cwd=folder,
        )
        try:
            yield Running(process=process, log=log, limit=limit)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def processor_seconds(pid: int) -> float:
    """What a process has used of the processors."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children() -> dict[str, int]:
    """The processes that this one has started, by the name of their program."""
    pids = [
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text("ascii").split()
    ]
    return {os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]): pid for pid in pids}
