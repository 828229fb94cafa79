"""What a shard tells through its container's termination message: how far it is, and why it ended.

Kubernetes carries it to whoever watches the pod, so that nothing else has to be asked. It is written
whenever it changes, so that a process that is killed has said what was known; never more than
MESSAGE_BYTES_MAX, less than Kubernetes cuts at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hermes.model.v1 import model_pb2

VERSION = 1
MESSAGE_BYTES_MAX = 4000
FAILURE_CHARACTERS_MAX = 1000

Who = Literal["user", "model", "agent", "sandbox", "cluster", "operator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why it ended without success, and who can mend it."""

    who: Who
    reason: str
    """In CamelCase, one of those that a run's conditions have."""
    message: str


@dataclass(slots=True, kw_only=True)
class Termination:
    """The message, filled in as the shard goes on. Empty what is not known yet."""

    done: int = 0
    """(instance, arm) pairs of the shard that are recorded, by whichever attempt."""
    total: int = 0
    arms: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """For each arm how many are recorded, and how many of them solved."""
    hermetic: Mapping[str, Any] | None = None
    loaded: model_pb2.DescribeResponse | None = None
    manifest: str = ""
    failure: Failure | None = None

    def to_bytes(self) -> bytes:
        """As it is written. A long failure is cut."""
        loaded, hermetic, failure = self.loaded, self.hermetic, self.failure
        told: dict[str, Any] = {
            "version": VERSION,
            "done": self.done,
            "total": self.total,
            "arms": {name: {"done": done, "solved": solved} for name, (done, solved) in self.arms.items()},
            "hermetic": hermetic and {"counted": hermetic["counted"], "attempts": hermetic["attempts"]},
            "loaded": loaded
            and {
                "device": loaded.device,
                "dtype": loaded.dtype,
                "quantization": loaded.quantization,
                "weightBytes": loaded.weight_bytes,
                "loadSeconds": round(loaded.load_seconds, 3),
                "treeSha256": loaded.tree_sha256,
            },
            "manifest": self.manifest,
            "failure": failure
            and {"who": failure.who, "reason": failure.reason, "message": _cut(failure.message)},
        }
        data = _json(told)
        while len(data) > MESSAGE_BYTES_MAX and told["failure"] and told["failure"]["message"]:
            message = told["failure"]["message"]
            told["failure"]["message"] = message[: len(message) * 3 // 4]
            data = _json(told)
        return data

    def write(self, path: Path | None) -> None:
        """Write it over what is there, whole even if the process is killed meanwhile; nothing without a path.

        The file is a mount, which cannot be replaced, and to truncate it first would leave it empty for a
        moment; so a shorter message is filled up with spaces, and one write does it.
        """
        if path is None:
            return
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            there = os.fstat(file).st_size
            os.pwrite(file, self.to_bytes().ljust(min(there, MESSAGE_BYTES_MAX)), 0)
            if there > MESSAGE_BYTES_MAX:  # somebody else's
                os.ftruncate(file, MESSAGE_BYTES_MAX)
        finally:
            os.close(file)


def _cut(message: str) -> str:
    if len(message) <= FAILURE_CHARACTERS_MAX:
        return message
    return message[: FAILURE_CHARACTERS_MAX - 1] + "…"


def _json(told: Mapping[str, Any]) -> bytes:
    return json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")
