"""The processes of a run in a pod: started by others, waited for and watched here.

Kubernetes restarts a sidecar that died; what was lost meanwhile is a short wait for its callers, as on
one machine. One that stays away longer than LOST_SECONDS ends the shard, which another pod takes up.
"""

from __future__ import annotations

import asyncio
import time

from grpc import ChannelConnectivity

from hermes.agent.v1 import agent_pb2, agent_pb2_grpc
from hermes.model.v1 import model_pb2, model_pb2_grpc
from hermes_runtime.errors import PeerLost, TimedOut
from hermes_runtime.evaluate.processes import AGENTS, READY_SECONDS, Sockets
from hermes_runtime.supervise import rpc

LOST_SECONDS = 300.0
"""How long a sidecar may be away: longer than Kubernetes waits before it restarts one that died often."""

WATCH_SECONDS = 5.0
"""Between two looks at all of them."""

_PAUSE_SECONDS = 0.05


class SidecarLost(Exception):
    """A sidecar that does not come (back); `name` is its name. No error of a call: it ends the shard."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Sidecars:
    """Model and agents at their sockets. Use as an async context."""

    def __init__(self, at: Sockets, *, lost_seconds: float = LOST_SECONDS) -> None:
        self._lost_seconds = lost_seconds
        self._channels = {name: rpc.channel(at.of(name)) for name in ("model", *AGENTS)}
        self._agents = {role: agent_pb2_grpc.AgentServiceStub(self._channels[role]) for role in AGENTS}
        self._model = model_pb2_grpc.ModelServiceStub(self._channels["model"])

    async def __aenter__(self) -> Sidecars:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for channel in self._channels.values():
            await channel.close(None)

    async def start(self, timeout_seconds: float) -> model_pb2.DescribeResponse:
        """Wait until all serve; what the model loaded. SidecarLost, naming one, if that takes too long."""
        for name in self._channels:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._until_it_answers(name)
            except TimeoutError as error:
                raise SidecarLost(
                    name, f"{name} did not serve within {timeout_seconds:.0f} s: see its container's log"
                ) from error
        return await self._describe_model()

    async def until_ready(self, name: str) -> None:
        """See desk.Processes."""
        if self._channels[name].get_state(try_to_connect=True) is ChannelConnectivity.READY:
            return
        await self._until_it_answers(name)

    async def watch(self) -> None:
        """Look at them from time to time, for ever. SidecarLost for one that stays away."""
        seen = dict.fromkeys(self._channels, time.monotonic())
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for name in self._channels:
                if await self._answers(name):
                    seen[name] = time.monotonic()
                elif time.monotonic() - seen[name] > self._lost_seconds:
                    raise SidecarLost(
                        name, f"{name} has not served for {self._lost_seconds:.0f} s: see its container's log"
                    )

    async def _until_it_answers(self, name: str) -> None:
        while True:
            if await self._answers(name):
                return
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _answers(self, name: str) -> bool:
        """Whether it serves. One that is too busy to say so does."""
        try:
            if name == "model":
                await self._describe_model()
            else:
                request = agent_pb2.DescribeRequest()
                await rpc.call(self._agents[name].Describe, request, timeout_seconds=READY_SECONDS)
        except PeerLost:
            return False
        except TimedOut:
            return True
        return True

    async def _describe_model(self) -> model_pb2.DescribeResponse:
        request = model_pb2.DescribeRequest()
        return await rpc.call(self._model.Describe, request, timeout_seconds=READY_SECONDS)
