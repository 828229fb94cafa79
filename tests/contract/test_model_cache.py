"""The cache of models on a disk: what is listed, what is removed, and when it was verified."""

from __future__ import annotations

import fcntl
import json
import os
import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hermes_runtime import errors
from hermes_runtime.cli.__main__ import main
from hermes_runtime.models import cache, tensors, tree
from tests.contract import tiny_model

ONE, OTHER = "1" * 40, "2" * 40
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A cache with one repository in two commits."""
    found = tmp_path / "models"
    for seed, commit in enumerate((ONE, OTHER)):
        tiny_model.write(tree.cached(found, "acme/tiny", commit), seed=seed)
    return found


def hermes(models: Path, *words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("HERMES_CACHE", str(models.parent))
    return main(["model", *words])


def test_what_is_there_is_told_without_reading_the_weights(models: Path):
    bundled, first, second = cache.models(models)
    assert (bundled.name, bundled.commit, bundled.dtype) == ("repair", "", "float32")
    folder = tree.cached(models, "acme/tiny", ONE)
    assert first == cache.Kept(
        name="acme/tiny",
        commit=ONE,
        folder=folder,
        is_whole=True,
        licence="Apache-2.0",
        size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        dtype="float32",
        verified_at=None,
    )
    assert second.commit == OTHER


def test_a_cache_that_is_not_there_yet_holds_what_is_bundled(tmp_path: Path):
    assert [each.name for each in cache.models(tmp_path / "none")] == ["repair"]


def test_what_a_pull_left_behind_is_told_as_not_whole(models: Path):
    (tree.cached(models, "acme/tiny", ONE) / tree.MANIFEST).unlink()
    (tree.cached(models, "acme/tiny", ONE) / "model.safetensors").write_bytes(b"half")
    first = cache.find(models, f"acme/tiny@{ONE}")
    assert (first.is_whole, first.dtype, first.licence) == (False, "", "")


def test_a_verification_is_remembered_until_the_model_is_another(models: Path):
    folder = tree.cached(models, "acme/tiny", ONE)
    cache.note_verified(tree.verify(folder), NOON)
    assert cache.find(models, "acme/tiny@1").verified_at == NOON
    (folder / "LICENSE").write_text("terms")
    tree.write_manifest(folder)
    assert cache.find(models, "acme/tiny@1").verified_at is None
    assert sorted(each.name for each in cache.models(models)) == ["acme/tiny", "acme/tiny", "repair"]


def test_a_model_is_removed_whole_with_its_note(models: Path):
    folder = tree.cached(models, "acme/tiny", ONE)
    cache.note_verified(tree.verify(folder), NOON)
    assert cache.remove(models, "acme/tiny@1").folder == folder
    assert [each.commit for each in cache.models(models)] == ["", OTHER]
    assert not list(models.glob(f"*{ONE}*/*"))
    assert cache.remove(models, "acme/tiny").commit == OTHER


def test_a_removal_that_was_cut_off_leaves_no_model_and_is_no_hindrance(models: Path):
    folder = tree.cached(models, "acme/tiny", ONE)
    folder.rename(folder.with_name(f".{folder.name}.removing"))
    assert [each.commit for each in cache.models(models)] == ["", OTHER]
    tiny_model.write(folder)
    cache.remove(models, "acme/tiny@1")
    assert not list(models.glob("*.removing"))


@pytest.mark.parametrize(
    ("wanted", "error", "says"),
    [
        ("acme/other", errors.NotFound, "acme/tiny@111111111111"),
        ("acme/tiny", errors.BadInput, "is 2 models"),
        ("repair", errors.BadInput, "part of HERMES"),
        ("../models", errors.NotFound, "no model"),
    ],
)
def test_what_cannot_be_removed_is_refused_and_stays(
    models: Path, wanted: str, error: type[errors.HermesError], says: str
):
    before = sorted(models.rglob("*"))
    with pytest.raises(error, match=says):
        cache.remove(models, wanted)
    assert sorted(models.rglob("*")) == before


def test_a_model_that_is_being_pulled_is_not_removed(models: Path):
    folder = tree.cached(models, "acme/tiny", ONE)
    with (models / f".{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(errors.Busy, match="being pulled"):
            cache.remove(models, "acme/tiny@1")
    assert tree.verify(folder)


def test_the_commands_list_verify_and_remove(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert hermes(models, "verify", f"acme/tiny@{ONE[:7]}", monkeypatch=monkeypatch) == 0
    capsys.readouterr()
    assert hermes(models, "list", "--json", monkeypatch=monkeypatch) == 0
    _, first, second = json.loads(capsys.readouterr().out)
    assert (first["verified_at"] is not None, second["verified_at"]) == (True, None)
    assert hermes(models, "list", monkeypatch=monkeypatch) == 0
    head, bundled, line, _ = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "COMMIT", "LICENCE", "SIZE", "DTYPE", "VERIFIED"]
    assert bundled.split()[:2] == ["repair", "bundled"]
    assert line.split()[:3] == ["acme/tiny", ONE[:12], "Apache-2.0"]
    assert hermes(models, "rm", f"acme/tiny@{OTHER}", monkeypatch=monkeypatch) == 0
    assert hermes(models, "rm", f"acme/tiny@{OTHER}", monkeypatch=monkeypatch) == 1


def test_verify_names_the_file_that_is_not_as_it_was(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    weights = tree.cached(models, "acme/tiny", ONE) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert hermes(models, "verify", f"acme/tiny@{ONE}", monkeypatch=monkeypatch) == 1
    assert str(weights) in capsys.readouterr().err
    assert cache.find(models, f"acme/tiny@{ONE}").verified_at is None


def test_bytes_are_told_by_type_from_the_headers_alone(tmp_path: Path):
    import torch
    from safetensors.torch import save_file

    save_file(
        {"embed.weight": torch.zeros(3, 5, dtype=torch.bfloat16), "b": torch.zeros(2)},
        tmp_path / "1.safetensors",
    )
    save_file({"c": torch.zeros(7, dtype=torch.uint8)}, tmp_path / "2.safetensors")
    held = tensors.stored(tmp_path)
    assert tensors.bytes_by_dtype(held) == {"bfloat16": 30, "float32": 8, "uint8": 7}
    assert tensors.loaded_bytes(held, dtype="auto", quantization="none") == 45
    assert tensors.loaded_bytes(held, dtype="float32", quantization="none") == 60 + 8 + 7
    assert tensors.loaded_bytes(held, dtype="bfloat16", quantization="nf4") == 30 + 4 + 7


@pytest.mark.parametrize(
    ("quantization", "expected"), [("none", 4 * 64 * 64), ("int8", 64 * 64 + 4 * 64), ("nf4", 2048 + 64 + 1)]
)
def test_what_a_quantized_matrix_will_take_is_told_beforehand(quantization: str, expected: int):
    matrix = tensors.Stored(
        name="layers.0.mlp.up_proj.weight", dtype="float32", shape=(64, 64), size_bytes=4 * 64 * 64
    )
    assert tensors.loaded_bytes([matrix], dtype="auto", quantization=quantization) == expected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b'{"a": []}',
        struct.pack("<Q", 10) + b'{"a": {}} ',
        os.urandom(8) + b"\xff" * 100,
    ],
)
def test_a_header_that_is_none_names_its_file(tmp_path: Path, content: bytes):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(errors.Damaged, match=r"model\.safetensors is no safetensors file"):
        tensors.stored(tmp_path)
