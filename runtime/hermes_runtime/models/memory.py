"""Whether a model's weights fit into what is free, asked before any of them is loaded.

Decided here: how much memory this process may still take, and the refusal that says how much is missing.
Not covered: what a request needs beside the weights, and what others take meanwhile. Called before a load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hermes_runtime import errors
from hermes_runtime.models import tensors


def check_room(
    held: Sequence[tensors.Stored], *, dtype: str, quantization: str, free_bytes: int, where: str
) -> None:
    """Raise Exhausted unless these weights, loaded so, fit into what is free on the device `where`."""
    needed = tensors.loaded_bytes(held, dtype=dtype, quantization=quantization)
    if needed <= free_bytes:
        return
    smaller = [
        f"set spec.model.quantization to {name} (about {_amount(size)})"
        for name in ("int8", "nf4")
        if (size := tensors.loaded_bytes(held, dtype=dtype, quantization=name)) <= free_bytes
        and size < needed
    ]
    remedies = [*smaller, "free some", "use a smaller model or a larger device"]
    free_bytes = max(free_bytes, 0)
    raise errors.Exhausted(
        f"the weights take {_amount(needed)} and {_amount(free_bytes)} of memory are free on {where}: "
        f"{_amount(needed - free_bytes)} are missing; {', or '.join(remedies)}"
    )


def free_bytes_of_host(root: Path = Path("/")) -> int | None:
    """What this process may still take of the host's memory: the least of what the kernel says is
    available and what each control group above it leaves. None where neither is told (not Linux)."""
    told = [*_available(root), *_left_by_groups(root)]
    return min(told, default=None)


def _available(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _left_by_groups(root: Path) -> Iterator[int]:
    """For each control group with a limit: the limit less what cannot be given back."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage, kept = "sys/fs/cgroup", "memory.max", "memory.current", "{}_file"
        elif "memory" in controllers.split(","):
            top, limit = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            usage, kept = "memory.usage_in_bytes", "total_{}_file"
        else:
            continue
        folder = root / top / path.lstrip("/")
        while folder.is_relative_to(root / top):
            most, used = _number(folder / limit), _number(folder / usage)
            if most is not None and used is not None:
                names = {kept.format("active"), kept.format("inactive")}
                stat = dict(line.split() for line in _lines(folder / "memory.stat"))
                yield most - used + sum(int(stat.get(name, 0)) for name in names)
            folder = folder.parent


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """The number in a file; None for "max", which is no limit, and where there is no such file."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _amount(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB" if size_bytes >= 2**29 else f"{size_bytes / 2**20:.1f} MiB"
