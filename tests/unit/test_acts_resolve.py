"""Anchors become contents again, read from the store once for each trace, and never unverified."""

from __future__ import annotations

from typing import Any

import pytest

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes_runtime.acts import build
from hermes_runtime.acts.resolve import BlobCache, resolve
from hermes_runtime.errors import BadInput, Damaged, Malformed, NotFound
from hermes_runtime.store.client import Cost
from hermes_runtime.store.digest import Digest
from tests.unit.sample_acts import a_log, an_act

LOG = a_log("E assert 1 == 2\n" * 100)
DATA = build.content_bytes(LOG)
DIGEST = Digest.of(DATA)


class Shelf:
    """Blobs by digest; what is put under a wrong one is given as it is."""

    def __init__(self, blobs: dict[Digest, bytes]) -> None:
        self.blobs = blobs
        self.reads = 0

    async def get(self, digest: Digest) -> tuple[bytes, Cost]:
        self.reads += 1
        if digest not in self.blobs:
            raise NotFound(f"blob {digest} was never stored here")
        data = self.blobs[digest]
        cost = Cost(method="Get", digest=digest, request_bytes=43, response_bytes=len(data), seconds=0.001)
        return data, cost


def anchored(digest: Digest = DIGEST, **changes: Any) -> pb.Act:
    return build.said_by_anchor(an_act(**changes), digest, alias="@l0", head="assert 1 == 2")


async def test_an_anchor_is_read_once_and_every_use_is_noted():
    shelf, cache, expense = Shelf({DIGEST: DATA}), BlobCache(), agent_pb2.Expense()
    for _ in range(3):
        assert await resolve(anchored(), shelf, cache, expense) == LOG
    assert shelf.reads == 1
    assert [(call.method, call.response_bytes) for call in expense.store_calls] == [("get", len(DATA))]
    assert [read.digest for read in expense.dereferences] == [DIGEST.to_proto()] * 3


async def test_what_came_inline_is_not_read_from_the_store_later():
    shelf, cache, expense = Shelf({}), BlobCache(), agent_pb2.Expense()
    assert await resolve(build.said_inline(an_act(), LOG), shelf, cache, expense) == LOG
    assert not expense.dereferences
    assert await resolve(anchored(), shelf, cache, expense) == LOG
    assert shelf.reads == 0


async def test_what_one_trace_was_told_is_not_known_to_another():
    shelf, cache, expense = Shelf({DIGEST: DATA}), BlobCache(), agent_pb2.Expense()
    await resolve(build.said_inline(an_act(), LOG), shelf, cache, expense)
    await resolve(anchored(trace_id=b"sixteen bytes..."), shelf, cache, expense)
    assert shelf.reads == 1


async def test_a_blob_that_does_not_verify_is_damage_and_is_not_kept():
    shelf, cache, expense = Shelf({DIGEST: DATA[:-1] + b"3"}), BlobCache(), agent_pb2.Expense()
    with pytest.raises(Damaged, match="fsck"):
        await resolve(anchored(), shelf, cache, expense)
    assert len(expense.store_calls) == 1
    assert cache.size_bytes == 0


async def test_a_blob_that_is_no_content_is_malformed():
    digest = Digest.of(b"\xff")
    with pytest.raises(Malformed):
        await resolve(anchored(digest), Shelf({digest: b"\xff"}), BlobCache(), agent_pb2.Expense())


async def test_a_missing_blob_is_not_found_and_nothing_is_noted():
    expense = agent_pb2.Expense()
    with pytest.raises(NotFound):
        await resolve(anchored(), Shelf({}), BlobCache(), expense)
    assert expense == agent_pb2.Expense()


async def test_words_have_no_content():
    with pytest.raises(BadInput, match="says words"):
        await resolve(build.said_in_words(an_act(), "go"), Shelf({}), BlobCache(), agent_pb2.Expense())


async def test_a_wrong_inline_digest_is_malformed():
    act = build.said_inline(an_act(), LOG)
    act.inline.data += b" "
    with pytest.raises(Malformed):
        await resolve(act, Shelf({}), BlobCache(), agent_pb2.Expense())


def test_a_cache_holds_no_more_than_it_may_and_forgets_the_least_used():
    cache = BlobCache(bytes_max=250)
    blobs = [bytes([number]) * 100 for number in range(3)]
    digests = [Digest.of(blob) for blob in blobs]
    cache.keep(b"t", digests[0], blobs[0])
    cache.keep(b"t", digests[1], blobs[1])
    assert cache.find(b"t", digests[0]) == blobs[0]
    cache.keep(b"t", digests[2], blobs[2])
    assert cache.find(b"t", digests[1]) is None
    assert cache.find(b"t", digests[0]) == blobs[0]
    cache.keep(b"t", Digest.of(bytes(251)), bytes(251))
    cache.keep(b"t", digests[0], blobs[0])
    assert cache.size_bytes == 200
