"""What fetching asks of Kubernetes, asked of a real API server, by somebody with the chart's rights alone."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hermes_runtime.errors import BadInput, Denied, NotFound, PeerLost
from hermes_runtime.evaluate.cluster import CA_ANNOTATION, Installation, KubernetesApi
from tests.cluster import audit
from tests.cluster.apiserver import ApiServer
from tests.cluster.fixtures import bare_api as bare_api
from tests.cluster.rights import Account, Right, chart_access, rights, unused, without

AT = Installation(namespace="hermes")
FRIEND = Account(AT.namespace, "friend")
STORE_LABELS = {"app": "store"}


def objects() -> list[dict[str, Any]]:
    """An installation without its processes, and two people, one of whom is bound to the chart's role."""
    here = {"namespace": AT.namespace}
    ports = [{"name": "grpc", "port": AT.port, "targetPort": "grpc"}]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "hermes-fetch"}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": AT.namespace}},
        *(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {**here, "name": name}}
            for name in (AT.reader, FRIEND.name, "stranger")
        ),
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {**here, "name": "friends"},
            "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", "name": FRIEND.name, "namespace": AT.namespace}],
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**here, "name": AT.service},
            "spec": {"selector": STORE_LABELS, "ports": ports},
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {**here, "name": "store-ca"},
            "data": {"ca.crt": "an authority"},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**here, "name": "hermes-store-0", "labels": STORE_LABELS},
            "spec": {
                "serviceAccountName": AT.reader,
                "automountServiceAccountToken": False,
                "containers": [
                    {"name": "store", "image": "none", "ports": [{"name": "grpc", "containerPort": 7443}]}
                ],
            },
        },
    ]


@pytest.fixture(scope="module")
def access(bare_api: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The chart's accounts and roles, and who is bound to them."""
    folder, values = tmp_path_factory.mktemp("helm"), ("secret=store-tls", "caConfigMap=store-ca")
    rendered = chart_access(bare_api.programs, folder, AT.namespace, *(f"store.tls.{one}" for one in values))
    return [*objects(), *rendered]


@pytest.fixture(scope="module")
def installed(bare_api: ApiServer, access: list[dict[str, Any]]) -> ApiServer:
    bare_api.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(access))
    return bare_api


def api_of(server: ApiServer, name: str, folder: Path) -> KubernetesApi:
    """The API as a ServiceAccount sees it."""
    kubeconfig = server.kubeconfig_of(server.service_account(AT.namespace, name), folder / name)
    return KubernetesApi(context=None, environment={"KUBECONFIG": str(kubeconfig)})


def patch(server: ApiServer, what: str, change: dict[str, Any], *more: str) -> None:
    words = ("patch", what, "--namespace", AT.namespace, "--type", "merge", "--patch", json.dumps(change))
    server.kubectl(*words, *more)


def test_a_friend_gets_a_token_of_the_reader_for_the_store_alone(installed: ApiServer, tmp_path: Path):
    token = api_of(installed, "friend", tmp_path).token(AT)
    body = token.text.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    assert claims["aud"] == ["hermes-store"]
    assert claims["sub"] == "system:serviceaccount:hermes:hermes-reader"
    assert claims["exp"] == token.expires_at


def test_a_stranger_is_told_which_role_to_ask_for(installed: ApiServer, tmp_path: Path):
    api = api_of(installed, "stranger", tmp_path)
    with pytest.raises(Denied, match=r"a token of ServiceAccount hermes-reader .* the role hermes-fetch"):
        api.token(AT)
    with pytest.raises(Denied, match="HermesRun quick in namespace default"):
        api.run("default", "quick")


def test_the_authority_is_found_by_the_services_annotation(installed: ApiServer, tmp_path: Path):
    api = api_of(installed, "friend", tmp_path)
    assert api.authority(AT) is None
    patch(installed, f"service/{AT.service}", {"metadata": {"annotations": {CA_ANNOTATION: "store-ca"}}})
    assert api.authority(AT) == "an authority"
    patch(installed, f"service/{AT.service}", {"metadata": {"annotations": {CA_ANNOTATION: None}}})
    assert api.authority(Installation(namespace="hermes", ca_config_map="store-ca")) == "an authority"


def test_what_is_not_there_is_named(installed: ApiServer, tmp_path: Path):
    everything = KubernetesApi(context=None, environment={"KUBECONFIG": str(installed.kubeconfig)})
    with pytest.raises(NotFound, match="Service other in namespace hermes is not there"):
        everything.connect(Installation(namespace="hermes", service="other"))
    api = api_of(installed, "friend", tmp_path)
    with pytest.raises(NotFound, match="has no port 80: see --store"):
        api.connect(Installation(namespace="hermes", port=80))
    with pytest.raises(BadInput, match="no cluster to ask"):
        KubernetesApi(context="elsewhere", environment={"KUBECONFIG": str(tmp_path / "friend")})


def test_only_a_pod_that_is_ready_is_connected_to(installed: ApiServer, tmp_path: Path):
    api = api_of(installed, "friend", tmp_path)
    with pytest.raises(PeerLost, match="no pod of Service hermes-store in namespace hermes is ready"):
        api.connect(AT)
    ready = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
    patch(installed, "pod/hermes-store-0", ready, "--subresource", "status")
    with pytest.raises((BadInput, PeerLost), match="a port-forward to pod hermes-store-0"):
        api.connect(AT)  # it runs on no node


def test_the_charts_role_gives_a_friend_what_fetching_asks_for_and_one_verb_for_newer_servers(
    installed: ApiServer, access: list[dict[str, Any]], tmp_path: Path
):
    api = api_of(installed, FRIEND.name, tmp_path)
    api.token(AT)
    api.authority(Installation(namespace="hermes", ca_config_map="store-ca"))
    ready = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
    patch(installed, "pod/hermes-store-0", ready, "--subresource", "status")
    with pytest.raises((BadInput, PeerLost), match="a port-forward to pod hermes-store-0"):
        api.connect(AT)

    held, asked = rights(access, FRIEND), audit.recorded(installed, FRIEND.user)
    # Kubernetes 1.35 asks for it too when a GET becomes a WebSocket.
    upgrade = Right(AT.namespace, "", "pods/portforward", "create", "hermes-store-0")
    assert unused(held, asked) == {upgrade}
    assert without(held, asked) == []
