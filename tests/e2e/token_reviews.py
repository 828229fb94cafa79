"""An API server that reviews tokens and does nothing else, on 127.0.0.1; and a kubeconfig that names it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"


class ReviewServer:
    """Knows `names`: whose each token is. `asked` are the tokens that were reviewed, in order."""

    def __init__(self, names: dict[str, str], audience: str = "hermes-store") -> None:
        self.names = names
        self.audience = audience
        self.asked: list[str] = []
        self.is_broken = False

    def review(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(spec["token"])
        name = self.names.get(spec["token"])
        if name is None or self.audience not in spec.get("audiences", []):
            return {"authenticated": False, "error": "unknown token"}
        return {"authenticated": True, "user": {"username": name}, "audiences": [self.audience]}

    @contextmanager
    def serving(self, folder: Path) -> Iterator[Path]:
        """Serve; the kubeconfig to reach it by."""
        reviews = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                is_known = self.path == PATH and not reviews.is_broken
                answer = {**body, "status": reviews.review(body["spec"])} if is_known else {}
                data = json.dumps(answer).encode()
                self.send_response(201 if is_known else 500)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *words: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield _kubeconfig(folder, server.server_address[1])
            finally:
                server.shutdown()
                thread.join()


def _kubeconfig(folder: Path, port: int) -> Path:
    file = folder / "kubeconfig"
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "u", "user": {"token": "the store's own"}}],
            }
        )
    )
    return file
