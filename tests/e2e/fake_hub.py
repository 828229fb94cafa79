"""A hub with one repository: the routes that a pull asks, faults included. On 127.0.0.1, or in a pod."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPO = "acme/tiny"
COMMIT = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """What it holds, what it does wrong, and what it was asked."""

    files: dict[str, bytes]
    card: dict[str, object] = field(default_factory=lambda: {"license": "apache-2.0"})
    gated: bool = False
    token: str = ""
    """Who shows it is let in although the repository is gated."""
    cut_at: int | None = None
    """Bytes after which the connection of a large file's download is cut, once."""
    is_down_after_cut: bool = False
    is_down: bool = False
    lies: dict[str, list[bytes]] = field(default_factory=dict)
    """Bytes sent in place of a file's own, one a download."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, Range) of each request."""
    endpoint: str = ""

    def is_large(self, path: str) -> bool:
        return path.endswith(".safetensors")

    def tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data), **self.lfs(path)}
            for path, data in self.files.items()
        ]

    def info(self) -> dict[str, object]:
        siblings = [
            {"rfilename": path, "size": len(data), "blobId": git_sha1(data), **self.lfs(path)}
            for path, data in self.files.items()
        ]
        return {"id": REPO, "sha": COMMIT, "siblings": siblings, "cardData": self.card, "tags": []}

    def lfs(self, path: str) -> dict[str, object]:
        if not self.is_large(path):
            return {}
        data = self.files[path]
        sha256 = hashlib.sha256(data).hexdigest()
        return {"lfs": {"oid": sha256, "sha256": sha256, "size": len(data), "pointerSize": 130}}


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def running(hub: Hub, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[Hub]:
    """`hub` at its `endpoint`; port 0: any that is free."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range") or ""))
            api = f"/api/models/{REPO}"
            if hub.is_down:
                self.fail(503, "", "down")
            elif path == f"{api}/revision/{COMMIT}":
                self.send(json.dumps(hub.info()).encode())
            elif path == f"{api}/tree/{COMMIT}":
                self.send(json.dumps(hub.tree()).encode())
            elif path.startswith((f"{api}/revision/", f"{api}/tree/")):
                self.fail(404, "RevisionNotFound", "Invalid rev id")
            elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
                self.resolve(path.removeprefix(f"/{REPO}/resolve/{COMMIT}/"))
            else:
                self.fail(401, "RepoNotFound", "Repository not found")

        def resolve(self, name: str) -> None:
            is_let_in = hub.token and self.headers.get("Authorization") == f"Bearer {hub.token}"
            if hub.gated and not is_let_in:
                self.fail(403, "GatedRepo", "Access to this model is restricted")
                return
            data = hub.files[name]
            etag = hashlib.sha256(data).hexdigest() if hub.is_large(name) else git_sha1(data)
            if self.command == "GET" and hub.lies.get(name):
                data = hub.lies[name].pop(0)
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
            extra = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if start:
                extra["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.send(data[start:], extra, status=206 if start else 200, is_large=hub.is_large(name))

        def send(
            self,
            data: bytes,
            extra: dict[str, str] | None = None,
            *,
            status: int = 200,
            is_large: bool = False,
        ) -> None:
            self.send_response(status)
            for name, value in {**(extra or {}), "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if is_large and hub.cut_at is not None:
                self.wfile.write(data[: hub.cut_at])
                hub.cut_at, hub.is_down = None, hub.is_down_after_cut
                self.close_connection = True
                return
            self.wfile.write(data)

        def fail(self, status: int, code: str, text: str) -> None:
            extra = {"X-Error-Code": code, "X-Error-Message": text} if code else {}
            self.send(json.dumps({"error": text}).encode(), extra, status=status)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="hub", daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
