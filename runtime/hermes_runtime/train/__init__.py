"""The small local model is made here, from source code alone: `make_model`.

recipe.py     every number
sources.py    whose code; what is kept out
evidence.py   made-up test output
examples.py   functions, defects, answers
tokenizer.py  the byte-level BPE
shards.py     examples as memory-mapped tokens
batches.py    which examples make batch n
loop.py       steps, checkpoints, exact resume
export.py     the shipped folder and its manifest
evaluate.py   how good it is, on packages it never saw
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A model that was made."""

    folder: Path
    tree_sha256: str
    steps: int
    tokens: int
    train_seconds: float
    counts: dict[str, int]
    """Of the data: functions, examples, tokens, what was dropped."""


def make_model(
    out: Path,
    small: bool,
    *,
    work: Path,
    minutes: float = 60.0,
    seed: int = 42,
    steps: int = 0,
    device: str = "cpu",
    threads: int = 0,
    workers: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> Made:
    """Make the shards, train, export to `out`. The same call goes on where a killed one was.

    `small`: a tiny model from a few modules of the standard library, no network, seconds. Otherwise
    the pinned packages are fetched first and training takes `minutes`. `work` keeps archives, shards,
    checkpoint and log; use another folder for another seed or recipe. `steps` > 0 ends after so many.
    """
    # torch and transformers take seconds to import: only whoever makes a model waits for them
    import torch
    from tokenizers import Tokenizer

    from hermes_runtime.train.export import export
    from hermes_runtime.train.loop import new_model, place_ids_of, train
    from hermes_runtime.train.recipe import FULL, SMALL
    from hermes_runtime.train.shards import make_shards, read_shards, sources_in
    from hermes_runtime.train.sources import fetch

    recipe = dataclasses.replace(SMALL if small else FULL, seed=seed)
    if steps:
        recipe = dataclasses.replace(recipe, steps=steps)
    if threads:
        torch.set_num_threads(threads)
    archives, excluded = None, []
    if not small:
        fetch(("packages", "heldout"), work / "archives")
        archives = work / "archives" / "packages"
        excluded = sorted((work / "archives" / "heldout").glob("*.whl"))
    shards = work / "shards"
    counts = make_shards(sources_in(archives), excluded, recipe, shards, workers, say)
    tokenizer = Tokenizer.from_file(str(shards / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    model = new_model(recipe, vocabulary)
    training, validation = read_shards(shards, False), read_shards(shards, True)
    autocast = device == "cuda"
    progress = train(
        model,
        training,
        validation if len(validation) else training,
        place_ids_of(vocabulary),
        recipe,
        work / "run",
        minutes=minutes,
        device=device,
        autocast=autocast,
        say=say,
    )
    digest = export(model, tokenizer, recipe, out)
    return Made(
        folder=out,
        tree_sha256=digest,
        steps=progress.step,
        tokens=progress.tokens,
        train_seconds=progress.elapsed_seconds,
        counts=counts,
    )
