"""Which request is computed next, and how much of it: decided here, without a model.

First come, first served. One prompt at a time is computed, in pieces that end at fixed places of the
prompt; its completions then take rows as rows are free, all of one request together, so that siblings are
one forked batch. While rows are decoded, a step computes only so much of a prompt as there are rows to
fill, so that nobody's next token waits for somebody's long prompt. Pure: calls in, decisions out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hermes_runtime import errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one engine takes on."""

    slots: int = 8
    """Rows decoded together."""
    piece_tokens: int = 64
    """Prompts are cut at multiples of this."""
    queue: int = 1024
    """Requests in the engine, computed or waiting; more are refused."""
    together: int = 0
    """Requests computed at once; 0: as many as there are rows for."""


@dataclass(slots=True, kw_only=True)
class Entry:
    """A request on its way through the engine."""

    number: int
    prompt: int
    """Tokens of its prompt."""
    rows: int
    """Completions that it decodes; 0 for one that is done when its prompt is."""
    computed: int = 0
    """Tokens of the prompt that are done."""
    joined: int = 0
    """Completions that have, or had, a row; also the number of the next one."""
    left: int = 0
    """Completions that have ended."""

    @property
    def is_computed(self) -> bool:
        """Whether the whole prompt is."""
        return self.computed >= self.prompt

    @property
    def pending(self) -> int:
        """Completions that still wait for a row."""
        return self.rows - self.joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """Completion `row` of request `number` takes a row."""

    number: int
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Tokens `start` to `end` of the prompt of request `number`."""

    number: int
    start: int
    end: int


@dataclass(slots=True, kw_only=True)
class Schedule:
    """All requests in an engine, in the order in which they came."""

    limits: Limits
    _entries: deque[Entry] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self._entries)

    def submit(self, number: int, *, prompt: int, rows: int) -> None:
        """Take a request. Raises Exhausted: too many are here."""
        if len(self._entries) >= self.limits.queue:
            raise errors.Exhausted(
                f"{len(self._entries)} requests are in the engine already: send fewer at once, "
                "or try again later"
            )
        self._entries.append(Entry(number=number, prompt=prompt, rows=rows))

    def staged(self) -> Entry | None:
        """The request whose prompt is computed, or is done and waits for its first row; None if none."""
        for at, entry in enumerate(self._entries):
            if entry.joined:
                continue
            if self.limits.together and at >= self.limits.together:
                return None
            return entry
        return None

    def piece(self) -> Piece | None:
        """What of a prompt to compute next; None if the staged one is done, or there is none."""
        entry = self.staged()
        if entry is None or entry.is_computed:
            return None
        size = self.limits.piece_tokens
        end = min(entry.prompt, (entry.computed // size + 1) * size)
        return Piece(number=entry.number, start=entry.computed, end=end)

    def computed(self, number: int, tokens: int) -> None:
        """The prompt of `number` is done up to `tokens`."""
        self._entry(number).computed = tokens

    def allowance(self, live: int) -> int:
        """Tokens of prompts to compute in a step in which `live` rows are decoded."""
        return self.limits.piece_tokens * (1 + self.limits.slots - live)

    def joins(self, live: int) -> list[Join]:
        """Completions that take the free rows, those of the oldest request first."""
        free, taken = self.limits.slots - live, []
        for entry in self._entries:
            if not entry.is_computed:
                break
            while free and entry.pending:
                taken.append(Join(number=entry.number, row=entry.joined))
                entry.joined += 1
                free -= 1
        return taken

    def successor(self, number: int) -> Join | None:
        """The completion that takes over the row of one of the same request which has ended."""
        entry = self._entry(number)
        entry.left += 1
        if not entry.pending:
            return None
        entry.joined += 1
        return Join(number=number, row=entry.joined - 1)

    def is_done(self, number: int) -> bool:
        """Whether every completion of `number` has ended."""
        entry = self._entry(number)
        return entry.is_computed and entry.left == entry.rows

    def remove(self, number: int) -> None:
        """The request is answered, or nobody waits for it."""
        self._entries.remove(self._entry(number))

    def _entry(self, number: int) -> Entry:
        return next(entry for entry in self._entries if entry.number == number)
