"""How the model learns: steps, learning rate, checkpoints, a line of progress, exact resume.

A step is a pure function of the recipe, the shards and the weights before it, so a run that was
killed and resumed ends with the weights of one that was not (same machine, same threads; with
`recipe.steps` set: a schedule by minutes follows the clock). Runs on cpu and cuda.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hermes_runtime.agents.prompts.line_repair import END, PAD, PLACES
from hermes_runtime.errors import BadInput
from hermes_runtime.train.batches import Batch, Batches, assemble
from hermes_runtime.train.muon import Muon
from hermes_runtime.train.recipe import Recipe
from hermes_runtime.train.shards import Shards


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is."""

    step: int
    tokens: int
    """Trained on, without padding."""
    elapsed_seconds: float
    """Of training, over all starts."""


def new_model(recipe: Recipe, vocabulary: Mapping[str, int]) -> LlamaForCausalLM:
    """The untrained model, float32, drawn from the recipe's seed."""
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[PAD],
        dtype="float32",
    )
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(config)
    torch.nn.Module.to(model, torch.float32)
    return model


def train(
    model: LlamaForCausalLM,
    training: Shards,
    validation: Shards,
    place_ids: list[int],
    recipe: Recipe,
    folder: Path,
    *,
    minutes: float = 0.0,
    device: str = "cpu",
    autocast: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Progress:
    """Train in place, from the checkpoint in `folder` where there is one. Appends to `log.jsonl`.

    Ends after `recipe.steps`, or after `minutes` where that is 0. BadInput if neither is set or the
    shards are empty.
    """
    if not recipe.steps and not minutes:
        raise BadInput("neither steps nor minutes are set: training would not end; give minutes > 0")
    if not len(training):
        raise BadInput("no training examples; make the shards from at least one source")
    folder.mkdir(parents=True, exist_ok=True)
    torch.nn.Module.to(model, device)
    model.train()
    optimizers = _optimizers(model, recipe)
    batches = Batches(training, recipe)
    checkpoint = folder / "checkpoint.pt"
    step, tokens, before_seconds = 0, 0, 0.0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, tokens, before_seconds = saved["step"], saved["tokens"], saved["elapsed_seconds"]
        say(f"resumed at step {step}")
    started = time.monotonic()
    last_saved = started
    recent: list[tuple[float, float]] = []
    seen_tokens, seen_at = tokens, started

    def elapsed() -> float:
        return before_seconds + time.monotonic() - started

    def done() -> float:
        """Share of the run that is behind us."""
        return step / recipe.steps if recipe.steps else elapsed() / (60.0 * minutes)

    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:

        def note(line: dict[str, object]) -> None:
            text = json.dumps(
                {"step": step, "tokens": tokens, "elapsed_seconds": round(elapsed(), 1), **line}
            )
            log.write(text + "\n")
            log.flush()
            say(text)

        while done() < 1.0:
            rate = learning_rate(done(), step, recipe)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            batch = batches.batch(step)
            loss, answer_loss = _losses(model, batch, device, autocast)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step += 1
            tokens += batch.size_tokens
            recent.append((float(loss.detach()), float(answer_loss)))
            if step % recipe.log_every_steps == 0 or (recipe.steps and step == recipe.steps):
                now = time.monotonic()
                mean, answer = np.mean(recent, axis=0)
                note(
                    {
                        "loss": round(float(mean), 4),
                        "answer_loss": round(float(answer), 4),
                        "learning_rate": round(rate, 6),
                        "tokens_per_second": round((tokens - seen_tokens) / max(now - seen_at, 1e-9)),
                        "done": round(done(), 4),
                    }
                )
                recent, seen_tokens, seen_at = [], tokens, now
            if step % recipe.validate_every_steps == 0 and len(validation):
                note({"validation": validate(model, validation, place_ids, recipe, device, autocast)})
                seen_tokens, seen_at = tokens, time.monotonic()
            if time.monotonic() - last_saved >= recipe.checkpoint_every_seconds:
                _save(
                    checkpoint,
                    model,
                    optimizers,
                    Progress(step=step, tokens=tokens, elapsed_seconds=elapsed()),
                )
                last_saved = time.monotonic()
        progress = Progress(step=step, tokens=tokens, elapsed_seconds=elapsed())
        _save(checkpoint, model, optimizers, progress)
        if len(validation):
            note(
                {"validation": validate(model, validation, place_ids, recipe, device, autocast), "end": True}
            )
    return progress


def learning_rate(done: float, step: int, recipe: Recipe) -> float:
    """Linear warm-up over steps, then a cosine over the share done, to 2 % of the peak."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    return recipe.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))))


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms' vectors."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers." in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers." not in name]
    return (
        Muon(inner, lr=recipe.learning_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(outer, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    )


def _logits(model: LlamaForCausalLM, batch: Batch, device: str, autocast: bool) -> torch.Tensor:
    """(N, V) float32, at the batch's positions only: the head is the dearest layer of a small model."""
    with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
        hidden = model.model(input_ids=batch.tokens.to(device), use_cache=False).last_hidden_state
        chosen = hidden.reshape(-1, hidden.shape[-1])[batch.positions.to(device)]
        logits: torch.Tensor = model.lm_head(chosen)
    return logits.float()


def _losses(
    model: LlamaForCausalLM, batch: Batch, device: str, autocast: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean loss, and the mean loss of the answers alone (no gradient)."""
    each = torch.nn.functional.cross_entropy(
        _logits(model, batch, device, autocast), batch.targets.to(device), reduction="none"
    )
    weights = batch.weights.to(device)
    with torch.no_grad():
        answers = weights >= 1.0
        answer_loss = each[answers].mean()
    return (each * weights).sum() / weights.sum(), answer_loss


def validate(
    model: LlamaForCausalLM,
    shards: Shards,
    place_ids: list[int],
    recipe: Recipe,
    device: str = "cpu",
    autocast: bool = False,
) -> dict[str, float]:
    """Shares on defects of held-out packages, all by greedy decoding.

    `line_at_1`, `line_at_3`: the place is first, among the first three. `fix_at_1`: the line is right
    given the place. `joint_at_1`: both. Greedy decoding gives the answer exactly where each token of
    it is the likeliest after those before, so one forward pass is enough.
    """
    defects = np.flatnonzero(shards.index[:, 4] == 1)
    rng = np.random.default_rng([recipe.seed, 2])
    chosen = rng.permutation(defects)[: recipe.validation_examples]
    chosen = chosen[np.argsort(shards.index[chosen, 2], kind="stable")]
    places = torch.tensor(place_ids, device=device)
    first = third = fixed = joint = 0
    losses: list[float] = []
    was_training = model.training
    model.train(False)
    with torch.no_grad():
        for start in range(0, len(chosen), 16):
            numbers = chosen[start : start + 16]
            batch = assemble(shards, numbers, recipe, None)
            logits = _logits(model, batch, device, autocast)
            targets = batch.targets.to(device)
            losses += torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
            at = 0
            for number in numbers:
                size = int(shards.index[number, 2] - shards.index[number, 3])
                rows, wanted = logits[at : at + size], targets[at : at + size]
                ranked = places[rows[0][places].argsort(descending=True, stable=True)].tolist()
                place = int(wanted[0])
                is_fixed = bool((rows[1:].argmax(-1) == wanted[1:]).all())
                first += ranked[0] == place
                third += place in ranked[:3]
                fixed += is_fixed
                joint += is_fixed and ranked[0] == place
                at += size
    if was_training:
        model.train()
    count = max(1, len(chosen))
    return {
        "line_at_1": round(first / count, 4),
        "line_at_3": round(third / count, 4),
        "fix_at_1": round(fixed / count, 4),
        "joint_at_1": round(joint / count, 4),
        "answer_loss": round(float(np.mean(losses)), 4) if losses else 0.0,
        "examples": float(len(chosen)),
    }


def _save(
    file: Path, model: LlamaForCausalLM, optimizers: Sequence[torch.optim.Optimizer], progress: Progress
) -> None:
    partial = file.with_suffix(".partial")
    state = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        **asdict(progress),
    }
    torch.save(state, partial)
    partial.replace(file)


def place_ids_of(vocabulary: Mapping[str, int]) -> list[int]:
    """Ids of `<L0>` .. `<L39>`."""
    return [vocabulary[place] for place in PLACES]
