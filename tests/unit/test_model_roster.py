from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_runtime import errors
from hermes_runtime.models.frames import Kind
from hermes_runtime.models.roster import (
    Budgets,
    Cancel,
    Instruction,
    Job,
    Kill,
    Refuse,
    Retire,
    Roster,
    Send,
    Spawn,
    State,
)

BUDGETS = Budgets(load_seconds=100, step_seconds=10, queue=2, deaths=3, load_deaths=3, backoff_seconds=1)


def job(number: int) -> Job:
    return Job(number=number, kind=Kind.GENERATE, payload=b"")


def ready(workers: int = 1, budgets: Budgets = BUDGETS) -> Roster:
    roster = Roster(workers=workers, budgets=budgets)
    assert roster.tick(0) == [Spawn(worker=index) for index in range(workers)]
    for index in range(workers):
        roster.loaded(index, 0)
    assert roster.is_ready
    return roster


def sent(instructions: list[Instruction]) -> list[tuple[int, int]]:
    return [(each.worker, each.job.number) for each in instructions if isinstance(each, Send)]


def test_a_request_goes_to_an_idle_worker_and_the_next_waits_for_it():
    roster = ready()
    assert sent(roster.submit(job(1), 0)) == [(0, 1)]
    assert roster.submit(job(2), 0) == []
    assert sent(roster.answered(0, 1, 1)) == [(0, 2)]


def test_requests_before_the_load_wait_for_it():
    roster = Roster(workers=1, budgets=BUDGETS)
    roster.tick(0)
    assert roster.submit(job(1), 0) == []
    assert sent(roster.loaded(0, 5)) == [(0, 1)]


def test_a_full_queue_refuses():
    roster = ready()
    for number in (1, 2, 3):
        roster.submit(job(number), 0)
    with pytest.raises(errors.Exhausted, match="2 requests wait"):
        roster.submit(job(4), 0)


def test_a_request_whose_worker_died_is_run_again_before_others():
    roster = ready()
    roster.submit(job(1), 0)
    roster.submit(job(2), 0)
    assert roster.died(0, "killed", 1) == [Spawn(worker=0)]
    assert sent(roster.loaded(0, 2)) == [(0, 1)]
    assert roster.restarts == 1


def test_a_request_at_which_workers_keep_dying_is_refused_and_others_are_served():
    roster = ready(workers=2)
    now = 0.0
    assert sent(roster.submit(job(1), now)) == [(0, 1)]
    refused: list[Instruction] = []
    for _ in range(BUDGETS.deaths):
        at = next(index for index in range(2) if roster.state(index) is State.BUSY)
        done = roster.died(at, "ended by SIGKILL", now)
        refused += [each for each in done if isinstance(each, Refuse)]
        now += 5
        roster.tick(now)
        for index in range(2):
            roster.loaded(index, now)
    assert [each.number for each in refused if isinstance(each, Refuse)] == [1]
    assert sent(roster.submit(job(2), now)) == [(0, 2)]


def test_restarts_wait_longer_each_time_until_an_answer():
    roster = ready()
    waits: list[float] = []
    now = 0.0
    for number in range(4):
        roster.submit(job(number), now)
        roster.died(0, "killed", now)
        deadline = roster.deadline()
        waits.append((deadline or now) - now if roster.state(0) is State.STOPPED else 0.0)
        now += 50
        roster.tick(now)
        roster.loaded(0, now)
    assert waits == [0, 1, 2, 4]


def test_a_silent_worker_is_killed_and_a_beating_one_is_not():
    roster = ready()
    roster.submit(job(1), 0)
    roster.beat(0, 9)
    assert roster.tick(18.9) == []
    assert roster.deadline() == 19
    (kill,) = roster.tick(19)
    assert isinstance(kill, Kill)
    assert roster.died(0, "killed", 19) == [Spawn(worker=0)]
    assert sent(roster.loaded(0, 20)) == [(0, 1)]


def test_an_idle_worker_may_be_silent_for_ever():
    assert ready().tick(1e9) == []


def test_a_cancelled_request_that_waits_is_forgotten():
    roster = ready()
    roster.submit(job(1), 0)
    roster.submit(job(2), 0)
    assert roster.cancel(2, 0) == []
    assert roster.answered(0, 1, 0) == []
    assert roster.is_quiet


def test_a_cancelled_request_at_work_is_cancelled_there_and_not_run_again():
    roster = ready()
    roster.submit(job(1), 0)
    assert roster.cancel(1, 0) == [Cancel(worker=0, number=1)]
    assert roster.died(0, "killed", 0) == [Spawn(worker=0)]
    assert roster.is_quiet


def test_a_model_that_cannot_be_loaded_refuses_all_with_its_error():
    roster = Roster(workers=1, budgets=BUDGETS)
    roster.tick(0)
    roster.submit(job(1), 0)
    damaged = errors.Damaged("a byte changed")
    assert roster.load_failed(0, damaged, 1) == [Refuse(number=1, error=damaged)]
    with pytest.raises(errors.Damaged):
        roster.submit(job(2), 1)


def test_a_worker_that_dies_at_every_load_is_given_up():
    roster = Roster(workers=1, budgets=BUDGETS)
    now = 0.0
    for _ in range(BUDGETS.load_deaths):
        roster.tick(now)
        roster.died(0, "ended by SIGKILL", now)
        now += 100
    assert roster.state(0) is State.OUT
    assert "3 times in a row while loading" in str(roster.lost)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_request_ends_exactly_once_whatever_dies(data: st.DataObject):
    roster = ready(workers=2, budgets=Budgets(queue=50))
    ended: list[int] = []
    busy: dict[int, int] = {}
    now = 0.0

    def follow(instructions: list[Instruction]) -> None:
        for each in instructions:
            match each:
                case Send(worker=worker, job=given_job):
                    assert worker not in busy
                    busy[worker] = given_job.number
                case Refuse(number=number):
                    ended.append(number)
                case Kill(worker=worker):
                    busy.pop(worker, None)
                    follow(roster.died(worker, "killed", now))
                case _:
                    pass

    steps = data.draw(st.lists(st.sampled_from(["submit", "answer", "die", "load", "wait"]), max_size=60))
    number = 0
    for step in [*steps, *["load", "wait", "answer"] * 200]:
        worker = data.draw(st.integers(0, 1)) if len(busy) != 1 else next(iter(busy))
        match step:
            case "submit":
                number += 1
                follow(roster.submit(job(number), now))
            case "answer" if worker in busy:
                done = busy.pop(worker)
                ended.append(done)
                follow(roster.answered(worker, done, now))
            case "die" if roster.state(worker) is not State.STOPPED:
                busy.pop(worker, None)
                follow(roster.died(worker, "killed", now))
            case "load":
                for index in range(2):
                    follow(roster.loaded(index, now))
            case "wait":
                now += 5
                follow(roster.tick(now))
            case _:
                pass
        if roster.lost is not None:
            break
        if not busy and roster.is_quiet and step == "answer" and len(ended) == number:
            break
    assert sorted(ended) == list(range(1, number + 1))


# Several requests at once in a worker.


def busy(workers: int, jobs: int, count: int, budgets: Budgets = BUDGETS) -> Roster:
    roster = Roster(workers=workers, budgets=replace(budgets, queue=100), jobs=jobs)
    roster.tick(0)
    for index in range(workers):
        roster.loaded(index, 0)
    for number in range(1, count + 1):
        roster.submit(job(number), 0)
    return roster


def test_a_worker_is_given_several_requests_and_the_emptiest_one_the_next():
    roster = Roster(workers=2, budgets=replace(BUDGETS, queue=9), jobs=2)
    roster.tick(0)
    roster.loaded(0, 0)
    roster.loaded(1, 0)
    assert [sent(roster.submit(job(number), 0)) for number in range(1, 6)] == [
        [(0, 1)],
        [(1, 2)],
        [(0, 3)],
        [(1, 4)],
        [],
    ]
    assert sent(roster.answered(1, 2, 1)) == [(1, 5)]


def test_a_request_goes_where_most_of_its_prompt_is_known_even_if_others_are_emptier():
    roster = busy(workers=3, jobs=4, count=0)
    known = (b"a", b"b")
    roster.submit(job(1), 0)
    assert sent(roster.submit(replace(job(2), prefix=known), 0)) == [(1, 2)]
    assert sent(roster.submit(replace(job(3), prefix=(*known, b"c")), 0)) == [(1, 3)]
    assert sent(roster.submit(replace(job(4), prefix=(b"z",)), 0)) == [(2, 4)]
    roster.died(1, "killed", 1)
    roster.loaded(1, 1)
    assert 1 not in {worker for worker, _ in sent(roster.submit(replace(job(5), prefix=(b"q",)), 2))}


def test_after_a_death_each_request_that_was_there_runs_alone_and_elsewhere_if_it_can():
    roster = busy(workers=2, jobs=4, count=3)
    assert sent(roster.died(0, "killed", 1)) == []  # 1 and 3 were there; the other worker has 2 to end
    assert sent(roster.submit(job(4), 1)) == []  # and is given nothing more before that
    assert sent(roster.answered(1, 2, 2)) == [(1, 1)]
    done = roster.loaded(0, 3)
    assert sent(done) == [(0, 3)]
    assert sent(roster.answered(1, 1, 4)) == [(1, 4)]
    assert sent(roster.answered(0, 3, 5)) == []
    assert roster.restarts == 1


def test_one_that_kills_takes_no_innocent_with_it():
    roster = busy(workers=1, jobs=8, count=6)
    poison, ended, refused, now = 4, set[int](), list[Instruction](), 0.0
    current = {1, 2, 3, 4, 5, 6}
    while current:
        now += 10
        if poison in current:
            refused += [each for each in roster.died(0, "crashed", now) if isinstance(each, Refuse)]
            roster.tick(now + 5)
            instructions = roster.loaded(0, now + 5)
        else:
            ended |= current
            instructions = [each for number in current for each in roster.answered(0, number, now)]
        current = {number for _, number in sent(instructions)}
    assert [each.number for each in refused if isinstance(each, Refuse)] == [poison]
    assert ended == {1, 2, 3, 5, 6}


def test_a_request_of_which_new_tokens_were_decoded_each_time_is_not_refused():
    roster = busy(workers=1, jobs=1, count=1)
    for at in range(10):
        now = 100.0 * (at + 1)
        roster.decoded(0, 1)
        assert not any(isinstance(each, Refuse) for each in roster.died(0, "killed", now))
        roster.tick(now + 50)
        assert sent(roster.loaded(0, now + 50)) == [(0, 1)]


def test_a_worker_that_has_done_enough_is_replaced_by_one_that_is_ready_first():
    roster = busy(workers=1, jobs=2, count=3, budgets=replace(BUDGETS, recycle_requests=1))
    done = roster.answered(0, 1, 1)
    assert [each for each in done if isinstance(each, Spawn)] == [Spawn(worker=1)]
    assert sent(done) == [(0, 3)]  # the old one goes on meanwhile
    assert roster.place(1) == 0
    assert roster.loaded(1, 2) == []
    assert sent(roster.submit(job(4), 3)) == [(1, 4)]
    assert roster.answered(0, 2, 3) == []
    assert roster.answered(0, 3, 4) == [Retire(worker=0)]
    assert roster.died(0, "ended with code 0", 5) == []
    assert (roster.state(0), roster.restarts, roster.is_ready) == (State.OUT, 0, True)


def test_a_worker_that_has_grown_is_replaced():
    roster = busy(workers=1, jobs=2, count=2, budgets=replace(BUDGETS, recycle_growth_bytes=100))
    roster.beat(0, 1, 1000)
    roster.beat(0, 2, 1099)
    assert not any(isinstance(each, Spawn) for each in roster.answered(0, 1, 3))
    roster.beat(0, 4, 1100)
    assert Spawn(worker=1) in roster.answered(0, 2, 5)


def test_a_successor_that_cannot_be_loaded_leaves_the_old_one_at_work():
    roster = busy(workers=1, jobs=1, count=1, budgets=replace(BUDGETS, recycle_requests=1))
    assert Spawn(worker=1) in roster.answered(0, 1, 1)
    assert roster.died(1, "ended by SIGKILL", 2) == []
    assert sent(roster.submit(job(2), 3)) == [(0, 2)]
    assert roster.is_ready


def test_a_worker_that_dies_while_its_successor_loads_is_not_replaced_twice():
    roster = busy(workers=1, jobs=1, count=2, budgets=replace(BUDGETS, recycle_requests=1))
    roster.answered(0, 1, 1)
    assert Spawn(worker=0) in roster.died(0, "killed", 2)
    assert roster.loaded(1, 3) == [Retire(worker=1)]
    assert sent(roster.loaded(0, 4)) == [(0, 2)]
    assert roster.died(1, "ended with code 0", 5) == []
