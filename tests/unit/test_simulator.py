"""The operator's decisions under faults: thousands of schedules of a played cluster, each from its seed.

`HERMES_SCHEDULES=10000 pytest tests/unit/test_simulator.py`, or `python -m tests.unit.test_simulator 10000`
from the root of the repository, tries more than the suite does.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter

import pytest

from hermes_operator.decide import API_REQUESTS_PER_RUN_MAX
from tests.unit.simulator.faults import BUSY_USERS, CALM, LOST_ANSWERS, Broken, Odds, storms
from tests.unit.simulator.schedule import Schedule

SCHEDULES = int(os.environ.get("HERMES_SCHEDULES", "220"))


def test_a_calm_run_of_one_shard_costs_eight_requests_from_creation_to_deletion():
    world = Schedule(1, CALM, runs=1, shards=1).run()
    assert world.requests == Counter(
        {
            "apply ServiceAccount": 1,
            "apply NetworkPolicy": 1,
            "apply Job": 1,
            "status": 3,
            "event": 1,
            "delete HermesRun": 1,
        }
    )
    assert world.requests.total() <= API_REQUESTS_PER_RUN_MAX


@pytest.mark.parametrize("part", range(10))
def test_the_final_status_is_the_truth_whatever_goes_wrong(part: int):
    for seed in range(part, SCHEDULES, 10):
        try:
            Schedule(seed, storms(seed)).run()
        except Broken as broken:
            raise AssertionError(f"seed {seed}: {broken}") from broken


@pytest.mark.parametrize("odds", [BUSY_USERS, LOST_ANSWERS], ids=["busy users", "lost answers"])
def test_one_kind_of_trouble_at_a_time_is_survived_too(odds: Odds):
    for seed in range(SCHEDULES // 10):
        try:
            Schedule(seed, odds).run()
        except Broken as broken:
            raise AssertionError(f"seed {seed}: {broken}") from broken


def main(count: int, first: int = 0) -> int:
    """Try `count` schedules and say what was found."""
    logging.disable()  # every injected fault is logged
    began, broken, kills, requests = time.monotonic(), 0, 0, 0
    for seed in range(first, first + count):
        try:
            world = Schedule(seed, storms(seed)).run()
        except (Broken, Exception) as error:
            broken += 1
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
        else:
            kills += world.kills
            requests += world.requests.total()
    seconds = time.monotonic() - began
    print(f"{count} schedules, {broken} broken, {kills} kills, {requests} requests, {seconds:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(*(int(one) for one in sys.argv[1:])))
