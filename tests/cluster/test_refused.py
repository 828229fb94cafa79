"""What cannot be run on a cluster is refused, or ends soon, in words that a user can do something with."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.cluster.binaries import ROOT
from tests.cluster.runs import SMALL, Hermes, Manifest, Run, in_the_model_cache, until

ELSEWHERE, LACKING = "hermes-elsewhere", "hermes-lacking"
COMMIT = "0123456789" * 4

TWO_TREES = f"""
import json, pathlib, shutil
from hermes_runtime.models.tree import resolve
for name in ("sound", "damaged"):
    to = pathlib.Path("/models/hermes--" + name + "@{COMMIT}")
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(resolve("repair"), to)
    manifest = json.loads((to / "manifest.json").read_bytes())
    manifest["source"] = "hermes/" + name + "@{COMMIT}"
    (to / "manifest.json").write_text(json.dumps(manifest))
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


@pytest.fixture(scope="module")
def lacking(hermes: Hermes) -> Iterator[Hermes]:
    """A release whose runtime image is nowhere, and whose volumes are of a class that is not there."""
    cluster = hermes.cluster
    cluster.kubectl("create", "namespace", LACKING)
    helm = str(cluster.programs.path("helm"))
    values = {
        "crds.enabled": "false",
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
        yield Hermes(cluster, LACKING, LACKING)
    finally:
        # first, so that no run is left without one who sees to its end
        cluster.kubectl("--namespace", LACKING, "delete", "hermesruns", "--all", "--ignore-not-found")
        subprocess.run([helm, "uninstall", "hermes", "--namespace", LACKING], env=environment, check=True)
        cluster.kubectl("delete", "namespace", LACKING, "--wait=false")


@pytest.fixture(scope="module")
def doomed(hermes: Hermes, lacking: Hermes) -> Iterator[dict[str, Run]]:
    """Runs that cannot start, begun at once; and `sound`, whose model lies beside the damaged one."""
    in_the_model_cache(hermes, "write-trees", TWO_TREES)
    absent = {"backend": "scripted", "source": {"path": "absent.yaml"}}
    gpu = {"resources": {"model": {**SMALL, "limits": {"nvidia.com/gpu": 1}}}}
    runs = {
        "no-gpu": hermes.start("no-gpu", **bundled(), pod=gpu, preRunningDeadlineSeconds=15),
        "damaged": hermes.start("damaged", **source(repo="hermes/damaged", revision=COMMIT)),
        "sound": hermes.start("sound", **source(repo="hermes/sound", revision=COMMIT)),
        "no-script": hermes.start(
            "no-script", **{**bundled(), "model": absent}, preRunningDeadlineSeconds=60
        ),
        "no-image": lacking.start("no-image", **bundled(), preRunningDeadlineSeconds=45),
        "no-claim": lacking.start("no-claim", **source(path="a/model"), preRunningDeadlineSeconds=15),
    }
    yield runs
    for run in runs.values():
        run.delete()


def started(found: Manifest) -> tuple[str, str]:
    (one,) = [one for one in found["conditions"] if one["type"] == "Started"]
    return one["status"], one["reason"]


def of_kinds(run: Run, *kinds: str) -> list[str]:
    return [child for child in run.children() if child.partition("/")[0] in kinds]


WAITED_FOR = {
    "no-gpu": ("cluster", "Unschedulable", "Insufficient nvidia.com/gpu"),
    "no-claim": ("cluster", "VolumeNotBound", "claim hermes-models: "),
    "no-image": ("cluster", "ImagePullFailed", "registry.invalid/hermes-runtime:absent"),
    "no-script": ("model", "ModelFailed", "/models/absent.yaml"),
}
"""Who can mend it, what `Started` says of it, and what its message names."""


@pytest.mark.parametrize("name", WAITED_FOR)
def test_a_run_that_cannot_start_ends_in_time_and_says_what_it_waited_for(
    doomed: dict[str, Run], name: str
) -> None:
    who, reason, named = WAITED_FOR[name]
    found = doomed[name].fails()
    assert started(found) == ("False", reason)
    assert (found["failure"]["who"], found["failure"]["reason"]) == (who, "PreRunningDeadlineExceeded")
    assert f"{reason}: " in found["failure"]["message"]
    assert named in found["failure"]["message"]
    until("nothing waits any more", lambda: not of_kinds(doomed[name], "Job", "Pod"), 60)


def test_a_model_with_a_changed_byte_is_found_out_and_nothing_starts(doomed: dict[str, Run]) -> None:
    damaged, sound = doomed["damaged"], doomed["sound"]
    found = damaged.fails()
    assert (found["failure"]["who"], found["failure"]["reason"]) == ("cluster", "TreeDamaged")
    assert "model.safetensors" in found["failure"]["message"]
    verified = damaged.conditions["ModelVerified"]
    assert (verified["status"], verified["reason"]) == ("False", "TreeDamaged")
    assert of_kinds(damaged, "Job") == ["Job/hermes-damaged-pull"]

    sound.until("verified", lambda found: "TreeVerified" in json.dumps(found.get("conditions")))
    assert sound.conditions["ModelVerified"]["status"] == "True"
    assert sound.conditions["ModelVerified"]["message"].startswith("tree ")


def test_a_run_where_no_operator_looks_is_left_alone(hermes: Hermes, run: Callable[..., Run]) -> None:
    hermes.cluster.kubectl("create", "namespace", ELSEWHERE)
    try:
        unseen = replace(hermes, namespace=ELSEWHERE).start("unseen", **bundled())
        # one that is seen, and was made later, has a status before this one is looked at
        run("seen", **bundled(), suspend=True).until("seen", lambda found: found.get("phase") == "Suspended")
        assert unseen.status == {}
        assert unseen.children() == []
    finally:
        hermes.cluster.kubectl("delete", "namespace", ELSEWHERE, "--wait=false")
