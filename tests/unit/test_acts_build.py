"""Ids are derived, acts are made whole, and what is no act is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.act.v1 import act_pb2 as pb
from hermes_runtime.acts import build
from hermes_runtime.acts.arms import ARMS, arm
from hermes_runtime.errors import BadInput, Malformed
from hermes_runtime.store.digest import Digest
from tests.unit.sample_acts import a_log, acts, an_act, contents

TRACE = build.trace_id(run="r", instance="i", arm="C", attempt=1)
DIGEST = Digest.of(b"x")


def test_a_trace_is_told_by_run_instance_arm_and_attempt():
    names: dict[str, Any] = {"run": "r", "instance": "i", "arm": "C", "attempt": 1}
    others = [names | change for change in ({"run": "s"}, {"instance": "j"}, {"arm": "A"}, {"attempt": 2})]
    split_elsewhere = names | {"run": "ri", "instance": ""}
    traces = {build.trace_id(**each) for each in (names, *others, split_elsewhere)}
    assert len(traces) == 6
    assert build.trace_id(**names) == TRACE
    assert len(TRACE) == 16


def test_no_two_acts_of_a_trace_share_a_span():
    spans = {build.span_id(TRACE, step) for step in range(50)}
    spans |= {build.answer_span_id(TRACE, build.span_id(TRACE, s), i) for s in range(50) for i in range(4)}
    assert len(spans) == 250
    assert {len(span) for span in spans} == {8}


def test_an_answer_goes_back_to_who_asked_and_names_what_was_asked():
    asked = an_act(a_log())
    said = build.answer_to(asked, 2, kind=pb.ACT_KIND_PROPOSE, sender=pb.ROLE_PLANNER)
    assert (said.parent_span_id, said.trace_id, said.receiver) == (asked.span_id, TRACE, pb.ROLE_DRIVER)
    assert said.span_id == build.answer_span_id(TRACE, asked.span_id, 2)


def test_a_refusal_is_an_act():
    reason = pb.REFUSAL_REASON_EXHAUSTED
    said = build.refused(an_act(a_log()), 0, sender=pb.ROLE_CODER, reason=reason, message="nothing left")
    content = build.check(said)
    assert content is not None
    assert content.refusal == pb.Refusal(reason=reason, message="nothing left")


@given(act=acts)
def test_what_is_built_passes_the_check(act):
    build.check(act)


@given(content=contents)
def test_a_content_has_one_form(content):
    assert build.parse_content(build.content_bytes(content)) == content


@given(content=contents)
def test_a_head_is_one_short_line(content):
    head = build.head_of(content)
    assert len(head) <= build.HEAD_CHARACTERS_MAX
    assert len(head.splitlines()) <= 1


def test_the_head_of_a_log_is_its_first_error():
    log = a_log("collected 3 items\n\nE   assert  take([1], 2) == []\nE   other\n1 failed\n")
    assert build.head_of(log) == "assert take([1], 2) == []"
    assert build.head_of(a_log("one\n\ntwo\n\n")) == "two"
    assert build.head_of(a_log("")) == "(empty log)"


@given(name=st.sampled_from(list(build.LETTERS)), round=st.integers(0, 9))
def test_an_alias_tells_its_content(name, round):
    assert build.name_of_alias(build.alias(name, round)) == name


def changed_inline(**changes: Any) -> pb.Act:
    act = an_act(a_log())
    for field, value in changes.items():
        setattr(act.inline, field, value)
    return act


def anchored(alias: str = "@l0", head: str = "", sha256: bytes = DIGEST.sha256) -> pb.Act:
    act = build.said_by_anchor(an_act(), DIGEST, alias=alias, head=head)
    act.anchor.digest.sha256 = sha256
    return act


WORDLY_ERROR = build.said_in_words(an_act(kind=pb.ACT_KIND_ERROR), "no")
NOT_CANONICAL = b"\x12\x02\x0a\x00"  # a log with its empty text written out
UNKNOWN_FIELD = build.content_bytes(a_log()) + b"\xf8\x07\x01"
NAN = build.content_bytes(pb.Content(places=pb.Places(places=[pb.Place(score=float("nan"))])))


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        pytest.param(an_act(a_log(), schema_version=2), "schema version 2", id="another version"),
        pytest.param(an_act(), "no payload", id="no payload"),
        pytest.param(an_act(a_log(), trace_id=b"short"), "trace_id has 5 bytes", id="short trace"),
        pytest.param(an_act(a_log(), span_id=b""), "span_id has 0 bytes", id="no span"),
        pytest.param(an_act(a_log(), parent_span_id=b"1234"), "0 or 8", id="short parent"),
        pytest.param(an_act(a_log(), kind=0), "no kind", id="no kind"),
        pytest.param(an_act(a_log(), kind=9), "no kind", id="unknown kind"),
        pytest.param(an_act(a_log(), sender=0), "from role 0", id="no sender"),
        pytest.param(an_act(a_log(), receiver=44), "to role 44", id="unknown receiver"),
        pytest.param(an_act(a_log(), kind=pb.ACT_KIND_ERROR), "ERROR without", id="error with a log"),
        pytest.param(build.said_in_words(an_act(), ""), "empty words", id="empty words"),
        pytest.param(
            WORDLY_ERROR, "ERROR without", id="error in words"
        ),
        pytest.param(changed_inline(data=b"other"), "changed on the way", id="wrong digest"),
        pytest.param(build.said_inline_bytes(an_act(), b"\xff"), "that should be a content", id="no content"),
        pytest.param(build.said_inline_bytes(an_act(), b""), "says nothing", id="empty content"),
        pytest.param(build.said_inline_bytes(an_act(), NOT_CANONICAL), "one form", id="another form"),
        pytest.param(build.said_inline_bytes(an_act(), UNKNOWN_FIELD), "one form", id="unknown field"),
        pytest.param(build.said_inline_bytes(an_act(), NAN), "NaN", id="not a number"),
        pytest.param(anchored(sha256=b"abc"), "3 bytes of sha256", id="short digest"),
        pytest.param(anchored(alias="p3"), "no alias", id="alias without @"),
        pytest.param(anchored(alias="@x3"), "no alias", id="alias of nothing"),
        pytest.param(anchored(alias="@l٣"), "no alias", id="alias in other digits"),
        pytest.param(anchored(head="x" * 121), "121 characters", id="long head"),
        pytest.param(anchored(head="a\nb"), "one line", id="two lines"),
    ],
)  # fmt: skip
def test_what_is_no_act_is_refused_with_the_reason(act, reason):
    with pytest.raises(Malformed, match=reason):
        build.check(act)


def test_an_arm_is_found_by_name_and_a_misspelt_one_is_told_the_nearest():
    assert arm("PM") is ARMS["PM"]
    with pytest.raises(BadInput, match="did you mean 'PM'"):
        arm("pm")
    with pytest.raises(BadInput, match="did you mean 'enumerate'"):
        arm("enumarate")
    with pytest.raises(BadInput, match="there are A, C, PM, enumerate"):
        arm("zzz")


def test_a_profile_says_what_a_receiver_needs():
    profile = arm("PM").profile(dialect="chat", seed=7, candidates=8)
    assert (profile.arm, profile.anchors, profile.dialect, profile.seed, profile.candidates) == (
        "PM", True, "chat", 7, 8,
    )  # fmt: skip
