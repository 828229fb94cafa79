"""Who waits when only so many runs may run at a time, and what a wait looks like."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from hermes_operator.names import Condition, Phase, Reason
from hermes_operator.observed import Run, RunKey
from hermes_operator.status import Status
from hermes_operator.turn import positions, shown
from tests.unit.sample_cluster import NOW, a_job, a_run, begun, decided


def test_a_run_that_must_wait_makes_nothing_and_its_clock_stands():
    decision = decided(a_run(), position=2)
    assert decision.actions == ()
    assert (decision.status.phase, decision.status.queue_position) == (Phase.PENDING, 2)
    assert decision.status.attempt_started_at is None
    assert decision.status.conditions[Condition.STARTED].reason is Reason.WAITING_FOR_TURN


def test_a_run_that_has_begun_does_not_wait():
    run = a_run()
    begun_run = replace(run, status=begun(run))
    assert decided(begun_run, a_job(run), position=1).status == begun_run.status
    # Its operator died between making the Job and writing the status.
    assert decided(run, a_job(run), position=1).status.phase is Phase.STARTING


def test_a_run_in_a_queue_waits_there_alone():
    assert decided(a_run(queue="gpus"), position=1).actions != ()


def a_waiting(name: str, minutes: int, phase: Phase = Phase.PENDING, **more: Any) -> Run:
    run = a_run(name=name, status=Status(phase=phase, attempt=1), **more)
    return replace(run, created_at=NOW + timedelta(minutes=minutes))


@pytest.mark.parametrize(
    ("runs", "cap", "waiting"),
    [
        pytest.param([a_waiting("b", 2), a_waiting("a", 1)], 0, {}, id="no cap"),
        pytest.param([a_waiting("b", 2), a_waiting("a", 1)], 1, {"b": 1}, id="the oldest first"),
        pytest.param([a_waiting("a", 1, Phase.RUNNING), a_waiting("b", 2)], 1, {"b": 1}, id="all busy"),
        pytest.param([a_waiting("a", 1, Phase.SUCCEEDED), a_waiting("b", 2)], 1, {}, id="ended is free"),
        pytest.param(
            [a_waiting("a", 1, Phase.FAILED, attempt=2), a_waiting("b", 2)], 1, {"b": 1}, id="wanted again"
        ),
        pytest.param([a_waiting("a", 1, suspend=True), a_waiting("b", 2)], 1, {}, id="suspended is free"),
        pytest.param([a_waiting("a", 1, queue="q"), a_waiting("b", 2)], 1, {}, id="queued apart"),
        pytest.param(
            [a_waiting("a", 1, Phase.RUNNING), a_waiting("c", 3, Phase.STARTING), a_waiting("b", 2)],
            1,
            {"b": 1},
            id="more than the cap run",
        ),
    ],
)
def test_positions(runs: list[Run], cap: int, waiting: dict[str, int]):
    assert positions([run.in_line for run in runs], cap) == {
        RunKey("lab", name): place for name, place in waiting.items()
    }


def test_a_long_line_is_told_in_steps():
    assert [shown(place) for place in (1, 2, 3, 5, 6, 10, 11, 99, 4_999)] == [
        1,
        2,
        5,
        5,
        10,
        10,
        20,
        100,
        5000,
    ]
