"""MemoryStore: the port in memory. For tests, for users' tests, and as the model of the others.

It keeps nothing beyond the process and has no disk to fill or to damage; all else is as on disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hermes_runtime.errors import BadInput, NotFound
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
)


@dataclass(slots=True)
class _Lease:
    expires_at: datetime
    blobs: set[bytes] = field(default_factory=set)
    is_dropped: bool = False

    def is_live(self, now: datetime) -> bool:
        return not self.is_dropped and self.expires_at > now


class MemoryStore:
    """Implements `Store`. One lock around every call."""

    def __init__(
        self,
        *,
        default_ttl_seconds: float = DEFAULT_TTL_SECONDS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._ttl = timedelta(seconds=default_ttl_seconds)
        self._clock = clock
        self._lock = threading.RLock()
        self._blobs: dict[bytes, bytes] = {}
        self._tombstones: dict[bytes, tuple[int, datetime]] = {}
        self._leases: dict[str, _Lease] = {}
        self._dropped: list[_Lease] = []
        self._kept: set[bytes] = set()
        self._log: list[StoredEvent] = []
        self._places: dict[bytes, StoredEvent] = {}
        self._heads: dict[str, bytes] = {}
        self._results: dict[ResultKey, bytes] = {}

    def put(self, data: bytes, *, digest: Digest | None = None, lease: str = DEFAULT_LEASE) -> Digest:
        found = Digest.of(data)
        limits.check_digest(digest, found)
        limits.check_lease(lease)
        with self._lock:
            now = self._clock()
            ends_at = now + self._ttl
            held = self._leases.setdefault(lease, _Lease(ends_at))
            if lease == DEFAULT_LEASE or not held.is_live(now):
                held.expires_at = max(held.expires_at, ends_at)
            held.blobs.add(found.sha256)
            self._blobs[found.sha256] = bytes(data)
            self._tombstones.pop(found.sha256, None)
        return found

    def put_pieces(
        self, pieces: Iterator[bytes], *, digest: Digest | None = None, lease: str = DEFAULT_LEASE
    ) -> Digest:
        return self.put(b"".join(pieces), digest=digest, lease=lease)

    def get(self, digest: Digest, *, offset: int = 0, length: int | None = None) -> bytes:
        start, end = limits.check_range(digest, offset, length)
        with self._lock:
            return self._blob(digest)[start:end]

    def get_pieces(self, digest: Digest, *, piece_bytes: int = 1 << 20) -> Iterator[bytes]:
        data = self.get(digest)
        for start in range(0, len(data), piece_bytes):
            yield data[start : start + piece_bytes]

    def stat(self, digests: Collection[Digest]) -> list[BlobStat]:
        with self._lock:
            return [self._stat(digest) for digest in digests]

    def lease(self, name: str, expires_at: datetime, digests: Collection[Digest] = ()) -> int:
        limits.check_lease(name)
        ends_at = limits.check_instant(f"end of lease {name!r}", expires_at)
        with self._lock:
            if ends_at <= self._clock():
                raise BadInput(f"lease {name!r} would end in the past, at {ends_at}; drop it instead")
            for digest in digests:
                self._blob(digest)
            held = self._leases.setdefault(name, _Lease(ends_at))
            held.expires_at = ends_at
            held.blobs.update(digest.sha256 for digest in digests)
            return len(held.blobs)

    def drop_lease(self, name: str) -> bool:
        limits.check_lease(name)
        with self._lock:
            if (lease := self._leases.pop(name, None)) is None:
                return False
            lease.is_dropped = True
            lease.expires_at = min(lease.expires_at, self._clock())
            self._dropped.append(lease)
            return True

    def collect_garbage(self, now: datetime) -> tuple[int, int]:
        now = limits.check_instant("now", now)
        with self._lock:
            live = {blob for lease in self._leases.values() if lease.is_live(now) for blob in lease.blobs}
            dead = [blob for blob in self._blobs if blob not in live and blob not in self._kept]
            ends = {blob: self._expires_at(blob) or now for blob in dead}
            sizes = [len(self._blobs.pop(blob)) for blob in dead]
            self._tombstones.update(
                (blob, (size, ends[blob])) for blob, size in zip(dead, sizes, strict=True)
            )
            self._leases = {name: lease for name, lease in self._leases.items() if lease.is_live(now)}
            self._dropped.clear()
            return len(dead), sum(sizes)

    def append(self, event: Event) -> StoredEvent:
        limits.check_name("stream", event.stream)
        limits.check_previous(event.stream, event.previous)
        data = event.to_bytes()
        limits.check_size(f"event of stream {event.stream!r}", len(data))
        event = Event.from_bytes(data)
        with self._lock:
            if again := self._places.get(event.digest):
                return again
            if event.previous != self.head(event.stream):
                raise event.stale(self.head(event.stream))
            for digest in event.digests:
                self._blob(digest)
            stored = StoredEvent(sequence=len(self._log) + 1, digest=event.digest, event=event)
            self._log.append(stored)
            self._places[stored.digest] = stored
            self._heads[event.stream] = stored.digest
            self._kept.update(digest.sha256 for digest in event.digests)
            return stored

    def head(self, stream: str) -> bytes:
        limits.check_name("stream", stream)
        with self._lock:
            return self._heads.get(stream, b"")

    def events(self, *, stream_prefix: str = "", after: int = 0) -> Iterator[StoredEvent]:
        if stream_prefix:
            limits.check_name("start of a stream", stream_prefix)
        with self._lock:
            found = self._log[max(after, 0) :]
        return (stored for stored in found if stored.event.stream.startswith(stream_prefix))

    def record_result(self, key: ResultKey, result: bytes) -> tuple[bool, bytes]:
        limits.check_key(key)
        limits.check_size(f"result {key}", len(result))
        with self._lock:
            standing = self._results.setdefault(key, bytes(result))
            return standing == result, standing

    def results(self, run: str) -> Iterator[tuple[ResultKey, bytes]]:
        limits.check_name("run", run)
        with self._lock:
            return iter(sorted(item for item in self._results.items() if item[0].run == run))

    def close(self) -> None:
        """Nothing to release."""

    def _blob(self, digest: Digest) -> bytes:
        """Raises NotFound."""
        if (data := self._blobs.get(digest.sha256)) is not None:
            if len(data) != digest.size_bytes:
                raise missing.other_size(digest, len(data))
            return data
        raise self._absent(digest)

    def _absent(self, digest: Digest) -> NotFound:
        if (tombstone := self._tombstones.get(digest.sha256)) is None:
            return missing.never_seen(digest)
        size_bytes, ended_at = tombstone
        if size_bytes != digest.size_bytes:
            return missing.other_size(digest, size_bytes)
        return missing.expired(digest, ended_at)

    def _stat(self, digest: Digest) -> BlobStat:
        data, tombstone = self._blobs.get(digest.sha256), self._tombstones.get(digest.sha256)
        if data is not None and len(data) == digest.size_bytes:
            return BlobStat(
                digest=digest, state=BlobState.PRESENT, expires_at=self._expires_at(digest.sha256)
            )
        if tombstone is not None and tombstone[0] == digest.size_bytes:
            return BlobStat(digest=digest, state=BlobState.EXPIRED, expires_at=tombstone[1])
        return BlobStat(digest=digest, state=BlobState.NEVER_SEEN)

    def _expires_at(self, blob: bytes) -> datetime | None:
        if blob in self._kept:
            return None
        return max(
            lease.expires_at
            for lease in (*self._leases.values(), *self._dropped)
            if blob in lease.blobs
        )  # fmt: skip
