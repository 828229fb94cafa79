"""How good a repair model is: shares over mutants of packages that it never saw, with intervals.

An example is asked for twice by beam search of width 10: once with the true place given, once free.
A repair counts where its text is the original line; another line that is right too does not. No test
is run here: what a run of the agents solves is measured by the evaluation itself.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hermes_runtime.agents.prompts.line_repair import END, PAD, PLACES, Answer, parse_answer, place_token
from hermes_runtime.evaluate.statistics import Interval, wilson
from hermes_runtime.train.examples import Example, examples_of
from hermes_runtime.train.recipe import FULL
from hermes_runtime.train.sources import Module

BEAMS = 10
_NEW_TOKENS_MAX = 80
_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Shares of `examples` mutants, each with its 95 % Wilson interval."""

    examples: int
    line_at_1: Interval
    line_at_3: Interval
    fix_at_1: Interval
    """The line, given its place."""
    fix_at_10: Interval
    joint_at_1: Interval
    """Place and line together."""
    joint_at_10: Interval
    by_kind: dict[str, tuple[int, int, int]]
    """Of each kind of defect: mutants, line first, joint among the first 10."""


def held_out_examples(
    modules: Iterable[Module], count: int, seed: int, tokens_max: int, count_tokens: Callable[[str], int]
) -> list[Example]:
    """A seeded sample of defects that fit `tokens_max` with their answer; no two of one function."""
    recipe = dataclasses.replace(FULL, seed=seed, mutants_per_function=1, correct_share=0.0)
    found = [example for module in modules for example in examples_of(module, recipe)]
    found = list({example.function_key: example for example in found}.values())
    random.Random(seed).shuffle(found)
    fitting = (e for e in found if count_tokens(e.prompt) + count_tokens(e.answer) <= tokens_max)
    return [example for example, _ in zip(fitting, range(count), strict=False)]


def measure(
    folder: Path,
    modules: Iterable[Module],
    *,
    count: int = 240,
    seed: int = 7,
    say: Callable[[str], None] = lambda _: None,
) -> Measures:
    """Load the model of a folder (offline) and measure it on the CPU."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    model.train(False)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    places = torch.tensor([vocabulary[place] for place in PLACES])

    def ids(text: str) -> list[int]:
        encoded: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return encoded

    def text(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=False))

    examples = held_out_examples(modules, count, seed, FULL.sequence_max, lambda text: len(ids(text)))
    examples.sort(key=lambda e: len(e.prompt))
    hits = dict.fromkeys(["line_at_1", "line_at_3", "fix_at_1", "fix_at_10", "joint_at_1", "joint_at_10"], 0)
    by_kind: dict[str, tuple[int, int, int]] = {}
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        prompts = [ids(e.prompt) for e in batch]
        ranked = _ranked_places(model, prompts, places, vocabulary[PAD])
        given = [
            [*prompt, vocabulary[place_token(e.place)]] for prompt, e in zip(prompts, batch, strict=True)
        ]
        with_place = _beams(model, given, vocabulary)
        free = _beams(model, prompts, vocabulary)
        for row, example in enumerate(batch):
            wanted = parse_answer(example.answer)
            fixes = [parse_answer(place_token(example.place) + text(answer)) for answer in with_place[row]]
            joint = [parse_answer(text(answer)) for answer in free[row]]
            first = ranked[row][0] == example.place
            hits["line_at_1"] += first
            hits["line_at_3"] += example.place in ranked[row][:3]
            hits["fix_at_1"] += isinstance(wanted, Answer) and fixes[0] == wanted
            hits["fix_at_10"] += wanted in fixes
            hits["joint_at_1"] += joint[0] == wanted
            hits["joint_at_10"] += wanted in joint
            n, lines, solved = by_kind.get(example.kind, (0, 0, 0))
            by_kind[example.kind] = (n + 1, lines + first, solved + (wanted in joint))
        say(f"{start + len(batch)} of {len(examples)}: {hits}")
    shares = {name: wilson(hit, len(examples)) for name, hit in hits.items()}
    return Measures(examples=len(examples), by_kind=dict(sorted(by_kind.items())), **shares)


def _padded(prompts: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded tokens and their mask."""
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return tokens, mask


def _ranked_places(
    model: torch.nn.Module, prompts: list[list[int]], places: torch.Tensor, pad: int
) -> list[list[int]]:
    """Places of each prompt, likeliest first."""
    tokens, mask = _padded(prompts, pad)
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=mask, logits_to_keep=1).logits[:, -1, :]
    ranked: list[list[int]] = logits[:, places].argsort(dim=-1, descending=True, stable=True).tolist()
    return ranked


def _beams(
    model: torch.nn.Module, prompts: list[list[int]], vocabulary: dict[str, int]
) -> list[list[list[int]]]:
    """Ten completions of each prompt, likeliest first, without `<end>` and padding."""
    tokens, mask = _padded(prompts, vocabulary[PAD])
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]  # of a mixin
    with torch.no_grad():
        made = generate(
            input_ids=tokens,
            attention_mask=mask,
            num_beams=BEAMS,
            num_return_sequences=BEAMS,
            max_new_tokens=_NEW_TOKENS_MAX,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=True,
            eos_token_id=vocabulary[END],
            pad_token_id=vocabulary[PAD],
        )
    dropped = {vocabulary[END], vocabulary[PAD]}
    answers = [[t for t in row[tokens.shape[1] :].tolist() if t not in dropped] for row in made]
    return [answers[i * BEAMS : (i + 1) * BEAMS] for i in range(len(prompts))]
