"""What the chart renders: fresh, least privilege, restricted, in step with the programs it starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hermes_operator import names
from hermes_operator.metrics import Metrics
from hermes_operator.settings import Settings
from hermes_runtime import document
from hermes_runtime.cli.__main__ import parser
from hermes_runtime.evaluate.cluster import CA_ANNOTATION
from tests.cluster.binaries import missing_go, programs
from tests.cluster.fixtures import require

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "hermes"
GOLDEN = Path(__file__).parent / "goldens" / "chart.yaml"
EVERYTHING: dict[str, Any] = {
    "namespaces": ["team-a", "team-b"],
    "images": {
        "registry": "mirror.example:5000/hermes",
        "pullSecrets": ["mirror"],
        "operator": {"digest": "sha256:" + "a" * 64},
        "runtime": {"tag": "1.2.3", "digest": "sha256:" + "b" * 64},
    },
    "operator": {"replicas": 2, "maxConcurrentRuns": 4, "logFormat": "text"},
    "store": {
        "tls": {"secret": "store-tls", "caConfigMap": "store-ca"},
        "readers": ["system:serviceaccount:ops:auditor"],
        "podDisruptionBudget": {"enabled": True},
        "persistence": {"storageClass": "fast"},
        "nodeSelector": {"disk": "ssd"},
    },
    "modelCache": {
        "enabled": True,
        "accessModes": ["ReadWriteMany"],
        "hubTokenSecret": "hub",
        "hubEndpoint": "https://hub.example",
    },
    "backup": {"enabled": True},
    "monitoring": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
    },
}
Object = dict[str, Any]


@pytest.fixture(scope="session")
def helm() -> Path:
    """The helm of this machine, else the one that test clusters are made with."""
    found = shutil.which("helm")
    if found is not None:
        return Path(found)
    require(missing_go())
    return programs().path("helm")


def template(helm: Path, folder: Path, values: Object) -> subprocess.CompletedProcess[str]:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    homes = {f"HELM_{name}_HOME": str(folder) for name in ("CACHE", "CONFIG", "DATA")}
    return subprocess.run(
        [helm, "template", "hermes", CHART, "--namespace", "hermes", "--values", file],
        env={**os.environ, **homes},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def objects(helm: Path, folder: Path, values: Object) -> list[Object]:
    done = template(helm, folder, values)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


@pytest.fixture(scope="session", params=["default", "everything"])
def rendered(helm: Path, tmp_path_factory: pytest.TempPathFactory, request) -> list[Object]:
    values = {"default": {}, "everything": EVERYTHING}[request.param]
    return objects(helm, tmp_path_factory.mktemp("helm"), values)


@pytest.fixture(scope="session")
def default(helm: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    return objects(helm, tmp_path_factory.mktemp("helm"), {})


@pytest.fixture(scope="session")
def everything(helm: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    return objects(helm, tmp_path_factory.mktemp("helm"), EVERYTHING)


def one(found: list[Object], kind: str, name: str, namespace: str | None = None) -> Object:
    matching = [
        each
        for each in found
        if each["kind"] == kind
        and each["metadata"]["name"] == name
        and (namespace is None or each["metadata"].get("namespace") == namespace)
    ]
    assert len(matching) == 1, f"{len(matching)} objects {kind} {name}"
    return matching[0]


def pods(found: list[Object]) -> dict[str, Object]:
    """Pod specs, by the kind and name of what makes the pod."""
    paths = {
        "Pod": ("spec",),
        "Deployment": ("spec", "template", "spec"),
        "StatefulSet": ("spec", "template", "spec"),
        "CronJob": ("spec", "jobTemplate", "spec", "template", "spec"),
    }
    specs = {}
    for each in found:
        if each["kind"] in paths:
            spec = each
            for part in paths[each["kind"]]:
                spec = spec[part]
            specs[f"{each['kind']} {each['metadata']['name']}"] = spec
    return specs


def containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def leaves(values: Object, path: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        place = f"{path}.{key}" if path else key
        is_map_of_the_users = isinstance(value, dict) and re.search(
            r"(resources|labels|nodeSelector|\.spec)$", place
        )
        if isinstance(value, dict) and not is_map_of_the_users:
            yield from leaves(value, place)
        else:
            yield place, value


# What is committed is fresh


def test_the_definition_in_the_chart_is_fresh(tmp_path):
    made = tmp_path / "crd.yaml"
    subprocess.run(["sh", ROOT / "charts" / "crd.sh", made], check=True, timeout=10)
    committed = CHART / "templates" / "crd" / "hermesruns.hermes.dev.yaml"
    assert committed.read_text() == made.read_text(), "stale: run `sh charts/crd.sh`"


def test_the_definition_is_rendered_as_it_is_and_outlives_the_release(default):
    found = one(default, "CustomResourceDefinition", "hermesruns.hermes.dev")
    assert found["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert found == yaml.safe_load((ROOT / "crds" / "hermesruns.hermes.dev.yaml").read_text())


def test_the_definition_can_be_left_to_others(helm, tmp_path):
    kinds = {each["kind"] for each in objects(helm, tmp_path, {"crds": {"enabled": False}})}
    assert "CustomResourceDefinition" not in kinds


def test_the_default_rendering_is_the_golden_one(default):
    """`python -m tests.contract.test_chart` writes it anew."""
    golden = list(yaml.safe_load_all(GOLDEN.read_text()))
    assert in_order(default) == golden


def in_order(found: list[Object]) -> list[Object]:
    """Without the definition, which is generated, and the script, which is a file beside."""
    kept = [each for each in found if each["kind"] not in ("CustomResourceDefinition", "ConfigMap")]
    return sorted(kept, key=lambda e: (e["kind"], e["metadata"]["name"], e["metadata"].get("namespace", "")))


def test_every_value_is_explained_and_has_a_place_in_the_schema():
    text = (CHART / "values.yaml").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())
    lines = text.splitlines()
    for place, _ in leaves(yaml.safe_load(text)):
        key = place.rpartition(".")[2]
        explained = [
            number
            for number, line in enumerate(lines)
            if re.match(rf" *{key}:", line) and "# -- " in lines[number - 1]
        ]
        assert explained, f"{place} has no `# --` comment"
        found = schema
        for part in place.split("."):
            assert part in found["properties"], f"{place} is not in the schema"
            assert found["additionalProperties"] is False
            found = found["properties"][part]


# Who may do what


def test_no_role_has_a_star_or_reads_a_secret(rendered):
    roles = [each for each in rendered if each["kind"] in ("Role", "ClusterRole")]
    assert roles
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            assert not {"secrets", "pods/exec", "roles", "rolebindings"} & set(rule["resources"])


def test_only_the_store_is_bound_beyond_namespaces_and_only_to_ask_about_tokens(rendered):
    bindings = [each for each in rendered if each["kind"] == "ClusterRoleBinding"]
    assert [each["subjects"][0]["name"] for each in bindings] == ["hermes-store"]
    role = one(rendered, "ClusterRole", bindings[0]["roleRef"]["name"])
    assert role["rules"] == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    ]


def test_the_operator_has_a_role_in_each_served_namespace_and_no_other(everything):
    places = {
        each["metadata"]["namespace"]
        for each in everything
        if each["kind"] == "Role" and each["metadata"]["name"] == "hermes-operator"
    }
    assert places == {"team-a", "team-b"}
    for place in places:
        binding = one(everything, "RoleBinding", "hermes-operator", place)
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": "hermes-operator", "namespace": "hermes"}
        ]


def test_a_token_of_the_api_is_only_where_it_is_used(rendered):
    with_token = {name for name, spec in pods(rendered).items() if spec.get("automountServiceAccountToken")}
    assert with_token == {"Deployment hermes-operator", "StatefulSet hermes-store", "Pod hermes-verify"}
    for name, spec in pods(rendered).items():
        assert spec["automountServiceAccountToken"] is (name in with_token), "unset means a token"


# Pods


def test_every_pod_is_restricted(rendered):
    """The profile `restricted` of Pod Security, and a root file system that cannot be written."""
    for name, spec in pods(rendered).items():
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] == 10001, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        for volume in spec["volumes"]:
            allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
            assert set(volume) - {"name"} <= allowed, name
        for container in containers(spec):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, name
            assert container["resources"]["limits"]["memory"], name


def test_images_come_from_the_mirror_by_digest_with_its_secret(everything):
    operator, runtime = (
        f"mirror.example:5000/hermes/hermes-{name}@sha256:" for name in ("operator", "runtime")
    )
    for name, spec in pods(everything).items():
        assert spec["imagePullSecrets"] == [{"name": "mirror"}], name
        for container in containers(spec):
            wanted = operator + "a" * 64 if name == "Deployment hermes-operator" else runtime + "b" * 64
            assert container["image"] == wanted


def test_images_are_named_by_the_charts_version_unless_told_otherwise(default):
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    used = {container["image"] for spec in pods(default).values() for container in containers(spec)}
    assert used == {f"hermes-operator:{version}", f"hermes-runtime:{version}"}


# In step with the programs


def test_the_operator_reads_the_settings_that_it_is_given(everything):
    [container] = pods(everything)["Deployment hermes-operator"]["containers"]
    environment = {each["name"]: each.get("value", "hermes-operator-0") for each in container["env"]}
    assert Settings.from_env(environment) == Settings(
        namespaces=("team-a", "team-b"),
        runtime_image="mirror.example:5000/hermes/hermes-runtime@sha256:" + "b" * 64,
        image_pull_secrets=("mirror",),
        store_address="hermes-store.hermes.svc:7443",
        store_ca_configmap="store-ca",
        model_claim="hermes-models",
        hub_token_secret="hub",
        hub_endpoint="https://hub.example",
        max_concurrent_runs=4,
        lease_namespace="hermes",
        pod_name="hermes-operator-0",
        log_format="text",
    )
    source = (ROOT / "operator" / "hermes_operator" / "settings.py").read_text()
    known = set(re.findall(r'^ +"""(HERMES_[A-Z_]+):', source, flags=re.MULTILINE))
    assert environment.keys() <= known


def test_the_commands_are_ones_that_hermes_knows(rendered):
    parse = parser().parse_args
    for name, spec in pods(rendered).items():
        for container in containers(spec):
            if "command" not in container and name != "Deployment hermes-operator":
                parse(container["args"])


def test_the_store_serves_where_it_is_looked_for_and_asks_for_the_tokens_that_runs_bring(rendered):
    [container] = pods(rendered)["StatefulSet hermes-store"]["containers"]
    arguments = parser().parse_args(container["args"])
    service = one(rendered, "Service", "hermes-store")
    assert arguments.listen.endswith(f":{service['spec']['ports'][0]['port']}")
    assert arguments.audience == names.TOKEN_AUDIENCE
    assert "system:serviceaccount:hermes:hermes-reader" in arguments.reader
    labels = one(rendered, "StatefulSet", "hermes-store")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()


def test_the_store_shows_its_certificate_where_it_has_one(default, everything):
    def arguments(found: list[Object]) -> Any:
        return parser().parse_args(pods(found)["StatefulSet hermes-store"]["containers"][0]["args"])

    assert arguments(default).tls_certificate is None
    mounts = pods(everything)["StatefulSet hermes-store"]["containers"][0]["volumeMounts"]
    folder = next(mount["mountPath"] for mount in mounts if mount["name"] == "tls")
    assert arguments(everything).tls_certificate == Path(folder, "tls.crt")
    assert arguments(everything).tls_key == Path(folder, "tls.key")


def test_what_hermes_fetch_looks_for_is_there(default, everything):
    fetch = parser().parse_args(["fetch", "first"])
    service, port = fetch.store.split("/")
    for found in (default, everything):
        assert one(found, "Service", service)["spec"]["ports"][0]["port"] == int(port)
        assert one(found, "ServiceAccount", fetch.reader)
    annotations = one(everything, "Service", service)["metadata"]["annotations"]
    assert annotations == {CA_ANNOTATION: "store-ca"}
    assert "annotations" not in one(default, "Service", service)["metadata"]


def test_the_stores_fence_lets_in_runs_of_the_served_namespaces_and_backups(everything):
    [rule] = one(everything, "NetworkPolicy", "hermes-store")["spec"]["ingress"]
    runs = {
        "matchLabels": {names.LABEL_MANAGED_BY: names.MANAGER, names.LABEL_COMPONENT: names.COMPONENT_RUN}
    }
    served = [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": place}}, "podSelector": runs}
        for place in ("team-a", "team-b")
    ]
    assert rule["from"][:2] == served
    cron = one(everything, "CronJob", "hermes-backup")
    labels = cron["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    assert rule["from"][2]["podSelector"]["matchLabels"].items() <= labels.items()
    assert len(rule["from"]) == 3


def test_alerts_and_the_dashboard_ask_for_metrics_that_the_operator_has(everything):
    had = set(re.findall(r"^# TYPE (hermes_\w+)", Metrics().exposition().decode(), flags=re.MULTILINE))
    [group] = one(everything, "PrometheusRule", "hermes-operator")["spec"]["groups"]
    board = json.loads(one(everything, "ConfigMap", "hermes-dashboard")["data"]["hermes.json"])
    asked = [rule["expr"] for rule in group["rules"]]
    asked += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    used = {name for expression in asked for name in re.findall(r"\bhermes_\w+", expression)}
    assert used
    assert {re.sub(r"_bucket$", "", name) for name in used} <= had


def test_the_run_that_verifies_the_installation_is_a_document(default):
    [container] = pods(default)["Pod hermes-verify"]["containers"]
    spec = json.loads(next(each["value"] for each in container["env"] if each["name"] == "SPEC"))
    run = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": "hermes-verify"},
        "spec": spec,
    }
    assert document.read(run).metadata.name == "hermes-verify"
    script = one(default, "ConfigMap", "hermes-verify")["data"]["verify.py"]
    compile(script, "verify.py", "exec")


# What is refused before anything is installed


@pytest.mark.parametrize(
    ("values", "told"),
    [
        pytest.param(
            {"images": {"runtime": {"tag": "latest"}}}, "/images/runtime/tag", id="a tag that moves"
        ),
        pytest.param(
            {"images": {"operator": {"digest": "sha256:12"}}}, "/images/operator/digest", id="no digest"
        ),
        pytest.param(
            {"store": {"tls": {"secret": "s"}}}, "/store/tls", id="a certificate that none can check"
        ),
        pytest.param({"store": {"readers": ["admin"]}}, "/store/readers", id="a reader that is no account"),
        pytest.param({"operator": {"replicas": -1}}, "/operator/replicas", id="fewer than none"),
        pytest.param({"namespaces": ["Team"]}, "/namespaces", id="no namespace's name"),
        pytest.param({"backup": {"schedule": "daily"}}, "/backup/schedule", id="no schedule"),
        pytest.param({"replicas": 2}, "replicas", id="a value that nothing reads"),
    ],
)
def test_wrong_values_are_refused_by_name(helm, tmp_path, values, told):
    done = template(helm, tmp_path, values)
    assert done.returncode != 0
    assert told in done.stderr


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        anew = in_order(objects(programs().path("helm"), Path(scratch), {}))
    GOLDEN.write_text(yaml.safe_dump_all(anew, sort_keys=False))
