"""An entry of the log: its canonical bytes and its digest, which the next entry names.

Canonical: the Protobuf message's fields in the order of their numbers, none unknown, the instant in
whole microseconds. What does not read back to the same bytes is refused, so a digest stands for one
event and one only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.message import DecodeError

from hermes.store.v1 import store_pb2
from hermes_runtime.errors import BadInput, Malformed, StaleWriter
from hermes_runtime.store.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry of a stream. Its digest is the sha256 of its canonical bytes.

    `previous` is the digest of the event before it in the stream, b"" for the first.
    """

    stream: str
    type: str
    payload: bytes
    previous: bytes
    written_at: datetime
    digests: tuple[Digest, ...] = ()

    def to_bytes(self) -> bytes:
        """The canonical bytes. Raises BadInput for what the message cannot carry."""
        if self.written_at.tzinfo is None:
            raise BadInput(f"event of stream {self.stream!r}: written_at has no time zone; give an aware one")
        try:
            message = store_pb2.Event(
                stream=self.stream,
                type=self.type,
                payload=self.payload,
                previous=self.previous,
                digests=[digest.to_proto() for digest in self.digests],
            )
            message.written_at.FromDatetime(self.written_at)
        except (ValueError, UnicodeEncodeError) as error:
            raise BadInput(f"event of stream {self.stream!r} cannot be written down: {error}") from error
        return message.SerializeToString(deterministic=True)

    @staticmethod
    def from_bytes(data: bytes) -> Event:
        """The event that these bytes are. Raises Malformed for bytes that are not canonical."""
        try:
            message = store_pb2.Event.FromString(data)
            event = Event(
                stream=message.stream,
                type=message.type,
                payload=message.payload,
                previous=message.previous,
                written_at=message.written_at.ToDatetime(UTC),
                digests=tuple(Digest.from_proto(digest) for digest in message.digests),
            )
            if event.to_bytes() == data:
                return event
        except (DecodeError, ValueError, OverflowError, BadInput) as error:
            raise Malformed(f"{len(data)} bytes that should be an event are none: {error}") from error
        raise Malformed(
            f"event of stream {event.stream!r} is not in canonical form: serialize its fields in order, "
            "none unknown, its instant in whole microseconds"
        )

    @property
    def digest(self) -> bytes:
        """sha256 of the canonical bytes."""
        return hashlib.sha256(self.to_bytes()).digest()

    def stale(self, head: bytes) -> StaleWriter:
        """The error for a writer that the stream, now at `head`, has left behind."""
        return StaleWriter(
            f"stream {self.stream!r} has moved on: its head is {head.hex()[:12] or 'empty'}, the event "
            f"follows {self.previous.hex()[:12] or 'the empty stream'}; "
            "read the stream again and start a new attempt"
        )
