"""What a model's weights are, told by the headers of its safetensors files; no tensor is mapped.

Decided here: how many bytes of which type there are, and what they take once loaded. Called by the cache
and before a load.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hermes_runtime import errors

HEADER_BYTES_MAX = 100_000_000
"""The format's own limit."""

_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8",
    "F8_E5M2": "float8",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_BITS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16}
_QUANTIZED_BITS = {"int8": 8, "nf4": 4}
_NF4_SCALES_BITS = 8 / 64 + 32 / (64 * 256)
"""For each number: a byte for 64 of them and, with double quantization, a float for 256 such bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor in a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def is_linear(self) -> bool:
        """Whether a quantization takes it: a matrix that is neither an embedding nor the output layer."""
        spared = ("embed", "lm_head", "wte", "wpe")
        return len(self.shape) == 2 and not any(word in self.name for word in spared)


def stored(folder: Path) -> list[Stored]:
    """All tensors of the folder's safetensors files. Raises Damaged."""
    return [each for file in sorted(folder.glob("*.safetensors")) for each in _file(file)]


def bytes_by_dtype(held: Sequence[Stored]) -> dict[str, int]:
    """Bytes of the tensors, by type."""
    found: dict[str, int] = {}
    for each in held:
        found[each.dtype] = found.get(each.dtype, 0) + each.size_bytes
    return found


def loaded_bytes(held: Sequence[Stored], *, dtype: str, quantization: str) -> int:
    """What the tensors take once loaded: an estimate where they are quantized.

    `dtype` "auto" leaves floating point numbers as they are; other numbers always keep their width.
    """
    return sum(math.ceil(_loaded_bits(each, dtype, quantization) / 8) for each in held)


def _loaded_bits(each: Stored, dtype: str, quantization: str) -> float:
    if each.dtype not in _BITS:
        return each.size_bytes * 8
    numbers = each.size_bytes * 8 // _BITS[each.dtype]
    if quantization in _QUANTIZED_BITS and each.is_linear:
        scales = numbers * _NF4_SCALES_BITS if quantization == "nf4" else each.shape[0] * 32
        return numbers * _QUANTIZED_BITS[quantization] + scales
    return numbers * (_BITS[each.dtype] if dtype == "auto" else _BITS[dtype])


def _file(file: Path) -> list[Stored]:
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > HEADER_BYTES_MAX:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(opened.read(length))
        found: list[Stored] = []
        for name, tensor in header.items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                found.append(
                    Stored(
                        name=name,
                        dtype=_NAMES.get(tensor["dtype"], str(tensor["dtype"]).lower()),
                        shape=tuple(int(size) for size in tensor["shape"]),
                        size_bytes=int(end) - int(start),
                    )
                )
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.Damaged(f"{file} is no safetensors file ({error}): fetch the model again") from error
    return found
