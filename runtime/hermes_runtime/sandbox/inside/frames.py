"""Length-prefixed JSON over a stream socket: what the host and a keeper say to each other."""

from __future__ import annotations

import json
import socket
import struct

HEADER = struct.Struct("<I")


def pack(message: object) -> bytes:
    """One frame."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return HEADER.pack(len(body)) + body


def receive(peer: socket.socket) -> dict[str, object] | None:
    """The next frame of a blocking socket; None at its end."""
    head = _exactly(peer, HEADER.size)
    if head is None:
        return None
    body = _exactly(peer, HEADER.unpack(head)[0])
    if body is None:
        return None
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError("a frame is a JSON object")
    return message


def _exactly(peer: socket.socket, size: int) -> bytes | None:
    parts = []
    while size:
        part = peer.recv(min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
