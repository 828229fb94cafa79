"""That the API server of the tests is a real one: who may do what, and what its controllers do."""

import json
import time

from tests.cluster.apiserver import ApiServer

JOB = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "two-shards", "namespace": "default"},
    "spec": {
        "completionMode": "Indexed",
        "completions": 2,
        "parallelism": 2,
        "backoffLimitPerIndex": 1,
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "driver", "image": "none.invalid/none", "command": ["true"]}],
            }
        },
    },
}


def test_an_account_may_do_what_a_role_says_and_nothing_else(bare_api: ApiServer, tmp_path):
    bare_api.kubectl("create", "namespace", "tenant")
    bare_api.kubectl("-n", "tenant", "create", "serviceaccount", "reader")
    bare_api.kubectl("-n", "tenant", "create", "role", "pods", "--verb=get", "--resource=pods")
    bare_api.kubectl(
        "-n", "tenant", "create", "rolebinding", "pods", "--role=pods", "--serviceaccount=tenant:reader"
    )
    kubeconfig = bare_api.kubeconfig_of(bare_api.service_account("tenant", "reader"), tmp_path / "reader")

    def may(verb: str) -> bool:
        """kubectl ends with 1 where the answer is no."""
        try:
            bare_api.programs.kubectl(kubeconfig, "-n", "tenant", "auth", "can-i", verb, "pods")
        except RuntimeError:
            return False
        return True

    assert may("get")
    assert not may("delete")


def test_a_token_is_good_for_its_audience_alone(bare_api: ApiServer):
    bare_api.kubectl("create", "namespace", "audiences")
    bare_api.kubectl("-n", "audiences", "create", "serviceaccount", "run")
    token = bare_api.service_account("audiences", "run", audience="hermes-store")

    def user(audience: str) -> str | None:
        asked = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        answer = bare_api.kubectl("create", "-o", "json", "-f", "-", stdin=json.dumps(asked))
        status = json.loads(answer)["status"]
        return str(status["user"]["username"]) if status.get("authenticated") else None

    assert user("hermes-store") == "system:serviceaccount:audiences:run"
    assert user("somebody-else") is None


def test_a_job_gets_its_pods_where_the_controllers_run(live_api: ApiServer):
    live_api.kubectl("create", "-f", "-", stdin=json.dumps(JOB))
    deadline = time.monotonic() + 30
    indexes: set[str] = set()
    while indexes != {"0", "1"} and time.monotonic() < deadline:
        pods = json.loads(live_api.kubectl("get", "pods", "-l", "job-name=two-shards", "-o", "json"))["items"]
        indexes = {pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] for pod in pods}
        time.sleep(0.05)
    assert indexes == {"0", "1"}
