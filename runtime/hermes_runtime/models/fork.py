"""A computed prompt, forked to many rows: its keys and values copied once, with room to grow.

transformers' own dynamic layer copies all its keys and values at every step; here a step writes one
column. Other kinds of layer (sliding windows, linear attention) are forked by their own methods.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
)

from hermes_runtime import errors

Layer = CacheLayerMixin | LinearAttentionCacheLayerMixin | DummyLayer


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers' own hook
    """A dynamic layer whose buffers have room for `room` more columns than are filled."""

    def __init__(self, keys: Tensor, values: Tensor, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers is half typed
        self._room = room
        self._filled = keys.shape[2]
        self._adopt(keys, values)

    def update(
        self, key_states: Tensor, value_states: Tensor, *arguments: object, **named: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new columns in place; the result are views of what is filled."""
        end = self._filled + key_states.shape[2]
        self._key_buffer[:, :, self._filled : end] = key_states
        self._value_buffer[:, :, self._filled : end] = value_states
        self._room -= key_states.shape[2]
        self._show(end)
        return self._key_buffer[:, :, :end], self._value_buffer[:, :, :end]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order; a row may be kept more than once."""
        filled = self._filled
        self._adopt(self._key_buffer[indices, :, :filled], self._value_buffer[indices, :, :filled])

    def _adopt(self, keys: Tensor, values: Tensor) -> None:
        rows, heads, filled, _ = keys.shape
        self._key_buffer = keys.new_empty(rows, heads, filled + self._room, keys.shape[3])
        self._value_buffer = values.new_empty(rows, heads, filled + self._room, values.shape[3])
        self._key_buffer[:, :, :filled] = keys
        self._value_buffer[:, :, :filled] = values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._show(filled)

    def _show(self, filled: int) -> None:
        self._filled = filled
        self.keys = self._key_buffer[:, :, :filled]
        self.values = self._value_buffer[:, :, :filled]


def fork(cache: Cache, rows: Tensor, room: int) -> Cache:
    """A new cache whose row i is row `rows[i]` of `cache`, which is left as it was.

    `room` is the most columns that will be added. Raises Unsupported: the architecture cannot.
    """
    return Cache(layers=[_forked(layer, rows, room) for layer in cache.layers])


def _forked(layer: Layer, rows: Tensor, room: int) -> Layer:
    if isinstance(layer, DynamicLayer) and type(layer) in (DynamicLayer, RoomyLayer):
        if layer.keys is None or layer.values is None:
            return copy.copy(layer)
        if bool((rows == 0).all()) and layer.keys.shape[0] == 1:  # no copy before the copy
            wide = len(rows)
            return RoomyLayer(
                layer.keys.expand(wide, -1, -1, -1), layer.values.expand(wide, -1, -1, -1), room
            )
        return RoomyLayer(layer.keys[rows], layer.values[rows], room)
    if isinstance(layer, DummyLayer):
        return layer  # its keys and values are another layer's: there is nothing to fork
    if not isinstance(layer, CacheLayerMixin) or not hasattr(layer, "batch_select_indices"):
        raise errors.Unsupported(
            f"this architecture keeps its past in {type(layer).__name__}, which cannot be forked: "
            "use a model with attention layers only"
        )
    own = copy.copy(layer)
    own.batch_select_indices(rows)
    return own


def select(cache: Cache, rows: Tensor) -> None:
    """Keep these rows of a forked cache, in place."""
    cache.batch_select_indices(rows)


def on(rows: Tensor, device: torch.device) -> Tensor:
    """`rows` where the cache is."""
    return rows if rows.device == device else rows.to(device)
