"""The driver's post: letters are written once, read once, and addressed by what the receiver holds."""

from __future__ import annotations

import pytest

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes_runtime.acts import build, codec
from hermes_runtime.acts.arms import arm
from hermes_runtime.acts.post import PostOffice, reply
from hermes_runtime.errors import BadInput, Malformed
from hermes_runtime.store.digest import Digest
from tests.unit.rehearsal import CountedStore, content
from tests.unit.sample_acts import a_log, an_act

HEADER = pb.Header(repo="boltons", task_type="task")
TASK = content("task", 5000)


@pytest.fixture
def store():
    return CountedStore()


def office(store: CountedStore, name: str = "PM") -> PostOffice:
    return PostOffice(run="r", instance="i", arm=arm(name), attempt=1, store=store)


def asked(post: PostOffice) -> pb.Act:
    return post.words("go", "test_baseline", 0).act


def answer(post: PostOffice, kind: pb.ActKind.ValueType = pb.ACT_KIND_INFORM, round: int = 0) -> pb.Act:
    return build.answer_to(asked(post), 0, kind=kind, sender=pb.ROLE_TESTER, header=pb.Header(round=round))


@pytest.mark.parametrize(
    ("task_type", "role"),
    [("test_baseline", pb.ROLE_TESTER), ("rank_places", pb.ROLE_PLANNER), ("propose_patches", pb.ROLE_CODER)],
)
def test_the_driver_asks_in_words_whoever_does_that(store, task_type, role):
    act = office(store).words("Please.", task_type, 2).act
    assert (act.text, act.receiver, act.kind, act.header.round) == ("Please.", role, pb.ACT_KIND_REQUEST, 2)


def test_every_letter_has_its_own_span_and_a_second_attempt_has_others(store):
    first, again = office(store), office(store)
    spans = [first.words("go", "rank_places", 1).act.span_id for _ in range(3)]
    assert len(set(spans)) == 3
    assert [again.words("go", "rank_places", 1).act.span_id for _ in range(3)] == spans


@pytest.mark.parametrize("name", ["A", "C", "PM"])
async def test_what_a_role_holds_goes_by_anchor_where_the_arm_has_anchors(store, name):
    post = office(store, name)
    task = await post.write(pb.ACT_KIND_INFORM, TASK, HEADER)
    assert post.address([task], "planner") == [task]
    post.delivered([task], "planner")
    (again,) = post.address([task], "planner")
    assert (again.act.WhichOneof("payload") == "anchor") == (name == "PM")
    assert codec.decode(again.envelope) == again.act
    assert again.act.span_id == task.act.span_id
    assert again.digests == ()
    assert await post.content(again) == TASK
    assert post.address([task], "coder") == [task]
    assert not store.calls


async def test_restoring_puts_what_was_anchored_without_a_put(store):
    post = office(store)
    task = await post.write(pb.ACT_KIND_INFORM, TASK, HEADER)
    post.delivered([task], "planner")
    await post.restore(post.address([task], "planner"))
    digest = Digest.of(build.content_bytes(TASK))
    assert list(store.blobs) == [digest]
    assert [(cost.method, cost.digest) for cost in post.take_costs()] == [("Put", digest)]
    assert post.take_costs() == []
    (again,) = post.address([task], "planner")
    assert again.digests == (digest,)


async def test_a_huge_task_is_put_and_anchored_at_once(store):
    huge = content("task", 3_200_000)
    letter = await office(store).write(pb.ACT_KIND_INFORM, huge, HEADER)
    assert letter.name == "task"
    assert letter.digests == tuple(store.blobs) == (Digest.of(build.content_bytes(huge)),)


async def test_a_baseline_log_is_anchored_by_its_maker_and_read_by_the_driver_only_if_asked(store):
    post, expense = office(store), agent_pb2.Expense()
    profile = arm("PM").profile(dialect="chat", seed=1, candidates=8)
    log = content("log", 5000)
    envelope = await reply(answer(post), log, profile=profile, store=store, expense=expense)
    letter = post.read(envelope)
    assert (letter.name, letter.sender, letter.content) == ("log", "tester", None)
    assert [call.method for call in expense.store_calls] == ["put"]
    assert letter.digests == (Digest.of(build.content_bytes(log)),)
    assert await post.content(letter) == await post.content(letter) == log
    assert [cost.method for cost in post.take_costs()] == ["Get"]


async def test_a_later_log_and_a_refusal_are_inline(store):
    post, expense = office(store), agent_pb2.Expense()
    profile = arm("PM").profile(dialect="chat", seed=1, candidates=8)
    refusal = pb.Content(refusal=pb.Refusal(message="x" * 300_000))
    for said, kind in ((content("log", 5000), pb.ACT_KIND_INFORM), (refusal, pb.ACT_KIND_ERROR)):
        bare = answer(post, kind, round=2)
        letter = post.read(await reply(bare, said, profile=profile, store=store, expense=expense))
        assert letter.content == said
    assert not store.calls


async def test_words_have_no_content(store):
    post = office(store)
    with pytest.raises(BadInput, match="says words"):
        await post.content(post.words("go", "rank_places", 1))


def test_an_answer_of_another_trace_is_malformed(store):
    envelope = codec.encode(an_act(a_log()), agent_pb2.ENCODING_PROTOBUF)
    with pytest.raises(Malformed, match="mixed them up"):
        office(store).read(envelope)
