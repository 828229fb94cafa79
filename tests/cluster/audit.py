"""What ServiceAccounts asked of a test cluster, read from the API server's own audit log.

The log holds one line for each request (for a watch, two), with no bodies. Kubernetes' own accounts are
left out. What a request says of a right is decided in `rights`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from tests.cluster.apiserver import ApiServer
from tests.cluster.kind import AUDIT_LOG, NODE, Cluster

_DECISION, _FORBID = "authorization.k8s.io/decision", "forbid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request about an object or a list of them."""

    user: str
    """system:serviceaccount:<namespace>:<name>"""
    verb: str
    """As RBAC has it."""
    group: str
    resource: str
    """Plural, with /status or another subresource where that was asked for."""
    namespace: str
    name: str
    """"" for lists, and for what the server named."""
    code: int
    """HTTP status; 0: it is still being answered, as a watch is."""
    is_refused: bool
    """No rule allowed it."""


def recorded(cluster: ApiServer | Cluster, user: str) -> list[Asked]:
    """All that this user has asked for so far, in order."""
    if isinstance(cluster, ApiServer):
        text = cluster.audit_log.read_text(encoding="utf-8") if cluster.audit_log.exists() else ""
    else:
        text = cluster.engine.docker("exec", NODE, "cat", AUDIT_LOG)
    return [one for one in parse(text.splitlines()) if one.user == user]


def parse(lines: Iterable[str]) -> list[Asked]:
    """The requests of an audit log. A line that is not whole yet is left for later."""
    found = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        about = event.get("objectRef")
        if about is None:  # discovery, health
            continue
        below = about.get("subresource", "")
        asked = Asked(
            user=event["user"]["username"],
            verb=event["verb"],
            group=about.get("apiGroup", ""),
            resource=about["resource"] + (f"/{below}" if below else ""),
            namespace=about.get("namespace", ""),
            name=about.get("name", ""),
            code=int((event.get("responseStatus") or {}).get("code", 0)),
            is_refused=(event.get("annotations") or {}).get(_DECISION) == _FORBID,
        )
        found.append(asked)
    return found
