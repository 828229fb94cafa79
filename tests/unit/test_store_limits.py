"""Which digests, names, instants and ranges a store takes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.store.v1 import store_pb2
from hermes_runtime.errors import BadInput
from hermes_runtime.store import Digest, limits


@given(st.binary())
def test_a_digest_survives_its_wire_form_and_its_anchor(data: bytes):
    digest = Digest.of(data)
    assert Digest.from_proto(digest.to_proto()) == digest
    assert Digest.hex_of_uri(digest.uri) == digest.hex
    assert digest.size_bytes == len(data)


@pytest.mark.parametrize(
    "uri", ["", "mcp://sha256/", "mcp://sha256/" + "A" * 64, "http://sha256/" + "a" * 64]
)
def test_what_is_no_anchor_is_refused(uri: str):
    with pytest.raises(BadInput, match="not an anchor"):
        Digest.hex_of_uri(uri)


def test_a_digest_of_the_wrong_length_is_refused():
    with pytest.raises(BadInput, match="not a digest: 3 bytes"):
        Digest.from_proto(store_pb2.Digest(sha256=b"abc"))


@given(st.binary(max_size=50), st.integers(0, 60), st.none() | st.integers(0, 60))
def test_a_range_cuts_as_python_does(data: bytes, offset: int, length: int | None):
    digest = Digest.of(data)
    if offset > len(data):
        with pytest.raises(BadInput):
            limits.check_range(digest, offset, length)
        return
    start, end = limits.check_range(digest, offset, length)
    assert data[start:end] == data[offset:][:length]


@pytest.mark.parametrize(
    ("name", "is_taken"),
    [("a", True), ("run/é", True), ("x" * 1000, True), ("", False), ("x" * 1001, False), ("\0", False)],
)
def test_a_name_has_1_to_1000_writable_characters(name: str, is_taken: bool):
    if is_taken:
        limits.check_name("stream", name)
    else:
        with pytest.raises(BadInput, match="stream"):
            limits.check_name("stream", name)


def test_an_instant_comes_back_in_utc():
    east = timezone(timedelta(hours=2))
    found = limits.check_instant("end", datetime(2026, 1, 1, 2, tzinfo=east))
    assert (found, found.tzinfo) == (datetime(2026, 1, 1, tzinfo=UTC), UTC)


def test_an_instant_without_a_time_zone_is_refused():
    with pytest.raises(BadInput, match="no time zone"):
        limits.check_instant("end", datetime(2026, 1, 1))  # noqa: DTZ001
