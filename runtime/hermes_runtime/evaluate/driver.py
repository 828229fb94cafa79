"""The driver: one instance under one arm, as a conversation of driver, planner, coder and tester.

A hub: every act passes through here, is appended to the event log as it was written, and is billed.
Agents are stateless, so each delivery carries what its receiver needs; what that costs is what the
arms differ in. A lost agent is waited for and asked again with the same acts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes_runtime.acts import ledger
from hermes_runtime.acts.arms import Arm
from hermes_runtime.acts.post import Letter, PostOffice
from hermes_runtime.agents.prompts import line_repair
from hermes_runtime.errors import (
    ContextTooShort,
    Denied,
    HermesError,
    NotFound,
    PeerLost,
    StaleWriter,
    TimedOut,
    Unauthenticated,
)
from hermes_runtime.evaluate.instances import Instance
from hermes_runtime.evaluate.results import Cause, LedgerRow, Times
from hermes_runtime.store import Digest, Event
from hermes_runtime.store.client import StoreClient

DELIVERY_TRIES = 8
"""Times that a delivery is sent before its receiver is given up."""

ENVELOPE_EVENT = "hermes.agent.v1.Envelope"
EXPENSE_EVENT = "hermes.agent.v1.Expense"


class Peers(Protocol):
    """The agents as the driver reaches them."""

    async def deliver(
        self, role: str, request: agent_pb2.DeliverRequest, *, timeout_seconds: float
    ) -> agent_pb2.DeliverResponse:
        """Deliver acts to an agent. PeerLost if it died."""
        ...

    async def until_ready(self, role: str) -> None:
        """Wait until an agent that died serves again."""
        ...

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of texts, as the model counts them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done: one instance, one arm, one attempt."""

    run: str
    instance: Instance
    tree: Path
    editable_files: tuple[str, ...]
    arm: Arm
    dialect: str
    seed: int
    attempt: int
    rounds: int
    candidates: int
    timeout_seconds: float

    @property
    def stream(self) -> str:
        """The attempt's stream in the event log."""
        return f"{self.run}/{self.instance.instance_id}/{self.arm.name}/{self.attempt}"

    def profile(self) -> agent_pb2.Profile:
        """What every receiver needs to know of the arm."""
        return self.arm.profile(dialect=self.dialect, seed=self.seed, candidates=self.candidates)

    def task(self) -> pb.Task:
        """The instance as agents see it: no hidden test, no gold patch."""
        return pb.Task(
            instance_id=self.instance.instance_id,
            repo=self.instance.repo,
            tree=str(self.tree),
            problem_statement=self.instance.problem_statement,
            failing_tests=self.instance.visible_tests,
            passing_tests=self.instance.PASS_TO_PASS,
            editable_files=self.editable_files,
            python=self.instance.python,
            test_timeout_seconds=self.instance.test_timeout_seconds,
            import_roots=self.instance.import_roots,
        )


@dataclass(slots=True)
class Talk:
    """What came of a conversation, filled in as it goes, so that an interrupted one has what it got."""

    patch: str = ""
    plausible: bool = False
    rounds: int = 0
    test_runs: int = 0
    failure: str = ""
    cause: Cause = ""
    rows: list[LedgerRow] = field(default_factory=list)
    message_latencies_ms: list[float] = field(default_factory=list)
    deref_latencies_ms: list[float] = field(default_factory=list)
    model_seconds: float = 0.0
    test_seconds: float = 0.0
    message_seconds: float = 0.0
    total_seconds: float = 0.0
    started_at: str = ""

    def times(self, grading_seconds: float) -> Times:
        """Where the seconds went."""
        rest = self.total_seconds - self.model_seconds - self.test_seconds - self.message_seconds
        return Times(
            total=self.total_seconds,
            model=self.model_seconds,
            tests=self.test_seconds,
            messages=self.message_seconds,
            rest=max(0.0, rest),
            grading=grading_seconds,
        )


class Conversation:
    """One attempt. `run` talks until a patch passes, the rounds are used up, or time is."""

    def __init__(
        self,
        job: Job,
        peers: Peers,
        store: StoreClient,
        *,
        on_phase: Callable[[str, int], None] = lambda phase, round_number: None,
    ) -> None:
        self._job = job
        self._peers = peers
        self._store = store
        self._on_phase = on_phase
        self._post = PostOffice(
            run=job.run,
            instance=job.instance.instance_id,
            arm=job.arm,
            attempt=job.attempt,
            store=store,
        )
        self._logged: set[bytes] = set()
        self._head = b""
        self._tried: list[pb.Outcome] = []
        self._shown: list[_Shown] = []
        self._awaited = ""
        """Who is being waited for because it is away."""
        self.talk = Talk(started_at=datetime.now(UTC).isoformat(timespec="milliseconds"))

    async def run(self) -> Talk:
        """Talk to the end. Errors of agents and models end it with `failure` and `cause` set.

        Raises what a new attempt may cure (PeerLost; StaleWriter, if another process writes to this one's
        stream), and what the store refuses.
        """
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._job.timeout_seconds):
                await self._talk()
        except TimeoutError as error:
            if self._awaited:
                raise PeerLost(f"{self._awaited} was away until the time was up") from error
            self.talk.failure = f"no end after {self._job.timeout_seconds:.0f} s"
            self.talk.cause = "agent"
        except (PeerLost, StaleWriter, Denied, Unauthenticated):
            raise
        except HermesError as error:
            self.talk.failure = str(error)
            self.talk.cause = "model" if isinstance(error, ContextTooShort) else "agent"
        self.talk.total_seconds = time.perf_counter() - started
        if not self.talk.patch:
            self.talk.patch = best_patch(self._tried)
            if not self.talk.patch and not self.talk.failure:
                self.talk.failure, self.talk.cause = "no candidate repaired a failing test", "model"
        await self._settle_anchors()
        return self.talk

    async def _talk(self) -> None:
        job = self._job
        task = await self._write(pb.ACT_KIND_INFORM, pb.Content(task=job.task()), "task")
        log, spectrum = await self._baseline(task)
        outcomes: list[Letter] = []
        news: list[Letter] = []
        for round_number in range(1, job.rounds + 1):
            self.talk.rounds = round_number
            self._on_phase("ranking places", round_number)
            ask = self._post.words(
                f"Rank the suspicious places of {job.instance.instance_id}.", "rank_places", round_number
            )
            places = self._one(
                await self._deliver("planner", [task, log, spectrum, *outcomes, ask]), "places"
            )
            self._on_phase("proposing patches", round_number)
            ask = self._post.words(
                f"Propose at most {job.candidates} patches for {job.instance.instance_id}.",
                "propose_patches",
                round_number,
            )
            said = await self._deliver("coder", [task, log, places, *outcomes, *news, ask])
            news = [letter for letter in said if letter.act.kind == pb.ACT_KIND_ERROR]
            if await self._exhausted(news):
                break
            candidates = self._one(said, "candidates")
            if not (await self._post.content(candidates)).candidates.candidates:
                continue
            self._on_phase("testing patches", round_number)
            said = await self._deliver("tester", [task, candidates])
            verdicts = self._one(said, "outcomes")
            outcomes.append(verdicts)
            news += [letter for letter in said if letter.name == "log"]
            tested = (await self._post.content(verdicts)).outcomes.outcomes
            self._tried += tested
            self.talk.test_runs += sum(outcome.verdict != pb.VERDICT_SKIPPED for outcome in tested)
            passed = next((o for o in tested if o.verdict == pb.VERDICT_PASSED), None)
            if passed is not None:
                self.talk.patch, self.talk.plausible = passed.patch, True
                break

    async def _baseline(self, task: Letter) -> tuple[Letter, Letter]:
        self._on_phase("running the failing tests", 0)
        ask = self._post.words("Run the tests and tell what failed and what ran.", "test_baseline", 0)
        said = await self._deliver("tester", [task, ask])
        return self._one(said, "log"), self._one(said, "spectrum")

    async def _exhausted(self, refused: Sequence[Letter]) -> bool:
        """Whether the coder has nothing left to propose."""
        refusals = [(await self._post.content(letter)).refusal for letter in refused]
        return any(refusal.reason == pb.REFUSAL_REASON_EXHAUSTED for refusal in refusals)

    def _one(self, letters: Sequence[Letter], name: str) -> Letter:
        """The letter of that content. HermesError with what came instead, if it is missing."""
        found = next((letter for letter in letters if letter.name == name), None)
        if found is None:
            names = ", ".join(letter.name for letter in letters) or "nothing"
            raise HermesError(
                f"expected {name} from {letters[0].sender if letters else 'an agent'}, got {names}"
            )
        return found

    async def _write(self, kind: pb.ActKind.ValueType, content: pb.Content, task_type: str) -> Letter:
        header = pb.Header(repo=self._job.instance.repo, task_type=task_type, tool="driver")
        return await self._post.write(kind, content, header)

    async def _deliver(self, role: str, said: Sequence[Letter]) -> list[Letter]:
        """Deliver letters to an agent, log and bill what was said, and give back its answer."""
        letters = self._post.address(said, role)
        for letter in letters:
            await self._log(letter)
        request = agent_pb2.DeliverRequest(
            acts=[letter.envelope for letter in letters], profile=self._job.profile()
        )
        try:
            response, seconds = await self._sent(role, request)
        except NotFound:  # the receiver was started again and has lost what it held
            await self._post.restore(letters)
            response, seconds = await self._sent(role, request)
        self._post.delivered(letters, role)
        answer = [self._post.read(envelope) for envelope in response.acts]
        for letter in answer:
            await self._log(letter)
        await self._append(EXPENSE_EVENT, response.expense.SerializeToString(), ())
        self._bill(role, letters, request, answer, response, seconds)
        return answer

    async def _sent(
        self, role: str, request: agent_pb2.DeliverRequest
    ) -> tuple[agent_pb2.DeliverResponse, float]:
        """The answer and the seconds of the call that brought it."""
        for number in range(1, DELIVERY_TRIES + 1):
            self._awaited = role
            await self._peers.until_ready(role)
            self._awaited = ""
            started = time.perf_counter()
            try:
                response = await self._peers.deliver(role, request, timeout_seconds=self._job.timeout_seconds)
            except PeerLost:
                if number == DELIVERY_TRIES:
                    raise
                await asyncio.sleep(0.05 * number)
            except TimedOut as error:
                raise HermesError(f"{role} did not answer in {self._job.timeout_seconds:.0f} s") from error
            else:
                return response, time.perf_counter() - started
        raise AssertionError("unreachable")

    async def _log(self, letter: Letter) -> None:
        """Append an act to the event log, once, as it was written."""
        if letter.act.span_id not in self._logged:
            self._logged.add(letter.act.span_id)
            await self._append(ENVELOPE_EVENT, letter.envelope.SerializeToString(), letter.digests)

    async def _append(self, kind: str, payload: bytes, digests: Sequence[Digest]) -> None:
        event = Event(
            stream=self._job.stream,
            type=kind,
            payload=payload,
            previous=self._head,
            written_at=datetime.now(UTC),
            digests=tuple(digests),
        )
        started = time.perf_counter()
        self._head = (await self._store.append(event)).digest
        seconds = time.perf_counter() - started
        self.talk.message_seconds += seconds
        size = len(event.to_bytes())
        self._row(entry="log", agent="driver", kind=kind, store_bytes=size, seconds=seconds)

    def _row(self, **fields: Any) -> None:
        self.talk.rows.append(LedgerRow(step=len(self.talk.rows) + 1, round=self.talk.rounds, **fields))

    def _bill(
        self,
        role: str,
        letters: Sequence[Letter],
        request: agent_pb2.DeliverRequest,
        answer: Sequence[Letter],
        response: agent_pb2.DeliverResponse,
        seconds: float,
    ) -> None:
        expense = response.expense
        latency = max(0.0, seconds - expense.handling_seconds)
        stored = sum(call.seconds for call in expense.store_calls)
        self.talk.message_latencies_ms.append(latency * 1000)
        self.talk.deref_latencies_ms += [c.seconds * 1000 for c in expense.store_calls if c.method == "get"]
        self.talk.message_seconds += latency + stored
        self.talk.model_seconds += sum(call.seconds for call in expense.model_calls)
        self.talk.test_seconds += expense.test_seconds
        own = self._post.take_costs()
        self.talk.message_seconds += sum(cost.seconds for cost in own)
        for entry in ledger.entries_of_costs(own, "driver"):
            self._row(**entry.fields())
        first = len(self.talk.rows)
        for entry in ledger.entries_of(role, letters, request, answer, response):
            self._row(**entry.fields())
        if expense.model_calls:
            self._shown += [
                _Shown(row=first + index, letter=letter, prompts=len(expense.model_calls))
                for index, letter in enumerate(letters)
                if letter.name == "log" and letter.act.WhichOneof("payload") == "anchor"
            ]

    async def _settle_anchors(self) -> None:
        """Measure what anchored logs saved: tokens of what prompts showed, against the logs inline.

        The blobs are read for the measurement alone, after the conversation; it is billed as such.
        """
        measured: dict[bytes, tuple[int, int]] = {}
        for shown in self._shown:
            anchor = shown.letter.act.anchor
            if anchor.digest.sha256 not in measured:
                measured[anchor.digest.sha256] = await self._measure(anchor)
            inline_tokens, head_tokens = measured[anchor.digest.sha256]
            self.talk.rows[shown.row] = self.talk.rows[shown.row].model_copy(
                update={
                    "deref_tokens": head_tokens * shown.prompts,
                    "realised_saving_tokens": (inline_tokens - head_tokens) * shown.prompts,
                }
            )

    async def _measure(self, anchor: pb.Anchor) -> tuple[int, int]:
        """Prompt tokens of an anchored log inline, and of its head."""
        data, cost = await self._store.get(Digest.from_proto(anchor.digest))
        size = cost.request_bytes + cost.response_bytes
        self._row(entry="accounting", agent="driver", kind="measure", store_bytes=size, seconds=cost.seconds)
        log = pb.Content.FromString(data).log.text
        if self._job.dialect == "line_repair":
            texts = [
                line_repair.inline_evidence(log),
                line_repair.anchored_evidence(anchor.alias, anchor.head),
            ]
        else:
            texts = [log, f"{anchor.alias}: {anchor.head}"]
        inline_tokens, head_tokens = await self._peers.count_tokens(texts)
        return inline_tokens, head_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """An anchored log in prompts: its row in the ledger, and how many prompts showed its head."""

    row: int
    letter: Letter
    prompts: int


def best_patch(outcomes: Sequence[pb.Outcome]) -> str:
    """What to submit when nothing passed: the first patch that repaired most failing tests, if any."""
    best = max(outcomes, key=lambda outcome: outcome.fixed_count, default=None)
    return best.patch if best is not None and best.fixed_count else ""
