"""Who may do what with a store that is served over TCP, and the gate that asks before each call.

A caller shows a token; a `Verifier` says whose it is. A run's ServiceAccount may use its own run alone
(streams, results, leases); a reader may read every run and write nothing. A blob is open to each of
them by its digest: who knows a digest was told it. Nobody collects garbage from afar.

Not covered: how much a run stores; who may make a ServiceAccount named like a run's; who listens on a
network without TLS.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, assert_never
from weakref import WeakValueDictionary

import grpc
from grpc import aio

from hermes_runtime.errors import Denied, HermesError, Unauthenticated
from hermes_runtime.store import DEFAULT_LEASE
from hermes_runtime.store.event import Event
from hermes_runtime.supervise.tcp import token_in

REMEMBERED_SECONDS = 60.0
"""Longest that an answer about a token is believed: so long may a token outlive its pod."""

REFUSAL_SECONDS = 2.0
"""How long a refused token is refused unasked: a caller that repeats itself is no load on the verifier."""

REMEMBERED_MAX = 4096
"""Tokens remembered at a time."""

_RUN_ACCOUNT = re.compile(r"system:serviceaccount:([a-z0-9-]+):hermes-run-([a-z0-9]([-a-z0-9]*[a-z0-9])?)")
_SERVICE = "/hermes.store.v1.StoreService/"


# Callers


@dataclass(frozen=True, slots=True)
class RunCaller:
    """A pod of a run."""

    name: str
    prefix: str
    """What the ids of its runs start with: "<namespace>.<run>."; ids have no more dots than that."""


@dataclass(frozen=True, slots=True)
class Reader:
    """May read every run."""

    name: str


@dataclass(frozen=True, slots=True)
class Stranger:
    """Somebody else: it is known who, and it is nobody's business here."""

    name: str


Caller = RunCaller | Reader | Stranger


def caller_of(name: str, readers: Collection[str]) -> Caller:
    """Who `name` (a user name of Kubernetes) is to the store."""
    if name in readers:
        return Reader(name)
    if found := _RUN_ACCOUNT.fullmatch(name):
        return RunCaller(name, f"{found[1]}.{found[2]}.")
    return Stranger(name)


# What a call touches


@dataclass(frozen=True, slots=True)
class ReadBlobs:
    """Blobs, by digest."""


@dataclass(frozen=True, slots=True)
class WriteBlob:
    """A blob under a lease; the default one is everybody's."""

    lease: str


@dataclass(frozen=True, slots=True)
class ChangeLease:
    """A lease as such: how long it lasts, what it holds."""

    lease: str


@dataclass(frozen=True, slots=True)
class ReadRun:
    """Events or results whose run, stream or stream's beginning is `name`."""

    name: str


@dataclass(frozen=True, slots=True)
class WriteRun:
    """An event of a stream, or a result of a run."""

    name: str


@dataclass(frozen=True, slots=True)
class ReadAll:
    """The whole store."""


@dataclass(frozen=True, slots=True)
class Collect:
    """Garbage."""


Touch = ReadBlobs | WriteBlob | ChangeLease | ReadRun | WriteRun | ReadAll | Collect

TOUCHES: Mapping[str, Callable[[Any], Touch]] = {
    "Put": lambda request: WriteBlob(request.lease or DEFAULT_LEASE),
    "PutStream": lambda request: WriteBlob(request.lease or DEFAULT_LEASE),
    "Get": lambda request: ReadBlobs(),
    "GetStream": lambda request: ReadBlobs(),
    "Stat": lambda request: ReadBlobs(),
    "Lease": lambda request: ChangeLease(request.lease),
    "DropLease": lambda request: ChangeLease(request.lease),
    "CollectGarbage": lambda request: Collect(),
    "Append": lambda request: WriteRun(Event.from_bytes(request.event_bytes).stream),
    "Head": lambda request: ReadRun(request.stream),
    "ReadEvents": lambda request: ReadRun(request.stream_prefix),
    "RecordResult": lambda request: WriteRun(request.key.run),
    "ListResults": lambda request: ReadRun(request.run),
    "Backup": lambda request: ReadAll(),
}
"""What each method touches, from its request. A method that is not here is refused to everybody."""


def refusal(caller: Caller, touch: Touch) -> str | None:
    """Why `caller` may not do that; None if it may."""
    match caller:
        case Stranger():
            return "is neither a run's ServiceAccount (hermes-run-<name>) nor a reader of this store"
        case Reader():
            if isinstance(touch, ReadBlobs | ReadRun | ReadAll):
                return None
            return "may read every run and write nothing"
        case RunCaller(prefix=prefix):
            return _refusal_of_a_run(prefix, touch)
    assert_never(caller)


def _refusal_of_a_run(prefix: str, touch: Touch) -> str | None:
    match touch:
        case ReadBlobs():
            return None
        case WriteBlob(lease=lease):
            is_own = lease == DEFAULT_LEASE or lease.startswith(prefix)
            return (
                None if is_own else f"may put blobs under the default lease and its own, not under {lease!r}"
            )
        case ChangeLease(lease=lease):
            return None if lease.startswith(prefix) else f"may change its own leases, not {lease!r}"
        case ReadRun(name=name) | WriteRun(name=name):
            return None if name.startswith(prefix) else f"may use its own run ({prefix}*), not {name!r}"
        case ReadAll():
            return "may use its own run, not the whole store"
        case Collect():
            return "may not collect garbage: the store does so itself"
    assert_never(touch)


def check(caller: Caller, method: str, request: Any) -> None:
    """Denied, with the reason, unless `caller` may call `method` with that request.

    Raises Malformed for an event that is none.
    """
    touches = TOUCHES.get(method)
    reason = "may not: no rule allows it" if touches is None else refusal(caller, touches(request))
    if reason is not None:
        raise Denied(f"{method}: {caller.name} {reason}")


# Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Whose a token is, and until when it can be believed, as `time.time()`; None: the token does not say."""

    name: str
    expires_at: float | None = None


class Verifier(Protocol):
    """Knows whose a token is."""

    async def verify(self, token: str) -> Verified:
        """Unauthenticated if it is nobody's; PeerLost if that cannot be found out now."""
        ...


@dataclass(frozen=True, slots=True)
class _Answer:
    until: float
    said: Verified | Unauthenticated


class Remembering:
    """A verifier that asks another and remembers what it said, up to a minute and never beyond the
    token's expiry. Calls with one token at one time ask once."""

    def __init__(self, verifier: Verifier, *, clock: Callable[[], float] = time.time) -> None:
        self._verifier = verifier
        self._clock = clock
        self._known: dict[bytes, _Answer] = {}
        self._asking: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    async def verify(self, token: str) -> Verified:
        """See Verifier."""
        key = hashlib.sha256(token.encode(errors="replace")).digest()
        if (known := self._fresh(key)) is None:
            async with self._asking.setdefault(key, asyncio.Lock()):
                known = self._fresh(key) or await self._ask(key, token)
        if isinstance(known.said, Unauthenticated):
            raise Unauthenticated(str(known.said))
        return known.said

    def _fresh(self, key: bytes) -> _Answer | None:
        known = self._known.get(key)
        return known if known is not None and self._clock() < known.until else None

    async def _ask(self, key: bytes, token: str) -> _Answer:
        now = self._clock()
        try:
            said = await self._verifier.verify(token)
        except Unauthenticated as error:
            answer = _Answer(now + REFUSAL_SECONDS, error)
        else:
            end = now + REMEMBERED_SECONDS
            answer = _Answer(end if said.expires_at is None else min(end, said.expires_at), said)
        if len(self._known) >= REMEMBERED_MAX:
            self._known = {known: each for known, each in self._known.items() if now < each.until}
            for oldest in list(self._known)[: len(self._known) - REMEMBERED_MAX + 1]:
                del self._known[oldest]
        self._known[key] = answer
        return answer


# The gate


class Doorkeeper(aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Asks before each call who calls, and before each request whether the caller may.

    Who has not shown who it is gets its answer before any of its bytes are read.
    """

    def __init__(self, verifier: Verifier, *, readers: Collection[str] = ()) -> None:
        self._verifier = verifier
        self._readers = frozenset(readers)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method: gRPC answers UNIMPLEMENTED
            return handler
        try:
            caller = await self._caller(handler_call_details.invocation_metadata)
        except HermesError as error:
            return grpc.stream_stream_rpc_method_handler(_refusing(error))
        method = handler_call_details.method.removeprefix(_SERVICE)
        return _guarded(handler, lambda request: check(caller, method, request))

    async def _caller(self, metadata: Any) -> Caller:
        token = token_in(metadata)
        if token is None:
            raise Unauthenticated(
                "this store serves callers that show a token (authorization: Bearer …): call it through "
                "`hermes store relay`, or with the token of a ServiceAccount that it knows"
            )
        return caller_of((await self._verifier.verify(token)).name, self._readers)


def _refusing(error: HermesError) -> Any:
    async def refuse(requests: Any, context: Any) -> AsyncIterator[bytes]:
        raise error
        yield b""

    return refuse


def _guarded(handler: Any, checked: Callable[[Any], None]) -> grpc.RpcMethodHandler[Any, Any]:
    """The handler, which sees no request that is refused."""
    coding = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }

    async def each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            checked(request)
            yield request

    async def unary_unary(request: Any, context: Any) -> Any:
        checked(request)
        return await handler.unary_unary(request, context)

    async def stream_unary(requests: AsyncIterator[Any], context: Any) -> Any:
        return await handler.stream_unary(each(requests), context)

    async def unary_stream(request: Any, context: Any) -> AsyncIterator[Any]:
        checked(request)
        async for answer in handler.unary_stream(request, context):
            yield answer

    async def stream_stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for answer in handler.stream_stream(each(requests), context):
            yield answer

    if handler.response_streaming:
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(stream_stream, **coding)
        return grpc.unary_stream_rpc_method_handler(unary_stream, **coding)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(stream_unary, **coding)
    return grpc.unary_unary_rpc_method_handler(unary_unary, **coding)
