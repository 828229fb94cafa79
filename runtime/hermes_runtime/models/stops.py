"""When a completion ends: at an end token, or at a stop text.

A stop text that is one special token ends as that token. Any other is looked for in the text, but only
in rows whose newest token could complete it, so that a step costs no Python for the other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Stops:
    """What ends the completions of one request."""

    ends: Tensor
    """(V,) bool: tokens that end."""
    texts: tuple[str, ...]
    """Texts that end."""
    may_complete: Tensor
    """(V,) bool: tokens that could be the last of one of `texts`."""

    def hits(self, text: str) -> int | None:
        """Where the first stop text begins in `text`; None if none is in it."""
        return min((at for stop in self.texts if (at := text.find(stop)) >= 0), default=None)


class Vocabulary:
    """The text of each token, found out when first asked for."""

    def __init__(self, size: int, pieces: Callable[[], Sequence[str]]) -> None:
        """`pieces()` gives each token's own text, in order."""
        self._size = size
        self._pieces = pieces
        self._texts: Sequence[str] | None = None
        self._with: dict[str, Tensor] = {}

    def holding(self, character: str) -> Tensor:
        """(V,) bool: tokens whose text has `character`, or is not known by itself (half a character)."""
        if character not in self._with:
            if self._texts is None:
                self._texts = self._pieces()
            found = [character in text or "\ufffd" in text or not text for text in self._texts]
            found += [True] * (self._size - len(found))
            self._with[character] = torch.tensor(found[: self._size], dtype=torch.bool)
        return self._with[character]

    def stops(self, ends: Collection[int], texts: Sequence[str]) -> Stops:
        """The stops of one request."""
        mask = torch.zeros(self._size, dtype=torch.bool)
        mask[torch.tensor(sorted(ends), dtype=torch.int64)] = True
        may = torch.zeros(self._size, dtype=torch.bool)
        for text in texts:
            may = may | self.holding(text[-1])
        return Stops(ends=mask, texts=tuple(texts), may_complete=may)
