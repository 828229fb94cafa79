"""The schedule: who is computed when, and that everybody is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_runtime import errors
from hermes_runtime.models.engine.schedule import Join, Limits, Piece, Schedule

LIMITS = Limits(slots=2, piece_tokens=4, queue=3)


def test_a_prompt_is_cut_at_fixed_places_wherever_it_goes_on():
    schedule = Schedule(limits=LIMITS)
    schedule.submit(1, prompt=10, rows=1)
    assert schedule.piece() == Piece(number=1, start=0, end=4)
    schedule.computed(1, 4)
    assert schedule.piece() == Piece(number=1, start=4, end=8)
    schedule.computed(1, 8)
    assert schedule.piece() == Piece(number=1, start=8, end=10)
    schedule.computed(1, 10)
    assert schedule.piece() is None


def test_siblings_join_together_and_the_next_prompt_waits_for_the_first_to_have_a_row():
    schedule = Schedule(limits=LIMITS)
    schedule.submit(1, prompt=1, rows=3)
    schedule.submit(2, prompt=1, rows=1)
    assert schedule.joins(0) == []
    schedule.computed(1, 1)
    assert schedule.piece() is None
    assert schedule.joins(0) == [Join(number=1, row=0), Join(number=1, row=1)]
    assert schedule.piece() == Piece(number=2, start=0, end=1)


def test_a_completion_that_waits_takes_over_the_row_of_its_sibling():
    schedule = Schedule(limits=LIMITS)
    schedule.submit(1, prompt=1, rows=3)
    schedule.computed(1, 1)
    schedule.joins(0)
    assert schedule.successor(1) == Join(number=1, row=2)
    assert schedule.successor(1) is None
    assert not schedule.is_done(1)
    assert schedule.successor(1) is None
    assert schedule.is_done(1)


def test_the_fewer_rows_are_decoded_the_more_of_a_prompt_is_computed():
    schedule = Schedule(limits=LIMITS)
    assert [schedule.allowance(live) for live in (0, 1, 2)] == [12, 8, 4]


def test_where_requests_must_not_meet_the_next_waits_for_the_end():
    schedule = Schedule(limits=Limits(slots=2, piece_tokens=4, together=1))
    schedule.submit(1, prompt=1, rows=1)
    schedule.submit(2, prompt=1, rows=1)
    schedule.computed(1, 1)
    schedule.joins(0)
    assert schedule.staged() is None
    schedule.remove(1)
    assert schedule.piece() == Piece(number=2, start=0, end=1)


def test_more_requests_than_the_limit_are_refused():
    schedule = Schedule(limits=LIMITS)
    for number in range(3):
        schedule.submit(number, prompt=1, rows=1)
    with pytest.raises(errors.Exhausted, match="3 requests"):
        schedule.submit(3, prompt=1, rows=1)


@settings(max_examples=200, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 11), st.integers(0, 5)), min_size=1, max_size=8),
    lengths=st.lists(st.integers(1, 4), min_size=1),
    slots=st.integers(1, 4),
    together=st.integers(0, 2),
)
def test_every_completion_has_a_row_once_and_everything_ends(requests, lengths, slots, together):
    schedule = Schedule(limits=Limits(slots=slots, piece_tokens=4, together=together))
    for number, (prompt, rows) in enumerate(requests):
        schedule.submit(number, prompt=prompt, rows=rows)
    live: dict[tuple[int, int], int] = {}
    seen: list[tuple[int, int]] = []

    def start(join: Join) -> None:
        live[join.number, join.row] = lengths[len(seen) % len(lengths)]
        seen.append((join.number, join.row))

    for _ in range(1000):
        if not len(schedule):
            break
        allowed = schedule.allowance(len(live))
        while allowed > 0 and (piece := schedule.piece()) is not None:
            assert piece.start % 4 == 0
            assert piece.start < piece.end <= piece.start + 4
            schedule.computed(piece.number, piece.end)
            allowed -= piece.end - piece.start
            if schedule.is_done(piece.number):
                schedule.remove(piece.number)
        for join in schedule.joins(len(live)):
            start(join)
        assert len(live) <= slots
        if together:
            assert len({number for number, _ in live}) <= together
        for key in list(live):
            live[key] -= 1
            if live[key] == 0:
                del live[key]
                follower = schedule.successor(key[0])
                if follower is not None:
                    start(follower)
                elif schedule.is_done(key[0]):
                    schedule.remove(key[0])
    assert not len(schedule)
    assert sorted(seen) == [(number, row) for number, (_, rows) in enumerate(requests) for row in range(rows)]
