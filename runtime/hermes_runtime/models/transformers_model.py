"""A causal language model from a local folder, through transformers.

Requests become tasks of the engine, which computes many of them together; beams, and architectures that do
not fit into its slots, are computed alone. Log probabilities are of the model's own distribution, whatever
the temperature. The token that ends a completion is decoded, and counts in `tokens` and `logprob`, but is
not in `text`. Equal completions of a greedy search are decoded once. Unless less is asked for, an answer
does not depend on load; in float32 neither does its text on `slots`. Not covered: special tokens that a
chat's messages spell out are taken as such.
"""

from __future__ import annotations

import gc
import importlib.metadata
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
import transformers
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime import errors
from hermes_runtime.models import ModelSpec, weights
from hermes_runtime.models.beam import Beams
from hermes_runtime.models.counted import CountedModel
from hermes_runtime.models.engine.engine import Engine
from hermes_runtime.models.engine.prefix import PrefixTree
from hermes_runtime.models.engine.schedule import Limits
from hermes_runtime.models.engine.slots import Snapshot
from hermes_runtime.models.engine.task import Branch, Level, Result, Rules, Task
from hermes_runtime.models.fork import fork, on, select
from hermes_runtime.models.options import Options, check_context, check_scores, checked, promised
from hermes_runtime.models.sampling import draw, uniforms
from hermes_runtime.models.stepping import Accepted, Done, Request, Response, Stepped, Token
from hermes_runtime.models.stops import Stops, Vocabulary
from hermes_runtime.models.tree import Tree, verify

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.cache_utils import Cache

PIECE_TOKENS = 512
"""Tokens of a prompt computed in one go; a sign of life is given between two pieces."""

_SCORE_FLOATS_MAX = 2**27
"""Log probabilities held at once while scoring."""

_CONTEXT_TAIL = 4
"""Tokens before a completion that are decoded with it, so that spaces between come out right."""

_SHRINK_AT = 0.75
"""Finished rows leave the batch once no more than this share of it is still being decoded."""

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """A forced start, computed: row `row` of `cache`, and what the model expects next."""

    index: int
    tokens: tuple[int, ...]
    cache: Cache
    row: int
    logits: Tensor
    """(V,) float32."""
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Forced:
    """A forced start, as a completion tells of it."""

    index: int
    tokens: tuple[int, ...]
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """A completion, decoded."""

    tokens: tuple[int, ...]
    logprob: float
    stopped: bool


ONE_THREAD_PARAMETERS = 50_000_000
"""A smaller model computes on one thread where the spec does not say: its steps are too short to share,
and threads that spin for each other at every step crawl where other work holds the cores."""


class TransformersModel(CountedModel):
    """The model in the folder `spec.path`. `beat` is called at every step, and may raise to stop it."""

    def __init__(self, spec: ModelSpec, beat: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._spec = spec
        self._beat = beat
        self._described: pb.DescribeResponse | None = None
        self._answers: dict[int, Callable[[Result], Done]] = {}
        self._counted: list[Done] = []

    def load(self) -> pb.DescribeResponse:
        """Verify, load, and decode one token."""
        started = time.perf_counter()
        spec = self._spec
        if spec.threads:
            torch.set_num_threads(spec.threads)
        torch.use_deterministic_algorithms(True)
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # half typed
        tree = verify(spec.path)
        self._device = _device(spec.device)
        self._tokenizer: PreTrainedTokenizerBase = _loaded(
            spec,
            lambda: AutoTokenizer.from_pretrained(spec.path, local_files_only=True, trust_remote_code=False),
        )
        self._model: PreTrainedModel = _loaded(spec, lambda: weights.load(spec, self._device))
        tree.still()
        self._model.train(False)
        if not spec.threads and self._model.num_parameters() < ONE_THREAD_PARAMETERS:
            torch.set_num_threads(1)
        self._vocabulary = Vocabulary(_vocabulary_size(self._model), self._pieces)
        self._special = {str(text): int(number) for text, number in self._tokenizer.get_added_vocab().items()}
        self._ends = _end_tokens(self._model, self._tokenizer)
        self._tree = tree
        self._check_context_of_model()
        self._engine = self._engine_of(tree)
        self._warm()
        self._described = self._description(tree, time.perf_counter() - started)
        return self._described

    def describe(self) -> pb.DescribeResponse:
        """What was really loaded."""
        assert self._described is not None, "load first"
        return self._described

    def count_tokens(self, request: pb.CountTokensRequest) -> pb.CountTokensResponse:
        """Tokens of each text; special tokens in it are taken as such, none is added."""
        return pb.CountTokensResponse(counts=[len(self._encode(text)) for text in request.texts])

    def complete(self, request: pb.GenerateRequest) -> tuple[pb.GenerateResponse, array[int]]:
        """As the port's `generate`."""
        done = self._at_once(request)
        assert isinstance(done.response, pb.GenerateResponse)
        return done.response, done.prompt

    def rate(self, request: pb.ScoreRequest) -> tuple[pb.ScoreResponse, array[int]]:
        """As the port's `score`."""
        done = self._at_once(request)
        assert isinstance(done.response, pb.ScoreResponse)
        return done.response, done.prompt

    # Many requests, step by step.

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._answers and not self._counted

    @property
    def current(self) -> int:
        """The request that is computed alone, within a step; 0: none."""
        return self._engine.current if self._described else 0

    def take(self, number: int, request: Request, accepted: Mapping[int, Accepted]) -> None:
        """Begin a request, or go on with one. Raises what the port's calls raise of a request."""
        match request:
            case pb.GenerateRequest():
                task, answer = self._generation(request, accepted)
            case pb.ScoreRequest():
                task, answer = self._scoring(request)
            case pb.CountTokensRequest():
                self._counted.append(Done(number=number, response=self.count_tokens(request)))
                return
        self._engine.take(number, task)
        self._answers[number] = answer

    def cancel(self, number: int) -> None:
        """Nobody waits for this request any more."""
        self._engine.cancel(number)
        self._answers.pop(number, None)

    def step(self) -> Stepped:
        """A token of every completion that is decoded. An exception means that all of them are lost."""
        counted = tuple(self._counted)
        self._counted.clear()
        if not self._answers:
            return Stepped(done=counted)
        try:
            progress = self._engine.step()
        except BaseException:
            self._engine.reset()
            self._answers.clear()
            raise
        tokens = tuple(
            Token(number=each.number, completion=each.branch, token=each.token, logprob=each.logprob)
            for each in progress.emitted
        )
        done = tuple(self._answers.pop(each.number)(each) for each in progress.results)
        return Stepped(tokens=tokens, done=counted + done)

    def _at_once(self, request: Request) -> Done:
        """One request alone, by the same steps."""
        self.take(0, request, {})
        while True:
            for done in self.step().done:
                if done.error is not None:
                    raise done.error
                return done

    def _generation(
        self, request: pb.GenerateRequest, accepted: Mapping[int, Accepted]
    ) -> tuple[Task, Callable[[Result], Done]]:
        options = checked(request)
        if options.search == pb.SEARCH_BEAM and options.n > self._spec.slots:
            raise errors.Exhausted(
                f"{options.n} beams are decoded together, over the limit of {self._spec.slots} slots: "
                "ask for fewer, or raise spec.model.slots"
            )
        prompt = self._prompt(request.prompt)
        forced = [tuple(self._encode(start)) for start in options.starts]
        rest = max(map(len, forced)) + options.max_tokens
        check_context(prompt=len(prompt), rest=rest, context=self._spec.context_tokens)
        stops = self._stops(options.stop)
        copies = 1 if options.search == pb.SEARCH_GREEDY else options.n

        def ends(forced: Sequence[int], tokens: Sequence[int]) -> bool:
            if stops.ends[tokens[-1]]:
                return True
            if not stops.may_complete[tokens[-1]]:
                return False
            return stops.hits(self._text([*prompt, *forced], tokens)) is not None

        def answered(
            ended: Sequence[Sequence[_Ended]], prefixes: Sequence[float], decoded: int, cached: int
        ) -> pb.GenerateResponse:
            completions: list[pb.Completion] = []
            for index, (found, logprob) in enumerate(zip(ended, prefixes, strict=True)):
                times = options.n if options.search == pb.SEARCH_GREEDY else 1
                start = _Forced(index=index, tokens=forced[index], logprob=logprob)
                completions += [self._completion(start, each, stops, prompt) for each in found] * times
            usage = pb.Usage(
                prompt_tokens_new=len(prompt) + sum(map(len, forced)) - cached,
                prompt_tokens_cached=cached,
                decoded_tokens=decoded,
            )
            return pb.GenerateResponse(completions=completions, usage=usage, determinism=options.determinism)

        def alone() -> pb.GenerateResponse:
            with self._computing():
                cache, logits = self._prefill(prompt)
                starts = self._force(cache, logits, forced)
                ended: list[list[_Ended]] = []
                decoded = 0
                if options.search == pb.SEARCH_BEAM:
                    for start in starts:
                        found, count = self._beam(start, options, stops, prompt)
                        ended.append(found)
                        decoded += count
                else:
                    ended = self._decode_all(starts, options, stops, prompt)
                    decoded = sum(len(each.tokens) for found in ended for each in found)
            return answered(ended, [start.logprob for start in starts], decoded, 0)

        def shared(result: Result) -> pb.GenerateResponse:
            ended = [
                [
                    _Ended(tokens=each.tokens, logprob=each.logprob, stopped=each.stopped)
                    for each in result.ended[index * copies : (index + 1) * copies]
                ]
                for index in range(len(forced))
            ]
            prefixes = [result.ended[index * copies].forced_logprob for index in range(len(forced))]
            decoded = sum(len(each.tokens) for each in result.ended)
            return answered(ended, prefixes, decoded, self._told(options.determinism, result))

        if options.search == pb.SEARCH_BEAM or self._engine.why_alone:
            if options.repetition_penalty != 1:
                raise errors.Unsupported(
                    "repetition_penalty needs an architecture whose requests are computed together, but "
                    f"{self._engine.why_alone}: leave it out"
                )
            return Task(prompt=tuple(prompt), alone=alone), self._answering(prompt, None)
        branches = [
            Branch(
                forced=start,
                chances=uniforms(options.seed, index, number, options.max_tokens)
                if options.search == pb.SEARCH_SAMPLE
                else None,
                accepted=given.tokens if (given := accepted.get(index * copies + number)) else (),
                accepted_logprob=given.logprob if given else 0.0,
            )
            for index, start in enumerate(forced)
            for number in range(copies)
        ]
        rules = Rules(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            repetition_penalty=options.repetition_penalty,
        )
        task = Task(
            prompt=tuple(prompt),
            branches=tuple(branches),
            max_tokens=options.max_tokens,
            rules=rules,
            ends=ends,
            level=_level(options.determinism),
            tenant=request.tenant,
        )
        return task, self._answering(prompt, shared)

    def _scoring(self, request: pb.ScoreRequest) -> tuple[Task, Callable[[Result], Done]]:
        check_scores(request)
        determinism = promised(request.determinism)
        prompt = self._prompt(request.prompt)
        texts = [tuple(self._encode(text)) for text in request.continuations]
        check_context(
            prompt=len(prompt), rest=max(map(len, texts), default=0), context=self._spec.context_tokens
        )
        counts = [len(text) for text in texts]

        def answered(scores: Sequence[float], cached: int) -> pb.ScoreResponse:
            usage = pb.Usage(
                prompt_tokens_new=len(prompt) + sum(counts) - cached, prompt_tokens_cached=cached
            )
            return pb.ScoreResponse(logprobs=scores, tokens=counts, usage=usage, determinism=determinism)

        def alone() -> pb.ScoreResponse:
            with self._computing():
                cache, logits = self._prefill(prompt)
                return answered(self._score(cache, logits, texts), 0)

        if self._engine.why_alone:
            return Task(prompt=tuple(prompt), alone=alone), self._answering(prompt, None)
        task = Task(
            prompt=tuple(prompt),
            continuations=tuple(texts),
            level=_level(determinism),
            tenant=request.tenant,
        )
        return task, self._answering(
            prompt, lambda result: answered(result.scores, self._told(determinism, result))
        )

    def _answering(
        self, prompt: Sequence[int], response: Callable[[Result], Response] | None
    ) -> Callable[[Result], Done]:
        """What becomes of a task's result; without `response`, its value is one."""

        def answer(result: Result) -> Done:
            if result.error is not None:
                return Done(number=result.number, error=result.error)
            value = result.value if response is None else response(result)
            assert isinstance(value, pb.GenerateResponse | pb.ScoreResponse)
            return Done(number=result.number, response=value, prompt=array("I", prompt))

        return answer

    @staticmethod
    def _told(determinism: pb.Determinism.ValueType, result: Result) -> int:
        """Tokens from the cache, unless the answer may not depend on what was asked before."""
        return 0 if determinism == pb.DETERMINISM_BITWISE else result.cached

    # The prompt.

    def _encode(self, text: str) -> list[int]:
        return [int(number) for number in self._tokenizer.encode(text, add_special_tokens=False)]

    def _prompt(self, prompt: pb.Prompt) -> list[int]:
        tokens = self._encode(self._chat(prompt.messages) if prompt.messages else prompt.text)
        if tokens:
            return tokens
        if self._tokenizer.bos_token_id is None:
            raise errors.BadInput("the prompt is empty and this model has no start token: give it some text")
        return [int(self._tokenizer.bos_token_id)]

    def _chat(self, messages: Sequence[pb.Message]) -> str:
        if not self._tokenizer.chat_template:
            dialect = self._tree.manifest.dialect
            remedy = f"use the dialect {dialect!r}" if dialect else "send a text, or use an instruct model"
            raise errors.Unsupported(f"{self._spec.path.name} has no chat template: {remedy}")
        plain = [{"role": message.role, "content": message.content} for message in messages]
        open_turn = messages[-1].role != "assistant"
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    plain,
                    tokenize=False,
                    add_generation_prompt=open_turn,
                    continue_final_message=not open_turn,
                )
            )
        except (TemplateError, ValueError) as error:
            raise errors.BadInput(f"the model's chat template refuses these messages: {error}") from error

    # Computing. Logits come to the CPU as float32, and are chosen from there.

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Inference mode; running out of memory ends the request and not the model."""
        try:
            with torch.inference_mode():
                yield
        except (torch.OutOfMemoryError, MemoryError) as error:
            problem: Exception = error
        except RuntimeError as error:
            if "allocate memory" not in str(error) and "not enough memory" not in str(error):
                raise
            problem = error
        else:
            return
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        raise errors.Exhausted(
            "out of memory for this request: ask for fewer completions or a shorter prompt, "
            "or lower spec.model.slots"
        ) from problem

    def _forward(self, tokens: Tensor, cache: Cache, keep: int) -> Tensor:
        """(R, T) int64 -> (R, keep, V) float32 of the last `keep` places; 0 keeps all. Advances `cache`."""
        self._beat()
        output = self._model(
            input_ids=on(tokens, self._device), past_key_values=cache, use_cache=True, logits_to_keep=keep
        )
        logits: Tensor = output.logits
        return logits.float().cpu()

    def _prefill(self, prompt: Sequence[int]) -> tuple[Cache, Tensor]:
        """The prompt's cache, and the (V,) logits after it."""
        cache = DynamicCache(config=self._model.config)
        tokens = torch.tensor([prompt], dtype=torch.int64)
        for piece in torch.split(tokens, PIECE_TOKENS, dim=1):
            logits = self._forward(piece, cache, 1)
        return cache, logits[0, -1]

    def _force(self, cache: Cache, logits: Tensor, forced: Sequence[Sequence[int]]) -> list[_Start]:
        """Compute forced starts, those of equal length together."""
        starts: dict[int, _Start] = {}
        for length in sorted({len(tokens) for tokens in forced}):
            members = [index for index, tokens in enumerate(forced) if len(tokens) == length]
            for piece in _slices(members, self._spec.slots):
                if length == 0:
                    for index in piece:
                        starts[index] = _Start(
                            index=index, tokens=(), cache=cache, row=0, logits=logits, logprob=0.0
                        )
                    continue
                tokens = torch.tensor([forced[index] for index in piece], dtype=torch.int64)
                own = fork(cache, self._rows([0] * len(piece)), length)
                after = self._forward(tokens, own, 0)
                before = torch.cat([logits.expand(len(piece), 1, -1), after[:, :-1]], dim=1)
                sums = _logprobs(before, tokens).double().sum(dim=1).tolist()
                for row, index in enumerate(piece):
                    starts[index] = _Start(
                        index=index,
                        tokens=tuple(forced[index]),
                        cache=own,
                        row=row,
                        logits=after[row, -1],
                        logprob=sums[row],
                    )
        return [starts[index] for index in range(len(forced))]

    def _decode_all(
        self, starts: Sequence[_Start], options: Options, stops: Stops, prompt: Sequence[int]
    ) -> list[list[_Ended]]:
        """For each start its completions; one that stands for all in a greedy search."""
        copies = 1 if options.search == pb.SEARCH_GREEDY else options.n
        by_cache: dict[int, list[_Start]] = {}
        for start in starts:
            by_cache.setdefault(id(start.cache), []).append(start)
        ended: dict[tuple[int, int], _Ended] = {}
        for group in by_cache.values():
            rows = [(start, number) for start in group for number in range(copies)]
            for piece in _slices(rows, self._spec.slots):
                found = self._decode(piece, options, stops, prompt)
                for (start, number), each in zip(piece, found, strict=True):
                    ended[start.index, number] = each
        return [[ended[start.index, number] for number in range(copies)] for start in starts]

    def _decode(
        self, rows: Sequence[tuple[_Start, int]], options: Options, stops: Stops, prompt: Sequence[int]
    ) -> list[_Ended]:
        """Decode these completions together. All starts are rows of one cache."""
        count, steps = len(rows), options.max_tokens
        cache = fork(rows[0][0].cache, self._rows([start.row for start, _ in rows]), steps)
        logits = torch.stack([start.logits for start, _ in rows])
        chances: Tensor | None = None
        if options.search == pb.SEARCH_SAMPLE:
            chances = torch.stack(
                [uniforms(options.seed, start.index, number, steps) for start, number in rows]
            )
        tokens = torch.zeros(count, steps, dtype=torch.int64)
        sums = torch.zeros(count, dtype=torch.float64)
        lengths = torch.zeros(count, dtype=torch.int64)
        stopped = torch.zeros(count, dtype=torch.bool)
        batch = torch.arange(count)
        for step in range(steps):
            if chances is None:
                chosen = logits.argmax(dim=-1)
            else:
                chosen = draw(
                    logits,
                    chances[batch, step],
                    temperature=options.temperature,
                    top_k=options.top_k,
                    top_p=options.top_p,
                )
            fresh = ~stopped[batch]
            tokens[batch, step] = chosen
            sums[batch] += torch.where(fresh, _logprobs(logits, chosen).double(), 0.0)
            lengths[batch] += fresh
            ends = stops.ends[chosen]
            for place in (stops.may_complete[chosen] & fresh).nonzero().flatten().tolist():
                row = int(batch[place])
                start = rows[row][0]
                text = self._text([*prompt, *start.tokens], tokens[row, : step + 1].tolist())
                if stops.hits(text) is not None:
                    ends[place] = True
            stopped[batch] |= ends
            live = ~stopped[batch]
            left = int(live.sum())
            if left == 0 or step + 1 == steps:
                break
            if left <= _SHRINK_AT * len(batch):
                kept = live.nonzero().flatten()
                select(cache, on(kept, self._device))
                batch, chosen = batch[kept], chosen[kept]
            logits = self._forward(chosen[:, None], cache, 1)[:, -1]
        return [
            _Ended(tokens=tuple(tokens[row, :length].tolist()), logprob=total, stopped=ended)
            for row, (length, total, ended) in enumerate(
                zip(lengths.tolist(), sums.tolist(), stopped.tolist(), strict=True)
            )
        ]

    def _beam(
        self, start: _Start, options: Options, stops: Stops, prompt: Sequence[int]
    ) -> tuple[list[_Ended], int]:
        """The best completions of one start, and the tokens decoded to find them."""

        def ends(tokens: list[int], last: int) -> bool:
            if stops.ends[last]:
                return True
            if not stops.may_complete[last]:
                return False
            return stops.hits(self._text([*prompt, *start.tokens], tokens)) is not None

        beams = Beams(
            width=options.n,
            steps=options.max_tokens,
            spare=int(stops.ends.sum()) + len(stops.texts),
            ends=ends,
        )
        cache = fork(start.cache, self._rows([start.row]), options.max_tokens)
        logits, decoded = start.logits[None], 0
        while True:
            rows, chosen = beams.advance(torch.log_softmax(logits, dim=-1))
            decoded += options.n
            if beams.is_done:
                break
            select(cache, on(rows, self._device))
            logits = self._forward(chosen[:, None], cache, 1)[:, -1]
        found = [
            _Ended(tokens=each.tokens, logprob=each.logprob, stopped=each.stopped) for each in beams.best()
        ]
        return found, decoded

    def _score(self, cache: Cache, logits: Tensor, texts: Sequence[Sequence[int]]) -> list[float]:
        """Sum of the log probabilities of each text's tokens."""
        scores = [0.0] * len(texts)
        order = sorted(
            (index for index, text in enumerate(texts) if text), key=lambda index: len(texts[index])
        )
        longest = max((len(text) for text in texts), default=1) or 1
        rows = max(1, min(self._spec.slots, _SCORE_FLOATS_MAX // (longest * len(logits))))
        for piece in _slices(order, rows):
            width = len(texts[piece[-1]])
            tokens = torch.zeros(len(piece), width, dtype=torch.int64)
            real = torch.zeros(len(piece), width, dtype=torch.bool)
            for row, index in enumerate(piece):
                tokens[row, : len(texts[index])] = torch.tensor(texts[index])
                real[row, : len(texts[index])] = True
            before = logits.expand(len(piece), 1, -1)
            if width > 1:  # what stands after a text's end is seen by none of its tokens
                own = fork(cache, self._rows([0] * len(piece)), width)
                before = torch.cat([before, self._forward(tokens[:, :-1], own, 0)], dim=1)
            found = torch.where(real, _logprobs(before, tokens).double(), 0.0).sum(dim=1).tolist()
            for index, score in zip(piece, found, strict=True):
                scores[index] = score
        return scores

    # Text.

    def _stops(self, texts: Sequence[str]) -> Stops:
        ends = self._ends | {self._special[text] for text in texts if text in self._special}
        return self._vocabulary.stops(ends, [text for text in texts if text not in self._special])

    def _pieces(self) -> list[str]:
        numbers = range(len(self._tokenizer))
        names = self._tokenizer.convert_ids_to_tokens(list(numbers))
        return [
            self._plain([number]) + (" " if name and name.startswith("▁") else "")
            for number, name in zip(numbers, names, strict=True)
        ]

    def _plain(self, tokens: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(
                list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def _text(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """The text that `tokens` add after `before`."""
        tail = list(before[-_CONTEXT_TAIL:])
        context, whole = self._plain(tail), self._plain([*tail, *tokens])
        return whole[len(context) :] if whole.startswith(context) else self._plain(tokens)

    def _completion(
        self, start: _Forced, ended: _Ended, stops: Stops, prompt: Sequence[int]
    ) -> pb.Completion:
        shown = list(ended.tokens)
        if shown and stops.ends[shown[-1]]:
            shown.pop()
        text = self._text([*prompt, *start.tokens], shown)
        cut = stops.hits(text) if stops.texts else None
        return pb.Completion(
            text=text if cut is None else text[:cut],
            prefix=start.index,
            logprob=ended.logprob,
            prefix_logprob=start.logprob,
            tokens=len(ended.tokens),
            finish_reason=pb.FINISH_REASON_STOP if ended.stopped else pb.FINISH_REASON_LENGTH,
        )

    # Loading.

    def _rows(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=self._device)

    def _check_context_of_model(self) -> None:
        config = self._model.config.get_text_config(decoder=True)
        longest = getattr(config, "max_position_embeddings", None)
        if longest is not None and longest < self._spec.context_tokens:
            raise errors.Unsupported(
                f"the model's context is {longest} tokens, but {self._spec.context_tokens} are asked for: "
                f"set spec.model.contextTokens to at most {longest}"
            )

    def _engine_of(self, tree: Tree) -> Engine:
        spec = self._spec
        limits = Limits(slots=spec.slots, together=1 if _mixes_experts(self._model) else 0)
        kept: PrefixTree[Snapshot] | None = None
        if spec.prefix_cache_bytes:
            kept = PrefixTree(
                salt=tree.sha256, node_tokens=limits.piece_tokens, bytes_max=spec.prefix_cache_bytes
            )
        with self._computing():
            return Engine(self._model, limits=limits, tree=kept, beat=self._beat)

    def _warm(self) -> None:
        """Decode a real token, forked and all."""
        number = next(iter(self._ends), 0)
        with self._computing():
            cache, _ = self._prefill([number])
            self._forward(torch.tensor([[number]]), fork(cache, self._rows([0]), 1), 1)

    def _description(self, tree: Tree, seconds: float) -> pb.DescribeResponse:
        held = weights.held(self._model)
        names = ["torch", "transformers", "tokenizers", "safetensors"]
        if held.quantization != "none":
            names.append("bitsandbytes")
        return pb.DescribeResponse(
            backend="transformers",
            architecture=type(self._model).__name__,
            tree_sha256=tree.sha256,
            tokenizer_sha256=tree.tokenizer_sha256,
            verified_files=len(tree.manifest.files),
            device=str(self._device),
            dtype=held.dtype,
            quantization=held.quantization,
            weight_bytes=held.weight_bytes,
            parameters=held.parameters,
            load_seconds=seconds,
            context_tokens=self._spec.context_tokens,
            dialect=tree.manifest.dialect,
            software=[f"{name} {importlib.metadata.version(name)}" for name in names],
        )


def _level(determinism: pb.Determinism.ValueType) -> Level:
    match determinism:
        case pb.DETERMINISM_BEST_EFFORT:
            return Level.BEST_EFFORT
        case pb.DETERMINISM_SEEDED:
            return Level.SEEDED
        case _:
            return Level.BITWISE


def _mixes_experts(model: PreTrainedModel) -> bool:
    """Whether tokens are computed in groups that depend on who else is there."""
    config = model.config.get_text_config(decoder=True)
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return any((getattr(config, name, None) or 0) > 1 for name in names)


def _slices(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def _logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """(…, V) float32, (…) int64 -> (…) float32."""
    return torch.log_softmax(logits, dim=-1).gather(-1, tokens[..., None]).squeeze(-1)


def _vocabulary_size(model: PreTrainedModel) -> int:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[0])


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    there: dict[str, Callable[[], bool]] = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "xpu": torch.xpu.is_available,
    }
    if device.type not in there or not there[device.type]():
        raise errors.Unsupported(
            f"there is no device {name!r} on this host: set spec.model.device to auto or cpu"
        )
    return device


def _loaded(spec: ModelSpec, load: Callable[[], Loaded]) -> Loaded:
    """What `load` gives; what transformers raises, as an error of ours."""
    try:
        return load()
    except errors.HermesError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        raise errors.Unsupported(
            f"transformers {transformers.__version__} cannot load {spec.path}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that the model's files say ends an answer."""
    given = getattr(model.generation_config, "eos_token_id", None)
    listed = given if isinstance(given, list | tuple) else [given]
    return frozenset(int(number) for number in (*listed, tokenizer.eos_token_id) if number is not None)
