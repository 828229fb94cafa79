"""The stores that the contract is asked of: in memory, on disk, and on disk behind a socket.

`Served` gives the asynchronous client the blocking shape of the port, on a loop in a thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hermes.store.v1 import store_pb2_grpc
from hermes_runtime.store import (
    DEFAULT_LEASE,
    BlobStat,
    Digest,
    Event,
    ResultKey,
    Store,
    StoredEvent,
)
from hermes_runtime.store.client import StoreClient
from hermes_runtime.store.disk import DiskStore
from hermes_runtime.store.memory import MemoryStore
from hermes_runtime.store.service import StoreServicer
from hermes_runtime.supervise import rpc

T = TypeVar("T")
TTL_SECONDS = 3600.0


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def passes(self, seconds: float) -> datetime:
        """Move on; the new time."""
        self.now += timedelta(seconds=seconds)
        return self.now


class LoopThread:
    """An event loop in a thread, for blocking callers."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of `work`, run in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=60)

    def close(self) -> None:
        """End the loop and its thread."""
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Served:
    """`Store` over a `StoreClient`. Closing it closes the client."""

    def __init__(self, loop: LoopThread, client: StoreClient) -> None:
        self._loop = loop
        self.client = client

    def put(self, data: bytes, *, digest: Digest | None = None, lease: str = DEFAULT_LEASE) -> Digest:
        if digest is not None:
            return self.put_pieces(iter((data,)), digest=digest, lease=lease)
        return self._loop.run(self.client.put(data, lease=lease))[0]

    def put_pieces(
        self, pieces: Iterator[bytes], *, digest: Digest | None = None, lease: str = DEFAULT_LEASE
    ) -> Digest:
        async def each() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return self._loop.run(self.client.put_pieces(each(), digest=digest, lease=lease))[0]

    def get(self, digest: Digest, *, offset: int = 0, length: int | None = None) -> bytes:
        return self._loop.run(self.client.get(digest, offset=offset, length=length))[0]

    def get_pieces(self, digest: Digest, *, piece_bytes: int = 1 << 20) -> Iterator[bytes]:
        data = self.get(digest)
        return (data[start : start + piece_bytes] for start in range(0, len(data), piece_bytes))

    def stat(self, digests: Collection[Digest]) -> list[BlobStat]:
        return self._loop.run(self.client.stat(digests))

    def lease(self, name: str, expires_at: datetime, digests: Collection[Digest] = ()) -> int:
        return self._loop.run(self.client.lease(name, expires_at, digests))

    def drop_lease(self, name: str) -> bool:
        return self._loop.run(self.client.drop_lease(name))

    def collect_garbage(self, now: datetime) -> tuple[int, int]:
        return self._loop.run(self.client.collect_garbage())

    def append(self, event: Event) -> StoredEvent:
        return self._loop.run(self.client.append(event))

    def head(self, stream: str) -> bytes:
        return self._loop.run(self.client.head(stream))

    def events(self, *, stream_prefix: str = "", after: int = 0) -> Iterator[StoredEvent]:
        async def every() -> list[StoredEvent]:
            return [found async for found in self.client.events(stream_prefix=stream_prefix, after=after)]

        return iter(self._loop.run(every()))

    def record_result(self, key: ResultKey, result: bytes) -> tuple[bool, bytes]:
        return self._loop.run(self.client.record_result(key, result))

    def results(self, run: str) -> Iterator[tuple[ResultKey, bytes]]:
        async def every() -> list[tuple[ResultKey, bytes]]:
            return [found async for found in self.client.results(run)]

        return iter(self._loop.run(every()))

    def close(self) -> None:
        self._loop.run(self.client.close())


@contextmanager
def memory(folder: Path, clock: Clock) -> Iterator[Store]:
    yield MemoryStore(default_ttl_seconds=TTL_SECONDS, clock=clock)


@contextmanager
def disk(folder: Path, clock: Clock) -> Iterator[Store]:
    store = DiskStore(folder / "store", default_ttl_seconds=TTL_SECONDS, clock=clock)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def served(folder: Path, clock: Clock) -> Iterator[Store]:
    with disk(folder, clock) as store, serving(store, folder / "store.sock", clock) as client:
        yield client


@contextmanager
def serving(store: Store, socket: Path, clock: Callable[[], datetime]) -> Iterator[Served]:
    """`store` behind a socket, and a client of it."""
    thread = LoopThread()
    servicer = StoreServicer(store, clock=clock)
    stopping, up = asyncio.Event(), asyncio.Event()
    add = partial(store_pb2_grpc.add_StoreServiceServicer_to_server, servicer)
    server = asyncio.run_coroutine_threadsafe(
        rpc.serve(socket, [add], stopping=stopping, serving=up), thread.loop
    )
    try:
        thread.run(asyncio.wait_for(up.wait(), 20))

        async def connected() -> StoreClient:
            return StoreClient(socket)

        client = Served(thread, thread.run(connected()))
        try:
            yield client
        finally:
            client.close()
    finally:
        thread.loop.call_soon_threadsafe(stopping.set)
        server.result(timeout=20)
        servicer.close()
        thread.close()
