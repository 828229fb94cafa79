"""Which examples make batch number n: a pure function of seed, lengths and n, so resuming is exact."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hermes_runtime.train.recipe import Recipe
from hermes_runtime.train.shards import Shards

_POOL_BATCHES = 64
"""Batches that are sorted by length together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Right-padded; a causal model needs no mask."""

    tokens: torch.Tensor
    """(B, T) int64."""
    positions: torch.Tensor
    """(N,) int64: places in the flattened (B, T) whose next token is predicted."""
    targets: torch.Tensor
    """(N,) int64: the next tokens there."""
    weights: torch.Tensor
    """(N,) float32."""
    size_tokens: int
    """Tokens without padding."""


class Batches:
    """Endless batches over shards, epoch after epoch."""

    def __init__(self, shards: Shards, recipe: Recipe) -> None:
        self._shards = shards
        self._recipe = recipe
        self._epoch = -1
        self._first = 0
        self._groups: list[npt.NDArray[np.int64]] = []

    def batch(self, number: int) -> Batch:
        """Batch `number`, counted from 0 over all epochs. Cheap for rising numbers."""
        if self._epoch < 0 or number < self._first:
            self._start(0, 0)
        while number >= self._first + len(self._groups):
            self._start(self._epoch + 1, self._first + len(self._groups))
        group = self._groups[number - self._first]
        return assemble(
            self._shards, group, self._recipe, np.random.default_rng([self._recipe.seed, 1, number])
        )

    def _start(self, epoch: int, first: int) -> None:
        rng = np.random.default_rng([self._recipe.seed, 0, epoch])
        order = rng.permutation(len(self._shards))
        lengths = self._shards.index[:, 2]
        mean = float(lengths.mean()) if len(lengths) else 1.0
        pool = max(1, int(_POOL_BATCHES * self._recipe.batch_tokens / mean))
        groups = []
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            part = part[np.argsort(lengths[part], kind="stable")]
            groups += _cut(part, lengths, self._recipe.batch_tokens)
        places = rng.permutation(len(groups))
        self._groups = [groups[int(i)] for i in places]
        self._epoch, self._first = epoch, first


def _cut(
    numbers: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], tokens_max: int
) -> list[npt.NDArray[np.int64]]:
    """Rising lengths cut into groups of at most `tokens_max` tokens with padding."""
    groups = []
    start = 0
    for end in range(1, len(numbers) + 1):
        full = end == len(numbers) or (end - start + 1) * int(lengths[numbers[end]]) > tokens_max
        if full:
            groups.append(numbers[start:end])
            start = end
    return groups


def assemble(
    shards: Shards, numbers: npt.NDArray[np.int64], recipe: Recipe, rng: np.random.Generator | None
) -> Batch:
    """Those examples as one batch. `rng` draws the input positions; None: answers only."""
    lengths = shards.index[numbers, 2]
    width = int(lengths.max())
    tokens = np.zeros((len(numbers), width), dtype=np.int64)
    positions, weights = [], []
    for row, number in enumerate(numbers):
        example = shards.example(int(number))
        length, answer, trained = (int(x) for x in shards.index[number, 2:5])
        tokens[row, :length] = example
        at = np.arange(answer - 1, length - 1)
        weight = np.ones(len(at), dtype=np.float32)
        weight[0] = recipe.place_weight if trained else 0.0
        if rng is not None:
            drawn = np.flatnonzero(rng.random(answer - 1) < recipe.input_share)
            at = np.concatenate([at, drawn])
            weight = np.concatenate([weight, np.full(len(drawn), recipe.input_weight, dtype=np.float32)])
        positions.append(at + row * width)
        weights.append(weight)
    flat = np.concatenate(positions)
    return Batch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(flat),
        targets=torch.from_numpy(tokens.reshape(-1)[flat + 1]),
        weights=torch.from_numpy(np.concatenate(weights)),
        size_tokens=int(lengths.sum()),
    )
