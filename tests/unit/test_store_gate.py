"""The gate: many share it, one is alone in it, and who wants to be alone goes first."""

from __future__ import annotations

import threading

from hermes_runtime.store.gate import Gate

SECONDS = 20


def test_many_share_the_gate():
    gate, together = Gate(), threading.Barrier(3, timeout=SECONDS)

    def share() -> None:
        with gate.shared():
            together.wait()

    threads = [threading.Thread(target=share) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not together.broken


def test_who_is_alone_waits_for_those_inside_and_goes_before_those_who_come_later():
    gate, order = Gate(), []
    inside, may_leave = threading.Event(), threading.Event()

    def early() -> None:
        with gate.shared():
            inside.set()
            may_leave.wait(SECONDS)
            order.append("early")

    def alone() -> None:
        with gate.alone():
            order.append("alone")

    def late() -> None:
        with gate.shared():
            order.append("late")

    threads = [threading.Thread(target=early)]
    threads[0].start()
    assert inside.wait(SECONDS)
    threads.append(threading.Thread(target=alone))
    threads[1].start()
    while not gate._wanting_alone:
        pass
    threads.append(threading.Thread(target=late))
    threads[2].start()
    may_leave.set()
    for thread in threads:
        thread.join()
    assert order == ["early", "alone", "late"]


def test_an_error_inside_opens_the_gate_again():
    gate = Gate()
    for enter in (gate.shared, gate.alone, gate.shared):
        try:
            with enter():
                raise RuntimeError
        except RuntimeError:
            pass
    with gate.alone():
        pass
