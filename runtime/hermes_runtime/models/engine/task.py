"""A request as numbers, and what comes of it. No text, no processes, no decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

from hermes_runtime import errors


class Level(IntEnum):
    """What is promised of a request's answer, on the same hardware and software."""

    BEST_EFFORT = 1
    """Nothing."""
    SEEDED = 2
    """Its random numbers come from its seed; its logits may differ in their last bits with the load."""
    BITWISE = 3
    """Every bit is the same, alone and under any load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One completion."""

    forced: tuple[int, ...] = ()
    """Its first tokens, which are not chosen."""
    chances: Tensor | None = None
    """(steps,) float32: its random numbers; None: greedy."""
    accepted: tuple[int, ...] = ()
    """Tokens that an earlier try has decoded already; they are not changed, nor told again."""
    accepted_logprob: float = 0.0
    """Of those, together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How tokens are chosen; equal ones are applied to many rows at once."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A request: completions of a prompt, or the log probabilities of continuations of it."""

    prompt: tuple[int, ...]
    branches: tuple[Branch, ...] = ()
    continuations: tuple[tuple[int, ...], ...] = ()
    max_tokens: int = 0
    rules: Rules = Rules()
    ends: Callable[[Sequence[int], Sequence[int]], bool] = lambda forced, tokens: False
    """Whether a completion ends with the last of these tokens, given its forced ones."""
    level: Level = Level.BITWISE
    tenant: str = ""
    alone: Callable[[], object] | None = None
    """Work that the engine does not know how to share: called once, its value is the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A completion, decoded."""

    tokens: tuple[int, ...]
    logprob: float
    forced_logprob: float
    stopped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """A token that was chosen and stays chosen."""

    number: int
    branch: int
    token: int
    logprob: float
    """Of the branch's tokens so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a request."""

    number: int
    ended: tuple[Ended, ...] = ()
    """Of each branch, in order."""
    scores: tuple[float, ...] = ()
    """Of each continuation, in order."""
    value: object = None
    """Of work done alone."""
    error: Exception | None = None
    cached: int = 0
    """Tokens of the prompt that were not computed, but taken from an earlier one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What one step brought."""

    emitted: tuple[Emitted, ...] = ()
    results: tuple[Result, ...] = ()


def exhausted() -> errors.Exhausted:
    """Out of memory for one request."""
    return errors.Exhausted(
        "out of memory for this request: ask for fewer completions or a shorter prompt, "
        "or lower spec.model.slots"
    )
