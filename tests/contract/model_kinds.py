"""Every model behind every door, as the port has it: what the contract suite runs over."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hermes.model.v1 import model_pb2 as pb
from hermes_runtime.models import Backend, Model, ModelSpec, tree
from hermes_runtime.models.client import ModelClient
from hermes_runtime.models.instances import PortableMultiInstanceManager
from hermes_runtime.models.worker import model_of
from tests.contract import tiny_model

SCRIPT = """
context_tokens: 256
dialect: chat
rules:
  - {match: 'def add', completions: ['return a + b', 'return a - b', 'raise ValueError(a)']}
default: {completions: ['I do not know what to say to that', 'nor to this']}
"""

KINDS = ["scripted", "tiny", *tree.bundled()]
DOORS = ["in process", "manager", "grpc"]

_SERVE = """
import asyncio, sys
from pathlib import Path
from hermes_runtime.models import Backend, ModelSpec
from hermes_runtime.models.service import serve
spec = ModelSpec(backend=Backend(sys.argv[2]), path=Path(sys.argv[3]), context_tokens=256, device="cpu")
asyncio.run(serve(Path(sys.argv[1]), spec))
"""


def spec_of(kind: str, folder: Path, **fields: object) -> ModelSpec:
    """The spec of a kind of model, which is made in `folder`."""
    backend, path = Backend.TRANSFORMERS, folder / kind
    if kind == "scripted":
        backend = Backend.SCRIPTED
        path.write_text(SCRIPT)
    elif kind != "tiny":
        path = tree.resolve(kind)
    elif not path.exists():
        tiny_model.write(path)
    given = {"backend": backend, "path": path, "context_tokens": 256, "device": "cpu"} | fields
    return ModelSpec(**given)  # type: ignore[arg-type]  # a table of fields


class Called:
    """The port over a client, for tests that are not async."""

    def __init__(self, socket: Path, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._client = runner.run(self._connect(socket))

    def load(self) -> pb.DescribeResponse:
        return self._runner.run(self._client.wait_until_ready(120))

    def describe(self) -> pb.DescribeResponse:
        return self._runner.run(self._client.describe())[0]

    def count_tokens(self, request: pb.CountTokensRequest) -> pb.CountTokensResponse:
        return self._runner.run(self._client.count_tokens(request))[0]

    def generate(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        return self._runner.run(self._client.generate(request))[0]

    def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        return self._runner.run(self._client.score(request))[0]

    def close(self) -> None:
        self._runner.run(self._client.close())

    @staticmethod
    async def _connect(socket: Path) -> ModelClient:
        return ModelClient(socket)


class Managed:
    """The port over a manager of one worker."""

    def __init__(self, manager: PortableMultiInstanceManager, spec: ModelSpec) -> None:
        self._spec = spec
        self._manager = manager
        self.describe = manager.describe
        self.count_tokens = manager.count_tokens
        self.generate = manager.generate
        self.score = manager.score

    def load(self) -> pb.DescribeResponse:
        return self._manager.initialize([self._spec])


@contextmanager
def serving(socket: Path, spec: ModelSpec) -> Iterator[subprocess.Popen[bytes]]:
    """A real process that serves `spec` at `socket`."""
    command = [sys.executable, "-c", _SERVE, str(socket), spec.backend.value, str(spec.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, env=environment) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def opened(kind: str, door: str, folder: Path) -> Iterator[Model]:
    """A loaded model behind a door."""
    spec = spec_of(kind, folder)
    model: Model
    match door:
        case "in process":
            model = model_of(spec, lambda: None)
            model.load()
            yield model
        case "manager":
            with PortableMultiInstanceManager() as manager:
                model = Managed(manager, spec)
                model.load()
                yield model
        case _:
            socket = folder / "run" / "model.sock"
            with serving(socket, spec), asyncio.Runner() as runner:
                called = Called(socket, runner)
                called.load()
                yield called
                called.close()
