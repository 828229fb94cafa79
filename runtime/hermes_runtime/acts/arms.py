"""The arms: how acts are written, whether payloads may be anchored, who proposes.

A new arm is a row of the table. What an arm may change beside this (masking, slices, speculation) gets
a field here when the arm is built; nothing else asks an arm for its name.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hermes.agent.v1 import agent_pb2
from hermes_runtime.errors import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to let agents talk."""

    name: str
    encoding: agent_pb2.Encoding.ValueType
    anchors: bool
    """True: payloads are anchored where the benefit rule says so. False: everything is inline."""
    strategy: agent_pb2.Strategy.ValueType

    def profile(self, *, dialect: str, seed: int, candidates: int) -> agent_pb2.Profile:
        """What a receiver needs to know of this arm and run."""
        return agent_pb2.Profile(
            arm=self.name,
            encoding=self.encoding,
            anchors=self.anchors,
            strategy=self.strategy,
            dialect=dialect,
            seed=seed,
            candidates=candidates,
        )


def _arm(
    name: str, encoding: agent_pb2.Encoding.ValueType, *, anchors: bool = False, model: bool = True
) -> Arm:
    strategy = agent_pb2.STRATEGY_MODEL if model else agent_pb2.STRATEGY_ENUMERATE
    return Arm(name=name, encoding=encoding, anchors=anchors, strategy=strategy)


ARMS: Mapping[str, Arm] = MappingProxyType(
    {
        row.name: row
        for row in (
            _arm("A", agent_pb2.ENCODING_JSON),
            _arm("C", agent_pb2.ENCODING_PROTOBUF),
            _arm("PM", agent_pb2.ENCODING_PROTOBUF, anchors=True),
            _arm("enumerate", agent_pb2.ENCODING_PROTOBUF, model=False),
        )
    }
)
"""All arms by name. `enumerate` is the control without a model."""


def arm(name: str) -> Arm:
    """The arm of that name. BadInput, with the nearest name, if there is none."""
    if found := ARMS.get(name):
        return found
    folded = {known.casefold(): known for known in ARMS}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.3)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    raise BadInput(f"no arm is named {name!r}: {hint}there are {', '.join(ARMS)}")
