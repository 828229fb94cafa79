"""The port as a caller sees it over gRPC, with what each call costs.

Decided here: which call carries a blob (whole or in pieces), that the caller verifies what it gets
once more, and what a cost is. `put` and `get` return theirs, because their callers are billed; every
call, also one that fails, tells its own to `on_cost`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpc import aio

from hermes.store.v1 import store_pb2, store_pb2_grpc
from hermes_runtime.errors import BadInput, Damaged, PeerLost
from hermes_runtime.store import (
    DEFAULT_LEASE,
    BlobStat,
    BlobState,
    Digest,
    Event,
    ResultKey,
    StoredEvent,
    limits,
)
from hermes_runtime.store.wire import PIECE_BYTES, STATES, instant, timestamp
from hermes_runtime.supervise import rpc

Response = TypeVar("Response", bound=Message)
T = TypeVar("T")

_STATES: dict[store_pb2.BlobState.ValueType, BlobState] = {number: state for state, number in STATES.items()}
_PAUSE_SECONDS = 0.1
_BYTES_PER_SECOND_MIN = 10e6
"""A large blob gets this much more time; slower is a fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one call cost: bytes of its gRPC messages with their prefixes, and the caller's wait.

    `digest` is the blob's, of calls about one blob. A call that failed has no response bytes.
    """

    method: str
    digest: Digest | None
    request_bytes: int
    response_bytes: int
    seconds: float


class _Meter:
    """Counts one call's messages."""

    def __init__(self, method: str, digest: Digest | None) -> None:
        self.method = method
        self.digest = digest
        self.request_bytes = 0
        self.response_bytes = 0
        self._started = time.perf_counter()

    def sent(self, message: Message) -> None:
        self.request_bytes += rpc.message_bytes(message)

    def received(self, message: Message) -> None:
        self.response_bytes += rpc.message_bytes(message)

    def cost(self) -> Cost:
        return Cost(
            method=self.method,
            digest=self.digest,
            request_bytes=self.request_bytes,
            response_bytes=self.response_bytes,
            seconds=time.perf_counter() - self._started,
        )


class StoreClient:
    """A store at a Unix socket, or at the other end of a channel, which it then owns.

    An async context manager; safe for many tasks of one loop.

    Its calls raise what `Store` raises, and PeerLost and TimedOut, where repeating the call helps and
    is safe.
    """

    def __init__(
        self,
        socket: Path | aio.Channel,
        *,
        timeout_seconds: float = 30.0,
        patience_seconds: float = 0.0,
        on_cost: Callable[[Cost], None] = lambda cost: None,
    ) -> None:
        """`patience_seconds`: how long a store that was lost is asked again; every call may be."""
        self._timeout_seconds = timeout_seconds
        self._patience_seconds = patience_seconds
        self._on_cost = on_cost
        self._channel = rpc.channel(socket) if isinstance(socket, Path) else socket
        # An aio channel makes an async stub; the two have the same names and the stubs' types differ.
        self._stub: Any = store_pb2_grpc.StoreServiceStub(self._channel)

    async def __aenter__(self) -> StoreClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Idempotent."""
        await self._channel.close(None)

    async def ready(self, *, timeout_seconds: float) -> None:
        """Wait until the store answers. Raises PeerLost if it does not in time."""
        await rpc.ready(self._channel, timeout_seconds=timeout_seconds)

    async def put(self, data: bytes, *, lease: str = DEFAULT_LEASE) -> tuple[Digest, Cost]:
        """Store `data` durably."""
        digest = Digest.of(data)
        if len(data) > limits.MESSAGE_DATA_BYTES_MAX:
            return await self._patiently(lambda: self.put_pieces(_slices(data), digest=digest, lease=lease))
        request = store_pb2.PutRequest(digest=digest.to_proto(), data=data, lease=_on_wire(lease))
        meter = _Meter("Put", digest)
        await self._call(meter, self._stub.Put, request)
        return digest, meter.cost()

    async def put_pieces(
        self, pieces: AsyncIterable[bytes], *, digest: Digest | None = None, lease: str = DEFAULT_LEASE
    ) -> tuple[Digest, Cost]:
        """As `put`, for blobs that do not fit in memory. The store's answer is checked as well."""
        meter = _Meter("PutStream", digest)
        hasher, size_bytes = hashlib.sha256(), 0

        async def requests() -> AsyncIterator[store_pb2.PutStreamRequest]:
            nonlocal size_bytes
            request = store_pb2.PutStreamRequest(
                digest=None if digest is None else digest.to_proto(), lease=_on_wire(lease)
            )
            meter.sent(request)
            yield request
            async for piece in pieces:
                async for part in _slices(piece):
                    hasher.update(part)
                    size_bytes += len(part)
                    request = store_pb2.PutStreamRequest(data=part)
                    meter.sent(request)
                    yield request

        try:
            response = await rpc.call_with_pieces(
                self._stub.PutStream, requests(), timeout_seconds=self._seconds(digest)
            )
            meter.received(response)
        finally:
            cost = meter.cost()
            self._on_cost(cost)
        sent = Digest(hasher.digest(), size_bytes)
        if response.HasField("digest") and Digest.from_proto(response.digest) != sent:
            raise Damaged(
                f"the store answers that it holds another blob than the one sent, {sent}: put it again"
            )
        return sent, cost

    async def get(
        self, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> tuple[bytes, Cost]:  # fmt: skip
        """A blob or a range of it. A whole blob is verified here too; a range only by the store."""
        start, end = limits.check_range(digest, offset, length)
        is_large = end - start > limits.MESSAGE_DATA_BYTES_MAX
        meter = _Meter("GetStream" if is_large else "Get", digest)
        if is_large:
            wanted = store_pb2.GetStreamRequest(digest=digest.to_proto(), offset=offset, length=length)
            pieces = [piece.data async for piece in self._stream(meter, self._stub.GetStream, wanted)]
            data = b"".join(pieces)
        else:
            request = store_pb2.GetRequest(digest=digest.to_proto(), offset=offset, length=length)
            data = (await self._call(meter, self._stub.Get, request)).data
        is_whole = (start, end) == (0, digest.size_bytes)
        if len(data) != end - start or (is_whole and Digest.of(data) != digest):
            raise Damaged(f"blob {digest} changed on its way from the store: get it again")
        return data, meter.cost()

    async def get_pieces(self, digest: Digest) -> AsyncGenerator[bytes, None]:
        """A whole blob in pieces, which the store has verified; the caller verifies what it made of them."""
        request = store_pb2.GetStreamRequest(digest=digest.to_proto())
        async for piece in self._stream(_Meter("GetStream", digest), self._stub.GetStream, request):
            yield piece.data

    async def backup(self, *, timeout_seconds: float) -> AsyncGenerator[bytes | Digest, None]:
        """A copy of the database in pieces, then its digest. Closed by its caller: until then the store
        collects no garbage."""
        meter, request = _Meter("Backup", None), store_pb2.BackupRequest()
        meter.sent(request)
        try:
            async for found in rpc.stream(self._stub.Backup, request, timeout_seconds=timeout_seconds):
                meter.received(found)
                yield Digest.from_proto(found.digest) if found.HasField("digest") else found.data
        finally:
            self._on_cost(meter.cost())

    async def stat(self, digests: Collection[Digest]) -> list[BlobStat]:
        """What is known of each, in order."""
        request = store_pb2.StatRequest(digests=[digest.to_proto() for digest in digests])
        response = await self._call(_Meter("Stat", None), self._stub.Stat, request)
        return [
            BlobStat(
                digest=Digest.from_proto(blob.digest),
                state=_STATES[blob.state],
                expires_at=instant(blob.expires_at) if blob.HasField("expires_at") else None,
            )
            for blob in response.blobs
        ]

    async def lease(self, name: str, expires_at: datetime, digests: Collection[Digest] = ()) -> int:
        """Make or renew a lease, add blobs to it; the number of blobs it holds."""
        ends_at = limits.check_instant(f"end of lease {name!r}", expires_at)
        request = store_pb2.LeaseRequest(
            lease=_writable(name),
            expires_at=timestamp(ends_at),
            digests=[digest.to_proto() for digest in digests],
        )
        return int((await self._call(_Meter("Lease", None), self._stub.Lease, request)).blob_count)

    async def drop_lease(self, name: str) -> bool:
        """End a lease. True if it was there."""
        request = store_pb2.DropLeaseRequest(lease=_writable(name))
        return bool((await self._call(_Meter("DropLease", None), self._stub.DropLease, request)).existed)

    async def collect_garbage(self) -> tuple[int, int]:
        """Delete blobs that nothing holds now, by the store's clock; (blobs, bytes)."""
        request = store_pb2.CollectGarbageRequest()
        response = await self._call(_Meter("CollectGarbage", None), self._stub.CollectGarbage, request)
        return response.blob_count, response.size_bytes

    async def append(self, event: Event) -> StoredEvent:
        """Add an event durably."""
        data = event.to_bytes()
        limits.check_size(f"event of stream {event.stream!r}", len(data))
        request = store_pb2.AppendRequest(event_bytes=data)
        response = await self._call(_Meter("Append", None), self._stub.Append, request)
        return StoredEvent(
            sequence=response.sequence, digest=response.digest, event=Event.from_bytes(data)
        )  # fmt: skip

    async def head(self, stream: str) -> bytes:
        """Digest of a stream's last event; b"" for an empty stream."""
        request = store_pb2.HeadRequest(stream=_writable(stream))
        return bytes((await self._call(_Meter("Head", None), self._stub.Head, request)).digest)

    async def events(self, *, stream_prefix: str = "", after: int = 0) -> AsyncGenerator[StoredEvent, None]:
        """Events of streams that start with `stream_prefix`, in the order of the whole log, verified."""
        request = store_pb2.ReadEventsRequest(
            stream_prefix=_writable(stream_prefix), after_sequence=max(after, 0)
        )
        async for found in self._stream(_Meter("ReadEvents", None), self._stub.ReadEvents, request):
            if hashlib.sha256(found.event_bytes).digest() != found.digest:
                raise Damaged(f"event {found.sequence} changed on its way from the store: read it again")
            yield StoredEvent(
                sequence=found.sequence, digest=found.digest, event=Event.from_bytes(found.event_bytes)
            )

    async def record_result(self, key: ResultKey, result: bytes) -> tuple[bool, bytes]:
        """Record a result durably; (whether this one stands, the one that stands). The first wins."""
        limits.check_key(key)
        limits.check_size(f"result {key}", len(result))
        request = store_pb2.RecordResultRequest(
            key=store_pb2.ResultKey(run=key.run, instance=key.instance, arm=key.arm), result=result
        )
        response = await self._call(_Meter("RecordResult", None), self._stub.RecordResult, request)
        return response.recorded, response.result

    async def results(self, run: str) -> AsyncGenerator[tuple[ResultKey, bytes], None]:
        """Results of a run, sorted by key."""
        request = store_pb2.ListResultsRequest(run=_writable(run))
        async for found in self._stream(_Meter("ListResults", None), self._stub.ListResults, request):
            yield ResultKey(run=found.key.run, instance=found.key.instance, arm=found.key.arm), found.result

    async def _call(self, meter: _Meter, method: Any, request: Message) -> Any:
        async def once() -> Any:
            meter.sent(request)
            return await rpc.call(method, request, timeout_seconds=self._seconds(meter.digest))

        try:
            response = await self._patiently(once)
            meter.received(response)
            return response
        finally:
            self._on_cost(meter.cost())

    async def _stream(self, meter: _Meter, method: Any, request: Message) -> AsyncIterator[Any]:
        started = False
        lost_at = time.monotonic()
        try:
            while True:
                meter.sent(request)
                try:
                    seconds = self._seconds(meter.digest)
                    async for response in rpc.stream(method, request, timeout_seconds=seconds):
                        started = True
                        meter.received(response)
                        yield response
                except (
                    PeerLost
                ):  # what was given cannot be taken back: only an unbegun answer is asked for again
                    if started or time.monotonic() - lost_at > self._patience_seconds:
                        raise
                    await asyncio.sleep(_PAUSE_SECONDS)
                else:
                    return
        finally:
            self._on_cost(meter.cost())

    async def _patiently(self, once: Callable[[], Awaitable[T]]) -> T:
        """Call until there is an answer, or the patience is at an end."""
        lost_at = time.monotonic()
        while True:
            try:
                return await once()
            except PeerLost:
                if time.monotonic() - lost_at > self._patience_seconds:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)

    def _seconds(self, digest: Digest | None) -> float:
        size_bytes = 0 if digest is None else digest.size_bytes
        return self._timeout_seconds + size_bytes / _BYTES_PER_SECOND_MIN


async def _slices(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


def _on_wire(lease: str) -> str:
    """The default lease is the empty one on the wire: no bytes."""
    limits.check_lease(lease)
    return "" if lease == DEFAULT_LEASE else lease


def _writable(name: str) -> str:
    """`name`, if a message can carry it; the store checks the rest."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"name {name!r} has characters that cannot be written down") from error
    return name
