"""HERMES on the test cluster, from this checkout: images built and loaded, the chart installed.

May be called twice: the engine keeps what has not changed, the node is given only images it has not, and
helm upgrades in place. HERMES_RUNTIME=slim installs the runtime without torch, for scripted models.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.cluster import kind
from tests.cluster.binaries import ROOT, step

NAMESPACE = "hermes-system"
MODEL_CACHE = ("modelCache.enabled=true", "modelCache.size=1Gi")
LOADED = "/kind/loaded"
"""Folder on the node that tells which image was loaded under each name."""
VERSION = "0.1.0"
NAMESPACE_MANIFEST = f"""
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
"""


def install(environment: Mapping[str, str] = os.environ, *values: str) -> kind.Cluster:
    """Install or upgrade the release `hermes`; `values` are helm's `--set` arguments."""
    cluster = kind.up(environment)
    base = kind.base(environment)
    is_slim = environment.get("HERMES_RUNTIME") == "slim"
    tag = f"{VERSION}-slim" if is_slim else VERSION
    _lend_authorities(environment)
    _image(cluster, base, "operator", f"hermes-operator:{VERSION}")
    _image(
        cluster,
        base,
        "runtime",
        f"hermes-runtime:{tag}",
        requirements="runtime-slim" if is_slim else "runtime",
    )
    cluster.kubectl("apply", "--filename", "-", stdin=NAMESPACE_MANIFEST)
    with step("helm upgrade --install"):
        arguments = ["upgrade", "--install", "hermes", str(ROOT / "charts/hermes"), "--namespace", NAMESPACE]
        arguments += ["--set", f"images.runtime.tag={tag}"]
        for value in (*MODEL_CACHE, *values):
            arguments += ["--set", value]
        helm = [str(cluster.programs.path("helm")), *arguments]
        subprocess.run(helm, env=cluster.environment(environment), check=True)
        # Not Helm's --wait: the model cache is bound when a pod first uses it.
        for workload in ("deployment/hermes-operator", "statefulset/hermes-store"):
            cluster.kubectl("--namespace", NAMESPACE, "rollout", "status", workload, "--timeout=180s")
    return cluster


def _image(
    cluster: kind.Cluster, base: str, target: str, name: str, *, requirements: str = "runtime"
) -> None:
    """Build one target of the Dockerfile, and load it where the node has another or none of that name."""
    with step(f"building {name}"):
        cluster.engine.docker(
            *("build", "--quiet", "--network", "host", "--target", target, "--tag", name),
            *("--build-arg", f"BASE_IMAGE={base}", "--build-arg", f"REQUIREMENTS={requirements}", str(ROOT)),
        )
    wanted = cluster.engine.docker("image", "inspect", "--format", "{{.Id}}", name).strip()
    noted = f"{LOADED}/{name}"
    there = cluster.engine.docker("exec", kind.NODE, "sh", "-c", f"cat {noted} 2>/dev/null || true").strip()
    if wanted != there:
        kind.load(name)
        cluster.engine.docker("exec", kind.NODE, "sh", "-c", f"mkdir -p {LOADED} && echo {wanted} > {noted}")


def _lend_authorities(environment: Mapping[str, str]) -> None:
    """pip in a build trusts whom pip trusts here; the bundle is in no image."""
    bundle = environment.get("PIP_CERT", "")
    if bundle and Path(bundle).is_file():
        (ROOT / "build").mkdir(exist_ok=True)
        shutil.copyfile(bundle, ROOT / "build/ca-bundle.crt")
