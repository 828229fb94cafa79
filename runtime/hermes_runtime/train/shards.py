"""Examples as numbers on disk: one shard for each package, made once and then memory-mapped.

`<package>.tokens` holds uint16 tokens end to end, `<package>.index.npy` one row for each example:
offset, length, start of the answer (its place token), whether the place is trained, edit kind (-1:
none). A shard appears whole, by rename; what is there is not made again. The number of workers
changes no byte.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from hermes_runtime.agents.edits import EditKind
from hermes_runtime.train.examples import Example, examples_of, function_keys, plain_functions
from hermes_runtime.train.recipe import Recipe
from hermes_runtime.train.sources import (
    VALIDATION,
    Module,
    modules_of_archive,
    modules_of_stdlib,
    package_of,
)
from hermes_runtime.train.tokenizer import train_tokenizer

Index = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.uint16]

_KINDS = tuple(EditKind)
_TOKENIZER_TEXTS_MAX = 40_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a package's modules come from."""

    package: str
    archive: Path | None
    """None: the standard library."""

    def modules(self, modules_max: int) -> list[Module]:
        found = modules_of_stdlib() if self.archive is None else modules_of_archive(self.archive)
        modules = list(found)
        if modules_max and len(modules) > modules_max:
            step = len(modules) / modules_max
            modules = [modules[int(i * step)] for i in range(modules_max)]
        return modules


@dataclass(slots=True)
class Shards:
    """All examples of one side (training or validation), as one index over many files."""

    tokens: list[Tokens] = field(default_factory=list)
    index: Index = field(default_factory=lambda: np.zeros((0, 6), dtype=np.int64))
    """Columns: shard, offset, length, answer start, place trained, kind."""

    def __len__(self) -> int:
        return len(self.index)

    def example(self, number: int) -> Tokens:
        """Tokens of prompt and answer."""
        shard, offset, length = (int(x) for x in self.index[number, :3])
        return self.tokens[shard][offset : offset + length]


def sources_in(archives: Path | None) -> list[Source]:
    """The standard library, then the archives by name."""
    found = [Source(package="stdlib", archive=None)]
    if archives is not None:
        for archive in sorted(archives.iterdir()):
            found.append(Source(package=package_of(archive), archive=archive))
    return found


def make_shards(
    sources: list[Source],
    excluded: Iterable[Path],
    recipe: Recipe,
    folder: Path,
    workers: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, int]:
    """Make what is missing of the tokenizer and the shards; return the counts (also in counts.json).

    Functions that also occur in an `excluded` archive, or in a package before, are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts_file = folder / "counts.json"
    if counts_file.is_file():
        found: dict[str, int] = json.loads(counts_file.read_text())
        return found
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        say("tokenizer")
        tokenizer = train_tokenizer(_texts(sources, recipe), recipe.vocabulary)
        _write_whole(tokenizer_file, tokenizer.to_str().encode())
    kept_out: set[str] = set()
    for archive in sorted(excluded):
        for module in modules_of_archive(archive, keep_excluded=True):
            kept_out.update(function_keys(module))
    say(f"{len(kept_out)} functions of excluded packages kept out")
    # validation packages first: what they have, training may not
    ordered = sorted(sources, key=lambda s: (s.package not in VALIDATION, s.package))
    before = dict.fromkeys(kept_out, "excluded")
    counts = {"excluded_functions": len(kept_out), "dropped_as_excluded": 0, "dropped_as_copy": 0}
    jobs = []
    for source in ordered:
        modules = source.modules(recipe.modules_max)
        owned: set[str] = set()
        for module in modules:
            for key in function_keys(module):
                owner = before.get(key)
                if owner == "excluded":
                    counts["dropped_as_excluded"] += 1
                elif owner is not None:
                    counts["dropped_as_copy"] += 1
                elif len(owned) < recipe.functions_per_package_max:
                    before[key] = source.package
                    owned.add(key)
        jobs.append(_Job(source=source, recipe=recipe, folder=folder, keys=frozenset(owned)))
        counts["functions"] = counts.get("functions", 0) + len(owned)
    say(f"{counts['functions']} functions of {len(jobs)} sources")
    for package, examples, tokens in _map(_make_shard, jobs, workers):
        side = "validation" if package in VALIDATION else "training"
        counts[f"{side}_examples"] = counts.get(f"{side}_examples", 0) + examples
        counts[f"{side}_tokens"] = counts.get(f"{side}_tokens", 0) + tokens
        say(f"{package}: {examples} examples, {tokens} tokens")
    _write_whole(counts_file, (json.dumps(counts, sort_keys=True) + "\n").encode())
    return counts


def read_shards(folder: Path, validation: bool) -> Shards:
    """The shards of one side, memory-mapped, by package name."""
    shards = Shards()
    parts = []
    for number, file in enumerate(
        f for f in sorted(folder.glob("*.tokens")) if (f.stem in VALIDATION) is validation
    ):
        size = file.stat().st_size
        shards.tokens.append(np.memmap(file, dtype=np.uint16, mode="r") if size else np.zeros(0, np.uint16))
        index = np.load(file.with_suffix(".index.npy"))
        parts.append(np.column_stack([np.full(len(index), number, dtype=np.int64), index]))
    if parts:
        shards.index = np.concatenate(parts)
    return shards


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    source: Source
    recipe: Recipe
    folder: Path
    keys: frozenset[str]


def _map(
    work: Callable[[_Job], tuple[str, int, int]], jobs: list[_Job], workers: int
) -> Iterator[tuple[str, int, int]]:
    if workers <= 1:
        yield from map(work, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(work, jobs)


def _make_shard(job: _Job) -> tuple[str, int, int]:
    tokens_file = job.folder / f"{job.source.package}.tokens"
    index_file = tokens_file.with_suffix(".index.npy")
    if tokens_file.is_file() and index_file.is_file():
        return job.source.package, len(np.load(index_file)), tokens_file.stat().st_size // 2
    tokenizer = Tokenizer.from_file(str(job.folder / "tokenizer.json"))
    done: set[str] = set()
    rows: list[list[int]] = []
    pieces: list[Tokens] = []
    offset = 0
    for module in job.source.modules(job.recipe.modules_max):
        free = job.keys - done
        batch = list(examples_of(module, job.recipe, free))
        done.update(example.function_key for example in batch)
        for example, tokens, answer_start in encode(tokenizer, batch):
            if len(tokens) > job.recipe.sequence_max:
                continue
            kind = _KINDS.index(EditKind(example.kind)) if example.kind else -1
            rows.append([offset, len(tokens), answer_start, int(example.is_defect), kind])
            pieces.append(tokens)
            offset += len(tokens)
    joined = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.uint16)
    index = np.array(rows, dtype=np.int64).reshape(-1, 5)
    partial = index_file.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, index)
    partial.replace(index_file)
    _write_whole(tokens_file, joined.astype("<u2").tobytes())
    return job.source.package, len(index), len(joined)


def encode(tokenizer: Tokenizer, examples: list[Example]) -> Iterator[tuple[Example, Tokens, int]]:
    """Each example with its tokens and where its answer starts."""
    prompts = tokenizer.encode_batch([e.prompt for e in examples])
    answers = tokenizer.encode_batch([e.answer for e in examples])
    for example, prompt, answer in zip(examples, prompts, answers, strict=True):
        yield example, np.array(prompt.ids + answer.ids, dtype=np.uint16), len(prompt.ids)


def _texts(sources: list[Source], recipe: Recipe) -> Iterator[str]:
    each = max(50, _TOKENIZER_TEXTS_MAX // max(1, len(sources)))
    for source in sources:
        taken = 0
        for module in source.modules(recipe.modules_max):
            for text in plain_functions(module):
                yield text
                taken += 1
            if taken >= each:
                break


def _write_whole(file: Path, data: bytes) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(data)
    partial.replace(file)
