"""The engine against transformers' own ways to serve many requests, on one random model, in one run.

    python -m bench.engine                       # a Llama of 39M parameters, as the gates are stated for
    python -m bench.engine --size small --repeats 1
    python -m bench.engine --only ragged kills

Prints a Markdown table of ratios. Each is the median over `--repeats` rounds of what it compares, run by
turns in one process, so that a busy machine slows both. Outputs are compared with plain `generate`'s.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime.models import Backend, ModelSpec, tree
from hermes_runtime.models.engine.engine import Engine
from hermes_runtime.models.engine.prefix import PrefixTree
from hermes_runtime.models.engine.schedule import Limits
from hermes_runtime.models.engine.slots import Snapshot
from hermes_runtime.models.engine.task import Branch, Level, Task
from hermes_runtime.models.instances import Event, PortableMultiInstanceManager
from hermes_runtime.models.roster import Budgets
from hermes_runtime.models.stepping import Token
from tests.contract import tiny_model

SIZES = {
    "39M": {"vocab_size": 16384, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
    "small": {"vocab_size": 4096, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4},
}
SLOTS = 16
CACHE_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A greedy request."""

    prompt: tuple[int, ...]
    steps: int


Answers = list[tuple[int, ...]]


class Bench:
    """The model, three times: as it is, for continuous batching, and for the engine."""

    def __init__(self, given: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.given = given
        self.vocabulary = SIZES[given.size]["vocab_size"]
        self.dtype = torch.bfloat16 if given.dtype == "bfloat16" else torch.float32
        self.plain, self.theirs, self.ours = (self.model() for _ in range(3))
        for model in (self.theirs, self.ours):
            model.load_state_dict(self.plain.state_dict())

    def model(self) -> LlamaForCausalLM:
        """A random one, with a configuration of its own: each way to serve changes it."""
        sizes = SIZES[self.given.size]
        config = LlamaConfig(
            vocab_size=sizes["vocab_size"],
            hidden_size=sizes["hidden_size"],
            intermediate_size=sizes["intermediate_size"],
            num_hidden_layers=sizes["num_hidden_layers"],
            num_attention_heads=8,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            eos_token_id=None,
            bos_token_id=None,
            pad_token_id=None,
        )
        made = LlamaForCausalLM(config)
        torch.nn.Module.to(made, self.dtype)
        made.train(False)
        return made

    def words(self, rng: random.Random, count: int) -> tuple[int, ...]:
        """Random tokens."""
        return tuple(rng.randrange(1, self.vocabulary) for _ in range(count))

    # Ways to answer.

    @torch.inference_mode()
    def sequential(self, asks: Sequence[Ask]) -> Answers:
        """Plain `generate`, one after another."""
        return [self._generated([ask.prompt], ask.steps)[0] for ask in asks]

    @torch.inference_mode()
    def static(self, asks: Sequence[Ask], width: int = 8) -> Answers:
        """Plain `generate`, padded, `width` at a time."""
        found: Answers = []
        for at in range(0, len(asks), width):
            some = asks[at : at + width]
            rows = self._generated([ask.prompt for ask in some], max(ask.steps for ask in some))
            found += [row[: ask.steps] for row, ask in zip(rows, some, strict=True)]
        return found

    def _generated(self, prompts: Sequence[Sequence[int]], steps: int) -> Answers:
        wide = max(map(len, prompts))
        ids = torch.tensor([[0] * (wide - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (wide - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        found = self.plain.generate(  # type: ignore[misc]  # transformers is half typed
            ids, attention_mask=mask, max_new_tokens=steps, do_sample=False, pad_token_id=0
        )
        return [tuple(row) for row in found[:, wide:].tolist()]

    def continuous(self, asks: Sequence[Ask]) -> Answers:
        """Transformers' own continuous batching, with sharing on."""
        settings = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=1)
        pages = 2 + sum(-(-(len(ask.prompt) + ask.steps) // 256) for ask in asks)
        sizes = ContinuousBatchingConfig(num_blocks=pages, max_batch_tokens=512, auto_switch_to_flash=False)
        answers: dict[str, tuple[int, ...]] = {}
        with self.theirs.continuous_batching_context_manager(
            generation_config=settings, continuous_batching_config=sizes, warmup=False
        ) as manager:
            for number, ask in enumerate(asks):
                manager.add_request(list(ask.prompt), request_id=str(number), max_new_tokens=ask.steps)
            while len(answers) < len(asks):
                result = manager.get_result(timeout=60)
                if result is not None and len(result.generated_tokens):
                    if result.error:
                        raise RuntimeError(result.error)
                    answers[result.request_id] = tuple(result.generated_tokens)
        return [answers[str(number)] for number in range(len(asks))]

    def engine(self, *, slots: int = SLOTS) -> Engine:
        """A fresh one, its cache empty."""
        limits = Limits(slots=slots)
        kept: PrefixTree[Snapshot] = PrefixTree(
            salt="bench", node_tokens=limits.piece_tokens, bytes_max=CACHE_BYTES
        )
        return Engine(self.ours, limits=limits, tree=kept)

    def served(self, asks: Sequence[Ask], level: Level, engine: Engine | None = None) -> Answers:
        """By the engine."""
        engine = engine or self.engine()
        for number, ask in enumerate(asks):
            engine.take(
                number,
                Task(prompt=ask.prompt, branches=(Branch(),), max_tokens=ask.steps, level=level),
            )
        answers: dict[int, tuple[int, ...]] = {}
        while not engine.is_idle:
            for result in engine.step().results:
                if result.error is not None:
                    raise result.error
                answers[result.number] = result.ended[0].tokens
        return [answers[number] for number in range(len(asks))]

    # Figures.

    def compare(
        self, what: str, asks: Sequence[Ask], ways: dict[str, Callable[[], Answers]], gates: str
    ) -> None:
        """Run all ways by turns, and tell each against the first."""
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        answers: dict[str, Answers] = {}
        for _ in range(self.given.repeats):
            for name, way in ways.items():
                started = time.perf_counter()
                answers[name] = way()
                seconds[name].append(time.perf_counter() - started)
        first = next(iter(ways))
        for name in ways:
            ratio = statistics.median(
                base / own for base, own in zip(seconds[first], seconds[name], strict=True)
            )
            equal = sum(one == other for one, other in zip(answers[name], answers[first], strict=True))
            self.row(
                what, name, f"{ratio:.2f}", f"{equal}/{len(asks)} equal; {gates if name != first else ''}"
            )

    def row(self, *cells: str) -> None:
        """Print as it comes."""
        print("| " + " | ".join(cells) + " |", flush=True)

    def ragged(self) -> None:
        """32 requests of all lengths."""
        rng = random.Random(1)
        asks = [
            Ask(prompt=self.words(rng, rng.randrange(32, 257)), steps=rng.randrange(8, 129))
            for _ in range(32)
        ]
        ways: dict[str, Callable[[], Answers]] = {
            "sequential": lambda: self.sequential(asks),
            "static, 8 at a time": lambda: self.static(asks),
            "continuous batching": lambda: self.continuous(asks),
            "engine, seeded": lambda: self.served(asks, Level.SEEDED),
            "engine, bitwise": lambda: self.served(asks, Level.BITWISE),
        }
        self.compare("32 ragged requests", asks, ways, "gate: 4 x sequential, 1.8 x continuous")

    def shared(self) -> None:
        """Eight agents that read the same 1,024 tokens first."""
        rng = random.Random(2)
        common = self.words(rng, 1024)
        asks = [Ask(prompt=common + self.words(rng, 48), steps=32) for _ in range(8)]
        ways: dict[str, Callable[[], Answers]] = {
            "sequential": lambda: self.sequential(asks),
            "continuous batching": lambda: self.continuous(asks),
            "engine, seeded": lambda: self.served(asks, Level.SEEDED, self.engine(slots=8)),
            "engine, bitwise": lambda: self.served(asks, Level.BITWISE, self.engine(slots=8)),
        }
        self.compare("8 agents, prefix of 1,024", asks, ways, "gate: 3.5 x sequential, 2 x continuous")

    def first_token(self) -> None:
        """Time to the first token, cold against warm."""
        rng = random.Random(3)
        for length, gate in ((1024, 4), (3072, 8)):
            ratios: list[float] = []
            for _ in range(max(3, self.given.repeats)):
                engine, common = self.engine(slots=8), self.words(rng, length)
                took: list[float] = []
                for _ in range(2):
                    started = time.perf_counter()
                    self.served([Ask(prompt=common + self.words(rng, 48), steps=1)], Level.BITWISE, engine)
                    took.append(time.perf_counter() - started)
                ratios.append(took[0] / took[1])
            self.row(
                f"first token, prefix of {length:,}",
                "cold / warm",
                f"{statistics.median(ratios):.1f}",
                f"gate: {gate}",
            )

    def bitwise(self) -> None:
        """Equal to the last bit of every log probability, alone and under load."""
        rng = random.Random(4)
        asks = [Ask(prompt=self.words(rng, rng.randrange(16, 200)), steps=24) for _ in range(24)]
        for level in (Level.SEEDED, Level.BITWISE):
            engine = self.engine()
            alone = [self._logprobs(engine, [ask], level)[0] for ask in asks]
            together = self._logprobs(self.engine(), asks, level)
            equal = sum(one == other for one, other in zip(alone, together, strict=True))
            gate = "gate: all" if level is Level.BITWISE else ""
            self.row("alone and under load", f"engine, {level.name.lower()}", f"{equal}/{len(asks)}", gate)

    def _logprobs(
        self, engine: Engine, asks: Sequence[Ask], level: Level
    ) -> list[tuple[tuple[int, ...], float]]:
        for number, ask in enumerate(asks):
            engine.take(
                number, Task(prompt=ask.prompt, branches=(Branch(),), max_tokens=ask.steps, level=level)
            )
        found: dict[int, tuple[tuple[int, ...], float]] = {}
        while not engine.is_idle:
            for result in engine.step().results:
                found[result.number] = (result.ended[0].tokens, result.ended[0].logprob)
        return [found[number] for number in range(len(asks))]

    def kills(self) -> None:
        """Workers killed while they decode: what is lost, doubled or changed, and how soon it is seen."""
        killed: dict[int, float] = {}
        seen: list[float] = []
        decoding: dict[int, int] = {}

        def observe(event: Event) -> None:
            if event.what == "decoded":
                decoding[event.worker] = event.process
            elif event.what == "died":
                decoding.pop(event.worker, None)
                if event.process in killed:
                    seen.append(time.perf_counter() - killed.pop(event.process))

        with tempfile.TemporaryDirectory() as folder:
            spec = ModelSpec(
                backend=Backend.TRANSFORMERS,
                path=tiny_model.write(Path(folder) / "tiny"),
                device="cpu",
                context_tokens=256,
                threads=1,
            )
            requests = [
                pb.GenerateRequest(
                    prompt=pb.Prompt(text=f"def add(a, b): # {number}\n"),
                    search=pb.SEARCH_SAMPLE,
                    n=4,
                    seed=number,
                    max_tokens=150,
                )
                for number in range(24)
            ]
            with PortableMultiInstanceManager() as manager:
                manager.initialize([spec])
                expected = [manager.generate(request) for request in requests]
            wrong = lost = total = 0
            with PortableMultiInstanceManager(
                budgets=Budgets(backoff_seconds=0.01, deaths=1000), observe=observe
            ) as manager:
                manager.initialize([spec])
                while total < self.given.kills:
                    told: list[list[tuple[int, int]]] = [[] for _ in requests]
                    tickets = [
                        manager.submit(request, told_to(own))
                        for request, own in zip(requests, told, strict=True)
                    ]
                    while not all(ticket.future.done() for ticket in tickets):
                        victim = decoding.pop(0, None)
                        if victim is not None and total < self.given.kills:
                            killed[victim] = time.perf_counter()
                            os.kill(victim, signal.SIGKILL)
                            total += 1
                        time.sleep(0.02)
                    for ticket, answer, own in zip(tickets, expected, told, strict=True):
                        found = ticket.result(60)
                        lost += found is None
                        counts = [sum(one == at for one, _ in own) for at in range(4)]
                        wrong += found != answer or counts != [each.tokens for each in answer.completions]
        self.row(
            f"{total} workers killed while decoding",
            "requests lost; answers or told tokens changed",
            f"{lost}; {wrong}",
            f"seen after {1000 * statistics.median(seen):.0f} ms (median), gate: 0; 0; < 50 ms",
        )

    def memory(self) -> None:
        """Proportional share of memory of three workers against three times one's."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            tiny_model.tokenizer().save_pretrained(path)
            self.plain.save_pretrained(path)
            tree.write_manifest(path, source="random")
            spec = ModelSpec(
                backend=Backend.TRANSFORMERS, path=path, device="cpu", context_tokens=512, threads=1
            )
            shares: list[float] = []
            for count in (1, 3):
                managers = [PortableMultiInstanceManager(observe=self._started) for _ in range(count)]
                self.processes: list[int] = []
                for manager in managers:
                    manager.initialize([spec])
                    manager.score(pb.ScoreRequest(prompt=pb.Prompt(text="x"), continuations=["y"]))
                shares.append(sum(_pss_bytes(process) for process in self.processes))
                for manager in managers:
                    manager.shutdown()
        self.row(
            "memory of 3 workers", "PSS / 3 x PSS of one", f"{shares[1] / (3 * shares[0]):.2f}", "gate: 0.55"
        )

    def _started(self, event: Event) -> None:
        if event.what == "started":
            self.processes.append(event.process)


def told_to(own: list[tuple[int, int]]) -> Callable[[Token], None]:
    """What writes down the tokens of one request."""
    return lambda token: own.append((token.completion, token.token))


def _pss_bytes(process: int) -> int:
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:")))


def main() -> None:
    """Measure and print."""
    figures = ("ragged", "shared", "first_token", "bitwise", "kills", "memory")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="39M")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=figures, default=figures)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bench = Bench(given)
    print(f"{given.size}, {given.dtype}, {given.threads} threads, {SLOTS} slots, torch {torch.__version__}\n")
    print("| What | How | Ratio | |")
    print("|---|---|---|---|")
    for name in given.only:
        getattr(bench, name)()


if __name__ == "__main__":
    main()
