"""Arm A: what a team of language models that talk JSON sends each other.

One compact JSON object: who, to whom, what about, the meaning in a sentence or two, and the content as
ProtoJSON. No digests (such teams send none): the reader computes them. Nothing is padded.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from google.protobuf import json_format
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from hermes.act.v1 import act_pb2 as pb
from hermes_runtime.acts.build import check, content_name, said_inline
from hermes_runtime.acts.sentences import sentence
from hermes_runtime.errors import BadInput, Malformed
from hermes_runtime.store.digest import Digest

Role = Literal["driver", "planner", "coder", "tester"]
Kind = Literal["REQUEST", "INFORM", "PROPOSE", "CONFIRM", "ERROR"]
_INT64 = 2**63


class _Anchor(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    uri: str
    size_bytes: Annotated[int, Field(alias="sizeBytes", ge=0, lt=2 * _INT64)]
    alias: str
    head: str = ""
    saving_bytes: Annotated[int, Field(alias="predictedSavingBytes", ge=-_INT64, lt=_INT64)] = 0
    saving_tokens: Annotated[int, Field(alias="predictedSavingTokens", ge=-_INT64, lt=_INT64)] = 0


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: Annotated[int, Field(alias="schema", ge=0, lt=2**32)]
    trace: str
    span: str
    parent: str = ""
    sender: Annotated[Role, Field(alias="from")]
    receiver: Annotated[Role, Field(alias="to")]
    kind: Kind
    about: dict[str, JsonValue] | None = None
    message: str
    content: dict[str, JsonValue] | None = None
    anchor: _Anchor | None = None


def encode(act: pb.Act) -> bytes:
    """The bytes of an act. Malformed if `act` is no act."""
    content = check(act)
    written: dict[str, object] = {
        "schema": act.schema_version,
        "trace": act.trace_id.hex(),
        "span": act.span_id.hex(),
    }
    if act.parent_span_id:
        written["parent"] = act.parent_span_id.hex()
    written["from"] = pb.Role.Name(act.sender).removeprefix("ROLE_").lower()
    written["to"] = pb.Role.Name(act.receiver).removeprefix("ROLE_").lower()
    written["kind"] = pb.ActKind.Name(act.kind).removeprefix("ACT_KIND_")
    if act.HasField("header"):
        written["about"] = json_format.MessageToDict(act.header)
    written["message"] = sentence(act, content)
    if content is not None:
        written["content"] = json_format.MessageToDict(content)
    elif act.WhichOneof("payload") == "anchor":
        written["anchor"] = _written_anchor(act.anchor)
    return json.dumps(written, ensure_ascii=False, separators=(",", ":")).encode()


def decode(data: bytes) -> pb.Act:
    """The act in `data`. Malformed if there is none."""
    try:
        message = _Message.model_validate_json(data)
        act = _act(message)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the object"
        raise Malformed(
            f"{len(data)} bytes that should be an act in JSON are none: {place}: {first['msg']}"
        ) from error
    except Malformed:
        raise
    except BadInput as error:
        raise Malformed(f"an act in JSON names a blob badly: {error}") from error
    except (json_format.Error, ValueError, TypeError, ArithmeticError, AttributeError, LookupError) as error:
        # ProtoJSON's parser lets its own mistakes about odd values through
        raise Malformed(f"{len(data)} bytes of JSON do not make an act: {error}") from error
    check(act)
    return act


def _act(message: _Message) -> pb.Act:
    act = pb.Act(
        schema_version=message.schema_version,
        trace_id=bytes.fromhex(message.trace),
        span_id=bytes.fromhex(message.span),
        parent_span_id=bytes.fromhex(message.parent),
        kind=pb.ActKind.Value(f"ACT_KIND_{message.kind}"),
        sender=pb.Role.Value(f"ROLE_{message.sender.upper()}"),
        receiver=pb.Role.Value(f"ROLE_{message.receiver.upper()}"),
    )
    if message.about is not None:
        act.header.SetInParent()
        json_format.ParseDict(message.about, act.header)
    if message.content is not None and message.anchor is not None:
        raise Malformed("an act in JSON has a content and an anchor; it may have one")
    if message.content is not None:
        content = json_format.ParseDict(message.content, pb.Content())
        if not content_name(content):
            raise Malformed(
                "the content of an act in JSON says nothing; name one of task, log, spectrum, ..."
            )
        return said_inline(act, content)
    if message.anchor is not None:
        act.anchor.CopyFrom(_read_anchor(message.anchor))
    else:
        act.text = message.message
    return act


def _written_anchor(anchor: pb.Anchor) -> dict[str, object]:
    written: dict[str, object] = {
        "uri": Digest.from_proto(anchor.digest).uri,
        "sizeBytes": anchor.digest.size_bytes,
        "alias": anchor.alias,
    }
    if anchor.head:
        written["head"] = anchor.head
    if anchor.predicted_saving_bytes:
        written["predictedSavingBytes"] = anchor.predicted_saving_bytes
    if anchor.predicted_saving_tokens:
        written["predictedSavingTokens"] = anchor.predicted_saving_tokens
    return written


def _read_anchor(anchor: _Anchor) -> pb.Anchor:
    digest = Digest(bytes.fromhex(Digest.hex_of_uri(anchor.uri)), anchor.size_bytes)
    return pb.Anchor(
        digest=digest.to_proto(),
        alias=anchor.alias,
        head=anchor.head,
        predicted_saving_bytes=anchor.saving_bytes,
        predicted_saving_tokens=anchor.saving_tokens,
    )
