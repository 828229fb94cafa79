"""An event's bytes are canonical, so that its digest stands for it alone."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from hermes.store.v1 import store_pb2
from hermes_runtime.errors import BadInput, Malformed
from hermes_runtime.store import Digest, Event

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
instants = st.datetimes(timezones=st.just(UTC))
digests = st.builds(Digest, st.binary(min_size=32, max_size=32), st.integers(0, 2**63))
events = st.builds(
    Event,
    stream=text,
    type=text,
    payload=st.binary(max_size=50),
    previous=st.binary(max_size=32),
    written_at=instants,
    digests=st.lists(digests, max_size=3).map(tuple),
)


def an_event(written_at: datetime = datetime(2026, 1, 1, 12, tzinfo=UTC)) -> Event:
    return Event(stream="s", type="t", payload=b"p", previous=b"", written_at=written_at)


@given(events)
def test_reading_undoes_writing(event: Event):
    assert Event.from_bytes(event.to_bytes()) == event


@given(st.binary(max_size=200))
def test_bytes_are_an_event_in_canonical_form_or_malformed(data: bytes):
    with suppress(Malformed):
        assert Event.from_bytes(data).to_bytes() == data


def test_an_instant_is_the_same_in_every_time_zone():
    west = timezone(timedelta(hours=-5))
    assert an_event(datetime(2026, 1, 1, 7, tzinfo=west)).digest == an_event().digest


def test_an_instant_without_a_time_zone_is_refused():
    with pytest.raises(BadInput, match="no time zone"):
        an_event(datetime(2026, 1, 1)).to_bytes()  # noqa: DTZ001


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(an_event().to_bytes() + b"\x42\x01x", id="a field that nobody knows"),
        pytest.param(an_event().to_bytes() * 2, id="fields twice"),
        pytest.param(b"\x0a\x05s", id="cut off"),
        pytest.param(b"", id="no instant of its own"),
        pytest.param(
            store_pb2.Event(stream="s", digests=[store_pb2.Digest(sha256=b"short")]).SerializeToString(),
            id="a digest that is none",
        ),
        pytest.param(
            store_pb2.Event(stream="s", written_at=Timestamp(nanos=1)).SerializeToString(), id="nanoseconds"
        ),
    ],
)
def test_bytes_that_are_not_canonical_are_malformed(data: bytes):
    with pytest.raises(Malformed):
        Event.from_bytes(data)
