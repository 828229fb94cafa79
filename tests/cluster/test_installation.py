"""The life of an installation: upgraded and taken back, tried out, and asked by callers with other tokens."""

import json
import re
from pathlib import Path

import pytest
import yaml

from hermes_runtime.errors import HermesError
from hermes_runtime.store import ResultKey
from hermes_runtime.store.client import StoreClient
from hermes_runtime.supervise import tcp
from tests.cluster.apiserver import ApiServer
from tests.cluster.installation import CHART, NAMESPACE, RELEASE, SLOW_SCRIPT, Installation, helm, version_of
from tests.cluster.runs import Manifest, told_of

DEFINITION = "templates/crd/hermesruns.hermes.dev.yaml"
ADDED = "priorityClassName"
"""An optional property of spec.pod that the earlier definition lacks."""
ONE_WITHOUT_CONTROL = {"instances": {"mutants": {"count": 1}}, "arms": ["PM"]}


# Upgrades


def test_the_definition_goes_with_upgrade_and_rollback_and_runs_stay_as_they_are(
    bare_api: ApiServer, tmp_path: Path
) -> None:
    earlier = version_of(CHART, "0.0.9", tmp_path)
    _take_from_the_definition(earlier / DEFINITION, ADDED)

    def released(*words: str) -> None:
        helm(bare_api, tmp_path, "--namespace", NAMESPACE, *words)

    def apply(name: str, pod: Manifest) -> Manifest:
        given = json.dumps(_bare_run(name, pod))
        bare_api.kubectl("--namespace", NAMESPACE, "apply", "--filename", "-", stdin=given)
        return run(name)

    def run(name: str) -> Manifest:
        words = ["--namespace", NAMESPACE, "get", "hermesrun", name, "--output", "json"]
        found: Manifest = json.loads(bare_api.kubectl(*words))
        return {"uid": found["metadata"]["uid"], "spec": found["spec"]}

    bare_api.kubectl("create", "namespace", NAMESPACE)
    released("install", RELEASE, str(earlier))
    kept = apply("kept", {})
    with pytest.raises(RuntimeError, match=f'unknown field "spec.pod.{ADDED}"'):
        apply("newer", {ADDED: "high"})
    released("upgrade", RELEASE, str(CHART))
    assert run("kept") == kept
    newer = apply("newer", {ADDED: "high"})
    assert newer["spec"]["pod"][ADDED] == "high"
    released("rollback", RELEASE)
    assert run("kept") == kept
    assert run("newer")["uid"] == newer["uid"]
    with pytest.raises(RuntimeError, match="unknown field"):
        apply("third", {ADDED: "high"})
    released("uninstall", RELEASE)
    assert run("kept") == kept
    released("install", RELEASE, str(CHART))
    assert run("kept") == kept
    released("uninstall", RELEASE)
    bare_api.kubectl("delete", "crd", "hermesruns.hermes.dev")
    bare_api.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def _take_from_the_definition(file: Path, field: str) -> None:
    """Remove this property of spec.pod from the definition in a chart."""
    first, *body, last = file.read_text().splitlines(keepends=True)  # the condition, the definition, its end
    definition = yaml.safe_load("".join(body))
    [version] = definition["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["pod"]["properties"][field]
    file.write_text(first + yaml.safe_dump(definition) + last)


def _bare_run(name: str, pod: Manifest) -> Manifest:
    evaluate = {"instances": {"mutants": {"count": 1}}, "arms": ["PM"]}
    return {
        "apiVersion": "hermes.dev/v1alpha1",
        "kind": "HermesRun",
        "metadata": {"name": name},
        "spec": {"evaluate": evaluate, "pod": pod},
    }


def test_a_run_in_its_middle_outlives_an_upgrade_and_a_rollback(
    installation: Installation, tmp_path: Path
) -> None:
    installation.be()
    run = installation.start("outlives", **slow(installation))
    run.until("Running", lambda found: found.get("phase") == "Running")
    [pod] = run.pods()
    uid, spec = run.manifest["metadata"]["uid"], run.manifest["spec"]
    before = _store(installation)
    installation.be(chart=version_of(CHART, "99.0.0", tmp_path))
    upgraded = _store(installation)
    assert upgraded[0] == "hermes-99.0.0"
    installation.helm("rollback", RELEASE, "--wait", "--timeout", "3m")
    after = _store(installation)
    assert after[0] == before[0]
    assert len({before[1], upgraded[1], after[1]}) == 3, "each time another pod"
    assert run.status["phase"] == "Running", "or the run was not disturbed in its middle"
    found = run.succeeds()
    assert (run.manifest["metadata"]["uid"], run.manifest["spec"]) == (uid, spec)
    assert found["progress"]["done"] == found["progress"]["total"]
    [same] = run.pods()
    assert same["metadata"]["uid"] == pod["metadata"]["uid"]
    assert told_of(same, "driver")["restartCount"] == 0
    run.delete()


def _store(installation: Installation) -> tuple[str, str]:
    """The chart that the store's pod is of, and the pod's uid."""
    pod = installation.get("pod", "hermes-store-0")["metadata"]
    return pod["labels"]["helm.sh/chart"], pod["uid"]


def slow(installation: Installation) -> Manifest:
    """Of a spec: one pod that lasts longer than what is done to the installation."""
    if not installation.is_slim:
        return {"shardSize": 2}  # a real model is slow enough
    model = installation.document("slow")["spec"]["model"]
    return {"model": {**model, "source": {"path": SLOW_SCRIPT}}, "evaluate": ONE_WITHOUT_CONTROL}


def test_helm_waits_only_for_a_model_cache_that_the_release_makes(installation: Installation) -> None:
    """As docs/install.md says: a claim of somebody else's is waited for by nobody."""
    with pytest.raises(RuntimeError, match=r"not ready.*first-use"):
        installation.be(modelCache={"claim": "first-use"}, timeout="5s")
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "of-the-team"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    installation.apply(claim)
    installation.be(modelCache={"claim": "of-the-team", "create": False})
    assert installation.get("persistentvolumeclaim", "of-the-team")["status"]["phase"] == "Pending"
    for name in ("first-use", "of-the-team"):
        installation.kubectl("delete", "persistentvolumeclaim", name, "--wait=false")


# Trying it out


def test_helm_test_runs_a_run_to_its_end_and_takes_it_away(installation: Installation) -> None:
    wanted = installation.document("verify")["spec"]
    kept = {key: wanted[key] for key in ("model", "pod")}
    installation.be(verify={"spec": kept, "timeoutSeconds": 240})
    said = installation.helm("test", RELEASE, "--timeout", "5m", "--logs")
    assert re.search(r"TEST SUITE:\s+hermes-verify[\s\S]*Phase:\s+Succeeded", said)
    assert "hermes-verify: Succeeded 1/1" in said
    assert installation.kubectl("get", "hermesruns", "hermes-verify", "--ignore-not-found") == ""


# Tokens


MINE, OTHERS = f"{NAMESPACE}.mine.12345678", f"{NAMESPACE}.others.12345678"


async def test_a_token_opens_its_own_run_and_only_in_the_audience_of_the_store(
    installation: Installation,
) -> None:
    installation.be()
    for account in ("hermes-run-mine", "hermes-run-others", "passer-by", "hermes-run-gone"):
        installation.kubectl("create", "serviceaccount", account)
    gone = token(installation, "hermes-run-gone")
    installation.kubectl("delete", "serviceaccount", "hermes-run-gone")
    with installation.store_address() as address:

        async def told(token: str, run: str, *, writes: bool = True) -> str:
            """Class of the refusal; "" where the caller was let in."""
            async with StoreClient(tcp.channel(address, token=lambda: token), timeout_seconds=20) as client:
                try:
                    if writes:
                        await client.record_result(ResultKey(run=run, instance="i", arm="PM"), b"{}")
                    else:
                        await client.head(f"{run}/events")
                except HermesError as error:
                    return type(error).__name__
                return ""

        mine = token(installation, "hermes-run-mine")
        assert await told(mine, MINE) == ""
        assert await told(mine, OTHERS) == "Denied"
        assert await told(mine, OTHERS, writes=False) == "Denied"
        assert await told(token(installation, "hermes-run-others"), MINE) == "Denied"
        assert await told(token(installation, "hermes-run-mine", "another"), MINE) == "Unauthenticated"
        assert await told(token(installation, "hermes-run-mine", ""), MINE) == "Unauthenticated"
        assert await told(token(installation, "passer-by"), MINE, writes=False) == "Denied"
        assert await told(gone, f"{NAMESPACE}.gone.12345678") == "Unauthenticated"
        assert await told("made.up.token", MINE) == "Unauthenticated"
        reader = token(installation, "hermes-reader")
        assert await told(reader, MINE, writes=False) == ""
        assert await told(reader, MINE) == "Denied"


def token(installation: Installation, account: str, audience: str = "hermes-store") -> str:
    """A token of this ServiceAccount; audience "": the API server's own."""
    words = ["create", "token", account, *(["--audience", audience] if audience else [])]
    return installation.kubectl(*words).strip()
