"""Blob files: written apart, landed under their digest, verified at every read, quarantined.

A file is durable before it has its name, and its name before its row: temp file in the same file
system, hashed while written, fsync, rename to `objects/ab/cdef…`, fsync of that folder. What a crash
leaves behind is a temp file (deleted at the next open) or a file without a row (`orphans`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hermes_runtime.store.digest import Digest
from hermes_runtime.store.failures import translated

_PREFIXES = 256
"""Folders below `objects`, one for each first byte of a digest."""

_READ_BYTES = 1 << 20
WHOLE_BYTES_MAX = 8 << 20
"""Up to here a file is read into memory once; a larger one is read twice in pieces."""


class BlobFiles:
    """The files of one store folder, which its caller owns.

    `at` is told each step of a write, so that a test can make it fail or die there.
    """

    def __init__(self, folder: Path, at: Callable[[str], None]) -> None:
        """Make what is missing and delete the temp files of a writer that died."""
        self._folder = folder
        self._objects = folder / "objects"
        self._quarantine = folder / "quarantine"
        self._temp = folder / "tmp"
        self._at = at
        for path in (self._objects, self._quarantine, self._temp):
            path.mkdir(mode=0o700, exist_ok=True)
        if len(list(self._objects.iterdir())) < _PREFIXES:  # made once: no put waits for a folder
            for prefix in range(_PREFIXES):
                (self._objects / f"{prefix:02x}").mkdir(mode=0o700, exist_ok=True)
            sync_folder(self._objects)
            sync_folder(folder)
        for left_over in self._temp.iterdir():
            left_over.unlink()

    def path(self, sha256: bytes) -> Path:
        """Where the blob's file is or would be."""
        return object_path(self._folder, sha256)

    def quarantine_path(self, sha256: bytes) -> Path:
        """Where the damaged file is or would be."""
        return self._quarantine / sha256.hex()

    def write(self, pieces: Iterable[bytes]) -> tuple[Path, Digest]:
        """A durable temp file of `pieces`, which the caller lands or deletes, and its digest.

        Raises:
            Exhausted: the disk is full; nothing is left of the file.
        """
        hasher, size_bytes = hashlib.sha256(), 0
        with translated(self._folder, 0):
            descriptor, name = tempfile.mkstemp(dir=self._temp)
        temp = Path(name)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                with translated(self._folder, 0):
                    self._at("temp made")
                for piece in pieces:
                    hasher.update(piece)
                    size_bytes += len(piece)
                    with translated(self._folder, len(piece)):
                        _write_all(file.fileno(), piece)
                        self._at("temp written")
                with translated(self._folder, size_bytes):
                    os.fsync(file.fileno())
                    self._at("temp synced")
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        return temp, Digest(hasher.digest(), size_bytes)

    def land(self, temp: Path, digest: Digest) -> None:
        """Give a durable temp file its name, durably; what had that name is replaced."""
        path = self.path(digest.sha256)
        with translated(self._folder, digest.size_bytes):
            self._at("before rename")
            temp.rename(path)
            self._at("renamed")
            sync_folder(path.parent)
            self._at("folder synced")

    def read(self, digest: Digest, start: int, end: int) -> bytes | None:
        """The bytes from `start` to `end` of the blob, all of it verified; None if it is not whole.

        The bytes returned are the very ones that were hashed.
        """
        try:
            with self.path(digest.sha256).open("rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size != digest.size_bytes:
                    return None
                if digest.size_bytes <= WHOLE_BYTES_MAX:
                    data = file.readall()
                    is_whole = hashlib.sha256(data).digest() == digest.sha256
                    return (data if end - start == len(data) else data[start:end]) if is_whole else None
                hasher, kept, position = hashlib.sha256(), bytearray(), 0
                while piece := file.read(_READ_BYTES):
                    hasher.update(piece)
                    kept += piece[max(0, start - position) : max(0, end - position)]
                    position += len(piece)
                return bytes(kept) if hasher.digest() == digest.sha256 else None
        except OSError:  # gone, or unreadable: its bytes are lost either way
            return None

    def read_pieces(self, digest: Digest, piece_bytes: int) -> Iterator[bytes | None]:
        """The blob in pieces, all of it verified before the first one; a None ends it if it is not whole.

        A second reading of a large file is held against the first, piece by piece.
        """
        if digest.size_bytes <= WHOLE_BYTES_MAX:
            data = self.read(digest, 0, digest.size_bytes)
            if data is None:
                yield None
                return
            for start in range(0, len(data), piece_bytes):
                yield data[start : start + piece_bytes]
            return
        try:
            with self.path(digest.sha256).open("rb") as file:
                hasher, marks = hashlib.sha256(), []
                while piece := file.read(piece_bytes):
                    hasher.update(piece)
                    marks.append(hashlib.sha256(piece).digest())
                if hasher.digest() != digest.sha256:
                    yield None
                    return
                file.seek(0)
                for mark in marks:
                    piece = file.read(piece_bytes)
                    if hashlib.sha256(piece).digest() != mark:
                        yield None
                        return
                    yield piece
        except OSError:
            yield None

    def quarantine(self, sha256: bytes) -> None:
        """Put a damaged file apart, if there is one."""
        with translated(self._folder, 0):
            try:
                self.path(sha256).rename(self.quarantine_path(sha256))
            except FileNotFoundError:
                return

    def delete(self, sha256: bytes) -> None:
        """Delete a blob's file and what is quarantined of it, if there are any."""
        self.path(sha256).unlink(missing_ok=True)
        self.quarantine_path(sha256).unlink(missing_ok=True)

    def forget_quarantined(self, sha256: bytes) -> None:
        """Delete what is quarantined of a blob that has been healed."""
        self.quarantine_path(sha256).unlink(missing_ok=True)

    def orphans(self, known: Collection[bytes]) -> Iterator[bytes]:
        """sha256 of the files that no row knows."""
        for folder in self._objects.iterdir():
            for path in folder.iterdir():
                if (sha256 := bytes.fromhex(folder.name + path.name)) not in known:
                    yield sha256

    @contextmanager
    def apart(self) -> Iterator[Path]:
        """An empty file in the same file system, for its caller alone; deleted at the end."""
        with translated(self._folder, 0):
            descriptor, name = tempfile.mkstemp(dir=self._temp)
        os.close(descriptor)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """What the disk has left."""
        return shutil.disk_usage(self._folder).free


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def object_path(folder: Path, sha256: bytes) -> Path:
    """Where a blob's file lies below a store's folder."""
    name = sha256.hex()
    return folder / "objects" / name[:2] / name[2:]


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
