"""Which types and quantizations a platform is good for: a table, and what a trial adds to it.

Decided here: what is the first choice, what is allowed, what is refused, and what is named instead. The
table says what is known of a platform; a trial on the very host (`probe.py`) may only take away from it,
never add: what runs there slower than without it stays refused. Pure. Sources: the documentation of
bitsandbytes 0.50 and of NVIDIA's compute capabilities; on a CPU also our own measurements.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Platform(StrEnum):
    """What computes."""

    CUDA_80 = "CUDA, sm80 and newer"
    CUDA_75 = "CUDA, sm75"
    CUDA_60 = "CUDA, sm60 to sm72"
    ROCM = "ROCm"
    XPU = "Intel XPU"
    MPS = "Apple MPS"
    CPU_X86 = "CPU, x86-64 with AVX2"
    CPU_ARM = "CPU, 64-bit ARM"
    OTHER = "another platform"


class Choice(StrEnum):
    """A type of the weights without quantization, or a quantization."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    INT8 = "int8"
    NF4 = "nf4"

    @property
    def quantization(self) -> str:
        """As spec.model.quantization spells it."""
        return self.value if self in (Choice.INT8, Choice.NF4) else "none"

    @property
    def dtype(self) -> str:
        """As ModelSpec.dtype spells it; the platform's own for a quantization."""
        return "auto" if self in (Choice.INT8, Choice.NF4) else self.value


class Standing(StrEnum):
    """What the table says."""

    FIRST = "first choice"
    ALLOWED = "allowed"
    REFUSED = "refused"


class Result(StrEnum):
    """How a trial ended."""

    OK = "ok"
    WRONG = "wrong"
    """It computed something else than float32 does."""
    REFUSED = "refused"
    """A library said no."""
    CRASHED = "crashed"
    """The process was ended by a signal, or did not end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A cell of the table."""

    standing: Standing
    note: str = ""
    instead: Choice | None = None
    """What to take where it is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A trial on this host."""

    choice: Choice
    result: Result
    detail: str = ""
    """The library's own words, the signal, or how far from float32 it was."""
    seconds: float = 0.0
    weight_bytes: int = 0


_FIRST = Entry(standing=Standing.FIRST)


def _refused(note: str, instead: Choice) -> Entry:
    return Entry(standing=Standing.REFUSED, note=note, instead=instead)


def _row(
    first: Choice, refused: Mapping[Choice, Entry] | None = None, notes: Mapping[Choice, str] | None = None
) -> Mapping[Choice, Entry]:
    row = {choice: Entry(standing=Standing.ALLOWED, note=(notes or {}).get(choice, "")) for choice in Choice}
    return {**row, first: _FIRST, **(refused or {})}


_SLOW_INT8 = {Choice.INT8: "saves memory; decodes at about half the speed"}
_NO_BF16 = _refused("these GPUs have no unit for it", Choice.FLOAT16)
_UNKNOWN = _refused("bitsandbytes is not made for it", Choice.FLOAT32)

MATRIX: Mapping[Platform, Mapping[Choice, Entry]] = {
    Platform.CUDA_80: _row(Choice.BFLOAT16),
    Platform.CUDA_75: _row(Choice.FLOAT16, {Choice.BFLOAT16: _NO_BF16}),
    Platform.CUDA_60: _row(
        Choice.FLOAT16,
        {
            Choice.BFLOAT16: _NO_BF16,
            Choice.INT8: _refused("its matrix products need sm75", Choice.NF4),
        },
    ),
    Platform.ROCM: _row(Choice.BFLOAT16),
    Platform.XPU: _row(Choice.BFLOAT16),
    Platform.MPS: _row(Choice.BFLOAT16, notes={Choice.NF4: "slow without the kernels of macOS 26"}),
    Platform.CPU_X86: _row(Choice.BFLOAT16, notes=_SLOW_INT8),
    Platform.CPU_ARM: _row(Choice.BFLOAT16),
    Platform.OTHER: _row(Choice.FLOAT32, {Choice.INT8: _UNKNOWN, Choice.NF4: _UNKNOWN}),
}


def platform_of(
    device: str,
    *,
    machine: str,
    cpu_flags: Collection[str],
    capability: tuple[int, int] | None = None,
    is_hip: bool = False,
) -> Platform:
    """The platform of a device: "cpu", "cuda", "mps" or "xpu", with or without an index.

    `capability` is a CUDA device's; `machine` and `cpu_flags` are the host's.
    """
    kind = device.partition(":")[0]
    if kind == "cuda":
        if is_hip:
            return Platform.ROCM
        if capability is None or capability < (6, 0):
            return Platform.OTHER
        if capability >= (8, 0):
            return Platform.CUDA_80
        return Platform.CUDA_75 if capability >= (7, 5) else Platform.CUDA_60
    if kind in ("xpu", "mps"):
        return Platform.XPU if kind == "xpu" else Platform.MPS
    if machine in ("aarch64", "arm64"):
        return Platform.CPU_ARM
    if machine in ("x86_64", "AMD64") and "avx2" in cpu_flags:
        return Platform.CPU_X86
    return Platform.OTHER


def alternatives(choice: Choice, platform: Platform) -> list[Choice]:
    """What to try in place of `choice`, best first; what the table refuses is not among it."""
    row = MATRIX[platform]
    order: Iterable[Choice | None] = (
        row[choice].instead,
        # who asks for few bits wants memory: the other quantization before any plain type
        *((Choice.NF4, Choice.INT8) if choice.quantization != "none" else ()),
        *(each for each in Choice if row[each].standing is Standing.FIRST),
        Choice.FLOAT32,
        Choice.FLOAT16,
        Choice.BFLOAT16,
    )
    found: list[Choice] = []
    for each in order:
        if each and each is not choice and each not in found and row[each].standing is not Standing.REFUSED:
            found.append(each)
    return found


def problem(choice: Choice, platform: Platform, tried: Tried | None) -> str | None:
    """Why `choice` cannot be had; None if nothing speaks against it. `tried` is None before a trial."""
    entry = MATRIX[platform][choice]
    if entry.standing is Standing.REFUSED:
        return entry.note
    if tried is None or tried.result is Result.OK:
        return None
    return f"a trial on this host {_ENDED[tried.result]}: {tried.detail}"


_ENDED = {
    Result.WRONG: "computed something else",
    Result.REFUSED: "was refused",
    Result.CRASHED: "crashed",
}


def refusal(choice: Choice, platform: Platform, why: str, instead: Choice | None) -> str:
    """What a user is told who asked for `choice`."""
    remedy = (
        f"set spec.model.quantization to {instead.quantization}"
        + ("" if instead.quantization != "none" else f" ({instead} works here)")
        if instead
        else "use another host: nothing that was tried works here"
    )
    return f"{choice} cannot be had on this host ({platform}): {why}; {remedy}"
