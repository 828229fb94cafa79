"""A model of a Hub, pulled by a Job of its own; the Hub is a pod of the tests.

The tree has no weights that could be loaded: what is tested ends where a verified tree is handed to the
model's container. That a run can work on what was pulled is shown with a script that lies in the tree.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.installation import ONE_DEFECT, Installation
from tests.cluster.runs import Manifest, Run, in_the_model_cache, pod_of_runtime
from tests.e2e import fake_hub
from tests.e2e.fake_hub import COMMIT, REPO

TOKEN = "hf_of-the-tests"
PORT = 8080
FOLDER = f"{REPO.replace('/', '--')}@{COMMIT}"
WEIGHTS_BYTES = 2_000_000
SECRET = "hub-token"

SERVE = f"""
import pathlib, threading
import fake_hub
files = {{"config.json": b"{{}}", "LICENSE": b"terms"}}
files["model.safetensors"] = b"weights." * {WEIGHTS_BYTES // 8}
files["script.json"] = pathlib.Path("/hub/script.json").read_bytes()
hub = fake_hub.Hub(files=files, gated=True, token="{TOKEN}")
with fake_hub.running(hub, host="0.0.0.0", port={PORT}):
    pathlib.Path("/tmp/ready").touch()
    threading.Event().wait()
"""

CHANGE_A_BYTE = f"""
import pathlib
weights = pathlib.Path("/models/{FOLDER}/model.safetensors")
changed = bytearray(weights.read_bytes())
changed[len(changed) // 2] ^= 1
weights.write_bytes(changed)
"""


@pytest.fixture(scope="module")
def pulling(installation: Installation, script: Path) -> Iterator[Installation]:
    """The installation, which takes its models from the Hub in the pod `hub`."""
    container = {
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "PYTHONPATH", "value": "/hub"}],
        "readinessProbe": {"exec": {"command": ["test", "-f", "/tmp/ready"]}, "periodSeconds": 1},
        "volumeMounts": [{"name": "hub", "mountPath": "/hub"}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    volumes = [{"name": "hub", "configMap": {"name": "hub"}}, {"name": "tmp", "emptyDir": {}}]
    hub = pod_of_runtime(installation, "hub", SERVE, container=container, volumes=volumes)
    hub["metadata"]["labels"] = {"app": "hub"}
    files = {"fake_hub.py": Path(fake_hub.__file__).read_text(), "script.json": script.read_text()}
    service = {"selector": {"app": "hub"}, "ports": [{"port": PORT}]}
    installation.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hub"}, "data": files},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hub"}, "spec": service},
        hub,
    )
    endpoint = f"http://hub.{installation.namespace}.svc:{PORT}"
    installation.be(modelCache={"hubEndpoint": endpoint, "hubTokenSecret": SECRET})
    installation.kubectl("wait", "--for=condition=ready", "pod/hub", "--timeout=60s")
    yield installation
    installation.kubectl("delete", "pod/hub", "service/hub", "configmap/hub", "--wait=false")
    installation.kubectl("delete", "secret", SECRET, "--ignore-not-found")


def of_the_hub(pulling: Installation, name: str, revision: str = COMMIT) -> Run:
    """A run of the Hub's model, applied."""
    model = {"source": {"repo": REPO, "revision": revision}, "contextTokens": 65_536}
    return pulling.start(name, model=model, preRunningDeadlineSeconds=300)


def test_what_the_hub_refuses_ends_a_run_before_it_starts(pulling: Installation) -> None:
    """Asked without the token, and for a commit that there is not."""
    gated, unknown = of_the_hub(pulling, "gated"), of_the_hub(pulling, "unknown", "a" * 40)
    _ended_without_a_start(gated, "user", "Gated", "accept them on the model's page")
    _ended_without_a_start(unknown, "user", "RevisionNotFound", "no such commit")


def test_a_model_is_pulled_and_verified_before_its_run_starts_and_found_when_damaged(
    pulling: Installation,
) -> None:
    pulling.kubectl("create", "secret", "generic", SECRET, f"--from-literal=token={TOKEN}")
    pulled = of_the_hub(pulling, "pulled")
    pulled.until("Pulling", lambda found: found.get("phase") == "Pulling")
    assert pulled.conditions["ModelVerified"]["reason"] == "Pulling"
    pulled.until("a model process that ended", lambda found: _reason(found, "Started") == "ModelFailed")
    verified = pulled.conditions["ModelVerified"]
    assert (verified["status"], verified["reason"]) == ("True", "TreeVerified")
    said = pulling.kubectl("logs", "job/hermes-pulled-pull")
    assert f"{REPO}@{COMMIT}: 4 files, 1.9 MiB, licence apache-2.0" in said
    assert "verified: 4 files" in said
    assert verified["message"].removeprefix("tree ") in said
    assert "job/hermes-pulled-1" in pulling.kubectl("get", "jobs", "--output", "name").replace(".batch", "")
    told = pulled.conditions["Started"]["message"]
    assert told.startswith("model exited")
    assert "use the whole runtime image" in told or not pulling.is_slim
    pulled.delete()

    scripted = {"backend": "scripted", "source": {"path": f"{FOLDER}/script.json"}, "contextTokens": 65_536}
    worked = pulling.start("on-what-was-pulled", model=scripted, evaluate=ONE_DEFECT)
    worked.succeeds()
    worked.delete()

    in_the_model_cache(pulling, "change-a-byte", CHANGE_A_BYTE)
    damaged = of_the_hub(pulling, "damaged")
    _ended_without_a_start(damaged, "cluster", "TreeDamaged", "model.safetensors has SHA-256")


def _ended_without_a_start(run: Run, who: str, reason: str, words: str) -> None:
    found = run.fails()
    assert (found["failure"]["who"], found["failure"]["reason"]) == (who, reason)
    assert words in found["failure"]["message"]
    assert (run.conditions["ModelVerified"]["status"], _reason(found, "ModelVerified")) == ("False", reason)
    assert [child for child in run.children() if child == f"Job/hermes-{run.name}-1"] == []
    run.delete()


def _reason(status: Manifest, condition: str) -> str:
    found = {one["type"]: one.get("reason") for one in status.get("conditions") or ()}
    return str(found.get(condition))
