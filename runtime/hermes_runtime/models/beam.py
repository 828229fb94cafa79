"""Beam search, as transformers does it with length penalty 1 and early stopping off.

Pure: tensors of log probabilities in, rows to keep out. A finished beam's score is its log probability
divided by its tokens. The search ends when no running beam can beat the worst of n finished ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """One finished beam."""

    tokens: tuple[int, ...]
    logprob: float
    stopped: bool
    """False: it ended because no more tokens were allowed."""

    @property
    def score(self) -> float:
        """What beams are ranked by."""
        return self.logprob / len(self.tokens)


class Beams:
    """The search for one start."""

    def __init__(self, *, width: int, steps: int, spare: int, ends: Callable[[list[int], int], bool]) -> None:
        """`ends(tokens, last)` tells whether a candidate has ended; `spare` is how many tokens may end."""
        self._width = width
        self._steps = steps
        self._candidates = max(2, 1 + spare) * width
        self._ends = ends
        self._running: list[list[int]] = [[]]
        self._sums = torch.zeros(1)
        self._finished: list[Hypothesis] = []
        self.is_done = False

    def advance(self, logprobs: Tensor) -> tuple[Tensor, Tensor]:
        """(R, V) float32 of the running beams -> rows to go on from and the token of each, (R',) int64."""
        vocabulary = logprobs.shape[-1]
        flat = (self._sums[:, None] + logprobs).flatten()
        sums, places = torch.topk(flat, min(self._candidates, len(flat)))
        origins, tokens = (places // vocabulary).tolist(), (places % vocabulary).tolist()
        running: list[int] = []
        for rank, (origin, token, total) in enumerate(zip(origins, tokens, sums.tolist(), strict=True)):
            grown = [*self._running[origin], token]
            stopped = self._ends(grown, token)
            if not stopped and len(grown) < self._steps:
                running.append(rank)
            elif rank < self._width:
                self._finished.append(Hypothesis(tokens=tuple(grown), logprob=total, stopped=stopped))
        self._finished.sort(key=lambda found: -found.score)
        del self._finished[self._width :]
        running = running[: self._width]
        self._sums = sums[running]
        self._running = [[*self._running[origins[rank]], tokens[rank]] for rank in running]
        self.is_done = not running or (
            len(self._finished) == self._width
            and float(self._sums[0]) / len(self._running[0]) <= self._finished[-1].score
        )
        picked = torch.tensor(running, dtype=torch.int64)
        return (places // vocabulary)[picked], (places % vocabulary)[picked]

    def best(self) -> list[Hypothesis]:
        """The finished beams, best first."""
        return self._finished
