"""An installation of the tests' own, beside the release `hermes`: for tests that change or break it.

Its namespace is NAMESPACE; the definition is left to the other release. Each test says by `be` which values
it needs, so none depends on another's. What runs in it is as in tests.cluster.runs.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import volumes
from tests.cluster.apiserver import ApiServer
from tests.cluster.binaries import ROOT
from tests.cluster.kind import Cluster
from tests.cluster.runs import SCRIPT, Folder, Hermes, image_of, in_the_model_cache, until

Manifest = dict[str, Any]
NAMESPACE = "hermes-install"
RELEASE = "hermes"
CHART = ROOT / "charts" / "hermes"
SLOW_SCRIPT = "slow.yaml"
SLOW_SCRIPT_TEXT = json.dumps(
    {"dialect": "chat", "delay_ms": 6000, "default": {"completions": ["I do not know."]}}
)
"""Four rounds of answers that help nobody: a run outlasts what is done to the installation meanwhile."""
ONE_DEFECT = {"instances": {"mutants": {"count": 1}}, "arms": ["PM"], "control": "enumerate"}
"""`evaluate` of a spec: as little as a run can be, with results that are not empty."""


@dataclass(frozen=True)
class Installation(Hermes):
    """The release of the namespace NAMESPACE."""

    namespace: str = NAMESPACE
    folder: Path = field(default=Path(), kw_only=True)
    """Scratch: helm's homes and values."""
    images: Mapping[str, Mapping[str, str]] = field(default_factory=dict, kw_only=True)
    """What the chart's `images` must say."""

    def helm(self, *arguments: str) -> str:
        """What helm printed. RuntimeError, with what it said, if it failed."""
        return helm(self.cluster, self.folder, "--namespace", self.namespace, *arguments)

    def be(
        self, *, chart: Path = CHART, wait: str = "--wait", timeout: str = "3m", **values: Manifest
    ) -> None:
        """Install or upgrade to this chart with these values over those of all tests."""
        least = {"requests": {"cpu": "10m", "memory": "64Mi"}}
        given: Manifest = {
            "crds": {"enabled": False},
            "images": dict(self.images),
            "operator": {"resources": least},
            "store": {"resources": least, "persistence": {"size": "1Gi"}},
            "modelCache": {"enabled": True, "size": "1Gi"},
        }
        for name, value in values.items():
            given[name] = {**given.get(name, {}), **value}
        file = self.folder / "values.yaml"
        file.write_text(yaml.safe_dump(given))
        words = ["upgrade", "--install", RELEASE, str(chart), "--values", str(file), "--timeout", timeout]
        self.helm(*words, *([wait] if wait else []))

    def is_up(self) -> None:
        """Return once operator and store are ready."""
        for workload in ("deployment/hermes-operator", "statefulset/hermes-store"):
            self.kubectl("rollout", "status", workload, "--timeout=180s")

    def write_to_the_model_cache(self, files: Mapping[str, str]) -> None:
        """Texts by their path in the cache."""
        code = "import json, os, pathlib\n"
        code += "for name, text in json.loads(os.environ['FILES']).items():\n"
        code += "    pathlib.Path('/models', name).write_text(text)\n"
        in_the_model_cache(self, "write-models", code, FILES=json.dumps(dict(files)).replace("$", "$$"))

    def fetched(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`hermes fetch` with these words, however it ended."""
        command = [sys.executable, "-m", "hermes_runtime.cli", "fetch", *words]
        return subprocess.run(
            [*command, "--namespace", self.namespace, "--installation", self.namespace],
            env=self.cluster.environment(os.environ),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def folder_of(self, run: str, out: Path) -> Folder:
        """The run's folder, by `hermes fetch` from this installation's store."""
        done = self.fetched(run, "--out", str(out))
        assert done.returncode == 0, done.stderr
        return Folder(out)

    @contextmanager
    def store_address(self) -> Iterator[str]:
        """host:port that leads to the store's port for other pods, by a port-forward of kubectl."""
        words = [str(self.cluster.programs.path("kubectl")), "--kubeconfig", str(self.cluster.kubeconfig)]
        words += ["--namespace", self.namespace, "port-forward", "pod/hermes-store-0", ":7443"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as forward:
            assert forward.stdout is not None
            try:
                told = forward.stdout.readline()  # Forwarding from 127.0.0.1:40123 -> 7443
                yield told.split()[2]
            finally:
                forward.terminate()


def helm(api: Cluster | ApiServer, folder: Path, *arguments: str) -> str:
    """What helm printed; its homes are in `folder`. RuntimeError, with what it said, if it failed."""
    homes = {f"HELM_{name}_HOME": str(folder) for name in ("CACHE", "CONFIG", "DATA")}
    done = subprocess.run(
        [api.programs.path("helm"), "--kubeconfig", api.kubeconfig, *arguments],
        env={**os.environ, **homes},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"helm {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def version_of(chart: Path, version: str, folder: Path) -> Path:
    """A copy of the chart as another version of it. Pods are labelled so, and an upgrade replaces them."""
    copy = folder / f"hermes-{version}"
    shutil.copytree(chart, copy)
    file = copy / "Chart.yaml"
    about = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**about, "version": version}))
    return copy


def images_of(hermes: Hermes) -> dict[str, dict[str, str]]:
    """The images of a release, as the chart's values say them."""
    found = {}
    for name, words in {
        "operator": ("deployment", "hermes-operator"),
        "runtime": ("statefulset", "hermes-store"),
    }.items():
        repository, _, tag = image_of(hermes.get(*words)).rpartition(":")
        found[name] = {"repository": repository, "tag": tag}
    return found


def namespace_manifest(name: str) -> Manifest:
    """A namespace that admits restricted pods alone."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


@pytest.fixture(scope="session")
def installation(
    hermes: Hermes, script: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """HERMES once more, in a namespace of its own, with scripts in its model cache."""
    folder = tmp_path_factory.mktemp("installation")
    installed = Installation(hermes.cluster, folder=folder, images=images_of(hermes))
    installed.helm("uninstall", RELEASE, "--ignore-not-found")
    installed.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait")
    volumes.make_free(hermes.cluster)
    installed.apply(namespace_manifest(NAMESPACE))
    # The model cache is bound by the first pod that uses it: helm must not wait for it.
    installed.be(wait="")
    installed.is_up()
    installed.write_to_the_model_cache({SCRIPT: script.read_text(), SLOW_SCRIPT: SLOW_SCRIPT_TEXT})
    until("the model cache's claim", lambda: _is_bound(installed), 60)
    yield installed
    installed.helm("uninstall", RELEASE)
    installed.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def _is_bound(installed: Installation) -> bool:
    claim = installed.get("persistentvolumeclaim", "hermes-models")
    return bool(claim["status"].get("phase") == "Bound")
