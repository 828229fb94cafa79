"""Keys and values of many requests at once: rows of buffers of a fixed shape, and attention over them.

A row holds one completion; column i holds its token i, in every layer, sliding windows included: what a
window hides is hidden by its mask. The last row is where prompts are computed, from which others are
forked. Each row attends over a number of columns that depends on its own length only, so that its result
does not depend on who is beside it. Equal query heads of a group are folded into one, so that keys and
values are never copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ATTENTION = "hermes_slots"
"""Name under which transformers knows `attend`."""

_GROW_COLUMNS = 256

Snapshot = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of some columns of one row, layer by layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring rows that attend over equally many columns."""

    first: int
    end: int
    columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one forward pass writes and reads: new columns of one row, or a column of each of many."""

    rows: slice
    start: int
    """First new column; for many rows, each has its own in `columns`."""
    end: int
    """Columns that are read."""
    columns: Tensor | None = None
    """(R,) int64, for many rows."""
    runs: tuple[Run, ...] = ()


def runs_of(lengths: Sequence[int], bucket: int) -> tuple[Run, ...]:
    """Rows of these lengths, in runs; each reads its length rounded up to a multiple of `bucket`."""
    runs: list[Run] = []
    for row, length in enumerate(lengths):
        columns = -(-length // bucket) * bucket
        if runs and runs[-1].columns == columns:
            runs[-1] = Run(first=runs[-1].first, end=row + 1, columns=columns)
        else:
            runs.append(Run(first=row, end=row + 1, columns=columns))
    return tuple(runs)


_pass: ContextVar[Pass | None] = ContextVar("pass", default=None)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **named: object,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; outside of a pass of ours, its own."""
    current = _pass.get()
    if current is None or attention_mask is None:
        plain: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward
        return plain(module, query, key, value, attention_mask, scaling=scaling, **named)
    rows, heads, width, size = query.shape
    groups = heads // key.shape[1]
    folded = query.reshape(rows, key.shape[1], groups * width, size)
    if current.columns is None:
        mask = attention_mask.repeat(1, 1, groups, 1) if groups > 1 and width > 1 else attention_mask
        mixed = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    else:
        parts = [
            scaled_dot_product_attention(
                folded[run.first : run.end],
                key[run.first : run.end, :, : run.columns],
                value[run.first : run.end, :, : run.columns],
                attn_mask=attention_mask[run.first : run.end, :, :, : run.columns],
                scale=scaling,
            )
            for run in current.runs
        ]
        mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
    shaped = mixed.reshape(rows, heads, width, value.shape[-1])
    return shaped.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make `attend` known to transformers. Idempotent."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)


class SlotLayer(CacheLayerMixin):
    """One layer's buffers, (rows, heads, columns, size)."""

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers is half typed
        self._rows = rows
        self._wanted = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make buffers for what is stored; zeros, because what is masked must still be a number."""
        made: list[Tensor] = []
        for states in (key_states, value_states):
            shape = (self._rows, states.shape[1], self._wanted, states.shape[3])
            made.append(states.new_zeros(shape))
        self.keys, self.values = made
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def reserve(self, columns: int) -> None:
        """Have room for this many columns; what is there is kept."""
        if columns <= self._wanted:
            return
        self._wanted = -(-columns // _GROW_COLUMNS) * _GROW_COLUMNS
        if self.keys is None or self.values is None:
            return
        for name, old in (("keys", self.keys), ("values", self.values)):
            grown = old.new_zeros(old.shape[0], old.shape[1], self._wanted, old.shape[3])
            grown[:, :, : old.shape[2]] = old
            setattr(self, name, grown)

    def update(
        self, key_states: Tensor, value_states: Tensor, *arguments: object, **named: object
    ) -> tuple[Tensor, Tensor]:
        """Write where the current pass says; the result are views of what it reads."""
        current = _pass.get()
        assert current is not None, "slots are written within a pass only"
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.keys, self.values
        assert keys is not None
        assert values is not None
        if current.columns is None:
            keys[current.rows, :, current.start : current.start + key_states.shape[2]] = key_states
            values[current.rows, :, current.start : current.start + value_states.shape[2]] = value_states
        else:
            rows = torch.arange(current.rows.stop, device=keys.device)
            keys[rows, :, current.columns] = key_states[:, :, 0]
            values[rows, :, current.columns] = value_states[:, :, 0]
        return keys[current.rows, :, : current.end], values[current.rows, :, : current.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that are read, from the first on."""
        current = _pass.get()
        return (current.end if current else query_length), 0

    def get_seq_length(self) -> int:
        """Columns before the new ones."""
        current = _pass.get()
        return current.start if current else 0

    def get_max_length(self) -> int:
        """No maximum: buffers grow."""
        return -1


class Slots:
    """All layers of one model: `slots` rows, and one more in which prompts are computed."""

    def __init__(self, empty: Sequence[bool], *, slots: int, bucket: int) -> None:
        """`empty` tells of each layer whether it keeps nothing of its own."""
        self.stage = slots
        self.bucket = bucket
        layers = [
            DummyLayer() if is_empty else SlotLayer(slots + 1)  # type: ignore[no-untyped-call]  # half typed
            for is_empty in empty
        ]
        self._layers = [layer for layer in layers if isinstance(layer, SlotLayer)]
        self.cache = Cache(layers=list(layers))

    def reserve(self, columns: int) -> None:
        """Have room for rows of this many columns."""
        for layer in self._layers:
            layer.reserve(-(-columns // self.bucket) * self.bucket)

    @contextmanager
    def piece(self, row: int, start: int, end: int) -> Iterator[None]:
        """A pass that writes columns `start` to `end` of one row, and reads all before them too."""
        with _passing(Pass(rows=slice(row, row + 1), start=start, end=end)):
            yield

    @contextmanager
    def step(self, columns: Tensor, lengths: Sequence[int]) -> Iterator[Pass]:
        """A pass that writes one column of each of the first rows, of these lengths with it."""
        runs = runs_of(lengths, self.bucket)
        wide = max(run.columns for run in runs)
        made = Pass(rows=slice(0, len(lengths)), start=max(lengths) - 1, end=wide, columns=columns, runs=runs)
        with _passing(made):
            yield made

    def copy(self, source: int, target: int, columns: int) -> None:
        """The first `columns` of a row, to another."""
        for keys, values in self._held():
            keys[target, :, :columns] = keys[source, :, :columns]
            values[target, :, :columns] = values[source, :, :columns]

    def snapshot(self, row: int, start: int, end: int) -> Snapshot:
        """A copy of columns `start` to `end` of a row."""
        return tuple(
            (keys[row, :, start:end].clone(), values[row, :, start:end].clone())
            for keys, values in self._held()
        )

    def restore(self, row: int, start: int, snapshot: Snapshot) -> None:
        """What a snapshot holds, into a row from column `start` on."""
        for (keys, values), (old_keys, old_values) in zip(self._held(), snapshot, strict=True):
            keys[row, :, start : start + old_keys.shape[1]] = old_keys
            values[row, :, start : start + old_values.shape[1]] = old_values

    def _held(self) -> Iterator[tuple[Tensor, Tensor]]:
        for layer in self._layers:
            if layer.keys is not None and layer.values is not None:
                yield layer.keys, layer.values


def bytes_of(snapshot: Snapshot) -> int:
    """Memory that a snapshot takes."""
    return sum(each.numel() * each.element_size() for pair in snapshot for each in pair)


class Masks:
    """Which columns a token sees, in the form in which a model takes it."""

    def __init__(self, config: PretrainedConfig) -> None:
        """Raises ValueError: layers of a kind that rows of columns do not stand for."""
        window = getattr(config, "sliding_window", None)
        kinds: list[str] = list(getattr(config, "layer_types", None) or ())
        if not kinds:
            sliding = window is not None and getattr(config, "use_sliding_window", True)
            kinds = ["sliding_attention" if sliding else "full_attention"]
        if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
            raise ValueError(f"layers of kind {', '.join(sorted(unknown))}")
        self._kinds = sorted(set(kinds))
        self._window = int(window) if window is not None else 0

    def of(self, seen: Tensor, positions: Tensor, at: Tensor) -> Tensor | dict[str, Tensor]:
        """(R, 1, T, C) bool that tokens at `positions` (R, T) may see at all of columns at `at` (C,)."""
        made = {
            kind: seen & (at > positions[:, None, :, None] - self._window)
            if kind == "sliding_attention"
            else seen
            for kind in self._kinds
        }
        return made if len(made) > 1 else made[self._kinds[0]]


@contextmanager
def _passing(made: Pass) -> Iterator[None]:
    token = _pass.set(made)
    try:
        yield
    finally:
        _pass.reset(token)
