"""The model port: one model on one device, behind one small set of calls.

    tree.py             a model's folder: its manifest, verified before any byte is mapped
    pull.py             a model from the Hub by its commit, into such a folder
    cache.py            the models of this machine: listed, found by name, removed
    tensors.py          what the weights' files say of themselves: types and bytes
    weights.py          weights onto a device, quantized or not, and what really came of it
    memory.py           whether they fit into what is free
    platform.py         which types and quantizations a platform is good for: the table
    probe.py            what this host really can, tried in processes of their own (probe_trial.py)
    environment.py      the child's environment: offline, one device, no telemetry, no hub kernels
    transformers_model.py  AutoModelForCausalLM from a local folder
    scripted.py         answers from a script, for tests and for users' tests
    engine/             many requests computed together, each as if alone
    stepping.py         what a worker drives: a model moved on step by step
    worker.py           one process that holds one model; frames over a socket pair
    instances.py        PortableMultiInstanceManager: workers started, watched, restarted
    service.py          the port over gRPC (`hermes model serve`)
    client.py           the port as an agent sees it, over gRPC, with the cost of each call

Requests and answers are the messages of hermes.model.v1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from hermes.model.v1 import model_pb2 as pb


class Backend(StrEnum):
    """What runs a model."""

    TRANSFORMERS = "transformers"
    SCRIPTED = "scripted"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What to load, and how. Serializable as JSON (`worker.py` receives it so)."""

    backend: Backend
    path: Path
    """Folder with the model (transformers), or the script file (scripted)."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "mps" or "xpu"."""
    dtype: str = "auto"
    """"auto": the type of the weights on disk; else "float32", "bfloat16", "float16"."""
    quantization: str = "none"
    context_tokens: int = 2048
    """Longest prompt plus completion asked for; Unsupported if the model's own is shorter."""
    slots: int = 8
    """Most completions decoded at once; a wider request is decoded in slices, with equal results."""
    prefix_cache_bytes: int = 256 * 2**20
    """Memory for prompts already computed, so that another with the same start is not again; 0: none."""
    threads: int = 0
    """CPU threads of the worker; 0: one for a small model, else what torch chooses."""


class Model(Protocol):
    """A loaded model. Not thread-safe: one call at a time.

    Errors: ContextTooShort (prompt + max_tokens over the context; says both numbers), BadInput,
    Exhausted (out of memory for this request; the model stays usable).
    """

    def load(self) -> pb.DescribeResponse:
        """Verify every file, then load. Raises NotFound, Damaged, Unsupported."""
        ...

    def describe(self) -> pb.DescribeResponse:
        """What was really loaded."""
        ...

    def count_tokens(self, request: pb.CountTokensRequest) -> pb.CountTokensResponse:
        """Tokens of each text, as `generate` would count it in a prompt."""
        ...

    def generate(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        """Completions; a pure function of the request."""
        ...

    def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """Log probabilities of continuations, the prompt computed once."""
        ...
