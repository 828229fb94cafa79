"""The port over gRPC: each call is handed to the store in a thread, its errors become statuses.

Decided here: how messages map to the port, how large blobs travel (in pieces), and that a served
store collects its garbage from time to time. Who may open the socket may call; who comes by TCP is
asked by `authenticate.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from grpc import aio

from hermes.store.v1 import store_pb2, store_pb2_grpc
from hermes_runtime.errors import BadInput, HermesError, Unsupported
from hermes_runtime.store import (
    DEFAULT_LEASE,
    DEFAULT_TTL_SECONDS,
    Digest,
    Event,
    ResultKey,
    Store,
    limits,
)
from hermes_runtime.store.authenticate import Doorkeeper
from hermes_runtime.store.disk import DiskStore
from hermes_runtime.store.wire import PIECE_BYTES, STATES, instant, timestamp
from hermes_runtime.supervise import rpc

T = TypeVar("T")
Context = aio.ServicerContext[Any, Any]

_THREADS = 16
_END = object()
_log = logging.getLogger(__name__)


class StoreServicer(store_pb2_grpc.StoreServiceServicer):
    """Any `Store` as a service. It does not own the store; `close` ends its threads."""

    def __init__(self, store: Store, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._store = store
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")

    def close(self) -> None:
        """Wait for calls in flight."""
        self._threads.shutdown()

    async def _run(self, call: Callable[..., T], *args: Any, **named: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *args, **named))

    async def _each(self, items: Iterator[T]) -> AsyncIterator[T]:
        """`items`, each made in a thread."""
        while (item := await self._run(next, items, _END)) is not _END:
            yield item

    async def Put(self, request: store_pb2.PutRequest, context: Context) -> store_pb2.PutResponse:
        told = _told(request)
        found = await self._run(
            self._store.put, request.data, digest=told, lease=request.lease or DEFAULT_LEASE
        )
        return store_pb2.PutResponse(digest=None if told else found.to_proto())

    async def PutStream(
        self, request_iterator: AsyncIterator[store_pb2.PutStreamRequest], context: Context
    ) -> store_pb2.PutStreamResponse:
        first = await anext(request_iterator, None)
        if first is None:
            raise BadInput("a stream without a piece is no blob: send one, with no bytes for an empty blob")
        told, loop, is_over = _told(first), asyncio.get_running_loop(), False

        def pieces() -> Iterator[bytes]:
            """Runs in the store's thread and has the loop fetch each piece."""
            yield first.data
            while True:
                fetched = asyncio.run_coroutine_threadsafe(_next(request_iterator), loop).result()
                if is_over:  # the caller is gone, and no piece more is no end of the blob
                    raise BadInput("the caller went away in the middle of a blob: nothing was stored")
                if fetched is None:
                    return
                yield fetched.data

        try:
            found = await self._run(
                self._store.put_pieces, pieces(), digest=told, lease=first.lease or DEFAULT_LEASE
            )
        finally:
            is_over = True
        return store_pb2.PutStreamResponse(digest=None if told else found.to_proto())

    async def Get(self, request: store_pb2.GetRequest, context: Context) -> store_pb2.GetResponse:
        digest = Digest.from_proto(request.digest)
        length = request.length if request.HasField("length") else limits.MESSAGE_DATA_BYTES_MAX
        data = await self._run(
            self._store.get,
            digest,
            offset=request.offset,
            length=min(length, limits.MESSAGE_DATA_BYTES_MAX),
        )
        return store_pb2.GetResponse(data=data)

    async def GetStream(
        self, request: store_pb2.GetStreamRequest, context: Context
    ) -> AsyncIterator[store_pb2.GetStreamResponse]:
        digest = Digest.from_proto(request.digest)
        start, end = limits.check_range(
            digest, request.offset, request.length if request.HasField("length") else None
        )
        position = 0
        async for piece in self._each(self._store.get_pieces(digest, piece_bytes=PIECE_BYTES)):
            if part := piece[max(0, start - position) : max(0, end - position)]:
                yield store_pb2.GetStreamResponse(data=part)
            position += len(piece)

    async def Stat(self, request: store_pb2.StatRequest, context: Context) -> store_pb2.StatResponse:
        found = await self._run(self._store.stat, [Digest.from_proto(digest) for digest in request.digests])
        return store_pb2.StatResponse(
            blobs=[
                store_pb2.BlobStat(
                    digest=stat.digest.to_proto(),
                    state=STATES[stat.state],
                    expires_at=None if stat.expires_at is None else timestamp(stat.expires_at),
                )
                for stat in found
            ]
        )

    async def Lease(self, request: store_pb2.LeaseRequest, context: Context) -> store_pb2.LeaseResponse:
        digests = [Digest.from_proto(digest) for digest in request.digests]
        count = await self._run(self._store.lease, request.lease, instant(request.expires_at), digests)
        return store_pb2.LeaseResponse(blob_count=count)

    async def DropLease(
        self, request: store_pb2.DropLeaseRequest, context: Context
    ) -> store_pb2.DropLeaseResponse:
        return store_pb2.DropLeaseResponse(existed=await self._run(self._store.drop_lease, request.lease))

    async def CollectGarbage(
        self, request: store_pb2.CollectGarbageRequest, context: Context
    ) -> store_pb2.CollectGarbageResponse:
        blobs, size_bytes = await self._run(self._store.collect_garbage, self._clock())
        return store_pb2.CollectGarbageResponse(blob_count=blobs, size_bytes=size_bytes)

    async def Append(self, request: store_pb2.AppendRequest, context: Context) -> store_pb2.AppendResponse:
        stored = await self._run(self._store.append, Event.from_bytes(request.event_bytes))
        return store_pb2.AppendResponse(digest=stored.digest, sequence=stored.sequence)

    async def Head(self, request: store_pb2.HeadRequest, context: Context) -> store_pb2.HeadResponse:
        return store_pb2.HeadResponse(digest=await self._run(self._store.head, request.stream))

    async def ReadEvents(
        self, request: store_pb2.ReadEventsRequest, context: Context
    ) -> AsyncIterator[store_pb2.ReadEventsResponse]:
        events = self._store.events(stream_prefix=request.stream_prefix, after=request.after_sequence)
        async for stored in self._each(events):
            yield store_pb2.ReadEventsResponse(
                sequence=stored.sequence, event_bytes=stored.event.to_bytes(), digest=stored.digest
            )

    async def RecordResult(
        self, request: store_pb2.RecordResultRequest, context: Context
    ) -> store_pb2.RecordResultResponse:
        key = ResultKey(run=request.key.run, instance=request.key.instance, arm=request.key.arm)
        stands, standing = await self._run(self._store.record_result, key, request.result)
        return store_pb2.RecordResultResponse(recorded=stands, result=standing)

    async def ListResults(
        self, request: store_pb2.ListResultsRequest, context: Context
    ) -> AsyncIterator[store_pb2.ListResultsResponse]:
        async for key, result in self._each(self._store.results(request.run)):
            yield store_pb2.ListResultsResponse(
                key=store_pb2.ResultKey(run=key.run, instance=key.instance, arm=key.arm), result=result
            )

    async def Backup(
        self, request: store_pb2.BackupRequest, context: Context
    ) -> AsyncIterator[store_pb2.BackupResponse]:
        if not isinstance(self._store, DiskStore):
            raise Unsupported("this store is in memory: there is no database to copy")
        with ExitStack() as until_the_caller_ends:
            await self._run(until_the_caller_ends.enter_context, self._store.kept())
            async with aclosing(self._copy(self._store)) as pieces:
                async for piece in pieces:
                    yield piece
            await asyncio.Event().wait()  # nothing is collected while the caller reads the blobs

    async def _copy(self, store: DiskStore) -> AsyncGenerator[store_pb2.BackupResponse, None]:
        hasher, size_bytes = hashlib.sha256(), 0
        with ExitStack() as copying:
            copy = await self._run(copying.enter_context, store.snapshot())
            file = copying.enter_context(copy.open("rb"))
            while piece := await self._run(file.read, PIECE_BYTES):
                hasher.update(piece)
                size_bytes += len(piece)
                yield store_pb2.BackupResponse(data=piece)
        yield store_pb2.BackupResponse(digest=Digest(hasher.digest(), size_bytes).to_proto())


async def serve(
    socket: Path,
    folder: Path,
    *,
    listen: rpc.Listener | None = None,
    doorkeeper: Doorkeeper | None = None,
    default_ttl_seconds: float = DEFAULT_TTL_SECONDS,
    collect_every_seconds: float = 600.0,
    stopping: asyncio.Event | None = None,
    serving: asyncio.Event | None = None,
    ready_file: Path | None = None,
) -> None:
    """Own `folder` and serve it at `socket` until SIGTERM, SIGINT or `stopping`.

    With `listen` it is served there too, to those that `doorkeeper` lets in; `ready_file` then names that
    address, once it is served. The socket has no doorkeeper but its mode.

    Raises what `DiskStore` raises at opening, before there is a socket.
    """
    stop = stopping or asyncio.Event()
    store = await asyncio.to_thread(DiskStore, folder, default_ttl_seconds=default_ttl_seconds)
    store.tell(socket)
    servicer = StoreServicer(store)
    add = [partial(store_pb2_grpc.add_StoreServiceServicer_to_server, servicer)]
    try:
        async with asyncio.TaskGroup() as group:
            collecting = group.create_task(
                _collect_garbage(store, collect_every_seconds), name="collect garbage"
            )
            if listen is None:
                await rpc.serve(socket, add, stopping=stop, serving=serving, ready_file=ready_file)
            else:
                if doorkeeper is None:
                    raise BadInput("a store that is served to others needs somebody to ask who they are")
                own = rpc.serve(socket, add, stopping=stop)
                inside = group.create_task(_and_then_stop(own, stop), name="socket")
                await rpc.serve(
                    listen,
                    add,
                    interceptors=[doorkeeper],
                    stopping=stop,
                    serving=serving,
                    ready_file=ready_file,
                )
                stop.set()
                await inside
            collecting.cancel()
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    finally:
        await asyncio.to_thread(servicer.close)
        await asyncio.to_thread(store.close)


async def _and_then_stop(serving: Awaitable[None], stop: asyncio.Event) -> None:
    try:
        await serving
    finally:
        stop.set()


async def _collect_garbage(store: Store, every_seconds: float) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        try:
            blobs, size_bytes = await asyncio.to_thread(store.collect_garbage, datetime.now(UTC))
        except HermesError as error:  # a full disk: reads go on, and the next round may succeed
            _log.warning("no garbage collected: %s", error)
        else:
            _log.info("garbage collected: blobs=%d size_bytes=%d", blobs, size_bytes)


async def _next(requests: AsyncIterator[T]) -> T | None:
    return await anext(requests, None)


def _told(request: store_pb2.PutRequest | store_pb2.PutStreamRequest) -> Digest | None:
    return Digest.from_proto(request.digest) if request.HasField("digest") else None
