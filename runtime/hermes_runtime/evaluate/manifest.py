"""manifest.json: what ran on what, content-addressed, so that a figure can be traced and a run repeated."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from hermes.model.v1 import model_pb2
from hermes_runtime.document import HermesRun
from hermes_runtime.evaluate.prepare import Prepared

SOFTWARE = (
    "hermes-operator",
    "torch",
    "transformers",
    "tokenizers",
    "bitsandbytes",
    "grpcio",
    "protobuf",
    "apsw",
    "coverage",
)


def manifest(
    document: HermesRun,
    prepared: Prepared,
    model: model_pb2.DescribeResponse,
    hermetic: dict[str, Any],
) -> dict[str, Any]:
    """The manifest's content; its `digest` is the sha256 of the rest in canonical JSON."""
    body: dict[str, Any] = {
        "run": document.metadata.name,
        "config_sha256": hashlib.sha256(document.to_yaml().encode()).hexdigest(),
        "seed": document.spec.seed,
        "model": {
            "backend": model.backend,
            "architecture": model.architecture,
            "tree_sha256": model.tree_sha256,
            "tokenizer_sha256": model.tokenizer_sha256,
            "quantization": model.quantization,
            "dtype": model.dtype,
            "device": model.device,
            "parameters": model.parameters,
            "weight_bytes": model.weight_bytes,
            "dialect": prepared.dialect,
        },
        "dataset_sha256": prepared.dataset_sha256,
        "images": [],
        "code": {"commit": _commit(), "version": _version("hermes-operator"), "tree_sha256": _code_sha256()},
        "software": {name: version for name in SOFTWARE if (version := _version(name))},
        "host": host(),
        "sandbox": prepared.sandbox,
        "hermetic": hermetic,
    }
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return {"digest": hashlib.sha256(canonical).hexdigest(), **body}


def host() -> dict[str, Any]:
    """What distinguishes this machine where figures are concerned; nothing that names it."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": cpu,
        "cores": cores,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """Commit of a checkout that HERMES runs from; empty for an installed wheel."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _code_sha256() -> str:
    """Digest of every Python file of the runtime, by path: what ran, committed or not."""
    root = Path(__file__).resolve().parent.parent
    whole = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        whole.update(f"{file.relative_to(root).as_posix()}\0".encode())
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()
