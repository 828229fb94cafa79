from __future__ import annotations

from pathlib import Path

import pytest

from hermes_runtime import errors
from hermes_runtime.models import Backend, ModelSpec
from hermes_runtime.models.environment import child_environment, device_of
from hermes_runtime.models.instances import devices_of


def spec(device: str = "auto", backend: Backend = Backend.TRANSFORMERS) -> ModelSpec:
    return ModelSpec(backend=backend, path=Path("model"), device=device)


def environment(base: dict[str, str], device: str = "cpu", threads: int = 0) -> dict[str, str]:
    return child_environment(
        base, device=device, threads=threads, home="/empty", search_path=["/a", "", "/b"]
    )


@pytest.mark.parametrize(
    ("device", "seen", "chosen"),
    [
        ("auto", (), "cpu"),
        ("auto", ("cuda:0", "cuda:1"), "cuda:0"),
        ("auto", ("mps",), "mps"),
        ("cpu", ("cuda:0",), "cpu"),
        ("cuda", ("cuda:0",), "cuda:0"),
        ("cuda:1", (), "cuda:1"),
        ("cuda:GPU-1b2c", (), "cuda:GPU-1b2c"),
    ],
)
def test_the_device_is_the_one_asked_for(device, seen, chosen):
    assert device_of(spec(device), seen) == chosen


def test_an_unknown_device_is_refused():
    with pytest.raises(errors.BadInput, match="'tpu' is none of"):
        device_of(spec("tpu"), ())


def test_two_processes_on_one_device_are_refused():
    with pytest.raises(errors.BadInput, match="raise slots instead"):
        devices_of([spec("cpu"), spec("auto")], ())


def test_a_process_for_each_device_is_accepted():
    assert devices_of([spec("cuda:0"), spec("cuda:1")], ()) == ["cuda:0", "cuda:1"]


def test_scripted_models_need_no_device():
    assert devices_of([spec(backend=Backend.SCRIPTED)] * 3, ()) == ["", "", ""]


def test_different_models_behind_one_manager_are_refused():
    with pytest.raises(errors.BadInput, match="differ"):
        devices_of([spec("cuda:0"), ModelSpec(backend=Backend.TRANSFORMERS, path=Path("other"))], ())


def test_nothing_of_the_parent_reaches_the_child_but_what_is_named():
    made = environment({"PATH": "/bin", "https_proxy": "http://proxy", "HF_TOKEN": "secret", "HOME": "/me"})
    assert made["PATH"] == "/bin"
    assert not {"https_proxy", "HF_TOKEN"} & set(made)
    assert made["HOME"] == made["HF_HOME"] == "/empty"
    assert made["PYTHONPATH"] == "/a:/b"


def test_the_child_is_offline_and_sends_no_telemetry():
    expected = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "USE_HUB_KERNELS": "NO",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "0",
        "CUDA_VISIBLE_DEVICES": "",
    }
    assert expected.items() <= environment({}).items()


@pytest.mark.parametrize(
    ("device", "visible", "seen"),
    [("cuda:1", None, "1"), ("cuda:1", "4,5", "5"), ("cuda:GPU-1b", "4,5", "GPU-1b"), ("cpu", "4,5", "")],
)
def test_the_child_sees_its_own_device_only(device, visible, seen):
    base = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert environment(base, device)["CUDA_VISIBLE_DEVICES"] == seen


def test_threads_are_set_when_asked_for():
    assert environment({}, threads=3)["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in environment({})
