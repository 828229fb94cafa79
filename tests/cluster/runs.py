"""Whole runs on the cluster of the tests: documents, what is told of them, what is done to their processes.

The release's runtime image decides the model: the whole image loads the bundled one; the slim one has no
torch and plays a script, which lies in the installation's model cache and on this machine alike. Nothing
is asserted here but that a run ends; test_runs.py, test_lost.py and others say what must have come out.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
import pytest

from tests.cluster import kind
from tests.cluster.binaries import ROOT
from tests.cluster.install import NAMESPACE, install
from tests.cluster.kind import Cluster

Manifest = dict[str, Any]
T = TypeVar("T")
WAIT_SECONDS = 600
LOOK_EVERY_SECONDS = 0.5
SEED, INSTANCES, ARMS = 42, 2, ("C", "PM")
RESULTS = INSTANCES * len(ARMS)
SCRIPT = "script.yaml"
CLAIM = "hermes-models"
DELAY_MS = 2000
"""Before each answer of the script, two for a result: time enough to disturb a run in its middle."""
SMALL = {"requests": {"cpu": "10m", "memory": "64Mi"}}
"""So that a small node takes the pods of several runs; nothing is limited."""
TESTER = {"requests": {"cpu": "150m", "memory": "64Mi"}}
"""More, for its share of a busy node."""


class NeverHeld(AssertionError):
    """What was waited for did not come."""


def until(what: str, look: Callable[[], T | None], seconds: float = WAIT_SECONDS) -> T:
    """What `look` gives once it gives anything. A cluster of other processes is polled: nothing tells."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(LOOK_EVERY_SECONDS)
    raise NeverHeld(f"{what}: not within {seconds:.0f} s")


@dataclass(frozen=True)
class Hermes:
    """The release `hermes` on the cluster."""

    cluster: Cluster
    namespace: str = NAMESPACE
    """Where runs are made."""
    installation: str = NAMESPACE

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, stdin=stdin)

    def get(self, *words: str) -> Manifest:
        return dict(json.loads(self.kubectl("get", *words, "--output", "json")))

    def apply(self, *objects: Manifest) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--filename", "-", stdin=json.dumps(listed))

    @cached_property
    def runtime_image(self) -> str:
        """What every container of a run is made of."""
        words = ["get", "statefulset", "hermes-store", "--namespace", self.installation, "--output", "json"]
        return image_of(json.loads(self.cluster.kubectl(*words)))

    @property
    def is_slim(self) -> bool:
        """The runtime has no torch: it can only play scripts."""
        return self.runtime_image.endswith("-slim")

    def document(self, name: str, **spec: Any) -> Manifest:
        """Two defects under two arms, a pod for each defect."""
        scripted = {"backend": "scripted", "source": {"path": SCRIPT}, "contextTokens": 65_536}
        evaluate = {"instances": {"mutants": {"count": INSTANCES}}, "arms": list(ARMS)}
        parts = {**dict.fromkeys(("model", "agents", "driver"), SMALL), "tester": TESTER}
        return {
            "apiVersion": "hermes.dev/v1alpha1",
            "kind": "HermesRun",
            "metadata": {"name": name},
            "spec": {
                "seed": SEED,
                "model": scripted if self.is_slim else {"source": {"bundled": "repair"}},
                "evaluate": {**evaluate, "rounds": 1 if self.is_slim else 4},
                "shardSize": 1,
                "pod": {"resources": parts},
                **spec,
            },
        }

    def start(self, name: str, **spec: Any) -> "Run":
        """Apply such a run; one of that name from before is deleted first."""
        self.kubectl("delete", "hermesrun", name, "--ignore-not-found", "--wait")
        self.apply(self.document(name, **spec))
        return Run(self, name)


def image_of(workload: Manifest) -> str:
    """Image of the first container of this workload's pods."""
    return str(workload["spec"]["template"]["spec"]["containers"][0]["image"])


@dataclass(frozen=True)
class Run:
    """A run that was applied."""

    hermes: Hermes
    name: str

    @property
    def manifest(self) -> Manifest:
        return self.hermes.get("hermesrun", self.name)

    @property
    def status(self) -> Manifest:
        return dict(self.manifest.get("status") or {})

    @property
    def conditions(self) -> dict[str, Manifest]:
        return {one["type"]: one for one in self.status.get("conditions") or ()}

    def until(self, what: str, holds: Callable[[Manifest], bool], seconds: float = WAIT_SECONDS) -> Manifest:
        """The run's status once that holds. A run that has failed is not waited for."""

        def look() -> Manifest | None:
            found = self.status
            is_over = found.get("phase") == "Failed" and not holds(found)
            if is_over:
                raise NeverHeld(f"{self.name}: {what}")
            return found if holds(found) else None

        return self._until(what, look, seconds)

    def succeeds(self) -> Manifest:
        return self.until("Succeeded", lambda found: found.get("phase") == "Succeeded")

    def fails(self) -> Manifest:
        return self.until("Failed", lambda found: found.get("phase") == "Failed")

    def shard_is_done(self, count: int = 1) -> Manifest:
        return self.until(
            f"{count} shards done", lambda found: (found.get("shards") or {}).get("succeeded", 0) >= count
        )

    def edit(self, **spec: Any) -> None:
        """Change fields of the spec."""
        self.hermes.kubectl(
            "patch", "hermesrun", self.name, "--type", "merge", "--patch", json.dumps({"spec": spec})
        )

    def delete(self) -> None:
        self.hermes.kubectl("delete", "hermesrun", self.name, "--ignore-not-found", "--wait=false")

    def children(self) -> list[str]:
        words = ["jobs,pods,serviceaccounts,networkpolicies", "--selector", f"hermes.dev/run={self.name}"]
        return [f"{one['kind']}/{one['metadata']['name']}" for one in self.hermes.get(*words)["items"]]

    def pods(self) -> list[Manifest]:
        """Oldest first."""
        found = self.hermes.get("pods", "--selector", f"hermes.dev/run={self.name}")["items"]
        return sorted(found, key=lambda pod: (pod["metadata"]["creationTimestamp"], index_of(pod)))

    def pod_at_work(self, index: int = 0) -> Manifest:
        """The pod of this shard, once its driver runs."""

        def look() -> Manifest | None:
            at_work = (
                pod for pod in self.pods() if index_of(pod) == index and "running" in state(pod, "driver")
            )
            return next(at_work, None)

        return self._until(f"a driver of shard {index}", look)

    def in_the_middle(self, index: int = 0) -> Manifest:
        """The pod of this shard, the moment that one of its results is recorded and one is not."""
        pod = self.pod_at_work(index)
        words = ["--namespace", self.hermes.namespace, "logs", "--follow", pod["metadata"]["name"]]
        cluster = self.hermes.cluster
        following = subprocess.Popen(
            [cluster.programs.path("kubectl"), "--kubeconfig", cluster.kubeconfig, *words, "-c", "driver"],
            stdout=subprocess.PIPE,
            text=True,
        )
        with following:
            assert following.stdout
            is_there = any(line.startswith("[1/2]") for line in following.stdout)
            following.terminate()
        assert is_there, self.logs()
        return pod

    def _until(self, what: str, look: Callable[[], T | None], seconds: float = WAIT_SECONDS) -> T:
        """`until`, and all that is known of the run where it does not hold."""
        try:
            return until(f"{self.name}: {what}", look, seconds)
        except NeverHeld as error:
            raise NeverHeld(f"{error}\n{json.dumps(self.status, indent=1)}\n{self.logs()}") from None

    def said(self, pod: str, container: str = "driver") -> str:
        """The container's log; "" before it has one."""
        try:
            return "\n" + self.hermes.kubectl("logs", pod, "--container", container)
        except RuntimeError:
            return ""

    def logs(self) -> str:
        """The ends of all logs, for who must find out what went wrong."""
        told = []
        for pod in self.pods():
            for one in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
                lines = self.said(pod["metadata"]["name"], one["name"]).splitlines()[-12:]
                told.append(f"--- {pod['metadata']['name']} {one['name']}\n" + "\n".join(lines))
        return "\n".join(told)

    def fetch(self, out: Path) -> "Folder":
        """The run's folder, by `hermes fetch`."""
        words = ["fetch", self.name, "--namespace", self.hermes.namespace]
        command([*words, "--installation", self.hermes.installation, "--out", str(out)], self.hermes.cluster)
        return Folder(out)


def index_of(pod: Manifest) -> int:
    """Its shard; -1 for a pod that is of none."""
    annotations = pod["metadata"].get("annotations") or {}
    return int(annotations.get("batch.kubernetes.io/job-completion-index", -1))


def told_of(pod: Manifest, container: str) -> Manifest:
    """What the kubelet tells of this container; {} before it does."""
    told = [*pod["status"].get("initContainerStatuses", ()), *pod["status"].get("containerStatuses", ())]
    return next((one for one in told if one["name"] == container), {})


def state(pod: Manifest, container: str) -> Manifest:
    """Its state: waiting, running or terminated."""
    return dict(told_of(pod, container).get("state") or {})


@dataclass(frozen=True)
class Folder:
    """A run's folder on this machine."""

    path: Path

    def predictions(self) -> dict[str, dict[str, str]]:
        """Arm -> instance -> patch."""
        return {
            file.stem: {row["instance_id"]: row["model_patch"] for row in map(json.loads, lines_of(file))}
            for file in sorted((self.path / "predictions").glob("*.jsonl"))
        }

    def recorded(self) -> list[tuple[str, str]]:
        """Instance and arm of every result, sorted."""
        rows = pq.read_table(self.path / "results.parquet").to_pylist()
        return sorted((row["instance_id"], row["arm"]) for row in rows)

    def summary(self) -> Manifest:
        return dict(json.loads((self.path / "summary.json").read_bytes()))


def lines_of(file: Path) -> list[str]:
    return file.read_text("utf-8").splitlines()


def command(words: list[str], cluster: Cluster | None = None) -> str:
    """What `hermes` of this checkout printed."""
    environment = dict(os.environ) if cluster is None else cluster.environment(os.environ)
    done = subprocess.run(
        [sys.executable, "-m", "hermes_runtime.cli", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"hermes {' '.join(words)}: {done.returncode}\n{done.stderr[-4000:]}")
    return done.stdout


def cache() -> str:
    return os.environ.get("HERMES_CACHE") or str(ROOT / "build" / "cache")


# Processes of the cluster, taken away


def process_of(hermes: Hermes, pod: Manifest, container: str) -> str:
    """The container's first process, by its number on the node."""
    identity = told_of(pod, container)["containerID"].rpartition("/")[2]
    tasks = on_the_node(hermes, "ctr", "--namespace", "k8s.io", "tasks", "list").splitlines()
    (pid,) = [line.split()[1] for line in tasks if line.split()[0] == identity]
    return pid


def kill(hermes: Hermes, pid: str) -> None:
    """SIGKILL a container's first process, and with it all its others, from the node: nobody is told."""
    on_the_node(hermes, "kill", "-9", pid)


def vanish(hermes: Hermes, pod: str) -> None:
    """Delete a pod at once: it is told nothing and given no time."""
    hermes.kubectl("delete", "pod", pod, "--grace-period", "0", "--force", "--wait=false")


def on_the_node(hermes: Hermes, *words: str) -> str:
    return hermes.cluster.engine.docker("exec", kind.NODE, *words)


# A script that knows one answer


def defects(folder: Path) -> list[Manifest]:
    """The instances that every document of these tests asks for."""
    out = folder / "instances.jsonl"
    words = ["dataset", "mutants", "--count", str(INSTANCES), "--seed", str(SEED)]
    command([*words, "--out", str(out), "--cache", cache()])
    return [json.loads(line) for line in lines_of(out)]


def script_for(instances: list[Manifest]) -> Manifest:
    """A script that repairs the first instance as its own reference does, and knows nothing of the rest."""
    known = instances[0]
    asked = re.escape(known["visible_tests"][0]) + r"[\s\S]*Answer with the edit that repairs it"
    return {
        "dialect": "chat",
        "delay_ms": DELAY_MS,
        "rules": [
            {"match": "Which lines are most likely wrong", "completions": ["1, 2, 3"]},
            {"match": asked, "completions": [edit_of(known["patch"])]},
        ],
        "default": {"completions": ["I do not know."]},
    }


def edit_of(patch: str) -> str:
    """A patch of one hunk as a search/replace edit."""
    (path,) = re.findall(r"^\+\+\+ b/(.+)$", patch, re.MULTILINE)
    (hunk,) = re.split(r"^@@ .*\n", patch, flags=re.MULTILINE)[1:]
    old = [line[1:] for line in hunk.splitlines() if line[:1] in (" ", "-")]
    new = [line[1:] for line in hunk.splitlines() if line[:1] in (" ", "+")]
    return "\n".join([path, "<<<<<<< SEARCH", *old, "=======", *new, ">>>>>>> REPLACE", ""])


# Pods of the tests' own


def pod_of_runtime(hermes: Hermes, name: str, code: str, **more: Any) -> Manifest:
    """A pod of the runtime image that runs this Python; as restricted as a run's own."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "main",
                    "image": hermes.runtime_image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-c", code],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "env": [{"name": "HOME", "value": "/tmp"}],
                    **more.pop("container", {}),
                }
            ],
            **more,
        },
    }


def done(hermes: Hermes, pod: Manifest) -> Manifest:
    """The pod, once it has ended well; it is deleted."""
    name = pod["metadata"]["name"]
    hermes.kubectl("delete", "pod", name, "--ignore-not-found", "--wait")
    hermes.apply(pod)

    def look() -> Manifest | None:
        found = hermes.get("pod", name)
        return found if found["status"].get("phase") in ("Succeeded", "Failed") else None

    found = until(f"pod {name}", look, 120)
    said = hermes.kubectl("logs", name)
    hermes.kubectl("delete", "pod", name, "--wait=false")
    assert found["status"]["phase"] == "Succeeded", said
    return found


def in_the_model_cache(hermes: Hermes, name: str, code: str, **environment: str) -> None:
    """Run this Python where the model cache is mounted at /models."""
    container = {
        "env": [{"name": key, "value": value} for key, value in {"HOME": "/tmp", **environment}.items()],
        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
    }
    claim = {"name": "models", "persistentVolumeClaim": {"claimName": CLAIM}}
    done(hermes, pod_of_runtime(hermes, name, code, container=container, volumes=[claim]))


# Fixtures


def _wanted_runtime(cluster: Cluster, environment: Mapping[str, str]) -> str:
    """Which runtime to install: as the environment says, else as the release there has it, else slim."""
    if wanted := environment.get("HERMES_RUNTIME"):
        return wanted
    try:
        return "slim" if Hermes(cluster).is_slim else "whole"
    except RuntimeError:
        return "slim"


@pytest.fixture(scope="session")
def hermes(kind_cluster: Cluster) -> Hermes:
    """HERMES of this checkout on the cluster, with a model cache; HERMES_INSTALL=no, and a cluster that
    somebody else keeps: the release as it is."""
    if os.environ.get("HERMES_INSTALL") == "no" or kind_cluster.own_engine is None:
        return Hermes(kind_cluster)
    runtime = _wanted_runtime(kind_cluster, os.environ)
    return Hermes(install({**os.environ, "HERMES_RUNTIME": runtime}))


@pytest.fixture(scope="session")
def script(hermes: Hermes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script's file on this machine; it also lies in the model cache of the cluster."""
    folder = tmp_path_factory.mktemp("script")
    file = folder / SCRIPT
    file.write_text(json.dumps(script_for(defects(folder))))  # JSON is YAML
    if hermes.is_slim:
        write = f"import os, pathlib; pathlib.Path('/models/{SCRIPT}').write_text(os.environ['SCRIPT'])"
        in_the_model_cache(hermes, "write-script", write, SCRIPT=file.read_text().replace("$", "$$"))
    return file


@pytest.fixture(scope="session")
def on_this_machine(hermes: Hermes, script: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder of the same document's run without a cluster."""
    folder = tmp_path_factory.mktemp("laptop")
    (folder / SCRIPT).write_text(script.read_text())
    file = folder / "run.yaml"
    file.write_text(json.dumps(hermes.document("laptop")))
    command(["run", "--file", str(file), "--out", str(folder / "out"), "--cache", cache()])
    return Folder(folder / "out")


@pytest.fixture
def run(hermes: Hermes, request: pytest.FixtureRequest) -> Iterator[Callable[..., Run]]:
    """Starts a run that is deleted when the test has passed; of one that fails, pods and logs stay."""
    started: list[Run] = []

    def start(name: str, **spec: Any) -> Run:
        started.append(hermes.start(name, **spec))
        return started[-1]

    failed_before = request.session.testsfailed
    yield start
    if request.session.testsfailed == failed_before:
        for one in started:
            one.delete()
