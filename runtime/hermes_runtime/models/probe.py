"""What this host really can: every type and quantization tried in a process of its own, and remembered.

Decided here: how a trial is started and read, and for how long its answer holds: until the processor, the
driver, a GPU or one of the libraries is another. A crash ends the trial and nothing else. What the table
of platforms says is `platform.py`'s. Called before a quantized load, and by `hermes model probe`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform as host_platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from hermes_runtime import errors
from hermes_runtime.models import Backend, ModelSpec
from hermes_runtime.models.cache import cache_folder
from hermes_runtime.models.environment import child_environment, torch_device
from hermes_runtime.models.platform import Choice, Platform, Result, Tried, alternatives, problem, refusal

TRIAL_SECONDS_MAX = 300.0
"""Importing torch on a busy host takes most of it."""

_LIBRARIES = ("torch", "transformers", "bitsandbytes", "accelerate")

Command = Callable[[str, Choice], Sequence[str]]
"""The program that tries a choice on a device (as the child spells it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What an answer depends on; nothing that names the machine."""

    machine: str
    cpu_flags: tuple[str, ...]
    software: tuple[str, ...]
    driver: str
    gpus: tuple[str, ...]

    def fingerprint(self, device: str) -> str:
        """16 hexadecimal digits; another host, library or device gives others."""
        body = json.dumps([asdict(self), device], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(body.encode()).hexdigest()[:16]


class Probed(BaseModel):
    """What is remembered of a device."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    platform: Platform
    tried: tuple[Tried, ...]

    def of(self, choice: Choice) -> Tried | None:
        """The trial of `choice`, if there was one."""
        return next((each for each in self.tried if each.choice is choice), None)


class Told(BaseModel):
    """What a trial prints as its last line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    platform: Platform
    result: Result
    detail: str
    weight_bytes: int


def this_host(root: Path = Path("/")) -> Host:
    """The host's own words, read without loading any driver."""
    versions = []
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    gpus = [
        line.partition(":")[2].strip()
        for file in sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
        for line in _lines(file)
        if line.startswith("Model:")
    ]
    return Host(
        machine=host_platform.machine(),
        cpu_flags=cpu_flags(root),
        software=tuple(versions),
        driver=next(iter(_lines(root / "proc/driver/nvidia/version")), ""),
        gpus=tuple(gpus),
    )


def cpu_flags(root: Path = Path("/")) -> tuple[str, ...]:
    """What the processor can, sorted; () where the kernel does not tell it."""
    for line in _lines(root / "proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(sorted(value.split()))
    return ()


class Probe:
    """The trials of one device."""

    def __init__(
        self,
        device: str,
        *,
        folder: Path,
        environment: Mapping[str, str],
        host: Host | None = None,
        command: Command | None = None,
        seconds_max: float = TRIAL_SECONDS_MAX,
    ) -> None:
        """`device` as `environment.device_of` spells it; answers are remembered in `folder`."""
        self._device = device
        self._file = folder / f"{(host or this_host()).fingerprint(device)}.json"
        self._environment = environment
        self._command = command or _trial
        self._seconds_max = seconds_max

    def answers(self, choices: Sequence[Choice], *, again: bool = False) -> Probed:
        """The answers to these choices, tried where they are not remembered, or all `again`.

        float32 is always among them: it tells the platform. Raises Unsupported if not even that works.
        """
        known = None if again else self._remembered()
        wanted = [Choice.FLOAT32, *(each for each in choices if each is not Choice.FLOAT32)]
        missing = [each for each in wanted if known is None or known.of(each) is None]
        for choice in missing:
            platform, tried = self._try(choice)
            if choice is Choice.FLOAT32 and tried.result is not Result.OK:
                raise errors.Unsupported(
                    f"not even a tiny model in float32 can be computed on {self._device} "
                    f"({tried.result}: {tried.detail}): check the installation of torch and the driver"
                )
            if known is None:
                assert platform is not None, "a trial that is ok tells its platform"
                known = Probed(device=self._device, platform=platform, tried=())
            known = known.model_copy(update={"tried": (*known.tried, tried)})
            self._remember(known)
        assert known is not None, "float32 is remembered, or was tried"
        return known

    def check(self, choice: Choice) -> None:
        """Raise Unsupported, with what can be had instead, unless this host can do `choice`."""
        found = self.answers([choice])
        why = problem(choice, found.platform, found.of(choice))
        if why is None:
            return
        for other in alternatives(choice, found.platform):
            found = self.answers([other])
            if problem(other, found.platform, found.of(other)) is None:
                raise errors.Unsupported(refusal(choice, found.platform, why, other))
        raise errors.Unsupported(refusal(choice, found.platform, why, None))

    def _try(self, choice: Choice) -> tuple[Platform | None, Tried]:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="hermes-probe-", ignore_cleanup_errors=True) as home:
            environment = child_environment(
                self._environment, device=self._device, threads=1, home=home, search_path=sys.path
            )
            try:
                done = subprocess.run(
                    self._command(torch_device(self._device), choice),
                    env=environment,
                    cwd=home,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=self._seconds_max,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                detail = f"it did not end in {self._seconds_max:.0f} s"
                return None, Tried(
                    choice=choice, result=Result.CRASHED, detail=detail, seconds=self._seconds_max
                )
        seconds = round(time.monotonic() - started, 2)
        if done.returncode < 0:
            name = signal.Signals(-done.returncode).name
            return None, Tried(choice=choice, result=Result.CRASHED, detail=name, seconds=seconds)
        try:
            told = Told.model_validate_json(done.stdout.strip().splitlines()[-1])
        except (ValidationError, IndexError):
            last = next(iter(done.stderr.decode(errors="replace").strip().splitlines()[-1:]), "")
            detail = f"it ended with code {done.returncode}: {last[:300]}"
            return None, Tried(choice=choice, result=Result.REFUSED, detail=detail, seconds=seconds)
        return told.platform, Tried(
            choice=choice,
            result=told.result,
            detail=told.detail,
            seconds=seconds,
            weight_bytes=told.weight_bytes,
        )

    def _remembered(self) -> Probed | None:
        try:
            return Probed.model_validate_json(self._file.read_bytes())
        except (OSError, ValidationError):
            return None

    def _remember(self, probed: Probed) -> None:
        with contextlib.suppress(OSError):  # where nobody may write, it is tried each time
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft = self._file.with_suffix(f".{os.getpid()}.draft")
            draft.write_text(probed.model_dump_json(indent=1) + "\n")
            draft.replace(self._file)


def probes_folder(environment: Mapping[str, str], home: Path) -> Path:
    """Where answers are remembered."""
    return cache_folder(environment, home) / "probes"


def check(spec: ModelSpec, device: str, environment: Mapping[str, str]) -> None:
    """Raise Unsupported, with the alternative, if `spec` asks for a quantization that `device` cannot do."""
    if spec.backend is Backend.TRANSFORMERS and spec.quantization in (Choice.INT8, Choice.NF4):
        folder = probes_folder(environment, Path.home())
        Probe(device, folder=folder, environment=environment).check(Choice(spec.quantization))


def _trial(device: str, choice: Choice) -> Sequence[str]:
    return [
        sys.executable,
        "-m",
        "hermes_runtime.models.probe_trial",
        f"--device={device}",
        f"--choice={choice}",
        f"--parent={os.getpid()}",
    ]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
