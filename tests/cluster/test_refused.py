"""What cannot be run on a cluster is refused, or ends soon, in words that a user can do something with."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.binaries import ROOT
from tests.cluster.install import VERSION
from tests.cluster.runs import SMALL, Hermes, Manifest, Run, in_the_model_cache, until

SOON = {"preRunningDeadlineSeconds": 15}
ELSEWHERE, LACKING = "hermes-elsewhere", "hermes-lacking"
COMMIT = "0123456789" * 4

TWO_TREES = f"""
import pathlib, shutil
from hermes_runtime.models.tree import resolve
for name in ("sound", "damaged"):
    to = pathlib.Path("/models/hermes--" + name + "@{COMMIT}")
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(resolve("repair"), to)
weights = to / "model.safetensors"
changed = bytearray(weights.read_bytes())
changed[len(changed) // 2] ^= 1
weights.write_bytes(changed)
"""
"""The bundled model twice, as two models of a Hub that were pulled; a byte of the second has changed."""


def bundled(**evaluate: Any) -> Manifest:
    """Fields of a spec that loads nothing from the model cache."""
    mutants = {"instances": {"mutants": {"count": 1}}, "arms": ["PM"]}
    return {"model": {"source": {"bundled": "repair"}}, "evaluate": {**mutants, **evaluate}}


def source(**fields: str) -> Manifest:
    return {**bundled(), "model": {"source": fields}}


def cause(found: Manifest) -> tuple[str, str]:
    return found["failure"]["who"], found["failure"]["reason"]


REFUSED = {
    "a name too long": ("a" * 41, bundled(), "at most 40 characters"),
    "a name with a dot": ("a.b", bundled(), "lower-case letters, digits and dashes"),
    "an unknown arm": ("arm", bundled(arms=["Z"]), 'supported values: "A", "C", "PM"'),
    "an arm named twice": ("twice", bundled(arms=["C", "C"]), "arms named twice"),
    "two union members": ("two", source(bundled="repair", path="x"), "exactly one of bundled, path, repo"),
    "a branch for a revision": ("branch", source(repo="a/b", revision="main"), "spec.model.source.revision"),
    "no revision": ("none", source(repo="a/b"), "repo and revision are set together"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_document_that_says_a_wrong_thing_is_refused_by_the_api_server(hermes: Hermes, case: str) -> None:
    name, spec, message = REFUSED[case]
    with pytest.raises(RuntimeError) as refusal:
        hermes.apply(hermes.document(name, **spec))
    assert message in str(refusal.value)
    assert "is invalid" in str(refusal.value)
    with pytest.raises(RuntimeError, match="not found"):
        hermes.get("hermesrun", name)


def test_a_gpu_that_no_node_has_is_named_and_is_not_waited_for_longer_than_told(
    hermes: Hermes, run: Callable[..., Run]
) -> None:
    wanted = {"resources": {"model": {**SMALL, "limits": {"nvidia.com/gpu": 1}}}}
    without = run("no-gpu", **bundled(), pod=wanted, **SOON)
    waiting = without.until("waits", lambda found: (found.get("failure") or started(found)) is not None)
    assert started(waiting) == "Unschedulable"
    found = without.fails()
    assert cause(found) == ("cluster", "PreRunningDeadlineExceeded")
    assert "Unschedulable" in found["failure"]["message"]
    assert "Insufficient nvidia.com/gpu" in found["failure"]["message"]
    assert without.conditions["Complete"]["status"] == "False"
    until("nothing waits any more", lambda: not of_kinds(without, "Job", "Pod"), 60)


def started(found: Manifest) -> str | None:
    """Why no driver has started, once that is more than that it is early."""
    for one in found.get("conditions") or ():
        if one["type"] == "Started" and one["reason"] not in ("WaitingForPods", "PodsOfBefore"):
            return str(one["reason"])
    return None


def of_kinds(run: Run, *kinds: str) -> list[str]:
    return [child for child in run.children() if child.partition("/")[0] in kinds]


def test_a_model_with_a_changed_byte_is_found_out_and_nothing_starts(
    hermes: Hermes, run: Callable[..., Run]
) -> None:
    in_the_model_cache(hermes, "write-trees", TWO_TREES)
    damaged = run("damaged", **source(repo="hermes/damaged", revision=COMMIT))
    sound = run("sound", **source(repo="hermes/sound", revision=COMMIT))
    found = damaged.fails()
    assert cause(found) == ("cluster", "TreeDamaged")
    assert "model.safetensors" in found["failure"]["message"]
    verified = damaged.conditions["ModelVerified"]
    assert (verified["status"], verified["reason"]) == ("False", "TreeDamaged")
    assert of_kinds(damaged, "Job") == ["Job/hermes-damaged-pull"]

    sound.until("verified", lambda found: "TreeVerified" in json.dumps(found.get("conditions")))
    assert sound.conditions["ModelVerified"]["status"] == "True"
    assert sound.conditions["ModelVerified"]["message"].startswith("tree ")


def test_a_script_that_is_not_in_the_model_cache_is_named(hermes: Hermes, run: Callable[..., Run]) -> None:
    part = {"backend": "scripted", "source": {"path": "absent.yaml"}}
    absent = run("no-script", **{**bundled(), "model": part}, preRunningDeadlineSeconds=45)
    found = absent.fails()
    assert cause(found) == ("model", "PreRunningDeadlineExceeded")
    assert "/models/absent.yaml" in found["failure"]["message"]


@pytest.fixture(scope="module")
def lacking(hermes: Hermes) -> Iterator[Hermes]:
    """A release whose runtime image is nowhere, and whose volumes are of a class that is not there."""
    cluster = hermes.cluster
    cluster.kubectl("create", "namespace", LACKING)
    helm = str(cluster.programs.path("helm"))
    values = {
        "crds.enabled": "false",
        "images.operator.repository": "docker.io/library/hermes-operator",
        "images.operator.tag": VERSION,
        "images.runtime.repository": "registry.invalid/hermes-runtime",
        "images.runtime.tag": "absent",
        "modelCache.enabled": "true",
        "modelCache.storageClass": "nowhere",
        "store.persistence.storageClass": "nowhere",
    }
    settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    words = ["install", "hermes", str(ROOT / "charts/hermes"), "--namespace", LACKING, *settings]
    environment = cluster.environment(os.environ)
    try:
        subprocess.run([helm, *words], env=environment, check=True, capture_output=True)
        yield Hermes(cluster, LACKING)
    finally:
        # first, so that no run is left without one who sees to its end
        cluster.kubectl("--namespace", LACKING, "delete", "hermesruns", "--all", "--ignore-not-found")
        subprocess.run([helm, "uninstall", "hermes", "--namespace", LACKING], env=environment, check=True)
        cluster.kubectl("delete", "namespace", LACKING, "--wait=false")


def test_an_image_that_cannot_be_pulled_and_a_claim_that_cannot_be_bound_are_named(lacking: Hermes) -> None:
    no_image = lacking.start("no-image", **bundled(), preRunningDeadlineSeconds=30)
    no_claim = lacking.start("no-claim", **source(path="some/model"), preRunningDeadlineSeconds=30)
    found = no_claim.fails()
    assert cause(found) == ("cluster", "PreRunningDeadlineExceeded")
    assert "VolumeNotBound" in found["failure"]["message"]
    assert "hermes-models" in found["failure"]["message"]
    found = no_image.fails()
    assert cause(found) == ("cluster", "PreRunningDeadlineExceeded")
    assert "ImagePullFailed" in found["failure"]["message"]
    assert "registry.invalid/hermes-runtime:absent" in found["failure"]["message"]


def test_a_run_where_no_operator_looks_is_left_alone(hermes: Hermes, run: Callable[..., Run]) -> None:
    hermes.cluster.kubectl("create", "namespace", ELSEWHERE)
    try:
        unseen = Hermes(hermes.cluster, ELSEWHERE).start("unseen", **bundled())
        # one that is seen and was made later has a status before this one is looked at
        run("seen", **bundled(), suspend=True).until("seen", lambda found: found.get("phase") == "Suspended")
        assert unseen.status == {}
        assert unseen.children() == []
    finally:
        hermes.cluster.kubectl("delete", "namespace", ELSEWHERE, "--wait=false")
