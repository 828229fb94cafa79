"""The work queue: keys coalesce, come in order, are worked on one at a time, and are held back on failure."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hermes_operator.queue import BACKOFF_SECONDS_FIRST, BACKOFF_SECONDS_MAX, WorkQueue


@pytest.fixture
def queue() -> WorkQueue[str]:
    return WorkQueue(jitter=lambda: 0.5)


def test_a_key_woken_many_times_waits_once(queue):
    for _ in range(5):
        queue.wake("a")

    assert (queue.take(0), queue.take(0)) == ("a", None)


def test_keys_come_in_the_order_in_which_they_were_woken(queue):
    for key in "cabac":
        queue.wake(key)

    assert [queue.take(0) for _ in range(3)] == ["c", "a", "b"]


def test_a_key_woken_while_it_is_worked_on_comes_once_more_and_not_before_it_is_done(queue):
    queue.wake("a")
    queue.take(0)
    queue.wake("a")
    queue.wake("a")

    assert queue.take(0) is None
    queue.done("a")
    assert (queue.take(0), queue.take(0)) == ("a", None)


def test_a_key_woken_while_busy_goes_to_the_end(queue):
    queue.wake("a")
    queue.take(0)
    queue.wake("b")
    queue.wake("a")
    queue.done("a")

    assert [queue.take(0), queue.take(0)] == ["b", "a"]


def test_a_key_comes_again_at_the_time_that_was_asked_for(queue):
    queue.wake("a")
    queue.done(queue.take(0), next_at=10.0)

    assert queue.next_at() == 10.0
    assert (queue.take(9.9), queue.take(10.0)) == (None, "a")


def test_a_wake_comes_before_the_time_and_replaces_it(queue):
    queue.wake("a")
    queue.done(queue.take(0), next_at=10.0)
    queue.wake("a")
    assert queue.take(1.0) == "a"
    queue.done("a")

    assert (queue.take(10.0), queue.next_at()) == (None, None)


def test_a_failed_key_is_held_back_longer_each_time_up_to_a_bound():
    queue: WorkQueue[str] = WorkQueue(jitter=lambda: 1.0)
    queue.wake("a")
    now, delays = 0.0, []
    for _ in range(12):
        queue.take(now)
        at = queue.failed("a", now)
        delays.append(at - now)
        now = at

    doubling = [BACKOFF_SECONDS_FIRST * 2**n for n in range(12)]
    assert delays == pytest.approx([min(one, BACKOFF_SECONDS_MAX) for one in doubling])


def test_a_wake_does_not_shorten_the_time_that_a_failed_key_is_held_back(queue):
    queue.wake("a")
    queue.take(0)
    at = queue.failed("a", 0.0)
    queue.wake("a")

    assert (queue.take(at - 0.01), queue.held_back) == (None, 1)
    assert (queue.take(at), queue.held_back) == ("a", 0)


def test_a_failed_key_waits_at_least_as_long_as_the_server_asked(queue):
    queue.wake("a")
    queue.take(0)

    assert queue.failed("a", 0.0, not_before=30.0) == 30.0


def test_a_success_forgets_the_failures(queue):
    queue.wake("a")
    queue.take(0)
    first = queue.failed("a", 0.0)
    queue.done(queue.take(first))
    queue.wake("a")
    queue.take(100.0)

    assert queue.failed("a", 100.0) - 100.0 == pytest.approx(first)


def test_jitter_spreads_retries_between_half_and_the_whole_delay():
    rolls = itertools.cycle([0.0, 0.999])
    queue: WorkQueue[int] = WorkQueue(jitter=lambda: next(rolls))
    delays = []
    for key in range(2):
        queue.wake(key)
        queue.take(0)
        delays.append(queue.failed(key, 0.0))

    assert delays == pytest.approx([0.5 * BACKOFF_SECONDS_FIRST, BACKOFF_SECONDS_FIRST], rel=0.01)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=300, max_size=600))
def test_looking_again_and_again_with_far_dates_does_not_fill_the_memory(keys):
    queue: WorkQueue[int] = WorkQueue(jitter=lambda: 0.0)
    for key in keys:
        queue.wake(key)
        queue.done(queue.take(0), next_at=1e9 + key)  # type: ignore[arg-type]  # one was just woken

    assert len(queue._heap) <= 2 * 6 + 64


class QueueMachine(RuleBasedStateMachine):
    """Against a model: what was woken is taken, nothing twice at a time, nothing is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: WorkQueue[int] = WorkQueue(jitter=lambda: 0.5)
        self.now = 0.0
        self.busy: set[int] = set()
        self.owed: set[int] = set()
        self.due: dict[int, float] = {}
        self.held: dict[int, float] = {}

    @rule(key=st.integers(0, 4))
    def wake(self, key):
        self.queue.wake(key)
        if key not in self.held:
            self.owed.add(key)

    @rule(seconds=st.floats(0, 50))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def take(self):
        for times in (self.due, self.held):
            for key in [key for key, at in times.items() if at <= self.now]:
                self.owed.add(key)
                del times[key]
        taken = self.queue.take(self.now)
        assert (taken is None) == (not self.owed - self.busy)
        if taken is not None:
            assert taken in self.owed - self.busy
            self.owed.remove(taken)
            self.due.pop(taken, None)
            self.busy.add(taken)

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), after=st.none() | st.floats(0, 100))
    def done(self, data, after):
        key = data.draw(st.sampled_from(sorted(self.busy)))
        self.busy.remove(key)
        self.queue.done(key, None if after is None else self.now + after)
        if after is not None and key not in self.owed:
            self.due[key] = self.now + after

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def fail(self, data):
        key = data.draw(st.sampled_from(sorted(self.busy)))
        self.busy.remove(key)
        self.owed.discard(key)
        self.held[key] = self.queue.failed(key, self.now)
        assert self.now < self.held[key] <= self.now + BACKOFF_SECONDS_MAX

    @invariant()
    def the_next_time_is_the_earliest(self):
        if not self.owed - self.busy:
            times = [*self.due.values(), *self.held.values()]
            assert self.queue.next_at() == min(times, default=None)
        else:
            assert self.queue.next_at() is not None


QueueMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestQueueAgainstAModel = QueueMachine.TestCase
