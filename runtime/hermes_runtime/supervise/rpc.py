"""gRPC over a Unix socket: server, channel, and errors that keep their class across the wire.

Sockets have mode 0600 in a folder of mode 0700: who may open the file may call. A server may listen
elsewhere by a `Listener`; TCP is `tcp.py`, and nobody but the store listens there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from grpc import aio

from hermes_runtime import errors
from hermes_runtime.supervise.ready import ReadyFile

Response = TypeVar("Response", bound=Message)

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
"""Largest gRPC message; what is larger goes in pieces or by anchor."""

PREFIX_BYTES = 5
"""gRPC puts a compression flag and a length before each message."""

DETAILS_BYTES_MAX = 6000
"""Longest error text on the wire, percent-encoded: from 8 KiB of headers on, peers refuse some."""

_SOCKET_PATH_BYTES_MAX = 107
"""What `sockaddr_un` holds, less the final zero."""

_ERROR_KEY = "hermes-error"
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
]


class Listener(Protocol):
    """Somewhere else than a Unix socket to serve at."""

    @property
    def options(self) -> Sequence[tuple[str, Any]]:
        """Options of gRPC that go with it."""
        ...

    def open(self, server: aio.Server) -> str:
        """Listen; the address. RuntimeError, as gRPC's, if that cannot be."""
        ...


def message_bytes(message: Message) -> int:
    """Bytes of `message` as gRPC puts it on the socket, without HTTP/2's own."""
    return message.ByteSize() + PREFIX_BYTES


def channel(socket: Path) -> aio.Channel:
    """A channel to the server at `socket`. The caller closes it."""
    return aio.insecure_channel(f"unix:{socket}", options=OPTIONS)


async def ready(connection: aio.Channel, *, timeout_seconds: float) -> None:
    """Wait until the server answers. Raises PeerLost if it does not in time."""
    try:
        async with asyncio.timeout(timeout_seconds):
            await connection.channel_ready()
    except TimeoutError as error:
        raise errors.PeerLost(f"the server did not answer within {timeout_seconds} s: is it up?") from error


def _error_class(name: str) -> type[errors.HermesError] | None:
    found = getattr(errors, name, None)
    return found if isinstance(found, type) and issubclass(found, errors.HermesError) else None


def translated(error: aio.AioRpcError) -> errors.HermesError:
    """The error of ours that the other side raised, or the one that fits the status."""
    trailing: Any = error.trailing_metadata() or ()  # the stubs do not know that it iterates
    for key, value in trailing:
        if key == _ERROR_KEY and (known := _error_class(str(value))):
            return known(error.details() or known.__name__)
    details = error.details() or str(error.code())
    match error.code():
        case grpc.StatusCode.UNAVAILABLE:
            return errors.PeerLost(details)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.TimedOut(details)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return errors.Exhausted(details)
        case grpc.StatusCode.INVALID_ARGUMENT:
            return errors.BadInput(details)
        case grpc.StatusCode.NOT_FOUND:
            return errors.NotFound(details)
        case _:
            return errors.HermesError(f"{error.code().name}: {details}")


_ENDED_WHILE_SENDING = (grpc.StatusCode.INTERNAL, "Internal error from Core")
"""What grpcio says when the server has ended the call, with whatever status, and a message was on its way."""
_ASKED_AGAIN_MAX = 3


async def call(
    method: Callable[..., Awaitable[Response]], request: Message, *, timeout_seconds: float
) -> Response:
    """Call a unary method; a failure is raised as the error of ours that it stands for."""
    try:
        return await method(request, timeout=timeout_seconds)
    except aio.AioRpcError as error:
        raise translated(error) from error


async def call_with_pieces(
    method: Callable[..., Awaitable[Response]], requests: AsyncIterable[Message], *, timeout_seconds: float
) -> Response:
    """Call a method that takes a stream of requests; failures as in `call`.

    An error that `requests` raises ends the call and is raised as it is.
    """
    raised: list[BaseException] = []
    first: list[Message] = []

    async def watched() -> AsyncIterator[Message]:
        try:
            async for request in requests:
                if not first:
                    first.append(request)
                yield request
        except Exception as error:
            raised.append(error)  # gRPC would say no more than "cancelled"
            raise

    try:
        return await method(watched(), timeout=timeout_seconds)
    except aio.AioRpcError as error:
        if raised:
            raise raised[0] from None
        if (error.code(), error.details()) == _ENDED_WHILE_SENDING:
            raise await _why_it_ended(method, first, timeout_seconds) from error
        raise translated(error) from error
    except asyncio.CancelledError:
        if raised:
            raise raised[0] from None
        raise


async def _why_it_ended(
    method: Callable[..., Awaitable[Response]], first: Sequence[Message], timeout_seconds: float
) -> errors.HermesError:
    """Ask again with the first request alone: who is refused hears it now; the rest may be tried again."""

    async def beginning() -> AsyncIterator[Message]:
        for request in first:
            yield request

    for _ in range(_ASKED_AGAIN_MAX):
        try:
            await method(beginning(), timeout=timeout_seconds)
        except aio.AioRpcError as error:
            if (error.code(), error.details()) == _ENDED_WHILE_SENDING:
                continue
            told = translated(error)
            # That the rest is missing is no reason.
            if not isinstance(told, errors.BadInput | errors.Damaged):
                return told
        break
    return errors.PeerLost("the server ended the call while it was sent to: try again")


async def stream(
    method: Callable[..., AsyncIterable[Response]], request: Message, *, timeout_seconds: float
) -> AsyncGenerator[Response, None]:
    """Call a method that answers with a stream; failures as in `call`. The time is for all of it."""
    answers: Any = method(request, timeout=timeout_seconds)
    try:
        async for answer in answers:
            yield answer
    except aio.AioRpcError as error:
        raise translated(error) from error
    finally:
        answers.cancel()  # a caller that stops half-way frees the server; else this does nothing


async def abort(context: aio.ServicerContext[Any, Any], error: errors.HermesError) -> NoReturn:
    """End a call with the status of `error`, keeping its class for `translated`."""
    code = grpc.StatusCode[error.status]
    await context.abort(code, _details(error), trailing_metadata=((_ERROR_KEY, type(error).__name__),))
    raise AssertionError("abort returned")


def _details(error: errors.HermesError) -> str:
    """The error's text, writable, and cut where its percent-encoding would be too long for a header."""
    text = str(error).encode(errors="replace").decode()
    left = DETAILS_BYTES_MAX
    for index, character in enumerate(text):
        left -= 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if left < 0:
            return text[:index] + "…"
    return text


class _Errors(aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Turns errors of ours that leave a handler into statuses."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method: gRPC answers UNIMPLEMENTED
            return handler
        coding: dict[str, Any] = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            if handler.request_streaming:
                return grpc.stream_stream_rpc_method_handler(_guarded_stream(handler.stream_stream), **coding)
            return grpc.unary_stream_rpc_method_handler(_guarded_stream(handler.unary_stream), **coding)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(_guarded(handler.stream_unary), **coding)
        return grpc.unary_unary_rpc_method_handler(_guarded(handler.unary_unary), **coding)


def _guarded(handle: Any) -> Any:
    async def guarded(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await handle(request, context)
        except errors.HermesError as error:
            await abort(context, error)

    return guarded


def _guarded_stream(handle: Any) -> Any:
    async def guarded(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for answer in handle(request, context):
                yield answer
        except errors.HermesError as error:
            await abort(context, error)

    return guarded


async def serve(
    at: Path | Listener,
    add: Sequence[Callable[[aio.Server], None]],
    *,
    interceptors: Sequence[aio.ServerInterceptor] = (),  # type: ignore[type-arg]  # as _Errors
    stopping: asyncio.Event | None = None,
    serving: asyncio.Event | None = None,
    ready_file: Path | None = None,
) -> None:
    """Serve at a Unix socket until SIGTERM, SIGINT or `stopping`; then let calls in flight end (5 s).

    The folder is made with mode 0700, the socket with 0600; a socket file left by a dead process is
    replaced. `serving` is set, and `ready_file` written, once calls are answered. Off the main thread
    there are no signals and `stopping` alone ends it. `interceptors` see a call before its handler does.

    Raises:
        BadInput: the path is too long for a socket, or no socket can be made there.
    """
    stop = stopping or asyncio.Event()
    options = OPTIONS if isinstance(at, Path) else [*OPTIONS, *at.options]
    server = aio.server(interceptors=[_Errors(), *interceptors], options=options)
    for add_servicer in add:
        add_servicer(server)
    with ReadyFile(ready_file) as ready:
        address = await _opened(server, at)
        loop = asyncio.get_running_loop()
        on_main = threading.current_thread() is threading.main_thread()
        caught = (signal.SIGTERM, signal.SIGINT) if on_main else ()
        for number in caught:
            loop.add_signal_handler(number, stop.set)
        try:
            if serving is not None:
                serving.set()
            ready.write(address)
            await stop.wait()
        finally:
            for number in caught:
                loop.remove_signal_handler(number)
            await server.stop(grace=5)
            if isinstance(at, Path):
                at.unlink(missing_ok=True)


async def _opened(server: aio.Server, at: Path | Listener) -> str:
    """Listen and start; the address."""
    if isinstance(at, Path):
        if (length := len(os.fsencode(at))) > _SOCKET_PATH_BYTES_MAX:
            raise errors.BadInput(
                f"the path of socket {at} has {length} bytes, a socket's may have {_SOCKET_PATH_BYTES_MAX}: "
                "choose a shorter folder"
            )
        at.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        at.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        if isinstance(at, Path):
            server.add_insecure_port(f"unix:{at}")
            address = f"unix:{at}"
        else:
            address = at.open(server)
        await server.start()
    except RuntimeError as error:
        raise errors.BadInput(f"cannot serve at {at}: {error}") from error
    finally:
        os.umask(mask)
    return address
