"""The prefix tree: what it finds, what it never mixes up, what it forgets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_runtime.models.engine.prefix import PrefixTree

NODE = 2


def tree(bytes_max: int = 1000, salt: str = "model") -> PrefixTree[str]:
    return PrefixTree(salt=salt, node_tokens=NODE, bytes_max=bytes_max)


def grow(grown: PrefixTree[str], tokens: list[int], tenant: str = "", size_bytes: int = 1) -> None:
    for end in range(NODE, len(tokens) + 1, NODE):
        grown.add(tenant, tokens[:end], str(tokens[:end]), size_bytes)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        pytest.param([1, 2, 3, 4, 5], 2, id="the whole start"),
        pytest.param([1, 2, 3, 4], 1, id="never the last token"),
        pytest.param([1, 2, 9, 4, 5], 1, id="up to where they part"),
        pytest.param([9, 2, 3, 4, 5], 0, id="nothing if the first token differs"),
        pytest.param([1], 0, id="nothing of what is shorter than a node"),
        pytest.param([], 0, id="nothing of nothing"),
    ],
)
def test_the_longest_known_start_is_found(asked, found):
    known = tree()
    grow(known, [1, 2, 3, 4])
    assert known.find("", asked) == [str([1, 2, 3, 4][: NODE * (at + 1)]) for at in range(found)]


def test_a_tenant_sees_nothing_of_another():
    known = tree()
    grow(known, [1, 2, 3, 4], tenant="a")
    assert known.find("b", [1, 2, 3]) == []
    assert known.find("a", [1, 2, 3]) != []


def test_salt_and_tenant_are_not_run_together():
    keys = {
        PrefixTree(salt=salt, node_tokens=1, bytes_max=1)._root(tenant)
        for salt, tenant in (("ab", "c"), ("a", "bc"))
    }
    assert len(keys) == 2


def test_a_full_tree_forgets_the_leaf_that_was_used_least_lately():
    known = tree(bytes_max=3)
    grow(known, [1, 2, 3, 4])
    grow(known, [5, 6])
    known.find("", [1, 2, 3, 4, 5])
    grow(known, [7, 8])
    assert known.find("", [5, 6, 0]) == []
    assert len(known.find("", [1, 2, 3, 4, 5])) == 2


def test_a_node_on_which_others_stand_outlives_them():
    known = tree(bytes_max=2)
    grow(known, [1, 2, 3, 4])
    grow(known, [1, 2, 5, 6])
    assert len(known.find("", [1, 2, 5, 6, 0])) == 2
    assert len(known.find("", [1, 2, 3, 4, 0])) == 1


def test_what_is_larger_than_the_tree_is_not_kept():
    known = tree(bytes_max=3)
    assert not known.add("", [1, 2], "x", 4)
    assert (len(known), known.held_bytes) == (0, 0)


def test_a_node_whose_start_is_unknown_is_not_kept():
    assert not tree().add("", [1, 2, 3, 4], "x", 1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a"]), st.lists(st.integers(0, 1), max_size=9), st.integers(1, 3)),
        max_size=30,
    ),
    st.integers(0, 12),
)
def test_what_is_found_is_what_was_added_for_these_tokens_and_the_cap_holds(asks, cap):
    known: PrefixTree[tuple[str, tuple[int, ...]]] = PrefixTree(salt="s", node_tokens=NODE, bytes_max=cap)
    for tenant, tokens, size in asks:
        found = known.find(tenant, tokens)
        assert found == [(tenant, tuple(tokens[: NODE * (at + 1)])) for at in range(len(found))]
        assert len(found) * NODE < max(1, len(tokens))
        for end in range(NODE, len(tokens) + 1, NODE):
            known.add(tenant, tokens[:end], (tenant, tuple(tokens[:end])), size)
        assert 0 <= known.held_bytes <= cap
    assert known.held_bytes == sum(node.size_bytes for node in known._nodes.values())
