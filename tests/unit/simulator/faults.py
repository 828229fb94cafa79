"""What goes wrong in a schedule, and how often. Schedules and the played parts ask it."""

from __future__ import annotations

import random
from dataclasses import dataclass

HORIZON_SECONDS = 12_000.0
"""By then every schedule has come to rest."""
QUIET_SECONDS = 1_500.0
"""After that, so long nothing may be written: two resyncs."""


class Broken(BaseException):
    """An invariant does not hold. No mistake of the operator's, which would survive one."""


@dataclass(frozen=True, kw_only=True)
class Odds:
    """How often what goes wrong, in [0, 1], for each draw."""

    write_fails: float = 0.0
    """An API request is answered with 409, 429 or 500, or the answer is lost after it was done."""
    event_late: float = 0.0
    event_twice: float = 0.0
    kill: float = 0.0
    """The operator is killed after a write."""
    api_away: bool = False
    """For 60 s the API answers nobody."""
    watch_silent: bool = False
    """A watch says nothing more, until the operator is restarted for it."""
    lost_after_list: bool = False
    """What happens between a list and its watch is never told."""
    driver_fails: float = 0.0
    bad_input: float = 0.0
    out_of_memory: float = 0.0
    disrupted: float = 0.0
    node_lost: float = 0.0
    never_starts: float = 0.0
    """For the whole run: unschedulable, no image, or a model that crashes."""
    user_acts: int = 0
    pulls: float = 0.0
    pull_fails: float = 0.0
    queued: float = 0.0
    cap: int = 0


CALM = Odds()


def storms(seed: int) -> Odds:
    """What goes wrong in this schedule: each kind of fault is there or not."""
    dice = random.Random(seed * 7919 + 1)

    def sometimes(odds: float, chance: float = 0.4) -> float:
        return odds if dice.random() < chance else 0.0

    return Odds(
        write_fails=sometimes(0.15),
        event_late=sometimes(0.3),
        event_twice=sometimes(0.2),
        kill=sometimes(0.15),
        api_away=dice.random() < 0.2,
        watch_silent=dice.random() < 0.15,
        lost_after_list=dice.random() < 0.2,
        driver_fails=sometimes(0.25),
        bad_input=sometimes(0.1, 0.2),
        out_of_memory=sometimes(0.15, 0.3),
        disrupted=sometimes(0.2, 0.3),
        node_lost=sometimes(0.15, 0.3),
        never_starts=sometimes(0.5, 0.3),
        user_acts=dice.randint(0, 4),
        pulls=sometimes(0.6, 0.3),
        pull_fails=sometimes(0.4, 0.3),
        queued=sometimes(0.6, 0.25),
        cap=dice.choice((0, 0, 0, 1, 2)),
    )


BUSY_USERS = Odds(user_acts=12)
LOST_ANSWERS = Odds(write_fails=0.4, event_late=0.6, never_starts=0.3, pulls=0.3)
