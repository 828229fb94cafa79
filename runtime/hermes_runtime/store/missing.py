"""Why a blob cannot be read, in words, with the remedy."""

from __future__ import annotations

from datetime import datetime

from hermes_runtime.errors import Damaged, NotFound
from hermes_runtime.store.digest import Digest

_REMEDY = "produce it again (re-run what made it) and put it"


def never_seen(digest: Digest) -> NotFound:
    """Nobody has put it here."""
    return NotFound(f"blob {digest} was never seen by this store: {_REMEDY}")


def other_size(digest: Digest, size_bytes: int) -> NotFound:
    """The sha256 is known, with another size: one of the two is a mistake."""
    return NotFound(
        f"blob {digest} was never seen by this store: under this sha256 it knows {size_bytes} bytes; "
        "correct the size in the digest"
    )


def expired(digest: Digest, ended_at: datetime) -> NotFound:
    """It was here and has been collected."""
    return NotFound(
        f"blob {digest} is no longer in the store: its last lease ended at {ended_at:%Y-%m-%dT%H:%M:%SZ}; "
        f"{_REMEDY}, under a lease that ends later"
    )


def quarantined(digest: Digest, where: str) -> Damaged:
    """Its bytes changed, or are gone, and it has not been put again since."""
    return Damaged(
        f"blob {digest} is damaged: what is kept of it ({where}) does not match its digest and is never "
        "returned; put the right bytes again to heal it"
    )
