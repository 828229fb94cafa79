from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime import errors
from hermes_runtime.models.counted import PROMPTS_MAX, TRACES_MAX, Rereads, shared_tokens
from hermes_runtime.models.options import check_context, checked

tokens = st.lists(st.integers(0, 2), max_size=30).map(lambda numbers: array("I", numbers))


def settled(rereads: Rereads, trace: str, *prompt: int) -> tuple[int, int]:
    usage = pb.Usage(prompt_tokens_new=len(prompt))
    rereads.settle(trace, array("I", prompt), usage)
    return usage.prompt_tokens_new, usage.prompt_tokens_reread


@given(tokens, tokens)
def test_the_shared_start_is_the_longest(one: array[int], other: array[int]):
    shared = shared_tokens(one, other)
    assert one[:shared] == other[:shared]
    assert shared == min(len(one), len(other)) or one[shared] != other[shared]


def test_what_an_earlier_prompt_of_the_trace_began_with_is_read_again():
    rereads = Rereads()
    assert settled(rereads, "t", 1, 2, 3) == (3, 0)
    assert settled(rereads, "t", 1, 2, 4, 5) == (2, 2)
    assert settled(rereads, "t", 1, 2, 3) == (0, 3)


def test_other_traces_and_no_trace_share_nothing():
    rereads = Rereads()
    settled(rereads, "t", 1, 2)
    assert settled(rereads, "u", 1, 2) == (2, 0)
    assert settled(rereads, "", 1, 2) == (2, 0)
    assert settled(rereads, "", 1, 2) == (2, 0)


def test_only_the_last_prompts_and_traces_are_kept():
    rereads = Rereads()
    settled(rereads, "t", 7, 7)
    for number in range(PROMPTS_MAX):
        settled(rereads, "t", number + 100)
    assert settled(rereads, "t", 7, 7) == (2, 0)
    for number in range(TRACES_MAX):
        settled(rereads, f"trace {number}", 1)
    assert settled(rereads, "t", 7, 7) == (2, 0)


def request(**fields: object) -> pb.GenerateRequest:
    made = pb.GenerateRequest(prompt=pb.Prompt(text="x"), max_tokens=5)
    made.MergeFrom(pb.GenerateRequest(**fields))  # type: ignore[arg-type]  # a table of fields
    return made


def test_unset_fields_have_their_defaults():
    options = checked(request())
    assert (options.starts, options.n, options.temperature, options.top_p) == (("",), 1, 1.0, 1.0)
    assert options.search == pb.SEARCH_GREEDY


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"temperature": -1.0}, errors.BadInput, "temperature"),
        ({"temperature": float("nan")}, errors.BadInput, "temperature"),
        ({"top_p": 1.5}, errors.BadInput, "top_p"),
        ({"stop": [""]}, errors.BadInput, "stop"),
        ({"search": 9}, errors.BadInput, "search"),
        ({"n": 5000}, errors.Exhausted, "4096"),
        ({"stop": ["x"] * 65}, errors.Exhausted, "64"),
        ({"search": pb.SEARCH_BEAM, "n": 65}, errors.Exhausted, "beams"),
        ({"prompt": pb.Prompt(messages=[pb.Message(role="robot")])}, errors.BadInput, "'robot'"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(fields, error, says):
    with pytest.raises(error, match=says):
        checked(request(**fields))


def test_a_request_for_no_tokens_is_refused():
    with pytest.raises(errors.BadInput, match="max_tokens"):
        checked(pb.GenerateRequest(prompt=pb.Prompt(text="x")))


def test_a_context_that_is_just_long_enough_is_accepted():
    check_context(prompt=6, rest=2, context=8)
    with pytest.raises(errors.ContextTooShort, match=r"make 9, but the context is 8"):
        check_context(prompt=7, rest=2, context=8)
