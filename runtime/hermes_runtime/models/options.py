"""What a request asks for, once its unset fields have their defaults and its limits are checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime import errors

COMPLETIONS_MAX = 4096
BEAMS_MAX = 64
STOPS_MAX = 64
CONTINUATIONS_MAX = 4096
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A GenerateRequest without its prompt, checked."""

    starts: tuple[str, ...]
    """Forced starts; one empty one if none was given."""
    n: int
    max_tokens: int
    search: pb.Search.ValueType
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: tuple[str, ...]
    repetition_penalty: float
    determinism: pb.Determinism.ValueType


def checked(request: pb.GenerateRequest) -> Options:
    """The options of `request`. Raises BadInput, Exhausted (over a limit)."""
    check_prompt(request.prompt)
    starts, n = tuple(request.prefixes) or ("",), request.n or 1
    if request.max_tokens < 1:
        raise errors.BadInput("max_tokens is 0: ask for at least one token")
    search = request.search or pb.SEARCH_GREEDY
    if search not in (pb.SEARCH_GREEDY, pb.SEARCH_SAMPLE, pb.SEARCH_BEAM):
        raise errors.BadInput(f"search {search} is unknown: use greedy, sample or beam")
    temperature, top_p = request.temperature or 1.0, request.top_p or 1.0
    if not (math.isfinite(temperature) and temperature > 0):
        raise errors.BadInput(
            f"temperature {temperature} must be above 0; for the likeliest use greedy search"
        )
    penalty = request.repetition_penalty or 1.0
    if not (math.isfinite(penalty) and penalty > 0):
        raise errors.BadInput(f"repetition_penalty {penalty} must be above 0")
    if penalty != 1 and search == pb.SEARCH_BEAM:
        raise errors.BadInput("repetition_penalty is not for beam search: leave it out, or sample")
    if not 0 < top_p <= 1:
        raise errors.BadInput(f"top_p {top_p} must be above 0 and at most 1")
    if any(not text for text in request.stop):
        raise errors.BadInput("a stop text is empty, and would end every completion at once: leave it out")
    if len(request.stop) > STOPS_MAX:
        raise errors.Exhausted(f"{len(request.stop)} stop texts are over the limit of {STOPS_MAX}")
    if len(starts) * n > COMPLETIONS_MAX:
        raise errors.Exhausted(
            f"{len(starts)} starts with {n} completions each are over the limit of {COMPLETIONS_MAX}: "
            "ask in several requests"
        )
    if search == pb.SEARCH_BEAM and n > BEAMS_MAX:
        raise errors.Exhausted(f"{n} beams are over the limit of {BEAMS_MAX}")
    return Options(
        starts=starts,
        n=n,
        max_tokens=request.max_tokens,
        search=search,
        temperature=temperature,
        top_p=top_p,
        top_k=request.top_k,
        seed=request.seed,
        stop=tuple(request.stop),
        repetition_penalty=penalty,
        determinism=promised(request.determinism),
    )


def promised(asked: pb.Determinism.ValueType) -> pb.Determinism.ValueType:
    """What is promised of an answer. Raises BadInput: a model cannot."""
    if asked == pb.DETERMINISM_UNSPECIFIED:
        return pb.DETERMINISM_BITWISE
    if asked not in (pb.DETERMINISM_BEST_EFFORT, pb.DETERMINISM_SEEDED, pb.DETERMINISM_BITWISE):
        raise errors.BadInput(
            f"determinism {asked} is not what a model can promise: ask for best effort, seeded or bitwise"
        )
    return asked


def check_scores(request: pb.ScoreRequest) -> None:
    """Raises BadInput, Exhausted (over a limit)."""
    check_prompt(request.prompt)
    promised(request.determinism)
    if len(request.continuations) > CONTINUATIONS_MAX:
        raise errors.Exhausted(
            f"{len(request.continuations)} continuations are over the limit of {CONTINUATIONS_MAX}: "
            "ask in several requests"
        )


def check_prompt(prompt: pb.Prompt) -> None:
    """Raises BadInput."""
    for index, message in enumerate(prompt.messages):
        if message.role not in ROLES:
            raise errors.BadInput(f"message {index} has role {message.role!r}: use one of {', '.join(ROLES)}")


def check_context(*, prompt: int, rest: int, context: int) -> None:
    """Raises ContextTooShort if `prompt` + `rest` tokens are more than `context`."""
    if prompt + rest > context:
        raise errors.ContextTooShort(
            f"a prompt of {prompt} tokens and {rest} more make {prompt + rest}, "
            f"but the context is {context} tokens: "
            "shorten the prompt, lower max_tokens, or raise spec.model.contextTokens if the model allows"
        )
