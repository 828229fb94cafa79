"""The operator that the benchmark compares with: kopf as its documentation and most operators use it.

A handler of creation makes the objects, handlers of fields of Jobs and pods write the run's status, and
one of deletion takes the Job away; kopf keeps finalizers, annotations and Events as it does by default.
The same objects as HERMES' own operator makes, by the same client. `kopf run -m` starts it; it is no part
of HERMES.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import kopf
from lightkube import ApiError, AsyncClient
from lightkube.generic_resource import create_namespaced_resource
from lightkube.types import CascadeType, PatchType

from hermes_operator.cache import Cache, Kind
from hermes_operator.manifests import run_account, run_job, run_policy
from hermes_operator.names import (
    GROUP,
    KIND,
    LABEL_MANAGED_BY,
    LABEL_RUN,
    MANAGER,
    PLURAL,
    VERSION,
    Phase,
    job_name,
)
from hermes_operator.observed import Installation
from hermes_operator.status import Manifest

INSTALLATION = Installation(runtime_image="hermes:bench")
MADE = {LABEL_MANAGED_BY: MANAGER}

_RUN = create_namespaced_resource(GROUP, VERSION, KIND, PLURAL)
_RESOURCES = {
    "ServiceAccount": create_namespaced_resource("", "v1", "ServiceAccount", "serviceaccounts"),
    "NetworkPolicy": create_namespaced_resource(
        "networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"
    ),
    "Job": create_namespaced_resource("batch", "v1", "Job", "jobs"),
}


@kopf.on.startup()
async def connect(memo: kopf.Memo, **_: Any) -> None:
    """One client for all handlers."""
    memo.client = AsyncClient()


@kopf.on.create(GROUP, VERSION, PLURAL)
async def run_created(body: kopf.Body, patch: kopf.Patch, memo: kopf.Memo, **_: Any) -> None:
    """Make what the run needs."""
    cache = Cache()
    key = cache.remember(Kind.RUN, dict(body))
    run = None if key is None else cache.run(key)
    if run is None:
        raise kopf.PermanentError("the run cannot be read")
    for manifest in (run_account(run), run_policy(run, INSTALLATION), run_job(run, INSTALLATION, 1)):
        del manifest["metadata"]["ownerReferences"]
        kopf.adopt(manifest, owner=body)
        try:
            await memo.client.create(_RESOURCES[manifest["kind"]](**manifest))
        except ApiError as error:
            if error.status.code != 409:
                raise
    patch.status["phase"] = Phase.STARTING.value


@kopf.on.field("v1", "pods", field="status.phase", labels=MADE)
async def pod_changed(
    new: object, labels: kopf.Labels, status: kopf.Status, namespace: str | None, memo: kopf.Memo, **_: Any
) -> None:
    """The run runs when its pod does; what a driver left is its progress."""
    if new == "Running":
        await _tell(memo, namespace, labels[LABEL_RUN], {"phase": Phase.RUNNING.value})
    elif new == "Succeeded":
        [driver] = status["containerStatuses"]
        report = json.loads(driver["state"]["terminated"]["message"])
        arms = [{"name": name, **counts} for name, counts in report["arms"].items()]
        progress = {"done": report["done"], "total": report["total"], "arms": arms}
        await _tell(memo, namespace, labels[LABEL_RUN], {"progress": progress})


@kopf.on.field("batch", "v1", "jobs", field="status.succeeded", labels=MADE)
async def job_changed(
    new: object, spec: kopf.Spec, labels: kopf.Labels, namespace: str | None, memo: kopf.Memo, **_: Any
) -> None:
    """The run has succeeded when every index of its Job has."""
    if new == spec["completions"]:
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        told = {"phase": Phase.SUCCEEDED.value, "finishedAt": at}
        await _tell(memo, namespace, labels[LABEL_RUN], told)


@kopf.on.delete(GROUP, VERSION, PLURAL)
async def run_deleted(name: str, namespace: str | None, memo: kopf.Memo, **_: Any) -> None:
    """Take the Job away with its pods."""
    try:
        await memo.client.delete(
            _RESOURCES["Job"], job_name(name, 1), namespace=namespace, cascade=CascadeType.BACKGROUND
        )
    except ApiError as error:
        if error.status.code != 404:
            raise


async def _tell(memo: kopf.Memo, namespace: str | None, name: str, status: Manifest) -> None:
    await memo.client.patch(
        _RUN.Status, name, {"status": status}, namespace=namespace, patch_type=PatchType.MERGE
    )
