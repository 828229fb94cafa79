"""What a model's weights are, told by the headers of its safetensors files; no tensor is mapped.

Decided here: how many bytes of which type there are, and what they take once loaded. Called by the cache
and before a load.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
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


def bytes_by_dtype(folder: Path) -> dict[str, int]:
    """Bytes of all tensors of the folder's safetensors files, by type. Raises Damaged."""
    held: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, size_bytes in _file(file).items():
            held[name] = held.get(name, 0) + size_bytes
    return held


def loaded_bytes(held: Mapping[str, int], dtype: str) -> int:
    """What weights of these bytes take when their floating point numbers are held as `dtype`.

    "auto": as they are on disk. Other numbers (packed ones, integers) keep their width.
    """
    if dtype == "auto":
        return sum(held.values())
    return sum(
        math.ceil(size_bytes * _BITS[dtype] / _BITS[name]) if name in _BITS else size_bytes
        for name, size_bytes in held.items()
    )


def _file(file: Path) -> dict[str, int]:
    held: dict[str, int] = {}
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > HEADER_BYTES_MAX:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(opened.read(length))
            for name, tensor in header.items():
                if name != "__metadata__":
                    start, end = tensor["data_offsets"]
                    kind = _NAMES.get(tensor["dtype"], str(tensor["dtype"]).lower())
                    held[kind] = held.get(kind, 0) + int(end) - int(start)
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.Damaged(f"{file} is no safetensors file ({error}): fetch the model again") from error
    return held
