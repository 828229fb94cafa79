"""Runs, Jobs and pods for tests of the operator's decisions, as the API would give them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hermes_operator import names
from hermes_operator.decide import decide
from hermes_operator.decide.retry import attempt_of
from hermes_operator.decide.view import View
from hermes_operator.manifests import pull_job, run_job
from hermes_operator.observed import Children, Decision, Installation, Run, RunKey
from hermes_operator.status import Manifest, Status
from hermes_runtime.document import HermesRun, read

NOW = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
UID = "12345678-aaaa"
INSTALLATION = Installation(runtime_image="hermes:test", model_claim="models")
HUB = {"repo": "Org/Model", "revision": "0" * 40}
FILE: dict[str, Any] = {"evaluate": {"instances": {"file": "instances.jsonl"}}}


def a_run(
    *, status: Status | None = None, queue: str = "", generation: int = 1, name: str = "a", **spec: Any
) -> Run:
    """A run of 4 instances in 2 shards under A and C, unless `spec` says otherwise."""
    evaluate = {"instances": {"mutants": {"count": 4}}, "arms": ["A", "C"]}
    model = {"model": {"source": spec.pop("source")}} if "source" in spec else {}
    data = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {"evaluate": evaluate, "shardSize": 2, "parallelism": 2, **model, **spec},
    }
    return Run(
        key=RunKey("lab", name),
        uid=UID,
        generation=generation,
        created_at=NOW - timedelta(hours=1),
        is_deleted=False,
        labels={names.LABEL_QUEUE: queue} if queue else {},
        document=read(data),
        status=status or Status(),
    )


def a_job(run: Run, *, attempt: int = 1, uid: str = "job-1", **more: Any) -> Manifest:
    """The attempt's Job as it was made; `more` goes over its spec and its status."""
    job = run_job(run, INSTALLATION, attempt)
    job["metadata"] |= {"uid": uid}
    spec = {key: more.pop(key) for key in ("suspend", "parallelism", "activeDeadlineSeconds") if key in more}
    job["spec"] |= {"suspend": False, **spec}
    job["status"] = {"startTime": at(-50), **more}
    return job


def a_pull(run: Run, **status: Any) -> Manifest:
    """The pull Job."""
    job = pull_job(run, INSTALLATION)
    job["metadata"] |= {"uid": "pull-1"}
    job["status"] = {"startTime": at(-50), **status}
    return job


def ended(kind: str, reason: str = "", *, seconds: float = -5) -> list[Manifest]:
    """Conditions of a Job that has ended."""
    return [{"type": kind, "status": "True", "reason": reason, "lastTransitionTime": at(seconds)}]


def a_pod(
    job: Manifest,
    index: int = 0,
    *,
    phase: str = "Running",
    driver: Manifest | None = None,
    sidecars: Mapping[str, Manifest] | None = None,
    conditions: list[Manifest] | None = None,
    failures: int = 0,
    name: str = "",
) -> Manifest:
    """A pod of the Job; `driver` is the state of its main container."""
    main = "pull" if job["metadata"]["name"].endswith("-pull") else "driver"
    return {
        "metadata": {
            "name": name or f"{job['metadata']['name']}-{index}-{failures}",
            "uid": f"pod-{index}-{failures}",
            "creationTimestamp": at(-50 + failures),
            "annotations": {
                "batch.kubernetes.io/job-completion-index": str(index),
                "batch.kubernetes.io/job-index-failure-count": str(failures),
            },
            "ownerReferences": [{"kind": "Job", "uid": job["metadata"]["uid"]}],
        },
        "status": {
            "phase": phase,
            "conditions": conditions or [],
            "containerStatuses": [{"name": main, "state": driver or {"running": {"startedAt": at(-30)}}}],
            "initContainerStatuses": [{"name": name, **one} for name, one in (sidecars or {}).items()],
        },
    }


def exited(code: int, message: str | Manifest = "", reason: str = "") -> Manifest:
    """State of a container that has ended."""
    text = message if isinstance(message, str) else json.dumps(message)
    return {"terminated": {"exitCode": code, "message": text, "reason": reason, "startedAt": at(-30)}}


def waiting(reason: str, message: str = "") -> Manifest:
    """State of a container that waits."""
    return {"waiting": {"reason": reason, "message": message}}


def a_report(*, done: int = 4, solved: int = 1, attempts: int = 0, **more: Any) -> Manifest:
    """What a driver says of a shard of 2 instances under A and C."""
    return {
        "version": 1,
        "done": done,
        "total": 4,
        "arms": {arm: {"done": done // 2, "solved": solved} for arm in ("A", "C")},
        "hermetic": {"counted": True, "attempts": attempts},
        "loaded": {"device": "cpu", "dtype": "float32", "weightBytes": 7, "treeSha256": "ab" * 32},
        "manifest": "mcp://sha256/" + "0" * 64,
        "failure": None,
        **more,
    }


def of(*objects: Manifest) -> Children:
    """Those objects as children."""
    jobs = {one["metadata"]["name"]: one for one in objects if "spec" in one}
    pods = {one["metadata"]["name"]: one for one in objects if "spec" not in one}
    return Children(jobs=jobs, pods=pods)


def decided(
    run: Run,
    *objects: Manifest,
    position: int | None = None,
    seconds: float = 0,
    is_fresh: bool = False,
) -> Decision:
    """The decision on that run and those children."""
    children = replace(of(*objects), is_fresh=is_fresh)
    return decide(run, children, NOW + timedelta(seconds=seconds), INSTALLATION, position)


def a_view(run: Run, *objects: Manifest, position: int | None = None) -> View:
    """What a policy looks at."""
    assert isinstance(run.document, HermesRun)
    return View(
        run=run,
        document=run.document,
        attempt=attempt_of(run.status, run.document.spec.attempt),
        children=of(*objects),
        now=NOW,
        installation=INSTALLATION,
        queue_position=position,
    )


def begun(run: Run) -> Status:
    """The status once everything that the run needs was made."""
    return decided(run).status


def at(seconds: float) -> str:
    """That many seconds from now, as Kubernetes writes it."""
    return (NOW + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def done_to(decision: Decision) -> list[str]:
    """The actions in a few words."""
    words = []
    for action in decision.actions:
        manifest = getattr(action, "manifest", None)
        kind = manifest["kind"] if manifest else getattr(action, "kind", "")
        words.append(f"{type(action).__name__} {kind}")
    return words
