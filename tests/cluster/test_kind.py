"""That the cluster of the tests runs what a run is made of, and that nothing leaves it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import fence, kind
from tests.cluster.kind import Cluster

Manifest = dict[str, Any]
NAMESPACE = "tests-cluster"
WAIT = "--timeout=120s"

SIDECAR = """
import pathlib, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server = socket.socket(socket.AF_UNIX)
server.bind("/run/hermes/model")
server.listen()
pathlib.Path("/run/hermes/ready").touch()
while True:
    peer, _ = server.accept()
    with peer:
        peer.sendall(b"forty-two")
"""

DRIVER = """
import os, pathlib, socket
client = socket.socket(socket.AF_UNIX)
client.connect("/run/hermes/model")
said = client.recv(100).decode()
pathlib.Path("/dev/termination-log").write_text(said + " " + os.environ["JOB_COMPLETION_INDEX"])
"""

STORE = """
import http.server, os, pathlib
kept = pathlib.Path("/data/kept")
kept.touch()
with kept.open("a") as lines:
    lines.write("started\\n")
os.chdir("/data")
http.server.ThreadingHTTPServer(("", 7443), http.server.SimpleHTTPRequestHandler).serve_forever()
"""

READER = """
import pathlib, urllib.request
body = urllib.request.urlopen("http://store:7443/kept", timeout=10).read().decode()
pathlib.Path("/dev/termination-log").write_text(str(body.count("started")))
"""

LEAVER = """
import pathlib, socket
said = []
for address in ("192.0.2.1", "198.51.100.7"):
    try:
        socket.create_connection((address, 443), timeout=2)
        said.append("through")
    except OSError:
        said.append("stopped")
pathlib.Path("/dev/termination-log").write_text(" ".join(said))
"""


@pytest.fixture(scope="module")
def cluster(kind_cluster: Cluster) -> Iterator[Cluster]:
    """With the base image on its node, and a namespace that admits restricted pods alone."""
    kind.load(kind.base())
    kind_cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
    kind_cluster.kubectl("create", "namespace", NAMESPACE)
    kind_cluster.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    yield kind_cluster
    kind_cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def container(name: str, code: str, **more: Any) -> Manifest:
    return {
        "name": name,
        "image": kind.BASE_IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", code],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **more,
    }


def pod(*containers: Manifest, **more: Any) -> Manifest:
    return {
        "containers": list(containers),
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **more,
    }


def job(name: str, spec: Manifest, **more: Any) -> Manifest:
    template = {"spec": {"restartPolicy": "Never", **spec}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"template": template, **more},
    }


def apply(cluster: Cluster, *objects: Manifest) -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    cluster.kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=json.dumps(listed))


def pods(cluster: Cluster, name: str) -> list[Manifest]:
    """The pods of this Job, after it is complete."""
    cluster.kubectl("-n", NAMESPACE, "wait", "--for=condition=complete", f"job/{name}", WAIT)
    listed: list[Manifest] = json.loads(
        cluster.kubectl("-n", NAMESPACE, "get", "pods", "-l", f"job-name={name}", "-o", "json")
    )["items"]
    return listed


def messages(found: list[Manifest]) -> list[str]:
    return sorted(each["status"]["containerStatuses"][0]["state"]["terminated"]["message"] for each in found)


def test_an_indexed_job_ends_with_its_driver_beside_a_native_sidecar(cluster: Cluster):
    sockets = {"volumeMounts": [{"name": "sockets", "mountPath": "/run/hermes"}]}
    ready = {"exec": {"command": ["test", "-f", "/run/hermes/ready"]}, "periodSeconds": 1}
    sidecar = container("model", SIDECAR, restartPolicy="Always", startupProbe=ready, **sockets)
    spec = pod(
        container("driver", DRIVER, **sockets),
        initContainers=[sidecar],
        volumes=[{"name": "sockets", "emptyDir": {"medium": "Memory"}}],
    )
    shards = {"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimitPerIndex": 1}
    apply(cluster, job("shards", spec, podReplacementPolicy="Failed", **shards))
    assert messages(pods(cluster, "shards")) == ["forty-two 0", "forty-two 1"]


def test_a_stateful_set_keeps_its_data_and_is_found_by_its_service(cluster: Cluster):
    labels = {"app": "store"}
    mounts = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    probe = {"readinessProbe": {"tcpSocket": {"port": 7443}, "periodSeconds": 1}}
    claim = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    stateful = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "store"},
        "spec": {
            "serviceName": "store",
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": pod(container("store", STORE, **mounts, **probe)),
            },
            "volumeClaimTemplates": [claim],
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "store"},
        "spec": {"selector": labels, "ports": [{"port": 7443}]},
    }
    apply(cluster, stateful, service)
    cluster.kubectl("-n", NAMESPACE, "rollout", "status", "statefulset/store", WAIT)
    cluster.kubectl("-n", NAMESPACE, "delete", "pod", "store-0")
    cluster.kubectl("-n", NAMESPACE, "rollout", "status", "statefulset/store", WAIT)
    apply(cluster, job("reader", pod(container("reader", READER))))
    assert messages(pods(cluster, "reader")) == ["2"]


def test_what_a_pod_sends_outside_is_dropped_and_counted_by_its_address(cluster: Cluster):
    apply(cluster, job("leaver", pod(container("leaver", LEAVER)), backoffLimit=0))
    (left,) = pods(cluster, "leaver")
    assert messages([left]) == ["stopped stopped"]
    assert fence.left_by_pod(cluster.engine, kind.NODE)[left["status"]["podIP"]] >= 2


def test_what_the_node_sends_outside_is_dropped_and_counted_on_the_host(cluster: Cluster):
    before = fence.dropped(kind.BRIDGE)
    with pytest.raises(RuntimeError):
        cluster.engine.docker("exec", kind.NODE, "timeout", "2", "bash", "-c", "</dev/tcp/192.0.2.1/443")
    gateway = "{{range .IPAM.Config}}{{.Gateway}}{{end}}"
    host = cluster.engine.docker("network", "inspect", "--format", gateway, kind.NETWORK).strip()
    with pytest.raises(RuntimeError):
        cluster.engine.docker("exec", kind.NODE, "timeout", "2", "bash", "-c", f"</dev/tcp/{host}/443")
    after = fence.dropped(kind.BRIDGE)
    assert after.forwarded > before.forwarded
    assert after.to_host > before.to_host


def test_bringing_up_what_is_up_changes_nothing(cluster: Cluster):
    node = cluster.engine.docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", kind.NODE)
    assert kind.up() == cluster
    assert cluster.engine.docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", kind.NODE) == node
