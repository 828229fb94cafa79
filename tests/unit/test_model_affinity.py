"""What of a prompt a worker is taken to know."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hermes_runtime.models.affinity import BLOCK_CHARACTERS, Memory, blocks

TEXT = "x" * BLOCK_CHARACTERS


def test_texts_share_as_many_blocks_as_they_begin_alike():
    one, other = blocks("", TEXT * 2 + "a" * 300), blocks("", TEXT * 2 + "b" * 300)
    assert one[:2] == other[:2]
    assert one[2] != other[2]


def test_a_tenants_text_is_no_other_tenants():
    assert not set(blocks("a", TEXT)) & set(blocks("b", TEXT))


def test_a_text_of_no_whole_block_has_none_even_if_it_is_no_unicode():
    assert blocks("", TEXT[1:]) == ()
    assert len(blocks("", "\ud800" * BLOCK_CHARACTERS)) == 1


@given(st.lists(st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=5), max_size=8), st.integers(0, 6))
def test_what_is_known_was_added_and_the_last_ones_stay(prompts: list[list[bytes]], cap: int):
    memory = Memory(blocks_max=cap)
    for prompt in prompts:
        memory.add(prompt)
        added = {block for each in prompts for block in each}
        assert set(prompt[: memory.known(prompt)]) <= added
        if len(set(prompt)) <= cap:
            assert memory.known(prompt) == len(prompt)
    memory.clear()
    assert memory.known([b"a"]) == 0
