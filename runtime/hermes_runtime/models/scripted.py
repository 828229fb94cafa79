"""A model that answers from a script: for tests, and for users' tests of their own agents.

    context_tokens: 2048          # all but `default` optional
    dialect: chat
    delay_ms: 0                   # before each answer
    fail_after: 0                 # the process kills itself at request 1 + fail_after; 0: never
    rules:                        # the first that fits answers
      - {role: user, turn: 0, match: 'assert 3 == 4', completions: ["oops, no edit here"]}
      - {match: 'not an edit', completions: ["<<<<<<< SEARCH\\na\\n=======\\nb\\n>>>>>>> REPLACE"]}
    default: {completions: ["I do not know."]}

`match` is a regular expression searched in the last message (or the text); `role` is the last message's;
`turn` is the number of assistant's messages so far; `everywhere: true` searches the whole prompt.
Completion i of n is entry i (from the start again when there are fewer); greedy search gives entry 0. An
entry is a text, or {text, logprob}; else its logprob is -0.1 a token and -1 for each entry before it.
`starts: {"<L3>": [entries]}` answers a forced start, `scores: {"text": -0.5}` sets what `score` says of a
text; without, what an entry begins with has its logprob, any other -1 a token. `die: true` kills the process.

A token is a run of what is not space, with the space before it; space at the end is one more. Answers
depend on nothing but the request: no history, and the seed is not used.
"""

from __future__ import annotations

import os
import re
import signal
import time
import zlib
from array import array
from collections.abc import Callable, Sequence

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime import errors
from hermes_runtime.models import ModelSpec
from hermes_runtime.models.counted import CountedModel
from hermes_runtime.models.options import Options, check_context, check_scores, checked, promised

_TOKEN = re.compile(r"\s*\S+|\s+")
_NAP_SECONDS = 0.02


class Entry(BaseModel):
    """One completion of a script."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    logprob: float | None = Field(default=None, le=0)


class Rule(BaseModel):
    """What is answered, and to what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    match: str = ""
    role: str | None = None
    turn: int | None = None
    everywhere: bool = False
    completions: tuple[Entry, ...] = Field(min_length=1)
    starts: dict[str, tuple[Entry, ...]] = {}
    scores: dict[str, float] = {}
    die: bool = False

    @field_validator("completions", mode="before")
    @classmethod
    def _texts(cls, value: object) -> object:
        return _as_entries(value)

    @field_validator("starts", mode="before")
    @classmethod
    def _start_texts(cls, value: object) -> object:
        return {key: _as_entries(each) for key, each in value.items()} if isinstance(value, dict) else value

    @field_validator("match")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value

    def fits(self, prompt: pb.Prompt) -> bool:
        """Whether this rule answers `prompt`."""
        last = prompt.messages[-1] if prompt.messages else pb.Message(content=prompt.text)
        turn = sum(message.role == "assistant" for message in prompt.messages)
        if self.role not in (None, last.role) or self.turn not in (None, turn):
            return False
        return re.search(self.match, rendered(prompt) if self.everywhere else last.content) is not None


class Script(BaseModel):
    """A whole script."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    context_tokens: int | None = Field(default=None, ge=1)
    dialect: str = ""
    delay_ms: float = Field(default=0, ge=0)
    fail_after: int = Field(default=0, ge=0)
    rules: tuple[Rule, ...] = ()
    default: Rule


def tokens_of(text: str) -> list[str]:
    """The tokens of `text`."""
    return _TOKEN.findall(text)


def rendered(prompt: pb.Prompt) -> str:
    """The prompt as one text, as its tokens are counted."""
    if not prompt.messages:
        return prompt.text
    return "".join(f"{message.role}: {message.content}\n" for message in prompt.messages)


class ScriptedModel(CountedModel):
    """Plays the script in the file `spec.path`. `beat` is called while it waits."""

    def __init__(self, spec: ModelSpec, beat: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._spec = spec
        self._beat = beat
        self._requests = 0
        self._script: Script | None = None
        self._described: pb.DescribeResponse | None = None

    def load(self) -> pb.DescribeResponse:
        """Read the script. Raises NotFound, BadInput (what is wrong, and where)."""
        started = time.perf_counter()
        path = self._spec.path
        try:
            self._script = Script.model_validate(yaml.safe_load(path.read_text()))
        except OSError as error:
            raise errors.NotFound(f"cannot read the script {path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise errors.BadInput(f"{path} is not YAML: {error}") from error
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise errors.BadInput(f"script {path} at {where or 'its top'}: {problem['msg']}") from error
        longest = self._script.context_tokens or self._spec.context_tokens
        if longest < self._spec.context_tokens:
            raise errors.Unsupported(
                f"the script's context is {longest} tokens, but {self._spec.context_tokens} are asked for: "
                "lower spec.model.contextTokens"
            )
        self._described = pb.DescribeResponse(
            backend="scripted",
            architecture="Script",
            device="cpu",
            dtype="none",
            quantization="none",
            context_tokens=self._spec.context_tokens,
            dialect=self._script.dialect,
            load_seconds=time.perf_counter() - started,
        )
        return self._described

    def describe(self) -> pb.DescribeResponse:
        """What was loaded."""
        assert self._described is not None, "load first"
        return self._described

    def count_tokens(self, request: pb.CountTokensRequest) -> pb.CountTokensResponse:
        """By the rule of this module."""
        return pb.CountTokensResponse(counts=[len(tokens_of(text)) for text in request.texts])

    def complete(self, request: pb.GenerateRequest) -> tuple[pb.GenerateResponse, array[int]]:
        """By the rule that fits."""
        options = checked(request)
        prompt = tokens_of(rendered(request.prompt))
        starts = [len(tokens_of(start)) for start in options.starts]
        rest = max(starts) + options.max_tokens
        check_context(prompt=len(prompt), rest=rest, context=self._spec.context_tokens)
        rule = self._play(request.prompt)
        completions: list[pb.Completion] = []
        for index, start in enumerate(options.starts):
            entries = rule.starts.get(start, rule.completions)
            for number in range(options.n):
                which = 0 if options.search == pb.SEARCH_GREEDY else number % len(entries)
                completion = _completion(entries, which, options)
                completion.prefix = index
                completion.prefix_logprob = _score(rule, start) if start else 0.0
                completions.append(completion)
        usage = pb.Usage(
            prompt_tokens_new=len(prompt) + sum(starts),
            decoded_tokens=_decoded(completions, options),
        )
        return pb.GenerateResponse(
            completions=completions, usage=usage, determinism=options.determinism
        ), _numbers(prompt)

    def rate(self, request: pb.ScoreRequest) -> tuple[pb.ScoreResponse, array[int]]:
        """By the rule that fits."""
        check_scores(request)
        prompt = tokens_of(rendered(request.prompt))
        counts = [len(tokens_of(text)) for text in request.continuations]
        check_context(prompt=len(prompt), rest=max(counts, default=0), context=self._spec.context_tokens)
        rule = self._play(request.prompt)
        scores = [_score(rule, text) for text in request.continuations]
        usage = pb.Usage(prompt_tokens_new=len(prompt) + sum(counts))
        return pb.ScoreResponse(
            logprobs=scores, tokens=counts, usage=usage, determinism=promised(request.determinism)
        ), _numbers(prompt)

    def _play(self, prompt: pb.Prompt) -> Rule:
        """Wait, die if the script says so, and find the rule."""
        assert self._script is not None, "load first"
        script = self._script
        rule = next((each for each in script.rules if each.fits(prompt)), script.default)
        self._requests += 1
        if rule.die or (script.fail_after and self._requests > script.fail_after):
            os.kill(os.getpid(), signal.SIGKILL)
        self._beat()
        end = time.monotonic() + script.delay_ms / 1000
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _NAP_SECONDS))
            self._beat()
        return rule


def _as_entries(value: object) -> object:
    if not isinstance(value, list | tuple):
        return value
    return [{"text": each} if isinstance(each, str) else each for each in value]


def _entry_logprob(entries: Sequence[Entry], which: int, tokens: int) -> float:
    given = entries[which].logprob
    return given if given is not None else -0.1 * tokens - which


def _completion(entries: Sequence[Entry], which: int, options: Options) -> pb.Completion:
    text = entries[which].text
    tokens = tokens_of(text)
    reason = pb.FINISH_REASON_STOP
    if len(tokens) > options.max_tokens:
        tokens, reason = tokens[: options.max_tokens], pb.FINISH_REASON_LENGTH
        text = "".join(tokens)
    ends = [(at, at + len(stop)) for stop in options.stop if (at := text.find(stop)) >= 0]
    if ends:
        at, end = min(ends)
        tokens, reason = tokens_of(text[:end]), pb.FINISH_REASON_STOP
        text = text[:at]
    return pb.Completion(
        text=text,
        logprob=_entry_logprob(entries, which, len(tokens)),
        tokens=len(tokens),
        finish_reason=reason,
    )


def _decoded(completions: Sequence[pb.Completion], options: Options) -> int:
    """Equal completions of a greedy search are decoded once for each start."""
    step = options.n if options.search == pb.SEARCH_GREEDY else 1
    return sum(completion.tokens for completion in completions[::step])


def _score(rule: Rule, text: str) -> float:
    if text in rule.scores:
        return rule.scores[text]
    tokens = len(tokens_of(text))
    for which, entry in enumerate(rule.completions):
        if text and (entry.text == text or (entry.logprob is None and entry.text.startswith(text))):
            return _entry_logprob(rule.completions, which, tokens)
    return -1.0 * tokens


def _numbers(tokens: Sequence[str]) -> array[int]:
    return array("I", (zlib.crc32(token.encode()) for token in tokens))
