"""A ready file: there while a process serves, and only then; what starts the process waits for it.

It says where the process serves. A process that is killed leaves it behind, so who needs to know whether
a process answers asks the process; this file is for the start alone. Removed first thing at the next start.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType


class ReadyFile:
    """Use as a context; without a path it does nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __enter__(self) -> ReadyFile:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def write(self, where: str) -> None:
        """The process serves at `where`."""
        if self._path is not None:
            new = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            new.write_text(f"{where}\n", encoding="utf-8")
            new.replace(self._path)
