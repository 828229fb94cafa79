"""A conversation without a model: real acts, post, agents' caches and ledger; contents of given sizes.

Bytes of the store are those of its real messages. Used by the tests of the benefit rule and by the
bench of acts.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf.message import Message

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes.store.v1 import store_pb2
from hermes_runtime.acts import build, codec, ledger
from hermes_runtime.acts.arms import Arm
from hermes_runtime.acts.post import Letter, PostOffice, reply
from hermes_runtime.acts.resolve import BlobCache, resolve
from hermes_runtime.errors import NotFound
from hermes_runtime.store.client import Cost
from hermes_runtime.store.digest import Digest
from hermes_runtime.supervise.rpc import message_bytes

ROLES = {"planner": pb.ROLE_PLANNER, "coder": pb.ROLE_CODER, "tester": pb.ROLE_TESTER}


class CountedStore:
    """Blobs in memory; costs as the real messages have them."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.calls: list[Cost] = []

    def _cost(self, method: str, digest: Digest, request: Message, response: Message) -> Cost:
        cost = Cost(
            method=method,
            digest=digest,
            request_bytes=message_bytes(request),
            response_bytes=message_bytes(response),
            seconds=0.0,
        )
        self.calls.append(cost)
        return cost

    async def put(self, data: bytes) -> tuple[Digest, Cost]:
        digest = Digest.of(data)
        self.blobs[digest] = data
        request = store_pb2.PutRequest(digest=digest.to_proto(), data=data)
        return digest, self._cost("Put", digest, request, store_pb2.PutResponse())

    async def get(self, digest: Digest) -> tuple[bytes, Cost]:
        if digest not in self.blobs:
            raise NotFound(f"blob {digest} was never stored here")
        data = self.blobs[digest]
        request = store_pb2.GetRequest(digest=digest.to_proto())
        return data, self._cost("Get", digest, request, store_pb2.GetResponse(data=data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How large contents are, in bytes about, and how many rounds it takes."""

    rounds: int
    task: int = 900
    log: int = 5200
    spectrum: int = 19_000
    places: int = 640
    candidates: int = 3100
    outcomes: int = 3300
    failure_log: int = 2000
    restarts: frozenset[tuple[str, int]] = frozenset()
    """(role, round): the agent is restarted before its delivery of that round and has lost its cache."""

    @staticmethod
    def all_of(size_bytes: int, rounds: int) -> Script:
        """Every content of one size."""
        return Script(
            rounds=rounds,
            task=size_bytes,
            log=size_bytes,
            spectrum=size_bytes,
            places=size_bytes,
            candidates=size_bytes,
            outcomes=size_bytes,
            failure_log=size_bytes,
        )


def words(size_bytes: int, seed: str) -> str:
    """Text like code and its test output; compresses about as they do."""
    rng = random.Random(seed)
    names = [
        "assert",
        "self",
        "result",
        "value",
        "index",
        "return",
        "test_take",
        "items",
        "==",
        "None",
        "3",
        "(",
        ")",
    ]
    lines: list[str] = [f"{seed}\n"]
    size = len(lines[0])
    while size < size_bytes:
        said = " ".join(rng.choices(names, k=rng.randint(2, 9)))
        line = f"{'    ' * rng.randint(0, 3)}{said}  # {rng.random()}\n"
        lines.append(line)
        size += len(line)
    return "".join(lines)[:size_bytes]


@functools.lru_cache(maxsize=64)
def content(name: str, size_bytes: int, seed: str = "") -> pb.Content:
    """A content of about `size_bytes` as it would be serialized; shared, not to be changed."""
    text = max(1, size_bytes - 12)
    match name:
        case "task":
            tests = [f"tests/test_iterutils.py::test_take_{number}" for number in range(text // 160)]
            statement = words(text - sum(len(test) + 2 for test in tests), f"task {seed}")
            return pb.Content(
                task=pb.Task(
                    instance_id="b__1", repo="boltons", problem_statement=statement, failing_tests=tests
                )
            )
        case "log":
            return pb.Content(log=pb.Log(text=words(text, f"log {seed}")))
        case "spectrum":
            lines = range(1, max(2, text // 3))
            spread = random.Random(seed)
            file = pb.FileSpectrum(
                file_path="boltons/iterutils.py",
                line_steps=[1 for _ in lines],
                failing=[spread.randint(0, 2) for _ in lines],
                passing=[spread.randint(0, 90) for _ in lines],
            )
            return pb.Content(spectrum=pb.Spectrum(files=[file], failing_count=2, passing_count=90))
        case "places":
            places = [
                pb.Place(file_path="boltons/iterutils.py", line=line, ochiai=1 / (line + 1), score=-line / 3)
                for line in range(1, max(2, text // 46))
            ]
            return pb.Content(places=pb.Places(places=places))
        case "candidates":
            each = max(1, text // 8 - 20)
            found = [
                pb.Candidate(id=f"r{seed}c{number}", patch=words(each, f"{seed} {number}"), score=-number / 3)
                for number in range(1, 9)
            ]
            return pb.Content(candidates=pb.Candidates(candidates=found))
        case "outcomes":
            each = max(1, text // 8 - 30)
            tried = [
                pb.Outcome(
                    candidate_id=f"r{seed}c{number}",
                    patch=words(each, f"{seed} {number}"),
                    verdict=pb.VERDICT_FAILED,
                    failed_test="tests/test_iterutils.py::test_take",
                )
                for number in range(1, 9)
            ]
            return pb.Content(outcomes=pb.Outcomes(outcomes=tried))
        case _:
            raise ValueError(name)


class Player:
    """An agent that says what the script says."""

    def __init__(self, role: str, store: CountedStore) -> None:
        self._role, self._store = role, store
        self.cache = BlobCache()
        self.heard: list[pb.Content | None] = []

    async def deliver(
        self,
        request: agent_pb2.DeliverRequest,
        said: Sequence[tuple[pb.ActKind.ValueType, pb.Content, pb.Header]],
    ) -> agent_pb2.DeliverResponse:
        request = agent_pb2.DeliverRequest.FromString(request.SerializeToString())
        expense = agent_pb2.Expense()
        acts = codec.decode_all(request.acts)
        self.heard = []
        for act in acts:
            if act.WhichOneof("payload") == "anchor" and build.name_of_alias(act.anchor.alias) == "log":
                whole = act.anchor.digest.size_bytes // 4
                head = len(act.anchor.head) // 4 + 2
                expense.dereferences.append(
                    agent_pb2.Dereference(digest=act.anchor.digest, prompt_tokens=head, inline_tokens=whole)
                )
                self.heard.append(None)
            elif act.WhichOneof("payload") != "text":
                self.heard.append(await resolve(act, self._store, self.cache, expense))
        if self._role != "tester":
            expense.model_calls.append(
                agent_pb2.ModelCall(
                    method="generate",
                    prompt_tokens_new=300,
                    prompt_tokens_cached=70,
                    prompt_tokens_reread=9,
                    decoded_tokens=40,
                    request_bytes=900,
                    response_bytes=300,
                )
            )
        envelopes = [
            await reply(
                build.answer_to(acts[-1], index, kind=kind, sender=ROLES[self._role], header=header),
                made,
                profile=request.profile,
                store=self._store,
                expense=expense,
            )
            for index, (kind, made, header) in enumerate(said)
        ]
        return agent_pb2.DeliverResponse(acts=envelopes, expense=expense)


@dataclass(slots=True)
class Rehearsal:
    """One conversation; `entries` is its bill."""

    script: Script
    arm: Arm
    entries: list[ledger.Entry] = field(default_factory=list)
    deliveries: list[tuple[str, agent_pb2.DeliverRequest, agent_pb2.DeliverResponse]] = field(
        default_factory=list
    )
    store: CountedStore = field(default_factory=CountedStore)
    heard: list[tuple[str, list[pb.Content | None]]] = field(default_factory=list)
    failed_sends_bytes: int = 0
    _players: dict[str, Player] = field(init=False)
    _post: PostOffice = field(init=False)

    def __post_init__(self) -> None:
        self._players = {role: Player(role, self.store) for role in ROLES}
        self._post = PostOffice(run="r", instance="b__1", arm=self.arm, attempt=1, store=self.store)

    async def run(self) -> Rehearsal:
        """Talk to the end."""
        script = self.script
        post = self._post
        header = pb.Header(repo="boltons", task_type="task", tool="driver")
        task = await post.write(pb.ACT_KIND_INFORM, content("task", script.task), header)
        ask = post.words("Run the tests and tell what failed and what ran.", "test_baseline", 0)
        log, spectrum = await self._deliver(
            "tester", [task, ask], 0, [("log", script.log, ""), ("spectrum", script.spectrum, "")]
        )
        outcomes: list[Letter] = []
        news: list[Letter] = []
        for number in range(1, script.rounds + 1):
            ask = post.words("Rank the suspicious places.", "rank_places", number)
            heard = [task, log, spectrum, *outcomes, ask]
            (places,) = await self._deliver("planner", heard, number, [("places", script.places, "")])
            ask = post.words("Propose at most 8 patches.", "propose_patches", number)
            (candidates,) = await self._deliver(
                "coder",
                [task, log, places, *outcomes, *news, ask],
                number,
                [("candidates", script.candidates, f"{number}")],
            )
            await post.content(candidates)
            verdicts, *news = await self._deliver(
                "tester",
                [task, candidates],
                number,
                [("outcomes", script.outcomes, f"{number}"), ("log", script.failure_log, f"{number}")],
            )
            await post.content(verdicts)
            outcomes.append(verdicts)
        self.entries += ledger.entries_of_costs(post.take_costs(), "driver")
        return self

    async def _deliver(
        self, role: str, letters: Sequence[Letter], number: int, said: Sequence[tuple[str, int, str]]
    ) -> list[Letter]:
        if (role, number) in self.script.restarts:
            self._players[role] = Player(role, self.store)
        kinds = {"places": pb.ACT_KIND_PROPOSE, "candidates": pb.ACT_KIND_PROPOSE}
        answers = [
            (
                kinds.get(name, pb.ACT_KIND_INFORM),
                content(name, size, seed),
                pb.Header(repo="boltons", task_type=name, tool=role, round=number),
            )
            for name, size, seed in said
        ]
        addressed = self._post.address(letters, role)
        request = agent_pb2.DeliverRequest(
            acts=[letter.envelope for letter in addressed],
            profile=self.arm.profile(dialect="line_repair", seed=42, candidates=8),
        )
        player = self._players[role]
        try:
            response = await player.deliver(request, answers)
        except NotFound:
            self.failed_sends_bytes += message_bytes(request)
            await self._post.restore(addressed)
            response = await player.deliver(request, answers)
        self._post.delivered(addressed, role)
        self.heard.append((role, player.heard))
        answer = [self._post.read(envelope) for envelope in response.acts]
        self.entries += ledger.entries_of(role, addressed, request, answer, response)
        self.deliveries.append((role, request, response))
        return answer
