"""The work of a run: every (instance, arm) in order, those that are recorded left out.

Decided here: the order, what a crash costs (a new attempt, up to spec.backoffLimit), and that a result
is recorded once, with its grade. The conversation itself is driver.py.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from hermes.agent.v1 import agent_pb2, agent_pb2_grpc
from hermes.model.v1 import model_pb2
from hermes_runtime.acts.arms import arm
from hermes_runtime.agents.service import MODEL_TRIES, PATIENCE_SECONDS
from hermes_runtime.document import HermesRun
from hermes_runtime.errors import Denied, HermesError, StaleWriter, Unauthenticated
from hermes_runtime.evaluate.driver import Conversation, Job, Talk
from hermes_runtime.evaluate.editable import editable_files
from hermes_runtime.evaluate.folder import RunFolder
from hermes_runtime.evaluate.grading import grade
from hermes_runtime.evaluate.instances import Instance
from hermes_runtime.evaluate.prepare import Prepared
from hermes_runtime.evaluate.processes import AGENTS, Sockets
from hermes_runtime.evaluate.progress import Progress
from hermes_runtime.evaluate.results import Grade, Result
from hermes_runtime.models.client import ModelClient
from hermes_runtime.sandbox.choose import choose
from hermes_runtime.store import ResultKey
from hermes_runtime.store.client import StoreClient
from hermes_runtime.supervise import rpc

CONTROL = "enumerate"
"""Arm of the control without a model."""


def work(document: HermesRun, instances: Sequence[Instance]) -> Iterator[tuple[Instance, str]]:
    """Every (instance, arm), interleaved in seeded order: all arms of an instance follow each other,
    so that pairs share the machine's state, and no arm is always first."""
    evaluate = document.spec.evaluate
    control = [CONTROL] if evaluate.control == "enumerate" else []
    arms = [name.value for name in evaluate.arms] + control
    order = random.Random(document.spec.seed)
    shuffled = list(instances)
    order.shuffle(shuffled)
    for instance in shuffled:
        order.shuffle(arms)
        for name in arms:
            yield instance, name


class Processes(Protocol):
    """The processes of a run, whoever starts them."""

    async def until_ready(self, name: str) -> None:
        """Wait until a process that may have been restarted serves again."""
        ...


class Desk:
    """Does a run's work over processes that are up."""

    def __init__(
        self,
        document: HermesRun,
        folder: RunFolder,
        prepared: Prepared,
        instances: Sequence[Instance],
        processes: Processes,
        at: Sockets,
        progress: Progress,
        *,
        run: str | None = None,
    ) -> None:
        """`run` is what results and streams are kept under; by default the document's name."""
        self._run = document.metadata.name if run is None else run
        self._document = document
        self._folder = folder
        self._prepared = prepared
        self._instances = instances
        self._processes = processes
        self._at = at
        self._progress = progress
        self._sandbox = choose(prepared.sandbox)
        self._grades: dict[tuple[str, str], Grade] = {}
        self._editable: dict[str, tuple[str, ...]] = {}

    async def run(self) -> None:
        """Do what is not recorded yet. Idempotent."""
        todo = list(work(self._document, self._instances))
        arms = list(dict.fromkeys(name for _, name in todo))
        async with (
            StoreClient(self._at.of("store"), patience_seconds=PATIENCE_SECONDS) as store,
            _Agents(self._at, self._processes) as peers,
        ):
            mine = {(instance.instance_id, name) for instance, name in todo}
            done = {
                (key.instance, key.arm): data
                async for key, data in store.results(self._run)
                if (key.instance, key.arm) in mine
            }
            known = [Result.model_validate_json(data) for data in done.values()]
            self._progress.run_started(len(todo), arms, done=known)
            for instance, name in todo:
                if (instance.instance_id, name) not in done:
                    await self._one(instance, name, store, peers)

    async def _one(self, instance: Instance, name: str, store: StoreClient, peers: _Agents) -> None:
        limit = self._document.spec.backoff_limit
        attempt = 1
        while await store.head(f"{self._run}/{instance.instance_id}/{name}/{attempt}"):
            attempt += 1
        last = attempt + limit
        while True:
            job = self._job(instance, name, attempt)
            conversation = Conversation(
                job,
                peers,
                store,
                on_phase=lambda phase, number: self._progress.phase(
                    instance.instance_id, name, phase, number
                ),
            )
            try:
                talk = await conversation.run()
            except (Denied, Unauthenticated):  # the store is not for us: no word about the instance
                raise
            except StaleWriter:  # another process is at this attempt; whose result is first will stand
                attempt += 1
                continue
            except HermesError as error:
                if attempt >= last or not error.retry_helps:
                    talk = conversation.talk
                    talk.failure, talk.cause = str(error), "driver"
                else:
                    self._progress.note(f"{instance.instance_id} {name}: {error}; attempt {attempt + 1}")
                    attempt += 1
                    continue
            await self._record(job, talk, store)
            return

    async def _record(self, job: Job, talk: Talk, store: StoreClient) -> None:
        instance = job.instance
        self._progress.phase(instance.instance_id, job.arm.name, "grading", talk.rounds)
        started = time.perf_counter()
        found = await self._grade(instance, job, talk.patch)
        result = Result(
            run=job.run,
            instance_id=instance.instance_id,
            arm=job.arm.name,
            repo=instance.repo,
            bug_kind=instance.bug_kind,
            attempt=job.attempt,
            patch=talk.patch,
            plausible=talk.plausible,
            grade=found,
            rounds=talk.rounds,
            test_runs=talk.test_runs,
            failure=talk.failure,
            cause=talk.cause,
            times=talk.times(time.perf_counter() - started),
            message_latencies_ms=tuple(talk.message_latencies_ms),
            deref_latencies_ms=tuple(talk.deref_latencies_ms),
            ledger=tuple(talk.rows),
            started_at=talk.started_at,
            stream=job.stream,
        )
        key = ResultKey(run=job.run, instance=instance.instance_id, arm=job.arm.name)
        _, standing = await store.record_result(key, result.model_dump_json().encode())
        self._progress.finished(Result.model_validate_json(standing))

    async def _grade(self, instance: Instance, job: Job, patch: str) -> Grade:
        """The grade of a patch, run once for all arms that submit the same."""
        if not patch:
            return _no_patch(instance)
        key = (instance.instance_id, patch)
        if key not in self._grades:
            self._grades[key] = await grade(instance, job.tree, patch, self._sandbox)
        return self._grades[key]

    def _job(self, instance: Instance, name: str, attempt: int) -> Job:
        evaluate = self._document.spec.evaluate
        tree = self._folder.trees / instance.instance_id
        if instance.instance_id not in self._editable:
            self._editable[instance.instance_id] = editable_files(instance, tree)
        return Job(
            run=self._run,
            instance=instance,
            tree=tree,
            editable_files=self._editable[instance.instance_id],
            arm=arm(name),
            dialect=self._prepared.dialect,
            seed=self._document.spec.seed,
            attempt=attempt,
            rounds=evaluate.rounds,
            candidates=evaluate.candidates,
            timeout_seconds=float(evaluate.instance_timeout_seconds),
        )


def _no_patch(instance: Instance) -> Grade:
    """The grade of an empty patch: nothing to run, nothing resolved."""
    return Grade(
        resolved=False,
        applied=False,
        fail_to_pass=dict.fromkeys(instance.FAIL_TO_PASS, False),
        pass_to_pass=dict.fromkeys(instance.PASS_TO_PASS, True),
    )


class _Agents:
    """The agents over their sockets."""

    def __init__(self, at: Sockets, processes: Processes) -> None:
        self._processes = processes
        self._model = ModelClient(at.of("model"), tries=MODEL_TRIES)
        self._channels = {role: rpc.channel(at.of(role)) for role in AGENTS}
        self._stubs = {role: agent_pb2_grpc.AgentServiceStub(open_) for role, open_ in self._channels.items()}

    async def __aenter__(self) -> _Agents:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._model.close()
        for open_channel in self._channels.values():
            await open_channel.close(None)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See driver.Peers."""
        response, _ = await self._model.count_tokens(model_pb2.CountTokensRequest(texts=texts))
        return list(response.counts)

    async def deliver(
        self, role: str, request: agent_pb2.DeliverRequest, *, timeout_seconds: float
    ) -> agent_pb2.DeliverResponse:
        """See driver.Peers."""
        return await rpc.call(self._stubs[role].Deliver, request, timeout_seconds=timeout_seconds)

    async def until_ready(self, role: str) -> None:
        """See driver.Peers."""
        await self._processes.until_ready(role)
