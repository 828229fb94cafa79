"""What every model counts the same way: tokens read again within a trace.

A backend computes (`complete`, `rate`) and says which tokens its prompt was; the count of those that an
earlier prompt of the trace began with is made once, where the history is: here in one process, and in
the supervisor for workers, so that a restarted worker forgets nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections import OrderedDict, deque

from hermes.model.v1 import model_pb2 as pb

TRACES_MAX = 64
PROMPTS_MAX = 32


class Rereads:
    """The last prompts of the last traces. Not thread-safe."""

    def __init__(self) -> None:
        self._traces: OrderedDict[str, deque[array[int]]] = OrderedDict()

    def settle(self, trace: str, prompt: array[int], usage: pb.Usage) -> None:
        """Move tokens of `prompt` that an earlier prompt of `trace` began with from new to re-read.

        Those from a cache stay counted as such.
        """
        if not trace:
            return
        earlier = self._traces.setdefault(trace, deque(maxlen=PROMPTS_MAX))
        self._traces.move_to_end(trace)
        shared = max((shared_tokens(prompt, other) for other in earlier), default=0)
        shared = max(0, shared - usage.prompt_tokens_cached)
        usage.prompt_tokens_new -= shared
        usage.prompt_tokens_reread += shared
        earlier.append(prompt)
        while len(self._traces) > TRACES_MAX:
            self._traces.popitem(last=False)


def shared_tokens(one: array[int], other: array[int]) -> int:
    """Length of the longest common start."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class CountedModel(ABC):
    """A model of the port, made of what a backend computes."""

    def __init__(self) -> None:
        self._rereads = Rereads()

    @abstractmethod
    def load(self) -> pb.DescribeResponse:
        """As the port's."""

    @abstractmethod
    def describe(self) -> pb.DescribeResponse:
        """As the port's."""

    @abstractmethod
    def count_tokens(self, request: pb.CountTokensRequest) -> pb.CountTokensResponse:
        """As the port's."""

    @abstractmethod
    def complete(self, request: pb.GenerateRequest) -> tuple[pb.GenerateResponse, array[int]]:
        """The answer, every token counted as new, and the prompt's token numbers."""

    @abstractmethod
    def rate(self, request: pb.ScoreRequest) -> tuple[pb.ScoreResponse, array[int]]:
        """As `complete`, for scores."""

    def generate(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        """As the port's."""
        response, prompt = self.complete(request)
        self._rereads.settle(request.trace, prompt, response.usage)
        return response

    def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """As the port's."""
        response, prompt = self.rate(request)
        self._rereads.settle(request.trace, prompt, response.usage)
        return response
