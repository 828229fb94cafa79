"""Candidates per second, scores per second and load seconds of a model, against transformers alone.

    python bench/models.py                     # a random Llama of 3.3M parameters
    python bench/models.py --model repair      # a bundled model, or the path of a folder

Prints a Markdown table. Each figure is the median of `--repeats` runs after a warm-up, interleaved with
what it is compared to, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime.models import Backend, ModelSpec, tree
from hermes_runtime.models.instances import PortableMultiInstanceManager
from hermes_runtime.models.transformers_model import TransformersModel

PROMPT_TOKENS = 400
STARTS = 5
COMPLETIONS = 8
DECODED_TOKENS = 20


def random_model(folder: Path) -> Path:
    """A Llama of the bundled model's size with random weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        ["def add(a, b): return a + b"],
        trainers.BpeTrainer(
            special_tokens=["<pad>", "<L0>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tree.write_manifest(folder, source="random")
    return folder


def medians(repeats: int, *each: Callable[[], object]) -> list[float]:
    """Median seconds of each, run by turns."""
    taken: list[list[float]] = [[] for _ in each]
    for turn in range(repeats + 1):
        for at, run in enumerate(each):
            started = time.perf_counter()
            run()
            if turn:
                taken[at].append(time.perf_counter() - started)
    return [statistics.median(seconds) for seconds in taken]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="bundled name or folder; a random one if not given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(tree.resolve(given.model) if given.model else random_model(Path(folder)), given)


def measure(path: Path, given: argparse.Namespace) -> None:
    """Measure the model in `path` and print the table."""
    torch.set_num_threads(given.threads)

    def spec(slots: int) -> ModelSpec:
        return ModelSpec(
            backend=Backend.TRANSFORMERS,
            path=path,
            device="cpu",
            context_tokens=512,
            slots=slots,
            threads=given.threads,
        )

    eight, forty = TransformersModel(spec(8)), TransformersModel(spec(40))
    described = eight.load()
    forty.load()
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    theirs = AutoModelForCausalLM.from_pretrained(path, local_files_only=True).train(False)
    words = "def add(a, b):\n    return a + b\n" * PROMPT_TOKENS
    text = str(tokenizer.decode(tokenizer.encode(words, add_special_tokens=False)[:PROMPT_TOKENS]))
    starts = ["<L0>", "    ", "return", "x", "a + b"]
    request = pb.GenerateRequest(
        prompt=pb.Prompt(text=text),
        prefixes=starts,
        n=COMPLETIONS,
        max_tokens=DECODED_TOKENS,
        search=pb.SEARCH_SAMPLE,
        temperature=0.8,
        seed=1,
    )
    same = pb.GenerateRequest()
    same.CopyFrom(request)
    del same.prefixes[:]
    same.prefixes.extend(["<L0>"] * STARTS)
    continuations = [f"return a + {number}" for number in range(STARTS * COMPLETIONS)]
    scoring = pb.ScoreRequest(prompt=request.prompt, continuations=continuations)

    @torch.inference_mode()
    def generate_theirs() -> None:
        for start in starts:
            prompt = tokenizer(text + start, add_special_tokens=False, return_tensors="pt")
            theirs.generate(
                input_ids=prompt["input_ids"],
                attention_mask=prompt["attention_mask"],
                do_sample=True,
                temperature=0.8,
                top_k=0,
                num_return_sequences=COMPLETIONS,
                max_new_tokens=DECODED_TOKENS,
                pad_token_id=0,
            )

    @torch.inference_mode()
    def score_theirs() -> None:
        for continuation in continuations:
            tokens = tokenizer.encode(text + continuation, add_special_tokens=False)
            theirs(torch.tensor([tokens])).logits.log_softmax(-1)

    generating = medians(
        given.repeats,
        generate_theirs,
        lambda: eight.generate(request),
        lambda: forty.generate(request),
        lambda: forty.generate(same),
    )
    scoring_seconds = medians(
        given.repeats, score_theirs, lambda: eight.score(scoring), lambda: forty.score(scoring)
    )
    started = time.perf_counter()
    with PortableMultiInstanceManager() as manager:
        loaded = manager.initialize([spec(8)])
        ready = time.perf_counter() - started
        (through,) = medians(given.repeats, lambda: manager.generate(request))
    count = STARTS * COMPLETIONS
    print(f"{described.architecture}, {described.parameters:,} parameters, {described.dtype}, ", end="")
    print(f"{given.threads} threads, prompt {PROMPT_TOKENS} tokens, {', '.join(described.software)}\n")
    print("| What | Seconds | Per second | Against transformers |")
    print("|---|---|---|---|")

    def row(what: str, seconds: float, base: float | None) -> None:
        ratio = "" if base is None else f"{base / seconds:.2f}"
        print(f"| {what} | {seconds:.3f} | {count / seconds:.0f} | {ratio} |")

    shape = f"{STARTS} starts x {COMPLETIONS} completions of {DECODED_TOKENS} tokens"
    row(f"{shape}: `model.generate(num_return_sequences={COMPLETIONS})`", generating[0], 1 * generating[0])
    row(f"{shape}: 8 slots", generating[1], generating[0])
    row(f"{shape}: 8 slots, in a worker process", through, generating[0])
    row(f"{shape}: 40 slots", generating[2], generating[0])
    row(f"{shape}, starts of one length: 40 slots", generating[3], generating[0])
    row(f"{count} continuations scored: one forward pass each", scoring_seconds[0], scoring_seconds[0])
    row(f"{count} continuations scored: 8 slots", scoring_seconds[1], scoring_seconds[0])
    row(f"{count} continuations scored: 40 slots", scoring_seconds[2], scoring_seconds[0])
    print(f"| a worker from start to ready | {ready:.2f} | | |")
    print(f"| of that, verifying and loading the model | {loaded.load_seconds:.2f} | | |")


if __name__ == "__main__":
    main()
