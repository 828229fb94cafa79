"""The environment of a model's process: offline, one device, no telemetry, no code from a hub.

Decided before the interpreter starts, because the libraries read these when they are imported. What is
not named here does not reach the child. The environment asks libraries to behave; it is not the wall.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hermes_runtime import errors
from hermes_runtime.models import Backend, ModelSpec

SOCKET_AUDIT = "HERMES_SOCKET_AUDIT"
"""Path of a file in which a worker counts the socket events it sees; unset: none are counted."""

_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT", SOCKET_AUDIT)

_FIXED = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "USE_HUB_KERNELS": "NO",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    "PYTHONSAFEPATH": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NVIDIA_TF32_OVERRIDE": "0",
}


def device_of(spec: ModelSpec, accelerators: Sequence[str]) -> str:
    """The one device of `spec`: "cpu", "mps", "xpu" or "cuda:<index or UUID>"; "" if it needs none.

    `accelerators` are the devices seen on this host, best first, in the same spelling.
    """
    if spec.backend is Backend.SCRIPTED:
        return ""
    if spec.device == "auto":
        return accelerators[0] if accelerators else "cpu"
    if spec.device == "cuda":
        return next((seen for seen in accelerators if seen.startswith("cuda:")), "cuda:0")
    kind, _, which = spec.device.partition(":")
    if spec.device in ("cpu", "mps", "xpu") or (kind == "cuda" and which):
        return spec.device
    raise errors.BadInput(
        f"device {spec.device!r} is none of auto, cpu, mps, xpu, cuda, cuda:<index or UUID>"
    )


def torch_device(device: str) -> str:
    """`device` as the child spells it, where only one is visible."""
    return "cuda:0" if device.startswith("cuda") else device or "cpu"


def child_environment(
    base: Mapping[str, str], *, device: str, threads: int, home: str, search_path: Sequence[str]
) -> dict[str, str]:
    """The child's whole environment. `home` is an empty folder; `search_path` the parent's `sys.path`."""
    environment = {name: base[name] for name in _KEPT if name in base}
    environment |= _FIXED
    environment |= {"HOME": home, "HF_HOME": home, "XDG_CACHE_HOME": home, "TORCH_HOME": home}
    environment["PYTHONPATH"] = ":".join(path for path in search_path if path)
    environment["CUDA_VISIBLE_DEVICES"] = _visible(base, device)
    if threads:
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(threads)
    return environment


def _visible(base: Mapping[str, str], device: str) -> str:
    """What the child may see of the GPUs that this process may see."""
    kind, _, which = device.partition(":")
    if kind != "cuda":
        return ""
    allowed = [name for name in base.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if not which.isdigit() or not allowed:
        return which
    if int(which) >= len(allowed):
        raise errors.BadInput(f"device {device} is not among the {len(allowed)} in CUDA_VISIBLE_DEVICES")
    return allowed[int(which)]
