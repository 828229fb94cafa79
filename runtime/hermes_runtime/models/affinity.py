"""Which worker has most of a prompt in its cache, as far as the supervisor can tell: by the prompt's text.

A text is known by digests over its start, one for each block; a worker is taken to remember the blocks of
what it was sent, the last ones first to stay. Pure; what it decides is speed, never an answer.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

BLOCK_CHARACTERS = 256
BLOCKS_MAX = 4096


def blocks(tenant: str, text: str) -> tuple[bytes, ...]:
    """A digest of the start of `text` up to the end of each whole block of it."""
    digest = hashlib.sha256(b"%d/" % len(tenant) + tenant.encode())
    found: list[bytes] = []
    for at in range(0, len(text) - BLOCK_CHARACTERS + 1, BLOCK_CHARACTERS):
        digest.update(text[at : at + BLOCK_CHARACTERS].encode("utf-8", "surrogatepass"))
        found.append(digest.digest()[:16])
    return tuple(found)


class Memory:
    """The blocks that one worker has seen."""

    def __init__(self, blocks_max: int = BLOCKS_MAX) -> None:
        self._blocks_max = blocks_max
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def known(self, prompt: Sequence[bytes]) -> int:
        """How many blocks from the start on were seen."""
        for count, block in enumerate(prompt):
            if block not in self._seen:
                return count
        return len(prompt)

    def add(self, prompt: Sequence[bytes]) -> None:
        """The worker is given this prompt."""
        for block in prompt:
            self._seen[block] = None
            self._seen.move_to_end(block)
        while len(self._seen) > self._blocks_max:
            self._seen.popitem(last=False)

    def clear(self) -> None:
        """The worker's process is a new one."""
        self._seen.clear()
