"""The fence round a cluster: nothing that its nodes and pods send leaves the machine, and it is counted.

Outside, on this host, two rules drop what comes from the cluster's bridge: what would be forwarded to
another network, and what would open a connection to the host itself. Inside, on the node, one rule drops
and counts, by the pod's own address, what a pod sends past pods, services and the node: the evidence for
one run, where CoreDNS' look-ups at its upstream do not mix in; another notes whom a pod talks to at all.
Not covered: IPv6, which the network has not got, and what the engine sends for itself. Called by
tests.cluster.kind; tests read the counters.
"""

import json
from dataclasses import dataclass
from typing import Any

from tests.cluster.engine import Engine, iptables

TABLE = "hermes_fence"
PODS = "10.244.0.0/16"
SERVICES = "10.96.0.0/16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Packets that the fence on the host has stopped."""

    forwarded: int
    """To another network."""
    to_host: int
    """To this machine, new connections only."""


def _rules(bridge: str) -> tuple[tuple[str, list[str]], ...]:
    return (
        ("DOCKER-USER", ["-i", bridge, "!", "-o", bridge, "-j", "DROP"]),
        ("INPUT", ["-i", bridge, "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP"]),
    )


def put_up(bridge: str) -> None:
    """Idempotent. Before the cluster starts: afterwards something may have gone out already."""
    for chain, rule in _rules(bridge):
        if _counted(chain, bridge) is None:
            iptables("--insert", chain, *rule)


def take_down(bridge: str) -> None:
    """Idempotent."""
    for chain, rule in _rules(bridge):
        if _counted(chain, bridge) is not None:
            iptables("--delete", chain, *rule)


def dropped(bridge: str) -> Dropped:
    """What was stopped since the fence is up. A fence that is not there is an error, not a zero."""
    counts = [_counted(chain, bridge) for chain, _ in _rules(bridge)]
    forwarded, to_host = counts
    if forwarded is None or to_host is None:
        raise RuntimeError(f"there is no fence round {bridge}")
    return Dropped(forwarded=forwarded, to_host=to_host)


def _counted(chain: str, bridge: str) -> int | None:
    """Packets that the rule for this bridge has dropped; None where there is no such chain or rule."""
    try:
        listed = iptables("--list", chain, "--verbose", "--numeric", "--exact")
    except RuntimeError:
        return None
    for line in listed.splitlines()[2:]:
        packets, _, target, _, _, incoming, *_ = line.split()
        if target == "DROP" and incoming == bridge:
            return int(packets)
    return None


def watch_pods(engine: Engine, node: str) -> None:
    """Put up the rule on the node, or start its counters anew."""
    near = f"{{ {PODS}, {SERVICES} }}"  # what goes to the node itself is not forwarded
    rules = "\n".join(
        (
            f"table ip {TABLE} {{}}",
            f"delete table ip {TABLE}",
            f"table ip {TABLE} {{",
            "  set leaving { type ipv4_addr; size 65535; flags dynamic; counter; }",
            "  set reached {",
            "    type ipv4_addr . ipv4_addr . inet_proto . inet_service; size 65535; flags dynamic;",
            "  }",
            "  chain forward {",
            "    type filter hook forward priority -10;",
            # what a pod asked for, not its answers; a Service's address is its pod's by now
            f"    ip saddr {PODS} meta l4proto {{ tcp, udp }} ct direction original"
            " update @reached { ip saddr . ip daddr . meta l4proto . th dport }",
            f"    ip saddr {PODS} ip daddr != {near} update @leaving {{ ip saddr }} drop",
            "  }",
            "}",
        )
    )
    engine.docker("exec", node, "sh", "-c", f"nft -f - <<'END'\n{rules}\nEND")


def left_by_pod(engine: Engine, node: str) -> dict[str, int]:
    """Packets that tried to leave, by the address of the pod that sent them; pods that did not are absent."""
    return {
        element["elem"]["val"]: int(element["elem"]["counter"]["packets"])
        for element in _elements(engine, node, "leaving")
    }


def reached_by_pod(engine: Engine, node: str) -> dict[str, set[tuple[str, int]]]:
    """Address and port of all that a pod has talked to, by the pod's address; what left is among it."""
    reached: dict[str, set[tuple[str, int]]] = {}
    for element in _elements(engine, node, "reached"):
        source, target, _, port = element["concat"]
        reached.setdefault(source, set()).add((target, port))
    return reached


def _elements(engine: Engine, node: str, name: str) -> list[dict[str, Any]]:
    listed = json.loads(engine.docker("exec", node, "nft", "-j", "list", "set", "ip", TABLE, name))
    (found,) = [entry["set"] for entry in listed["nftables"] if "set" in entry]
    return list(found.get("elem", []))
