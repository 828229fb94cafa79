"""Errors of SQLite and of the disk, told as errors of ours. The one place where they are translated."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from hermes_runtime.errors import BadInput, Busy, Damaged, Denied, Exhausted, HermesError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space, quota used up, larger than a file may become."""


@contextmanager
def translated(folder: Path, needed_bytes: int, connection: apsw.Connection | None = None) -> Iterator[None]:
    """Raise what the disk or SQLite raises as the error of ours that it stands for."""
    try:
        yield
    except apsw.Error as error:
        raise _of_sqlite(error, folder, needed_bytes, connection) from error
    except OSError as error:
        raise _of_disk(error, folder, needed_bytes) from error


def _of_sqlite(
    error: apsw.Error, folder: Path, needed_bytes: int, connection: apsw.Connection | None
) -> HermesError:
    match error:
        case apsw.FullError():
            return full(folder, needed_bytes)
        case apsw.IOError() if connection is not None and connection.system_errno in _FULL:
            return full(folder, needed_bytes)
        case apsw.CorruptError() | apsw.NotADBError():
            return Damaged(
                f"the database in store folder {folder} is damaged ({error}): run `hermes store fsck` on it, "
                "or restore the folder from a copy"
            )
        case apsw.ReadOnlyError() | apsw.CantOpenError() | apsw.PermissionsError():
            return Denied(f"the database in store folder {folder} cannot be written: {error}; check its mode")
        case apsw.BusyError():
            return Busy(f"the database in store folder {folder} is held by another program: {error}; stop it")
        case apsw.TooBigError():
            return BadInput(f"too large for the database in store folder {folder}: {error}")
        case _:
            return HermesError(f"store folder {folder}: SQLite answers {type(error).__name__}: {error}")


def _of_disk(error: OSError, folder: Path, needed_bytes: int) -> HermesError:
    if error.errno in _FULL:
        return full(folder, needed_bytes)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Denied(f"store folder {folder} cannot be written: {error}; check its owner and mode")
    return HermesError(f"store folder {folder}: the disk answers {error}")


def full(folder: Path, needed_bytes: int) -> Exhausted:
    """The disk has no room for `needed_bytes`."""
    free_bytes = shutil.disk_usage(folder).free
    return Exhausted(
        f"store folder {folder} is full: {needed_bytes} bytes needed, {free_bytes} free; nothing was "
        "stored. Free some space (`hermes store gc`) or move the store to a larger disk"
    )
