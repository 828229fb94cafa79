"""Who a run's pods are, and whom they may talk to.

The account has no rights: its name, in a token for the store alone, is what the store knows the run by.
The policy is a fence around all pods of the run and not the wall: the processes themselves give up all
but Unix sockets, the relay aside. A cluster without an enforcing network plugin has the wall alone. Pods
that pull a model have another component and are not selected here.
"""

from __future__ import annotations

from ipaddress import ip_address

from hermes_operator.manifests.owned import metadata
from hermes_operator.names import (
    APP,
    COMPONENT_RUN,
    COMPONENT_STORE,
    LABEL_COMPONENT,
    LABEL_NAME,
    LABEL_RUN,
    account_name,
    policy_name,
    run_labels,
)
from hermes_operator.observed import Installation, Run
from hermes_operator.status import Manifest

_NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""Label that Kubernetes itself puts on every namespace."""


def run_account(run: Run) -> Manifest:
    """The ServiceAccount of the run's pods."""
    name = run.key.name
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(run, account_name(name), run_labels(name, COMPONENT_RUN)),
        "automountServiceAccountToken": False,
    }


def run_policy(run: Run, installation: Installation) -> Manifest:
    """Nothing comes in; what goes out goes to the store, or asks for the store's address."""
    name = run.key.name
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(run, policy_name(name), run_labels(name, COMPONENT_RUN)),
        "spec": {
            "podSelector": {"matchLabels": {LABEL_COMPONENT: COMPONENT_RUN, LABEL_RUN: name}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [],
            "egress": [
                _to_the_store(installation.store_address),
                {
                    "to": [{"namespaceSelector": {"matchLabels": {_NAMESPACE_NAME: "kube-system"}}}],
                    "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
                },
            ],
        },
    }


def _to_the_store(address: str) -> Manifest:
    """The rule for the store's pods: beside the run, or in the namespace that the Service's name tells."""
    host, _, port = address.rpartition(":")
    return {"to": [_store_peer(host)], "ports": [{"protocol": "TCP", "port": int(port)}]}


def _store_peer(host: str) -> Manifest:
    try:
        number = ip_address(host.strip("[]"))
    except ValueError:
        pass
    else:
        return {"ipBlock": {"cidr": f"{number}/{number.max_prefixlen}"}}
    pods = {"podSelector": {"matchLabels": {LABEL_NAME: APP, LABEL_COMPONENT: COMPONENT_STORE}}}
    _, *above = host.split(".")
    if not above:
        return pods
    return {"namespaceSelector": {"matchLabels": {_NAMESPACE_NAME: above[0]}}, **pods}
