"""The rights that the chart gives its ServiceAccounts, held against what they were seen to ask for.

Read from the rendered chart alone: whoever wants to know what the operator may do finds it there. The
tests that bring an account's process to do all that it can ask here whether a right was left unused.
"""

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.cluster.audit import Asked
from tests.cluster.binaries import ROOT, Programs

Manifest = dict[str, Any]

_KINDS = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
_CREATED = 201


class Account(NamedTuple):
    """A ServiceAccount."""

    namespace: str
    name: str

    @property
    def user(self) -> str:
        return f"system:serviceaccount:{self.namespace}:{self.name}"


class Right(NamedTuple):
    """One verb on one resource."""

    namespace: str
    """"": in all of the cluster."""
    group: str
    resource: str
    verb: str
    name: str
    """The one object that it is about; "": any."""


def chart_access(programs: Programs, folder: Path, namespace: str, *values: str) -> list[Manifest]:
    """The accounts and roles of a release in `namespace`, as helm renders them with these values."""
    homes = {f"HELM_{name}_HOME": str(folder) for name in ("CACHE", "CONFIG", "DATA")}
    given = [word for value in values for word in ("--set", value)]
    done = subprocess.run(
        [
            programs.path("helm"),
            "template",
            "hermes",
            ROOT / "charts/hermes",
            "--namespace",
            namespace,
            *given,
        ],
        env={**os.environ, **homes},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [one for one in yaml.safe_load_all(done.stdout) if one and one["kind"] in _KINDS]


def rights(access: Iterable[Manifest], account: Account) -> set[Right]:
    """What these roles give the account by these bindings."""
    objects = list(access)
    found: set[Right] = set()
    for binding in objects:
        if not any(_is(subject, account) for subject in binding.get("subjects") or ()):
            continue
        namespace = str(binding["metadata"].get("namespace", ""))
        for role in objects:
            if _is_meant(binding["roleRef"], namespace, role):
                found |= _given(namespace, role)
    return found


def unused(held: Iterable[Right], asked: Sequence[Asked]) -> set[Right]:
    """Rights that no request that was allowed made use of."""
    return {right for right in held if not any(_uses(one, right) for one in asked)}


def without(held: Iterable[Right], asked: Iterable[Asked]) -> list[Asked]:
    """Requests that were refused, or that something else than these rights allowed."""
    held = list(held)
    return [one for one in asked if one.is_refused or not any(_uses(one, right) for right in held)]


def _uses(asked: Asked, right: Right) -> bool:
    if asked.is_refused or (asked.group, asked.resource) != (right.group, right.resource):
        return False
    if right.namespace not in ("", asked.namespace) or right.name not in ("", asked.name):
        return False
    # Whoever applies what is not there needs the right to create it too, and the log says only "patch":
    # k8s.io/apiserver, pkg/endpoints/handlers/patch.go, PatchResource.
    is_made = asked.verb == "patch" and asked.code == _CREATED
    return right.verb == asked.verb or (is_made and right.verb == "create")


def _is(subject: Manifest, account: Account) -> bool:
    return (subject["kind"], subject["name"], subject.get("namespace")) == (
        "ServiceAccount",
        account.name,
        account.namespace,
    )


def _is_meant(reference: Manifest, namespace: str, role: Manifest) -> bool:
    is_there = role["kind"] == "ClusterRole" or role["metadata"].get("namespace") == namespace
    return is_there and (role["kind"], role["metadata"]["name"]) == (reference["kind"], reference["name"])


def _given(namespace: str, role: Manifest) -> set[Right]:
    return {
        Right(namespace, group, resource, verb, name)
        for rule in role.get("rules") or ()
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames") or ("",)
    }
