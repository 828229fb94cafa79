"""What every store does: one suite over the store in memory, on disk, and behind a socket."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from hermes_runtime.errors import BadInput, NotFound, StaleWriter
from hermes_runtime.store import BlobState, Digest, Event, ResultKey, Store
from hermes_runtime.store.disk import ROW_BYTES_MAX
from hermes_runtime.store.limits import MESSAGE_DATA_BYTES_MAX
from tests.contract.store_kinds import TTL_SECONDS, Clock, disk, memory, served

SIZES = [0, 1, 1000, ROW_BYTES_MAX, ROW_BYTES_MAX + 1, MESSAGE_DATA_BYTES_MAX, MESSAGE_DATA_BYTES_MAX + 1]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=[memory, disk, served], ids=["memory", "disk", "served"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with request.param(tmp_path, clock) as made:
        yield made


def blob(size_bytes: int, seed: int = 0) -> bytes:
    return random.Random(f"{seed} {size_bytes}").randbytes(size_bytes)


def event(
    clock: Clock, *, stream: str = "s", payload: bytes = b"", previous: bytes = b"", digests=()
) -> Event:  # fmt: skip
    return Event(
        stream=stream,
        type="hermes.act.v1.Act",
        payload=payload,
        previous=previous,
        written_at=clock.now,
        digests=tuple(digests),
    )


KEY = ResultKey(run="r", instance="i", arm="A")


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_stored_blob_reads_back(store: Store, size_bytes: int):
    data = blob(size_bytes)
    digest = store.put(data)
    assert digest == Digest.of(data)
    assert store.get(digest) == data
    assert b"".join(store.get_pieces(digest, piece_bytes=70_000)) == data


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_blob_put_in_pieces_is_the_same_blob(store: Store, size_bytes: int):
    data = blob(size_bytes)
    pieces = (data[start : start + 50_001] for start in range(0, len(data), 50_001))
    assert store.put_pieces(pieces) == Digest.of(data)
    assert store.get(Digest.of(data)) == data


@pytest.mark.parametrize("size_bytes", [0, 9, ROW_BYTES_MAX + 1, MESSAGE_DATA_BYTES_MAX + 9])
def test_bytes_that_are_not_what_their_digest_says_are_not_stored(store: Store, size_bytes: int):
    data, told = blob(size_bytes), Digest.of(blob(size_bytes + 1))
    with pytest.raises(BadInput, match="nothing was stored"):
        store.put(data, digest=told)
    with pytest.raises(BadInput, match="nothing was stored"):
        store.put_pieces(iter((data,)), digest=told)
    assert [stat.state for stat in store.stat([told, Digest.of(data)])] == [BlobState.NEVER_SEEN] * 2


def test_putting_twice_is_putting_once(store: Store):
    for size_bytes in (10, ROW_BYTES_MAX + 1):
        assert store.put(blob(size_bytes)) == store.put(blob(size_bytes))
    assert store.lease("all", datetime.max.replace(tzinfo=Clock().now.tzinfo), [Digest.of(blob(10))]) == 1


@pytest.mark.parametrize("size_bytes", [1000, ROW_BYTES_MAX + 1000, 4 * 1024 * 1024])
def test_a_range_is_that_part_of_the_blob(store: Store, size_bytes: int):
    data = blob(size_bytes)
    digest = store.put(data)
    for offset, length in [(0, 1), (5, 100), (size_bytes - 3, 100), (size_bytes, None), (7, None), (3, 0)]:
        end = None if length is None else offset + length
        assert store.get(digest, offset=offset, length=length) == data[offset:end]


@pytest.mark.parametrize(("offset", "length"), [(11, None), (-1, None), (0, -1)])
def test_a_range_that_starts_past_the_end_is_refused(store: Store, offset: int, length: int | None):
    digest = store.put(blob(10))
    with pytest.raises(BadInput, match="it has 10 bytes"):
        store.get(digest, offset=offset, length=length)


def test_a_blob_never_seen_is_not_found_and_says_so(store: Store):
    digest = Digest.of(b"never")
    with pytest.raises(NotFound, match=f"{digest.hex[:12]}.*never seen.*put it"):
        store.get(digest)
    with pytest.raises(NotFound, match="never seen"):
        list(store.get_pieces(digest))
    assert [stat.state for stat in store.stat([digest])] == [BlobState.NEVER_SEEN]


def test_a_digest_of_the_right_sha256_and_the_wrong_size_is_not_found(store: Store, clock: Clock):
    digest = store.put(b"right")
    wrong = Digest(digest.sha256, 6)
    with pytest.raises(NotFound, match="it knows 5 bytes"):
        store.get(wrong)
    assert store.stat([wrong])[0].state is BlobState.NEVER_SEEN
    store.collect_garbage(clock.passes(TTL_SECONDS))
    with pytest.raises(NotFound, match="it knows 5 bytes"):
        store.get(wrong)
    assert store.stat([wrong])[0].state is BlobState.NEVER_SEEN


def test_a_blob_whose_lease_has_ended_is_readable_until_collected_and_then_expired(
    store: Store, clock: Clock
):
    small, large = store.put(blob(10)), store.put(blob(ROW_BYTES_MAX + 1))
    ends_at = clock.now + timedelta(seconds=TTL_SECONDS)
    assert [stat.expires_at for stat in store.stat([small, large])] == [ends_at, ends_at]
    assert store.collect_garbage(clock.passes(TTL_SECONDS - 1)) == (0, 0)
    clock.passes(1)
    assert store.get(small) == blob(10)
    assert store.collect_garbage(clock.now) == (2, ROW_BYTES_MAX + 11)
    for digest in (small, large):
        with pytest.raises(NotFound, match=f"last lease ended at {ends_at:%Y-%m-%dT%H:%M:%SZ}.*ends later"):
            store.get(digest)
    assert [(stat.state, stat.expires_at) for stat in store.stat([small, large])] == [
        (BlobState.EXPIRED, ends_at),
        (BlobState.EXPIRED, ends_at),
    ]
    assert store.collect_garbage(clock.now) == (0, 0)


def test_putting_an_expired_blob_brings_it_back(store: Store, clock: Clock):
    digests = [store.put(blob(size_bytes)) for size_bytes in (10, ROW_BYTES_MAX + 1)]
    store.collect_garbage(clock.passes(TTL_SECONDS))
    for digest in digests:
        store.put(blob(digest.size_bytes))
        assert store.get(digest) == blob(digest.size_bytes)
        assert store.stat([digest])[0].state is BlobState.PRESENT


def test_every_put_prolongs_the_default_lease_and_no_other(store: Store, clock: Clock):
    by_default, by_name = store.put(b"default"), store.put(b"named", lease="mine")
    named_until = clock.now + timedelta(seconds=TTL_SECONDS)
    clock.passes(100)
    store.put(b"later")
    store.put(b"later", lease="mine")
    stats = store.stat([by_default, by_name])
    assert [stat.expires_at for stat in stats] == [named_until + timedelta(seconds=100), named_until]


def test_a_lease_keeps_its_blobs_as_long_as_it_says(store: Store, clock: Clock):
    digest = store.put(blob(10), lease="short")
    until = clock.now + timedelta(days=30)
    assert store.lease("long", until, [digest, digest]) == 1
    assert store.stat([digest])[0].expires_at == until
    store.collect_garbage(clock.passes(29 * 86400))
    assert store.get(digest) == blob(10)
    assert store.collect_garbage(clock.passes(86400)) == (1, 10)


def test_renewing_a_lease_sets_its_end_and_keeps_its_blobs(store: Store, clock: Clock):
    digest = store.put(b"x", lease="mine")
    assert store.lease("mine", clock.now + timedelta(seconds=5)) == 1
    clock.passes(10)
    assert store.lease("mine", clock.now + timedelta(days=1)) == 1
    assert store.stat([digest])[0].expires_at == clock.now + timedelta(days=1)


def test_dropping_a_lease_rolls_back_what_only_it_held(store: Store, clock: Clock):
    alone, shared = store.put(b"alone", lease="guess"), store.put(b"shared", lease="guess")
    store.put(b"shared", lease="sure")
    assert store.drop_lease("guess")
    assert not store.drop_lease("guess")
    assert store.collect_garbage(clock.now) == (1, 5)
    assert [stat.state for stat in store.stat([alone, shared])] == [BlobState.EXPIRED, BlobState.PRESENT]
    assert store.stat([alone])[0].expires_at == clock.now


def test_a_dropped_lease_holds_nothing_even_for_a_clock_that_was_set_back(store: Store, clock: Clock):
    store.put(b"x", lease="guess")
    store.drop_lease("guess")
    assert store.collect_garbage(clock.passes(-60)) == (1, 1)


def test_a_dropped_lease_made_again_starts_empty(store: Store, clock: Clock):
    store.put(b"x", lease="mine")
    store.drop_lease("mine")
    assert store.lease("mine", clock.now + timedelta(days=1)) == 0


def test_a_lease_in_the_past_or_of_a_blob_that_is_not_there_changes_nothing(store: Store, clock: Clock):
    digest = store.put(b"x")
    with pytest.raises(BadInput, match="past"):
        store.lease("mine", clock.now)
    with pytest.raises(NotFound, match="never seen"):
        store.lease("mine", clock.now + timedelta(days=1), [digest, Digest.of(b"never")])
    assert not store.drop_lease("mine")


@pytest.mark.parametrize("name", ["", "x" * 201, "a\0b", "\ud800"])
def test_what_cannot_name_a_lease_is_refused(store: Store, clock: Clock, name: str):
    with pytest.raises(BadInput):
        store.lease(name, clock.now + timedelta(days=1))
    with pytest.raises(BadInput):
        store.put(b"x", lease=name)
    with pytest.raises(BadInput):
        store.drop_lease(name)
    assert store.stat([Digest.of(b"x")])[0].state is BlobState.NEVER_SEEN


def test_events_come_back_in_order_with_their_digests(store: Store, clock: Clock):
    first = store.append(event(clock, stream="run/a", payload=b"1"))
    other = store.append(event(clock, stream="run/b", payload=b"2"))
    second = store.append(event(clock, stream="run/a", payload=b"3", previous=first.digest))
    assert [stored.sequence for stored in (first, other, second)] == [1, 2, 3]
    assert first.digest == hashlib.sha256(first.event.to_bytes()).digest()
    assert list(store.events()) == [first, other, second]
    assert list(store.events(stream_prefix="run/a")) == [first, second]
    assert list(store.events(stream_prefix="run/")) == [first, other, second]
    assert list(store.events(stream_prefix="run/a", after=1)) == [second]
    assert list(store.events(after=3)) == []
    assert store.head("run/a") == second.digest
    assert store.head("run/none") == b""


def test_a_prefix_means_those_very_characters(store: Store, clock: Clock):
    names = ["a", "a%", "a_b", "ab", "b", "é", "\ud7ff", "\ue000", "\U0010ffff", "\U0010ffffx"]
    for name in names:
        store.append(event(clock, stream=name))
    for prefix in [*names, "a", "", "\U0010ffff"]:
        found = [stored.event.stream for stored in store.events(stream_prefix=prefix)]
        assert found == [name for name in names if name.startswith(prefix)]


def test_many_events_come_back_in_order(store: Store, clock: Clock):
    head = b""
    for number in range(450):  # more than two pages of the store on disk
        head = store.append(event(clock, payload=b"%d" % number, previous=head)).digest
    assert [stored.event.payload for stored in store.events()] == [b"%d" % number for number in range(450)]
    assert [stored.sequence for stored in store.events(stream_prefix="s", after=440)] == list(range(441, 451))


def test_a_stale_writer_is_told_and_changes_nothing(store: Store, clock: Clock):
    first = store.append(event(clock, payload=b"mine"))
    with pytest.raises(StaleWriter, match=f"head is {first.digest.hex()[:12]}"):
        store.append(event(clock, payload=b"zombie"))
    with pytest.raises(StaleWriter):
        store.append(event(clock, stream="new", previous=b"\1" * 32))
    assert list(store.events()) == [first]


def test_appending_the_very_same_event_again_is_no_stale_write(store: Store, clock: Clock):
    first = store.append(event(clock, payload=b"1"))
    second = store.append(event(clock, payload=b"2", previous=first.digest))
    assert store.append(first.event) == first
    assert store.append(second.event) == second
    assert len(list(store.events())) == 2


def test_an_event_keeps_the_blobs_that_it_names_for_ever(store: Store, clock: Clock):
    named, other = store.put(blob(ROW_BYTES_MAX + 1)), store.put(b"other")
    store.append(event(clock, digests=[named, named]))
    assert store.stat([named])[0].expires_at is None
    assert store.collect_garbage(clock.passes(1e9)) == (1, 5)
    assert store.get(named) == blob(ROW_BYTES_MAX + 1)
    assert store.stat([named, other])[0].expires_at is None


def test_an_event_that_names_a_blob_that_is_not_there_is_refused(store: Store, clock: Clock):
    with pytest.raises(NotFound, match="never seen"):
        store.append(event(clock, digests=[Digest.of(b"never")]))
    assert store.head("s") == b""


def test_what_cannot_be_an_event_is_refused(store: Store, clock: Clock):
    for wrong in (
        event(clock, stream=""),
        event(clock, previous=b"short"),
        event(clock, payload=bytes(MESSAGE_DATA_BYTES_MAX)),
        event(clock, stream="\ud800"),
    ):
        with pytest.raises(BadInput):
            store.append(wrong)
    assert list(store.events()) == []


def test_the_first_result_stands(store: Store):
    assert store.record_result(KEY, b"first") == (True, b"first")
    assert store.record_result(KEY, b"zombie") == (False, b"first")
    assert store.record_result(KEY, b"first") == (True, b"first")
    assert list(store.results("r")) == [(KEY, b"first")]


def test_results_come_sorted_and_of_their_run_only(store: Store):
    keys = [ResultKey(run=run, instance=i, arm=arm) for run in "sr" for i in ("b", "a", "é") for arm in "PA"]
    for key in keys:
        store.record_result(key, repr(key).encode())
    assert list(store.results("r")) == [(key, repr(key).encode()) for key in sorted(keys) if key.run == "r"]
    assert list(store.results("none")) == []


def test_what_cannot_name_a_result_is_refused(store: Store):
    with pytest.raises(BadInput, match="arm"):
        store.record_result(ResultKey(run="r", instance="i", arm=""), b"")
    with pytest.raises(BadInput, match="result"):
        store.record_result(KEY, bytes(MESSAGE_DATA_BYTES_MAX + 1))


def test_closing_twice_is_closing_once(store: Store):
    store.close()
    store.close()
