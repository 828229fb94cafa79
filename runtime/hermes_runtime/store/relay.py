"""The store's service on a Unix socket, each call handed on to the store at host:port with a token.

Bytes go through unchanged both ways; so do error texts, trailing metadata, deadlines and cancellation.
A store that is away is UNAVAILABLE here, which a StoreClient's patience is for. The one process of a
run's pod that opens a TCP socket, and it runs nobody's code.

Not covered: what may be asked for; the store decides that by the token.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from hermes.store.v1 import store_pb2
from hermes_runtime.supervise import rpc

_SERVICE = store_pb2.DESCRIPTOR.services_by_name["StoreService"]
_METHODS = {f"/{_SERVICE.full_name}/{method.name}": method for method in _SERVICE.methods}


class Relay(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Handles every method of the StoreService by calling it on `store`."""

    def __init__(self, store: aio.Channel) -> None:
        self._store: Any = store  # without serializers bytes stay bytes; the stubs do not know
        self._handlers = {name: self._handler(name) for name in _METHODS}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a call; None, which is UNIMPLEMENTED, for other services."""
        return self._handlers.get(handler_call_details.method)

    def _handler(self, name: str) -> Any:
        method = _METHODS[name]
        if not (method.client_streaming or method.server_streaming):
            return grpc.unary_unary_rpc_method_handler(_whole(self._store.unary_unary(name)))
        # on the wire a single message is a stream of one
        return grpc.stream_stream_rpc_method_handler(_in_pieces(self._store.stream_stream(name)))


def _whole(onward: Any) -> Any:
    async def relay(request: bytes, context: Any) -> bytes:
        try:
            answer: bytes = await onward(request, timeout=context.time_remaining())
        except aio.AioRpcError as error:
            await _abort(context, error)
        return answer

    return relay


def _in_pieces(onward: Any) -> Any:
    async def relay(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        call = onward(requests, timeout=context.time_remaining())
        try:
            async for answer in call:
                yield answer
        except aio.AioRpcError as error:
            await _abort(context, error)
        finally:
            call.cancel()  # a caller that went away frees the store; else this does nothing

    return relay


async def _abort(context: Any, error: aio.AioRpcError) -> None:
    trailing: Any = error.trailing_metadata() or ()  # the stubs do not know that it iterates
    kept = tuple((key, value) for key, value in trailing if not key.startswith("grpc-"))
    await context.abort(error.code(), error.details() or "", trailing_metadata=kept)


async def serve(socket: Path, store: aio.Channel, *, ready_file: Path | None = None) -> None:
    """Relay from `socket` to `store`, which is closed at the end, until SIGTERM or SIGINT.

    Ready does not mean that the store answers: it may come and go.
    """
    async with store:
        relay = Relay(store)
        await rpc.serve(
            socket, [lambda server: server.add_generic_rpc_handlers((relay,))], ready_file=ready_file
        )
