"""What is seen while a run goes on."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from hermes_runtime.evaluate.progress import (
    JsonProgress,
    LineProgress,
    LiveProgress,
    NoProgress,
    Progress,
    Tally,
    progress_for,
)
from tests.unit import sample_run as sample


class Clock:
    """Time that goes on when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def isatty(self) -> bool:
        return True


def live(stream: io.StringIO, clock: Clock) -> LiveProgress:
    return LiveProgress(stream, environment={"TERM": "xterm"}, clock=clock, width=100)


def drive(view: Progress, clock: Clock) -> None:
    """A short run of three results."""
    with view:
        view.run_started(3, ["A", "PM"])
        for number, arm in ((1, "A"), (1, "PM"), (2, "A")):
            view.phase(sample.instance_id(number), arm, "propose", 2)
            clock.now += 30
            view.finished(sample.result(number, arm))
        view.note("the model's worker died\nand was started again")
        view.run_finished(Path("runs/quickstart/report.html"))


def test_lines_say_each_event_in_one_line():
    clock, stream = Clock(), io.StringIO()
    drive(LineProgress(stream, clock=clock), clock)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 9
    assert lines[0] == "run started: 3 results over A, PM"
    assert lines[1] == "humanize__mutant-0001 A: propose, round 2"
    assert lines[2].startswith("[1/3] humanize__mutant-0001 A: ")
    assert "1 min 0 s left" in lines[2]
    assert "left" not in lines[6]
    assert lines[7] == "the model's worker died and was started again"
    assert lines[8].startswith("run finished in 1 min 30 s: solved A ")
    assert lines[8].endswith("see runs/quickstart/report.html")


def test_json_lines_are_events_with_their_time():
    clock, stream = Clock(), io.StringIO()
    drive(JsonProgress(stream, clock=clock, now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)), clock)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == [
        "run_started", "phase", "finished", "phase", "finished", "phase", "finished", "note", "run_finished",
    ]  # fmt: skip
    assert {event["at"] for event in events} == {"2026-01-02T03:04:05.000Z"}
    assert events[1] | {"at": ""} == {
        "event": "phase", "at": "", "instance": "humanize__mutant-0001", "arm": "A", "phase": "propose",
        "round": 2,
    }  # fmt: skip
    assert events[2]["left_seconds"] == 60.0
    assert events[-1]["seconds"] == 90.0


def test_the_live_view_shows_arms_the_current_phase_and_the_time_left():
    clock, stream = Clock(), Terminal()
    view = live(stream, clock)
    view.run_started(4, ["A", "PM"])
    view.phase("toolz__mutant-0003", "PM", "test", 2)
    clock.now += 10
    view.finished(sample.result(3, "A"))
    view.phase("toolz__mutant-0003", "PM", "grade")
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(view.view())
    text = console.export_text()
    for said in ("1/2", "0/2", "1 of 4 · 10 s gone · about 30 s left", "toolz__mutant-0003 under PM: grade"):
        assert said in text


def test_the_live_view_leaves_one_summary_behind():
    clock, stream = Clock(), Terminal()
    drive(live(stream, clock), clock)
    assert " in 1 min 30 s: solved A " in stream.getvalue()
    assert "runs/quickstart/report.html" in stream.getvalue()


def test_an_interrupted_live_view_says_how_far_it_came():
    clock, stream = Clock(), Terminal()
    with pytest.raises(KeyboardInterrupt), live(stream, clock) as view:
        view.run_started(3, ["A"])
        view.finished(sample.result(1, "A"))
        raise KeyboardInterrupt
    assert "stopped after 1 of 3" in stream.getvalue()


def test_results_of_an_earlier_start_count_but_do_not_speed_the_clock():
    clock = Clock()
    tally = Tally(clock)
    tally.start(10, ["A"], [sample.result(n, "A") for n in range(5)])
    assert (tally.done, tally.left_seconds) == (5, None)
    clock.now += 20
    tally.add(sample.result(5, "A"))
    assert tally.left_seconds == 80.0


@pytest.mark.parametrize("as_json", [False, True])
def test_a_reader_who_goes_away_does_not_stop_the_run(as_json):
    clock = Clock()
    drive(progress_for(Broken(), as_json=as_json, environment={}, clock=clock), clock)


def test_a_terminal_that_goes_away_does_not_stop_the_run():
    clock = Clock()
    drive(live(Broken(), clock), clock)


@pytest.mark.parametrize(
    ("stream", "environment", "expected"),
    [
        pytest.param(Terminal(), {"TERM": "xterm-256color"}, LiveProgress, id="a terminal"),
        pytest.param(Terminal(), {"TERM": "dumb"}, LineProgress, id="a terminal that cannot move"),
        pytest.param(Terminal(), {"TERM": "xterm", "CI": "1"}, LineProgress, id="continuous integration"),
        pytest.param(io.StringIO(), {"TERM": "xterm"}, LineProgress, id="a file"),
    ],
)
def test_auto_is_live_only_where_the_cursor_moves(stream, environment, expected):
    assert isinstance(progress_for(stream, environment=environment), expected)


def test_json_is_given_where_it_is_asked_for_even_on_a_terminal():
    assert isinstance(progress_for(Terminal(), as_json=True, environment={"TERM": "xterm"}), JsonProgress)


def test_no_progress_takes_everything_and_shows_nothing(capsys):
    drive(NoProgress(), Clock())
    assert capsys.readouterr() == ("", "")


def test_names_cannot_drive_the_terminal():
    clock, stream = Clock(), io.StringIO()
    view = LineProgress(stream, clock=clock)
    view.run_started(1, ["A\x1b[2J"])
    view.phase("x\x1b]0;owned\x07", "A", "test\u202e")
    view.note("\x1b[1A\nnew line")
    assert "\x1b" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 3
