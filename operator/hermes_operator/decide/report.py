"""What a container says when it ends: the termination messages of the driver and of the pull.

They come from pods, so they are checked here before anything else reads them; one that cannot be read
says nothing. What follows from them is decided in the other policies.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

ARMS_MAX = 16
"""Most arms that a report may name."""

Count = Annotated[int, Field(ge=0, le=2**53)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_camel, extra="ignore", protected_namespaces=())


class ArmReport(_Part):
    """One arm of a shard."""

    done: Count = 0
    solved: Count = 0


class HermeticReport(_Part):
    """Whether sockets were counted, and how many were tried."""

    counted: bool = False
    attempts: Count = 0


class LoadedReport(_Part):
    """What the model process loaded."""

    device: Annotated[str, Field(max_length=64)] = ""
    dtype: Annotated[str, Field(max_length=64)] = ""
    quantization: Annotated[str, Field(max_length=64)] = ""
    weight_bytes: Count = 0
    load_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    tree_sha256: Annotated[str, Field(max_length=64)] = ""


class FailureReport(_Part):
    """Who failed and why, in the words of the process."""

    who: str = ""
    reason: str = ""
    message: str = ""


class DriverReport(_Part):
    """What a driver did with its shard."""

    version: Literal[1]
    done: Count = 0
    total: Count = 0
    arms: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=32)], ArmReport], Field(max_length=ARMS_MAX)
    ] = Field(default_factory=dict)
    hermetic: HermeticReport | None = None
    loaded: LoadedReport | None = None
    manifest: Annotated[str, Field(max_length=128)] | None = None
    failure: FailureReport | None = None


class PullReport(_Part):
    """What a pull found or fetched."""

    version: Literal[1]
    tree_sha256: Annotated[str, Field(max_length=64)] | None = None
    bytes: Count | None = None
    files: Count | None = None
    licence: Annotated[str, Field(max_length=64)] | None = None
    failure: FailureReport | None = None


_Report = TypeVar("_Report", bound=_Part)


def read(kind: type[_Report], message: str) -> _Report | None:
    """The report in a termination message; None if it is none."""
    try:
        return kind.model_validate_json(message)
    except ValidationError:
        return None
