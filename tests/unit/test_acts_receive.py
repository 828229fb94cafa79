"""A delivery is handled once, whoever asks how often; a failed one may be handled again."""

from __future__ import annotations

import asyncio

import pytest

from hermes.agent.v1 import agent_pb2
from hermes_runtime.acts.receive import Receiver
from hermes_runtime.errors import BadInput, HermesError, PeerLost
from tests.unit.sample_acts import a_log, an_act

ASKED = an_act(a_log())
REQUEST = agent_pb2.DeliverRequest(profile=agent_pb2.Profile(arm="C"))


class Handler:
    """Answers how often it was called; waits for `go`; fails or lingers where told."""

    def __init__(self) -> None:
        self.calls = 0
        self.running = 0
        self.most_running = 0
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.cleaned = asyncio.Event()
        self.clean = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, request: agent_pb2.DeliverRequest) -> agent_pb2.DeliverResponse:
        self.calls += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.begun.set()
        try:
            await self.go.wait()
            if self.error is not None:
                raise self.error
        except asyncio.CancelledError:
            self.cleaned.set()
            await self.clean.wait()
            raise
        finally:
            self.running -= 1
        return agent_pb2.DeliverResponse(expense=agent_pb2.Expense(test_runs=self.calls))


async def begun(*tasks: asyncio.Task[agent_pb2.DeliverResponse]) -> None:
    """Let each task run until it waits."""
    for _ in range(3 * len(tasks)):
        await asyncio.sleep(0)


@pytest.fixture
def handler():
    return Handler()


async def test_an_answered_delivery_is_answered_again_with_the_same_bytes(handler):
    handler.go.set()
    async with Receiver(handler) as receiver:
        first = await receiver.receive(ASKED, REQUEST)
        again = await receiver.receive(ASKED, REQUEST)
    assert first.SerializeToString() == again.SerializeToString()
    assert handler.calls == 1


async def test_a_delivery_in_flight_is_joined_and_not_handled_twice(handler):
    async with asyncio.timeout(5), Receiver(handler) as receiver, asyncio.TaskGroup() as team:
        callers = [team.create_task(receiver.receive(ASKED, REQUEST)) for _ in range(8)]
        await begun(*callers)
        handler.go.set()
    assert handler.calls == 1
    assert {caller.result().expense.test_runs for caller in callers} == {1}


async def test_other_spans_and_other_traces_are_other_deliveries(handler):
    handler.go.set()
    others = [an_act(a_log(), span_id=b"8 bytes."), an_act(a_log(), trace_id=b"sixteen bytes...")]
    async with Receiver(handler) as receiver:
        for asked in (ASKED, *others):
            await receiver.receive(asked, REQUEST)
    assert handler.calls == 3


async def test_a_failed_delivery_fails_for_all_who_wait_and_may_be_handled_again(handler):
    handler.error = HermesError("the sandbox is gone")
    async with asyncio.timeout(5), Receiver(handler) as receiver:
        callers = [asyncio.ensure_future(receiver.receive(ASKED, REQUEST)) for _ in range(2)]
        await begun(*callers)
        handler.go.set()
        for caller in callers:
            with pytest.raises(HermesError, match="sandbox is gone"):
                await caller
        handler.error = None
        assert (await receiver.receive(ASKED, REQUEST)).expense.test_runs == 2


async def test_a_cancelled_caller_does_not_stop_the_others(handler):
    async with asyncio.timeout(5), Receiver(handler) as receiver:
        callers = [asyncio.ensure_future(receiver.receive(ASKED, REQUEST)) for _ in range(2)]
        await begun(*callers)
        callers[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await callers[0]
        handler.go.set()
        assert (await callers[1]).expense.test_runs == 1
    assert handler.calls == 1


async def test_the_last_caller_that_leaves_stops_the_handling(handler):
    async with asyncio.timeout(5), Receiver(handler) as receiver:
        caller = asyncio.ensure_future(receiver.receive(ASKED, REQUEST))
        await handler.begun.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await handler.cleaned.wait()
        handler.clean.set()


async def test_a_retry_waits_for_the_clean_up_of_what_was_given_up(handler):
    async with asyncio.timeout(5), Receiver(handler) as receiver:
        caller = asyncio.ensure_future(receiver.receive(ASKED, REQUEST))
        await handler.begun.wait()
        caller.cancel()
        await handler.cleaned.wait()
        retry = asyncio.ensure_future(receiver.receive(ASKED, REQUEST))
        await begun(retry)
        assert handler.calls == 1
        handler.go.set()
        handler.clean.set()
        assert (await retry).expense.test_runs == 2
    assert handler.most_running == 1


async def test_the_same_span_with_other_acts_is_refused(handler):
    handler.go.set()
    async with Receiver(handler) as receiver:
        await receiver.receive(ASKED, REQUEST)
        with pytest.raises(BadInput, match="its own span"):
            await receiver.receive(ASKED, agent_pb2.DeliverRequest())


async def test_old_answers_are_let_go(handler):
    handler.go.set()
    spans = [bytes([number]) * 8 for number in range(5)]
    async with Receiver(handler, answers_max=3) as receiver:
        for span in spans:
            await receiver.receive(an_act(a_log(), span_id=span), REQUEST)
        kept = [
            (await receiver.receive(an_act(a_log(), span_id=span), REQUEST)).expense.test_runs
            for span in reversed(spans)
        ]
    assert kept == [5, 4, 3, 6, 7]


async def test_answers_larger_than_the_memory_are_given_and_not_kept(handler):
    handler.go.set()
    async with Receiver(handler, answer_bytes_max=1) as receiver:
        assert (await receiver.receive(ASKED, REQUEST)).expense.test_runs == 1
        assert (await receiver.receive(ASKED, REQUEST)).expense.test_runs == 2


async def test_leaving_ends_what_is_in_flight(handler):
    handler.clean.set()
    async with asyncio.timeout(5):
        async with Receiver(handler) as receiver:
            caller = asyncio.ensure_future(receiver.receive(ASKED, REQUEST))
            await handler.begun.wait()
        with pytest.raises(PeerLost, match="deliver it again"):
            await caller


async def test_leaving_ends_what_has_not_begun(handler):
    async with asyncio.timeout(5):
        receiver = Receiver(handler)
        async with receiver:
            caller = asyncio.ensure_future(receiver.receive(ASKED, REQUEST))
            await asyncio.sleep(0)
        with pytest.raises(PeerLost):
            await caller
