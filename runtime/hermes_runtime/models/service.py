"""The model as a process: the port over gRPC at a Unix socket.

The server answers from the start, with UNAVAILABLE until the model has decoded a real token; a load that
fails ends the process with its error. A call that is cancelled or out of time is cancelled in the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from grpc import aio

from hermes.model.v1 import model_pb2 as pb
from hermes.model.v1 import model_pb2_grpc as rpc_pb
from hermes_runtime import errors
from hermes_runtime.models import ModelSpec
from hermes_runtime.models.instances import Event, PortableMultiInstanceManager
from hermes_runtime.models.roster import Budgets
from hermes_runtime.models.stepping import Request, Response
from hermes_runtime.supervise import rpc
from hermes_runtime.supervise.ready import ReadyFile
from hermes_runtime.supervise.seal import Seal
from hermes_runtime.supervise.seal_service import telling

if TYPE_CHECKING:
    from collections.abc import Sequence

    Context = aio.ServicerContext[Request, Response]


class ModelService(rpc_pb.ModelServiceServicer):
    """Calls into a manager, which may still be loading."""

    def __init__(self, manager: PortableMultiInstanceManager) -> None:
        self._manager = manager

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        """What was loaded."""
        return self._manager.describe()

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        """Tokens of each text."""
        return cast(pb.CountTokensResponse, await self._answer(request))

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """Completions."""
        return cast(pb.GenerateResponse, await self._answer(request))

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """Log probabilities."""
        return cast(pb.ScoreResponse, await self._answer(request))

    async def _answer(self, request: Request) -> Response:
        self._manager.describe()  # PeerLost while loading: the caller waits, not the queue
        ticket = self._manager.submit(request)
        try:
            return await asyncio.wrap_future(ticket.future)
        except asyncio.CancelledError:
            ticket.cancel()
            raise


async def serve(
    socket: Path,
    spec: ModelSpec | Sequence[ModelSpec],
    *,
    budgets: Budgets | None = None,
    observe: Callable[[Event], None] = lambda event: None,
    stopping: asyncio.Event | None = None,
    ready_file: Path | None = None,
    seal: Seal | None = None,
) -> None:
    """Load and serve until SIGTERM, SIGINT or `stopping`; then let calls in flight end.

    `ready_file` is written once the model has decoded a token. What `seal` refused is told too.
    Raises what the load raises: NotFound, Damaged, Unsupported.
    """
    specs = [spec] if isinstance(spec, ModelSpec) else list(spec)
    stop = stopping or asyncio.Event()
    failures: list[errors.HermesError] = []
    manager = PortableMultiInstanceManager(budgets=budgets, observe=observe)

    async def load() -> None:
        try:
            await asyncio.to_thread(manager.initialize, specs)
            ready.write(f"unix:{socket}")
        except errors.HermesError as error:
            failures.append(error)
            stop.set()

    async def answer() -> None:
        def add(server: aio.Server) -> None:
            rpc_pb.add_ModelServiceServicer_to_server(ModelService(manager), server)

        try:
            await rpc.serve(socket, [add, *telling(seal)], stopping=stop)
        finally:
            await asyncio.to_thread(manager.shutdown, False)

    with ReadyFile(ready_file) as ready:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load(), name="load")
            tasks.create_task(answer(), name="answer")
    if failures and not isinstance(failures[0], errors.PeerLost):
        raise failures[0]
