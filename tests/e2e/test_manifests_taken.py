"""A real API server takes a run's objects as they are, in a namespace that enforces `restricted`."""

import pytest
import yaml

from hermes_operator.manifests import problems_on_a_cluster, pull_job, run_account, run_job, run_policy
from hermes_operator.observed import Installation
from hermes_operator.status import Manifest
from tests.cluster.apiserver import ApiServer
from tests.cluster.fixtures import bare_api as bare_api
from tests.cluster_requests import APPLY, Ask, asks
from tests.crd_cases import EXAMPLES
from tests.unit.test_manifests import PLAIN, WHOLE, run_of

NAMESPACE = "team-a"
FOLDERS = {
    "ServiceAccount": f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts",
    "NetworkPolicy": f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies",
    "Job": f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs",
}
HOW = "dryRun=All&fieldValidation=Strict"


@pytest.fixture(scope="module")
def ask(bare_api: ApiServer) -> Ask:
    made = asks(bare_api)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    code, answer = made("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE, "labels": labels}})
    assert code == 201, answer["message"]
    return made


def taken(ask: Ask, one: Manifest) -> None:
    """Apply it as the operator does, for show."""
    path = f"{FOLDERS[one['kind']]}/{one['metadata']['name']}?{HOW}&fieldManager=hermes&force=true"
    code, answer = ask("PATCH", path, one, APPLY)
    assert code in (200, 201), answer["message"]


@pytest.mark.parametrize("installation", [PLAIN, WHOLE], ids=["plain", "whole"])
@pytest.mark.parametrize("example", EXAMPLES, ids=[file.stem for file in EXAMPLES])
def test_the_objects_and_pods_of_the_examples_are_taken(ask: Ask, example, installation: Installation):
    document = yaml.safe_load(example.read_text(encoding="utf-8"))
    run = run_of(document, document["metadata"].get("labels"))
    if problems_on_a_cluster(run.document, installation):  # type: ignore[arg-type]
        assert installation is PLAIN
        return
    jobs = [run_job(run, installation, 1)]
    if "repo" in document["spec"].get("model", {}).get("source", {}):
        jobs.append(pull_job(run, installation))
    for one in (run_account(run), run_policy(run, installation), *jobs):
        taken(ask, one)
    for job in jobs:
        pod = {**job["spec"]["template"], "apiVersion": "v1", "kind": "Pod"}
        pod["metadata"] = {**pod["metadata"], "name": "pod"}
        code, answer = ask("POST", f"/api/v1/namespaces/{NAMESPACE}/pods?{HOW}", pod)
        assert code == 201, answer["message"]


def test_a_pod_that_is_not_restricted_is_refused_there(ask: Ask):
    run = run_of(yaml.safe_load(EXAMPLES[0].read_text(encoding="utf-8")))
    pod = run_job(run, WHOLE, 1)["spec"]["template"]
    pod = {**pod, "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
    del pod["spec"]["securityContext"]
    code, answer = ask("POST", f"/api/v1/namespaces/{NAMESPACE}/pods?{HOW}", pod)
    assert (code, "PodSecurity" in answer["message"]) == (403, True)
