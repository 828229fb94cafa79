"""Which codec an encoding stands for; acts in and out of envelopes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes_runtime.acts import json_codec, proto_codec
from hermes_runtime.errors import Malformed


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """How acts are written. decode(encode(act)) == act for every act that `check` passes; what cannot
    be read is Malformed."""

    encode: Callable[[pb.Act], bytes]
    decode: Callable[[bytes], pb.Act]


CODECS: Mapping[agent_pb2.Encoding.ValueType, Codec] = MappingProxyType(
    {
        agent_pb2.ENCODING_PROTOBUF: Codec(encode=proto_codec.encode, decode=proto_codec.decode),
        agent_pb2.ENCODING_JSON: Codec(encode=json_codec.encode, decode=json_codec.decode),
    }
)


def codec(encoding: agent_pb2.Encoding.ValueType) -> Codec:
    """The codec of an encoding. Malformed if it is unknown here."""
    if found := CODECS.get(encoding):
        return found
    names = ", ".join(agent_pb2.Encoding.Name(known) for known in CODECS)
    raise Malformed(f"no codec for encoding {encoding}; this side knows {names}")


def encode(act: pb.Act, encoding: agent_pb2.Encoding.ValueType) -> agent_pb2.Envelope:
    """`act` as it travels."""
    return agent_pb2.Envelope(encoding=encoding, act=codec(encoding).encode(act))


def decode(envelope: agent_pb2.Envelope) -> pb.Act:
    """The act in an envelope. Malformed if it cannot be read."""
    return codec(envelope.encoding).decode(envelope.act)


def encode_all(acts: Iterable[pb.Act], encoding: agent_pb2.Encoding.ValueType) -> list[agent_pb2.Envelope]:
    """`acts` as they travel, in order."""
    return [encode(act, encoding) for act in acts]


def decode_all(envelopes: Iterable[agent_pb2.Envelope]) -> list[pb.Act]:
    """The acts in envelopes, in order. Malformed if there is none, or one cannot be read."""
    acts = [decode(envelope) for envelope in envelopes]
    if not acts:
        raise Malformed("a delivery without acts; the last act says what is asked")
    return acts
