"""Quantized weights on this very host: the bundled model and a tiny Llama load, say so, and generate."""

from __future__ import annotations

import importlib.util
import math
import os
from functools import cache
from pathlib import Path

import pytest

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime import errors
from hermes_runtime.models import Backend, ModelSpec
from hermes_runtime.models.instances import PortableMultiInstanceManager
from hermes_runtime.models.transformers_model import TransformersModel
from hermes_runtime.models.tree import resolve
from tests.contract import tiny_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None and not os.environ.get("CI"),
    reason="bitsandbytes is not installed",
)
PROMPT = "def add(a, b):\n    return a + b\n"
CONTINUATIONS = ["    return a\n", "x", "total += item.price\n"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tiny = tiny_model.write(tmp_path_factory.mktemp("models") / "tiny")
    return {"bundled": resolve("repair"), "tiny": tiny}


@cache
def loaded(folder: Path, quantization: str) -> TransformersModel:
    model = TransformersModel(spec(folder, quantization))
    model.load()
    return model


def spec(folder: Path, quantization: str) -> ModelSpec:
    return ModelSpec(
        backend=Backend.TRANSFORMERS,
        path=folder,
        device="cpu",
        quantization=quantization,
        context_tokens=256,
    )


@pytest.mark.parametrize(
    ("which", "quantization"), [("bundled", "int8"), ("bundled", "nf4"), ("tiny", "int8")]
)
def test_a_quantized_model_is_smaller_says_so_and_generates(folders, which: str, quantization: str):
    plain, packed = loaded(folders[which], "none"), loaded(folders[which], quantization)
    told, before = packed.describe(), plain.describe()
    assert (told.quantization, before.quantization) == (quantization, "none")
    assert told.parameters == before.parameters
    assert told.weight_bytes < before.weight_bytes
    assert any(name.startswith("bitsandbytes ") for name in told.software)
    request = pb.GenerateRequest(prompt=pb.Prompt(text=PROMPT), max_tokens=16)
    completion = packed.generate(request).completions[0]
    assert completion.tokens >= 1
    assert packed.generate(request).completions[0].text == completion.text


def test_a_model_whose_matrices_cannot_be_packed_is_refused_and_one_is_named(folders):
    with pytest.raises(errors.Unsupported, match=r"multiple of 32 rows, and model.layers.0.self_attn.q_proj"):
        loaded(folders["tiny"], "nf4")


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_the_bytes_told_are_those_of_the_matrices_packed_and_of_the_rest_as_it_was(
    folders, quantization: str
):
    """Of the bundled model: what is spared keeps its bytes, the rest has 1 or about half a byte a number."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folders["bundled"], local_files_only=True)
    linear = sum(
        each.numel()
        for name, each in model.named_parameters()
        if each.dim() == 2 and "embed" not in name and "lm_head" not in name
    )
    spared = loaded(folders["bundled"], "none").describe().weight_bytes - 4 * linear
    packed = loaded(folders["bundled"], quantization).describe().weight_bytes - spared
    each = {"int8": 1.0, "nf4": 0.5}[quantization]
    assert each * linear <= packed <= each * linear * 1.15


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantized_model_is_still_about_the_same_model(folders, quantization: str):
    request = pb.ScoreRequest(prompt=pb.Prompt(text=PROMPT), continuations=CONTINUATIONS)
    expected = loaded(folders["bundled"], "none").score(request)
    found = loaded(folders["bundled"], quantization).score(request)
    for a, b, tokens in zip(expected.logprobs, found.logprobs, expected.tokens, strict=True):
        assert math.isfinite(b)
        assert abs(a - b) / tokens < 1.5


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_worker_loads_it_once_the_host_was_found_able(folders, quantization: str, tmp_path: Path):
    environment = os.environ | {"HERMES_CACHE": str(tmp_path)}
    with PortableMultiInstanceManager(environment=environment) as manager:
        assert manager.initialize([spec(folders["bundled"], quantization)]).quantization == quantization
        assert manager.generate(pb.GenerateRequest(prompt=pb.Prompt(text=PROMPT), max_tokens=4)).completions
    assert list((tmp_path / "probes").iterdir())
