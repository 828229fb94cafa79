"""status of a HermesRun as values: read from what the API gave, written as what is applied.

What a status means is decided in `decide`; here is only its shape. It stays under 4 KiB whatever the
number of shards and instances: counts, not lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from hermes_operator.names import Condition, Phase, Reason, Who

_Kind = TypeVar("_Kind", bound=StrEnum)

Manifest = dict[str, Any]
"""An object of the Kubernetes API as JSON."""

MESSAGE_BYTES_MAX = 300
"""Longest message of a condition or failure, in UTF-8; the rest is in the logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionStatus:
    """One condition. Equal but for the time means: nothing has changed."""

    status: str
    """"True", "False" or "Unknown"."""
    reason: Reason
    message: str = ""
    observed_generation: int = 0
    since: datetime | None = None
    """When `status` last changed; aware UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a run ended without success, and who can mend it."""

    who: Who
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmProgress:
    """How far one arm is."""

    name: str
    done: int = 0
    solved: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Counts of the attempt's shards, as its Job tells them."""

    total: int = 0
    active: int = 0
    succeeded: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What the model process really loaded."""

    device: str = ""
    dtype: str = ""
    quantization: str = ""
    weight_bytes: int = 0
    load_seconds: float = 0.0
    tree_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The whole status."""

    phase: Phase = Phase.PENDING
    observed_generation: int = 0
    attempt: int = 0
    """Attempt that the rest is about; 0: none was started."""
    run_id: str = ""
    attempt_started_at: datetime | None = None
    """When the attempt was first worked on; the deadline before running counts from here."""
    running_at: datetime | None = None
    """When a driver of the attempt first ran."""
    finished_at: datetime | None = None
    shards: Shards = field(default_factory=Shards)
    done: int = 0
    """(instance, arm) pairs recorded."""
    total: int = 0
    arms: tuple[ArmProgress, ...] = ()
    counted_indexes: str = ""
    """Finished shards whose counts are in `done` and `arms`, as Kubernetes writes them: "0-3,7"."""
    counted_job: str = ""
    """uid of the Job that `counted_indexes` is about: a Job made again counts again."""
    hermetic_shards: int = 0
    """Counted shards in which sockets were counted and none was tried."""
    moved_at: datetime | None = None
    """When the counts last moved; they move every few seconds at most."""
    loaded: Loaded | None = None
    manifest_ref: str = ""
    failure: Failure | None = None
    queue_position: int | None = None
    """1 for the next to start when the cap on concurrent runs is reached."""
    conditions: Mapping[Condition, ConditionStatus] = field(default_factory=dict)

    def with_condition(
        self,
        kind: Condition,
        status: str,
        reason: Reason,
        message: str = "",
        *,
        now: datetime,
        generation: int,
    ) -> Status:
        """The status with that condition; the time moves only when `status` changes."""
        known = self.conditions.get(kind)
        since = known.since if known is not None and known.status == status else now
        condition = ConditionStatus(
            status=status,
            reason=reason,
            message=cut(message),
            observed_generation=generation,
            since=since,
        )
        return replace(self, conditions={**self.conditions, kind: condition})

    def to_manifest(self) -> Manifest:
        """What is applied to the status subresource; empty fields are left out."""
        failure = self.failure
        loaded = self.loaded
        found: Manifest = {
            "phase": self.phase.value,
            "observedGeneration": self.observed_generation,
            "attempt": self.attempt,
            "runId": self.run_id,
            "attemptStartedAt": _written(self.attempt_started_at),
            "runningAt": _written(self.running_at),
            "finishedAt": _written(self.finished_at),
            "shards": {
                "total": self.shards.total,
                "active": self.shards.active,
                "succeeded": self.shards.succeeded,
                "failed": self.shards.failed,
            },
            "progress": {
                "done": self.done,
                "total": self.total,
                "arms": [{"name": a.name, "done": a.done, "solved": a.solved} for a in self.arms],
                "countedIndexes": self.counted_indexes,
                "countedJob": self.counted_job,
                "hermeticShards": self.hermetic_shards,
                "movedAt": _written(self.moved_at),
                "doneOfTotal": f"{self.done}/{self.total}",
                "solved": " ".join(f"{a.name} {a.solved}/{a.done}" for a in self.arms),
            },
            "loaded": loaded
            and {
                "device": loaded.device,
                "dtype": loaded.dtype,
                "quantization": loaded.quantization,
                "weightBytes": loaded.weight_bytes,
                "loadSeconds": loaded.load_seconds,
                "treeSha256": loaded.tree_sha256,
            },
            "manifestRef": self.manifest_ref,
            "failure": failure
            and {"who": failure.who.value, "reason": failure.reason.value, "message": cut(failure.message)},
            "queuePosition": self.queue_position,
            "conditions": [
                {
                    "type": kind.value,
                    "status": one.status,
                    "reason": one.reason.value,
                    "message": one.message,
                    "observedGeneration": one.observed_generation,
                    "lastTransitionTime": _written(one.since),
                }
                for kind, one in sorted(self.conditions.items())
            ],
        }
        found["progress"] = _filled(found["progress"])
        return _filled(found)

    @classmethod
    def from_manifest(cls, found: Mapping[str, Any]) -> Status:
        """What `to_manifest` wrote. Fields that are missing or unknown read as never written."""
        progress, shards = found.get("progress") or {}, found.get("shards") or {}
        failure, loaded = found.get("failure"), found.get("loaded")
        return cls(
            phase=_known(Phase, found.get("phase")) or Phase.PENDING,
            observed_generation=int(found.get("observedGeneration") or 0),
            attempt=int(found.get("attempt") or 0),
            run_id=str(found.get("runId") or ""),
            attempt_started_at=read_instant(found.get("attemptStartedAt")),
            running_at=read_instant(found.get("runningAt")),
            finished_at=read_instant(found.get("finishedAt")),
            shards=Shards(**{name: int(shards.get(name) or 0) for name in Shards.__slots__}),
            done=int(progress.get("done") or 0),
            total=int(progress.get("total") or 0),
            arms=tuple(
                ArmProgress(
                    name=str(a["name"]), done=int(a.get("done") or 0), solved=int(a.get("solved") or 0)
                )
                for a in progress.get("arms") or ()
            ),
            counted_indexes=str(progress.get("countedIndexes") or ""),
            counted_job=str(progress.get("countedJob") or ""),
            hermetic_shards=int(progress.get("hermeticShards") or 0),
            moved_at=read_instant(progress.get("movedAt")),
            loaded=Loaded(
                device=str(loaded.get("device") or ""),
                dtype=str(loaded.get("dtype") or ""),
                quantization=str(loaded.get("quantization") or ""),
                weight_bytes=int(loaded.get("weightBytes") or 0),
                load_seconds=float(loaded.get("loadSeconds") or 0),
                tree_sha256=str(loaded.get("treeSha256") or ""),
            )
            if loaded
            else None,
            manifest_ref=str(found.get("manifestRef") or ""),
            failure=Failure(
                who=_known(Who, failure.get("who")) or Who.OPERATOR,
                reason=_known(Reason, failure.get("reason")) or Reason.OPERATOR_FAILED,
                message=str(failure.get("message") or ""),
            )
            if failure
            else None,
            queue_position=found.get("queuePosition"),
            conditions={
                kind: ConditionStatus(
                    status=str(one.get("status")),
                    reason=_known(Reason, one.get("reason")) or Reason.OPERATOR_FAILED,
                    message=str(one.get("message") or ""),
                    observed_generation=int(one.get("observedGeneration") or 0),
                    since=read_instant(one.get("lastTransitionTime")),
                )
                for one in found.get("conditions") or ()
                if (kind := _known(Condition, one.get("type"))) is not None
            },
        )


def _filled(fields: Manifest) -> Manifest:
    return {key: value for key, value in fields.items() if value not in (None, "")}


def cut(message: str) -> str:
    """The message, or its beginning."""
    written = message.encode()
    if len(written) <= MESSAGE_BYTES_MAX:
        return message
    return written[: MESSAGE_BYTES_MAX - 3].decode(errors="ignore") + "…"


def read_instant(text: object) -> datetime | None:
    """A time as Kubernetes writes it; None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None


def _written(instant: datetime | None) -> str | None:
    return None if instant is None else instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _known(kinds: type[_Kind], text: object) -> _Kind | None:
    """The member of that name; None for one that this version does not know."""
    try:
        return kinds(str(text))
    except ValueError:
        return None
