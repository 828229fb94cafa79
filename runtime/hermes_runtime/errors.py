"""The one tree of errors. Each class says what happened, its gRPC status, and whether a retry helps.

HermesError                 INTERNAL             no
+- BadInput                 INVALID_ARGUMENT     no   what the caller gave cannot be used
|  +- Malformed             INVALID_ARGUMENT     no   bytes that should be a message are not
+- NotFound                 NOT_FOUND            no   nothing has that name or digest
+- Unsupported              FAILED_PRECONDITION  no   this host, model or version cannot do it
|  +- ContextTooShort       FAILED_PRECONDITION  no   the prompt does not fit the model
+- StaleWriter              ABORTED              no   somebody else has written since
+- Damaged                  DATA_LOSS            no   bytes do not match their digest
+- Exhausted                RESOURCE_EXHAUSTED   no   a disk, memory or limit is full
+- Busy                     ALREADY_EXISTS       no   another process holds it
+- Denied                   PERMISSION_DENIED    no   the caller may not
+- Unauthenticated          UNAUTHENTICATED      no   the caller has not shown who it is
+- PeerLost                 UNAVAILABLE          yes  a process died or is not up yet
+- TimedOut                 DEADLINE_EXCEEDED    yes  it took too long
"""

from __future__ import annotations

from typing import ClassVar


class HermesError(Exception):
    """Something that HERMES can name. `str()` is fit for a user: the thing and the remedy."""

    status: ClassVar[str] = "INTERNAL"
    retry_helps: ClassVar[bool] = False


class BadInput(HermesError):
    """What the caller gave cannot be used."""

    status = "INVALID_ARGUMENT"


class Malformed(BadInput):
    """Bytes that should be a message are not."""


class NotFound(HermesError):
    """Nothing has that name or digest."""

    status = "NOT_FOUND"


class Unsupported(HermesError):
    """This host, model or version cannot do it."""

    status = "FAILED_PRECONDITION"


class ContextTooShort(Unsupported):
    """The prompt does not fit the model's context."""


class StaleWriter(HermesError):
    """Somebody else has written to the stream since the caller last looked."""

    status = "ABORTED"


class Damaged(HermesError):
    """Bytes do not match their digest."""

    status = "DATA_LOSS"


class Exhausted(HermesError):
    """A disk, a memory or a limit is full."""

    status = "RESOURCE_EXHAUSTED"


class Busy(HermesError):
    """Another process holds it."""

    status = "ALREADY_EXISTS"


class Denied(HermesError):
    """The caller may not."""

    status = "PERMISSION_DENIED"


class Unauthenticated(HermesError):
    """The caller has not shown who it is."""

    status = "UNAUTHENTICATED"


class PeerLost(HermesError):
    """A process died or is not up yet."""

    status = "UNAVAILABLE"
    retry_helps = True


class TimedOut(HermesError):
    """It took too long."""

    status = "DEADLINE_EXCEEDED"
    retry_helps = True
