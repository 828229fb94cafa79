"""Trials in processes of their own: what they answer, how they end, and for how long an answer holds."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hermes_runtime import errors
from hermes_runtime.models import Backend, ModelSpec, probe
from hermes_runtime.models.instances import PortableMultiInstanceManager
from hermes_runtime.models.platform import Choice, Platform, Result
from hermes_runtime.models.probe import Host, Probe, Probed, this_host
from tests.contract import tiny_model

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
HOST = Host(machine="x86_64", cpu_flags=("avx2",), software=("torch 1",), driver="", gpus=())
OK = {"platform": Platform.CPU_X86, "result": "ok", "detail": "", "weight_bytes": 5}
SIGSEGV = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
SLEEP = "import time; time.sleep(600)"


def told(**fields: object) -> str:
    return f"print('a library says hello'); print({json.dumps(json.dumps(OK | fields))})"


class Trials:
    """Programs in place of trials, by choice; counts how many were started."""

    def __init__(self, **programs: str) -> None:
        self._programs = programs
        self.started: list[Choice] = []

    def __call__(self, device: str, choice: Choice) -> Sequence[str]:
        self.started.append(choice)
        return [sys.executable, "-I", "-c", self._programs.get(choice.value, told())]


Make = Callable[..., Probe]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(trials: Trials, host: Host = HOST, device: str = "cpu", seconds_max: float = 60.0) -> Probe:
        return Probe(
            device,
            folder=tmp_path / "probes",
            environment=os.environ,
            host=host,
            command=trials,
            seconds_max=seconds_max,
        )

    return made


def test_a_tiny_model_is_tried_for_real_and_found_like_float32(tmp_path: Path):
    found = Probe("cpu", folder=tmp_path, environment=os.environ).answers([Choice.BFLOAT16])
    plain, half = found.of(Choice.FLOAT32), found.of(Choice.BFLOAT16)
    assert plain is not None
    assert half is not None
    assert (plain.result, half.result) == (Result.OK, Result.OK), found
    assert half.weight_bytes < 0.51 * plain.weight_bytes
    assert found.platform is not Platform.OTHER
    assert not list(tmp_path.glob("*.draft"))


@pytest.mark.parametrize(
    ("program", "result", "detail"),
    [
        (told(result="wrong", detail="likeness 0.2"), Result.WRONG, "likeness 0.2"),
        (told(result="refused", detail="no kernel"), Result.REFUSED, "no kernel"),
        (SIGSEGV, Result.CRASHED, "SIGSEGV"),
        ("raise ValueError('that is all')", Result.REFUSED, "code 1: ValueError: that is all"),
        ("print('{}')", Result.REFUSED, "code 0"),
        ("pass", Result.REFUSED, "code 0"),
    ],
)
def test_however_a_trial_ends_it_is_told(make: Make, program: str, result: Result, detail: str):
    tried = make(Trials(nf4=program)).answers([Choice.NF4]).of(Choice.NF4)
    assert tried is not None
    assert tried.result is result
    assert detail in tried.detail


def test_a_trial_that_does_not_end_is_ended(make: Make):
    remembered = make(Trials())
    remembered.answers([Choice.FLOAT32])
    tried = make(Trials(nf4=SLEEP), seconds_max=0.5).answers([Choice.NF4]).of(Choice.NF4)
    assert tried is not None
    assert (tried.result, tried.detail) == (Result.CRASHED, "it did not end in 0 s")


def test_an_answer_holds_until_the_host_is_another_or_it_is_asked_again(make: Make):
    first, second, third, fourth = Trials(), Trials(), Trials(), Trials()
    make(first).answers([Choice.NF4])
    make(second).answers([Choice.NF4, Choice.INT8])
    make(third, host=replace(HOST, software=("torch 2",))).answers([Choice.NF4])
    make(fourth).answers([Choice.NF4], again=True)
    assert first.started == [Choice.FLOAT32, Choice.NF4]
    assert second.started == [Choice.INT8]
    assert third.started == fourth.started == [Choice.FLOAT32, Choice.NF4]


def test_what_cannot_be_read_is_tried_anew(make: Make, tmp_path: Path):
    make(Trials()).answers([])
    (file,) = (tmp_path / "probes").iterdir()
    file.write_text("{")
    again = Trials()
    make(again).answers([])
    assert again.started == [Choice.FLOAT32]
    assert Probed.model_validate_json(file.read_text()).platform is Platform.CPU_X86


def test_where_nothing_can_be_remembered_it_is_tried_each_time(tmp_path: Path):
    (tmp_path / "probes").write_text("a file in the way")
    trials = Trials()
    for _ in range(2):
        Probe("cpu", folder=tmp_path / "probes", environment=os.environ, host=HOST, command=trials).answers(
            []
        )
    assert trials.started == [Choice.FLOAT32] * 2


def test_a_host_that_computes_nothing_is_told_as_such(make: Make):
    with pytest.raises(errors.Unsupported, match=r"not even a tiny model .* SIGSEGV"):
        make(Trials(float32=SIGSEGV)).answers([Choice.NF4])


@pytest.mark.parametrize(
    ("programs", "says"),
    [
        ({"nf4": SIGSEGV}, "crashed: SIGSEGV; set spec.model.quantization to int8"),
        (
            {"nf4": SIGSEGV, "int8": told(result="refused")},
            r"to none \(bfloat16 works here\)",
        ),
        (
            {"nf4": SIGSEGV, "int8": SIGSEGV, "bfloat16": told(result="wrong")},
            r"to none \(float32 works here\)",
        ),
    ],
)
def test_a_refusal_names_what_works_here(make: Make, programs: dict[str, str], says: str):
    trials = Trials(**programs)
    with pytest.raises(errors.Unsupported, match=says):
        make(trials).check(Choice.NF4)
    make(trials).check(Choice.FLOAT32)


def test_the_fingerprint_is_of_the_host_and_the_device():
    host = this_host()
    others = [
        replace(host, driver="another"),
        replace(host, cpu_flags=()),
        replace(host, gpus=("one",)),
        replace(host, software=(*host.software, "bitsandbytes 9")),
    ]
    prints = {each.fingerprint("cpu") for each in (host, *others)} | {host.fingerprint("cuda:0")}
    assert len(prints) == 6
    assert host.fingerprint("cpu") == this_host().fingerprint("cpu")


def test_the_host_is_read_from_what_the_kernel_and_the_driver_tell(tmp_path: Path):
    for name, text in {
        "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu avx2 avx\n",
        "proc/driver/nvidia/version": "NVRM version: 570.1\nGCC: 1\n",
        "proc/driver/nvidia/gpus/0000:01/information": "Model: \t\t One\nIRQ: 1\n",
        "proc/driver/nvidia/gpus/0000:02/information": "Model: \t\t Two\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = this_host(tmp_path)
    assert (found.cpu_flags, found.driver, found.gpus) == (
        ("avx", "avx2", "fpu"),
        "NVRM version: 570.1",
        ("One", "Two"),
    )


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="the package is there")
def test_a_load_that_this_host_cannot_do_is_refused_with_the_alternative(tmp_path: Path):
    folder = tiny_model.write(tmp_path / "tiny")
    spec = ModelSpec(backend=Backend.TRANSFORMERS, path=folder, device="cpu", quantization="nf4")
    environment = os.environ | {"HERMES_CACHE": str(tmp_path / "cache")}
    seen: list[str] = []
    with (
        pytest.raises(errors.Unsupported, match=r"needs the package bitsandbytes.*\(bfloat16 works here\)"),
        PortableMultiInstanceManager(
            environment=environment, observe=lambda event: seen.append(event.what)
        ) as manager,
    ):
        manager.initialize([spec])
    assert seen == [], "no worker was started"
    assert list((tmp_path / "cache" / "probes").iterdir())


def test_what_is_not_quantized_is_not_tried(tmp_path: Path):
    environment = {"HERMES_CACHE": str(tmp_path / "cache")}
    for backend, quantization in ((Backend.TRANSFORMERS, "none"), (Backend.SCRIPTED, "nf4")):
        probe.check(ModelSpec(backend=backend, path=tmp_path, quantization=quantization), "cpu", environment)
    assert not (tmp_path / "cache").exists()
