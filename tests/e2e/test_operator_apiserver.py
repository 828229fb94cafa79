"""The operator against a real kube-apiserver with Kubernetes' controllers: what the fake cannot vouch for.

It has the chart's own Role, and the API server writes down what it asks for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hermes_operator.crd import crd_yaml
from tests.cluster import audit
from tests.cluster.apiserver import ApiServer
from tests.cluster.fixtures import live_api as live_api
from tests.cluster.rights import Account, Right, chart_access, rights, unused, without
from tests.cluster_requests import MERGE_PATCH, asks
from tests.e2e.fake_api import REPORT, Object, new_run
from tests.e2e.operator_process import WAIT_SECONDS_MAX, OperatorProcess, operator_process, until

NAMESPACE = "research"
OPERATOR = Account("hermes-home", "hermes-operator")
COLLECTED_SECONDS_MAX = 90.0
"""Kubernetes' garbage collector looks for new kinds every 30 seconds."""


@pytest.fixture(scope="module")
def access(live_api: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """The accounts and roles of an installation that serves the namespace."""
    folder = tmp_path_factory.mktemp("helm")
    return chart_access(live_api.programs, folder, OPERATOR.namespace, f"namespaces={{{NAMESPACE}}}")


@pytest.fixture(scope="module")
def cluster(live_api: ApiServer, access: list[Object]) -> ApiServer:
    """With the definition, the chart's roles and an empty namespace."""
    live_api.kubectl("apply", "--server-side", "-f", "-", stdin=crd_yaml())
    live_api.kubectl("wait", "--for=condition=Established", "crd/hermesruns.hermes.dev", "--timeout=30s")
    for namespace in (NAMESPACE, OPERATOR.namespace):
        live_api.kubectl("create", "namespace", namespace)
    live_api.kubectl("apply", "-f", "-", stdin="\n---\n".join(json.dumps(one) for one in access))
    return live_api


@pytest.fixture
def operators(cluster: ApiServer, tmp_path: Path) -> Iterator[Operators]:
    """Starts operators as the chart's account."""
    kubeconfig = cluster.kubeconfig_of(cluster.service_account(*OPERATOR), tmp_path / "kubeconfig")
    yield Operators(kubeconfig, tmp_path)
    for name in runs(cluster):
        cluster.kubectl("--namespace", NAMESPACE, "delete", "hermesrun", name)


class Operators:
    """How an operator is started here."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self._kubeconfig = kubeconfig
        self._folder = folder

    def started(self) -> AbstractAsyncContextManager[OperatorProcess]:
        return operator_process(
            self._kubeconfig,
            self._folder,
            namespaces=NAMESPACE,
            HERMES_LEASE_NAMESPACE=OPERATOR.namespace,
            HERMES_MODEL_CLAIM="models",
        )


def found(cluster: ApiServer, *what: str) -> list[Object]:
    text = cluster.kubectl("--namespace", NAMESPACE, "get", *what, "--output=json", "--ignore-not-found")
    return list(json.loads(text).get("items", [])) if text.strip() else []


def runs(cluster: ApiServer) -> dict[str, Object]:
    return {one["metadata"]["name"]: one for one in found(cluster, "hermesruns")}


def status(cluster: ApiServer, name: str) -> Object:
    return dict(runs(cluster).get(name, {}).get("status") or {})


def create(cluster: ApiServer, name: str, **spec: object) -> None:
    run = {"apiVersion": "hermes.dev/v1alpha1", "kind": "HermesRun", **new_run(name, NAMESPACE, **spec)}
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(run))


def suspend(cluster: ApiServer, name: str, is_suspended: bool) -> None:
    patch = json.dumps({"spec": {"suspend": is_suspended}})
    cluster.kubectl("-n", NAMESPACE, "patch", "hermesrun", name, "--type=merge", "--patch", patch)


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


async def test_a_run_lives_its_whole_life_on_a_real_api_server_by_the_charts_role(
    cluster: ApiServer, operators: Operators
):
    async with operators.started() as operator:
        await operator.leading()
        create(cluster, "first", suspend=True, ttlSecondsAfterFinished=5)
        await until(lambda: status(cluster, "first").get("phase") == "Suspended")
        suspend(cluster, "first", False)
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


async def test_a_run_that_was_suspended_beyond_its_deadline_goes_on_when_it_is_resumed(
    cluster: ApiServer, operators: Operators
):
    async with operators.started() as operator:
        await operator.leading()
        create(cluster, "rested", activeDeadlineSeconds=4)
        [job] = await until(lambda: [one for one in found(cluster, "jobs") if "startTime" in one["status"]])
        first_start = datetime.fromisoformat(job["status"]["startTime"])
        suspend(cluster, "rested", True)
        await until(lambda: status(cluster, "rested").get("phase") == "Suspended")
        await until(lambda: datetime.now(UTC) > first_start + timedelta(seconds=6))
        suspend(cluster, "rested", False)
        await until(lambda: status(cluster, "rested").get("phase") == "Failed")
        [job] = found(cluster, "jobs")
        await operator.stopped()

    # It ended in time, and in its second time: it was given all of it anew.
    assert status(cluster, "rested")["failure"]["reason"] == "ActiveDeadlineExceeded"
    second_start = datetime.fromisoformat(job["status"]["startTime"])
    ended_at = datetime.fromisoformat(job["status"]["conditions"][-1]["lastTransitionTime"])
    assert second_start > first_start + timedelta(seconds=4)
    assert ended_at >= second_start + timedelta(seconds=4)


async def test_the_charts_role_gives_the_operator_what_it_asks_for_and_no_verb_more(
    cluster: ApiServer, operators: Operators, access: list[Object]
):
    held = rights(access, OPERATOR)

    def left() -> set[Right]:
        return unused(held, audit.recorded(cluster, OPERATOR.user))

    async with operators.started() as operator:
        await operator.leading()  # the Lease is made, everything is listed and watched
        create(cluster, "short", ttlSecondsAfterFinished=0)
        [pod] = await until(lambda: found(cluster, "pods"))
        let_pod_succeed(cluster, pod)
        source = {"repo": "Org/Model", "revision": "0" * 40}
        create(cluster, "pulled", model={"source": source})
        await until(lambda: status(cluster, "pulled").get("phase") == "Pulling")
        suspend(cluster, "pulled", True)  # its pull Job is deleted
        await until(lambda: status(cluster, "pulled").get("phase") == "Suspended")
        await until(lambda: "short" not in runs(cluster))
        await operator.stopped()  # the Lease is given back

    async with operators.started() as operator:
        await operator.leading()
        create(cluster, "edited", suspend=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                # A status that is written over a run that has just changed is refused, and the run is read.
                while left():
                    await asyncio.to_thread(edit_often, cluster, "edited")
        await operator.stopped()

    asked = audit.recorded(cluster, OPERATOR.user)
    never_asked = Right(NAMESPACE, "", "pods", "get", "")
    assert unused({never_asked}, asked) == {never_asked}, "one that is not used is found"
    assert left() == set()
    assert without(held, asked) == []
    assert {one.code for one in asked if one.code >= 400} <= {404, 409}


def edit_often(cluster: ApiServer, name: str) -> None:
    """What a user's own controller may do: suspend and resume, faster than anybody can follow."""
    path = f"/apis/hermes.dev/v1alpha1/namespaces/{NAMESPACE}/hermesruns/{name}"
    ask = asks(cluster)
    for is_suspended in (False, True) * 20:
        code, answer = ask("PATCH", path, {"spec": {"suspend": is_suspended}}, MERGE_PATCH)
        assert code == 200, answer
