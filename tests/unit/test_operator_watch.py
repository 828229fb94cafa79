"""How watches are told to be alive and in step, from what is seen of HTTP."""

from __future__ import annotations

import itertools

import pytest

from hermes_operator.cache import Kind
from hermes_operator.watch import Backoffs, Watch, Watches

PODS = Watch(Kind.POD, "research")


@pytest.fixture
def watches() -> Watches:
    found = Watches(("research",), silence_seconds_max=180.0)
    found.begin(0.0)
    return found


def open_all(watches: Watches) -> None:
    for watch in watches.all():
        watches.listed(watch)
        watches.opened(watch)


def test_there_is_one_watch_for_each_kind_and_namespace():
    watches = Watches(("left", "right"), silence_seconds_max=1.0)

    assert set(watches.all()) == {Watch(kind, where) for kind in Kind for where in ("left", "right")}


def test_an_own_list_is_due_when_a_watch_is_open_after_kopf_has_listed(watches):
    watches.listed(PODS)
    assert watches.list_is_due() == []
    assert watches.opened(PODS)
    assert watches.list_is_due() == [PODS]


def test_a_watch_that_is_opened_anew_without_a_list_goes_on_where_it_was(watches):
    open_all(watches)
    for watch in watches.all():
        watches.in_step(watch)

    assert not watches.opened(PODS)
    assert watches.list_is_due() == []


def test_a_list_stays_due_until_it_was_taken(watches):
    open_all(watches)
    assert watches.opened(PODS)
    watches.in_step(PODS)
    assert PODS not in watches.list_is_due()


def test_the_picture_is_whole_when_everything_was_listed_with_its_watch_open(watches):
    open_all(watches)
    for watch in watches.all():
        assert not watches.are_primed
        watches.in_step(watch)
    assert watches.are_primed


def test_a_watch_is_silent_after_the_limit_and_any_byte_ends_it(watches):
    for watch in watches.all():
        watches.heard(watch, 100.0)
    watches.heard(PODS, 50.0)

    assert watches.silent(230.0) == []
    assert watches.silent(230.1) == [PODS]
    assert watches.silence_seconds(230.0) == 180.0
    watches.heard(PODS, 230.2)
    assert watches.silent(230.3) == []


def test_silence_does_not_count_before_watching_begins():
    watches = Watches(("research",), silence_seconds_max=180.0)

    assert (watches.silent(1e6), watches.silence_seconds(1e6)) == ([], 0.0)


def test_tries_have_no_end_and_never_wait_longer_than_a_quarter_of_a_minute():
    delays = list(itertools.islice(Backoffs(), 50))

    assert delays[0] < 1.0
    assert (max(delays), delays) == (15.0, sorted(delays))
    assert list(itertools.islice(Backoffs(), 2)) == delays[:2]
