"""A load and a generate under the seal: nothing of them even asks for a socket to the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hermes_runtime.models import tree
from tests.contract import tiny_model

COMMIT = "0123456789abcdef" * 2 + "01234567"
PROGRAM = """
import json, socket, sys
from pathlib import Path
from hermes_runtime.supervise.seal import seal
wall = seal()  # before anything that brings threads
from hermes.model.v1 import model_pb2 as pb
from hermes_runtime.models import Backend, ModelSpec
from hermes_runtime.models.instances import PortableMultiInstanceManager
spec = ModelSpec(backend=Backend.TRANSFORMERS, path=Path(sys.argv[1]), device="cpu", context_tokens=128)
with PortableMultiInstanceManager() as manager:
    described = manager.initialize([spec])
    text = pb.Prompt(text="def add(a, b):")
    chat = pb.Prompt(messages=[pb.Message(role="user", content="add two")])
    completions = sum(
        len(manager.generate(pb.GenerateRequest(prompt=prompt, max_tokens=8)).completions)
        for prompt in (text, chat)
    )
    scores = manager.score(pb.ScoreRequest(prompt=text, continuations=["x"])).logprobs
quiet = wall.evidence()
try:
    socket.socket().close()
except OSError:
    pass
print(json.dumps({
    "files": described.verified_files, "completions": completions, "scores": len(scores), "quiet": quiet,
    "counted_after_a_socket": wall.attempts,
}))
"""


def of_the_hub(folder: Path) -> Path:
    """A model as a pull leaves it, whose files name the repository that they are from."""
    made = tiny_model.write(tree.cached(folder, "acme/tiny", COMMIT))
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((made / name).read_text())
        (made / name).write_text(
            json.dumps(content | {"_name_or_path": "acme/tiny", "name_or_path": "acme/tiny"})
        )
    tree.write_manifest(made, licence="Apache-2.0", source=f"acme/tiny@{COMMIT}", dialect="chat")
    return made


@pytest.mark.parametrize(
    "make", [lambda folder: tiny_model.write(folder / "mine"), of_the_hub], ids=["local", "of the hub"]
)
def test_a_load_and_a_generate_ask_for_no_socket_under_the_seal(tmp_path: Path, make):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, make(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout.splitlines()[-1])
    assert told.pop("files") >= 5
    assert told == {
        "completions": 2,
        "scores": 1,
        "quiet": {"wall": "seccomp", "counted": True, "attempts": 0, "attempted_by": []},
        "counted_after_a_socket": 1,
    }
