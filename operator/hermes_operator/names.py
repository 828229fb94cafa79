"""Every name the operator puts into a cluster: kinds, labels, objects, phases, conditions, reasons.

Names of objects are computed from their owner and role, so that doing a thing twice is a conflict and
not a copy. Nothing is decided here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

from hermes_runtime.document import ATTEMPT_MAX as ATTEMPT_MAX

GROUP, VERSION = "hermes.dev", "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND, PLURAL, SINGULAR, SHORT_NAME, CATEGORY = "HermesRun", "hermesruns", "hermesrun", "hr", "hermes"

FIELD_MANAGER = "hermes"
"""Who owns the fields that the operator applies."""

TOKEN_AUDIENCE = "hermes-store"
"""Audience of the tokens that run pods show to the store."""

RunId = NewType("RunId", str)
"""What a run is called in the store: `<namespace>.<name>.<first 8 of its uid>`."""

LABEL_NAME = "app.kubernetes.io/name"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_RUN = f"{GROUP}/run"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"

APP = "hermes"
MANAGER = "hermes-operator"
COMPONENT_RUN, COMPONENT_PULL, COMPONENT_STORE = "run", "pull", "store"

SELECTOR = f"{LABEL_MANAGED_BY}={MANAGER}"
"""Selects every Job and Pod that the operator made."""


def run_id(namespace: str, name: str, uid: str) -> RunId:
    """The run's id in the store."""
    return RunId(f"{namespace}.{name}.{uid[:8]}")


def account_name(run: str) -> str:
    """The run's ServiceAccount."""
    return f"hermes-run-{run}"


def policy_name(run: str) -> str:
    """The run's NetworkPolicy."""
    return f"hermes-run-{run}"


def job_name(run: str, attempt: int) -> str:
    """The Job of one attempt."""
    return f"hermes-{run}-{attempt}"


def pull_name(run: str) -> str:
    """The Job that fetches and verifies the run's model."""
    # Ends in a word and not in a number, so that it is no other run's Job.
    return f"hermes-{run}-pull"


def run_labels(run: str, component: str) -> dict[str, str]:
    """Labels of everything that is made for a run."""
    return {
        LABEL_NAME: APP,
        LABEL_COMPONENT: component,
        LABEL_MANAGED_BY: MANAGER,
        LABEL_RUN: run,
    }


class Phase(StrEnum):
    """Where a run is. Succeeded and Failed are the ends."""

    PENDING = "Pending"
    """Nothing is made yet: not looked at, or waiting for its turn."""
    PULLING = "Pulling"
    """Its model is fetched and verified."""
    STARTING = "Starting"
    """Its Job is there, and no driver runs yet."""
    RUNNING = "Running"
    """A driver runs or has run."""
    SUSPENDED = "Suspended"
    """spec.suspend is true, or its queue has not admitted it."""
    SUCCEEDED = "Succeeded"
    """Every shard is done."""
    FAILED = "Failed"
    """It ended without; status.failure says who and why."""


ENDED = frozenset({Phase.SUCCEEDED, Phase.FAILED})


class Condition(StrEnum):
    """Types of conditions."""

    ACCEPTED = "Accepted"
    """The document can be run by this installation."""
    MODEL_VERIFIED = "ModelVerified"
    """Every file of the model has the digest that its manifest says."""
    STARTED = "Started"
    """A driver of this attempt has started."""
    COMPLETE = "Complete"
    """Every shard is done."""
    HERMETIC = "Hermetic"
    """No process of the run tried to open any but a Unix socket. Only by evidence."""
    RECONCILED = "Reconciled"
    """The last look at the run ended without an error of the API."""


class Reason(StrEnum):
    """Reasons of conditions and failures."""

    # Accepted
    DOCUMENT_VALID = "DocumentValid"
    DOCUMENT_INVALID = "DocumentInvalid"
    NOT_ON_A_CLUSTER = "NotOnACluster"
    """The document asks for what only one machine can give, a file beside it for instance."""
    # ModelVerified
    BUNDLED = "Bundled"
    PULLING = "Pulling"
    TREE_VERIFIED = "TreeVerified"
    VERIFIED_WHEN_LOADED = "VerifiedWhenLoaded"
    """A folder of the model cache: the model process checks it before it loads it."""
    TREE_DAMAGED = "TreeDamaged"
    PULL_FAILED = "PullFailed"
    GATED = "Gated"
    REVISION_NOT_FOUND = "RevisionNotFound"
    # Started
    WAITING_FOR_TURN = "WaitingForTurn"
    WAITING_FOR_MODEL = "WaitingForModel"
    WAITING_FOR_PODS = "WaitingForPods"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    VOLUME_NOT_BOUND = "VolumeNotBound"
    PODS_OF_BEFORE = "PodsOfBefore"
    """Pods of an earlier attempt or Job are not gone yet."""
    DRIVER_STARTED = "DriverStarted"
    SUSPENDED = "Suspended"
    WAITING_IN_QUEUE = "WaitingInQueue"
    # Complete, and failures
    ALL_SHARDS_DONE = "AllShardsDone"
    IN_PROGRESS = "InProgress"
    PRE_RUNNING_DEADLINE_EXCEEDED = "PreRunningDeadlineExceeded"
    ACTIVE_DEADLINE_EXCEEDED = "ActiveDeadlineExceeded"
    BAD_INPUT = "BadInput"
    MODEL_FAILED = "ModelFailed"
    AGENT_FAILED = "AgentFailed"
    SANDBOX_FAILED = "SandboxFailed"
    OUT_OF_MEMORY = "OutOfMemory"
    STORE_LOST = "StoreLost"
    SHARDS_FAILED = "ShardsFailed"
    OPERATOR_FAILED = "OperatorFailed"
    # Hermetic
    NO_EVIDENCE_YET = "NoEvidenceYet"
    NO_SOCKET_ATTEMPTED = "NoSocketAttempted"
    SOCKET_ATTEMPTED = "SocketAttempted"
    NOT_ASKED_FOR = "NotAskedFor"
    # Reconciled
    IN_STEP = "InStep"
    API_ERROR = "ApiError"


class Who(StrEnum):
    """Whose failure it is: who can mend it."""

    USER = "user"
    MODEL = "model"
    AGENT = "agent"
    SANDBOX = "sandbox"
    CLUSTER = "cluster"
    OPERATOR = "operator"
