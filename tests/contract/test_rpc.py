"""Errors keep their class over a socket, in every shape of call; sockets are private; servers end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from hermes.store.v1 import store_pb2, store_pb2_grpc
from hermes_runtime import errors
from hermes_runtime.supervise import rpc

CLASSES = [errors.HermesError, *errors.HermesError.__subclasses__(), errors.Malformed, errors.ContextTooShort]


class Troubled(store_pb2_grpc.StoreServiceServicer):
    """Raises `trouble` in each of the three shapes of call that the project uses."""

    def __init__(self, trouble: BaseException | None) -> None:
        self.trouble = trouble
        self.was_left = asyncio.Event()

    async def Put(self, request: store_pb2.PutRequest, context: Any) -> store_pb2.PutResponse:
        if self.trouble:
            raise self.trouble
        return store_pb2.PutResponse()

    async def PutStream(
        self, request_iterator: AsyncIterator[store_pb2.PutStreamRequest], context: Any
    ) -> store_pb2.PutStreamResponse:
        async for _ in request_iterator:
            if self.trouble:
                raise self.trouble
        return store_pb2.PutStreamResponse()

    async def GetStream(
        self, request: store_pb2.GetStreamRequest, context: Any
    ) -> AsyncIterator[store_pb2.GetStreamResponse]:
        try:
            yield store_pb2.GetStreamResponse(data=b"first")
            if self.trouble:
                raise self.trouble
            while True:
                yield store_pb2.GetStreamResponse(data=bytes(1 << 20))
        finally:
            self.was_left.set()

    async def Get(self, request: store_pb2.GetRequest, context: Any) -> store_pb2.GetResponse:
        await asyncio.Event().wait()
        raise AssertionError


def _troubled(trouble: BaseException | None) -> Troubled:
    return Troubled(trouble)  # type: ignore[abstract]  # what it lacks is answered UNIMPLEMENTED


@contextlib.asynccontextmanager
async def serving(
    folder: Path, servicer: Troubled
) -> AsyncIterator[tuple[Any, asyncio.Event]]:  # fmt: skip
    stopping, up = asyncio.Event(), asyncio.Event()
    socket = folder / "run" / "s.sock"
    add = partial(store_pb2_grpc.add_StoreServiceServicer_to_server, servicer)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(rpc.serve(socket, [add], stopping=stopping, serving=up), name="server")
        await up.wait()
        async with rpc.channel(socket) as channel:
            yield store_pb2_grpc.StoreServiceStub(channel), stopping
        stopping.set()


async def two_pieces() -> AsyncIterator[store_pb2.PutStreamRequest]:
    yield store_pb2.PutStreamRequest(data=b"1")
    yield store_pb2.PutStreamRequest(data=b"2")


@pytest.mark.parametrize("kind", CLASSES)
async def test_an_error_keeps_its_class_and_its_words_in_every_shape_of_call(
    tmp_path: Path, kind: type[errors.HermesError]
):
    text = "blob 9f3c… not in store:\nput it again"
    async with serving(tmp_path, _troubled(kind(text))) as (stub, _):
        with pytest.raises(kind) as raised:
            await rpc.call(stub.Put, store_pb2.PutRequest(), timeout_seconds=10)
        assert (type(raised.value), str(raised.value)) == (kind, text)
        with pytest.raises(kind) as raised:
            await rpc.call_with_pieces(stub.PutStream, two_pieces(), timeout_seconds=10)
        assert (type(raised.value), str(raised.value)) == (kind, text)
        seen = []
        with pytest.raises(kind) as raised:
            async for answer in rpc.stream(stub.GetStream, store_pb2.GetStreamRequest(), timeout_seconds=10):
                seen.append(answer.data)
        assert (type(raised.value), str(raised.value), seen) == (kind, text, [b"first"])


async def test_a_very_long_error_is_cut_and_keeps_its_class(tmp_path: Path):
    for text in ("é…" * 50_000, "plain " * 50_000, "\n%" * 50_000, "\ud800 lone"):
        async with serving(tmp_path, _troubled(errors.Damaged(text))) as (stub, _):
            for _ in range(5):  # near their limit, peers refuse headers by chance
                with pytest.raises(errors.Damaged) as raised:
                    await rpc.call(stub.Put, store_pb2.PutRequest(), timeout_seconds=10)
                told = str(raised.value)
                assert told.removesuffix("…") == text.replace("\ud800", "?")[: len(told.removesuffix("…"))]
                assert len(told) >= min(700, len(text))


async def test_a_mistake_of_the_server_is_an_error_and_the_server_goes_on(tmp_path: Path):
    servicer = _troubled(ZeroDivisionError("a bug"))
    async with serving(tmp_path, servicer) as (stub, _):
        with pytest.raises(errors.HermesError, match="a bug"):
            await rpc.call(stub.Put, store_pb2.PutRequest(), timeout_seconds=10)
        servicer.trouble = None
        await rpc.call(stub.Put, store_pb2.PutRequest(), timeout_seconds=10)


async def test_an_error_of_the_pieces_is_raised_as_it_is(tmp_path: Path):
    async def broken() -> AsyncIterator[store_pb2.PutStreamRequest]:
        yield store_pb2.PutStreamRequest(data=b"1")
        raise errors.Malformed("the file ends in the middle")

    async with serving(tmp_path, _troubled(None)) as (stub, _):
        with pytest.raises(errors.Malformed, match="in the middle"):
            await rpc.call_with_pieces(stub.PutStream, broken(), timeout_seconds=10)


async def test_a_caller_that_stops_half_way_frees_the_server(tmp_path: Path):
    servicer = _troubled(None)
    async with serving(tmp_path, servicer) as (stub, _):
        answers = rpc.stream(stub.GetStream, store_pb2.GetStreamRequest(), timeout_seconds=30)
        async with contextlib.aclosing(answers):
            assert (await anext(answers)).data == b"first"
        await servicer.was_left.wait()


async def test_a_call_that_takes_too_long_is_timed_out(tmp_path: Path):
    async with serving(tmp_path, _troubled(None)) as (stub, _):
        with pytest.raises(errors.TimedOut):
            await rpc.call(stub.Get, store_pb2.GetRequest(), timeout_seconds=0.05)


async def test_a_message_that_is_too_large_is_exhausted(tmp_path: Path):
    async with serving(tmp_path, _troubled(None)) as (stub, _):
        with pytest.raises(errors.Exhausted):
            request = store_pb2.PutRequest(data=bytes(rpc.MESSAGE_BYTES_MAX))
            await rpc.call(stub.Put, request, timeout_seconds=10)


async def test_a_method_that_nobody_serves_is_an_error(tmp_path: Path):
    async with serving(tmp_path, _troubled(None)), rpc.channel(tmp_path / "run" / "s.sock") as channel:
        nothing = channel.unary_unary(
            "/hermes.store.v1.StoreService/Nothing",
            request_serializer=store_pb2.PutRequest.SerializeToString,
            response_deserializer=store_pb2.PutResponse.FromString,
        )
        with pytest.raises(errors.HermesError, match="UNIMPLEMENTED"):
            await rpc.call(nothing, store_pb2.PutRequest(), timeout_seconds=10)


async def test_nobody_at_the_socket_is_a_lost_peer(tmp_path: Path):
    async with rpc.channel(tmp_path / "none.sock") as channel:
        stub: Any = store_pb2_grpc.StoreServiceStub(channel)
        with pytest.raises(errors.PeerLost):
            await rpc.call(stub.Put, store_pb2.PutRequest(), timeout_seconds=10)
        with pytest.raises(errors.PeerLost, match="is it up"):
            await rpc.ready(channel, timeout_seconds=0.05)


async def test_the_socket_is_private_and_gone_when_the_server_has_ended(tmp_path: Path):
    socket = tmp_path / "run" / "s.sock"
    socket.parent.mkdir(mode=0o700)
    socket.write_text("left by a dead process")
    mask = os.umask(0)
    os.umask(mask)
    async with serving(tmp_path, _troubled(None)) as (stub, _):
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(socket.stat().st_mode)
        await rpc.call(stub.Put, store_pb2.PutRequest(), timeout_seconds=10)
    assert not socket.exists()
    assert os.umask(mask) == mask


async def test_a_signal_ends_the_server_and_its_handler_goes_with_it(tmp_path: Path):
    before = signal.getsignal(signal.SIGTERM)
    async with serving(tmp_path, _troubled(None)) as (_, stopping):
        os.kill(os.getpid(), signal.SIGTERM)
        await stopping.wait()
    assert signal.getsignal(signal.SIGTERM) == before


async def test_a_path_too_long_for_a_socket_is_refused_by_name(tmp_path: Path):
    with pytest.raises(errors.BadInput, match="choose a shorter folder"):
        await rpc.serve(tmp_path / ("x" * 120), [])


def test_message_bytes_are_those_of_the_message_and_its_prefix():
    message = store_pb2.PutRequest(data=b"12345")
    assert rpc.message_bytes(message) == len(message.SerializeToString()) + 5


def test_a_status_without_our_mark_becomes_the_error_that_fits(tmp_path: Path):
    import grpc

    for code, kind in [
        (grpc.StatusCode.UNAVAILABLE, errors.PeerLost),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.TimedOut),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Exhausted),
        (grpc.StatusCode.INVALID_ARGUMENT, errors.BadInput),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.UNKNOWN, errors.HermesError),
    ]:
        empty = aio.Metadata()
        assert type(rpc.translated(aio.AioRpcError(code, empty, empty, "why", None))) is kind
        forged = aio.Metadata(("hermes-error", "Response"))
        assert type(rpc.translated(aio.AioRpcError(code, empty, forged, "why", None))) is kind
