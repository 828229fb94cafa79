"""Only what differs between a document and its Job is patched."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hermes_operator.observed import Patch
from hermes_operator.status import Manifest
from tests.unit.sample_cluster import a_job, a_run, begun, decided

RUN = a_run()
BEGUN = begun(RUN)


@pytest.mark.parametrize(
    ("spec", "job", "patch"),
    [
        pytest.param({}, {}, None, id="in step as it was made"),
        pytest.param({"parallelism": 1}, {}, {"parallelism": 1}, id="parallelism"),
        pytest.param({"parallelism": 9}, {}, None, id="no more pods than shards"),
        pytest.param({"activeDeadlineSeconds": 5}, {}, {"activeDeadlineSeconds": 5}, id="deadline"),
        pytest.param({}, {"suspend": True}, {"suspend": False}, id="suspended by hand"),
        pytest.param({"backoffLimit": 9, "ttlSecondsAfterFinished": 1}, {}, None, id="not the Job's"),
    ],
)
def test_edits(spec: Manifest, job: Manifest, patch: Manifest | None):
    actions = decided(replace(a_run(**spec), status=BEGUN), a_job(RUN, **job)).actions
    found = [action.patch["spec"] for action in actions if isinstance(action, Patch)]
    assert found == ([] if patch is None else [patch])
    assert len(actions) == len(found)


def test_a_queue_may_change_the_parallelism():
    run = a_run(queue="gpus")
    assert decided(replace(run, status=begun(run)), a_job(run, parallelism=1)).actions == ()
