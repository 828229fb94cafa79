"""Models from a hub on this machine: pulled, resumed, refused, verified; the command as a Job runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermes_runtime.models.tree import cached, verify
from tests.contract import tiny_model
from tests.e2e.conftest import environment, hermes_command
from tests.e2e.fake_hub import COMMIT, REPO, Hub, running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a tiny model, and what else repositories hold."""
    folder = tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    return {
        **files,
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "LICENSE": b"terms",
        "pytorch_model.bin": b"a pickle",
        "modeling_tiny.py": b"raise SystemExit",
        "onnx/model.safetensors": b"the same for another program",
        "consolidated.safetensors": b"the same once more",
        "manifest.json": b"{}",
    }


@pytest.fixture
def hub(model: dict[str, bytes]) -> Iterator[Hub]:
    with running(Hub(files=dict(model))) as up:
        yield up


def pulled(
    hub: Hub, to: Path, *, repo: str = REPO, revision: str = COMMIT, **extra: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """`hermes model pull`, and its termination message."""
    log = to.with_name("termination-log")
    done = subprocess.run(
        hermes_command(
            *("model", "pull", repo, "--revision", revision, "--to", to, "--termination-log", log)
        ),
        env={
            **{name: value for name, value in environment().items() if not name.startswith("HF_")},
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(to.with_name("home")),
            **extra,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert len(log.read_bytes()) <= 4000
    return done, json.loads(log.read_text())


def test_a_model_is_pulled_whole_and_verified_without_code_and_pickles(hub: Hub, tmp_path: Path):
    to = cached(tmp_path / "models", REPO, COMMIT)
    done, told = pulled(hub, to)
    assert done.returncode == 0, done.stderr
    assert to.name == f"acme--tiny@{COMMIT}"
    assert sorted(path.name for path in to.iterdir()) == [
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    tree = verify(to)
    assert (tree.manifest.licence, tree.manifest.source) == ("apache-2.0", f"{REPO}@{COMMIT}")
    assert told == {
        "version": 1,
        "treeSha256": tree.sha256,
        "bytes": sum(file.size_bytes for file in tree.manifest.files),
        "files": 7,
        "licence": "apache-2.0",
        "failure": None,
    }
    assert "pull: verified: 7 files" in done.stderr


def test_what_is_there_is_only_verified_and_the_hub_is_not_asked(hub: Hub, tmp_path: Path):
    to = tmp_path / "model"
    _, first = pulled(hub, to)
    hub.asked.clear()
    hub.is_down = True
    done, second = pulled(hub, to)
    assert (done.returncode, second) == (0, first)
    assert hub.asked == []


def test_a_changed_byte_of_what_is_there_is_found(hub: Hub, tmp_path: Path):
    to = tmp_path / "model"
    pulled(hub, to)
    weights = bytearray((to / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (to / "model.safetensors").write_bytes(weights)
    done, told = pulled(hub, to)
    assert done.returncode == 3
    assert (told["failure"]["who"], told["failure"]["reason"]) == ("cluster", "TreeDamaged")
    assert "model.safetensors has SHA-256" in told["failure"]["message"]


def test_a_connection_that_is_cut_is_resumed_where_it_was(hub: Hub, tmp_path: Path):
    piece_bytes = 10 << 20  # what the Hub's library writes at a time
    hub.files["model.safetensors"] = b"weights." * (2 * piece_bytes // 8)
    hub.cut_at = piece_bytes + piece_bytes // 2
    done, _ = pulled(hub, tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert [span for name, span in gets(hub) if name == "model.safetensors"] == ["", f"bytes={piece_bytes}-"]
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_a_pull_that_was_cut_off_goes_on_with_the_files_that_are_missing(hub: Hub, tmp_path: Path):
    to = tmp_path / "model"
    hub.cut_at, hub.is_down_after_cut = 1000, True
    done, told = pulled(hub, to)
    assert done.returncode == 1
    assert (told["failure"]["who"], told["failure"]["reason"]) == ("cluster", "PullFailed")
    kept = {path.name for path in to.iterdir()} & set(hub.files)
    assert kept
    assert "manifest.json" not in kept
    hub.is_down = False
    hub.asked.clear()
    done, told = pulled(hub, to)
    assert done.returncode == 0, done.stderr
    assert told["failure"] is None
    fetched = {name for name, _ in gets(hub)}
    assert "model.safetensors" in fetched
    assert not fetched & kept
    assert verify(to).manifest.licence == "apache-2.0"


def test_what_a_killed_pull_left_half_written_takes_no_room(hub: Hub, tmp_path: Path):
    litter = tmp_path / "model" / ".cache" / "huggingface" / "download" / "weights.0000.incomplete"
    litter.parent.mkdir(parents=True)
    litter.write_bytes(b"half")
    hub.gated = True
    assert pulled(hub, tmp_path / "model")[0].returncode == 2
    assert not litter.exists()


def gets(hub: Hub) -> list[tuple[str, str]]:
    """(file, Range) of each download."""
    return [
        (path.rsplit("/", 1)[1], span)
        for method, path, span in hub.asked
        if method == "GET" and "/resolve/" in path
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_other_bytes_than_the_hub_lists_are_fetched_again_and_never_kept(hub: Hub, tmp_path: Path, name: str):
    wrong = bytearray(hub.files[name])
    wrong[-1] ^= 1
    hub.lies[name] = [bytes(wrong)]
    done, _ = pulled(hub, tmp_path / "healed")
    assert done.returncode == 0, done.stderr
    assert "came with other bytes than the Hub lists" in done.stderr
    assert (tmp_path / "healed" / name).read_bytes() == hub.files[name]
    hub.lies[name] = [bytes(wrong), bytes(wrong)]
    done, told = pulled(hub, tmp_path / "refused")
    assert done.returncode == 1
    assert "twice: removed" in told["failure"]["message"]
    assert not (tmp_path / "refused" / name).exists()
    assert not (tmp_path / "refused" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("fault", "code", "reason", "words"),
    [
        pytest.param({"gated": True}, 2, "Gated", "accept them on the model's page", id="gated"),
        pytest.param({"repo": "acme/other"}, 2, "RevisionNotFound", "no such repository", id="no repo"),
        pytest.param({"revision": "a" * 40}, 2, "RevisionNotFound", "no such commit", id="no commit"),
        pytest.param({"revision": "main"}, 2, "PullFailed", "40 hexadecimal digits", id="a branch"),
        pytest.param({"repo": "acme/../x"}, 2, "PullFailed", "no repository", id="a path"),
        pytest.param({"is_down": True}, 1, "PullFailed", "cannot be reached", id="down"),
        pytest.param({"pickles": True}, 2, "PullFailed", "no safetensors", id="only pickles"),
        pytest.param({"huge": True}, 1, "PullFailed", "has no room", id="no room"),
    ],
)
def test_a_refusal_says_whose_it_is_to_mend_and_how(
    hub: Hub, tmp_path: Path, fault: dict[str, Any], code: int, reason: str, words: str
):
    hub.gated, hub.is_down = bool(fault.get("gated")), bool(fault.get("is_down"))
    if fault.get("pickles"):
        del hub.files["model.safetensors"], hub.files["consolidated.safetensors"]
    if fault.get("huge"):
        hub.info = lambda: {  # type: ignore[method-assign]  # a listing that no disk can hold
            "id": REPO,
            "sha": COMMIT,
            "siblings": [{"rfilename": "model.safetensors", "size": 2**60, "blobId": "0" * 40}],
        }
    names = {name: fault[name] for name in ("repo", "revision") if name in fault}
    done, told = pulled(hub, tmp_path / "model", **names)
    assert (done.returncode, told["failure"]["reason"]) == (code, reason), done.stderr
    assert words in told["failure"]["message"]
    assert told["failure"]["who"] == ("cluster" if code == 1 else "user")
    assert "Traceback" not in done.stderr


def test_a_hub_that_nobody_serves_is_unreachable(hub: Hub, tmp_path: Path):
    done, told = pulled(hub, tmp_path / "model", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "cannot be reached" in told["failure"]["message"]


def test_a_folder_with_something_else_is_left_as_it_is(hub: Hub, tmp_path: Path):
    to = tmp_path / "model"
    to.mkdir()
    (to / "diary.txt").write_text("mine")
    done, told = pulled(hub, to)
    assert (done.returncode, told["failure"]["reason"]) == (2, "PullFailed")
    assert "holds diary.txt" in told["failure"]["message"]
    assert [path.name for path in to.iterdir()] == ["diary.txt"]
    other = tmp_path / "other"
    tiny_model.write(other)
    done, told = pulled(hub, other)
    assert (done.returncode, told["failure"]["reason"]) == (2, "PullFailed")
    assert "holds test and not acme/tiny@" in told["failure"]["message"]
