"""The operator's benchmark at a small size: it sees every run through, and both operators do their work."""

from __future__ import annotations

import pytest

from bench.operator import COMMON, asked, burst, hermes, one_by_one, to_go, to_succeed
from tests.cluster.binaries import missing_go
from tests.cluster.fixtures import require

pytestmark = pytest.mark.cluster

SECONDS_MAX = 240.0


@pytest.fixture(autouse=True)
def go() -> None:
    require(missing_go())


async def test_twenty_runs_at_once_succeed_within_128_mib_by_seven_requests_each():
    row = await burst(hermes(limit_mib=128), 20, idle_seconds=1.0, seconds_max=SECONDS_MAX)

    assert (row.gave_up, row.succeeded, row.refused, row.kills) == ("", 20, 0, 0)
    assert len(row.job_ms) == 20
    assert (to_succeed(row), to_go(row)) == (7, 0)
    assert asked(row, "idle") == {}


async def test_a_run_is_gone_after_its_time_by_one_request_more():
    row = await one_by_one(hermes(limit_mib=0), 2, idle_seconds=0.5, seconds_max=SECONDS_MAX)

    assert (row.gave_up, row.succeeded, row.refused) == ("", 2, 0)
    assert (to_succeed(row), to_go(row)) == (7, 1)


async def test_the_common_style_sees_its_runs_through_as_well():
    row = await burst(COMMON, 5, idle_seconds=1.0, seconds_max=SECONDS_MAX)

    assert (row.gave_up, row.succeeded) == ("", 5)
    assert {"create jobs", "patch hermesruns/status", "patch pods"} <= asked(row, "jobs").keys() | asked(
        row, "running"
    ).keys() | asked(row, "ended").keys()
