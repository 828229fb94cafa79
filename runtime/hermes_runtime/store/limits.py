"""Which names, instants, ranges and sizes a store takes. Pure; every implementation asks here."""

from __future__ import annotations

from datetime import UTC, datetime

from hermes_runtime.errors import BadInput
from hermes_runtime.store import Digest, ResultKey

MESSAGE_DATA_BYTES_MAX = 3 * 1024 * 1024
"""Largest event, result or piece of a blob: it fits into one gRPC message with room for the rest."""

LEASE_CHARACTERS_MAX = 200
NAME_CHARACTERS_MAX = 1000

_SHA256_BYTES = 32


def check_name(what: str, name: str, *, characters_max: int = NAME_CHARACTERS_MAX) -> None:
    """Raises BadInput unless `name` has 1 to `characters_max` characters, all of them writable."""
    if not 1 <= len(name) <= characters_max:
        raise BadInput(f"{what} {name[:50]!r} has {len(name)} characters; it needs 1 to {characters_max}")
    if "\0" in name or not _is_unicode(name):
        raise BadInput(f"{what} {name!r} has characters that cannot be written down")


def check_lease(name: str) -> None:
    """Raises BadInput for what cannot name a lease."""
    check_name("lease", name, characters_max=LEASE_CHARACTERS_MAX)


def check_key(key: ResultKey) -> None:
    """Raises BadInput for what cannot name a result."""
    for what, name in (("run", key.run), ("instance", key.instance), ("arm", key.arm)):
        check_name(what, name)


def check_instant(what: str, instant: datetime) -> datetime:
    """`instant` in UTC. Raises BadInput if it has no time zone."""
    if instant.tzinfo is None:
        raise BadInput(f"{what} {instant} has no time zone; give an aware one")
    return instant.astimezone(UTC)


def check_range(digest: Digest, offset: int, length: int | None) -> tuple[int, int]:
    """First byte and the one after the last. Raises BadInput for a range that starts past the end."""
    if offset < 0 or (length is not None and length < 0) or offset > digest.size_bytes:
        raise BadInput(
            f"blob {digest}: no range starts at {offset} with length {length}; "
            f"it has {digest.size_bytes} bytes"
        )
    end = digest.size_bytes if length is None else min(digest.size_bytes, offset + length)
    return offset, end


def check_size(what: str, size_bytes: int) -> None:
    """Raises BadInput for an event or a result that does not fit into a message."""
    if size_bytes > MESSAGE_DATA_BYTES_MAX:
        raise BadInput(
            f"{what} has {size_bytes} bytes, more than {MESSAGE_DATA_BYTES_MAX}: put its content as a blob "
            "and name the blob"
        )


def check_previous(stream: str, previous: bytes) -> None:
    """Raises BadInput unless it is empty or a sha256."""
    if len(previous) not in (0, _SHA256_BYTES):
        raise BadInput(
            f"event of stream {stream!r}: previous has {len(previous)} bytes; it is the {_SHA256_BYTES} of "
            "the digest of the stream's last event, or empty for the first"
        )


def check_digest(told: Digest | None, found: Digest) -> None:
    """Raises BadInput if what a caller says of its bytes is not so."""
    if told is not None and told != found:
        raise BadInput(f"the bytes are not {told}, they are {found}: nothing was stored, send them again")


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
