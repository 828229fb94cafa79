from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from hermes_runtime import errors
from hermes_runtime.models import tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "deep").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (made / "tokenizer.json").write_text("[]")
    (made / "deep" / "notes.md").write_text("hello")
    tree.write_manifest(made, licence="MIT", source="test", dialect="chat")
    return made


def test_an_untouched_folder_is_verified(folder: Path):
    verified = tree.verify(folder)
    assert [entry.path for entry in verified.manifest.files] == [
        "config.json",
        "deep/notes.md",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (verified.manifest.licence, verified.manifest.dialect) == ("MIT", "chat")
    verified.still()


def test_the_digest_is_of_the_canonical_file_list(folder: Path):
    files = json.loads((folder / "manifest.json").read_text())["files"]
    canonical = json.dumps(files, sort_keys=True, separators=(",", ":")).encode()
    assert tree.verify(folder).sha256 == hashlib.sha256(canonical).hexdigest()


def test_the_digest_does_not_depend_on_where_the_folder_is(folder: Path):
    before = tree.verify(folder).sha256
    moved = folder.rename(folder.with_name("moved"))
    tree.write_manifest(moved, source="elsewhere")
    assert tree.verify(moved).sha256 == before


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[5000] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")


def link(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/etc/hostname")


def linked_folder(folder: Path) -> None:
    (folder / "more").symlink_to("/etc")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def listed(folder: Path, path: str) -> None:
    entry = {"path": path, "size_bytes": 0, "sha256": hashlib.sha256().hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"files": [entry]}))


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        pytest.param(flip, errors.Damaged, "model.safetensors has SHA-256", id="one changed bit"),
        pytest.param(
            lambda folder: (folder / "config.json").write_text("{} "),
            errors.Damaged,
            "config.json has 3 bytes and not 2",
            id="a longer file",
        ),
        pytest.param(
            lambda folder: (folder / "config.json").unlink(),
            errors.NotFound,
            "config.json is missing",
            id="a missing file",
        ),
        pytest.param(
            lambda folder: (folder / "deep" / "extra.py").write_text(""),
            errors.Damaged,
            "extra.py is not in manifest",
            id="an extra file",
        ),
        pytest.param(pickle, errors.Unsupported, "pytorch_model.bin is a pickle", id="a pickle"),
        pytest.param(link, errors.Unsupported, "tokenizer.json is a symbolic link", id="a link"),
        pytest.param(linked_folder, errors.Unsupported, "more is a symbolic link", id="a linked folder"),
        pytest.param(fifo, errors.Unsupported, "pipe is not a plain file", id="a pipe"),
        pytest.param(
            lambda folder: (folder / "manifest.json").unlink(),
            errors.NotFound,
            "hermes model manifest",
            id="no manifest",
        ),
        pytest.param(
            lambda folder: (folder / "manifest.json").write_text("{"),
            errors.Damaged,
            "manifest.json at its top",
            id="half a manifest",
        ),
        pytest.param(
            lambda folder: listed(folder, "../secret"), errors.Damaged, "plain path", id="a path outside"
        ),
        pytest.param(
            lambda folder: listed(folder, "/etc/passwd"), errors.Damaged, "plain path", id="an absolute path"
        ),
    ],
)
def test_a_folder_that_is_not_as_listed_is_refused_by_name(folder: Path, spoil, error, says):
    spoil(folder)
    with pytest.raises(error, match=says):
        tree.verify(folder)


def test_a_file_swapped_after_the_check_is_noticed_after_the_load(folder: Path):
    verified = tree.verify(folder)
    swapped = folder / "swapped"
    swapped.write_bytes((folder / "model.safetensors").read_bytes())
    swapped.replace(folder / "model.safetensors")
    with pytest.raises(errors.Damaged, match=r"model\.safetensors changed"):
        verified.still()


def test_a_file_added_after_the_check_is_noticed_after_the_load(folder: Path):
    verified = tree.verify(folder)
    (folder / "late.json").write_text("{}")
    with pytest.raises(errors.Damaged, match="came or went"):
        verified.still()


def test_no_manifest_is_written_for_a_pickle(folder: Path):
    pickle(folder)
    with pytest.raises(errors.Unsupported, match="convert it to safetensors"):
        tree.write_manifest(folder)


def test_a_path_is_resolved_to_its_folder(folder: Path):
    assert tree.resolve(str(folder)) == folder.resolve()
    assert tree.resolve(folder) == folder.resolve()


def test_a_model_that_is_nowhere_is_refused_with_the_remedy(tmp_path: Path):
    with pytest.raises(errors.NotFound, match="give the path of its folder"):
        tree.resolve(tmp_path / "nothing")


@pytest.mark.parametrize("name", tree.bundled())
def test_a_bundled_model_is_what_its_manifest_says(name: str):
    assert tree.verify(tree.resolve(name)).manifest.files
