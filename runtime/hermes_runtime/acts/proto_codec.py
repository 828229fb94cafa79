"""Arms C and PM: an act is an Act message, serialized."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from hermes.act.v1 import act_pb2 as pb
from hermes_runtime.acts.build import check
from hermes_runtime.errors import Malformed


def encode(act: pb.Act) -> bytes:
    """The bytes of an act. Malformed if `act` is no act."""
    check(act)
    return act.SerializeToString(deterministic=True)


def decode(data: bytes) -> pb.Act:
    """The act in `data`. Malformed if there is none; fields of later versions are dropped."""
    try:
        act = pb.Act.FromString(data)
    except DecodeError as error:
        raise Malformed(f"{len(data)} bytes that should be an act are none: {error}") from error
    act.DiscardUnknownFields()
    check(act)
    return act
