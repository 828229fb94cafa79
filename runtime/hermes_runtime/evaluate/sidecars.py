"""The processes of a run in a pod: started by others, waited for and watched here.

Kubernetes restarts a sidecar that died; what was lost meanwhile is a short wait for its callers, as on
one machine. One that stays away longer than LOST_SECONDS ends the shard, which another pod takes up.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from grpc import ChannelConnectivity

from hermes.agent.v1 import agent_pb2, agent_pb2_grpc
from hermes.model.v1 import model_pb2, model_pb2_grpc
from hermes.seal.v1 import seal_pb2, seal_pb2_grpc
from hermes_runtime.errors import HermesError, PeerLost, TimedOut
from hermes_runtime.evaluate.processes import AGENTS, READY_SECONDS, Sockets
from hermes_runtime.supervise import rpc

LOST_SECONDS = 300.0
"""How long a sidecar may be away: longer than Kubernetes waits before it restarts one that died often."""

WATCH_SECONDS = 5.0
"""Between two looks at all of them."""

_PAUSE_SECONDS = 0.05


Refused = Mapping[str, Sequence[seal_pb2.DescribeResponse]]
"""What the seals of the sidecars refused: by name, one for each start of it that was heard."""


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
        self._seals = {name: seal_pb2_grpc.SealServiceStub(each) for name, each in self._channels.items()}
        self._refused: dict[str, dict[bytes, seal_pb2.DescribeResponse]] = {n: {} for n in self._channels}
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
                    await self._ask_seal(name)
                elif time.monotonic() - seen[name] > self._lost_seconds:
                    raise SidecarLost(
                        name, f"{name} has not served for {self._lost_seconds:.0f} s: see its container's log"
                    )

    async def refused(self) -> Refused:
        """What each start of each sidecar has told last of what its seal refused."""
        for name in self._channels:
            await self._ask_seal(name)
        return {name: tuple(starts.values()) for name, starts in self._refused.items()}

    async def _ask_seal(self, name: str) -> None:
        with contextlib.suppress(HermesError):  # it is away, or has no seal: then it has told nothing
            request = seal_pb2.DescribeRequest()
            told = await rpc.call(self._seals[name].Describe, request, timeout_seconds=READY_SECONDS)
            self._refused[name][told.start] = told

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


def of_the_pod(own: Mapping[str, Any], refused: Refused) -> dict[str, Any]:
    """The evidence of a whole pod: the driver's `own` and that of its sidecars, as of one process.

    It counts as counted only if every process has counted; a sidecar that has told nothing has no seal.
    """
    told = [each for starts in refused.values() for each in starts]
    if own["attempts"] is None:
        return dict(own)
    is_whole = all(refused.values())
    callers = [{"process": "driver", **caller} for caller in own["attempted_by"]]
    for name, starts in refused.items():
        for start in starts:
            callers += [
                {
                    "process": name,
                    "pid": caller.pid,
                    "comm": caller.comm,
                    "syscall": caller.syscall,
                    "family": caller.family,
                    "count": caller.count,
                }
                for caller in start.attempted_by
            ]
    return {
        **own,
        "wall": own["wall"] if is_whole else "none",
        "counted": own["counted"] and is_whole and all(each.counted for each in told),
        "attempts": own["attempts"] + sum(each.attempts for each in told),
        "attempted_by": callers,
        "grpc_probes_refused": own["grpc_probes_refused"] + sum(each.grpc_probes_refused for each in told),
        "sealed": ", ".join(["driver", *(name for name, starts in refused.items() if starts)]),
    }
