"""What a sealed process was refused, told to who may open its socket: evidence from every process of a pod.

A process tells of itself and its descendants. One that is killed takes its count with it, so whoever needs
the whole asks from time to time, and keeps what each start of a process has told last.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from grpc import aio

from hermes.seal.v1 import seal_pb2, seal_pb2_grpc
from hermes_runtime.supervise.seal import Seal, evidence


class SealServicer(seal_pb2_grpc.SealServiceServicer):
    """SealService over this process's seal."""

    def __init__(self, seal: Seal) -> None:
        self._seal = seal
        self._start = os.urandom(16)

    async def Describe(
        self, request: seal_pb2.DescribeRequest, context: aio.ServicerContext[Any, Any]
    ) -> seal_pb2.DescribeResponse:
        found = await asyncio.to_thread(evidence, self._seal)
        return seal_pb2.DescribeResponse(
            start=self._start,
            counted=found["counted"],
            attempts=found["attempts"],
            grpc_probes_refused=found["grpc_probes_refused"],
            attempted_by=[seal_pb2.Attempt(**caller) for caller in found["attempted_by"]],
        )


def telling(seal: Seal | None) -> list[Callable[[aio.Server], None]]:
    """What to add to a server so that it tells; nothing without a seal."""
    if seal is None:
        return []
    return [partial(seal_pb2_grpc.add_SealServiceServicer_to_server, SealServicer(seal))]
