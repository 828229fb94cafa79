"""A model that is fed requests and moved on step by step, so that many are worked at together.

A worker drives it between frames. A model that can only answer one request after another is made to look
so by `OneAtATime`. Requests are the port's; numbers are the supervisor's.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime.models.counted import CountedModel

Request = pb.GenerateRequest | pb.ScoreRequest | pb.CountTokensRequest
Response = pb.GenerateResponse | pb.ScoreResponse | pb.CountTokensResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What an earlier try has decoded of a completion."""

    tokens: tuple[int, ...]
    logprob: float
    """Of these tokens, together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token that was decoded and stays decoded."""

    number: int
    completion: int
    """Which of the request's, in the order of the response (one stands for all of a greedy start)."""
    token: int
    logprob: float
    """Of the completion's tokens so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The end of a request."""

    number: int
    response: Response | None = None
    prompt: array[int] = field(default_factory=lambda: array("I"))
    error: Exception | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """What one step brought."""

    tokens: tuple[Token, ...] = ()
    done: tuple[Done, ...] = ()


@runtime_checkable
class SteppingModel(Protocol):
    """Not thread-safe."""

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        ...

    @property
    def current(self) -> int:
        """The request that is computed alone, within a step, and ended by an exception from `beat`; or 0."""
        ...

    def load(self) -> pb.DescribeResponse:
        """As the port's."""
        ...

    def take(self, number: int, request: Request, accepted: Mapping[int, Accepted]) -> None:
        """Begin a request, or go on with one. Raises what the port's calls raise of a request."""
        ...

    def cancel(self, number: int) -> None:
        """Nobody waits for this request any more."""
        ...

    def step(self) -> Stepped:
        """Do a little. An exception means that the model's state is lost."""
        ...


class OneAtATime:
    """A model that answers whole requests, as a stepping one: a step is a request."""

    def __init__(self, model: CountedModel) -> None:
        self._model = model
        self._waiting: deque[tuple[int, Request]] = deque()
        self._current = 0

    @property
    def is_idle(self) -> bool:
        """As the protocol's."""
        return not self._waiting

    @property
    def current(self) -> int:
        """As the protocol's."""
        return self._current

    def load(self) -> pb.DescribeResponse:
        """As the protocol's."""
        return self._model.load()

    def take(self, number: int, request: Request, accepted: Mapping[int, Accepted]) -> None:
        """As the protocol's; what was accepted is decoded again, to the same tokens."""
        self._waiting.append((number, request))

    def cancel(self, number: int) -> None:
        """As the protocol's; one that is worked at ends by an exception from the model's `beat`."""
        self._waiting = deque(each for each in self._waiting if each[0] != number)

    def step(self) -> Stepped:
        """Answer the next request."""
        if not self._waiting:
            return Stepped()
        number, request = self._waiting.popleft()
        self._current = number
        try:
            return Stepped(done=(self._answered(number, request),))
        except Exception as error:  # the model lives on: what failed is the request
            return Stepped(done=(Done(number=number, error=error),))
        finally:
            self._current = 0

    def _answered(self, number: int, request: Request) -> Done:
        match request:
            case pb.GenerateRequest():
                completed, prompt = self._model.complete(request)
                return Done(number=number, response=completed, prompt=prompt)
            case pb.ScoreRequest():
                rated, prompt = self._model.rate(request)
                return Done(number=number, response=rated, prompt=prompt)
            case pb.CountTokensRequest():
                return Done(number=number, response=self._model.count_tokens(request))
