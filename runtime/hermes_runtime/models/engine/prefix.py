"""What is kept of prompts already computed: a tree over their tokens, in nodes of a fixed size.

A node stands for all tokens from the start of a prompt to its own end, so it is found by a digest over
them; the digest begins with a salt (the model) and a tenant, so that no tenant can tell what another one
asked. What a node holds is its caller's, who copies it out and never writes to it. Nodes end at fixed
places, so that a hit and a miss cut a prompt at the same ones. When full, the node goes that was used
least lately and on which no other stands. Pure: no clock, no torch.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Held = TypeVar("Held")


@dataclass(slots=True, kw_only=True)
class _Node(Generic[Held]):
    parent: bytes
    tokens: bytes
    held: Held
    size_bytes: int
    children: int = 0


class PrefixTree(Generic[Held]):
    """Nodes of `node_tokens` tokens each, of at most `bytes_max` bytes together. Not thread-safe."""

    def __init__(self, *, salt: str, node_tokens: int, bytes_max: int) -> None:
        self.node_tokens = node_tokens
        self.held_bytes = 0
        self._salt = salt
        self._bytes_max = bytes_max
        self._nodes: OrderedDict[bytes, _Node[Held]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def find(self, tenant: str, tokens: Sequence[int]) -> list[Held]:
        """What is held of the longest start of `tokens` that is known, a node for each piece of it.

        The last token is never part of it: what comes after it has to be computed.
        """
        found: list[Held] = []
        key = self._root(tenant)
        for at in range(0, len(tokens) - self.node_tokens, self.node_tokens):
            piece = _bytes(tokens[at : at + self.node_tokens])
            key = _key(key, piece)
            node = self._nodes.get(key)
            if node is None or node.tokens != piece:
                break
            self._nodes.move_to_end(key)
            found.append(node.held)
        return found

    def add(self, tenant: str, tokens: Sequence[int], held: Held, size_bytes: int) -> bool:
        """Keep `held` for the last node of `tokens`, whose length is a multiple of a node's.

        False if it is not kept: it is known, it is larger than the tree may be, or what comes before it
        is not (any more) in the tree.
        """
        assert len(tokens) % self.node_tokens == 0, "nodes end at fixed places"
        parent, key, piece = b"", self._root(tenant), b""
        for at in range(0, len(tokens), self.node_tokens):
            piece = _bytes(tokens[at : at + self.node_tokens])
            parent, key = key, _key(key, piece)
            if at and parent not in self._nodes:
                return False
        if key in self._nodes or size_bytes > self._bytes_max:
            return False
        if parent in self._nodes:
            self._nodes[parent].children += 1
        self._nodes[key] = _Node(parent=parent, tokens=piece, held=held, size_bytes=size_bytes)
        self.held_bytes += size_bytes
        self._evict(keep=key)
        return key in self._nodes

    def clear(self) -> None:
        """Forget everything."""
        self._nodes.clear()
        self.held_bytes = 0

    def _evict(self, keep: bytes) -> None:
        while self.held_bytes > self._bytes_max:
            leaf = next((key for key, node in self._nodes.items() if not node.children and key != keep), keep)
            node = self._nodes.pop(leaf)
            self.held_bytes -= node.size_bytes
            if node.parent in self._nodes:
                self._nodes[node.parent].children -= 1

    def _root(self, tenant: str) -> bytes:
        salt, whose = self._salt.encode(), tenant.encode()
        return hashlib.sha256(b"%d/%d/" % (len(salt), len(whose)) + salt + whose).digest()


def _bytes(tokens: Sequence[int]) -> bytes:
    return array("I", tokens).tobytes()


def _key(parent: bytes, piece: bytes) -> bytes:
    return hashlib.sha256(parent + piece).digest()
