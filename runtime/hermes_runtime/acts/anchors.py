"""The benefit rule: does a payload travel inside its act, or as an anchor?

Inline below 1 KiB; above it an anchor only where bytes win for certain and no prompt grows; always
where no message can carry it. Bytes are those of the real messages with the store's put and get in
full, for the sends that are certain to come: a saving that needs luck is not taken, so anchoring never
costs more than inlining (but for the hard anchors, by a few hundred bytes at most). Pure; `ahead.py`
knows the sends.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

from hermes_runtime.store.limits import MESSAGE_DATA_BYTES_MAX
from hermes_runtime.supervise.rpc import PREFIX_BYTES

INLINE_BYTES_MAX = 1024
"""Payloads up to this size are always inline."""

HARD_ANCHOR_BYTES = MESSAGE_DATA_BYTES_MAX
"""Payloads from this size are always anchored: no message carries them."""

BYTES_PER_TOKEN = 4
"""For estimates of tokens; the ledger has the model's own counts."""

CALL_TOKENS = 60
"""Prompt tokens of a tool call by which a model reads an anchor."""

_REST_BYTES = 120
"""An act without its payload, about; it only moves lengths of lengths, see `_SLACK_BYTES`."""

_SLACK_BYTES = 4
"""For each send, what lengths of lengths may add to an anchor and take from an inline payload."""

_ALIAS_BYTES = 8
_SAVINGS_BYTES = 12
"""Longest form of the two predicted savings."""

_CALL_REPORT_BYTES = 72
"""Longest report of one store call in an expense."""

_READ_REPORT_BYTES = 56
"""Longest report of one dereference in an expense."""


class Reads(enum.Enum):
    """What a consumer does with a payload."""

    NOTHING = "passes it on"
    CODE = "code reads the whole"
    PROMPT = "a prompt shows it: the whole if inline, the head if anchored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """One who will be sent the payload."""

    role: str
    reads: Reads
    sends: int = 1
    """Times that it will be sent to it, for certain."""
    holds: bool = False
    """It was given the payload before in this trace, and kept it."""
    get_probability: float | None = None
    """That it reads an anchored payload from the store. Unset: 1 for CODE, else 0."""

    @property
    def gets(self) -> float:
        """Expected reads from the store: one at most, the blob is kept."""
        if self.holds:
            return 0.0
        if self.get_probability is not None:
            return self.get_probability
        return 1.0 if self.reads is Reads.CODE else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inline:
    """The payload travels inside the act."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchored:
    """The payload lies in the store. Savings are against inline, negative where this act only pays."""

    predicted_saving_bytes: int
    """By this act: the first pays for the put. Summed over acts it is the saving in all."""
    predicted_saving_tokens: int
    """By this act."""
    ahead_saving_bytes: int
    """By all the sends ahead: why it is anchored."""
    ahead_saving_tokens: int
    put: bool
    """The sender has to put the payload first. False: it lies there, or the receiver holds it."""


Choice = Inline | Anchored


def varint_bytes(value: int) -> int:
    """Bytes of a varint."""
    return max(1, (value.bit_length() + 6) // 7)


def field_bytes(size_bytes: int) -> int:
    """Bytes of a Protobuf field (number under 16) that holds `size_bytes` bytes; 0 for an empty one."""
    return 1 + varint_bytes(size_bytes) + size_bytes if size_bytes else 0


def digest_field_bytes(payload_bytes: int) -> int:
    """Bytes of a field that holds the digest of so many bytes."""
    return field_bytes(34 + (1 + varint_bytes(payload_bytes) if payload_bytes else 0))


def travelling_bytes(rest_bytes: int, payload_field_bytes: int) -> int:
    """An act in its envelope in a delivery: `rest_bytes` are the act's without the payload field."""
    return field_bytes(2 + field_bytes(rest_bytes + payload_field_bytes))


def inline_field_bytes(payload_bytes: int) -> int:
    """The payload field of an act that carries its payload."""
    return field_bytes(digest_field_bytes(payload_bytes) + field_bytes(payload_bytes))


def anchor_field_bytes(payload_bytes: int, *, alias_bytes: int, head_bytes: int, savings_bytes: int) -> int:
    """The payload field of an act that anchors it."""
    inner = digest_field_bytes(payload_bytes) + field_bytes(alias_bytes) + field_bytes(head_bytes)
    return field_bytes(inner + savings_bytes)


def _pieces_bytes(payload_bytes: int) -> int:
    """gRPC messages that carry the payload alone: one, or as many as the store's limit makes."""
    whole, rest = divmod(payload_bytes, MESSAGE_DATA_BYTES_MAX)
    pieces = whole * (PREFIX_BYTES + field_bytes(MESSAGE_DATA_BYTES_MAX))
    return pieces + (PREFIX_BYTES + field_bytes(rest) if rest or not whole else 0)


def put_bytes(payload_bytes: int, *, lease_bytes: int = 0) -> int:
    """Request and response of a put, as `StoreClient.put` makes them."""
    named = digest_field_bytes(payload_bytes) + field_bytes(lease_bytes)
    first = PREFIX_BYTES if payload_bytes > MESSAGE_DATA_BYTES_MAX else 0
    return named + first + _pieces_bytes(payload_bytes) + PREFIX_BYTES


def get_bytes(payload_bytes: int) -> int:
    """Request and response of a get of the whole, as `StoreClient.get` makes them."""
    return PREFIX_BYTES + digest_field_bytes(payload_bytes) + _pieces_bytes(payload_bytes)


def estimated_tokens(size_bytes: int) -> int:
    """Prompt tokens of so many bytes of text, about."""
    return math.ceil(size_bytes / BYTES_PER_TOKEN)


def decide(
    *,
    payload_bytes: int,
    payload_tokens: int,
    consumers: Sequence[Consumer],
    head_bytes: int = 120,
    lease_bytes: int = 0,
    in_store: bool = False,
) -> Choice:
    """How a payload goes to `consumers[0]` now, given that the others will be sent it too.

    `payload_tokens`: prompt tokens of the whole, where a prompt shows it. `in_store`: it was put before.
    """
    if payload_bytes <= INLINE_BYTES_MAX or not consumers:
        return Inline()
    put = not in_store and not all(consumer.holds for consumer in consumers)
    rule = _Rule(
        payload_bytes=payload_bytes,
        payload_tokens=payload_tokens,
        head_bytes=head_bytes,
        put_bytes=put_bytes(payload_bytes, lease_bytes=lease_bytes) + _CALL_REPORT_BYTES if put else 0,
    )
    bytes_ahead = sum(rule.saved_bytes(consumer, consumer.sends) for consumer in consumers) - rule.put_bytes
    tokens = [rule.saved_tokens(consumer) for consumer in consumers]
    tokens_ahead = sum(saved * consumer.sends for saved, consumer in zip(tokens, consumers, strict=True))
    anchored = Anchored(
        predicted_saving_bytes=math.floor(rule.saved_bytes(consumers[0], 1) - rule.put_bytes),
        predicted_saving_tokens=math.floor(tokens[0]),
        ahead_saving_bytes=math.floor(bytes_ahead),
        ahead_saving_tokens=math.floor(tokens_ahead),
        put=put,
    )
    if payload_bytes >= HARD_ANCHOR_BYTES:
        return anchored
    prompts_shrink = all(
        saved > 0 and not consumer.holds  # what a prompt showed whole stays: its cached prefix is worth more
        for saved, consumer in zip(tokens, consumers, strict=True)
        if consumer.reads is Reads.PROMPT
    )
    return anchored if prompts_shrink and bytes_ahead > 0 else Inline()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    payload_bytes: int
    payload_tokens: int
    head_bytes: int
    put_bytes: int

    def saved_bytes(self, consumer: Consumer, sends: int) -> float:
        """Saved by `sends` sends to a consumer, its get paid, the put not."""
        field = anchor_field_bytes(
            self.payload_bytes,
            alias_bytes=_ALIAS_BYTES,
            head_bytes=self.head_bytes,
            savings_bytes=_SAVINGS_BYTES,
        )
        handle = travelling_bytes(_REST_BYTES, field) + _READ_REPORT_BYTES + _SLACK_BYTES
        inline = travelling_bytes(_REST_BYTES, inline_field_bytes(self.payload_bytes))
        get = get_bytes(self.payload_bytes) + _CALL_REPORT_BYTES
        return sends * (inline - handle) - consumer.gets * get

    def saved_tokens(self, consumer: Consumer) -> float:
        """Saved by one prompt of a consumer."""
        if consumer.reads is not Reads.PROMPT:
            return 0.0
        head = estimated_tokens(_ALIAS_BYTES + self.head_bytes)
        read = (consumer.get_probability or 0.0) * (CALL_TOKENS + self.payload_tokens)
        return self.payload_tokens - head - read
