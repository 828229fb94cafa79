"""Which sandbox this host runs: the one that was asked for, or the best that works.

`auto` tries bubblewrap by running it once, then Landlock. An explicit choice is never replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from hermes_runtime.errors import Unsupported
from hermes_runtime.sandbox import Sandbox
from hermes_runtime.sandbox.bubblewrap import Bubblewrap
from hermes_runtime.sandbox.landlock import Landlock

Name = Literal["auto", "bubblewrap", "landlock"]


def choose(name: Name = "auto", sandboxes: Sequence[Sandbox] | None = None) -> Sandbox:
    """The sandbox `name`, of `sandboxes` in order of preference. Unsupported, with every remedy, if none."""
    reasons: list[str] = []
    for sandbox in sandboxes if sandboxes is not None else (Bubblewrap(), Landlock()):
        if name in ("auto", sandbox.name):
            reason = sandbox.unavailable()
            if reason is None:
                return sandbox
            reasons.append(reason)
    raise Unsupported("no sandbox for tests: " + "; and ".join(reasons))
