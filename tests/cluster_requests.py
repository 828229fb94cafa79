"""Requests of an API server as its administrator, answer and status code whatever they are."""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from tests.cluster.apiserver import ApiServer

Ask = Callable[..., tuple[int, dict[str, Any]]]

MERGE_PATCH = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"


def asks(api: ApiServer) -> Ask:
    """ask("POST", path, body) -> (201, what was made); a third argument names another content type."""
    trusted = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(api.certificate)))
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), trusted)

    def ask(
        method: str, path: str, body: object = None, kind: str = "application/json"
    ) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(
            api.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {api.token}", "Content-Type": kind},
        )
        try:
            with direct.open(request, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refusal:
            with refusal:
                text = refusal.read()
                return refusal.code, json.loads(text) if text.startswith(b"{") else {"message": text.decode()}

    return ask
