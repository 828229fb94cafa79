"""Muon: momentum whose matrices are made orthogonal before they are applied.

Chosen because tokens are what a CPU has few of; it was ahead of AdamW at equal steps, but with another
learning rate and warm-up, so that is no clean comparison. float32 throughout; equal shapes are worked
on together. Source: Jordan et al. 2024; the step's scale (0.2 times the root of the longer side) is of
Liu et al. 2025, so AdamW's rates fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import overload

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For the matrices inside the layers; embeddings and vectors belong to AdamW."""

    def __init__(
        self, params: Iterable[torch.Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step with Nesterov momentum and decoupled weight decay."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                buffer: torch.Tensor = state["momentum"]
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(buffer, group["momentum"])
                is_tall = update.shape[0] > update.shape[1]
                flat = update.T if is_tall else update
                alike.setdefault((flat.shape[0], flat.shape[1]), []).append((weight, flat))
            for members in alike.values():
                together = orthogonal(torch.stack([flat for _, flat in members]))
                for (weight, _), made in zip(members, together, strict=True):
                    update = made.T if weight.shape[0] > weight.shape[1] else made
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)
        return loss


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """(B, m, n), m <= n -> the same with every singular value near 1 (0.7 to 1.2)."""
    a, b, c = _COEFFICIENTS
    x: torch.Tensor = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
