"""The engine: the same bits alone, under load, from a cache and over deaths; and that everything ends."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from hermes_runtime import errors
from hermes_runtime.models.engine.engine import Engine
from hermes_runtime.models.engine.prefix import PrefixTree
from hermes_runtime.models.engine.schedule import Limits
from hermes_runtime.models.engine.slots import Snapshot
from hermes_runtime.models.engine.task import Branch, Emitted, Level, Result, Rules, Task
from hermes_runtime.models.sampling import uniforms

VOCABULARY = 211
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "every layer slides": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=24)),
    "some layers slide": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SIZES,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    ),
}


def made(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model: PreTrainedModel = MAKERS[name]()
    torch.nn.Module.to(model, dtype)
    return model.train(False)


@pytest.fixture(scope="module", params=list(MAKERS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return made(request.param)


def engine(model: PreTrainedModel, *, cache: bool = True, slots: int = 4, together: int = 0) -> Engine:
    limits = Limits(slots=slots, piece_tokens=16, together=together)
    tree: PrefixTree[Snapshot] | None = None
    if cache:
        tree = PrefixTree(salt="test", node_tokens=limits.piece_tokens, bytes_max=2**26)
    started = Engine(model, limits=limits, tree=tree)
    assert started.why_alone == ""
    return started


def tasks(count: int, seed: int = 0) -> list[Task]:
    """Prompts of all lengths, some with a common start; greedy, sampled, forced, scored."""
    rng = random.Random(seed)
    shared = tuple(rng.randrange(VOCABULARY) for _ in range(50))
    found: list[Task] = []
    for number in range(count):
        prompt = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 60)))
        prompt = shared + prompt if number % 3 == 0 else prompt
        steps = rng.randrange(1, 25)
        sampled = tuple(
            Branch(forced=tuple(range(at)), chances=uniforms(number, at, 0, steps))
            for at in range(1 + number % 4)
        )
        match number % 4:
            case 0:
                found.append(Task(prompt=prompt, branches=(Branch(),), max_tokens=steps))
            case 1:
                texts = tuple(tuple(rng.randrange(VOCABULARY) for _ in range(at)) for at in (0, 1, 5, 3))
                found.append(Task(prompt=prompt, continuations=texts))
            case _:
                rules = Rules(temperature=0.8, top_p=0.9) if number % 2 else Rules(repetition_penalty=1.3)
                found.append(Task(prompt=prompt, branches=sampled, max_tokens=steps, rules=rules))
    return found


def finished(started: Engine, asked: Sequence[tuple[int, Task]]) -> tuple[dict[int, Result], list[Emitted]]:
    for number, task in asked:
        started.take(number, task)
    results: dict[int, Result] = {}
    emitted: list[Emitted] = []
    while not started.is_idle:
        progress = started.step()
        emitted += progress.emitted
        results |= {result.number: result for result in progress.results}
    assert all(result.error is None for result in results.values())
    return results, emitted


def bits(result: Result) -> Result:
    return replace(result, cached=0)


def greedy(model: PreTrainedModel, prompt: Sequence[int], steps: int) -> tuple[int, ...]:
    """By whole forward passes without any cache."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(steps):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tuple(tokens[len(prompt) :])


def test_greedy_requests_computed_together_are_what_the_model_computes_alone(model: PreTrainedModel):
    asked = [(number, task) for number, task in enumerate(tasks(24)) if number % 4 == 0]
    results, _ = finished(engine(model), asked)
    for number, task in asked:
        assert results[number].ended[0].tokens == greedy(model, task.prompt, task.max_tokens)


def test_scores_are_those_of_whole_forward_passes(model: PreTrainedModel):
    task = tasks(2)[1]
    results, _ = finished(engine(model), [(1, task)])
    for text, score in zip(task.continuations, results[1].scores, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([task.prompt + text]), use_cache=False).logits[0].log_softmax(-1)
        places = range(len(task.prompt) - 1, len(task.prompt) + len(text) - 1)
        expected = sum(float(logits[at, token]) for at, token in zip(places, text, strict=True))
        assert score == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_bit_is_the_same_alone_and_under_load_and_from_a_cache(name: str, dtype: torch.dtype):
    model = made(name, dtype)
    asked = list(enumerate(tasks(24)))
    alone: dict[int, Result] = {}
    for number, task in asked:
        alone |= finished(engine(model, cache=False), [(number, task)])[0]
    shuffled = random.Random(1).sample(asked, len(asked))
    loaded = engine(model)
    for order in (asked, shuffled):
        results, _ = finished(loaded, order)
        assert {number: bits(each) for number, each in results.items()} == alone
    assert loaded.cached_tokens > 0


def test_a_prompt_whose_start_is_known_is_not_computed_again():
    model = made("llama")
    started = engine(model)
    task = Task(prompt=tuple(range(100)), branches=(Branch(),), max_tokens=3)
    cold, _ = finished(started, [(1, task)])
    computed = started.computed_tokens
    warm, _ = finished(started, [(2, task)])
    assert (computed, started.computed_tokens - computed, warm[2].cached) == (100, 4, 96)
    assert warm[2].ended == cold[1].ended
    other, _ = finished(started, [(3, replace(task, tenant="another"))])
    assert other[3].cached == 0


def test_tokens_are_told_once_and_in_order():
    results, emitted = finished(engine(made("llama")), list(enumerate(tasks(16))))
    told: dict[tuple[int, int], list[Emitted]] = {}
    for each in emitted:
        told.setdefault((each.number, each.branch), []).append(each)
    for number, result in results.items():
        for branch, ended in enumerate(result.ended):
            assert tuple(each.token for each in told[number, branch]) == ended.tokens
            assert told[number, branch][-1].logprob == ended.logprob


@pytest.mark.parametrize("level", [Level.SEEDED, Level.BITWISE])
@pytest.mark.parametrize("known", [1, 5, 18])
def test_a_request_goes_on_from_what_was_accepted_with_no_token_doubled_or_changed(level: Level, known: int):
    model = made("llama")
    branches = tuple(Branch(forced=(3, 4), chances=uniforms(7, 0, number, 20)) for number in range(3))
    task = Task(prompt=tuple(range(40)), branches=branches, max_tokens=20, level=level)
    whole, emitted = finished(engine(model), [(1, task)])
    told = {at: [each for each in emitted if each.branch == at][:known] for at in (0, 2)}
    resumed = [
        replace(branch, accepted=tuple(e.token for e in told[at]), accepted_logprob=told[at][-1].logprob)
        if at in told
        else branch
        for at, branch in enumerate(branches)
    ]
    again, rest = finished(engine(model), [(1, replace(task, branches=tuple(resumed)))])
    assert len(rest) == len(emitted) - 2 * known
    for one, other in zip(whole[1].ended, again[1].ended, strict=True):
        assert one.tokens == other.tokens
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert one.forced_logprob == pytest.approx(other.forced_logprob, abs=1e-4)
    if level is Level.BITWISE:
        assert whole == again


def test_a_long_prompt_does_not_hold_up_a_completion():
    started = engine(made("llama"), cache=False)
    started.take(1, Task(prompt=(1, 2, 3), branches=(Branch(),) * 3, max_tokens=200))
    started.step()
    started.take(2, Task(prompt=tuple(range(200)) * 4, branches=(Branch(),), max_tokens=1))
    steps = 0
    progress = started.step()
    while all(result.number != 2 for result in progress.results):
        assert len([each for each in progress.emitted if each.number == 1]) == 3
        steps += 1
        progress = started.step()
    assert steps >= 20


def test_a_cancelled_request_is_gone_at_once_and_others_do_not_notice():
    model = made("llama")
    asked = list(enumerate(tasks(12)))
    expected, _ = finished(engine(model), asked)
    started = engine(model)
    for number, task in asked:
        started.take(number, task)
    results: dict[int, Result] = {}
    for at, victim in enumerate((0, 3, 8, 11)):
        for _ in range(at):
            results |= {result.number: result for result in started.step().results}
        started.cancel(victim)
    ended_before = set(results)
    while not started.is_idle:
        progress = started.step()
        assert not {each.number for each in progress.emitted} & ({0, 3, 8, 11} - ended_before)
        results |= {result.number: result for result in progress.results}
    assert set(range(12)) - {0, 3, 8, 11} <= set(results)
    assert all(bits(result) == bits(expected[number]) for number, result in results.items())


@pytest.mark.parametrize("at", [1, 2, 3, 5, 9])
def test_memory_that_runs_out_ends_one_request_and_no_other(at: int):
    model = made("llama")
    asked = [(number, Task(prompt=(number + 1,), branches=(Branch(),), max_tokens=9)) for number in range(4)]
    expected, _ = finished(engine(model, cache=False), asked)
    left = [0]

    def beat() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise MemoryError

    started = Engine(model, limits=Limits(slots=4, piece_tokens=16), beat=beat)
    left[0] = at
    for number, task in asked:
        started.take(number, task)
    results: dict[int, Result] = {}
    while not started.is_idle:
        results |= {result.number: result for result in started.step().results}
    failed = [number for number, result in results.items() if result.error is not None]
    assert len(failed) == 1
    assert isinstance(results[failed[0]].error, errors.Exhausted)
    assert all(results[number] == expected[number] for number in range(4) if number not in failed)


def test_a_penalty_for_repetition_is_transformers_own():
    model = made("llama")
    prompt = tuple(range(1, 30))
    task = Task(prompt=prompt, branches=(Branch(),), max_tokens=25, rules=Rules(repetition_penalty=1.4))
    results, _ = finished(engine(model), [(1, task)])
    with torch.inference_mode():
        found = model.generate(  # type: ignore[operator]  # transformers is half typed
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=25,
            do_sample=False,
            repetition_penalty=1.4,
            pad_token_id=0,
        )
    assert results[1].ended[0].tokens == tuple(found[0, len(prompt) :].tolist())
    assert results[1].ended[0].tokens != greedy(model, prompt, 25)


def test_requests_that_must_not_meet_do_not():
    model = made("llama")
    asked = list(enumerate(tasks(9)))
    expected, _ = finished(engine(model), asked)
    results, _ = finished(engine(model, together=1), asked)
    assert {n: bits(each) for n, each in results.items()} == {n: bits(each) for n, each in expected.items()}
