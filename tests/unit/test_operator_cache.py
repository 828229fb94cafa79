"""The cache: whatever the order in which words of an object come, the newest stays."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_operator.cache import Cache, Kind
from hermes_operator.names import COMPONENT_RUN, run_labels
from hermes_operator.observed import RunKey
from hermes_operator.status import Manifest
from hermes_runtime.document import HermesRun

KEY = RunKey("research", "first")
SPEC: Manifest = {"evaluate": {"instances": {"mutants": {"count": 2}}}}


def run_object(version: int, *, name: str = "first", uid: str = "u-1", **changes: Any) -> Manifest:
    found: Manifest = {
        "metadata": {
            "name": name,
            "namespace": "research",
            "uid": uid,
            "resourceVersion": str(version),
            "generation": 1,
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"team": "a"},
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": SPEC,
        "status": {"phase": "Running"},
    }
    return {**found, **changes}


def child(
    kind: str, version: int, *, name: str = "hermes-first-1", uid: str = "c-1", **more: Any
) -> Manifest:
    return {
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": "research",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": run_labels("first", COMPONENT_RUN),
            "managedFields": [{"manager": "hermes", "fieldsV1": {"f:spec": {}}}],
        },
        **more,
    }


@pytest.fixture
def cache() -> Cache:
    return Cache()


def test_a_run_is_read_with_its_document_and_status(cache):
    assert cache.remember(Kind.RUN, run_object(5)) == KEY

    run = cache.run(KEY)
    assert isinstance(run.document, HermesRun)
    assert (run.uid, run.generation, run.status.phase, run.is_deleted) == ("u-1", 1, "Running", False)
    assert run.created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert [one.key for one in cache.runs()] == [KEY]


def test_a_run_whose_document_is_wrong_is_kept_with_the_reason(cache):
    cache.remember(Kind.RUN, run_object(5, spec={"evaluate": {"instances": {}}, "seeed": 1}))

    assert "seeed" in cache.run(KEY).document


def test_an_older_word_never_replaces_a_newer_one(cache):
    cache.remember(Kind.RUN, run_object(7, status={"phase": "Succeeded"}))

    assert cache.remember(Kind.RUN, run_object(6)) is None
    assert cache.remember(Kind.RUN, run_object(7)) is None
    assert cache.run(KEY).status.phase == "Succeeded"


def test_what_was_deleted_does_not_come_back_by_a_late_word(cache):
    cache.remember(Kind.RUN, run_object(5))

    assert cache.forget(Kind.RUN, run_object(8)) == KEY
    assert cache.remember(Kind.RUN, run_object(6)) is None
    assert cache.run(KEY) is None


def test_another_object_of_the_same_name_is_another_object(cache):
    cache.remember(Kind.RUN, run_object(5))
    cache.remember(Kind.RUN, run_object(9, uid="u-2"))

    assert cache.forget(Kind.RUN, run_object(8)) is None  # the late word of the first one's end
    assert cache.run(KEY).uid == "u-2"


def test_a_list_removes_what_it_does_not_have_unless_that_is_newer(cache):
    for version, name in [(5, "old"), (6, "kept"), (12, "newer")]:
        cache.remember(Kind.RUN, run_object(version, name=name, uid=name))

    assert cache.drop_absent(Kind.RUN, "research", {"kept"}, "10") == [RunKey("research", "old")]
    assert sorted(run.key.name for run in cache.runs()) == ["kept", "newer"]


def test_a_list_of_one_namespace_leaves_the_others_alone(cache):
    cache.remember(Kind.RUN, run_object(5))

    assert cache.drop_absent(Kind.RUN, "elsewhere", set(), "10") == []
    assert cache.run(KEY) is not None


def test_children_are_found_by_the_label_of_their_run(cache):
    assert cache.remember(Kind.JOB, child("Job", 5)) == KEY
    assert cache.remember(Kind.POD, child("Pod", 6, name="p")) == KEY

    found = cache.children(KEY)
    assert (set(found.jobs), set(found.pods)) == ({"hermes-first-1"}, {"p"})
    assert cache.children(RunKey("research", "second")).jobs == {}


def test_objects_that_are_not_ours_are_not_kept(cache):
    stranger = child("Job", 5)
    del stranger["metadata"]["labels"]["app.kubernetes.io/managed-by"]

    assert cache.remember(Kind.JOB, stranger) is None
    assert cache.counts()[Kind.JOB] == 0


def test_of_a_pod_only_what_decisions_look_at_is_kept(cache):
    pod = child(
        "Pod",
        5,
        name="p",
        spec={"nodeName": "n1", "containers": [{"name": "driver"}], "volumes": [{"name": "work"}]},
        status={
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [
                {
                    "name": "driver",
                    "imageID": "sha256:0",
                    "state": {"running": {}},
                    "lastState": {},
                    "ready": True,
                }
            ],
        },
    )
    pod["metadata"]["annotations"] = {
        "batch.kubernetes.io/job-completion-index": "3",
        "kubectl.kubernetes.io/x": "y",
    }
    cache.remember(Kind.POD, pod)

    metadata = {key: pod["metadata"][key] for key in ("name", "namespace", "uid", "labels")}
    assert cache.children(KEY).pods["p"] == {
        "metadata": {**metadata, "annotations": {"batch.kubernetes.io/job-completion-index": "3"}},
        "spec": {"nodeName": "n1"},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "driver", "state": {"running": {}}, "ready": True}],
        },
    }


def test_of_a_job_everything_but_its_template_is_kept(cache):
    job = child("Job", 5, spec={"suspend": False, "parallelism": 2, "template": {}}, status={"active": 2})
    cache.remember(Kind.JOB, job)

    kept = cache.children(KEY).jobs["hermes-first-1"]
    assert (kept["spec"], kept["status"]) == ({"suspend": False, "parallelism": 2}, {"active": 2})


def test_a_job_that_we_deleted_counts_as_being_deleted_until_the_api_says_more(cache):
    cache.remember(Kind.JOB, child("Job", 5))
    cache.deletion_asked(Kind.JOB, "research", "hermes-first-1", "c-1", datetime(2026, 1, 1, tzinfo=UTC))

    kept = cache.children(KEY).jobs["hermes-first-1"]
    assert kept["metadata"]["deletionTimestamp"] == "2026-01-01T00:00:00Z"
    assert cache.forget(Kind.JOB, child("Job", 6)) == KEY
    assert cache.children(KEY).jobs == {}


def test_a_run_that_we_deleted_counts_as_being_deleted(cache):
    cache.remember(Kind.RUN, run_object(5))
    cache.deletion_asked(Kind.RUN, "research", "first", "another", datetime(2026, 1, 1, tzinfo=UTC))
    assert not cache.run(KEY).is_deleted
    cache.deletion_asked(Kind.RUN, "research", "first", "u-1", datetime(2026, 1, 1, tzinfo=UTC))

    assert cache.run(KEY).is_deleted


def test_what_the_api_does_not_know_is_forgotten_and_another_of_its_name_is_not(cache):
    job = child("Job", 5)
    uid = job["metadata"]["uid"]
    cache.remember(Kind.JOB, job)

    assert cache.forget_uid(Kind.JOB, "research", "hermes-first-1", "another") is None
    assert list(cache.children(KEY).jobs) == ["hermes-first-1"]
    assert cache.forget_uid(Kind.JOB, "research", "hermes-first-1", uid) == KEY
    assert cache.remember(Kind.JOB, child("Job", 5)) is None


def test_the_version_of_the_runs_moves_with_runs_alone(cache):
    before = cache.runs_version
    cache.remember(Kind.JOB, child("Job", 5))
    assert cache.runs_version == before
    cache.remember(Kind.RUN, run_object(6))
    assert cache.runs_version > before


@given(st.permutations(range(1, 9)), st.data())
def test_whatever_the_order_of_words_the_last_one_counts(order, data):
    """One name, created and deleted several times; every word of it may come twice and out of order."""
    history = [(v, "u-1", "DELETED" if v == 4 else "MODIFIED") for v in range(1, 5)]
    history += [(v, "u-2", "MODIFIED") for v in range(5, 9)]
    words = [history[i - 1] for i in order] + data.draw(st.lists(st.sampled_from(history), max_size=8))
    cache = Cache()
    for version, uid, kind in words:
        seen = child("Job", version, uid=uid, status={"active": version})
        if kind == "DELETED":
            cache.forget(Kind.JOB, seen)
        else:
            cache.remember(Kind.JOB, seen)

    kept = cache.children(KEY).jobs["hermes-first-1"]
    assert (kept["metadata"]["uid"], kept["status"]["active"]) == ("u-2", 8)
