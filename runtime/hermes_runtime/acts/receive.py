"""At-least-once delivery, at most one handling at a time: duplicates are answered with the first answer.

A delivery is known by (trace, span) of its last act. One in flight is joined; an answered one is
answered again with the same bytes; a failed one may be run again. What it costs is bounded.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes_runtime.errors import BadInput, PeerLost
from hermes_runtime.store.digest import Digest

ANSWERS_MAX = 4096
"""Answers that are kept."""

ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""Bytes of answers that are kept."""

Key = tuple[bytes, bytes]
"""(trace, span) of the act that asks."""


@dataclass(slots=True)
class _Flight:
    request: Digest
    task: asyncio.Task[None]
    waiters: int = 0
    given_up: bool = False
    answer: bytes | None = None
    error: Exception | None = None
    landed: asyncio.Event = field(default_factory=asyncio.Event)


class Receiver:
    """Handles each delivery once. An async context: leaving it ends what is in flight."""

    def __init__(
        self,
        handle: Callable[[agent_pb2.DeliverRequest], Awaitable[agent_pb2.DeliverResponse]],
        *,
        answers_max: int = ANSWERS_MAX,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
    ) -> None:
        self._handle = handle
        self._answers_max = answers_max
        self._answer_bytes_max = answer_bytes_max
        self._answers: OrderedDict[Key, tuple[Digest, bytes]] = OrderedDict()
        self._answer_bytes = 0
        self._flights: dict[Key, _Flight] = {}
        self._team = asyncio.TaskGroup()

    async def __aenter__(self) -> Receiver:
        await self._team.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for flight in self._flights.values():
            flight.task.cancel()
        await self._team.__aexit__(kind, error, trace)

    async def receive(self, asked: pb.Act, request: agent_pb2.DeliverRequest) -> agent_pb2.DeliverResponse:
        """The answer to `request`, whose last act is `asked`, checked.

        Raises what the handler raises, and BadInput where another request had the same span. A caller
        that is cancelled leaves the others waiting; with the last one the handling is cancelled.
        """
        key = (asked.trace_id, asked.span_id)
        digest = Digest.of(request.SerializeToString(deterministic=True))
        if (known := self._answers.get(key)) is not None:
            _same(key, digest, known[0])
            self._answers.move_to_end(key)
            return agent_pb2.DeliverResponse.FromString(known[1])
        while (flight := self._flights.get(key)) is not None and flight.given_up:
            await flight.landed.wait()  # its clean-up may still hold what the next one needs
        if flight is None:
            flight = self._start(key, digest, request)
        _same(key, digest, flight.request)
        flight.waiters += 1
        try:
            await flight.landed.wait()
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.landed.is_set():
                flight.given_up = True
                flight.task.cancel()
        if flight.error is not None:
            raise flight.error
        assert flight.answer is not None
        return agent_pb2.DeliverResponse.FromString(flight.answer)

    def _start(self, key: Key, digest: Digest, request: agent_pb2.DeliverRequest) -> _Flight:
        async def fly() -> None:
            try:
                response = await self._handle(request)
                flight.answer = response.SerializeToString(deterministic=True)
                self._keep(key, digest, flight.answer)
            except Exception as error:
                flight.error = error

        def land(task: asyncio.Task[None]) -> None:  # also where the task never got to run
            del self._flights[key]
            if flight.answer is None and flight.error is None:
                flight.error = PeerLost("the delivery was given up before it was answered; deliver it again")
            flight.landed.set()

        name = f"delivery {key[1].hex()}"
        flight = _Flight(request=digest, task=self._team.create_task(fly(), name=name))
        self._flights[key] = flight
        flight.task.add_done_callback(land)
        return flight

    def _keep(self, key: Key, digest: Digest, answer: bytes) -> None:
        self._answers[key] = (digest, answer)
        self._answer_bytes += len(answer)
        while len(self._answers) > self._answers_max or self._answer_bytes > self._answer_bytes_max:
            _, (_, dropped) = self._answers.popitem(last=False)
            self._answer_bytes -= len(dropped)


def _same(key: Key, digest: Digest, known: Digest) -> None:
    if digest != known:
        raise BadInput(
            f"span {key[1].hex()} was delivered before with other acts; give each asking its own span"
        )
