"""Whole runs on a cluster with HERMES installed: what comes out, and what survives.

They use the cluster that is up and the release on it (`python -m tests.cluster install`), and skip where
there is none; HERMES_CLUSTER=1 makes both. The runtime image must be the whole one: a model is loaded.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.binaries import ROOT
from tests.cluster.install import NAMESPACE, install
from tests.cluster.kind import Cluster

Manifest = dict[str, Any]
WAIT_SECONDS = 600


@pytest.fixture(scope="session")
def hermes(kind_cluster: Cluster) -> Cluster:
    """The cluster, with HERMES on it."""
    if os.environ.get("HERMES_CLUSTER") == "1":
        return install()
    try:
        kind_cluster.kubectl("-n", NAMESPACE, "get", "deployment", "hermes-operator")
    except RuntimeError:
        pytest.skip("HERMES is not on the cluster: python -m tests.cluster install")
    return kind_cluster


def document(name: str, **spec: Any) -> Manifest:
    """Three defects under an arm and the control, in two shards."""
    evaluate = {"instances": {"mutants": {"count": 3}}, "arms": ["PM"], "control": "enumerate"}
    return {
        "apiVersion": "hermes.dev/v1alpha1",
        "kind": "HermesRun",
        "metadata": {"name": name},
        "spec": {"seed": 42, "evaluate": evaluate, "shardSize": 2, **spec},
    }


def apply(cluster: Cluster, run: Manifest) -> None:
    cluster.kubectl("-n", NAMESPACE, "apply", "--filename", "-", stdin=json.dumps(run))


def get(cluster: Cluster, kind: str, *arguments: str) -> Manifest:
    return dict(json.loads(cluster.kubectl("-n", NAMESPACE, "get", kind, *arguments, "--output", "json")))


def status(cluster: Cluster, name: str) -> Manifest:
    return dict(get(cluster, "hermesrun", name).get("status") or {})


def until(cluster: Cluster, name: str, holds: Callable[[Manifest], bool]) -> Manifest:
    """The run's status once that holds."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        found = status(cluster, name)
        if holds(found):
            return found
        if found.get("phase") == "Failed":
            break
        time.sleep(1)  # a cluster of another process is polled: nothing here could tell
    raise AssertionError(f"{name}: {json.dumps(status(cluster, name), indent=1)}")


def succeeded(found: Manifest) -> bool:
    return found.get("phase") == "Succeeded"


def children(cluster: Cluster, name: str) -> list[str]:
    words = ["jobs,pods,serviceaccounts,networkpolicies", "--selector", f"hermes.dev/run={name}"]
    return [f"{one['kind']}/{one['metadata']['name']}" for one in get(cluster, *words)["items"]]


def predictions(folder: Path) -> dict[str, dict[str, str]]:
    """Arm -> instance -> patch."""
    return {
        file.stem: {row["instance_id"]: row["model_patch"] for row in map(json.loads, _lines(file))}
        for file in sorted((folder / "predictions").glob("*.jsonl"))
    }


def _lines(file: Path) -> list[str]:
    return file.read_text("utf-8").splitlines()


def fetch(cluster: Cluster, name: str, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "hermes_runtime.cli", "fetch", name, "--namespace", NAMESPACE]
    subprocess.run(
        [*command, "--installation", NAMESPACE, "--out", str(out)],
        env=cluster.environment(os.environ),
        check=True,
        timeout=WAIT_SECONDS,
    )
    return dict(json.loads((out / "summary.json").read_bytes()))


@pytest.fixture(scope="session")
def on_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same document's run without a cluster."""
    folder = tmp_path_factory.mktemp("laptop")
    file = folder / "run.yaml"
    file.write_text(json.dumps(document("laptop")))
    command = [sys.executable, "-m", "hermes_runtime.cli", "run", "--file", str(file)]
    cache = os.environ.get("HERMES_CACHE") or str(ROOT / "build" / "cache")
    subprocess.run(
        [*command, "--out", str(folder / "out"), "--cache", cache], check=True, timeout=WAIT_SECONDS
    )
    return folder / "out"


def test_a_run_brings_the_results_of_one_machine_and_leaves_nothing_but_them(
    hermes: Cluster, on_this_machine: Path, tmp_path: Path
) -> None:
    name = "whole"
    apply(hermes, document(name))
    found = until(hermes, name, succeeded)
    assert found["progress"]["doneOfTotal"] == "6/6"
    assert found["shards"]["succeeded"] == 2
    conditions = {one["type"]: one for one in found["conditions"]}
    assert conditions["Hermetic"]["status"] == "True"
    assert found["loaded"]["weightBytes"] > 0
    fetched = fetch(hermes, name, tmp_path / "run")
    assert predictions(tmp_path / "run") == predictions(on_this_machine)
    assert any(patch for arm in predictions(on_this_machine).values() for patch in arm.values())
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert fetched["hermetic"]["attempts"] == 0
    assert len(json.dumps(get(hermes, "hermesrun", name))) < 8 * 1024
    hermes.kubectl("-n", NAMESPACE, "delete", "hermesrun", name, "--wait")
    deadline = time.monotonic() + 60
    while children(hermes, name) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert children(hermes, name) == []


@pytest.mark.parametrize("victim", ["driver", "model", "tester", "store"])
def test_a_container_killed_in_mid_run_loses_and_doubles_nothing(
    hermes: Cluster, on_this_machine: Path, tmp_path: Path, victim: str
) -> None:
    name = f"killed-{victim}"
    apply(hermes, document(name))
    until(hermes, name, lambda found: found.get("phase") == "Running")
    pod = get(hermes, "pods", "--selector", f"hermes.dev/run={name}")["items"][0]["metadata"]["name"]
    kill = "import os, signal; [os.kill(int(p), signal.SIGKILL) for p in os.listdir('/proc') if p.isdigit() "
    kill += "and int(p) not in (1, os.getpid())]"
    hermes.kubectl("-n", NAMESPACE, "exec", pod, "--container", victim, "--", "python3", "-c", kill)
    until(hermes, name, succeeded)
    fetch(hermes, name, tmp_path / "run")
    assert predictions(tmp_path / "run") == predictions(on_this_machine)
    hermes.kubectl("-n", NAMESPACE, "delete", "hermesrun", name, "--wait=false")


def test_a_suspended_run_goes_on_where_it_was(hermes: Cluster, on_this_machine: Path, tmp_path: Path) -> None:
    name = "paused"
    apply(hermes, document(name))
    until(hermes, name, lambda found: (found.get("shards") or {}).get("succeeded", 0) >= 1)
    apply(hermes, document(name, suspend=True))
    until(hermes, name, lambda found: found.get("phase") == "Suspended")
    apply(hermes, document(name))
    until(hermes, name, succeeded)
    fetch(hermes, name, tmp_path / "run")
    assert predictions(tmp_path / "run") == predictions(on_this_machine)
    hermes.kubectl("-n", NAMESPACE, "delete", "hermesrun", name, "--wait=false")
