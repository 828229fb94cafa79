"""How a blob's state, an instant and a large blob travel: what service and client agree on."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from hermes.store.v1 import store_pb2
from hermes_runtime.errors import BadInput
from hermes_runtime.store import BlobState

PIECE_BYTES = 1 << 20
"""Size of the pieces in which a large blob travels."""

STATES: dict[BlobState, store_pb2.BlobState.ValueType] = {
    BlobState.PRESENT: store_pb2.BLOB_STATE_PRESENT,
    BlobState.NEVER_SEEN: store_pb2.BLOB_STATE_NEVER_SEEN,
    BlobState.EXPIRED: store_pb2.BLOB_STATE_EXPIRED,
    BlobState.QUARANTINED: store_pb2.BLOB_STATE_QUARANTINED,
}
"""A blob's state on the wire."""


def timestamp(at: datetime) -> Timestamp:
    """An aware instant on the wire."""
    message = Timestamp()
    message.FromDatetime(at)
    return message


def instant(message: Timestamp) -> datetime:
    """An instant from the wire, in UTC. Raises BadInput for one out of range."""
    try:
        return message.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise BadInput(f"not an instant: {message.seconds} s {message.nanos} ns") from error
