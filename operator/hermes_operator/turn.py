"""Whose turn it is, when the installation runs only so many runs at a time.

Decided here, over all runs: the oldest first. A run with a queue's label is neither counted nor held back:
its queue decides. What waiting means for one run is decided in `decide`. An operator that dies between
making a Job and writing that it did may, once started again, let one run more than the cap go on.
"""

from __future__ import annotations

from collections.abc import Iterable

from hermes_operator.names import ENDED, Phase
from hermes_operator.observed import RunInLine, RunKey

_WORKING = frozenset({Phase.PULLING, Phase.STARTING, Phase.RUNNING})


def positions(runs: Iterable[RunInLine], cap: int) -> dict[RunKey, int]:
    """For each run that must wait, its place: 1 for the next. Runs that need not wait are left out.

    `cap` 0: nobody waits.
    """
    if cap <= 0:
        return {}
    working, wanting = 0, []
    for run in runs:
        if run.is_deleted or not run.is_readable or run.has_queue:
            continue
        if run.phase in _WORKING:
            working += 1
        elif not run.suspend and (run.phase not in ENDED or run.attempt_asked > run.attempt):
            wanting.append(run)
    wanting.sort(key=lambda run: (run.created_at, run.key))
    held = wanting[max(0, cap - working) :]
    return {run.key: shown(place) for place, run in enumerate(held, start=1)}


def shown(place: int) -> int:
    """The place, rounded up to 1, 2, 5, 10, 20, 50 …: each is written once, however long the queue."""
    step = 1
    while True:
        for limit in (step, 2 * step, 5 * step):
            if place <= limit:
                return limit
        step *= 10
