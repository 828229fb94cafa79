"""A blob's address: sha256 and size. Once a Digest exists it is valid."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from hermes.store.v1 import store_pb2
from hermes_runtime.errors import BadInput

_URI = re.compile(r"mcp://sha256/([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """sha256 (32 bytes) and size in bytes of a blob."""

    sha256: bytes
    size_bytes: int

    def __post_init__(self) -> None:
        if len(self.sha256) != 32 or self.size_bytes < 0:
            raise BadInput(f"not a digest: {len(self.sha256)} bytes of sha256, size {self.size_bytes}")

    @staticmethod
    def of(data: bytes) -> Digest:
        """The digest of `data`."""
        return Digest(hashlib.sha256(data).digest(), len(data))

    @staticmethod
    def from_proto(message: store_pb2.Digest) -> Digest:
        """Raises BadInput for anything but 32 bytes."""
        return Digest(message.sha256, message.size_bytes)

    def to_proto(self) -> store_pb2.Digest:
        """The wire form, about 38 bytes."""
        return store_pb2.Digest(sha256=self.sha256, size_bytes=self.size_bytes)

    @property
    def hex(self) -> str:
        """64 hexadecimal digits."""
        return self.sha256.hex()

    @property
    def uri(self) -> str:
        """`mcp://sha256/<64 hex>`; the size is not part of it."""
        return f"mcp://sha256/{self.hex}"

    @staticmethod
    def hex_of_uri(uri: str) -> str:
        """The 64 hexadecimal digits of an anchor. Raises BadInput if it is none."""
        if not (found := _URI.fullmatch(uri)):
            raise BadInput(f"not an anchor: {uri!r}; expected mcp://sha256/<64 hexadecimal digits>")
        return found[1]

    def __str__(self) -> str:
        return f"{self.hex[:12]}… ({self.size_bytes} bytes)"
