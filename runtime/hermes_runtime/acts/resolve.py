"""Anchors back to contents: from the act, from the cache of verified blobs, or from the store.

A blob is kept for its trace alone: what one arm was told must not make another arm cheaper. Every read
from the store and every anchor met is noted in the expense. Nothing is read that does not verify.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2
from hermes_runtime.acts.build import check, parse_content
from hermes_runtime.errors import BadInput, Damaged
from hermes_runtime.store.client import Cost
from hermes_runtime.store.digest import Digest

CACHE_BYTES_MAX = 64 * 1024 * 1024
"""What a cache of blobs may hold by default."""


class Blobs(Protocol):
    """The part of a store that agents read."""

    async def get(self, digest: Digest) -> tuple[bytes, Cost]:
        """A whole blob, and what reading it cost. NotFound, Damaged."""
        ...


class BlobCache:
    """Verified blobs by (trace, digest); the least lately used go first. For one event loop."""

    def __init__(self, *, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._blobs: OrderedDict[tuple[bytes, Digest], bytes] = OrderedDict()
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        return self._size_bytes

    def keep(self, trace: bytes, digest: Digest, data: bytes) -> None:
        """Keep a blob that the caller has verified. One larger than the cache is not kept."""
        if len(data) > self._bytes_max or self.find(trace, digest) is not None:
            return
        self._blobs[trace, digest] = data
        self._size_bytes += len(data)
        while self._size_bytes > self._bytes_max:
            _, dropped = self._blobs.popitem(last=False)
            self._size_bytes -= len(dropped)

    def find(self, trace: bytes, digest: Digest) -> bytes | None:
        """The blob, if it is kept for that trace."""
        if (trace, digest) not in self._blobs:
            return None
        self._blobs.move_to_end((trace, digest))
        return self._blobs[trace, digest]


async def resolve(act: pb.Act, store: Blobs, cache: BlobCache, expense: agent_pb2.Expense) -> pb.Content:
    """The content of an act.

    Raises:
        Malformed: the act is no act, or the blob is no content.
        BadInput: the act says words and has no content.
        NotFound: neither cache nor store has the blob; the sender puts it and delivers again.
        Damaged: what the store gave does not match the digest.
    """
    content = check(act)
    if content is not None:
        cache.keep(act.trace_id, Digest.from_proto(act.inline.digest), act.inline.data)
        return content
    if act.WhichOneof("payload") == "text":
        raise BadInput(f"act {act.span_id.hex()} says words, where a content is needed")
    digest = Digest.from_proto(act.anchor.digest)
    data = cache.find(act.trace_id, digest)
    if data is None:
        data, cost = await store.get(digest)
        note_call(expense, cost)
        if Digest.of(data) != digest:
            raise Damaged(f"the store answered {digest} with {Digest.of(data)}: run `hermes store fsck`")
        cache.keep(act.trace_id, digest, data)
    expense.dereferences.append(agent_pb2.Dereference(digest=act.anchor.digest))
    return parse_content(data)


def note_call(expense: agent_pb2.Expense, cost: Cost) -> None:
    """Add a call to the store to an expense; puts and gets in pieces are puts and gets."""
    expense.store_calls.append(
        agent_pb2.StoreCall(
            method=cost.method.lower().removesuffix("stream"),
            digest=None if cost.digest is None else cost.digest.to_proto(),
            request_bytes=cost.request_bytes,
            response_bytes=cost.response_bytes,
            seconds=cost.seconds,
        )
    )
