"""Which token comes next: for all rows at once, each row's choice depending on that row alone.

A completion's random numbers come from its own generator, seeded from (seed, start, completion), so that
neither the width of the batch nor who else is in it changes an answer.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_FEW = 64
"""Tokens that nearly always hold top_p of the probability; rows where they do not are sorted whole."""

_BELOW_ONE = 1 - 1e-6


def uniforms(seed: int, start: int, completion: int, steps: int) -> Tensor:
    """(steps,) float32 in [0, 1): one number for each step of one completion."""
    digest = hashlib.sha256(f"{seed}/{start}/{completion}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.rand(steps, generator=generator)


def draw(logits: Tensor, chances: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """(R, V) float32, (R,) float32 -> (R,) int64: sampled by inverting the distribution."""
    scaled = logits / temperature
    vocabulary = scaled.shape[-1]
    if top_k == 0 and top_p >= 1:
        return _invert(torch.softmax(scaled, dim=-1), chances)
    few = min(top_k or _FEW, vocabulary)
    values, tokens = torch.topk(scaled, few, dim=-1)
    whole = values if top_k else scaled
    shares = torch.exp(values - torch.logsumexp(whole, dim=-1, keepdim=True))
    picked = _nucleus(shares, tokens, chances, top_p)
    if not top_k and few < vocabulary:
        short = (shares.sum(dim=-1) < top_p).nonzero().squeeze(1)
        if len(short):
            values, tokens = torch.sort(scaled[short], dim=-1, descending=True, stable=True)
            picked[short] = _nucleus(torch.softmax(values, dim=-1), tokens, chances[short], top_p)
    return picked


def _nucleus(shares: Tensor, tokens: Tensor, chances: Tensor, top_p: float) -> Tensor:
    """Sample from the fewest of the sorted `shares` that make `top_p` together."""
    before = shares.cumsum(dim=-1) - shares
    kept = torch.where(before < top_p, shares, 0.0)
    return tokens.gather(-1, _invert(kept, chances)[:, None]).squeeze(1)


def _invert(shares: Tensor, chances: Tensor) -> Tensor:
    sums = shares.cumsum(dim=-1)
    aims = chances.clamp(max=_BELOW_ONE)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, aims, right=True).squeeze(1).clamp(max=shares.shape[-1] - 1)
