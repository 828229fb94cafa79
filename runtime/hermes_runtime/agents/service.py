"""Any agent as a gRPC process: acts in, acts out, each delivery handled once and billed.

The same for planner, coder and tester: read the acts, resolve what is anchored (but for logs that
prompts show by their heads), let the handler answer, write the answer as the arm wants it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from google.protobuf.message import Message
from grpc import aio

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2, agent_pb2_grpc
from hermes.model.v1 import model_pb2
from hermes_runtime.acts import build, codec, post
from hermes_runtime.acts.ahead import reads_of
from hermes_runtime.acts.anchors import Reads
from hermes_runtime.acts.receive import Receiver
from hermes_runtime.acts.resolve import BlobCache, resolve
from hermes_runtime.agents.coder import Coder
from hermes_runtime.agents.conversation import Agent, Assignment, Heard, Inbox
from hermes_runtime.agents.planner import Planner
from hermes_runtime.agents.tester import Tester
from hermes_runtime.models.client import Cost, ModelClient
from hermes_runtime.sandbox.choose import choose
from hermes_runtime.store.client import StoreClient
from hermes_runtime.supervise import rpc
from hermes_runtime.supervise.seal import Seal
from hermes_runtime.supervise.seal_service import telling

PATIENCE_SECONDS = 120.0
"""How long a store that was lost is waited for."""

MODEL_TRIES = 60
"""Times that a model that was lost is asked; it loads for seconds."""

Role = Literal["planner", "coder", "tester"]
Answer = TypeVar("Answer", bound=Message)
Context = aio.ServicerContext[Any, Any]


class BilledModel:
    """The model as a handler calls it; every call is added to the expense of its delivery."""

    def __init__(self, client: ModelClient, expense: agent_pb2.Expense) -> None:
        self._client = client
        self._expense = expense

    async def generate(self, request: model_pb2.GenerateRequest) -> model_pb2.GenerateResponse:
        """See ModelCalls."""
        return await self._billed("generate", self._client.generate(request), request.prompt)

    async def score(self, request: model_pb2.ScoreRequest) -> model_pb2.ScoreResponse:
        """See ModelCalls."""
        return await self._billed("score", self._client.score(request), request.prompt)

    async def context_tokens(self) -> int:
        """See ModelCalls."""
        description, _ = await self._client.describe()
        return description.context_tokens

    async def _billed(
        self, method: str, call: Awaitable[tuple[Answer, Cost]], prompt: model_pb2.Prompt
    ) -> Answer:
        response, cost = await call
        usage: model_pb2.Usage = response.usage  # type: ignore[attr-defined]  # both answers have one
        self._expense.model_calls.append(
            agent_pb2.ModelCall(
                method=method,
                prompt_tokens_new=usage.prompt_tokens_new,
                prompt_tokens_cached=usage.prompt_tokens_cached,
                prompt_tokens_reread=usage.prompt_tokens_reread,
                decoded_tokens=usage.decoded_tokens,
                seconds=cost.seconds,
                request_bytes=cost.request_bytes,
                response_bytes=cost.response_bytes,
                prompt_sha256=hashlib.sha256(prompt.SerializeToString(deterministic=True)).digest(),
            )
        )
        return response


class AgentServicer(agent_pb2_grpc.AgentServiceServicer):
    """AgentService over one handler. Use as an async context: leaving it ends what is in flight."""

    def __init__(self, agent: Agent, store: StoreClient, model: ModelClient) -> None:
        self._agent = agent
        self._role = post.role_name(agent.role)
        self._store = store
        self._model = model
        self._cache = BlobCache()
        self._receiver = Receiver(self._handle)

    async def __aenter__(self) -> AgentServicer:
        await self._receiver.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._receiver.__aexit__(*exc)
        await self._agent.close()

    async def Deliver(self, request: agent_pb2.DeliverRequest, context: Context) -> agent_pb2.DeliverResponse:
        asked = codec.decode_all(request.acts)[-1]
        build.check(asked)
        return await self._receiver.receive(asked, request)

    async def Describe(
        self, request: agent_pb2.DescribeRequest, context: Context
    ) -> agent_pb2.DescribeResponse:
        return agent_pb2.DescribeResponse(role=self._agent.role, schema_versions=[build.SCHEMA_VERSION])

    async def _handle(self, request: agent_pb2.DeliverRequest) -> agent_pb2.DeliverResponse:
        started = time.perf_counter()
        expense = agent_pb2.Expense()
        acts = codec.decode_all(request.acts)
        heard = tuple([await self._heard(act, expense) for act in acts])
        asked = acts[-1]
        assignment = Assignment(
            inbox=Inbox(heard),
            profile=request.profile,
            trace=asked.trace_id.hex(),
            model=BilledModel(self._model, expense),
            expense=expense,
        )
        envelopes = []
        for index, say in enumerate(await self._agent.handle(assignment)):
            bare = build.answer_to(asked, index, kind=say.kind, sender=self._agent.role, header=say.header)
            envelopes.append(
                await post.reply(
                    bare, say.content, profile=request.profile, store=self._store, expense=expense
                )
            )
        expense.handling_seconds = time.perf_counter() - started
        return agent_pb2.DeliverResponse(acts=envelopes, expense=expense)

    async def _heard(self, act: pb.Act, expense: agent_pb2.Expense) -> Heard:
        payload = act.WhichOneof("payload")
        if payload == "anchor":
            name = build.name_of_alias(act.anchor.alias) if build.check(act) is None else ""
            if reads_of(name, self._role) is not Reads.CODE:
                return Heard(act=act, content=None)
        if payload == "text":
            build.check(act)
            return Heard(act=act, content=None)
        return Heard(act=act, content=await resolve(act, self._store, self._cache, expense))


AGENTS: dict[Role, Callable[[str], Agent]] = {
    "planner": lambda sandbox: Planner(),
    "coder": lambda sandbox: Coder(),
    "tester": lambda sandbox: Tester(choose(sandbox), at_once=min(4, os.cpu_count() or 1)),  # type: ignore[arg-type]  # checked by `choose`
}


async def serve(
    role: Role,
    *,
    socket: Path,
    store: Path,
    model: Path,
    sandbox: str,
    ready_file: Path | None = None,
    seal: Seal | None = None,
) -> None:
    """Serve one agent, and what its seal refused, at `socket` until SIGTERM.

    Unsupported if the tester's sandbox cannot run here.
    """
    agent = AGENTS[role](sandbox)
    async with (
        StoreClient(store, patience_seconds=PATIENCE_SECONDS) as store_client,
        ModelClient(model, tries=MODEL_TRIES) as model_client,
        AgentServicer(agent, store_client, model_client) as servicer,
    ):
        add = partial(agent_pb2_grpc.add_AgentServiceServicer_to_server, servicer)
        await rpc.serve(socket, [add, *telling(seal)], ready_file=ready_file)
