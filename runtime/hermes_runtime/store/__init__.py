"""The store's port: blobs under digests, leases, an append-only event log, results.

    digest.py      a blob's address
    event.py       an entry of the log: its bytes and its digest
    limits.py      which names, instants, ranges and sizes a store takes
    missing.py     why a blob cannot be read, in words, with the remedy
    memory.py      MemoryStore: the port in memory, for tests and for users' tests
    disk.py        DiskStore: database and blob files; sole owner of its folder. Its parts:
      lock.py        one process owns a folder
      schema.py      the database's tables and their versions
      writer.py      changes that wait together share one fsync
      files.py       blob files: written, landed, verified, quarantined
      gate.py        who may move files while others read or write them
      failures.py    errors of SQLite and the disk as errors of ours
    wire.py        what service and client agree on
    service.py     the port over gRPC (`hermes store serve`)
    authenticate.py  who may call what, where the store is served to others
      token_review.py  whose a token is, by asking Kubernetes
    relay.py       the service on a Unix socket, handed on to a store elsewhere (`hermes store relay`)
    client.py      the port as a caller sees it, over gRPC, with the bytes of each call
    fsck.py        checks everything, repairs what can be
    backup.py      a backup of a store that goes on serving, and the way back

A blob is bytes under sha256 + size, verified at every read. A lease keeps blobs alive until an
absolute instant; an event keeps the blobs it names for ever. A blob that nothing keeps is readable
until garbage is collected; then a tombstone tells it from one never seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from hermes_runtime.store.digest import Digest
from hermes_runtime.store.event import Event

__all__ = [
    "DEFAULT_LEASE",
    "DEFAULT_TTL_SECONDS",
    "BlobStat",
    "BlobState",
    "Digest",
    "Event",
    "ResultKey",
    "Store",
    "StoredEvent",
]

DEFAULT_LEASE = "default"
"""Lease that holds a blob put without one; it ends a store's default TTL after the last put."""

DEFAULT_TTL_SECONDS = 7 * 24 * 3600.0
"""Default TTL of a store. A lease first named by a put lives as long."""


class BlobState(StrEnum):
    """What a store knows of a blob."""

    PRESENT = "present"
    NEVER_SEEN = "never seen"
    EXPIRED = "expired"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobStat:
    """State of a blob and the instant (aware UTC) at which its last lease ends or ended.

    None: an event keeps it for ever, it was never seen, or it is damaged and nothing holds it.
    """

    digest: Digest
    state: BlobState
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event in its place in the whole log (from 1), with its digest (32 bytes)."""

    sequence: int
    digest: bytes
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ResultKey:
    """What a result is recorded under."""

    run: str
    instance: str
    arm: str


class Store(Protocol):
    """What every store does. Calls are blocking and safe from several threads.

    Errors: BadInput (a name, instant, range or size that no store takes), NotFound (never seen, or
    expired: the message says which and the remedy), Damaged (the bytes changed on disk; the blob is
    quarantined, and putting the right bytes heals it), Exhausted (disk full: nothing half-written is
    left and reads go on), StaleWriter (the stream has moved on), Busy (another process owns the
    folder), Unsupported (a folder of a newer version).
    """

    def put(self, data: bytes, *, digest: Digest | None = None, lease: str = DEFAULT_LEASE) -> Digest:
        """Store `data` durably before returning. A wrong `digest` is BadInput. Idempotent.

        A `lease` that is not there, or has ended, is made with the default TTL; another is not
        prolonged by it (but the default lease is).
        """
        ...

    def put_pieces(
        self, pieces: Iterator[bytes], *, digest: Digest | None = None, lease: str = DEFAULT_LEASE
    ) -> Digest:
        """As `put`, for blobs that do not fit in memory."""
        ...

    def get(self, digest: Digest, *, offset: int = 0, length: int | None = None) -> bytes:
        """A range of a blob, the whole blob verified; shorter where the blob ends sooner."""
        ...

    def get_pieces(self, digest: Digest, *, piece_bytes: int = 1 << 20) -> Iterator[bytes]:
        """A whole blob in pieces, verified before the first one."""
        ...

    def stat(self, digests: Collection[Digest]) -> list[BlobStat]:
        """What is known of each, in order."""
        ...

    def lease(self, name: str, expires_at: datetime, digests: Collection[Digest] = ()) -> int:
        """Make or renew a lease, add blobs to it; the number of blobs it holds.

        NotFound, and nothing is changed, if one of them is not in the store.
        """
        ...

    def drop_lease(self, name: str) -> bool:
        """End a lease; quick however many blobs it holds. True if it was there."""
        ...

    def collect_garbage(self, now: datetime) -> tuple[int, int]:
        """Delete blobs that no live lease and no event holds; (blobs, bytes)."""
        ...

    def append(self, event: Event) -> StoredEvent:
        """Add an event durably. StaleWriter if `event.previous` is not the stream's head, unless this
        very event is what follows it: then that one is returned. NotFound if a blob that it names is
        not in the store."""
        ...

    def head(self, stream: str) -> bytes:
        """Digest of a stream's last event; b"" for an empty stream."""
        ...

    def events(self, *, stream_prefix: str = "", after: int = 0) -> Iterator[StoredEvent]:
        """Events of streams that start with `stream_prefix`, in the order of the whole log."""
        ...

    def record_result(self, key: ResultKey, result: bytes) -> tuple[bool, bytes]:
        """Record a result durably; (whether this one stands, the one that stands). The first wins."""
        ...

    def results(self, run: str) -> Iterator[tuple[ResultKey, bytes]]:
        """Results of a run, sorted by key."""
        ...

    def close(self) -> None:
        """Release the folder. Idempotent."""
        ...
