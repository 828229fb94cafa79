"""What is pure in decoding: sampling, stops, beams. Loads torch, but no model and no file."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_runtime.models.beam import Beams
from hermes_runtime.models.sampling import draw, uniforms
from hermes_runtime.models.stops import Vocabulary

VOCABULARY = 200


def logits(rows: int, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread


def nucleus(row: torch.Tensor, top_k: int, top_p: float) -> set[int]:
    """The allowed tokens, found the slow way."""
    order = torch.argsort(row, descending=True).tolist()[: top_k or len(row)]
    shares = torch.softmax(row[order], dim=0).tolist()
    allowed, total = set(), 0.0
    for token, share in zip(order, shares, strict=True):
        if total >= top_p:
            break
        allowed.add(token)
        total += share
    return allowed


def test_a_completion_has_its_own_numbers_and_no_other_changes_them():
    assert torch.equal(uniforms(1, 2, 3, 50)[:10], uniforms(1, 2, 3, 10))
    numbers = {uniforms(*key, 1).item() for key in itertools.product((0, 1), (0, 1), (0, 1))}
    assert len(numbers) == 8


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 99),
    top_k=st.sampled_from([0, 1, 5, 70, 10_000]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.999, 1.0]),
    spread=st.sampled_from([0.01, 1.0, 8.0]),
)
def test_only_allowed_tokens_are_drawn(seed: int, top_k: int, top_p: float, spread: float):
    rows = logits(4, seed, spread)
    chances = torch.rand(4, generator=torch.Generator().manual_seed(seed))
    drawn = draw(rows, chances, temperature=1.0, top_k=top_k, top_p=top_p).tolist()
    for row, token in zip(rows, drawn, strict=True):
        allowed = nucleus(row, min(top_k, VOCABULARY), top_p + 1e-4)
        assert token in allowed


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.7)])
def test_what_is_drawn_for_a_row_does_not_depend_on_the_other_rows(top_k, top_p):
    rows = torch.cat([logits(3, 1, 0.01), logits(5, 2, 5.0)])
    chances = torch.rand(8, generator=torch.Generator().manual_seed(3))
    together = draw(rows, chances, temperature=0.7, top_k=top_k, top_p=top_p)
    alone = [
        draw(rows[at : at + 1], chances[at : at + 1], temperature=0.7, top_k=top_k, top_p=top_p).item()
        for at in range(8)
    ]
    assert together.tolist() == alone


def test_tokens_are_drawn_as_often_as_they_are_likely():
    row = torch.log(torch.tensor([0.5, 0.3, 0.2]))
    count = 30_000
    chances = (torch.arange(count) + 0.5) / count
    drawn = draw(row.expand(count, 3), chances, temperature=1.0, top_k=0, top_p=1.0)
    assert torch.bincount(drawn).div(count).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=1e-3)


def test_the_largest_chance_never_draws_an_impossible_token():
    row = torch.tensor([[0.0, 0.0, -math.inf]])
    assert draw(row, torch.tensor([1.0]), temperature=1.0, top_k=0, top_p=1.0).item() == 1


def test_only_tokens_that_could_complete_a_stop_text_are_looked_at():
    vocabulary = Vocabulary(5, lambda: ["a", "b\n", "\n", "\ufffd"])
    stops = vocabulary.stops({0}, ["x\n"])
    assert stops.ends.tolist() == [True, False, False, False, False]
    assert stops.may_complete.tolist() == [False, True, True, True, True]
    assert stops.hits("ax\nb") == 1
    assert stops.hits("ab\n") is None


def test_texts_of_tokens_are_not_looked_up_without_stop_texts():
    def fail() -> list[str]:
        raise AssertionError("not needed")

    assert not Vocabulary(5, fail).stops({0}, []).may_complete.any()


def exhaustive(table: torch.Tensor, steps: int, end: int) -> list[tuple[tuple[int, ...], float]]:
    """Every completion of a model whose next token depends on the last one, best score first."""
    found: list[tuple[tuple[int, ...], float]] = []

    def grow(tokens: tuple[int, ...], total: float) -> None:
        if tokens and (tokens[-1] == end or len(tokens) == steps):
            found.append((tokens, total))
            return
        row = table[tokens[-1] if tokens else 0]
        for token in range(len(row)):
            grow((*tokens, token), total + row[token].item())

    grow((), 0.0)
    return sorted(found, key=lambda each: -each[1] / len(each[0]))


def test_beams_wide_enough_to_keep_everything_find_the_best():
    table = torch.log_softmax(logits(4, 5)[:, :4], dim=-1)
    steps, end = 3, 3
    beams = Beams(width=40, steps=steps, spare=1, ends=lambda tokens, last: last == end)
    rows, chosen = beams.advance(table[0:1])
    while not beams.is_done:
        rows, chosen = beams.advance(table[chosen])
    best = exhaustive(table, steps, end)[:5]
    assert beams.best()[0].tokens == best[0][0]
    scores = [total / len(tokens) for tokens, total in best]
    assert [found.score for found in beams.best()[:5]] == pytest.approx(scores)
    assert rows.dtype == torch.int64
