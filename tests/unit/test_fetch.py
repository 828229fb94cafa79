"""What a fetched run's folder is made of: pure parts of fetching, and of what a cluster is asked."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from hermes_runtime.document import read
from hermes_runtime.errors import BadInput
from hermes_runtime.evaluate.cluster import instances_of, line_of, phase_of, run_id_of
from hermes_runtime.evaluate.fetch import joined_instances, joined_manifest, shards_of
from hermes_runtime.store import Digest, Event


def shard_event(index: int, *, word: bytes = b"", names: tuple[str, ...] = ()) -> Event:
    blobs = {name: Digest.of(word + name.encode()) for name in ("instances_jsonl", "manifest", "document")}
    payload = {"index": index, **{name: blob.uri for name, blob in blobs.items() if name not in names}}
    return Event(
        stream=f"n.r.0/shard/{index}",
        type="shard",
        payload=json.dumps(payload).encode(),
        previous=b"",
        written_at=datetime(2026, 1, 1, tzinfo=UTC),
        digests=tuple(blobs.values()),
    )


def test_the_last_word_of_a_shard_counts_and_shards_come_in_order():
    found = shards_of([shard_event(1), shard_event(0, word=b"first"), shard_event(0, word=b"last")])
    assert list(found) == [0, 1]
    assert found[0].manifest == Digest.of(b"last" + b"manifest")
    assert found[1].document == Digest.of(b"document")


def test_events_of_other_types_are_no_shards():
    event = shard_event(0)
    other = Event(
        stream=event.stream,
        type="hermes.agent.v1.Envelope",
        payload=b"",
        previous=b"",
        written_at=event.written_at,
    )
    assert shards_of([other]) == {}


def test_a_shard_that_does_not_name_what_it_left_is_refused():
    with pytest.raises(BadInput, match="does not name what it left"):
        shards_of([shard_event(0, names=("manifest",))])


def test_instances_are_joined_in_the_order_of_shards_each_once():
    parts = [
        b'{"instance_id": "b"}\n{"instance_id": "a"}\n',
        b"",
        b'{"instance_id": "a"}\n{"instance_id": "c"}',
    ]
    lines = joined_instances(parts).splitlines()
    assert [json.loads(line)["instance_id"] for line in lines] == ["b", "a", "c"]


def part(**hermetic: Any) -> dict[str, Any]:
    return {
        "digest": "d",
        "run": "r",
        "host": {"cores": 2},
        "hermetic": {"wall": "seccomp", "counted": True, "attempts": 0, "attempted_by": [], **hermetic},
        "loaded": {"device": "cpu"},
        "restarts": {"coder": 1},
        "shard": {"index": 0},
    }


def test_a_run_is_as_hermetic_as_its_worst_shard():
    joined = joined_manifest("n.r.0", [part(), part(attempts=2, attempted_by=[{"pid": 7}])])
    assert joined["hermetic"] == {
        "wall": "seccomp",
        "counted": True,
        "attempts": 2,
        "attempted_by": [{"pid": 7}],
    }
    assert (joined["restarts"], len(joined["shards"]), joined["run_id"]) == ({"coder": 2}, 2, "n.r.0")
    uncounted = joined_manifest("n.r.0", [part(), part(wall="none", counted=False, attempts=None)])
    assert uncounted["hermetic"]["counted"] is False
    assert uncounted["hermetic"]["attempts"] is None
    assert uncounted["hermetic"]["wall"] == "seccomp, none"
    assert joined["digest"] != uncounted["digest"]


def test_shards_without_evidence_make_no_evidence():
    bare = part()
    del bare["hermetic"]
    assert joined_manifest("n.r.0", [part(), bare])["hermetic"]["counted"] is False
    assert joined_manifest("n.r.0", []) == {}


RUN: dict[str, Any] = {
    "apiVersion": "hermes.dev/v1alpha1",
    "kind": "HermesRun",
    "metadata": {"name": "quick", "namespace": "team", "uid": "0a1b2c3d-4e5f"},
    "spec": {
        "evaluate": {"instances": {"mutants": {"count": 5}}, "arms": ["A", "C"], "control": "enumerate"}
    },
}


def test_a_run_is_called_as_the_operator_says_or_will_say():
    assert run_id_of(RUN) == "team.quick.0a1b2c3d"
    assert run_id_of({**RUN, "status": {"runId": "told"}}) == "told"
    assert phase_of(RUN) == "Pending"


@pytest.mark.parametrize(("total", "instances"), [(15, 5), (0, 0), (16, 0)])
def test_the_number_of_instances_follows_from_the_results_that_are_wanted(total: int, instances: int):
    run = {**RUN, "status": {"progress": {"total": total}}}
    assert instances_of(run, read(run)) == instances


@pytest.mark.parametrize(
    ("status", "line"),
    [
        pytest.param({}, "Pending", id="not looked at"),
        pytest.param({"phase": "Pending", "queuePosition": 3}, "Pending; number 3 in the queue", id="queued"),
        pytest.param(
            {
                "phase": "Running",
                "progress": {"done": 4, "total": 15, "arms": [{"name": "A", "done": 2, "solved": 1}]},
                "shards": {"total": 2, "active": 1, "succeeded": 1, "failed": 0},
            },
            "Running; 4 of 15 results; solved A 1/2; shards: 1 active, 1 succeeded, 0 failed of 2",
            id="running",
        ),
        pytest.param(
            {
                "phase": "Failed",
                "failure": {"who": "user", "reason": "BadInput", "message": "no such package"},
            },
            "Failed; user: BadInput: no such package",
            id="failed",
        ),
    ],
)
def test_a_status_is_one_line(status: dict[str, Any], line: str):
    assert line_of({**RUN, "status": status}) == line
