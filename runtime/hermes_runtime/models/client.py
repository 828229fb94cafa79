"""The model as an agent sees it: calls over gRPC, each with what it cost.

Requests are pure, so a lost peer (a model that is loading or restarting) is asked again, with growing
waits, until the deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from google.protobuf.message import Message

from hermes.model.v1 import model_pb2 as pb
from hermes.model.v1 import model_pb2_grpc as rpc_pb
from hermes_runtime import errors
from hermes_runtime.supervise import rpc

Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one call cost on the wire and on the clock."""

    method: str
    request_bytes: int
    """All tries together, as gRPC puts them on the socket."""
    response_bytes: int
    seconds: float
    """With all tries and waits."""
    tries: int = 1


class ModelClient:
    """A connection to a model's socket; an async context manager, or close it with `close`."""

    def __init__(
        self,
        socket: Path,
        *,
        timeout_seconds: float = 300.0,
        tries: int = 8,
        wait_seconds: float = 0.1,
        wait_seconds_max: float = 2.0,
    ) -> None:
        """`timeout_seconds` is the deadline of a call that names none, all its tries included."""
        self._socket = socket
        self._timeout_seconds = timeout_seconds
        self._tries = tries
        self._wait_seconds = wait_seconds
        self._wait_seconds_max = wait_seconds_max
        self._channel = rpc.channel(socket)
        self._stub = rpc_pb.ModelServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        await self._channel.close(None)

    async def describe(self, *, timeout_seconds: float | None = None) -> tuple[pb.DescribeResponse, Cost]:
        """What was really loaded."""
        return await self._call("Describe", self._stub.Describe, pb.DescribeRequest(), timeout_seconds)

    async def count_tokens(
        self, request: pb.CountTokensRequest, *, timeout_seconds: float | None = None
    ) -> tuple[pb.CountTokensResponse, Cost]:
        """Tokens of each text."""
        return await self._call("CountTokens", self._stub.CountTokens, request, timeout_seconds)

    async def generate(
        self, request: pb.GenerateRequest, *, timeout_seconds: float | None = None
    ) -> tuple[pb.GenerateResponse, Cost]:
        """Completions. Raises as the port, PeerLost after the last try, TimedOut at the deadline."""
        return await self._call("Generate", self._stub.Generate, request, timeout_seconds)

    async def score(
        self, request: pb.ScoreRequest, *, timeout_seconds: float | None = None
    ) -> tuple[pb.ScoreResponse, Cost]:
        """Log probabilities. Raises as `generate`."""
        return await self._call("Score", self._stub.Score, request, timeout_seconds)

    async def wait_until_ready(self, timeout_seconds: float) -> pb.DescribeResponse:
        """Wait, however often the peer is lost meanwhile, until the model has loaded. Raises TimedOut."""
        end = time.monotonic() + timeout_seconds
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise errors.TimedOut(f"the model at {self._socket} did not load in {timeout_seconds} s")
            try:
                return await rpc.call(self._stub.Describe, pb.DescribeRequest(), timeout_seconds=left)
            except errors.PeerLost:
                await asyncio.sleep(min(self._wait_seconds, left))

    async def _call(
        self,
        name: str,
        method: Callable[..., Awaitable[Response]],
        request: Message,
        timeout_seconds: float | None,
    ) -> tuple[Response, Cost]:
        allowed = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        started, wait = time.monotonic(), self._wait_seconds
        for tried in range(1, self._tries + 1):
            left = started + allowed - time.monotonic()
            try:
                response = await rpc.call(method, request, timeout_seconds=max(left, 0.0))
            except errors.PeerLost as error:
                left = started + allowed - time.monotonic()
                if tried == self._tries or left <= wait:
                    raise errors.PeerLost(
                        f"model at {self._socket}, after {tried} tries of {name}: {error}"
                    ) from error
                await asyncio.sleep(wait)
                wait = min(2 * wait, self._wait_seconds_max)
                continue
            cost = Cost(
                method=name,
                request_bytes=tried * rpc.message_bytes(request),
                response_bytes=rpc.message_bytes(response),
                seconds=time.monotonic() - started,
                tries=tried,
            )
            return response, cost
        raise AssertionError("the last try returned or raised")
