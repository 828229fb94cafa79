"""A run's objects: what they are to the letter, and what holds of all of them.

`python -m tests.unit.test_manifests` writes the goldens anew; read the difference before you commit it.
"""

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hermes_operator.crd import FIXED
from hermes_operator.manifests import problems_on_a_cluster, pull_job, run_account, run_job, run_policy
from hermes_operator.manifests.pod import IN_DOCUMENT, model_path
from hermes_operator.names import ATTEMPT_MAX, LABEL_QUEUE
from hermes_operator.observed import Installation, Run, RunKey
from hermes_operator.status import Manifest, Status
from hermes_runtime.document import ModelSource, parse, read
from hermes_runtime.models.tree import cached
from tests.crd_cases import COMMIT, EVERYTHING, MINIMAL, changed
from tests.pod_security import violations

GOLDENS = Path(__file__).with_name("goldens")

PLAIN = Installation(runtime_image="hermes-runtime:1")
WHOLE = Installation(
    runtime_image="registry.example/hermes-runtime@sha256:00",
    image_pull_policy="Always",
    image_pull_secrets=("registry",),
    store_address="hermes-store.hermes-system.svc:7443",
    store_ca_configmap="hermes-store-ca",
    model_claim="hermes-models",
    hub_token_secret="hub",
    hub_endpoint="https://hub.example",
)


def run_of(document, labels=None) -> Run:
    known = read(document)
    return Run(
        key=RunKey("team-a", known.metadata.name),
        uid="01234567-89ab-cdef-0123-456789abcdef",
        generation=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        is_deleted=False,
        labels=labels or {},
        document=known,
        status=Status(),
    )


def objects(name: str) -> list[Manifest]:
    """What the golden of that name holds."""
    if name == "least":
        run = run_of(MINIMAL)
        return [run_account(run), run_policy(run, PLAIN), run_job(run, PLAIN, 1)]
    run = run_of(EVERYTHING, {LABEL_QUEUE: "gpus", "team": "a"})
    return [run_account(run), run_policy(run, WHOLE), run_job(run, WHOLE, 2), pull_job(run, WHOLE)]


@pytest.mark.parametrize("name", ["least", "everything"])
def test_a_runs_objects_are_these(name):
    assert objects(name) == list(yaml.safe_load_all(GOLDENS.joinpath(f"{name}.yaml").read_text()))


def pods(run: Run, installation: Installation) -> list[Manifest]:
    jobs = [run_job(run, installation, 1)]
    if run.document.spec.model.source.repo is not None:  # type: ignore[union-attr]
        jobs.append(pull_job(run, installation))
    return [job["spec"]["template"]["spec"] for job in jobs]


QUANTITIES = st.one_of(st.integers(0, 64), st.sampled_from(["250m", "1.5", "2Gi", "300M"]))
RESOURCES = st.fixed_dictionaries(
    {},
    optional={
        "limits": st.dictionaries(st.sampled_from(["nvidia.com/gpu", "amd.com/gpu"]), st.integers(1, 8)),
        "requests": st.dictionaries(st.sampled_from(["cpu", "memory", "ephemeral-storage"]), QUANTITIES),
    },
)
SOURCES = st.one_of(
    st.just({"bundled": "repair"}),
    st.builds(lambda path: {"path": path}, st.from_regex(r"[a-z$()]{1,20}(/[a-z$]{1,9})?", fullmatch=True)),
    st.just({"repo": "owner/name", "revision": COMMIT}),
)
RUN_NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True)


@st.composite
def runs(draw) -> Run:
    """Any run that a cluster takes."""
    changes = {
        "metadata.name": draw(RUN_NAMES),
        "spec.hermetic": draw(st.booleans()),
        "spec.suspend": draw(st.booleans()),
        "spec.parallelism": draw(st.integers(1, 2**31 - 1)),
        "spec.shardSize": draw(st.integers(1, 200)),
        "spec.evaluate.instances.mutants.count": draw(st.integers(1, 100_000)),
        "spec.model.source": draw(SOURCES),
        "spec.pod.resources": {name: draw(RESOURCES) for name in ("model", "agents", "tester", "driver")},
        "spec.pod.tolerations": draw(st.lists(st.just({"operator": "Exists"}), max_size=2)),
    }
    labels = draw(st.sampled_from([{}, {LABEL_QUEUE: "queue"}]))
    return run_of(changed(MINIMAL, changes), labels)


INSTALLATIONS = st.builds(
    Installation,
    runtime_image=st.just("image:1"),
    image_pull_secrets=st.sampled_from([(), ("a", "b")]),
    store_address=st.sampled_from(["store:7443", "store.ns:1", "store.ns.svc.cluster.local:2", "10.0.0.1:3"]),
    store_ca_configmap=st.sampled_from(["", "ca"]),
    model_claim=st.just("models"),
    hub_token_secret=st.sampled_from(["", "hub"]),
    hub_endpoint=st.sampled_from(["", "https://hub.example"]),
)


@given(run=runs(), installation=INSTALLATIONS)
def test_every_pod_passes_the_restricted_standard(run, installation):
    for pod in pods(run, installation):
        assert not list(violations(pod))
        assert all(c["securityContext"]["readOnlyRootFilesystem"] for c in containers(pod))
        assert pod["automountServiceAccountToken"] is False


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


@given(run=runs(), installation=INSTALLATIONS)
def test_no_container_but_the_relay_has_the_token_and_all_of_them_what_they_mount(run, installation):
    for pod in pods(run, installation):
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounted = {c["name"]: {mount["name"] for mount in c["volumeMounts"]} for c in containers(pod)}
        assert set().union(*mounted.values()) == volumes
        assert {name for name, mounts in mounted.items() if "token" in mounts} <= {"store"}


@given(run=runs(), installation=INSTALLATIONS)
def test_the_model_cache_is_written_by_a_pull_alone(run, installation):
    for pod in pods(run, installation):
        for container in containers(pod):
            for mount in container["volumeMounts"]:
                if mount["name"] == "models":
                    assert mount.get("readOnly", False) == (container["name"] != "pull")


@given(name=RUN_NAMES, attempt=st.integers(1, ATTEMPT_MAX), index=st.integers(0, 99_999))
def test_names_of_pods_fit_63_characters(name, attempt, index):
    run = run_of(changed(EVERYTHING, {"metadata.name": name}))
    job = run_job(run, WHOLE, attempt)["metadata"]["name"]
    pull = pull_job(run, WHOLE)["metadata"]["name"]
    assert max(len(f"{job}-{index}-abcde"), len(f"{pull}-abcde")) <= 63


@given(one=RUN_NAMES, other=RUN_NAMES, attempt=st.integers(1, ATTEMPT_MAX))
def test_no_run_takes_the_name_of_another_runs_job(one, other, attempt):
    names = [
        pull_job(run_of(changed(EVERYTHING, {"metadata.name": n})), WHOLE)["metadata"]["name"]
        for n in (one, other)
    ]
    job = run_job(run_of(changed(MINIMAL, {"metadata.name": one})), PLAIN, attempt)["metadata"]["name"]
    assert job not in names
    assert (names[0] == names[1]) == (one == other)


@given(run=runs())
def test_every_instance_is_in_one_shard_and_no_shard_is_empty(run):
    spec = run_job(run, WHOLE, 1)["spec"]
    count, size = run.document.spec.evaluate.instances.mutants.count, run.document.spec.shard_size
    assert (spec["completions"] - 1) * size < count <= spec["completions"] * size
    assert spec["parallelism"] == min(run.document.spec.parallelism, math.ceil(count / size))


@given(run=runs())
def test_a_job_waits_where_the_run_is_suspended_or_a_queue_is_to_admit_it(run):
    job = run_job(run, WHOLE, 1)
    assert job["spec"]["suspend"] == (run.document.spec.suspend or LABEL_QUEUE in run.labels)
    assert job["metadata"]["labels"].get(LABEL_QUEUE) == run.labels.get(LABEL_QUEUE)


def as_kubernetes_reads(value: str) -> str:
    """$$ is one $; there is no $(NAME) left to be replaced."""
    assert "$(" not in value.replace("$$", "")
    return value.replace("$$", "$")


@given(run=runs())
def test_the_driver_is_told_the_document_but_for_what_can_be_edited(run):
    (driver,) = run_job(run, WHOLE, 7)["spec"]["template"]["spec"]["containers"]
    given_to = {one["name"]: as_kubernetes_reads(one["value"]) for one in driver["env"]}
    told = parse(given_to["HERMES_RUN_DOCUMENT"])
    assert "\n" not in given_to["HERMES_RUN_DOCUMENT"]
    assert set(json.loads(given_to["HERMES_RUN_DOCUMENT"])["spec"]) < set(FIXED)
    for field in IN_DOCUMENT:
        assert getattr(told.spec, field) == getattr(run.document.spec, field)
    assert (told.metadata.name, given_to["HERMES_ATTEMPT"]) == (run.key.name, "7")


@given(run=runs())
def test_the_model_process_is_told_where_the_model_is(run):
    arguments = run_job(run, WHOLE, 1)["spec"]["template"]["spec"]["initContainers"][1]["args"]
    path = as_kubernetes_reads(arguments[arguments.index("--path") + 1])
    assert path == model_path(run.document.spec.model.source)


@pytest.mark.parametrize(
    ("edit", "is_same"),
    [
        ({"spec.parallelism": 9, "spec.suspend": True, "spec.attempt": 3}, True),
        ({"spec.activeDeadlineSeconds": 5, "spec.preRunningDeadlineSeconds": 5}, True),
        ({"spec.ttlSecondsAfterFinished": 5, "metadata.labels": {"a": "b"}}, True),
        ({"spec.seed": 3}, False),
    ],
)
def test_no_edit_that_is_allowed_changes_the_pods_of_a_job(edit, is_same):
    before, after = (run_job(run_of(d), PLAIN, 1) for d in (MINIMAL, changed(MINIMAL, edit)))
    assert (before["spec"]["template"] == after["spec"]["template"]) is is_same


@pytest.mark.parametrize("hermetic", [True, False])
def test_processes_seal_themselves_unless_the_run_is_not_hermetic(hermetic):
    pod = run_job(run_of(changed(MINIMAL, {"spec.hermetic": hermetic})), PLAIN, 1)["spec"]["template"]["spec"]
    sealed = {container["name"] for container in pod["initContainers"] if "--seal" in container["args"]}
    assert sealed == ({"model", "planner", "coder", "tester"} if hermetic else set())


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("hermes-store:7443", {"podSelector"}),
        ("hermes-store.hermes:7443", {"podSelector", "namespaceSelector"}),
        ("10.0.0.7:7443", {"ipBlock"}),
        ("[fd00::7]:7443", {"ipBlock"}),
    ],
)
def test_the_policy_lets_out_to_the_store_wherever_it_is(address, peer):
    rule = run_policy(run_of(MINIMAL), Installation(runtime_image="i", store_address=address))["spec"][
        "egress"
    ][0]
    assert rule["ports"] == [{"protocol": "TCP", "port": 7443}]
    assert set(rule["to"][0]) == peer


def test_the_policy_selects_a_runs_pods_and_no_pull():
    run = run_of(EVERYTHING)
    selector = run_policy(run, WHOLE)["spec"]["podSelector"]["matchLabels"].items()
    assert selector <= run_job(run, WHOLE, 1)["spec"]["template"]["metadata"]["labels"].items()
    assert not selector <= pull_job(run, WHOLE)["spec"]["template"]["metadata"]["labels"].items()


def test_a_pull_puts_the_model_where_the_runtime_looks_for_it():
    source = ModelSource(repo="owner/name", revision=COMMIT)
    assert model_path(source) == str(cached(Path("/models"), "owner/name", COMMIT))


@pytest.mark.parametrize(
    ("changes", "installation", "said"),
    [
        ({}, PLAIN, []),
        ({"spec.model.source": {"repo": "a/b", "revision": COMMIT}}, WHOLE, []),
        ({"spec.model.source": {"path": "team/model"}}, WHOLE, []),
        ({"spec.model.source": {"path": "team/model"}}, PLAIN, ["spec.model.source: this installation has"]),
        ({"spec.model.source": {"path": "/etc"}}, WHOLE, ["spec.model.source.path: /etc is outside"]),
        ({"spec.model.source": {"path": "a/../../b"}}, WHOLE, ["spec.model.source.path: a/../../b is out"]),
        ({"spec.model.device": "mps"}, PLAIN, ["spec.model.device: "]),
        ({"spec.evaluate.sandbox": "bubblewrap"}, PLAIN, ["spec.evaluate.sandbox: "]),
        ({"spec.evaluate.instances": {"file": "x.jsonl"}}, PLAIN, ["spec.evaluate.instances.file: "]),
        (
            {"spec.evaluate": {"instances": {"file": "x"}, "sandbox": "bubblewrap"}},
            PLAIN,
            ["spec.evaluate.instances.file: ", "spec.evaluate.sandbox: "],
        ),
    ],
)
def test_what_cannot_be_done_on_a_cluster_is_said(changes, installation, said):
    found = problems_on_a_cluster(read(changed(MINIMAL, changes)), installation)
    assert [problem[: len(start)] for problem, start in zip(found, said, strict=True)] == said


def test_the_owner_of_every_object_is_the_run():
    for one in objects("everything"):
        (owner,) = one["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("HermesRun", "tiny", True)
        assert one["metadata"]["namespace"] == "team-a"


if __name__ == "__main__":
    for golden in ("least", "everything"):
        text = yaml.safe_dump_all(objects(golden), sort_keys=False, width=110)
        GOLDENS.joinpath(f"{golden}.yaml").write_text(text)
