"""The chart, installed on a real API server: what it admits, and that its roles are enough and no more."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.apiserver import ApiServer
from tests.cluster.fixtures import live_api as live_api
from tests.e2e.operator_process import operator_process, until

CHART = Path(__file__).resolve().parents[2] / "charts" / "hermes"
RUN = {
    "apiVersion": "hermes.dev/v1alpha1",
    "kind": "HermesRun",
    "metadata": {"name": "first", "namespace": "team"},
    "spec": {"evaluate": {"instances": {"mutants": {"count": 4}}, "arms": ["PM"]}, "shardSize": 2},
}
WAIT_SECONDS_MAX = 60.0

Helm = Callable[..., str]


@pytest.fixture(scope="module")
def helm(live_api: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Runs helm against the API server; what it printed."""
    folder = tmp_path_factory.mktemp("helm")

    def run(*arguments: str) -> str:
        homes = {f"HELM_{name}_HOME": str(folder) for name in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run(
            [live_api.programs.path("helm"), *arguments],
            env={**os.environ, **homes, "KUBECONFIG": str(live_api.kubeconfig)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def installed(live_api: ApiServer, helm: Helm) -> ApiServer:
    """One installation for the namespace `team`; both namespaces refuse pods that are not restricted."""
    for namespace in ("hermes", "team"):
        live_api.kubectl("create", "namespace", namespace)
        live_api.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    helm("install", "hermes", str(CHART), "--namespace", "hermes", "--set", "namespaces={team}")
    return live_api


def objects(api: ApiServer, namespace: str, kind: str, *more: str) -> list[dict[str, Any]]:
    found = json.loads(api.kubectl("--namespace", namespace, "get", kind, "--output", "json", *more))
    items: list[dict[str, Any]] = found["items"]
    return items


def until_there(api: ApiServer, namespace: str, kind: str, selector: str) -> list[dict[str, Any]]:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not (found := objects(api, namespace, kind, "--selector", selector)):
        assert time.monotonic() < deadline, f"no {kind} with {selector} in {namespace}"
        time.sleep(0.1)
    return found


def may(api: ApiServer, account: str, verb: str, what: str, namespace: str) -> bool:
    """Whether the ServiceAccount of the installation may do that."""
    arguments = ["auth", "can-i", verb, what, "--namespace", namespace]
    try:
        answer = api.kubectl(*arguments, "--as", f"system:serviceaccount:hermes:{account}")
    except RuntimeError:  # kubectl ends with 1 for a no
        return False
    return answer.strip() == "yes"


@pytest.mark.parametrize("component", ["operator", "store"])
def test_a_restricted_namespace_admits_the_pods(installed, component):
    selector = f"app.kubernetes.io/instance=hermes,app.kubernetes.io/component={component}"
    [pod] = until_there(installed, "hermes", "pods", selector)
    assert pod["status"]["phase"] == "Pending", "there is no node; it was admitted"


async def test_the_operators_roles_are_enough_for_a_run(installed, tmp_path):
    """It starts a run, tells its status and an event, and is refused nothing."""
    token = installed.service_account("hermes", "hermes-operator")
    kubeconfig = installed.kubeconfig_of(token, tmp_path / "operator.kubeconfig")
    settings = {"namespaces": "team", "HERMES_LEASE_NAMESPACE": "hermes"}
    async with operator_process(kubeconfig, tmp_path, **settings) as operator:
        await operator.leading()
        installed.kubectl("apply", "--filename", "-", stdin=json.dumps(RUN))
        await until(lambda: objects(installed, "team", "jobs"), WAIT_SECONDS_MAX)
        pods = await until(lambda: objects(installed, "team", "pods"), WAIT_SECONDS_MAX)
        assert {pod["metadata"]["labels"]["hermes.dev/run"] for pod in pods} == {"first"}
        assert objects(installed, "team", "networkpolicies")
        await until(lambda: phase(installed) == "Starting", WAIT_SECONDS_MAX)
        installed.kubectl(
            "--namespace", "team", "patch", "hermesrun", "first", "--type=merge", "--patch", SUSPEND
        )
        await until(lambda: phase(installed) == "Suspended", WAIT_SECONDS_MAX)
        assert await operator.metric("hermes_operator_api_requests_total", code="403") == 0
        installed.kubectl("--namespace", "team", "delete", "hermesrun", "first")


SUSPEND = json.dumps({"spec": {"suspend": True}})


def phase(api: ApiServer) -> str:
    [run] = objects(api, "team", "hermesruns")
    found: str = run.get("status", {}).get("phase", "")
    return found


@pytest.mark.parametrize(
    ("account", "verb", "what", "namespace", "allowed"),
    [
        ("hermes-operator", "create", "jobs.batch", "team", True),
        ("hermes-operator", "create", "jobs.batch", "hermes", False),
        ("hermes-operator", "get", "secrets", "team", False),
        ("hermes-operator", "create", "pods", "team", False),
        ("hermes-operator", "create", "rolebindings.rbac.authorization.k8s.io", "team", False),
        ("hermes-operator", "update", "leases.coordination.k8s.io/hermes-operator", "hermes", True),
        ("hermes-operator", "update", "leases.coordination.k8s.io/somebody-elses", "hermes", False),
        ("hermes-store", "create", "tokenreviews.authentication.k8s.io", "hermes", True),
        ("hermes-store", "get", "hermesruns.hermes.dev", "team", False),
        ("hermes-store", "get", "secrets", "hermes", False),
        ("hermes-reader", "get", "pods", "hermes", False),
    ],
)
def test_accounts_may_do_what_they_must_and_no_more(installed, account, verb, what, namespace, allowed):
    assert may(installed, account, verb, what, namespace) is allowed


def test_everything_that_can_be_switched_on_is_valid_to_the_api_server(installed, helm):
    on = ["--set", "backup.enabled=true,modelCache.enabled=true,monitoring.dashboard.enabled=true"]
    on += ["--set", "operator.replicas=2,store.podDisruptionBudget.enabled=true"]
    on += ["--set", "store.tls.secret=store-tls,store.tls.caConfigMap=store-ca"]
    helm("upgrade", "hermes", str(CHART), "--namespace", "hermes", "--set", "namespaces={team}", *on)
    assert objects(installed, "hermes", "cronjobs")
    assert objects(installed, "team", "persistentvolumeclaims")
    assert len(objects(installed, "hermes", "poddisruptionbudgets")) == 2


def test_runs_and_their_definition_outlive_the_release(installed, helm):
    run = {**RUN, "metadata": {"name": "kept", "namespace": "team"}}
    installed.kubectl("apply", "--filename", "-", stdin=json.dumps(run))
    helm("uninstall", "hermes", "--namespace", "hermes")
    assert "kept" in [one["metadata"]["name"] for one in objects(installed, "team", "hermesruns")]
    helm("install", "hermes", str(CHART), "--namespace", "hermes", "--set", "namespaces={team}")
    assert "kept" in [one["metadata"]["name"] for one in objects(installed, "team", "hermesruns")]
