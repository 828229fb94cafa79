"""Requests in, tokens and results out, one step at a time; they are computed together, each as if alone.

A request that is promised every bit is decoded at the full width of the slots, whoever else is there, its
prompt cut at fixed places, its attention over a number of columns that only its own length decides. Not
decided here: who is next (schedule.py), which token (choosing.py), what a request means.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from hermes_runtime.models.engine.choosing import Choice, choose
from hermes_runtime.models.engine.prefix import PrefixTree
from hermes_runtime.models.engine.schedule import Join, Limits, Schedule
from hermes_runtime.models.engine.slots import ATTENTION, Masks, Slots, Snapshot, bytes_of, register
from hermes_runtime.models.engine.task import (
    Branch,
    Emitted,
    Ended,
    Level,
    Progress,
    Result,
    Task,
    exhausted,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BUCKET_COLUMNS = 128
"""Rows attend over their length rounded up to a multiple of this."""

_AGREEMENT = 0.05
"""Relative difference of logits that is rounding; in bfloat16, some hundredths."""

_SCORED_TOKENS = 256
"""Tokens of continuations that are scored in one pass, unless a single one is longer."""

_SCORED_FLOATS = 2**25
"""Logits held at once while scoring, likewise."""


@dataclass(slots=True, kw_only=True)
class _Row:
    """A completion that is decoded."""

    number: int
    branch: int
    task: Task
    columns: int
    """Filled ones."""
    logits: Tensor
    """(V,) float32: what the model expects next."""
    seen: Tensor | None
    given: int = 0
    """Of the forced tokens, those that are behind."""
    tokens: list[int] = field(default_factory=list)
    forced_logprob: float = 0.0
    logprob: float = 0.0
    following: int = 0
    """The token chosen last, not computed yet."""

    @property
    def of(self) -> Branch:
        """Its branch."""
        return self.task.branches[self.branch]


@dataclass(slots=True, kw_only=True)
class _Request:
    """What is known of a request beside its place in the schedule."""

    task: Task
    logits: Tensor | None = None
    """(V,) float32: after the prompt."""
    ended: dict[int, Ended] = field(default_factory=dict)
    scores: list[float] | None = None
    chunks: list[list[int]] | None = None
    """Continuations that are still to be scored, in passes."""
    cached: int = 0


class Engine:
    """One model's. Not thread-safe. `beat` is called before every forward pass."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        limits: Limits,
        tree: PrefixTree[Snapshot] | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._device = model.device
        self._limits = limits
        self._schedule = Schedule(limits=limits)
        self._tree = tree
        self._beat = beat
        self._requests: dict[int, _Request] = {}
        self._rows: list[_Row] = []
        self._staged: tuple[int, ...] = ()
        """Tokens whose columns are in the stage's row."""
        self._emitted: list[Emitted] = []
        self._results: list[Result] = []
        self.why_alone = self._prepared()
        """Why this model's requests cannot share a pass; empty: they can. Then tasks must be `alone`."""
        self.current = 0
        """The request that is computed alone now; 0: none."""
        self.steps = 0
        self.computed_tokens = 0
        """Of prompts, as passes."""
        self.cached_tokens = 0
        """Of prompts, not computed again."""

    def _prepared(self) -> str:
        """Make the slots. If the architecture does not fit into them, say why."""
        config = self._model.config.get_text_config(decoder=True)
        layers = DynamicCache(config=config).layers
        known = {DynamicLayer, DynamicSlidingWindowLayer, DummyLayer}
        if strange := {type(layer) for layer in layers} - known:
            return f"its past is kept in {', '.join(sorted(each.__name__ for each in strange))}"
        if config._attn_implementation not in ("sdpa", ATTENTION):
            return f"its attention is {config._attn_implementation}"
        try:
            self._masks = Masks(config)
        except ValueError as error:
            return str(error)
        self._slots = Slots(
            [type(layer) is DummyLayer for layer in layers], slots=self._limits.slots, bucket=BUCKET_COLUMNS
        )
        register()
        self._model.set_attn_implementation(ATTENTION)
        return "" if self._agrees() else "its logits differ when rows are computed together"

    @torch.inference_mode()
    def _agrees(self) -> bool:
        """Whether a token computed in a row is what the model itself computes."""
        tokens = (3, 1, 2, 1, 2)
        self._run_piece(self._slots.stage, tokens[:-1], 0, keep=1)
        self._slots.copy(self._slots.stage, 0, len(tokens) - 1)
        logits = torch.zeros(1)
        row = _Row(number=0, branch=0, task=Task(prompt=()), columns=4, logits=logits, seen=None)
        row.following = tokens[-1]
        self._rows = [row]
        try:
            self._decode()
        finally:
            self._rows = []
        plain: Tensor = self._model(torch.tensor([tokens], device=self._device), use_cache=False).logits
        expected = plain[0, -1].float().cpu()
        return bool((row.logits - expected).norm() <= _AGREEMENT * expected.norm())

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._requests and not self._results

    def take(self, number: int, task: Task) -> None:
        """Take a request. Raises Exhausted: too many are here."""
        prompt = 0 if task.alone else len(task.prompt)
        self._schedule.submit(number, prompt=prompt, rows=len(task.branches))
        self._requests[number] = _Request(task=task)

    def cancel(self, number: int) -> None:
        """Forget a request; nothing of it is told any more."""
        if number in self._requests:
            self._leave_all(number)

    def reset(self) -> None:
        """Forget every request."""
        for number in list(self._requests):
            self._leave_all(number)
        self._results.clear()
        self._emitted.clear()

    def step(self) -> Progress:
        """Pieces of prompts, then a token of every row."""
        self.steps += 1
        with torch.inference_mode():
            self._compute_prompts()
            for join in self._schedule.joins(len(self._rows)):
                self._rows.append(self._joined(join))
            if self._rows:
                self._choose()
            while self._rows and not self._decoded():
                pass
        done = Progress(emitted=tuple(self._emitted), results=tuple(self._results))
        self._emitted.clear()
        self._results.clear()
        return done

    # Prompts.

    def _compute_prompts(self) -> None:
        allowed = self._schedule.allowance(len(self._rows))
        while allowed > 0 and (entry := self._schedule.staged()) is not None:
            request = self._requests[entry.number]
            try:
                if request.task.alone is not None:
                    self.current = entry.number
                    self._end(Result(number=entry.number, value=request.task.alone()))
                    return
                if not entry.is_computed:
                    allowed -= self._compute_piece(entry.number, request)
                elif request.task.branches:
                    return
                else:
                    allowed -= self._score(entry.number, request)
            except Exception as error:  # what failed is the request
                self._staged = ()
                if not _is_out_of_memory(error):
                    self._end(Result(number=entry.number, error=error))
                elif not self._freed():
                    self._end(Result(number=entry.number, error=exhausted()))
            finally:
                self.current = 0

    def _compute_piece(self, number: int, request: _Request) -> int:
        prompt, tenant = request.task.prompt, request.task.tenant
        piece = self._schedule.piece()
        assert piece is not None
        if piece.start == 0 and (held := self._restored(prompt, tenant)):
            request.cached = held
            self.cached_tokens += held
            self._schedule.computed(number, held)
            return 0
        if piece.start == 0:
            self._staged = ()
        start, end = piece.start, piece.end
        logits = self._run_piece(self._slots.stage, prompt[start:end], start, keep=1)
        self.computed_tokens += end - start
        self._staged = prompt[:end]
        if self._tree is not None and end % self._tree.node_tokens == 0:
            self._keep(tenant, prompt[:end])
        if end == len(prompt):
            request.logits = logits[0, -1]
        self._schedule.computed(number, end)
        return end - start

    def _restored(self, prompt: tuple[int, ...], tenant: str) -> int:
        """Bring what is known of a prompt's start into the stage's row: so many tokens."""
        if self._tree is None:
            return 0
        found, size = self._tree.find(tenant, prompt), self._tree.node_tokens
        if not found:
            return 0
        self._slots.reserve(len(prompt))
        there = 0
        while there < len(found) and self._staged[: (there + 1) * size] == prompt[: (there + 1) * size]:
            there += 1
        for at in range(there, len(found)):
            self._slots.restore(self._slots.stage, at * size, found[at])
        self._staged = prompt[: len(found) * size]
        return len(found) * size

    def _keep(self, tenant: str, tokens: tuple[int, ...]) -> None:
        assert self._tree is not None
        snapshot = self._slots.snapshot(self._slots.stage, len(tokens) - self._tree.node_tokens, len(tokens))
        self._tree.add(tenant, tokens, snapshot, bytes_of(snapshot))

    def _run_piece(self, row: int, tokens: Sequence[int], start: int, keep: int) -> Tensor:
        """Compute tokens one after another in a row, from column `start` on -> (1, keep or T, V)."""
        end = start + len(tokens)
        positions = torch.arange(start, end)[None]
        seen = torch.arange(end) <= positions[:, None, :, None]
        return self._run_masked(row, tokens, start, positions, seen, torch.arange(end), keep)

    def _run_masked(
        self,
        row: int,
        tokens: Sequence[int],
        start: int,
        positions: Tensor,
        seen: Tensor,
        at: Tensor,
        keep: int,
    ) -> Tensor:
        end = start + len(tokens)
        self._slots.reserve(end)
        with self._slots.piece(row, start, end):
            return self._forward(torch.tensor([tokens]), positions, self._masks.of(seen, positions, at), keep)

    # Continuations: all of them behind one another in the stage's row, each blind to the others.

    def _score(self, number: int, request: _Request) -> int:
        task = request.task
        assert request.logits is not None
        if request.chunks is None or request.scores is None:
            first = torch.log_softmax(request.logits, dim=-1).double()
            request.scores = [float(first[text[0]]) if text else 0.0 for text in task.continuations]
            most = max(1, min(_SCORED_TOKENS, _SCORED_FLOATS // len(request.logits)))
            request.chunks = _chunks(task.continuations, most)
        spent = 0
        if request.chunks:
            self._staged = task.prompt
            chunk = request.chunks.pop(0)
            spent = self._score_chunk(task, chunk, request.scores)
        if not request.chunks:
            self._end(Result(number=number, scores=tuple(request.scores), cached=request.cached))
        return spent

    def _score_chunk(self, task: Task, chunk: Sequence[int], scores: list[float]) -> int:
        before = len(task.prompt)
        tokens: list[int] = []
        own: list[int] = []
        places: list[int] = []
        for index in chunk:
            text = task.continuations[index]
            own += [index] * (len(text) - 1)
            places += range(before, before + len(text) - 1)
            tokens += text[:-1]
        whose, positions = torch.tensor(own), torch.tensor(places)
        at = torch.cat([torch.arange(before), positions])
        owner = torch.cat([torch.full((before,), -1), whose])
        seen = (owner == -1) | (owner == whose[:, None])
        seen &= at <= positions[:, None]
        logits = self._run_masked(
            self._slots.stage, tokens, before, positions[None], seen[None, None], at, keep=0
        )[0]
        following = torch.tensor([token for index in chunk for token in task.continuations[index][1:]])
        found = torch.log_softmax(logits, dim=-1).gather(-1, following[:, None])[:, 0].double()
        done = 0
        for index in chunk:
            length = len(task.continuations[index]) - 1
            scores[index] += float(found[done : done + length].sum())
            done += length
        return len(tokens)

    # Rows.

    def _joined(self, join: Join) -> _Row:
        """A new row, its prompt copied from the stage or from a sibling."""
        request = self._requests[join.number]
        place, columns = len(self._rows), len(request.task.prompt)
        sibling = next((at for at, row in enumerate(self._rows) if row.number == join.number), None)
        source = self._slots.stage if sibling is None else sibling
        self._slots.copy(source, place, columns)
        return self._begun(join, place)

    def _begun(self, join: Join, place: int) -> _Row:
        """A row in a place where its prompt is already."""
        request = self._requests[join.number]
        task = request.task
        assert request.logits is not None
        row = _Row(
            number=join.number,
            branch=join.row,
            task=task,
            columns=len(task.prompt),
            logits=request.logits,
            seen=None,
        )
        if task.rules.repetition_penalty != 1.0:
            row.seen = torch.zeros(len(request.logits), dtype=torch.bool)
            row.seen[torch.tensor(task.prompt)] = True
        if row.of.accepted and task.level is not Level.BITWISE:
            self._catch_up(row, place)
        return row

    def _catch_up(self, row: _Row, place: int) -> None:
        """Compute at once what an earlier try has decoded; its bits may then differ from decoding's."""
        branch, size = row.of, self._limits.piece_tokens
        tokens = branch.forced + branch.accepted
        for start in range(0, len(tokens), size):
            piece = tokens[start : start + size]
            after = self._run_piece(place, piece, row.columns, keep=0)[0]
            before = torch.cat([row.logits[None], after[:-1]])
            found = torch.log_softmax(before, dim=-1).gather(-1, torch.tensor(piece)[:, None])[:, 0]
            row.forced_logprob += float(found[: max(0, len(branch.forced) - start)].double().sum())
            row.columns += len(piece)
            row.logits = after[-1]
        if row.seen is not None:
            row.seen[torch.tensor(tokens)] = True
        row.given, row.tokens, row.logprob = (
            len(branch.forced),
            list(branch.accepted),
            branch.accepted_logprob,
        )

    def _choose(self) -> None:
        """A token for every row; rows that end leave, and those that follow them begin in their place."""
        fresh = list(range(len(self._rows)))
        while fresh:
            rows = [self._rows[place] for place in fresh]
            tokens, logprobs = choose(
                torch.stack([row.logits for row in rows]), [_choice(row) for row in rows]
            )
            ended: list[tuple[int, bool]] = []
            for place, row, token, logprob in zip(fresh, rows, tokens, logprobs, strict=True):
                stopped = self._grow(row, token, logprob)
                if stopped or len(row.tokens) >= row.task.max_tokens:
                    ended.append((place, stopped))
            fresh = []
            holes: list[int] = []
            for place, stopped in ended:
                row = self._rows[place]
                self._requests[row.number].ended[row.branch] = Ended(
                    tokens=tuple(row.tokens),
                    logprob=row.logprob,
                    forced_logprob=row.forced_logprob,
                    stopped=stopped,
                )
                follower = self._schedule.successor(row.number)
                if follower is not None:
                    self._rows[place] = self._begun(follower, place)
                    fresh.append(place)
                else:
                    holes.append(place)
            for number in {self._rows[place].number for place in holes}:
                if self._schedule.is_done(number):
                    request = self._requests[number]
                    every = tuple(request.ended[at] for at in range(len(request.task.branches)))
                    self._results.append(Result(number=number, ended=every, cached=request.cached))
                    self._schedule.remove(number)
                    del self._requests[number]
            if holes and fresh:
                kept = {id(self._rows[place]) for place in fresh}
                self._close(holes)
                fresh = [place for place, row in enumerate(self._rows) if id(row) in kept]
            else:
                self._close(holes)

    def _grow(self, row: _Row, token: int, logprob: float) -> bool:
        """Take a chosen token into a row; True if the completion ends with it."""
        row.following = token
        if row.seen is not None:
            row.seen[token] = True
        forced = row.of.forced
        if row.given < len(forced):
            row.given += 1
            row.forced_logprob += logprob
            return False
        row.tokens.append(token)
        row.logprob += logprob
        if len(row.tokens) > len(row.of.accepted):
            self._emitted.append(
                Emitted(number=row.number, branch=row.branch, token=token, logprob=row.logprob)
            )
        return row.task.ends(forced, row.tokens)

    def _close(self, holes: Sequence[int]) -> None:
        """Rows leave: the last ones move into their places."""
        for place in sorted(holes, reverse=True):
            last = self._rows.pop()
            if place < len(self._rows):
                self._slots.copy(len(self._rows), place, last.columns)
                self._rows[place] = last

    def _decoded(self) -> bool:
        """Compute the chosen token of every row. False: memory ran out, and the youngest request left."""
        try:
            self._decode()
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            if not self._freed():
                youngest = self._rows[-1].number
                self._end(Result(number=youngest, error=exhausted()))
            return False
        return True

    def _decode(self) -> None:
        live = len(self._rows)
        bitwise = any(row.task.level is Level.BITWISE for row in self._rows)
        width = self._limits.slots if bitwise else live
        idle = width - live
        columns = torch.tensor([row.columns for row in self._rows] + [0] * idle)
        tokens = torch.tensor([row.following for row in self._rows] + [0] * idle)
        lengths = [row.columns + 1 for row in self._rows] + [1] * idle
        self._slots.reserve(max(lengths))
        with self._slots.step(columns.to(self._device), lengths) as made:
            positions, at = columns[:, None], torch.arange(made.end)
            seen = at <= positions[:, None, :, None]
            logits = self._forward(tokens[:, None], positions, self._masks.of(seen, positions, at), keep=1)
        for place, row in enumerate(self._rows):
            row.columns += 1
            row.logits = logits[place, -1]

    def _forward(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | dict[str, Tensor], keep: int
    ) -> Tensor:
        """(R, T) int64 -> (R, keep, V) float32 on the CPU; keep 0 is all."""
        self._beat()
        there = self._device
        placed = (
            mask.to(there)
            if isinstance(mask, Tensor)
            else {name: each.to(there) for name, each in mask.items()}
        )
        output = self._model(
            input_ids=tokens.to(there),
            position_ids=positions.to(there),
            attention_mask=placed,
            past_key_values=self._slots.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: Tensor = output.logits
        return logits.float().cpu()

    # Ends.

    def _end(self, result: Result) -> None:
        self._leave_all(result.number)
        self._results.append(result)

    def _leave_all(self, number: int) -> None:
        self._close([place for place, row in enumerate(self._rows) if row.number == number])
        self._schedule.remove(number)
        del self._requests[number]

    def _freed(self) -> bool:
        """Whether memory was found that nobody needs now."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if self._tree is None or not len(self._tree):
            return False
        self._tree.clear()
        return True


def _choice(row: _Row) -> Choice:
    branch, step = row.of, len(row.tokens)
    forced: int | None = None
    if row.given < len(branch.forced):
        forced = branch.forced[row.given]
    elif step < len(branch.accepted):
        forced = branch.accepted[step]
    chance = None if branch.chances is None else float(branch.chances[step])
    return Choice(rules=row.task.rules, forced=forced, chance=chance, seen=row.seen)


def _chunks(texts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Which texts of more than one token are scored together."""
    chunks: list[list[int]] = []
    filled = most
    for index, text in enumerate(texts):
        length = len(text) - 1
        if length < 1:
            continue
        if filled + length > most:
            chunks.append([])
            filled = 0
        chunks[-1].append(index)
        filled += length
    return chunks


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        said in str(error) for said in ("allocate memory", "not enough memory")
    )
