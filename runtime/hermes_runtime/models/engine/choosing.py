"""The next token of every row: each by its own request's rules, and depending on its own row alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hermes_runtime.models.engine.task import Rules
from hermes_runtime.models.sampling import draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is to be chosen for one row."""

    rules: Rules
    forced: int | None = None
    """The token, where it is given."""
    chance: float | None = None
    """A random number in [0, 1); None: the likeliest token."""
    seen: Tensor | None = None
    """(V,) bool: tokens that the penalty for repetition is for."""


def choose(logits: Tensor, choices: Sequence[Choice]) -> tuple[list[int], list[float]]:
    """(R, V) float32 -> tokens, and their log probabilities by the model's own distribution."""
    ruled = penalized(logits, choices)
    chosen = ruled.argmax(dim=-1)
    groups: dict[Rules, list[int]] = {}
    for row, choice in enumerate(choices):
        if choice.forced is not None:
            chosen[row] = choice.forced
        elif choice.chance is not None:
            groups.setdefault(choice.rules, []).append(row)
    for rules, rows in groups.items():
        chances = torch.tensor([choices[row].chance for row in rows], dtype=torch.float32)
        chosen[rows] = draw(
            ruled[rows],
            chances,
            temperature=rules.temperature,
            top_k=rules.top_k,
            top_p=rules.top_p,
        )
    logprobs = torch.log_softmax(logits, dim=-1).gather(-1, chosen[:, None])[:, 0].double()
    return chosen.tolist(), logprobs.tolist()


def penalized(logits: Tensor, choices: Sequence[Choice]) -> Tensor:
    """Logits with what was seen made less likely, as transformers does it; the same if nothing is."""
    rows = [row for row, choice in enumerate(choices) if choice.seen is not None]
    if not rows:
        return logits
    ruled = logits.clone()
    for row in rows:
        penalty, seen = choices[row].rules.repetition_penalty, choices[row].seen
        assert seen is not None
        ruled[row] = torch.where(
            seen, torch.where(ruled[row] < 0, ruled[row] * penalty, ruled[row] / penalty), ruled[row]
        )
    return ruled
