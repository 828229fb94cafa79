"""The Job of an attempt, one index for each shard; and the Job that pulls and verifies a model.

Decided here: what Kubernetes retries and what ends a Job at once. A pod that was evicted or stopped
costs no retry. An exit code that says "the user can mend it" ends the Job: trying again gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from hermes_operator.manifests import pod
from hermes_operator.manifests.owned import document_of, metadata
from hermes_operator.names import (
    COMPONENT_PULL,
    COMPONENT_RUN,
    LABEL_ATTEMPT,
    LABEL_QUEUE,
    job_name,
    pull_name,
    run_labels,
)
from hermes_operator.observed import Installation, Run
from hermes_operator.status import Manifest

EXIT_USER = 2
"""What the user can mend: a bad input, a gated model."""
EXIT_DAMAGED = 3
"""What lies in the model cache is not what its manifest says."""
EXIT_STOPPED = 143
"""A driver that was told to stop: the run was suspended, or somebody deleted the pod. It is tried again."""

PULL_BACKOFF_LIMIT = 4
"""Times that a pull is tried again; it goes on where it was cut off."""


def run_job(run: Run, installation: Installation, attempt: int) -> Manifest:
    """The Job of one attempt. It starts suspended where the run is, or where a queue is to admit it."""
    spec, name = document_of(run).spec, run.key.name
    mutants = spec.evaluate.instances.mutants
    assert mutants is not None, "refused before: problems_on_a_cluster"
    shards = -(-mutants.count // spec.shard_size)
    labels = {**run_labels(name, COMPONENT_RUN), LABEL_ATTEMPT: str(attempt)}
    queue = {LABEL_QUEUE: run.labels[LABEL_QUEUE]} if LABEL_QUEUE in run.labels else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(run, job_name(name, attempt), {**labels, **queue}),
        "spec": {
            "completionMode": "Indexed",
            "completions": shards,
            "parallelism": min(spec.parallelism, shards),
            "backoffLimitPerIndex": spec.backoff_limit,
            "activeDeadlineSeconds": spec.active_deadline_seconds,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": _failure_policy(pod.DRIVER, EXIT_USER, ignored=(EXIT_STOPPED,)),
            "suspend": spec.suspend or bool(queue),
            "template": {
                "metadata": {"labels": labels},
                "spec": pod.run_pod(run, installation, attempt),
            },
        },
    }


def pull_job(run: Run, installation: Installation) -> Manifest:
    """The Job that puts the model of a Hub into the model cache, or verifies it there. Not queued: it
    asks for no device."""
    name = run.key.name
    labels = run_labels(name, COMPONENT_PULL)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(run, pull_name(name), labels),
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": PULL_BACKOFF_LIMIT,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": _failure_policy(pod.PULL, EXIT_USER, EXIT_DAMAGED),
            "template": {
                "metadata": {"labels": labels},
                "spec": pod.pull_pod(run, installation),
            },
        },
    }


def _failure_policy(container: str, *fatal: int, ignored: Sequence[int] = ()) -> Manifest:
    """A pod that a node lost, or that was told to stop, is no failed try; `fatal` exit codes end the Job."""
    rules: list[Manifest] = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    ]
    for action, codes in (("Ignore", list(ignored)), ("FailJob", list(fatal))):
        if codes:
            exits = {"containerName": container, "operator": "In", "values": codes}
            rules.append({"action": action, "onExitCodes": exits})
    return {"rules": rules}
