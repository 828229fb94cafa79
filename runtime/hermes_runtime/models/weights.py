"""A model's weights, from its folder onto one device: in which type, quantized or not, and what came of it.

Decided here: how each quantization is asked for, that weights which do not fit are refused before any of
them is mapped, and that a model which came out other than asked for is refused. What platforms can do is
`platform.py`'s; the files were verified by the caller. Called in the model's process.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hermes_runtime import errors
from hermes_runtime.models import ModelSpec, tensors
from hermes_runtime.models.memory import check_room, free_bytes_of_host

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NF4_ROWS = 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a loaded model is, told by its own tensors and not by what was asked for."""

    quantization: str
    dtype: str
    """Type of the weights that are not quantized."""
    weight_bytes: int
    """All of them, with the scales of quantized ones."""
    parameters: int
    """Numbers that the model has, however they are packed."""


def load(spec: ModelSpec, device: torch.device) -> PreTrainedModel:
    """The weights of `spec.path` on `device`.

    Raises:
        BadInput: no such type or quantization.
        Unsupported: the package that quantizes is missing, or nothing was quantized.
        Exhausted: the weights do not fit into what is free; says how much is missing.
    """
    if spec.dtype not in (*DTYPES, "auto"):
        raise errors.BadInput(f"dtype {spec.dtype!r} is none of auto, {', '.join(DTYPES)}")
    asked = _quantization(spec, device)
    free_bytes = _free_bytes(device)
    if free_bytes is not None:
        check_room(
            tensors.stored(spec.path),
            dtype=spec.dtype,
            quantization=spec.quantization,
            free_bytes=free_bytes,
            where=str(device),
        )
    placed = {} if asked is None else {"device_map": {"": device}}
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        spec.path,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=DTYPES.get(spec.dtype, "auto"),
        quantization_config=asked,
        **placed,
    )
    if not placed:
        nn.Module.to(model, device)
    found = held(model).quantization
    if found != spec.quantization:
        why = "its files are" if spec.quantization == "none" else "its matrices can be"
        raise errors.Unsupported(
            f"quantization {spec.quantization} was asked for, and the model came out as {found}, which is "
            f"all that {why}: set spec.model.quantization to {found}"
        )
    if device.type == "cpu":
        _check_rows(model)
    return model


def _check_rows(model: PreTrainedModel) -> None:
    """bitsandbytes packs 4-bit matrices by NF4_ROWS rows on a CPU with AVX-512, and ends at any others."""
    for name, module in model.named_modules():
        rows = getattr(module, "out_features", 0)
        if _quantized_as(module) == "nf4" and rows % NF4_ROWS:
            raise errors.Unsupported(
                f"nf4 on a CPU wants matrices with a multiple of {NF4_ROWS} rows, and {name} has {rows}: "
                "set spec.model.quantization to int8 or none"
            )


def held(model: PreTrainedModel) -> Held:
    """What `model` really is."""
    kinds = {kind for module in model.modules() if (kind := _quantized_as(module))}
    plain = [each for each in model.parameters() if each.is_floating_point()]
    by_dtype: dict[torch.dtype, int] = {}
    for each in plain:
        by_dtype[each.dtype] = by_dtype.get(each.dtype, 0) + each.numel() * each.element_size()
    most = max(by_dtype, key=lambda dtype: by_dtype[dtype], default=model.dtype)
    sizes = {(each.data_ptr(), each.numel()): each.numel() * each.element_size() for each in _tensors(model)}
    return Held(
        quantization="+".join(sorted(kinds)) or "none",
        dtype=str(most).removeprefix("torch."),
        weight_bytes=sum(sizes.values()),
        parameters=model.num_parameters(),
    )


def _quantized_as(module: nn.Module) -> str:
    """ "nf4", "int8" or another name of what bitsandbytes made of `module`; "" if it is plain."""
    match type(module).__name__:
        case "Linear4bit":
            return str(getattr(module.weight, "quant_type", "4 bits"))
        case "Linear8bitLt":
            return "int8"
        case _:
            return ""


def _tensors(model: PreTrainedModel) -> Iterator[Tensor]:
    """Parameters and buffers, and the scales that bitsandbytes keeps beside them."""
    yield from model.buffers()
    for each in model.parameters():
        yield each
        scales = getattr(each, "SCB", None)
        if isinstance(scales, Tensor):
            yield scales
        state = getattr(each, "quant_state", None)
        while state is not None:  # double quantization: the scales have scales
            yield from (value for value in vars(state).values() if isinstance(value, Tensor))
            state = getattr(state, "state2", None)


def _free_bytes(device: torch.device) -> int | None:
    """Free memory of the device; None where nothing tells it."""
    match device.type:
        case "cpu":
            return free_bytes_of_host()
        case "cuda":
            return int(torch.cuda.mem_get_info(device)[0])
        case "xpu":
            return int(torch.xpu.mem_get_info(device)[0])
        case _:
            return None


def _quantization(spec: ModelSpec, device: torch.device) -> object:
    if spec.quantization == "none":
        return None
    if spec.quantization not in ("int8", "nf4"):
        raise errors.BadInput(f"quantization {spec.quantization!r} is none of none, int8, nf4")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise errors.Unsupported(
            f"quantization {spec.quantization} needs the package bitsandbytes: install it, or set "
            "spec.model.quantization to none"
        )
    from transformers import BitsAndBytesConfig

    if spec.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]  # half typed
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # half typed
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES.get(spec.dtype) or _compute_dtype(device),
    )


def _compute_dtype(device: torch.device) -> torch.dtype:
    """What 4 bits are unpacked to for computing: bfloat16, but where a GPU has no unit for it."""
    if (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) < (8, 0)
    ):
        return torch.float16
    return torch.bfloat16
