"""Whatever is seen, deciding again changes nothing, and what is written reads back as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_operator.decide import decide
from hermes_operator.decide.failure import is_legal
from hermes_operator.observed import Patch
from hermes_operator.status import Manifest, Status
from tests.unit.sample_cluster import (
    HUB,
    INSTALLATION,
    NOW,
    a_job,
    a_pod,
    a_pull,
    a_report,
    a_run,
    begun,
    ended,
    exited,
    of,
    waiting,
)

SPECS = st.fixed_dictionaries(
    {"backoffLimit": st.integers(0, 2)},
    optional={
        "suspend": st.booleans(),
        "source": st.just(HUB),
        "queue": st.just("gpus"),
        "attempt": st.integers(1, 3),
        "ttlSecondsAfterFinished": st.sampled_from([1, 1_000]),
        "preRunningDeadlineSeconds": st.sampled_from([1, 1_000]),
    },
)
JOB_STATUSES = st.fixed_dictionaries(
    {},
    optional={
        "suspend": st.booleans(),
        "completedIndexes": st.sampled_from(["", "0", "1", "0-1"]),
        "failedIndexes": st.sampled_from(["", "0", "1"]),
        "conditions": st.sampled_from(
            [
                ended("Complete"),
                ended("Failed", "FailedIndexes"),
                ended("Failed", "PodFailurePolicy"),
                ended("Failed", "DeadlineExceeded", seconds=-60),
            ]
        ),
    },
)
STATES = st.sampled_from(
    [
        waiting("PodInitializing"),
        waiting("ErrImagePull", "no"),
        {"running": {"startedAt": "2030-01-01T11:59:30Z"}},
        exited(0, a_report()),
        exited(1, a_report(failure={"who": "model", "reason": "ModelFailed", "message": "ü" * 4_000})),
        exited(2),
        exited(143, "no JSON"),
    ]
)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Any, ...]:
    """A run in some state, and children that fit it or not."""
    spec: dict[str, Any] = draw(SPECS)
    run = a_run(**spec)
    objects: list[Manifest] = []
    if draw(st.booleans()):
        job_status: dict[str, Any] = draw(JOB_STATUSES)
        job = a_job(run, **job_status)
        objects.append(job)
        for index in draw(st.sets(st.integers(0, 1))):
            phase = draw(st.sampled_from(["Pending", "Running", "Succeeded", "Failed"]))
            failures = draw(st.integers(0, 2))
            objects.append(a_pod(job, index, phase=phase, driver=draw(STATES), failures=failures))
    if "source" in spec and draw(st.booleans()):
        objects.append(a_pull(run, conditions=draw(st.sampled_from([[], ended("Complete")]))))
    if draw(st.booleans()):
        run = replace(run, status=begun(run))
    children = replace(of(*objects), is_fresh=draw(st.booleans()))
    return run, children, draw(st.sampled_from([None, None, 1]))


@settings(max_examples=300, deadline=None)
@given(scenes())
def test_deciding_again_changes_nothing(scene: tuple[Any, ...]):
    run, children, position = scene
    first = decide(run, children, NOW, INSTALLATION, position)
    assert is_legal(first.status)
    assert Status.from_manifest(first.status.to_manifest()) == first.status
    again = decide(replace(run, status=first.status), children, NOW, INSTALLATION, position)
    patches = [one for one in first.actions if isinstance(one, Patch)]
    if not first.wants_fresh and first.status.attempt == run.status.attempt and not patches:
        assert again.status == first.status
