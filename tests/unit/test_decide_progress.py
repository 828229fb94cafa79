"""Each shard is counted once, when its Job says that it has ended, and what is written is bounded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_operator.decide import indexes
from hermes_operator.decide.count import COUNTED_CHARACTERS_MAX
from hermes_operator.names import Condition, Reason
from hermes_operator.observed import Run
from hermes_operator.status import Manifest, Status
from tests.unit.sample_cluster import a_job, a_pod, a_report, a_run, begun, decided, exited

RUN = a_run()
RUNNING = decided(replace(RUN, status=begun(RUN)), a_job(RUN), a_pod(a_job(RUN))).status


def running(status: Status) -> Run:
    return replace(RUN, status=status)


def done(job: Manifest, index: int = 0, **report: Any) -> Manifest:
    return a_pod(job, index, phase="Succeeded", driver=exited(0, a_report(**report)))


def test_a_shard_is_counted_when_its_job_says_that_it_is_done_and_once():
    early, job = a_job(RUN), a_job(RUN, completedIndexes="0")
    assert decided(running(RUNNING), early, done(early), seconds=20).status.done == 0
    counted = decided(running(RUNNING), job, done(job), seconds=20).status
    assert (counted.done, counted.counted_indexes, counted.shards.succeeded) == (4, "0", 1)
    assert [(arm.name, arm.done, arm.solved) for arm in counted.arms] == [("A", 2, 1), ("C", 2, 1)]
    assert counted.loaded is not None
    assert counted.loaded.weight_bytes == 7
    assert counted.manifest_ref.startswith("mcp://")
    again = decided(running(counted), job, done(job), seconds=90)
    assert again.status == counted


def test_a_pod_that_vanished_after_it_was_counted_loses_nothing():
    job = a_job(RUN, completedIndexes="0")
    counted = decided(running(RUNNING), job, done(job), seconds=20).status
    assert decided(running(counted), job, seconds=90).status == counted


def test_a_job_made_again_is_counted_again_for_its_drivers_find_what_is_recorded():
    job = a_job(RUN, completedIndexes="0")
    counted = decided(running(RUNNING), job, done(job), seconds=20).status
    second = a_job(RUN, uid="job-2", completedIndexes="0")
    recounted = decided(running(counted), second, done(second), seconds=90).status
    assert (recounted.done, recounted.counted_job) == (4, "job-2")


def test_progress_is_written_every_few_seconds_at_most_but_before_a_pod_vanishes():
    job = a_job(RUN, completedIndexes="0")
    held = decided(running(RUNNING), job, done(job), seconds=5)
    assert held.status == RUNNING
    assert held.next_at is not None
    leaving = done(job)
    leaving["metadata"]["deletionTimestamp"] = "2030-01-01T12:00:05Z"
    assert decided(running(RUNNING), job, leaving, seconds=5).status.done == 4


@pytest.mark.parametrize("message", ["", "no JSON", '{"version": 9}', '{"version": 1, "done": -1}', "[]"])
def test_a_message_that_cannot_be_read_counts_for_nothing(message: str):
    job = a_job(RUN, completedIndexes="0")
    pod = a_pod(job, phase="Succeeded", driver=exited(0, message))
    status = decided(running(RUNNING), job, pod, seconds=20).status
    assert (status.done, status.counted_indexes, status.shards.succeeded) == (0, "0", 1)


def test_a_failed_shard_is_counted_by_its_last_pod_alone():
    job = a_job(RUN, failedIndexes="0")
    first = a_pod(job, phase="Failed", driver=exited(1, a_report(done=2)), failures=0)
    last = a_pod(job, phase="Failed", driver=exited(1, a_report(done=4)), failures=2)
    assert decided(running(RUNNING), job, first, seconds=20).status.done == 0
    status = decided(running(RUNNING), job, first, last, seconds=20).status
    assert (status.done, status.shards.failed) == (4, 1)


def test_one_attempted_socket_is_enough_to_say_no():
    job = a_job(RUN, completedIndexes="0")
    status = decided(running(RUNNING), job, done(job, attempts=1), seconds=20).status
    assert status.conditions[Condition.HERMETIC].status == "False"
    assert status.conditions[Condition.HERMETIC].reason is Reason.SOCKET_ATTEMPTED


@pytest.mark.parametrize("step", [1, 2])
def test_a_status_stays_under_4_kib_with_10_000_shards(step: int):
    run = a_run(evaluate={"instances": {"mutants": {"count": 20_002}}}, parallelism=9_000)
    ended = range(0, 10_000, step)
    job = a_job(run, completedIndexes=indexes.write(ended))
    pods = [done(job, index) for index in ended]
    status = decided(replace(run, status=begun(run)), job, *pods).status
    assert len(json.dumps(status.to_manifest(), ensure_ascii=False, separators=(",", ":")).encode()) < 4096
    assert len(status.counted_indexes) <= COUNTED_CHARACTERS_MAX
    assert status.shards.succeeded == len(ended)
    assert status.done == 4 * len(indexes.read(status.counted_indexes, below=10_001))
    assert status.done > 0


@given(st.frozensets(st.integers(0, 200)), st.frozensets(st.integers(0, 200)), st.integers(1, 80))
def test_indexes_read_as_they_were_written_and_known_ones_are_kept(
    known: frozenset[int], new: frozenset[int], characters_max: int
):
    assert indexes.read(indexes.write(known), below=201) == known
    kept = indexes.as_many(known, new, characters_max=characters_max)
    assert known <= kept <= known | new
    assert kept == known or len(indexes.write(kept)) <= characters_max


@pytest.mark.parametrize("text", ["", None, "x", "3-", "-3", "5-1", "1-99999999999"])
def test_indexes_that_cannot_be_read_are_bounded(text: str | None):
    assert len(indexes.read(text, below=10)) <= 9
