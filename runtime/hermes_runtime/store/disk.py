"""DiskStore: blobs up to 64 KiB, leases, events and results in a database, larger blobs in files.

Decided here: what a put, a lease, an event and garbage are in rows. Every read verifies; what does
not match its digest is quarantined and never returned. Durable means after fsync: a power cut keeps
what was acknowledged. Tombstones stay for ever (about 100 bytes for each collected blob).
"""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import apsw

from hermes_runtime.errors import BadInput, Busy, Damaged, Denied, HermesError
from hermes_runtime.store import (
    DEFAULT_LEASE,
    DEFAULT_TTL_SECONDS,
    BlobStat,
    BlobState,
    Digest,
    Event,
    ResultKey,
    StoredEvent,
    limits,
    missing,
    schema,
)
from hermes_runtime.store.failures import translated
from hermes_runtime.store.files import BlobFiles
from hermes_runtime.store.gate import Gate
from hermes_runtime.store.lock import FolderLock
from hermes_runtime.store.writer import Writer

T = TypeVar("T")

ROW_BYTES_MAX = 64 * 1024
"""Blobs up to this size are rows, larger ones files."""

ROW_COST_BYTES = 16 * 1024
"""What a change writes besides the blob: a few pages. Only for the message of a full disk."""

UNFINISHED_RESTORE = "restore.unfinished"
"""A file that is there from a restore's first step to its last; a folder with it is no store yet."""

_READERS = 4
_PAGE_ROWS = 200
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class _State(IntEnum):
    """`blobs.state`."""

    PRESENT = 1
    QUARANTINED = 2
    EXPIRED = 3


class _Row(NamedTuple):
    """What is known of a blob."""

    id: int
    size_bytes: int
    state: int
    ended_at_us: int | None
    data: bytes | None


class DiskStore:
    """Implements `Store` in a folder that it owns until `close`."""

    def __init__(
        self,
        folder: Path,
        *,
        default_ttl_seconds: float = DEFAULT_TTL_SECONDS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        at: Callable[[str], None] = lambda step: None,
    ) -> None:
        """Open the folder, or make it; what a killed owner left half-done is undone.

        `at` is told each step of a write, so that a test can make it fail or die there.

        Raises:
            Busy: another process owns the folder.
            Unsupported: a newer version wrote it.
            Damaged: the database is not readable, or a restore to this folder was cut off.
            Denied: the folder cannot be made private to its owner.
        """
        self._folder = folder
        self._ttl = timedelta(seconds=default_ttl_seconds)
        self._clock = clock
        self._gate = Gate()
        self._may_have_orphans = True
        self._backups: set[object] = set()
        self._is_closed = False
        self._readers: queue.LifoQueue[apsw.Connection | None] = queue.LifoQueue()
        _make_private(folder)
        if (folder / UNFINISHED_RESTORE).exists():
            raise Damaged(
                f"a restore to {folder} was cut off: run `hermes store restore` again, or empty the folder"
            )
        self._lock = FolderLock(folder)
        try:
            with translated(folder, ROW_COST_BYTES):
                self._files = BlobFiles(folder, at)
                connection = schema.connect(folder / "store.db")
                try:
                    schema.migrate(connection, folder)
                    for _ in range(_READERS):
                        self._readers.put(schema.connect(folder / "store.db", reads_only=True))
                except BaseException:
                    self._close_readers()
                    connection.close()
                    raise
            self._writer = Writer(connection, folder, at)
        except BaseException:
            self._lock.release()
            raise

    @property
    def folder(self) -> Path:
        """The folder that it owns."""
        return self._folder

    def tell(self, socket: Path) -> None:
        """Say in the folder where this store answers, to programs that find it in use."""
        self._lock.tell(socket)

    # Blobs

    def put(self, data: bytes, *, digest: Digest | None = None, lease: str = DEFAULT_LEASE) -> Digest:
        found = Digest.of(data)
        limits.check_digest(digest, found)
        limits.check_lease(lease)
        if found.size_bytes <= ROW_BYTES_MAX:
            self._write(lambda db: self._keep(db, found, lease, data), found.size_bytes)
            return found
        with self._gate.shared():
            if self._reads_back(found):
                self._write(lambda db: self._keep(db, found, lease, None))
                return found
        return self._put_file((data,), found, lease)

    def put_pieces(
        self, pieces: Iterator[bytes], *, digest: Digest | None = None, lease: str = DEFAULT_LEASE
    ) -> Digest:
        limits.check_lease(lease)
        rest = iter(pieces)
        first = bytearray()
        for piece in rest:
            first += piece
            if len(first) > ROW_BYTES_MAX:
                return self._put_file(chain((bytes(first),), rest), digest, lease)
        return self.put(bytes(first), digest=digest, lease=lease)

    def get(self, digest: Digest, *, offset: int = 0, length: int | None = None) -> bytes:
        start, end = limits.check_range(digest, offset, length)
        if (data := self._read(digest, start, end)) is None:
            data = self._read_again(digest, start, end)
        return data

    def get_pieces(self, digest: Digest, *, piece_bytes: int = 1 << 20) -> Iterator[bytes]:
        row = self._row(digest)
        if row.data is not None:
            data = self.get(digest)
            for start in range(0, len(data), piece_bytes):
                yield data[start : start + piece_bytes]
            return
        position = 0
        for piece in self._files.read_pieces(digest, piece_bytes):
            if piece is None:  # quarantined, unless just then healed
                piece = self._read_again(digest, position, digest.size_bytes)
            yield piece
            position += len(piece)

    def stat(self, digests: Collection[Digest]) -> list[BlobStat]:
        with self._reading() as db:
            return [_stat(db, digest) for digest in digests]

    # Leases

    def lease(self, name: str, expires_at: datetime, digests: Collection[Digest] = ()) -> int:
        limits.check_lease(name)
        ends_at = limits.check_instant(f"end of lease {name!r}", expires_at)
        now = self._clock()
        if ends_at <= now:
            raise BadInput(f"lease {name!r} would end in the past, at {ends_at}; drop it instead")

        def change(db: apsw.Connection) -> int:
            blobs = [_readable(db, digest, self._where(digest)).id for digest in digests]
            lease = _lease_id(db, name, _micros(ends_at))
            db.execute("UPDATE leases SET expires_at_us = ? WHERE id = ?", (_micros(ends_at), lease))
            db.executemany("INSERT OR IGNORE INTO holds VALUES (?, ?)", ((lease, blob) for blob in blobs))
            ((count,),) = db.execute("SELECT count(*) FROM holds WHERE lease = ?", (lease,))
            return int(count)

        return self._write(change)

    def drop_lease(self, name: str) -> bool:
        limits.check_lease(name)
        now = _micros(self._clock())

        def change(db: apsw.Connection) -> bool:
            db.execute(
                "UPDATE leases SET name = NULL, expires_at_us = min(expires_at_us, ?) WHERE name = ?",
                (now, name),
            )
            return db.changes() > 0

        return self._write(change)

    def collect_garbage(self, now: datetime) -> tuple[int, int]:
        now_us = _micros(limits.check_instant("now", now))

        def change(db: apsw.Connection) -> list[tuple[bytes, int]]:
            dead = list(db.execute(_GARBAGE, (_State.EXPIRED, now_us)))
            db.executemany(
                "UPDATE blobs SET state = ?, data = NULL, ended_at_us = ? WHERE id = ?",
                ((_State.EXPIRED, now_us if ended_us is None else ended_us, blob)
                 for blob, _, _, ended_us in dead),
            )  # fmt: skip
            ended = "SELECT id FROM leases WHERE name IS NULL OR expires_at_us <= ?"
            db.execute(f"DELETE FROM holds WHERE lease IN ({ended})", (now_us,))
            db.execute("DELETE FROM leases WHERE name IS NULL OR expires_at_us <= ?", (now_us,))
            return [(sha256, size_bytes) for _, sha256, size_bytes, _ in dead]

        with self._gate.alone():
            if self._backups:
                raise Busy(
                    f"a backup of {self._folder} is being taken: nothing is collected until it is done"
                )
            dead = self._write(change)
            with translated(self._folder, 0):
                for sha256, _ in dead:
                    self._files.delete(sha256)
                if self._may_have_orphans:
                    self._delete_orphans()
        return len(dead), sum(size_bytes for _, size_bytes in dead)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Collect nothing meanwhile (`collect_garbage` is Busy); what is in the store can be read."""
        mine = object()
        with self._gate.alone():  # not in the middle of a collection
            self._backups.add(mine)
        try:
            yield
        finally:
            self._backups.remove(mine)

    @contextmanager
    def snapshot(self) -> Iterator[Path]:
        """A file with a copy of the database as it is at one instant; deleted at the end.

        It is made by SQLite's backup in one step, from a reader's connection of this process: one
        transaction sees it all, and in WAL mode no writer waits for it.
        """
        with self._files.apart() as copy:
            needed_bytes = (self._folder / "store.db").stat().st_size
            with self._reading() as source, translated(self._folder, needed_bytes):
                target = apsw.Connection(str(copy))
                try:
                    with target.backup("main", source, "main") as backup:
                        backup.step()
                    target.pragma("journal_mode", "delete")
                finally:
                    target.close()
            yield copy

    def find(self, sha256_start: str) -> list[Digest]:
        """Digests whose hexadecimal form starts so, sorted; for people who have only a part of one."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT sha256, size_bytes FROM blobs WHERE hex(sha256) LIKE ? ORDER BY sha256",
                (f"{sha256_start.upper()}%",),
            )
            return [Digest(sha256, size_bytes) for sha256, size_bytes in rows]

    # The log

    def append(self, event: Event) -> StoredEvent:
        limits.check_name("stream", event.stream)
        limits.check_previous(event.stream, event.previous)
        data = event.to_bytes()
        limits.check_size(f"event of stream {event.stream!r}", len(data))
        event, digest = Event.from_bytes(data), hashlib.sha256(data).digest()

        def change(db: apsw.Connection) -> int:
            for (sequence,) in db.execute("SELECT sequence FROM events WHERE digest = ?", (digest,)):
                return int(sequence)
            if event.previous != (head := _head(db, event.stream)):
                raise event.stale(head)
            blobs = [_readable(db, named, self._where(named)).id for named in event.digests]
            db.execute(
                "INSERT INTO events(stream, digest, event) VALUES (?, ?, ?)", (event.stream, digest, data)
            )
            sequence = db.last_insert_rowid()
            db.executemany(
                "INSERT OR IGNORE INTO event_blobs VALUES (?, ?)", ((blob, sequence) for blob in blobs)
            )
            return sequence

        return StoredEvent(sequence=self._write(change, len(data)), digest=digest, event=event)

    def head(self, stream: str) -> bytes:
        limits.check_name("stream", stream)
        with self._reading() as db:
            return _head(db, stream)

    def events(self, *, stream_prefix: str = "", after: int = 0) -> Iterator[StoredEvent]:
        if stream_prefix:
            limits.check_name("start of a stream", stream_prefix)
            return self._events_of(stream_prefix, max(after, 0))
        return self._all_events(max(after, 0))

    # Results

    def record_result(self, key: ResultKey, result: bytes) -> tuple[bool, bytes]:
        limits.check_key(key)
        limits.check_size(f"result {key}", len(result))
        name = (key.run, key.instance, key.arm)

        def change(db: apsw.Connection) -> bytes:
            db.execute(
                "INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?)",
                (*name, hashlib.sha256(result).digest(), result),
            )
            ((sha256, standing),) = db.execute(
                "SELECT sha256, result FROM results WHERE run = ? AND instance = ? AND arm = ?", name
            )
            return self._result(key, sha256, standing)

        standing = self._write(change, len(result))
        return standing == result, standing

    def results(self, run: str) -> Iterator[tuple[ResultKey, bytes]]:
        limits.check_name("run", run)
        return self._results(run)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._close_readers()
        self._writer.close()
        self._lock.release()

    # Parts of the above

    def _write(self, change: Callable[[apsw.Connection], T], data_bytes: int = 0) -> T:
        if self._is_closed:
            raise self._closed()
        return self._writer.run(change, needed_bytes=data_bytes + ROW_COST_BYTES)

    @contextmanager
    def _reading(self) -> Iterator[apsw.Connection]:
        """A connection of this thread's own for a while."""
        db = None if self._is_closed else self._readers.get()
        if db is None:
            self._readers.put(None)
            raise self._closed()
        try:
            with translated(self._folder, 0, db):
                yield db
        finally:
            self._readers.put(db)

    def _close_readers(self) -> None:
        """Waits for those in use."""
        for _ in range(_READERS):
            if self._readers.empty() and not self._is_closed:
                break
            if (db := self._readers.get()) is not None:
                db.close()
        self._readers.put(None)

    def _closed(self) -> HermesError:
        return HermesError(f"the store in {self._folder} is closed: open it again")

    def _keep(self, db: apsw.Connection, digest: Digest, lease: str, data: bytes | None) -> None:
        """The row of a blob whose bytes are `data` or, if None, in a landed file; held by `lease`."""
        row = _row(db, digest.sha256)
        if row is None:
            db.execute(
                "INSERT INTO blobs(sha256, size_bytes, state, data) VALUES (?, ?, ?, ?)",
                (digest.sha256, digest.size_bytes, _State.PRESENT, data),
            )
            blob = db.last_insert_rowid()
        else:
            blob = row.id
            if row[1:] != (digest.size_bytes, _State.PRESENT, None, data):  # expired, or to be healed
                db.execute(
                    "UPDATE blobs SET size_bytes = ?, state = ?, ended_at_us = NULL, data = ? WHERE id = ?",
                    (digest.size_bytes, _State.PRESENT, data, blob),
                )
        now = self._clock()
        now_us, ends_us = _micros(now), _micros(now + self._ttl)
        holder = _lease_id(db, lease, ends_us)
        db.execute(
            "UPDATE leases SET expires_at_us = max(expires_at_us, ?1)"
            " WHERE id = ?2 AND (name = ?3 OR expires_at_us <= ?4)",
            (ends_us, holder, DEFAULT_LEASE, now_us),
        )
        db.execute("INSERT OR IGNORE INTO holds VALUES (?, ?)", (holder, blob))

    def _put_file(self, pieces: Iterable[bytes], digest: Digest | None, lease: str) -> Digest:
        temp, found = self._files.write(pieces)
        try:
            limits.check_digest(digest, found)
            with self._gate.shared():
                self._files.land(temp, found)
                self._write(lambda db: self._keep(db, found, lease, None))
                self._files.forget_quarantined(found.sha256)
        except BaseException:
            temp.unlink(missing_ok=True)
            self._delete_unless_known(found)
            raise
        return found

    def _reads_back(self, digest: Digest) -> bool:
        """Whether a file is there, known and whole: then it need not be written again."""
        with self._reading() as db:
            row = _row(db, digest.sha256)
        if row is None or row.state != _State.PRESENT or row.data is not None:
            return False
        return self._files.read(digest, 0, 0) is not None

    def _row(self, digest: Digest) -> _Row:
        """Raises NotFound, Damaged."""
        with self._reading() as db:
            return _readable(db, digest, self._where(digest))

    def _read(self, digest: Digest, start: int, end: int) -> bytes | None:
        """A range of a blob, all of it verified; None if its bytes are not whole."""
        row = self._row(digest)
        if row.data is None:
            return self._files.read(digest, start, end)
        return row.data[start:end] if hashlib.sha256(row.data).digest() == digest.sha256 else None

    def _read_again(self, digest: Digest, start: int, end: int) -> bytes:
        """After a read that found the blob not whole: alone, so that nobody heals or deletes it meanwhile.

        Raises:
            Damaged: it is so; it is now in quarantine.
            NotFound: it had been collected just then.
        """
        with self._gate.alone():
            if (data := self._read(digest, start, end)) is not None:
                return data
            error = missing.quarantined(digest, self._where(digest))
            try:
                self._write(lambda db: _quarantine(db, digest))
                self._files.quarantine(digest.sha256)
            except HermesError as unmarked:  # a full disk: the next read will find it so again
                raise error from unmarked
            raise error

    def _where(self, digest: Digest) -> str:
        if digest.size_bytes <= ROW_BYTES_MAX:
            return f"in the database in {self._folder}"
        return f"{self._files.quarantine_path(digest.sha256)}, unless its file was deleted"

    def _delete_unless_known(self, digest: Digest) -> None:
        """Take back a file that has landed and got no row."""
        with self._gate.alone():
            with self._reading() as db:
                row = _row(db, digest.sha256)
            if row is None or row.state != _State.PRESENT:
                self._files.path(digest.sha256).unlink(missing_ok=True)

    def _delete_orphans(self) -> None:
        with self._reading() as db:
            known = {
                sha256
                for (sha256,) in db.execute(
                    "SELECT sha256 FROM blobs WHERE state = ? AND data IS NULL", (_State.PRESENT,)
                )
            }
        for sha256 in list(self._files.orphans(known)):
            self._files.delete(sha256)
        self._may_have_orphans = False

    def _all_events(self, after: int) -> Iterator[StoredEvent]:
        while True:
            with self._reading() as db:
                rows = list(
                    db.execute(
                        "SELECT sequence, digest, event FROM events WHERE sequence > ?"
                        " ORDER BY sequence LIMIT ?",
                        (after, _PAGE_ROWS),
                    )
                )
            for sequence, digest, data in rows:
                yield self._event(sequence, digest, data)
                after = sequence
            if len(rows) < _PAGE_ROWS:
                return

    def _events_of(self, prefix: str, after: int) -> Iterator[StoredEvent]:
        sql, bounds = "SELECT sequence FROM events WHERE stream >= ?", [prefix]
        if past := _past(prefix):
            sql, bounds = f"{sql} AND stream < ?", [prefix, past]
        with self._reading() as db:
            places = sorted(place for (place,) in db.execute(sql, bounds) if place > after)
        for place in places:
            with self._reading() as db:
                ((digest, data),) = db.execute(
                    "SELECT digest, event FROM events WHERE sequence = ?", (place,)
                )
            yield self._event(place, digest, data)

    def _event(self, sequence: int, digest: bytes, data: bytes) -> StoredEvent:
        if hashlib.sha256(data).digest() != digest:
            raise Damaged(
                f"event {sequence} in store folder {self._folder} does not match its digest: restore the "
                "folder from a copy; `hermes store fsck` lists what else is damaged"
            )
        return StoredEvent(sequence=sequence, digest=digest, event=Event.from_bytes(data))

    def _results(self, run: str) -> Iterator[tuple[ResultKey, bytes]]:
        with self._reading() as db:
            names = list(
                db.execute("SELECT instance, arm FROM results WHERE run = ? ORDER BY instance, arm", (run,))
            )
        for instance, arm in names:
            with self._reading() as db:
                ((sha256, result),) = db.execute(
                    "SELECT sha256, result FROM results WHERE run = ? AND instance = ? AND arm = ?",
                    (run, instance, arm),
                )
            key = ResultKey(run=run, instance=instance, arm=arm)
            yield key, self._result(key, sha256, result)

    def _result(self, key: ResultKey, sha256: bytes, result: bytes) -> bytes:
        if hashlib.sha256(result).digest() != sha256:
            raise Damaged(
                f"the result of ({key.run}, {key.instance}, {key.arm}) in store folder {self._folder} does "
                "not match its digest: restore the folder from a copy, or run that instance in a new run"
            )
        return result


_GARBAGE = """
    SELECT b.id, b.sha256, b.size_bytes,
           (SELECT max(l.expires_at_us) FROM holds h JOIN leases l ON l.id = h.lease WHERE h.blob = b.id)
    FROM blobs b
    WHERE b.state != ?1
      AND NOT EXISTS (SELECT 1 FROM event_blobs e WHERE e.blob = b.id)
      AND NOT EXISTS (
        SELECT 1 FROM holds h JOIN leases l ON l.id = h.lease
        WHERE h.blob = b.id AND l.name IS NOT NULL AND l.expires_at_us > ?2)
"""


def _make_private(folder: Path) -> None:
    with translated(folder.parent, ROW_COST_BYTES):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            try:
                folder.chmod(0o700)
            except PermissionError as error:
                raise Denied(
                    f"store folder {folder} is open to others and belongs to another user: "
                    "give the store a folder below it"
                ) from error


def _micros(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def _instant(micros: int | None) -> datetime | None:
    return None if micros is None else _EPOCH + micros * _MICROSECOND


def _past(prefix: str) -> str:
    """The least string after all that start with `prefix`; "" if there is none."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return ""
    following = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if following == 0xD800 else following)


def _row(db: apsw.Connection, sha256: bytes) -> _Row | None:
    for row in db.execute(
        "SELECT id, size_bytes, state, ended_at_us, data FROM blobs WHERE sha256 = ?", (sha256,)
    ):
        return _Row(*row)
    return None


def _readable(db: apsw.Connection, digest: Digest, where: str) -> _Row:
    """The row of a blob that is there. Raises NotFound, Damaged."""
    row = _row(db, digest.sha256)
    if row is None:
        raise missing.never_seen(digest)
    if row.size_bytes != digest.size_bytes:
        raise missing.other_size(digest, row.size_bytes)
    match _State(row.state):
        case _State.PRESENT:
            return row
        case _State.EXPIRED:
            raise missing.expired(digest, _EPOCH + (row.ended_at_us or 0) * _MICROSECOND)
        case _State.QUARANTINED:
            raise missing.quarantined(digest, where)


def _stat(db: apsw.Connection, digest: Digest) -> BlobStat:
    for size_bytes, state, ended_us, last_us, is_kept in db.execute(
        "SELECT b.size_bytes, b.state, b.ended_at_us,"
        " (SELECT max(l.expires_at_us) FROM holds h JOIN leases l ON l.id = h.lease WHERE h.blob = b.id),"
        " EXISTS (SELECT 1 FROM event_blobs e WHERE e.blob = b.id)"
        " FROM blobs b WHERE b.sha256 = ?",
        (digest.sha256,),
    ):
        if size_bytes != digest.size_bytes:
            break
        match _State(state):
            case _State.EXPIRED:
                return BlobStat(digest=digest, state=BlobState.EXPIRED, expires_at=_instant(ended_us))
            case _State.PRESENT:
                known = BlobState.PRESENT
            case _State.QUARANTINED:
                known = BlobState.QUARANTINED
        return BlobStat(digest=digest, state=known, expires_at=None if is_kept else _instant(last_us))
    return BlobStat(digest=digest, state=BlobState.NEVER_SEEN)


def _lease_id(db: apsw.Connection, name: str, ends_us: int) -> int:
    """The lease's row, made if it is not there."""
    for (lease,) in db.execute("SELECT id FROM leases WHERE name = ?", (name,)):
        return int(lease)
    db.execute("INSERT INTO leases(name, expires_at_us) VALUES (?, ?)", (name, ends_us))
    return db.last_insert_rowid()


def _head(db: apsw.Connection, stream: str) -> bytes:
    for (digest,) in db.execute(
        "SELECT digest FROM events WHERE stream = ? ORDER BY sequence DESC LIMIT 1", (stream,)
    ):
        return bytes(digest)
    return b""


def _quarantine(db: apsw.Connection, digest: Digest) -> None:
    db.execute("UPDATE blobs SET state = ? WHERE sha256 = ?", (_State.QUARANTINED, digest.sha256))
