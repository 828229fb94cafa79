"""The sandbox port: run a test program many times on copies of one tree, walled off.

    bubblewrap.py   namespaces of its own (user, pid, ipc, network), read-only system
    landlock.py     Landlock + seccomp + rlimits, no privileges: for pods and hosts without bubblewrap
    choose.py       which one this host can run, and what to say if none
    session.py      a warm interpreter behind a socket pair; interpreter.py finds what it needs to see
    inside/         what runs behind the wall, standard library only: forks, trees, limits, pytest
    suite.py        TestSuite: the port for tests, over any sandbox

A Session holds one warm interpreter for one tree. Each attempt gets a fresh copy-on-write tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class Ending(StrEnum):
    """How an attempt ended."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    OUTPUT_LIMIT = "output limit"
    PROCESS_LIMIT = "process limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one attempt may use; over any of them the whole tree of its processes is killed."""

    wall_seconds: float = 60.0
    cpu_seconds: int = 60
    memory_bytes: int = 2 << 30
    processes: int = 64
    file_bytes: int = 256 << 20
    """Largest file that may be written."""
    output_bytes: int = 4 << 20
    """Most bytes of stdout + stderr that are kept; more ends the attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a session is opened on."""

    tree: Path
    """Folder that every attempt gets a copy of; never written."""
    python: Path
    """Interpreter of the instance's environment; it has pytest and coverage."""
    import_roots: tuple[str, ...] = (".",)
    """Folders of the tree to put on sys.path, relative to it."""
    preload: tuple[str, ...] = ("pytest", "coverage")
    """Modules to import before forking; never modules of the tree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One run: the request that the inside program gets, and files replaced in its copy of the tree."""

    request: Mapping[str, object]
    files: Mapping[str, bytes] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of an attempt."""

    ending: Ending
    exit_code: int | None
    output: bytes
    """stdout + stderr in order, cut at the limit."""
    report: bytes | None
    """What the inside program handed back (JSON); None if it did not get so far."""
    setup_seconds: float
    """From the request to the first instruction of the inside program."""
    seconds: float
    """From the request to the end of the last process."""


class Session(Protocol):
    """A warm interpreter over one tree. Attempts may run at once, up to what the caller wants."""

    async def run(self, attempt: Attempt) -> Outcome:
        """Run one attempt; cancelling the call kills the attempt. PeerLost if the session died."""
        ...

    async def close(self) -> None:
        """Kill what is left. Idempotent."""
        ...


class Sandbox(Protocol):
    """A way to wall off."""

    name: str

    def unavailable(self) -> str | None:
        """Why this host cannot run it, with the remedy; None if it can."""
        ...

    async def open(self, bench: Bench) -> Session:
        """Start a warm interpreter; Unsupported if `unavailable()`; BadInput if the interpreter fails."""
        ...
