"""Seeds: each random choice of an agent has its own, from (run, step, agent)."""

from __future__ import annotations

import hashlib


def seed_of(run_seed: int, *parts: str | int) -> int:
    """63 bits that depend on every part and on nothing else."""
    text = "\x1f".join(str(part) for part in (run_seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
