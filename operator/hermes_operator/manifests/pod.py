"""The pods of a run and of a pull: containers, volumes, walls.

A run's pod is its process tree: relay, model, planner, coder and tester are native sidecars, each started
once the one before is ready; the driver is the main container, so the pod ends when the driver does. They
talk over Unix sockets in one memory volume. Only the relay has the token for the store, and only it may
open a socket of the network. Decided here: what each process is given. Not decided: what it does with it.
"""

from __future__ import annotations

import json

from hermes_operator.manifests.owned import document_of
from hermes_operator.names import TOKEN_AUDIENCE, account_name
from hermes_operator.observed import Installation, Run
from hermes_operator.status import Manifest
from hermes_runtime.document import HermesRun, ModelSource, Resources, Spec

STORE, MODEL, PLANNER, CODER, TESTER = "store", "model", "planner", "coder", "tester"
DRIVER, PULL = "driver", "pull"

USER = 10001
SOCKETS = "/run/hermes"
WORK = "/work"
MODELS = "/models"
CACHE = "/opt/hermes/cache"
TOKEN_FOLDER = "/var/run/secrets/hermes"
CA_FOLDER = "/etc/hermes/store-ca"
TERMINATION_LOG = "/dev/termination-log"

TOKEN_SECONDS = 3600
SOCKETS_BYTES = "16Mi"
STARTUP_SECONDS_MAX = 86_400
"""Kept out of the way: the operator's own deadline ends a pod that does not come up, and says why."""

RELAY_RESOURCES: Manifest = {"requests": {"cpu": "50m", "memory": "128Mi"}}
PULL_RESOURCES: Manifest = {"requests": {"cpu": "250m", "memory": "512Mi"}}

IN_DOCUMENT = ("seed", "hermetic", "model", "evaluate", "shard_size")
"""Fields of the spec that a pod is told. None of them can be edited: a Job's pod template never changes."""


def run_pod(run: Run, installation: Installation, attempt: int) -> Manifest:
    """spec of the pods of one attempt."""
    document = document_of(run)
    spec, part = document.spec, document.spec.pod
    resources = part.resources
    sidecars = [
        _sidecar(STORE, _relay(installation), RELAY_RESOURCES),
        _sidecar(MODEL, _model(spec), _asked(resources.model)),
        _sidecar(PLANNER, _agent(PLANNER, spec), _asked(resources.agents)),
        _sidecar(CODER, _agent(CODER, spec), _asked(resources.agents)),
        _sidecar(TESTER, _agent(TESTER, spec), _asked(resources.tester)),
    ]
    driver = _container(DRIVER, _driver(run), _asked(resources.driver))
    driver["env"] += [
        {"name": "HERMES_RUN_DOCUMENT", "value": _literal(_told(document))},
        {"name": "HERMES_ATTEMPT", "value": str(attempt)},
    ]
    for container in (*sidecars, driver):
        container |= {"image": installation.runtime_image, "imagePullPolicy": installation.image_pull_policy}
        container["volumeMounts"] += _mounts(container["name"], spec, installation)
    volumes: list[Manifest] = [
        {"name": "sockets", "emptyDir": {"medium": "Memory", "sizeLimit": SOCKETS_BYTES}},
        {"name": "work", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": _token()}]}},
    ]
    if installation.store_ca_configmap:
        volumes.append({"name": "store-ca", "configMap": {"name": installation.store_ca_configmap}})
    if not spec.model.source.bundled:
        volumes.append({"name": "models", "persistentVolumeClaim": _claim(installation, is_read_only=True)})
    pod: Manifest = {
        **_walls(installation),
        "serviceAccountName": account_name(run.key.name),
        "initContainers": sidecars,
        "containers": [driver],
        "volumes": volumes,
        "nodeSelector": dict(part.node_selector),
        "tolerations": [
            toleration.model_dump(mode="json", by_alias=True, exclude_none=True)
            for toleration in part.tolerations
        ],
        "priorityClassName": part.priority_class_name,
        "runtimeClassName": part.runtime_class_name,
    }
    return {key: value for key, value in pod.items() if value not in (None, [], {})}


def pull_pod(run: Run, installation: Installation) -> Manifest:
    """spec of the pod that pulls a model: the only one that may talk to the world, and it runs no model."""
    source = document_of(run).spec.model.source
    assert source.repo, "only models of a Hub are pulled"
    arguments = ["model", "pull", source.repo, "--revision", source.revision or ""]
    arguments += ["--to", model_path(source), "--termination-log", TERMINATION_LOG]
    container = _container(PULL, arguments, PULL_RESOURCES)
    container |= {"image": installation.runtime_image, "imagePullPolicy": installation.image_pull_policy}
    if installation.hub_token_secret:
        secret = {"name": installation.hub_token_secret, "key": "token", "optional": True}
        container["env"].append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": secret}})
    if installation.hub_endpoint:
        container["env"].append({"name": "HF_ENDPOINT", "value": installation.hub_endpoint})
    container["volumeMounts"].append({"name": "models", "mountPath": MODELS})
    return {
        **_walls(installation),
        "containers": [container],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "models", "persistentVolumeClaim": _claim(installation, is_read_only=False)},
        ],
    }


def model_path(source: ModelSource) -> str:
    """What the model process is told to load: a bundled model's name, or a place in the model cache."""
    if source.repo is not None:
        return f"{MODELS}/{source.repo.replace('/', '--')}@{source.revision}"
    return source.bundled or f"{MODELS}/{source.path}"


def _relay(installation: Installation) -> list[str]:
    command = ["store", "relay", "--socket", f"{SOCKETS}/{STORE}", "--to", installation.store_address]
    command += ["--token-file", f"{TOKEN_FOLDER}/token"]
    if installation.store_ca_configmap:
        command += ["--ca-file", f"{CA_FOLDER}/ca.crt"]
    return [*command, "--ready-file", _ready_file(STORE)]


def _model(spec: Spec) -> list[str]:
    part = spec.model
    command = ["model", "serve", "--socket", f"{SOCKETS}/{MODEL}", "--backend", part.backend.value]
    command += ["--path", model_path(part.source), "--device", part.device]
    command += ["--context-tokens", str(part.context_tokens), "--slots", str(part.slots)]
    if part.quantization != "none":
        command += ["--quantization", part.quantization]
    return [*command, *_seal(spec), "--ready-file", _ready_file(MODEL)]


def _agent(role: str, spec: Spec) -> list[str]:
    command = ["agent", "serve", role, "--socket", f"{SOCKETS}/{role}"]
    command += ["--store", f"{SOCKETS}/{STORE}", "--model", f"{SOCKETS}/{MODEL}", "--sandbox", "landlock"]
    return [*command, *_seal(spec), "--ready-file", _ready_file(role)]


def _driver(run: Run) -> list[str]:
    command = ["shard", "--run-id", run.run_id, "--sockets", SOCKETS, "--work", WORK]
    return [*command, "--termination-log", TERMINATION_LOG]


def _seal(spec: Spec) -> list[str]:
    return ["--seal"] if spec.hermetic else []


def _ready_file(name: str) -> str:
    return f"{SOCKETS}/ready/{name}"


def _told(document: HermesRun) -> str:
    """The document as the driver reads it, in one line."""
    told = document.model_dump(
        mode="json",
        by_alias=True,
        exclude_none=True,
        include={"api_version": True, "kind": True, "metadata": {"name"}, "spec": set(IN_DOCUMENT)},
    )
    return json.dumps(told, separators=(",", ":"), ensure_ascii=False)


def _literal(text: str) -> str:
    """Text as Kubernetes must be given it: it would put variables in for $(NAME)."""
    return text.replace("$", "$$")


def _sidecar(name: str, arguments: list[str], resources: Manifest) -> Manifest:
    """A container that runs as long as the driver does; the next starts once its file is there."""
    return {
        **_container(name, arguments, resources),
        "restartPolicy": "Always",
        # it writes no message of its own: why it ended stands at the end of its log
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "startupProbe": {
            "exec": {"command": ["test", "-f", _ready_file(name)]},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": STARTUP_SECONDS_MAX,
        },
    }


def _container(name: str, arguments: list[str], resources: Manifest) -> Manifest:
    return {
        "name": name,
        "args": [_literal(argument) for argument in arguments],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "HERMES_CACHE", "value": CACHE}],
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # Each its own /tmp: what the tester's tests leave there is nobody else's.
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp", "subPath": name}],
    }


def _mounts(name: str, spec: Spec, installation: Installation) -> list[Manifest]:
    """What a container of a run sees beside its /tmp."""
    mounts: list[Manifest] = [{"name": "sockets", "mountPath": SOCKETS}]
    if name in (PLANNER, CODER, TESTER, DRIVER):
        mounts.append({"name": "work", "mountPath": WORK})
    if name == STORE:
        mounts.append({"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True})
        if installation.store_ca_configmap:
            mounts.append({"name": "store-ca", "mountPath": CA_FOLDER, "readOnly": True})
    if name in (MODEL, DRIVER) and not spec.model.source.bundled:
        mounts.append({"name": "models", "mountPath": MODELS, "readOnly": True})
    return mounts


def _walls(installation: Installation) -> Manifest:
    """What every pod has: no rights, no secrets of the cluster, an ordinary user."""
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **(
            {"imagePullSecrets": [{"name": name} for name in installation.image_pull_secrets]}
            if installation.image_pull_secrets
            else {}
        ),
    }


def _token() -> Manifest:
    return {"audience": TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"}


def _claim(installation: Installation, *, is_read_only: bool) -> Manifest:
    assert installation.model_claim, "refused before: problems_on_a_cluster"
    return {"claimName": installation.model_claim} | ({"readOnly": True} if is_read_only else {})


def _asked(resources: Resources) -> Manifest:
    asked = {"requests": dict(resources.requests), "limits": dict(resources.limits)}
    return {key: value for key, value in asked.items() if value}
