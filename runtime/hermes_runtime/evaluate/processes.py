"""The processes of a run on one machine: what is started, with which sockets, in which order."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hermes.agent.v1 import agent_pb2, agent_pb2_grpc
from hermes.model.v1 import model_pb2, model_pb2_grpc
from hermes_runtime.models import ModelSpec
from hermes_runtime.supervise.rpc import call, channel
from hermes_runtime.supervise.tree import ProcessTree, Program

READY_SECONDS = 5.0
"""Longest that one question whether a process is ready may take."""

AGENTS = ("planner", "coder", "tester")


@dataclass(frozen=True, slots=True)
class Sockets:
    """Where each process serves."""

    folder: Path

    def of(self, name: str) -> Path:
        """The socket of a process."""
        return self.folder / name


@contextmanager
def sockets() -> Iterator[Sockets]:
    """A folder of mode 0700 for the sockets; its path is short, as Unix sockets demand."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    with tempfile.TemporaryDirectory(prefix="hermes-", dir=base) as folder:
        yield Sockets(Path(folder))


def hermes(*words: str | Path) -> Sequence[str]:
    """The command line of another process of this program."""
    return [sys.executable, "-m", "hermes_runtime.cli", *map(str, words)]


async def start_store(tree: ProcessTree, at: Sockets, folder: Path) -> None:
    """Start the store over `folder`."""
    from hermes_runtime.store.client import StoreClient

    async def ready() -> None:
        async with StoreClient(at.of("store")) as client:
            await client.stat([])

    argv = hermes("store", "serve", "--socket", at.of("store"), "--folder", folder, "--end-with-parent")
    await tree.start(Program(name="store", argv=argv, ready=ready))


async def start_model(tree: ProcessTree, at: Sockets, spec: ModelSpec) -> model_pb2.DescribeResponse:
    """Start the model; what was really loaded."""
    found: list[model_pb2.DescribeResponse] = []

    async def ready() -> None:
        async with channel(at.of("model")) as open_channel:
            stub = model_pb2_grpc.ModelServiceStub(open_channel)
            request = model_pb2.DescribeRequest()
            found[:] = [await call(stub.Describe, request, timeout_seconds=READY_SECONDS)]

    argv = hermes(
        *("model", "serve", "--socket", at.of("model"), "--end-with-parent"),
        *("--backend", spec.backend.value, "--path", spec.path, "--device", spec.device),
        *("--context-tokens", str(spec.context_tokens), "--slots", str(spec.slots)),
        *("--quantization", spec.quantization),
    )
    await tree.start(Program(name="model", argv=argv, ready=ready, ready_seconds=600.0))
    return found[0]


async def start_agents(tree: ProcessTree, at: Sockets, sandbox: str) -> None:
    """Start planner, coder and tester, all at once."""
    async with asyncio.TaskGroup() as starting:
        for role in AGENTS:
            starting.create_task(_start_agent(tree, at, role, sandbox), name=role)


async def _start_agent(tree: ProcessTree, at: Sockets, role: str, sandbox: str) -> None:
    async def ready() -> None:
        async with channel(at.of(role)) as open_channel:
            stub = agent_pb2_grpc.AgentServiceStub(open_channel)
            await call(stub.Describe, agent_pb2.DescribeRequest(), timeout_seconds=READY_SECONDS)

    argv = hermes(
        *("agent", "serve", role, "--socket", at.of(role), "--end-with-parent"),
        *("--store", at.of("store"), "--model", at.of("model"), "--sandbox", sandbox),
    )
    await tree.start(Program(name=role, argv=argv, ready=ready))
