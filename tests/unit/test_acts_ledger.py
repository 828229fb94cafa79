"""The bill of a delivery agrees with its messages to the byte and with its calls to the token."""

from __future__ import annotations

import dataclasses

import pytest

from hermes.agent.v1 import agent_pb2
from hermes_runtime.acts.arms import ARMS, arm
from hermes_runtime.acts.ledger import SIZE_CLASSES, Entry, bytes_by_class, entries_of, size_class
from hermes_runtime.evaluate import results, summary
from hermes_runtime.supervise.rpc import message_bytes
from tests.unit.rehearsal import Rehearsal, Script


async def talked(name: str, *, spectrum: int = 19_000) -> Rehearsal:
    return await Rehearsal(script=Script(rounds=3, task=5000, spectrum=spectrum), arm=arm(name)).run()


@pytest.mark.parametrize("name", list(ARMS))
async def test_wire_bytes_sum_to_the_messages_to_the_byte(name):
    talk = await talked(name)
    messages = sum(
        message_bytes(request) + message_bytes(response) for _, request, response in talk.deliveries
    )
    assert sum(entry.wire_bytes for entry in talk.entries) == messages
    assert all(entry.wire_bytes > 0 for entry in talk.entries if entry.entry in ("act", "envelope"))


@pytest.mark.parametrize(
    "response", [agent_pb2.DeliverResponse(), agent_pb2.DeliverResponse(expense=agent_pb2.Expense())]
)
def test_an_empty_delivery_adds_up_too(response):
    request = agent_pb2.DeliverRequest()
    entries = entries_of("planner", [], request, [], response)
    assert sum(e.wire_bytes for e in entries) == message_bytes(request) + message_bytes(response)


@pytest.mark.parametrize("name", ["C", "PM"])
async def test_tokens_and_store_bytes_are_those_of_the_calls(name):
    talk = await talked(name, spectrum=3_200_000)
    calls = [call for _, _, response in talk.deliveries for call in response.expense.model_calls]
    for field in ("prompt_tokens_new", "prompt_tokens_cached", "prompt_tokens_reread", "decoded_tokens"):
        assert (
            sum(getattr(entry, field) for entry in talk.entries) == sum(getattr(c, field) for c in calls) > 0
        )
    stored = sum(cost.request_bytes + cost.response_bytes for cost in talk.store.calls)
    assert sum(entry.store_bytes for entry in talk.entries) == stored
    assert (stored > 600_000) == (name == "PM")
    assert sum(entry.model_bytes for entry in talk.entries) == 1200 * len(calls)


async def test_an_anchor_s_tokens_are_billed_to_the_act_that_carried_it():
    talk = await talked("PM")
    shown = [read for _, _, response in talk.deliveries for read in response.expense.dereferences]
    entries = [entry for entry in talk.entries if entry.deref_tokens]
    assert {(entry.content, entry.agent, entry.anchored) for entry in entries} == {("log", "driver", True)}
    assert sum(entry.deref_tokens for entry in entries) == sum(read.prompt_tokens for read in shown)
    saved = sum(read.inline_tokens - read.prompt_tokens for read in shown)
    assert sum(entry.realised_saving_tokens for entry in talk.entries) == saved > 0


async def test_what_went_inline_instead_is_worked_out_to_the_byte():
    pm, c = await talked("PM"), await talked("C")
    mine = [entry for entry in pm.entries if entry.entry == "act"]
    theirs = [entry for entry in c.entries if entry.entry == "act"]
    assert any(entry.anchored for entry in mine)
    assert [entry.inline_bytes for entry in mine] == [entry.wire_bytes for entry in theirs]
    assert [entry.payload_bytes for entry in mine] == [entry.payload_bytes for entry in theirs]


async def test_classes_sum_to_the_acts_and_the_store():
    talk = await talked("PM", spectrum=3_200_000)
    classes = bytes_by_class(talk.entries)
    assert [found.name for found in classes] == [name for name, _ in SIZE_CLASSES]
    acts = sum(entry.wire_bytes for entry in talk.entries if entry.entry == "act")
    assert sum(found.wire_bytes for found in classes) == acts
    assert sum(found.store_bytes for found in classes) == sum(entry.store_bytes for entry in talk.entries)
    assert sum(found.wire_bytes_zstd for found in classes) < acts


@pytest.mark.parametrize(
    ("size", "name"),
    [(0, "<= 256 B"), (256, "<= 256 B"), (257, "<= 1 KiB"), (65_536, "<= 64 KiB"), (262_145, "> 256 KiB")],
)
def test_a_payload_falls_into_the_smallest_class_that_holds_it(size, name):
    assert size_class(size) == name


def test_what_is_recorded_is_what_the_result_s_ledger_has():
    names = {field.name for field in dataclasses.fields(Entry)}
    assert names - {"inline_bytes"} == set(results.LedgerRow.model_fields)
    entry = Entry(entry="act", agent="driver", wire_bytes=7)
    row = results.LedgerRow.model_validate({"step": 1, "round": 2, **entry.fields()})
    assert (row.wire_bytes, row.step, row.round) == (7, 1, 2)
    assert tuple(summary.SIZE_CLASSES) == SIZE_CLASSES
