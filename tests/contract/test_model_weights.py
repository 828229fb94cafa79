"""Weights onto a device: what fits, what is refused before a byte is mapped, and what came of it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch

from hermes_runtime import errors
from hermes_runtime.models import Backend, ModelSpec, weights
from tests.contract import tiny_model

CPU = torch.device("cpu")
TIB = 2**40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("models") / "tiny")


def spec(folder: Path, **fields: str) -> ModelSpec:
    return ModelSpec(backend=Backend.TRANSFORMERS, path=folder, device="cpu", **fields)  # type: ignore[arg-type]


def test_a_model_larger_than_the_memory_is_refused_before_it_is_read(tmp_path: Path):
    """The file says that it holds 900 TiB, and ends after its header: who reads on fails otherwise."""
    tensor = {"dtype": "BF16", "shape": [450 * TIB // 2**20, 2**20], "data_offsets": [0, 900 * TIB]}
    header = json.dumps({"model.layers.0.mlp.up_proj.weight": tensor}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(errors.Exhausted, match=r"take 921600\.00 GiB .* are free on cpu: .* are missing"):
        weights.load(spec(tmp_path), CPU)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_held_is_told_by_the_tensors_themselves(folder: Path, dtype: str):
    model = weights.load(spec(folder, dtype=dtype), CPU)
    found = weights.held(model)
    buffers = sum(each.numel() * each.element_size() for each in model.buffers())
    assert found == weights.Held(
        quantization="none",
        dtype=dtype,
        weight_bytes=found.parameters * weights.DTYPES[dtype].itemsize + buffers,
        parameters=sum(each.numel() for each in model.parameters()),
    )


def test_tied_weights_are_counted_once(folder: Path, tmp_path: Path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    tied = weights.held(LlamaForCausalLM(config))
    config.tie_word_embeddings = False
    apart = weights.held(LlamaForCausalLM(config))
    assert apart.weight_bytes - tied.weight_bytes == 64 * 16 * 4
