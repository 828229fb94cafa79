"""The operator against a real kube-apiserver with Kubernetes' controllers: what the fake cannot vouch for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hermes_operator.crd import crd_yaml
from tests.cluster.apiserver import ApiServer
from tests.cluster.fixtures import live_api as live_api
from tests.e2e.fake_api import REPORT, Object, new_run
from tests.e2e.operator_process import operator_process, until

NAMESPACE = "research"
COLLECTED_SECONDS_MAX = 90.0
"""Kubernetes' garbage collector looks for new kinds every 30 seconds."""


MAY = {
    "hermesruns.hermes.dev": "get,list,watch,delete",
    "hermesruns.hermes.dev/status": "patch",
    "jobs.batch": "list,watch,create,patch,delete",
    "pods": "list,watch",
    "serviceaccounts": "create,patch",
    "networkpolicies.networking.k8s.io": "create,patch",
    "events.events.k8s.io": "create",
    "leases.coordination.k8s.io": "create,get,update",
}
"""All that the operator asks of a namespace."""


@pytest.fixture
def cluster(live_api: ApiServer) -> ApiServer:
    """With the definition and an empty namespace."""
    live_api.kubectl("apply", "--server-side", "-f", "-", stdin=crd_yaml())
    live_api.kubectl("wait", "--for=condition=Established", "crd/hermesruns.hermes.dev", "--timeout=30s")
    live_api.kubectl("create", "namespace", NAMESPACE)
    live_api.kubectl("--namespace", NAMESPACE, "create", "serviceaccount", "operator")
    for number, (resource, verbs) in enumerate(MAY.items()):
        role, account = f"may-{number}", f"{NAMESPACE}:operator"
        here = ("--namespace", NAMESPACE, "create")
        live_api.kubectl(*here, "role", role, f"--resource={resource}", f"--verb={verbs}")
        live_api.kubectl(*here, "rolebinding", role, f"--role={role}", f"--serviceaccount={account}")
    return live_api


def found(cluster: ApiServer, *what: str) -> list[Object]:
    text = cluster.kubectl("--namespace", NAMESPACE, "get", *what, "--output=json", "--ignore-not-found")
    return list(json.loads(text).get("items", [])) if text.strip() else []


def status(cluster: ApiServer, name: str) -> Object:
    runs = {one["metadata"]["name"]: one for one in found(cluster, "hermesruns")}
    return dict(runs.get(name, {}).get("status") or {})


def create(cluster: ApiServer, name: str, **spec: object) -> None:
    run = {"apiVersion": "hermes.dev/v1alpha1", "kind": "HermesRun", **new_run(name, NAMESPACE, **spec)}
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(run))


def let_pod_succeed(cluster: ApiServer, pod: Object) -> None:
    """What a kubelet would write."""
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = {"exitCode": 0, "startedAt": at, "finishedAt": at, "message": json.dumps(REPORT)}
    container = {
        "name": "driver",
        "image": "hermes:test",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"terminated": ended},
    }
    patch = {"status": {"phase": "Succeeded", "containerStatuses": [container]}}
    cluster.kubectl(
        "--namespace",
        NAMESPACE,
        "patch",
        "pod",
        pod["metadata"]["name"],
        "--subresource=status",
        "--type=merge",
        "--patch",
        json.dumps(patch),
    )


async def test_a_run_lives_its_whole_life_on_a_real_api_server_by_the_few_verbs_that_it_takes(
    cluster: ApiServer, tmp_path: Path
):
    token = cluster.service_account(NAMESPACE, "operator")
    kubeconfig = cluster.kubeconfig_of(token, tmp_path / "kubeconfig")
    async with operator_process(kubeconfig, tmp_path, namespaces=NAMESPACE) as operator:
        await operator.leading()
        create(cluster, "first", suspend=True, ttlSecondsAfterFinished=5)
        await until(lambda: status(cluster, "first").get("phase") == "Suspended")
        patch = {"spec": {"suspend": False}}
        cluster.kubectl(
            "--namespace",
            NAMESPACE,
            "patch",
            "hermesrun",
            "first",
            "--type=merge",
            "--patch",
            json.dumps(patch),
        )
        [pod] = await until(lambda: found(cluster, "pods"))
        assert status(cluster, "first")["phase"] == "Starting"
        let_pod_succeed(cluster, pod)
        await until(lambda: status(cluster, "first").get("phase") == "Succeeded")
        ended = status(cluster, "first")
        [event] = found(cluster, "events.events.k8s.io", "--field-selector=reason=AllShardsDone")
        await until(lambda: not found(cluster, "hermesruns"))
        await until(lambda: not found(cluster, "jobs,pods,networkpolicies"), COLLECTED_SECONDS_MAX)
        failed = ("none", "400", "403", "404", "409", "422", "500")
        refused = {
            code: await operator.metric("hermes_operator_api_requests_total", code=code) for code in failed
        }
        code, _ = await operator.stopped()

    assert ended["progress"]["arms"] == [{"name": "A", "done": 2, "solved": 1}]
    assert {one["type"]: one["status"] for one in ended["conditions"]}["Complete"] == "True"
    assert event["regarding"]["name"] == "first"
    assert refused == {**dict.fromkeys(failed, 0.0), "404": refused["404"]}
    assert refused["404"] <= 1, "the Lease alone is not there at first"
    assert code == 0
    log = operator.log.read_text("utf-8")
    assert [line for line in log.splitlines() if json.loads(line)["level"] not in ("info",)] == []
