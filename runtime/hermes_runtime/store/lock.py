"""One process owns a store's folder: an exclusive lock on a file in it, which tells who.

The kernel frees the lock when its holder dies, however it dies. Not covered: network file systems
whose locks do not cross hosts.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from hermes_runtime.errors import Busy


class FolderLock:
    """Held from construction to `release`."""

    def __init__(self, folder: Path) -> None:
        """Raises Busy, naming the process that holds the folder."""
        self._file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._file, 32, 0).decode(errors="replace").partition("\n")[0] or "unknown"
            os.close(self._file)
            raise Busy(
                f"store folder {folder} is in use by process {holder}: call that store through its socket, "
                "or stop it"
            ) from error
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            pass  # a full disk must not keep anybody from reading; only the name of the holder is lost

    def tell(self, socket: Path) -> None:
        """Say where the holder answers, for `socket_of`."""
        with suppress(OSError):  # a full disk, as in the constructor
            os.pwrite(self._file, f"{os.getpid()}\n{socket.absolute()}\n".encode(), 0)

    def release(self) -> None:
        """Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def socket_of(folder: Path) -> Path | None:
    """The socket at which the holder of a folder answers; None if nobody holds it.

    Raises:
        Busy: it is held by a process that has told no socket.
    """
    try:
        FolderLock(folder).release()
    except Busy:
        lines = (folder / "lock").read_text(errors="replace").splitlines()
        if len(lines) < 2:
            raise
        return Path(lines[1])
    return None
