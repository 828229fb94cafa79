"""A backup of a store that goes on serving, and the way back.

One process owns the database, so that one is asked: it sends a copy as of one instant, and collects
nothing until the call ends; the blobs that the copy names are read through the same door. The caller
writes, and may be in another pod with another volume. The database is copied whole each time.

    objects/ab/cdef…   blobs, as in a store: immutable, so only those not there are copied
    <sha256>.db        the database's copy
    backup.json        names it; replaced last, so that a backup cut off leaves the one before it whole
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import apsw
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hermes_runtime.errors import BadInput, Damaged, HermesError, NotFound
from hermes_runtime.store import Digest, fsck
from hermes_runtime.store.client import StoreClient
from hermes_runtime.store.disk import UNFINISHED_RESTORE
from hermes_runtime.store.failures import translated
from hermes_runtime.store.files import BlobFiles, object_path, sync_folder
from hermes_runtime.store.lock import FolderLock, socket_of
from hermes_runtime.store.service import serve

MANIFEST = "backup.json"

_COPIERS = 4
"""Blobs on their way at a time: each waits for the store, then for its own fsync."""

_SAY_EVERY = 500
_READ_BYTES = 1 << 20
_CALL_SECONDS = 7 * 24 * 3600.0
_FOREIGN = frozenset({"lost+found"})
"""What a new file system brings along: a folder that holds no more is empty."""

Say = Callable[[str], None]


class Manifest(BaseModel):
    """What backup.json holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(default=1, ge=1, le=1)
    taken_at: datetime
    """Every event and result acknowledged before this instant is in it."""
    database_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    database_bytes: int
    blobs: int
    """Blobs in files; smaller ones are rows of the database."""
    blob_bytes: int
    damaged: tuple[str, ...] = ()
    """sha256 of blobs that the store itself found damaged: they are not in the backup."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a backup did."""

    manifest: Manifest
    copied: int
    """Blobs that were not there before, or not whole."""
    copied_bytes: int


async def backup(
    client: StoreClient,
    to: Path,
    *,
    verify: bool = False,
    say: Say = lambda text: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Copied:
    """Bring the backup in `to` up to what the store holds now. Idempotent; goes on where it was cut off.

    `verify` reads again what is there already, and copies again what has changed.

    Raises:
        Busy: another backup writes to `to`.
        NotFound: a blob was collected, because the call that keeps them was lost: back up again.
        Exhausted: the store or `to` has no room.
    """
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FolderLock(to)
    try:
        files = BlobFiles(to, lambda step: None)
        taken_at = now()
        async with aclosing(client.backup(timeout_seconds=_CALL_SECONDS)) as call:
            digest = await _database(call, files, to)
            named = await asyncio.to_thread(_named_blobs, _database_path(to, digest.hex))
            say(f"database: {digest.size_bytes} bytes; it names {len(named)} blobs in files")
            copied, damaged = await _blobs(client, files, named, verify, say)
        manifest = Manifest(
            taken_at=taken_at,
            database_sha256=digest.hex,
            database_bytes=digest.size_bytes,
            blobs=len(named) - len(damaged),
            blob_bytes=sum(blob.size_bytes for blob in named) - sum(blob.size_bytes for blob in damaged),
            damaged=tuple(sorted(blob.hex for blob in damaged)),
        )
        await asyncio.to_thread(_commit, files, to, manifest, named)
        return Copied(
            manifest=manifest, copied=len(copied), copied_bytes=sum(blob.size_bytes for blob in copied)
        )
    finally:
        lock.release()


@asynccontextmanager
async def door(folder: Path) -> AsyncIterator[Path]:
    """The socket of the store that serves `folder`; if none does, of one that serves it meanwhile.

    Raises:
        NotFound: there is no store in `folder`.
        Busy: a process holds it that answers at no Unix socket.
    """
    if not (folder / "store.db").is_file():
        raise NotFound(f"no store in {folder}: there is no store.db in it; name a store's folder")
    if (socket := socket_of(folder)) is not None:
        yield socket
        return
    stopping, serving = asyncio.Event(), asyncio.Event()
    with tempfile.TemporaryDirectory(prefix="hermes-") as short:
        socket = Path(short) / "store"
        try:
            async with asyncio.TaskGroup() as group:
                serving_it = serve(
                    socket, folder, collect_every_seconds=_CALL_SECONDS, stopping=stopping, serving=serving
                )
                group.create_task(serving_it, name="store")
                try:
                    await serving.wait()
                    yield socket
                finally:
                    stopping.set()
        except ExceptionGroup as failed:
            raise next(_leaves(failed)) from failed


def restore(source: Path, folder: Path, *, say: Say = lambda text: None) -> fsck.Report:
    """Make `folder` the store that was backed up to `source`, reading and checking every byte.

    Raises:
        BadInput: `folder` holds something else than the beginnings of such a restore.
        NotFound: `source` holds no finished backup.
        Damaged: the backup is not as it was written. Then, as after every error, `folder` is empty again.
    """
    manifest = read_manifest(source)
    if folder.is_dir() and (left := _content(folder)) and UNFINISHED_RESTORE not in left:
        raise BadInput(
            f"{folder} is not empty: it holds {', '.join(sorted(left)[:5])}; a store is restored to an empty "
            "folder only"
        )
    with translated(folder.parent, 0):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _clear(folder)
        (folder / UNFINISHED_RESTORE).write_text(f"{source}\n")
    try:
        _restore(source, folder, manifest, say)
        report = fsck.check(folder, repair=bool(manifest.damaged))
        if len(report.faults) > len(manifest.damaged):
            raise _damaged(source, f"its database: {'; '.join(report.faults[:3])}")
    except HermesError:
        _clear(folder)
        raise
    (folder / UNFINISHED_RESTORE).unlink()
    return report


def read_manifest(source: Path) -> Manifest:
    """What the backup in `source` is. NotFound if there is none that was finished."""
    path = source / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"{source} holds no finished backup: {MANIFEST} is not in it") from None
    except ValidationError as error:
        raise _damaged(source, f"{MANIFEST}: {error.errors()[0]['msg']}") from error


async def _database(call: AsyncGenerator[bytes | Digest, None], files: BlobFiles, to: Path) -> Digest:
    """Receive the database's copy; its digest, checked."""
    told: list[Digest] = []

    async def pieces() -> AsyncIterator[bytes]:
        async for piece in call:
            if isinstance(piece, Digest):
                told.append(piece)
                return  # and not to the end of the call: until then nothing is collected
            yield piece

    with files.apart() as draft:
        found = await _written(pieces(), draft)
        if told != [found]:
            raise Damaged("the database's copy changed on its way from the store: back up again")
        with translated(to, 0):
            draft.rename(_database_path(to, found.hex))
            sync_folder(to)
    return found


async def _written(pieces: AsyncIterator[bytes], draft: Path) -> Digest:
    """Write pieces to a file, durably; what they are."""
    hasher, size_bytes = hashlib.sha256(), 0
    with draft.open("wb") as file:
        async for piece in pieces:
            hasher.update(piece)
            size_bytes += len(piece)
            with translated(draft.parent, len(piece)):
                file.write(piece)  # to the page cache: quicker than to tell a thread
        with translated(draft.parent, size_bytes):
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
    return Digest(hasher.digest(), size_bytes)


def _database_path(folder: Path, sha256: str) -> Path:
    return folder / f"{sha256}.db"


def _named_blobs(database: Path) -> list[Digest]:
    """Blobs in files that a database's copy says are there."""
    with closing(apsw.Connection(f"file:{database}?immutable=1", _READ_ONLY)) as db:
        rows = db.execute("SELECT sha256, size_bytes FROM blobs WHERE state = 1 AND data IS NULL")
        return [Digest(sha256, size_bytes) for sha256, size_bytes in rows]


_READ_ONLY = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI


async def _blobs(
    client: StoreClient, files: BlobFiles, named: list[Digest], verify: bool, say: Say
) -> tuple[list[Digest], list[Digest]]:
    """Copy the blobs that are not there; (copied, found damaged by the store)."""
    copied: list[Digest] = []
    damaged: list[Digest] = []
    todo = iter(named)
    started = 0

    async def copier() -> None:
        nonlocal started
        for digest in todo:
            started += 1
            if started % _SAY_EVERY == 0:
                say(f"blobs: {started} of {len(named)}, {len(copied)} of them copied")
            if await asyncio.to_thread(_is_there, files, digest, verify):
                continue
            try:
                await _copy(client, files, digest)
            except Damaged as error:
                say(str(error))
                damaged.append(digest)
            else:
                copied.append(digest)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(_COPIERS):
                group.create_task(copier(), name=f"copier {number}")
    except ExceptionGroup as failed:
        raise next(_leaves(failed)) from failed
    return copied, damaged


def _leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _is_there(files: BlobFiles, digest: Digest, verify: bool) -> bool:
    if verify:
        return files.read(digest, 0, 0) is not None
    try:
        return files.path(digest.sha256).stat().st_size == digest.size_bytes
    except FileNotFoundError:
        return False


async def _copy(client: StoreClient, files: BlobFiles, digest: Digest) -> None:
    """Copy one blob, durably, under its name only once it is whole."""
    with files.apart() as draft:
        async with aclosing(client.get_pieces(digest)) as pieces:
            found = await _written(pieces, draft)
        if found != digest:
            raise HermesError(f"blob {digest} changed on its way from the store: back up again")
        await asyncio.to_thread(files.land, draft, digest)


def _commit(files: BlobFiles, to: Path, manifest: Manifest, named: list[Digest]) -> None:
    """From here on it is this backup; what only the one before needed is deleted."""
    draft = to / f".{MANIFEST}"
    with translated(to, 0):
        with draft.open("w") as file:
            json.dump(manifest.model_dump(mode="json"), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(to / MANIFEST)
        sync_folder(to)
        for database in to.glob("*.db"):
            if database != _database_path(to, manifest.database_sha256):
                database.unlink()
        for sha256 in list(files.orphans({digest.sha256 for digest in named})):
            files.delete(sha256)


def _restore(source: Path, folder: Path, manifest: Manifest, say: Say) -> None:
    database = _database_path(source, manifest.database_sha256)
    files = BlobFiles(folder, lambda step: None)
    temp = _copied(
        files, database, Digest(bytes.fromhex(manifest.database_sha256), manifest.database_bytes), source
    )
    named = _named_blobs(temp)
    missing = set(manifest.damaged)
    for number, digest in enumerate(named, start=1):
        if digest.hex not in missing:
            files.land(_copied(files, object_path(source, digest.sha256), digest, source), digest)
        if number % _SAY_EVERY == 0:
            say(f"blobs: {number} of {len(named)}")
    with translated(folder, 0):
        temp.rename(folder / "store.db")
        sync_folder(folder)


def _copied(files: BlobFiles, path: Path, digest: Digest, source: Path) -> Path:
    """A durable temp file with the bytes of `path`, which must be `digest`."""

    def pieces() -> Iterator[bytes]:
        try:
            with path.open("rb") as file:
                while piece := file.read(_READ_BYTES):
                    yield piece
        except OSError as error:
            raise _damaged(source, f"{path.relative_to(source)} cannot be read: {error.strerror}") from error

    temp, found = files.write(pieces())
    if found != digest:
        temp.unlink()
        raise _damaged(source, f"{path.relative_to(source)} does not match its digest")
    return temp


def _content(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - _FOREIGN


def _clear(folder: Path) -> None:
    for name in _content(folder):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _damaged(source: Path, what: str) -> Damaged:
    return Damaged(
        f"the backup in {source} is damaged: {what}; restore another backup, or, while the store is still "
        "there, `hermes store backup --verify` copies again what has changed"
    )
