"""Checks a store folder that nobody has open: the database, every blob, every event, every result.

Checking changes nothing but what opening does. Repairing puts damaged and missing blobs in
quarantine, so that putting them again heals them, and deletes files that no row knows; it never
makes up content: a damaged event or result stays, and reading it stays an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import apsw

from hermes_runtime.errors import HermesError
from hermes_runtime.store import Digest, Event, schema
from hermes_runtime.store.failures import translated
from hermes_runtime.store.files import BlobFiles
from hermes_runtime.store.lock import FolderLock


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found. `faults` says each in words; empty means that all is well."""

    blobs: int
    blob_bytes: int
    quarantined: int
    events: int
    results: int
    orphans: int
    faults: tuple[str, ...]
    repaired: bool

    @property
    def is_sound(self) -> bool:
        """Nothing is damaged. Orphans and what is already in quarantine are no damage."""
        return not self.faults


def check(folder: Path, *, repair: bool = False) -> Report:
    """Check everything in `folder`, reading all of it.

    Raises:
        Busy: a store has it open.
        Unsupported, Damaged: the database cannot be read at all.
    """
    database = folder / "store.db"
    if not database.is_file():
        raise HermesError(f"no store in {folder}: there is no store.db in it; name a store's folder")
    lock = FolderLock(folder)
    try:
        with translated(folder, 0):
            connection = schema.connect(database)
            try:
                schema.migrate(connection, folder)
                return _checked(connection, folder, repair)
            finally:
                connection.close()
    finally:
        lock.release()


def _checked(db: apsw.Connection, folder: Path, repair: bool) -> Report:
    files = BlobFiles(folder, lambda step: None)
    damaged = list(_damaged_blobs(db, files))
    known = {row[0] for row in db.execute("SELECT sha256 FROM blobs WHERE state = 1 AND data IS NULL")}
    orphans = list(files.orphans(known))
    faults = [
        *_database_faults(db),
        *(fault for _, fault in damaged),
        *_event_faults(db),
        *_result_faults(db),
    ]
    if repair:
        with db:
            db.executemany(
                "UPDATE blobs SET state = 2 WHERE sha256 = ?", ((digest.sha256,) for digest, _ in damaged)
            )
        for digest, _ in damaged:
            files.quarantine(digest.sha256)
        for sha256 in orphans:
            files.delete(sha256)
    ((blobs, blob_bytes),) = db.execute("SELECT count(*), total(size_bytes) FROM blobs WHERE state = 1")
    return Report(
        blobs=blobs,
        blob_bytes=int(blob_bytes),
        quarantined=_count(db, "blobs WHERE state = 2"),
        events=_count(db, "events"),
        results=_count(db, "results"),
        orphans=len(orphans),
        faults=tuple(faults),
        repaired=repair,
    )


def _count(db: apsw.Connection, what: str) -> int:
    ((count,),) = db.execute(f"SELECT count(*) FROM {what}")
    return int(count)


def _database_faults(db: apsw.Connection) -> Iterator[str]:
    for (answer,) in db.execute("PRAGMA integrity_check"):
        if answer != "ok":
            yield f"database: {answer}"
    for table, row, parent, _ in db.execute("PRAGMA foreign_key_check"):
        yield f"database: row {row} of {table} refers to a missing one of {parent}"


def _damaged_blobs(db: apsw.Connection, files: BlobFiles) -> Iterator[tuple[Digest, str]]:
    for sha256, size_bytes, data in db.execute("SELECT sha256, size_bytes, data FROM blobs WHERE state = 1"):
        digest = Digest(sha256, size_bytes)
        if data is not None:
            if Digest.of(data) != digest:
                yield digest, f"blob {digest}: its row does not match its digest"
        elif not files.path(sha256).is_file():
            yield digest, f"blob {digest}: its file is missing"
        elif files.read(digest, 0, 0) is None:
            yield digest, f"blob {digest}: its file does not match its digest"


def _event_faults(db: apsw.Connection) -> Iterator[str]:
    heads: dict[str, bytes] = {}
    for sequence, stream, digest, data in db.execute("SELECT * FROM events ORDER BY sequence"):
        name = f"event {sequence} of stream {stream!r}"
        if hashlib.sha256(data).digest() != digest:
            yield f"{name}: its bytes do not match its digest"
        else:
            yield from _faults_of_event(
                db, name, sequence, stream, Event.from_bytes(data), heads.get(stream, b"")
            )
        heads[stream] = digest


def _faults_of_event(
    db: apsw.Connection, name: str, sequence: int, stream: str, event: Event, head: bytes
) -> Iterator[str]:
    if event.stream != stream:
        yield f"{name}: it says that it belongs to {event.stream!r}"
    if event.previous != head:
        yield f"{name}: it does not follow the event before it"
    kept = {
        sha256
        for (sha256,) in db.execute(
            "SELECT b.sha256 FROM event_blobs e JOIN blobs b ON b.id = e.blob WHERE e.sequence = ?",
            (sequence,),
        )
    }
    for digest in event.digests:
        if digest.sha256 not in kept:
            yield f"{name}: it does not keep blob {digest}, which it names"


def _result_faults(db: apsw.Connection) -> Iterator[str]:
    for run, instance, arm, sha256, result in db.execute("SELECT * FROM results"):
        if hashlib.sha256(result).digest() != sha256:
            yield f"result of ({run}, {instance}, {arm}): its bytes do not match its digest"
