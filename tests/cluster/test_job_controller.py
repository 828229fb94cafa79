"""What the operator and the played Job controller take for granted of the real one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from hermes_operator.manifests import run_job
from tests.cluster.apiserver import ApiServer
from tests.e2e.operator_process import until
from tests.unit.sample_cluster import INSTALLATION, a_run

NAMESPACE = "job-controller"
Manifest = dict[str, Any]
BACKOFF_SECONDS_MAX = 60.0
"""For a replacement, which Kubernetes makes 10 s after a failure."""


class Played:
    """A run's Job on a cluster without nodes; the test writes what a kubelet would."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api
        self.job = run_job(a_run(backoffLimit=1, activeDeadlineSeconds=3_600, shardSize=4), INSTALLATION, 1)
        self.job["metadata"] = {"name": "hermes-a-1", "namespace": NAMESPACE}

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        return self._api.kubectl("--namespace", NAMESPACE, *words, stdin=stdin)

    def now(self) -> Manifest:
        return dict(json.loads(self.kubectl("get", "job", "hermes-a-1", "--output=json")))

    def pods(self) -> list[Manifest]:
        """Those that may still run, the newest last."""
        pods = json.loads(self.kubectl("get", "pods", "--output=json"))["items"]
        live = [pod for pod in pods if pod["status"]["phase"] == "Pending"]
        return sorted(live, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def patch(self, **spec: object) -> None:
        self.kubectl("patch", "job", "hermes-a-1", "--type=merge", "-p", json.dumps({"spec": spec}))

    def fail(self, pod: Manifest, code: int) -> None:
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ended = {"exitCode": code, "startedAt": at, "finishedAt": at}
        driver = {"name": "driver", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
        status = {"phase": "Failed", "containerStatuses": [{**driver, "state": {"terminated": ended}}]}
        words = ("pod", pod["metadata"]["name"], "--subresource=status", "--type=merge")
        self.kubectl("patch", *words, "-p", json.dumps({"status": status}))

    async def replaced(self, pod: Manifest) -> Manifest:
        """The pod that comes after."""
        name = pod["metadata"]["name"]

        def found() -> list[Manifest]:
            return [one for one in self.pods() if one["metadata"]["name"] != name]

        return (await until(found, BACKOFF_SECONDS_MAX))[-1]


def failures(pod: Manifest) -> tuple[str, str]:
    """Those that count, and those that do not."""
    known = pod["metadata"]["annotations"]
    prefix = "batch.kubernetes.io/job-index"
    return known[f"{prefix}-failure-count"], known.get(f"{prefix}-ignored-failure-count", "0")


def suspended(job: Manifest) -> str:
    conditions = job["status"].get("conditions") or ()
    return next((str(one["status"]) for one in conditions if one["type"] == "Suspended"), "")


@pytest.fixture
def played(live_api: ApiServer) -> Played:
    live_api.kubectl("create", "namespace", NAMESPACE)
    live_api.kubectl("--namespace", NAMESPACE, "create", "serviceaccount", "hermes-run-a")
    found = Played(live_api)
    found.kubectl("create", "-f", "-", stdin=json.dumps(found.job))
    return found


async def test_pods_that_were_told_to_stop_do_not_count_and_a_suspension_begins_the_count_anew(
    played: Played,
):
    [first] = await until(played.pods)
    assert failures(first) == ("0", "0")
    played.fail(first, 1)
    second = await played.replaced(first)
    assert failures(second) == ("1", "0")

    started_at = played.now()["status"]["startTime"]
    played.patch(suspend=True)
    await until(lambda: not played.pods() and suspended(played.now()) == "True")
    status = played.now()["status"]
    assert (status["failed"], status["failedIndexes"]) == (1, ""), "what was removed has not failed"
    assert status["startTime"] == started_at, "the old start is kept, and a deadline counts from it"

    played.patch(suspend=False)
    third = await played.replaced(second)
    await until(lambda: suspended(played.now()) == "False")
    assert played.now()["status"]["startTime"] >= started_at
    assert failures(third) == ("0", "0")

    played.fail(third, 143)
    fourth = await played.replaced(third)
    assert failures(fourth) == ("0", "1")
    assert played.now()["status"]["failed"] == 1

    played.fail(fourth, 2)
    await until(lambda: any(one["type"] == "Failed" for one in played.now()["status"]["conditions"]))
    [ended] = [one for one in played.now()["status"]["conditions"] if one["type"] == "Failed"]
    assert ended["reason"] == "PodFailurePolicy"
    assert "exit code 2 matching FailJob rule at index 2" in ended["message"]
