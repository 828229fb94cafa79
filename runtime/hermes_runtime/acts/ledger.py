"""The bill of a delivery, to the byte and to the token; sums by class of payload size.

Wire bytes of a delivery's entries sum to its two gRPC messages: acts, the envelope around them, and
the accounting in it. Tokens are those of its model calls, store bytes those of its store calls.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import zstandard

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes_runtime.acts.anchors import field_bytes, inline_field_bytes
from hermes_runtime.acts.post import Letter
from hermes_runtime.store.client import Cost
from hermes_runtime.supervise.rpc import message_bytes

SIZE_CLASSES: tuple[tuple[str, float], ...] = (
    ("<= 256 B", 256),
    ("<= 1 KiB", 1024),
    ("<= 4 KiB", 4096),
    ("<= 16 KiB", 16_384),
    ("<= 64 KiB", 65_536),
    ("<= 256 KiB", 262_144),
    ("> 256 KiB", float("inf")),
)
"""Names of the classes and the largest payload of each, in bytes."""

ZSTD_LEVEL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the ledger; units are in the names, meanings with the recorded row."""

    step: int = 0
    round: int = 0
    entry: Literal["act", "envelope", "accounting", "model", "store", "log"]
    agent: str
    receiver: str = ""
    kind: str = ""
    content: str = ""
    anchored: bool = False
    payload_bytes: int = 0
    payload_sha256: str = ""
    wire_bytes: int = 0
    wire_bytes_zstd: int = 0
    store_bytes: int = 0
    model_bytes: int = 0
    prompt_tokens_new: int = 0
    prompt_tokens_cached: int = 0
    prompt_tokens_reread: int = 0
    decoded_tokens: int = 0
    deref_tokens: int = 0
    predicted_saving_bytes: int = 0
    predicted_saving_tokens: int = 0
    realised_saving_tokens: int = 0
    seconds: float = 0.0
    inline_bytes: int = 0
    """Act: what it takes on the wire with its payload inline; not recorded, it can be worked out."""

    def fields(self) -> dict[str, object]:
        """What is recorded, but for step and round, which the driver counts."""
        fields = dataclasses.asdict(self)
        for name in ("step", "round", "inline_bytes"):
            del fields[name]
        return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBytes:
    """Acts whose payload falls into one class of size, and the store traffic of those payloads."""

    name: str
    acts: int
    anchored: int
    wire_bytes: int
    store_bytes: int
    wire_bytes_zstd: int
    predicted_saving_bytes: int
    predicted_saving_tokens: int
    realised_saving_bytes: int
    """Against the same acts with their payloads inline, the store's traffic taken off."""
    realised_saving_tokens: int

    @property
    def total_bytes(self) -> int:
        """Wire and store together."""
        return self.wire_bytes + self.store_bytes


def entries_of(
    role: str,
    letters: Sequence[Letter],
    request: agent_pb2.DeliverRequest,
    answer: Sequence[Letter],
    response: agent_pb2.DeliverResponse,
) -> list[Entry]:
    """The bill of one delivery of `letters` to `role` and its `answer`, in the order it happened."""
    expense = response.expense
    accounting = field_bytes(expense.ByteSize()) if response.HasField("expense") else 0
    if response.HasField("expense") and not accounting:
        accounting = 2  # an empty expense that is there: its tag and its length
    shown: dict[bytes, list[agent_pb2.Dereference]] = defaultdict(list)
    for read in expense.dereferences:
        shown[read.digest.sha256].append(read)
    there = [_act_entry(letter, "driver", role, shown) for letter in letters]
    back = [_act_entry(letter, role, "driver", {}) for letter in answer]
    return [
        *there,
        _envelope("driver", role, message_bytes(request) - sum(entry.wire_bytes for entry in there)),
        *(_model_entry(call, role) for call in expense.model_calls),
        *(_store_entry(call, role) for call in expense.store_calls),
        *back,
        _envelope(
            role, "driver", message_bytes(response) - accounting - sum(entry.wire_bytes for entry in back)
        ),
        Entry(entry="accounting", agent=role, receiver="driver", wire_bytes=accounting),
    ]


def entries_of_costs(costs: Iterable[Cost], agent: str) -> list[Entry]:
    """The bill of an agent's own calls to the store (`PostOffice.take_costs`)."""
    return [
        Entry(
            entry="store",
            agent=agent,
            kind=cost.method.lower().removesuffix("stream"),
            payload_bytes=0 if cost.digest is None else cost.digest.size_bytes,
            payload_sha256="" if cost.digest is None else cost.digest.hex,
            store_bytes=cost.request_bytes + cost.response_bytes,
            seconds=cost.seconds,
        )
        for cost in costs
    ]


def size_class(payload_bytes: int) -> str:
    """Name of the class of a payload."""
    return next(name for name, largest in SIZE_CLASSES if payload_bytes <= largest)


def bytes_by_class(entries: Iterable[Entry]) -> tuple[ClassBytes, ...]:
    """Sums over acts by the size of their payloads, smallest class first; words count by their length.

    A store call belongs to the class of the payload that it moved.
    """
    sums: dict[str, Counter[str]] = {name: Counter() for name, _ in SIZE_CLASSES}
    for entry in entries:
        if entry.entry == "store":
            sums[size_class(entry.payload_bytes)].update(
                store_bytes=entry.store_bytes, realised_saving_bytes=-entry.store_bytes
            )
        if entry.entry == "act":
            sums[size_class(entry.payload_bytes)].update(
                acts=1,
                anchored=entry.anchored,
                wire_bytes=entry.wire_bytes,
                wire_bytes_zstd=entry.wire_bytes_zstd,
                predicted_saving_bytes=entry.predicted_saving_bytes,
                predicted_saving_tokens=entry.predicted_saving_tokens,
                realised_saving_bytes=entry.inline_bytes - entry.wire_bytes if entry.anchored else 0,
                realised_saving_tokens=entry.realised_saving_tokens,
            )
    names = [field.name for field in dataclasses.fields(ClassBytes) if field.name != "name"]
    return tuple(
        ClassBytes(name=name, **{field: found[field] for field in names}) for name, found in sums.items()
    )


def _act_entry(
    letter: Letter, agent: str, receiver: str, shown: dict[bytes, list[agent_pb2.Dereference]]
) -> Entry:
    act, written = letter.act, letter.envelope.act
    anchored = act.WhichOneof("payload") == "anchor"
    digest = act.anchor.digest if anchored else act.inline.digest
    # two acts with one payload: what was shown of it is billed to the first
    reads = shown.pop(digest.sha256, []) if anchored else []
    prompt_tokens = sum(read.prompt_tokens for read in reads)
    return Entry(
        entry="act",
        agent=agent,
        receiver=receiver,
        kind=pb.ActKind.Name(act.kind).removeprefix("ACT_KIND_"),
        content=letter.name,
        anchored=anchored,
        payload_bytes=digest.size_bytes or len(act.text.encode()),
        payload_sha256=digest.sha256.hex(),
        wire_bytes=len(written),
        wire_bytes_zstd=len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(written)),
        deref_tokens=prompt_tokens,
        predicted_saving_bytes=act.anchor.predicted_saving_bytes,
        predicted_saving_tokens=act.anchor.predicted_saving_tokens,
        realised_saving_tokens=sum(read.inline_tokens for read in reads) - prompt_tokens,
        inline_bytes=len(written) - _anchor_bytes(act) + inline_field_bytes(digest.size_bytes)
        if anchored
        else len(written),
    )


def _anchor_bytes(act: pb.Act) -> int:
    """The payload field of an anchored act."""
    return field_bytes(act.anchor.ByteSize())


def _envelope(agent: str, receiver: str, wire_bytes: int) -> Entry:
    return Entry(entry="envelope", agent=agent, receiver=receiver, wire_bytes=wire_bytes)


def _model_entry(call: agent_pb2.ModelCall, agent: str) -> Entry:
    return Entry(
        entry="model",
        agent=agent,
        kind=call.method,
        model_bytes=call.request_bytes + call.response_bytes,
        prompt_tokens_new=call.prompt_tokens_new,
        prompt_tokens_cached=call.prompt_tokens_cached,
        prompt_tokens_reread=call.prompt_tokens_reread,
        decoded_tokens=call.decoded_tokens,
        seconds=call.seconds,
    )


def _store_entry(call: agent_pb2.StoreCall, agent: str) -> Entry:
    return Entry(
        entry="store",
        agent=agent,
        kind=call.method,
        payload_bytes=call.digest.size_bytes,
        payload_sha256=call.digest.sha256.hex(),
        store_bytes=call.request_bytes + call.response_bytes,
        seconds=call.seconds,
    )
