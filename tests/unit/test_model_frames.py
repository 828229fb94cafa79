from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_runtime import errors
from hermes_runtime.models.frames import (
    Decoder,
    Frame,
    Kind,
    answer_of,
    answer_payload,
    encode,
    error_of,
    error_payload,
    memory_of,
    memory_payload,
    resume_of,
    resume_payload,
    tokens_of,
    tokens_payload,
)
from hermes_runtime.models.stepping import Accepted, Token

frames = st.builds(
    Frame, kind=st.sampled_from(Kind), number=st.integers(0, 2**64 - 1), payload=st.binary(max_size=300)
)


@given(st.lists(frames, max_size=8), st.integers(1, 64))
def test_frames_read_back_however_the_bytes_were_cut(sent: list[Frame], size: int):
    wire = b"".join(encode(frame) for frame in sent)
    decoder = Decoder()
    read = [frame for at in range(0, len(wire), size) for frame in decoder.feed(wire[at : at + size])]
    assert read == sent


@given(st.lists(st.integers(0, 2**32 - 1)), st.binary())
def test_an_answer_reads_back(numbers: list[int], message: bytes):
    prompt = array("I", numbers)
    assert answer_of(answer_payload(prompt, message)) == (prompt, message)


def test_an_error_keeps_its_class_and_message():
    read = error_of(error_payload(errors.ContextTooShort("9 of 8 tokens")))
    assert type(read) is errors.ContextTooShort
    assert str(read) == "9 of 8 tokens"


def test_an_unknown_error_class_is_still_an_error_of_ours():
    assert str(error_of(b"Exception\0boom")) == "Exception: boom"


@pytest.mark.parametrize("wire", [b"\xff" * 13, b"\0\0\0\0\x63" + b"\0" * 8], ids=["too long", "no kind"])
def test_bytes_that_are_no_frame_are_malformed(wire: bytes):
    with pytest.raises(errors.Malformed):
        list(Decoder().feed(wire))


@given(
    st.dictionaries(
        st.integers(0, 2**32 - 1),
        st.builds(
            Accepted,
            tokens=st.lists(st.integers(0, 2**32 - 1), min_size=1).map(tuple),
            logprob=st.floats(allow_nan=False),
        ),
        max_size=4,
    ),
    st.binary(),
)
def test_what_was_accepted_reads_back(accepted: dict[int, Accepted], request: bytes):
    assert resume_of(resume_payload(accepted, request)) == (accepted, request)


@given(
    st.lists(
        st.builds(
            Token,
            number=st.just(7),
            completion=st.integers(0, 2**32 - 1),
            token=st.integers(0, 2**32 - 1),
            logprob=st.floats(allow_nan=False),
        )
    )
)
def test_tokens_read_back_in_order(tokens: list[Token]):
    assert tokens_of(7, tokens_payload(tokens)) == tokens


def test_memory_reads_back_and_may_be_left_out():
    assert memory_of(memory_payload(2**40)) == 2**40
    assert memory_of(b"") == 0
