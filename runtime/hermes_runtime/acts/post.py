"""What is said goes out: encoded for the arm, inline or anchored, put where it must be.

`PostOffice` is the driver's: it writes its own acts, reads answers, and addresses letters to a role,
which gets an anchor in place of what it holds already. `reply` is an agent's. Both put before they
anchor, unless the receiver was given the payload before in this trace; should it have lost it, its
NotFound is cured by `restore` and delivering again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes_runtime.acts import build, codec
from hermes_runtime.acts.ahead import certain_sends, reads_of
from hermes_runtime.acts.anchors import Anchored, Consumer, Inline, decide, estimated_tokens
from hermes_runtime.acts.arms import Arm
from hermes_runtime.acts.resolve import note_call
from hermes_runtime.errors import BadInput, Malformed
from hermes_runtime.store.client import Cost
from hermes_runtime.store.digest import Digest

_ASKED = {"rank_places": pb.ROLE_PLANNER, "propose_patches": pb.ROLE_CODER}
"""Whom the driver asks for what; the tester for all else."""


class BlobStore(Protocol):
    """The part of a store that talking needs."""

    async def put(self, data: bytes) -> tuple[Digest, Cost]:
        """Store a blob."""
        ...

    async def get(self, digest: Digest) -> tuple[bytes, Cost]:
        """A whole blob. NotFound, Damaged."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """An act with its envelope, and its content where that is at hand."""

    act: pb.Act
    envelope: agent_pb2.Envelope
    content: pb.Content | None
    in_store: bool
    """Whether the anchored payload lies in the store."""

    @property
    def name(self) -> str:
        """Which content it carries; "" for words."""
        if self.act.WhichOneof("payload") == "anchor":
            return build.name_of_alias(self.act.anchor.alias)
        return build.content_name(self.content) if self.content is not None else ""

    @property
    def sender(self) -> str:
        """Who said it."""
        return role_name(self.act.sender)

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Blobs in the store that it refers to."""
        return (Digest.from_proto(self.act.anchor.digest),) if self.in_store else ()


def role_name(role: pb.Role.ValueType) -> str:
    """ "driver", "planner", "coder" or "tester"."""
    return pb.Role.Name(role).removeprefix("ROLE_").lower()


def _said(act: pb.Act, data: bytes, content: pb.Content, choice: Inline | Anchored) -> pb.Act:
    match choice:
        case Inline():
            return build.said_inline_bytes(act, data)
        case Anchored():
            return build.said_by_anchor(
                act,
                Digest.of(data),
                alias=build.alias(build.content_name(content), act.header.round),
                head=build.head_of(content),
                predicted_saving_bytes=choice.predicted_saving_bytes,
                predicted_saving_tokens=choice.predicted_saving_tokens,
            )


def _choice(
    content: pb.Content, data: bytes, consumers: Sequence[Consumer], *, anchors: bool
) -> Inline | Anchored:
    # a refusal is inline in every arm: who cannot read the store must still be able to say so
    if not anchors or build.content_name(content) == "refusal":
        return Inline()
    return decide(
        payload_bytes=len(data),
        payload_tokens=estimated_tokens(len(content.log.text.encode()) or len(data)),
        consumers=consumers,
        head_bytes=len(build.head_of(content).encode()),
    )


async def reply(
    bare: pb.Act,
    content: pb.Content,
    *,
    profile: agent_pb2.Profile,
    store: BlobStore,
    expense: agent_pb2.Expense,
) -> agent_pb2.Envelope:
    """An agent's act (`build.answer_to`) with `content`, as it travels; a put is noted in `expense`."""
    data = build.content_bytes(content)
    consumers = certain_sends(
        build.content_name(content), sender=role_name(bare.sender), round=bare.header.round
    )
    choice = _choice(content, data, consumers, anchors=profile.anchors)
    if isinstance(choice, Anchored):
        _, cost = await store.put(data)
        note_call(expense, cost)
    return codec.encode(_said(bare, data, content, choice), profile.encoding)


class PostOffice:
    """The driver's side of one attempt's conversation."""

    def __init__(self, *, run: str, instance: str, arm: Arm, attempt: int, store: BlobStore) -> None:
        self.trace = build.trace_id(run=run, instance=instance, arm=arm.name, attempt=attempt)
        self._arm = arm
        self._store = store
        self._step = 0
        self._held: set[tuple[str, Digest]] = set()
        self._data: dict[Digest, bytes] = {}
        self._contents: dict[Digest, pb.Content] = {}
        self._in_store: set[Digest] = set()
        self._costs: list[Cost] = []

    def take_costs(self) -> list[Cost]:
        """The driver's own calls to the store since the last time, for the ledger."""
        taken, self._costs = self._costs, []
        return taken

    def words(self, text: str, task_type: str, round: int) -> Letter:
        """The driver asks in words."""
        header = pb.Header(task_type=task_type, tool="driver", round=round)
        act = self._bare(pb.ACT_KIND_REQUEST, header, _ASKED.get(task_type, pb.ROLE_TESTER))
        return self._letter(build.said_in_words(act, text), None)

    async def write(
        self,
        kind: pb.ActKind.ValueType,
        content: pb.Content,
        header: pb.Header,
        *,
        receiver: pb.Role.ValueType = pb.ROLE_TESTER,
    ) -> Letter:
        """The driver says a content; `receiver` is the first of those who will be given it."""
        data = build.content_bytes(content)
        consumers = certain_sends(build.content_name(content), sender="driver", round=header.round)
        choice = _choice(content, data, consumers, anchors=self._arm.anchors)
        self._remember(data, content)
        if isinstance(choice, Anchored):
            await self._put(data)
        return self._letter(_said(self._bare(kind, header, receiver), data, content, choice), content)

    def read(self, envelope: agent_pb2.Envelope) -> Letter:
        """An answer's act. Malformed if it is none, or of another trace."""
        act = codec.decode(envelope)
        if act.trace_id != self.trace:
            raise Malformed(
                f"an answer of trace {act.trace_id.hex()} in trace {self.trace.hex()}: an agent mixed them up"
            )
        content = None
        match act.WhichOneof("payload"):
            case "inline":
                content = build.parse_content(act.inline.data)
                self._remember(act.inline.data, content)
            case "anchor":
                self._in_store.add(Digest.from_proto(act.anchor.digest))
        return Letter(act=act, envelope=envelope, content=content, in_store=content is None and not act.text)

    async def content(self, letter: Letter) -> pb.Content:
        """The content of a letter, read from the store if it is not at hand. BadInput for words."""
        if letter.content is not None:
            return letter.content
        if letter.act.WhichOneof("payload") != "anchor":
            raise BadInput(f"act {letter.act.span_id.hex()} says words, where a content is needed")
        digest = Digest.from_proto(letter.act.anchor.digest)
        if digest not in self._contents:
            data, cost = await self._store.get(digest)
            self._costs.append(cost)
            self._remember(data, build.parse_content(data))
        return self._contents[digest]

    def address(self, letters: Sequence[Letter], role: str) -> list[Letter]:
        """`letters` as they go to `role` now: by anchor what it holds already, where that pays."""
        return [self._addressed(letter, role) for letter in letters]

    def delivered(self, letters: Sequence[Letter], role: str) -> None:
        """Note that `role` has answered a delivery of `letters`: it holds what they say."""
        for letter in letters:
            match letter.act.WhichOneof("payload"):
                case "inline":
                    self._held.add((role, Digest.from_proto(letter.act.inline.digest)))
                case "anchor" if reads_of(letter.name, role).name == "CODE":
                    self._held.add((role, Digest.from_proto(letter.act.anchor.digest)))

    async def restore(self, letters: Sequence[Letter]) -> None:
        """Put what `letters` anchor and the store may lack: after NotFound; then deliver them again."""
        for letter in letters:
            if letter.act.WhichOneof("payload") == "anchor":
                digest = Digest.from_proto(letter.act.anchor.digest)
                if digest in self._data:
                    await self._put(self._data[digest])

    def _addressed(self, letter: Letter, role: str) -> Letter:
        if letter.act.WhichOneof("payload") != "inline" or letter.content is None:
            return letter
        digest = Digest.from_proto(letter.act.inline.digest)
        if (role, digest) not in self._held:
            return letter
        consumer = Consumer(role=role, reads=reads_of(letter.name, role), holds=True)
        data = letter.act.inline.data
        choice = _choice(letter.content, data, (consumer,), anchors=self._arm.anchors)
        if isinstance(choice, Inline):
            return letter
        addressed = self._letter(_said(letter.act, data, letter.content, choice), letter.content)
        return replace(addressed, in_store=digest in self._in_store)

    def _bare(self, kind: pb.ActKind.ValueType, header: pb.Header, receiver: pb.Role.ValueType) -> pb.Act:
        self._step += 1
        return build.bare_act(
            trace=self.trace,
            span=build.span_id(self.trace, self._step),
            kind=kind,
            sender=pb.ROLE_DRIVER,
            receiver=receiver,
            header=header,
        )

    def _letter(self, act: pb.Act, content: pb.Content | None) -> Letter:
        envelope = codec.encode(act, self._arm.encoding)
        anchored = act.WhichOneof("payload") == "anchor"
        in_store = anchored and Digest.from_proto(act.anchor.digest) in self._in_store
        return Letter(act=act, envelope=envelope, content=content, in_store=in_store)

    def _remember(self, data: bytes, content: pb.Content) -> None:
        digest = Digest.of(data)
        self._data[digest], self._contents[digest] = data, content

    async def _put(self, data: bytes) -> None:
        digest, cost = await self._store.put(data)
        self._costs.append(cost)
        self._in_store.add(digest)
