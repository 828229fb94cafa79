"""The benefit rule: anchors never cost more bytes than inlining, in any class of payload size."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes.store.v1 import store_pb2
from hermes_runtime.acts import anchors, build
from hermes_runtime.acts.ahead import certain_sends
from hermes_runtime.acts.anchors import Anchored, Consumer, Inline, Reads, decide
from hermes_runtime.acts.arms import arm
from hermes_runtime.acts.ledger import bytes_by_class
from hermes_runtime.store.digest import Digest
from hermes_runtime.supervise.rpc import message_bytes
from tests.unit.rehearsal import Rehearsal, Script, content
from tests.unit.sample_acts import an_act

HARD_OVERHEAD_BYTES = 600
"""What one hard anchor may cost more than inlining, where nobody is sent it twice."""

sizes = st.integers(0, 2000) | st.integers(2000, 70_000)
restarts = st.frozensets(
    st.tuples(st.sampled_from(["planner", "coder", "tester"]), st.integers(1, 4)), max_size=2
)
scripts = st.builds(
    Script,
    rounds=st.integers(1, 4),
    task=sizes,
    log=sizes,
    spectrum=sizes,
    places=sizes,
    candidates=sizes,
    outcomes=sizes,
    failure_log=sizes,
)


async def talked(script: Script, name: str) -> Rehearsal:
    return await Rehearsal(script=script, arm=arm(name)).run()


def totals(talk: Rehearsal) -> dict[str, int]:
    return {found.name: found.total_bytes for found in bytes_by_class(talk.entries)}


@settings(max_examples=60, deadline=None)
@given(script=scripts)
async def test_pm_takes_no_more_bytes_than_c_in_any_class_and_in_all(script):
    pm, c = await talked(script, "PM"), await talked(script, "C")
    for name, size in totals(pm).items():
        assert size <= totals(c)[name], name
    everything = [sum(entry.wire_bytes + entry.store_bytes for entry in talk.entries) for talk in (pm, c)]
    profiles = [sum(request.profile.ByteSize() for _, request, _ in t.deliveries) for t in (pm, c)]
    assert everything[0] - profiles[0] <= everything[1] - profiles[1]


@settings(max_examples=30, deadline=None)
@given(script=scripts)
async def test_c_takes_fewer_bytes_than_a_in_every_class(script):
    c, a = await talked(script, "C"), await talked(script, "A")
    assert all(size < totals(a)[name] for name, size in totals(c).items() if size)


@settings(max_examples=30, deadline=None)
@given(script=scripts, restarts=restarts)
async def test_agents_hear_the_same_under_every_arm_but_for_logs_that_nobody_reads_whole(script, restarts):
    script = replace(script, restarts=restarts)
    pm, c = await talked(script, "PM"), await talked(script, "C")
    for (role, mine), (_, theirs) in zip(pm.heard, c.heard, strict=True):
        assert len(mine) == len(theirs)
        for said, inline in zip(mine, theirs, strict=True):
            assert inline is not None
            assert said == inline or (said is None and build.content_name(inline) == "log"), role


@pytest.mark.parametrize("rounds", [1, 2, 4])
async def test_hard_anchors_cost_at_most_their_frames(rounds):
    script = Script.all_of(3_200_000, rounds)
    pm, c = await talked(script, "PM"), await talked(script, "C")
    blobs = len(pm.store.blobs)
    assert blobs >= 4
    assert totals(pm)["> 256 KiB"] <= totals(c)["> 256 KiB"] + blobs * HARD_OVERHEAD_BYTES


async def test_a_blob_is_read_at_most_once_by_each_agent():
    talk = await talked(Script.all_of(3_200_000, 3), "PM")
    gets = [(entry.agent, entry.payload_sha256) for entry in talk.entries if entry.kind == "get"]
    assert gets
    assert len(gets) == len(set(gets))


async def test_an_agent_that_lost_its_memory_is_helped_through_the_store():
    script = Script(rounds=3, task=5000, restarts=frozenset({("planner", 2)}))
    talk = await talked(script, "PM")
    assert talk.failed_sends_bytes
    heard = [said for role, heard in talk.heard if role == "planner" for said in heard]
    assert heard.count(content("task", 5000)) == 3


@given(size=st.integers(1, 2**22), head=st.integers(0, 120), saving=st.integers(-(2**20), 2**27))
@settings(max_examples=50, deadline=None)
def test_predicted_sizes_are_those_of_the_messages(size, head, saving):
    data = bytes(size)
    digest = Digest.of(data)
    act = an_act()
    inline = build.said_inline_bytes(act, data)
    anchor = build.said_by_anchor(
        act, digest, alias="@l0", head="x" * head, predicted_saving_bytes=saving, predicted_saving_tokens=9
    )
    savings = pb.Anchor(predicted_saving_bytes=saving, predicted_saving_tokens=9).ByteSize()
    rest = act.ByteSize()
    for said, field in (
        (inline, anchors.inline_field_bytes(size)),
        (anchor, anchors.anchor_field_bytes(size, alias_bytes=3, head_bytes=head, savings_bytes=savings)),
    ):
        envelope = agent_pb2.Envelope(encoding=agent_pb2.ENCODING_PROTOBUF, act=said.SerializeToString())
        assert anchors.travelling_bytes(rest, field) == agent_pb2.DeliverRequest(acts=[envelope]).ByteSize()
    if size <= 3 * 2**20:
        put = store_pb2.PutRequest(digest=digest.to_proto(), data=data, lease="x" * head)
        assert anchors.put_bytes(size, lease_bytes=head) == message_bytes(put) + message_bytes(
            store_pb2.PutResponse()
        )
        get = store_pb2.GetRequest(digest=digest.to_proto())
        assert anchors.get_bytes(size) == message_bytes(get) + message_bytes(store_pb2.GetResponse(data=data))


CODE = Consumer(role="tester", reads=Reads.CODE)
PROMPT = Consumer(role="coder", reads=Reads.PROMPT)
RELAY = Consumer(role="driver", reads=Reads.NOTHING)
HOLDER = Consumer(role="planner", reads=Reads.CODE, holds=True)
SHOWN = Consumer(role="coder", reads=Reads.PROMPT, holds=True)
READER = Consumer(role="coder", reads=Reads.PROMPT, get_probability=1.0, sends=3)
OFTEN = Consumer(role="planner", reads=Reads.CODE, sends=3)


@pytest.mark.parametrize(
    ("size", "consumers", "anchored"),
    [
        pytest.param(1024, (HOLDER,), False, id="a small payload is inline for whoever"),
        pytest.param(1025, (HOLDER,), True, id="a holder is sent the anchor"),
        pytest.param(5000, (CODE,), False, id="one reader: put and get cost more"),
        pytest.param(5000, (RELAY, CODE), False, id="one hop and one reader: still more"),
        pytest.param(5000, (OFTEN,), True, id="code that is sent it three times reads it once"),
        pytest.param(5000, (RELAY, PROMPT, PROMPT), True, id="prompts that show the head"),
        pytest.param(5000, (PROMPT,), False, id="one prompt saves tokens, but the put costs bytes"),
        pytest.param(5000, (READER,), False, id="a model that reads it anyway pays a call"),
        pytest.param(5000, (SHOWN,), False, id="what a prompt showed whole stays"),
        pytest.param(anchors.HARD_ANCHOR_BYTES - 1, (CODE,), False, id="below the hard limit"),
        pytest.param(anchors.HARD_ANCHOR_BYTES, (CODE,), True, id="from the hard limit always"),
        pytest.param(5000, (), False, id="nobody"),
    ],
)
def test_the_rule(size, consumers, anchored):
    choice = decide(payload_bytes=size, payload_tokens=size // 4, consumers=consumers)
    assert isinstance(choice, Anchored if anchored else Inline)


def test_what_is_in_the_store_or_held_needs_no_put():
    there = decide(payload_bytes=5000, payload_tokens=1250, consumers=(PROMPT,), in_store=True)
    assert isinstance(there, Anchored)
    assert not there.put
    held = decide(payload_bytes=5000, payload_tokens=1250, consumers=(HOLDER,))
    assert isinstance(held, Anchored)
    assert not held.put


def test_the_first_act_pays_for_the_put_and_the_sends_ahead_win():
    choice = decide(payload_bytes=5000, payload_tokens=1250, consumers=(RELAY, PROMPT, PROMPT))
    assert isinstance(choice, Anchored)
    assert choice.put
    assert choice.predicted_saving_bytes < 0 < choice.ahead_saving_bytes
    assert choice.predicted_saving_tokens == 0
    assert choice.ahead_saving_tokens == 2 * (1250 - 32)


def test_only_sends_that_come_for_certain_are_counted():
    assert [c.role for c in certain_sends("log", sender="tester", round=0)] == ["driver", "planner", "coder"]
    assert [c.role for c in certain_sends("log", sender="tester", round=2)] == ["driver"]
    assert [c.role for c in certain_sends("outcomes", sender="tester", round=1)] == ["driver"]
    assert [c.role for c in certain_sends("candidates", sender="coder", round=1)] == ["driver", "tester"]


async def test_predictions_of_bytes_hold():
    talk = await talked(Script(rounds=4, task=5000), "PM")
    classes = bytes_by_class(talk.entries)
    assert sum(found.anchored for found in classes) > 10
    for found in classes:
        assert found.realised_saving_bytes >= found.predicted_saving_bytes
        assert found.realised_saving_bytes >= 0
    log = next(found for found in classes if found.name == "<= 16 KiB")
    assert log.realised_saving_tokens > 0
