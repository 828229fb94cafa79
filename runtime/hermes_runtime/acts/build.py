"""What an act is: ids derived from what they name, acts made, acts checked.

Ids are digests and not random, so that a driver that starts again says the same acts and receivers
know them again. `check` is the border: what passes it can be encoded by every codec and comes back
equal. Who may say what to whom is not decided here.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NewType

from google.protobuf.message import DecodeError

from hermes.act.v1 import act_pb2 as pb
from hermes_runtime.errors import Malformed
from hermes_runtime.store.digest import Digest

TraceId = NewType("TraceId", bytes)
"""16 bytes: one attempt at one instance under one arm."""

SpanId = NewType("SpanId", bytes)
"""8 bytes: one act of a trace."""

SCHEMA_VERSION = 1
"""The act schema that is spoken here; others are refused."""

HEAD_CHARACTERS_MAX = 120
"""Longest line that an anchor shows in place of its content."""

LETTERS: Mapping[str, str] = MappingProxyType(
    {
        "task": "t",
        "log": "l",
        "spectrum": "s",
        "places": "p",
        "candidates": "c",
        "outcomes": "o",
        "refusal": "r",
    }
)
"""First letter of the aliases of each content."""

_CONTENTS = MappingProxyType({letter: name for name, letter in LETTERS.items()})
_ALIAS = re.compile(rf"@[{''.join(LETTERS.values())}][0-9]{{1,6}}")
_SPEECHES = frozenset(pb.ActKind.values()) - {pb.ACT_KIND_UNSPECIFIED}
_ROLES = frozenset(pb.Role.values()) - {pb.ROLE_UNSPECIFIED}


def _digested(domain: str, *parts: bytes) -> bytes:
    """sha256 over the parts with their lengths, so that no two lists of parts read the same."""
    sha = hashlib.sha256(domain.encode())
    for part in parts:
        sha.update(len(part).to_bytes(8, "big") + part)
    return sha.digest()


def trace_id(*, run: str, instance: str, arm: str, attempt: int) -> TraceId:
    """The trace of one attempt at one instance under one arm."""
    names = (run.encode(), instance.encode(), arm.encode(), attempt.to_bytes(8, "big"))
    return TraceId(_digested("hermes.trace", *names)[:16])


def span_id(trace: TraceId | bytes, step: int) -> SpanId:
    """The driver's act number `step` of a trace."""
    return SpanId(_digested("hermes.span", trace, step.to_bytes(8, "big"))[:8])


def answer_span_id(trace: TraceId | bytes, asked: SpanId | bytes, index: int) -> SpanId:
    """Act number `index` of the answer to `asked`: an agent needs no count of its own."""
    return SpanId(_digested("hermes.answer", trace, asked, index.to_bytes(8, "big"))[:8])


def content_bytes(content: pb.Content) -> bytes:
    """The bytes that a digest is of: one form for each content."""
    return content.SerializeToString(deterministic=True)


def content_name(content: pb.Content) -> str:
    """Which content it is: "task", "log", ...; "" for none."""
    return content.WhichOneof("content") or ""


def alias(name: str, round: int) -> str:
    """Short name of a round's content, for example "@l0": log before the first round."""
    return f"@{LETTERS[name]}{round}"


def name_of_alias(alias: str) -> str:
    """Which content an alias stands for."""
    return _CONTENTS[alias[1]]


def head_of(content: pb.Content) -> str:
    """One line to show in place of a content: what there is, and of a log the line that tells most."""
    match content_name(content):
        case "task":
            head = f"task {content.task.instance_id}"
        case "log":
            head = _telling_line(content.log.text)
        case "spectrum":
            lines = sum(len(file.line_steps) for file in content.spectrum.files)
            head = f"{lines} lines of {len(content.spectrum.files)} files run by tests"
        case "places":
            head = f"{len(content.places.places)} suspicious places"
        case "candidates":
            head = f"{len(content.candidates.candidates)} patches to be tested"
        case "outcomes":
            head = f"verdicts on {len(content.outcomes.outcomes)} patches"
        case "refusal":
            head = content.refusal.message
        case _:
            head = ""
    return " ".join(head.split())[:HEAD_CHARACTERS_MAX].rstrip()


def _telling_line(text: str) -> str:
    """The first error that pytest marks with `E`, else the last line that is not blank."""
    lines = [line for line in text.splitlines() if line.strip()]
    marked = next((line[1:] for line in lines if line.startswith("E ")), None)
    return marked or (lines[-1] if lines else "(empty log)")


def said_inline(act: pb.Act, content: pb.Content) -> pb.Act:
    """`act` with `content` travelling inside."""
    return said_inline_bytes(act, content_bytes(content))


def said_inline_bytes(act: pb.Act, data: bytes) -> pb.Act:
    """As `said_inline`, from bytes that `content_bytes` gave."""
    said = pb.Act()
    said.CopyFrom(act)
    said.inline.CopyFrom(pb.InlineBytes(digest=Digest.of(data).to_proto(), data=data))
    return said


def said_by_anchor(
    act: pb.Act,
    digest: Digest,
    *,
    alias: str,
    head: str,
    predicted_saving_bytes: int = 0,
    predicted_saving_tokens: int = 0,
) -> pb.Act:
    """`act` with its content in the store, where the caller has put it."""
    said = pb.Act()
    said.CopyFrom(act)
    said.anchor.CopyFrom(
        pb.Anchor(
            digest=digest.to_proto(),
            alias=alias,
            head=head,
            predicted_saving_bytes=predicted_saving_bytes,
            predicted_saving_tokens=predicted_saving_tokens,
        )
    )
    return said


def bare_act(
    *,
    trace: TraceId | bytes,
    span: SpanId | bytes,
    parent: SpanId | bytes = b"",
    kind: pb.ActKind.ValueType,
    sender: pb.Role.ValueType,
    receiver: pb.Role.ValueType,
    header: pb.Header | None = None,
) -> pb.Act:
    """An act that says nothing yet; its payload comes by `said_inline` or `said_by_anchor`."""
    return pb.Act(
        schema_version=SCHEMA_VERSION,
        trace_id=trace,
        span_id=span,
        parent_span_id=parent,
        kind=kind,
        sender=sender,
        receiver=receiver,
        header=header,
    )


def said_in_words(act: pb.Act, text: str) -> pb.Act:
    """`act` with words for a payload."""
    said = pb.Act()
    said.CopyFrom(act)
    said.text = text
    return said


def answer_to(
    asked: pb.Act,
    index: int,
    *,
    kind: pb.ActKind.ValueType,
    sender: pb.Role.ValueType,
    header: pb.Header | None = None,
) -> pb.Act:
    """Act number `index` of the answer to `asked`, from `sender` to whom asked; it says nothing yet."""
    return bare_act(
        trace=asked.trace_id,
        span=answer_span_id(asked.trace_id, asked.span_id, index),
        parent=asked.span_id,
        kind=kind,
        sender=sender,
        receiver=asked.sender,
        header=header,
    )


def refused(
    asked: pb.Act, index: int, *, sender: pb.Role.ValueType, reason: pb.RefusalReason.ValueType, message: str
) -> pb.Act:
    """An ERROR act: why `asked` was refused, with the remedy in `message`."""
    refusal = pb.Refusal(reason=reason, message=message)
    bare = answer_to(asked, index, kind=pb.ACT_KIND_ERROR, sender=sender, header=asked.header)
    return said_inline(bare, pb.Content(refusal=refusal))


def parse_content(data: bytes) -> pb.Content:
    """The content in `data`. Malformed unless `data` is what `content_bytes` gives for it."""
    try:
        content = pb.Content.FromString(data)
    except DecodeError as error:
        raise Malformed(f"{len(data)} bytes that should be a content are none: {error}") from error
    name = content_name(content)
    if not name:
        raise Malformed("a content says nothing: one of task, log, spectrum, ... must be set")
    content.DiscardUnknownFields()
    if content_bytes(content) != data:
        raise Malformed(f"a {name} is not written in the one form that its digest is of; use content_bytes")
    if any(math.isnan(number) for number in _numbers(content)):
        raise Malformed(f"a number in the {name} is not one (NaN); scores and times are numbers")
    return content


def _numbers(content: pb.Content) -> list[float]:
    return [
        content.task.test_timeout_seconds,
        *(place.ochiai for place in content.places.places),
        *(place.score for place in content.places.places),
        *(candidate.score for candidate in content.candidates.candidates),
    ]


def check(act: pb.Act) -> pb.Content | None:
    """The act's inline content, None if it has none. Malformed, with the reason, if the act is no act."""
    if act.schema_version != SCHEMA_VERSION:
        raise Malformed(
            f"an act of schema version {act.schema_version}; this side speaks {SCHEMA_VERSION}: "
            "run one version of HERMES on both sides"
        )
    _check_lengths(act)
    who = f"act {act.span_id.hex()}"
    if act.kind not in _SPEECHES:
        raise Malformed(f"{who} has no kind ({act.kind}); it must be one of REQUEST, INFORM, PROPOSE, ...")
    if act.sender not in _ROLES or act.receiver not in _ROLES:
        raise Malformed(f"{who} goes from role {act.sender} to role {act.receiver}; both must be set")
    content: pb.Content | None = None
    match act.WhichOneof("payload"):
        case "inline":
            content = _inline_content(act, who)
        case "anchor":
            _check_anchor(act.anchor, who)
        case "text":
            if not act.text:
                raise Malformed(f"{who} has empty words for a payload")
        case _:
            raise Malformed(f"{who} has no payload: inline, anchor or text must be set")
    is_refusal = content is not None and content_name(content) == "refusal"
    if act.kind == pb.ACT_KIND_ERROR and not is_refusal:
        raise Malformed(f"{who} is an ERROR without a refusal; say why inline, in a Refusal")
    return content


def _check_lengths(act: pb.Act) -> None:
    for field, value, lengths in (
        ("trace_id", act.trace_id, (16,)),
        ("span_id", act.span_id, (8,)),
        ("parent_span_id", act.parent_span_id, (0, 8)),
    ):
        if len(value) not in lengths:
            raise Malformed(f"{field} has {len(value)} bytes, it must have {' or '.join(map(str, lengths))}")


def _check_digest(message: pb.InlineBytes | pb.Anchor, who: str) -> Digest:
    if len(message.digest.sha256) != 32:
        raise Malformed(f"{who}: its digest has {len(message.digest.sha256)} bytes of sha256, not 32")
    return Digest.from_proto(message.digest)


def _inline_content(act: pb.Act, who: str) -> pb.Content:
    said, found = _check_digest(act.inline, who), Digest.of(act.inline.data)
    if said != found:
        raise Malformed(f"{who}: its payload is {found}, its digest says {said}; it was changed on the way")
    return parse_content(act.inline.data)


def _check_anchor(anchor: pb.Anchor, who: str) -> None:
    _check_digest(anchor, who)
    if not _ALIAS.fullmatch(anchor.alias):
        raise Malformed(f"{who}: {anchor.alias!r} is no alias; one is a letter and a number, as @l0")
    if len(anchor.head) > HEAD_CHARACTERS_MAX or len(anchor.head.splitlines()) > 1:
        raise Malformed(
            f"{who}: the head of {anchor.alias} has {len(anchor.head)} characters; it must be one line of "
            f"at most {HEAD_CHARACTERS_MAX}"
        )
