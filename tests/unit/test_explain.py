"""The causal chain of one instance and arm."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_runtime.evaluate.act_record import ActRecord
from hermes_runtime.evaluate.explain import explain, in_causal_order
from hermes_runtime.evaluate.results import Result
from tests.unit import sample_run as sample


def solved() -> Result:
    return next(r for r in sample.results() if r.grade.resolved and r.arm == "PM")


def gave_up() -> Result:
    return next(r for r in sample.results() if not r.patch and r.arm == "A")


def record(step: int, parent: int | None = None, **more: object) -> ActRecord:
    fields: dict[str, object] = {
        "step": step, "round": 0, "sender": "driver", "receiver": "tester", "kind": "REQUEST",
        "content": "task", "anchored": False, "alias": "", "wire_bytes": 10, "payload_bytes": 8,
        "summary": f"act {step}", "parent": parent,
    }  # fmt: skip
    return ActRecord(**{**fields, **more})  # type: ignore[arg-type]  # a table of overrides


def test_the_story_goes_from_failure_to_cost_in_order():
    result = solved()
    text = explain(result, sample.acts(result))
    titles = [
        "What failed", "Round 1: where suspicion fell", "Round 1: what was tried", "What was submitted",
        "How it was graded", "What it cost",
    ]  # fmt: skip
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    assert text.startswith(f"{result.instance_id} under PM: solved\n")
    assert "src/package/module.py:44 suspicion 0.71" in text
    assert "r1c1 failed: tests/test_module.py::test_take_1" in text
    assert "FAIL_TO_PASS: 4 of 4 pass" in text
    assert "anchored @p" in text
    assert text.endswith("\n")


def test_an_instance_without_a_patch_says_why_and_whose_failure_it_was():
    text = explain(gave_up(), sample.acts(gave_up()))
    assert "no candidate passed the visible tests within 4 rounds of 8 (a failure of the model)" in " ".join(
        text.split()
    )
    assert "there was no patch to grade" in text
    assert "Round 4: what was tried" in text


def test_the_gold_patch_is_shown_beside_a_different_one():
    result = solved()
    assert "this is the gold patch to the letter" in explain(result, (), gold=result.patch)
    assert "the gold patch, which no agent saw" in explain(result, (), gold=result.patch.replace("<=", "=="))


def test_without_an_event_log_the_result_alone_is_told():
    text = explain(solved(), ())
    assert "no acts of this attempt" in text
    assert "What it cost" in text


def test_a_story_without_colour_has_no_control_codes_and_one_with_colour_differs_in_them_only():
    result = solved()
    plain, coloured = (explain(result, sample.acts(result), colour=colour) for colour in (False, True))
    assert "\x1b" not in plain
    assert "\x1b[32msolved\x1b[0m" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain


@pytest.mark.parametrize("evil", ["\x1b]0;owned\x07", "\x1b[2J", "\u202e", "\r\x1b[1A", "\x9b2J"])
def test_untrusted_text_cannot_drive_the_terminal(evil):
    result = gave_up().model_copy(update={"failure": f"x{evil}y"})
    result = result.model_copy(update={"patch": "", "grade": result.grade.model_copy(update={"log": evil})})
    acts = [
        record(1, summary=f"a{evil}b", points=(evil,)),
        record(2, content="log", body=evil, kind="INFORM"),
    ]
    text = explain(result, acts)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


def test_a_long_log_is_shown_from_its_end():
    log = "\n".join(f"line {n}" for n in range(500))
    text = explain(gave_up(), [record(1, content="log", body=log, kind="INFORM")])
    assert "line 499" in text
    assert "line 3\n" not in text
    assert "488 lines left out" in text


def test_context_that_is_sent_again_is_told_once():
    acts = [record(n, summary="the same task") for n in range(1, 6)]
    assert explain(solved(), acts).count("the same task") == 1


@given(st.lists(st.one_of(st.none(), st.integers(min_value=0, max_value=14)), max_size=12), st.randoms())
def test_parents_come_before_children_and_no_act_is_lost(parents, random):
    acts = [record(step, parent) for step, parent in enumerate(parents, start=1)]
    random.shuffle(acts)
    ordered = [act.step for act in in_causal_order(acts)]
    assert sorted(ordered) == list(range(1, len(parents) + 1))
    for step, parent in enumerate(parents, start=1):
        grounded, seen = parent, {step}
        while grounded is not None and grounded not in seen and 1 <= grounded <= len(parents):
            seen.add(grounded)
            grounded = parents[grounded - 1]
        is_in_a_circle = grounded in seen
        if parent is not None and 1 <= parent <= len(parents) and not is_in_a_circle:
            assert ordered.index(parent) < ordered.index(step)
