"""The small model is made for real: same bytes from the same seed, a killed run ends like an unbroken one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hermes_runtime.agents.prompts.line_repair import (
    PLACES,
    SPECIAL_TOKENS,
    Answer,
    render_answer,
    render_lines,
)
from hermes_runtime.train import make_model
from hermes_runtime.train.evaluate import measure
from hermes_runtime.train.recipe import SMALL
from hermes_runtime.train.shards import make_shards, sources_in
from hermes_runtime.train.sources import Module

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "runtime" / "hermes_runtime" / "models" / "bundled" / "repair"
CHILD = """
import sys
from pathlib import Path
from hermes_runtime.train import make_model
base = Path(sys.argv[1])
made = make_model(base / "model", True, work=base, threads=1, say=lambda line: print(line, flush=True))
print(made.tree_sha256)
"""


def start(base: Path) -> subprocess.Popen[str]:
    paths = [str(ROOT / "runtime"), str(ROOT / "operator"), str(ROOT / "proto" / "gen")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CHILD, str(base)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def shards_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole small run: its folder and its model's tree digest."""
    base = tmp_path_factory.mktemp("unbroken")
    child = start(base)
    output, _ = child.communicate(timeout=300)
    assert child.returncode == 0
    return base, output.split()[-1]


def test_a_killed_run_resumes_and_ends_with_the_weights_of_an_unbroken_one(unbroken, tmp_path):
    base, digest = unbroken
    broken = start(tmp_path)
    assert broken.stdout is not None
    for line in broken.stdout:
        if line.startswith("{") and json.loads(line)["step"] >= 5:
            break
    broken.send_signal(signal.SIGKILL)
    broken.communicate()
    assert not (tmp_path / "model").exists()

    resumed = start(tmp_path)
    output, _ = resumed.communicate(timeout=300)
    assert "resumed at step" in output
    assert output.split()[-1] == digest
    for folder in ("shards", "model"):
        assert shards_of(tmp_path / folder) == shards_of(base / folder)


def test_workers_change_no_byte_of_the_shards_and_another_seed_does(unbroken, tmp_path):
    base, _ = unbroken
    make_shards(sources_in(None), [], SMALL, tmp_path / "same", workers=2)
    assert shards_of(tmp_path / "same") == shards_of(base / "shards")
    make_shards(sources_in(None), [], dataclasses.replace(SMALL, seed=43), tmp_path / "other")
    assert shards_of(tmp_path / "other")["stdlib.tokens"] != shards_of(base / "shards")["stdlib.tokens"]


def test_a_finished_run_that_is_started_again_only_exports(unbroken):
    base, digest = unbroken
    said: list[str] = []
    made = make_model(base / "again", True, work=base, threads=1, say=said.append)
    assert made.tree_sha256 == digest
    assert made.steps == SMALL.steps
    assert f"resumed at step {SMALL.steps}" in said


def check_loads(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto")
    assert model.config.max_position_embeddings >= SMALL.context
    assert all(len(tokenizer(token)["input_ids"]) == 1 for token in SPECIAL_TOKENS)
    prompt = render_lines(["def f(a):", "    return a - 12"], "E assert 1 == 2")
    answer = render_answer(Answer(place=1, line="    return a + 12"))
    encoded = tokenizer(prompt + answer, return_tensors="pt")
    assert tokenizer.decode(encoded["input_ids"][0], skip_special_tokens=False) == prompt + answer
    logits = model(**encoded).logits
    assert logits.shape[-1] == len(tokenizer) == model.config.vocab_size
    assert len(PLACES) == 40


def check_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    listed = {entry["path"]: entry for entry in manifest["files"]}
    there = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    assert there - {"manifest.json"} == set(listed)
    assert [entry["path"] for entry in manifest["files"]] == sorted(listed)
    for path, entry in listed.items():
        data = (folder / path).read_bytes()
        assert (entry["size_bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest["licence"] == "Apache-2.0"
    assert manifest["dialect"] == "line_repair"


def test_the_made_folder_loads_offline_and_matches_its_manifest(unbroken):
    base, _ = unbroken
    check_manifest(base / "model")
    check_loads(base / "model")


def test_a_model_is_measured_on_modules_with_intervals_and_the_same_each_time(unbroken):
    base, _ = unbroken
    text = "".join(
        f"def f{n}(a, b):\n    if a < {n}:\n        a = b\n    return a + b\n\n\n" for n in range(6)
    )
    modules = [Module(package="p", path="m.py", text=text)]
    first = measure(base / "model", modules, count=4)
    assert first.examples == 4
    assert sum(n for n, _, _ in first.by_kind.values()) == 4
    assert 0 <= first.line_at_1.low <= first.line_at_1.value <= first.line_at_3.value <= 1
    assert first.joint_at_1.value <= first.joint_at_10.value
    assert first == measure(base / "model", modules, count=4)


def test_the_bundled_model_loads_offline_and_matches_its_manifest():
    check_manifest(BUNDLED)
    check_loads(BUNDLED)
    assert sum(f.stat().st_size for f in BUNDLED.iterdir()) <= 32 * 1024 * 1024
    assert (BUNDLED / "MODEL_CARD.md").is_file()
