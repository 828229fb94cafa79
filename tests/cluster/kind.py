"""A cluster of one node by kind: `up`, `load` an image, `down`. Each may be called twice.

HERMES_KIND_IMAGE chooses the node image: unset, it is built here (node_image.py); `stock`, kind's own;
else an image by name. Before the node starts its network is fenced (fence.py): from then on nothing that
runs in the cluster reaches anything outside. `down` leaves no process, mount, rule, bridge or container
behind; what was built stays in the cache.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import SkipTest

from tests.cluster import engine as engines
from tests.cluster import fence
from tests.cluster.apiserver import AUDIT_POLICY
from tests.cluster.binaries import Programs, cluster_cache, locked, missing_go, programs, step
from tests.cluster.engine import Engine
from tests.cluster.node_image import base_image, node_image

NAME = "hermes"
NODE = f"{NAME}-control-plane"
NETWORK = "hermes-kind"
BRIDGE = "br-hermes"
AUDIT_LOG = "/var/log/kubernetes/audit.log"
"""On the node: what ServiceAccounts asked for, as apiserver.AUDIT_POLICY has it."""
_AUDIT_POLICY = "/etc/kubernetes/hermes-audit.json"
BASE_IMAGE = "hermes-base:bookworm"
STOCK_BASE = "python:3.11-slim-bookworm"
BASE_PACKAGES = ("ca-certificates", "git", "procps", "python3", "python3-venv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A running cluster."""

    kubeconfig: Path
    programs: Programs
    own_engine: Engine | None
    """What its node runs in; None: a cluster that somebody else keeps."""

    @property
    def engine(self) -> Engine:
        """As `own_engine`; a test that needs the node is skipped where there is none."""
        if self.own_engine is None:
            raise SkipTest("needs the node of a cluster of the tests' own")
        return self.own_engine

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.programs.kubectl(self.kubeconfig, *arguments, stdin=stdin)

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """For programs that build images, or talk to the cluster with kubectl, helm or a client."""
        path = f"{self.programs.folder}:{given.get('PATH', '')}"
        engine = self.own_engine.environment(given) if self.own_engine is not None else given
        return {**engine, "KUBECONFIG": str(self.kubeconfig), "PATH": path}


def kubeconfig_path(environment: Mapping[str, str]) -> Path:
    return cluster_cache(environment) / "kubeconfig"


def missing(environment: Mapping[str, str] = os.environ) -> str | None:
    """What stands in the way of a cluster on this machine; None: `up` can bring one up."""
    if (without := missing_go()) is not None:
        return without
    return None if engines.found(environment) else engines.missing()


def running(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """The cluster that is up, if one is."""
    engine = engines.found(environment)
    path = kubeconfig_path(environment)
    if engine is None or not path.exists() or not _node_runs(engine):
        return None
    return Cluster(kubeconfig=path, own_engine=engine, programs=programs(environment))


def given(context: str, environment: Mapping[str, str], folder: Path) -> Cluster:
    """The cluster of this context of the user's kubeconfig; `folder` gets a kubeconfig of it alone."""
    built = programs(environment)
    words = ["config", "view", "--minify", "--flatten", "--context", context]
    told = subprocess.run(
        [built.path("kubectl"), *words], env=dict(environment), capture_output=True, text=True
    )
    if told.returncode:
        raise RuntimeError(f"context {context} is in no kubeconfig: {told.stderr.strip()}")
    path = folder / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(told.stdout, encoding="utf-8")
    return Cluster(kubeconfig=path, own_engine=None, programs=built)


def up(environment: Mapping[str, str] = os.environ) -> Cluster:
    """Bring it up, or return the one that is up."""
    with locked(cluster_cache(environment) / "kind.lock"):
        cluster = running(environment)
        return cluster if cluster is not None else _up(environment)


def _up(environment: Mapping[str, str]) -> Cluster:
    built = programs(environment)
    engine = engines.start(environment)
    cluster = Cluster(kubeconfig=kubeconfig_path(environment), own_engine=engine, programs=built)
    wanted = environment.get("HERMES_KIND_IMAGE", "")
    image = node_image(engine, built) if not wanted else "" if wanted == "stock" else wanted
    if not engine.docker("network", "ls", "--quiet", "--filter", f"name=^{NETWORK}$").strip():
        option = f"com.docker.network.bridge.name={BRIDGE}"
        engine.docker("network", "create", "--driver", "bridge", "--opt", option, NETWORK)
    fence.put_up(BRIDGE)
    if engine.docker("ps", "--all", "--quiet", "--filter", f"name=^{NODE}$").strip():
        _kind(cluster, "delete", "cluster", "--name", NAME)  # of an `up` that did not get to its end
    with step("kind create cluster"):
        _kind(
            cluster,
            "create",
            "cluster",
            "--name",
            NAME,
            "--config",
            "-",
            "--wait",
            "120s",
            *(["--image", image] if image else []),
            stdin=json.dumps(_configuration(_audit_policy(environment), is_ours=not wanted)),
        )
    fence.watch_pods(engine, NODE)
    with step("the cluster's own pods"):
        cluster.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")
        cluster.kubectl("-n", "kube-system", "rollout", "status", "daemonset/kube-proxy", "--timeout=60s")
    return cluster


def load(image: str, environment: Mapping[str, str] = os.environ) -> None:
    """Give the cluster's node an image that the engine has."""
    cluster = running(environment)
    if cluster is None:
        raise RuntimeError("no cluster is up: python -m tests.cluster up")
    with step(f"loading {image}"):
        _kind(cluster, "load", "docker-image", "--name", NAME, image)


def base(environment: Mapping[str, str] = os.environ) -> str:
    """The name of an image with Debian and Python to build on; made here where none can be pulled."""
    engine = engines.start(environment)
    if environment.get("HERMES_KIND_IMAGE") != "stock":
        return base_image(engine, BASE_PACKAGES, BASE_IMAGE)
    if not engine.has_image(BASE_IMAGE):
        engine.docker("pull", STOCK_BASE)
        engine.docker("tag", STOCK_BASE, BASE_IMAGE)
    return BASE_IMAGE


def down(environment: Mapping[str, str] = os.environ) -> None:
    """Leave nothing but the cache. The engine is stopped if `up` started it."""
    with locked(cluster_cache(environment) / "kind.lock"):
        engine = engines.found(environment)
        path = kubeconfig_path(environment)
        if engine is not None:
            cluster = Cluster(kubeconfig=path, own_engine=engine, programs=programs(environment))
            with step("kind delete cluster"):
                _kind(cluster, "delete", "cluster", "--name", NAME)
            fence.take_down(BRIDGE)
            if engine.docker("network", "ls", "--quiet", "--filter", f"name=^{NETWORK}$").strip():
                engine.docker("network", "rm", NETWORK)
        path.unlink(missing_ok=True)
        engines.stop()


def _node_runs(engine: Engine) -> bool:
    return bool(engine.docker("ps", "--quiet", "--filter", f"name=^{NODE}$").strip())


def _audit_policy(environment: Mapping[str, str]) -> Path:
    """The file that the node's API server reads."""
    path = cluster_cache(environment) / "audit-policy.json"
    path.write_text(json.dumps(AUDIT_POLICY), encoding="utf-8")
    return path


def _configuration(audit_policy: Path, *, is_ours: bool) -> dict[str, object]:
    """The node of our own image has its network configured already; kind's own brings kindnet."""
    networking = {"disableDefaultCNI": True, "kubeProxyMode": "iptables"} if is_ours else {}
    kubelet = {"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration"}
    # Root without CAP_SYS_RESOURCE may not make a process less likely to be killed than it is itself.
    patched = json.dumps({**kubelet, "oomScoreAdj": 0, "failCgroupV1": False})
    mount = {"hostPath": str(audit_policy), "containerPath": _AUDIT_POLICY, "readOnly": True}
    flags = {"audit-policy-file": _AUDIT_POLICY, "audit-log-path": AUDIT_LOG}
    volumes = [
        {"name": "audit-policy", **_mounted(_AUDIT_POLICY), "readOnly": True, "pathType": "File"},
        {"name": "audit-log", **_mounted(str(Path(AUDIT_LOG).parent)), "pathType": "DirectoryOrCreate"},
    ]
    # As kubeadm's v1beta3 has it, which kind speaks up to Kubernetes 1.35; our own node image is of 1.34.
    audited = {"kind": "ClusterConfiguration", "apiServer": {"extraArgs": flags, "extraVolumes": volumes}}
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "networking": networking,
        "nodes": [{"role": "control-plane", "extraMounts": [mount]}],
        "kubeadmConfigPatches": [patched, json.dumps(audited)] if is_ours else [],
    }


def _mounted(path: str) -> dict[str, object]:
    return {"hostPath": path, "mountPath": path}


def _kind(cluster: Cluster, *arguments: str, stdin: str | None = None) -> None:
    environment = {**cluster.environment(os.environ), "KIND_EXPERIMENTAL_DOCKER_NETWORK": NETWORK}
    done = subprocess.run(
        [cluster.programs.path("kind"), *arguments],
        input=stdin,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"kind {' '.join(arguments)}:\n{done.stderr[-4000:]}")
