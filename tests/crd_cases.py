"""What HermesRun's rules refuse and allow: documents and edits, each with a part of the answer.

The run document's own checks and the rules of the custom resource definition must say the same; the tests
of both, one of them against a real API server, go through these tables.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

EXAMPLES = sorted(Path(__file__).resolve().parents[1].joinpath("examples").glob("*.yaml"))

Document = dict[str, Any]

MINIMAL: Document = {
    "apiVersion": "hermes.dev/v1alpha1",
    "kind": "HermesRun",
    "metadata": {"name": "tiny"},
    "spec": {"evaluate": {"instances": {"mutants": {"count": 3}}}},
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"

EVERYTHING: Document = {
    **MINIMAL,
    "spec": {
        "seed": 2**63 - 1,
        "hermetic": False,
        "model": {
            "source": {"repo": "owner/name", "revision": COMMIT},
            "backend": "transformers",
            "quantization": "none",
            "device": "cuda",
            "dialect": "chat",
            "contextTokens": 4096,
            "slots": 8,
        },
        "evaluate": {
            "instances": {"mutants": {"count": 7, "packages": ["boltons"]}},
            "arms": ["PM", "A"],
            "control": "enumerate",
            "rounds": 2,
            "candidates": 3,
            "instanceTimeoutSeconds": 60,
            "sandbox": "landlock",
        },
        "parallelism": 2,
        "shardSize": 3,
        "pod": {
            "resources": {
                "model": {
                    "requests": {"cpu": "1500m", "memory": "16Gi", "nvidia.com/gpu": 1},
                    "limits": {"memory": "32Gi", "nvidia.com/gpu": 1},
                },
                "agents": {"limits": {"memory": "1Gi"}},
                "tester": {"requests": {"cpu": 2}},
                "driver": {"requests": {}, "limits": {"cpu": "0.5"}},
            },
            "nodeSelector": {"example.com/pool": "gpu"},
            "tolerations": [
                {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
                {"key": "pool", "value": "gpu", "effect": "NoExecute", "tolerationSeconds": 60},
                {"operator": "Exists"},
            ],
            "priorityClassName": "low",
            "runtimeClassName": "nvidia",
        },
        "attempt": 2,
        "suspend": True,
        "backoffLimit": 0,
        "activeDeadlineSeconds": 3600,
        "preRunningDeadlineSeconds": 600,
        "ttlSecondsAfterFinished": 0,
    },
}
"""A document that sets whatever can be set."""


def changed(document: Document, changes: dict[str, object]) -> Document:
    """The document with these values put at these paths: {"spec.seed": 7}."""
    made = copy.deepcopy(document)
    for path, value in changes.items():
        *above, last = path.split(".")
        here = made
        for key in above:
            here = here.setdefault(key, {})
        here[last] = copy.deepcopy(value)
    return made


def _examples() -> list[tuple[str, Document]]:
    return [(file.name, yaml.safe_load(file.read_text(encoding="utf-8"))) for file in EXAMPLES]


MODEL, POD, INSTANCES = "spec.model", "spec.pod", "spec.evaluate.instances"
RESOURCES = f"{POD}.resources.model"
TOLERATIONS = f"{POD}.tolerations"

ACCEPTED: list[tuple[str, Document]] = [
    ("the least", MINIMAL),
    ("whatever can be set", EVERYTHING),
    *_examples(),
    ("a name of 40 characters", changed(MINIMAL, {"metadata.name": "a" * 40})),
    ("a script", changed(MINIMAL, {MODEL: {"backend": "scripted", "source": {"path": "script.json"}}})),
    ("a limit alone, as large as the default request", changed(MINIMAL, {f"{RESOURCES}.limits": {"cpu": 1}})),
    (
        "equal amounts, written in two ways",
        changed(MINIMAL, {RESOURCES: {"requests": {"cpu": "1000m"}, "limits": {"cpu": 1}}}),
    ),
]

_REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("two sources of a model", {f"{MODEL}.source": {"bundled": "repair", "path": "m"}}, "exactly one of"),
    ("no source of a model", {f"{MODEL}.source": {}}, "exactly one of bundled, path, repo must be set"),
    ("a repository without revision", {f"{MODEL}.source": {"repo": "a/b"}}, "set together"),
    (
        "a revision without repository",
        {f"{MODEL}.source": {"bundled": "repair", "revision": COMMIT}},
        "set together",
    ),
    ("a branch for a revision", {f"{MODEL}.source": {"repo": "a/b", "revision": "main"}}, "revision"),
    ("a script that is nowhere", {f"{MODEL}.backend": "scripted"}, "a scripted model needs source.path"),
    ("two sources of instances", {f"{INSTANCES}.file": "x.jsonl"}, "exactly one of mutants, file"),
    ("no source of instances", {INSTANCES: {}}, "exactly one of mutants, file must be set"),
    ("an arm twice", {"spec.evaluate.arms": ["A", "PM", "A"]}, "arms named twice"),
    ("no arm", {"spec.evaluate.arms": []}, "spec.evaluate.arms"),
    ("an arm that is none", {"spec.evaluate.arms": ["B"]}, "spec.evaluate.arms"),
    (
        "more asked for than allowed",
        {RESOURCES: {"requests": {"memory": "2Gi"}, "limits": {"memory": "1G"}}},
        "a request is larger than its limit",
    ),
    (
        "less allowed than the default request",
        {f"{RESOURCES}.limits": {"memory": "512Mi"}},
        "a request is larger than its limit",
    ),
    ("half a device", {f"{RESOURCES}.limits": {"nvidia.com/gpu": "500m"}}, "counted in whole numbers"),
    ("a device in requests alone", {f"{RESOURCES}.requests": {"nvidia.com/gpu": 1}}, "stand in limits"),
    ("a resource that is none", {f"{RESOURCES}.limits": {"gpu": 1}}, "no resource: cpu, memory"),
    ("a quantity in no unit", {f"{RESOURCES}.limits": {"memory": "2Q"}}, f"{RESOURCES}.limits"),
    ("a broken number", {f"{RESOURCES}.limits": {"cpu": 1.5}}, f"{RESOURCES}.limits"),
    ("less than nothing", {f"{RESOURCES}.limits": {"cpu": -1}}, f"{RESOURCES}.limits"),
    ("a label that is none", {f"{POD}.nodeSelector": {"-a": "b"}}, "no label of a node"),
    ("a value beside Exists", {TOLERATIONS: [{"operator": "Exists", "value": "x"}]}, "has no value"),
    ("Equal to no key", {TOLERATIONS: [{"value": "x"}]}, "without key has operator Exists"),
    (
        "seconds of no eviction",
        {TOLERATIONS: [{"operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 1}]},
        "goes with effect NoExecute",
    ),
    ("a name too long", {"metadata.name": "a" * 41}, "at most 40 characters"),
    ("a name with a dot", {"metadata.name": "a.b"}, "is no name for a run"),
    ("attempt 0", {"spec.attempt": 0}, "spec.attempt"),
    ("attempt 100", {"spec.attempt": 100}, "spec.attempt"),
    ("a seed below 0", {"spec.seed": -1}, "spec.seed"),
    ("a seed of 64 bits", {"spec.seed": 2**63}, "spec.seed"),
    ("an unknown field", {"spec.sed": 1}, "spec.sed"),
    ("no evaluation", {"spec": {}}, "spec.evaluate"),
]

REFUSED = [(name, changed(MINIMAL, changes), part) for name, changes, part in _REFUSED]

EDITS_REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("another seed", {"spec.seed": 7}, "cannot be changed"),
    ("no longer hermetic", {"spec.hermetic": False}, "cannot be changed"),
    ("another model", {f"{MODEL}.source": {"path": "m"}}, "cannot be changed"),
    ("more slots", {f"{MODEL}.slots": 65}, "cannot be changed"),
    ("more instances", {f"{INSTANCES}.mutants.count": 4}, "cannot be changed"),
    ("fewer arms", {"spec.evaluate.arms": ["A"]}, "cannot be changed"),
    ("other shards", {"spec.shardSize": 3}, "cannot be changed"),
    ("other nodes", {f"{POD}.nodeSelector": {"a": "b"}}, "cannot be changed"),
    ("other resources", {f"{RESOURCES}.limits": {"memory": "8Gi"}}, "cannot be changed"),
    ("more retries", {"spec.backoffLimit": 3}, "cannot be changed"),
    ("an earlier attempt", {"spec.attempt": 1}, "attempt can only grow"),
]
"""Edits of MINIMAL at attempt 2."""

EDITS_ACCEPTED: list[tuple[str, dict[str, object]]] = [
    ("stopped", {"spec.suspend": True}),
    ("more pods", {"spec.parallelism": 4}),
    ("more time", {"spec.activeDeadlineSeconds": 90_000, "spec.preRunningDeadlineSeconds": 60}),
    ("kept longer", {"spec.ttlSecondsAfterFinished": 2_000_000}),
    ("the next attempt", {"spec.attempt": 3}),
    ("labelled", {"metadata.labels": {"team": "a"}}),
]
"""Edits of MINIMAL at attempt 2."""
