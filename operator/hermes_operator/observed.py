"""What `decide` is given and what it gives back, as values; no client, no clock.

`Run` is a HermesRun as the API has it, its document read; `Children` are the objects made for it, as
last seen. `Decision` is what to do now and when to look again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from hermes_operator.names import LABEL_QUEUE, Phase, RunId, run_id
from hermes_operator.status import Manifest, Status
from hermes_runtime.document import HermesRun


class RunKey(NamedTuple):
    """Which run."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One HermesRun, as last seen."""

    key: RunKey
    uid: str
    generation: int
    created_at: datetime
    is_deleted: bool
    """A deletion was asked for; the cluster collects the children."""
    labels: Mapping[str, str]
    document: HermesRun | str
    """The document, or why it cannot be read."""
    status: Status
    version: str = ""
    """resourceVersion that this is; a status is written over no other."""

    @property
    def run_id(self) -> RunId:
        """The run's id in the store."""
        return run_id(self.key.namespace, self.key.name, self.uid)

    @property
    def in_line(self) -> RunInLine:
        """What the line of runs needs to know of it."""
        spec = None if isinstance(self.document, str) else self.document.spec
        return RunInLine(
            key=self.key,
            created_at=self.created_at,
            is_deleted=self.is_deleted,
            is_readable=spec is not None,
            has_queue=LABEL_QUEUE in self.labels,
            suspend=spec is not None and spec.suspend,
            attempt_asked=0 if spec is None else spec.attempt,
            attempt=self.status.attempt,
            phase=self.status.phase,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInLine:
    """The little of a run that is looked at with all the others."""

    key: RunKey
    created_at: datetime
    is_deleted: bool
    is_readable: bool
    """Its document can be read."""
    has_queue: bool
    suspend: bool
    attempt_asked: int
    attempt: int
    """The last attempt begun."""
    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Children:
    """What was made for a run, as last seen."""

    jobs: Mapping[str, Manifest] = field(default_factory=dict)
    """By name: the Jobs of attempts, and the pull Job."""
    pods: Mapping[str, Manifest] = field(default_factory=dict)
    """By name: pods of any of these Jobs."""
    is_fresh: bool = False
    """They were listed just now; else they are remembered from watches, which may be late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Server-side apply of a whole object, as its only writer."""

    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """JSON merge patch of a few fields of an object that is there. Not there is an error that heals itself.

    For what is edited after it was made: a Job's pod template never changes again, so applying the whole
    Job would be refused as soon as the runtime's image has changed, or a queue has added its node selector.
    """

    api_version: str
    kind: str
    namespace: str
    name: str
    patch: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete an object and, in the background, what it owns. Not there is as good."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    """Of the object that was seen: another that has its name by now stays."""


Action = Apply | Patch | Delete


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """An Event to be emitted once the status that goes with it is written."""

    is_warning: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Actions first, in order; then the status if it differs; then the announcements."""

    actions: tuple[Action, ...] = ()
    status: Status
    announcements: tuple[Announcement, ...] = ()
    next_at: datetime | None = None
    """Look again then, whatever happens; None: only when something changes."""
    wants_fresh: bool = False
    """Nothing is to be done yet: what is seen is in doubt. List the children and decide again at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What this installation gives every run: images, the store, the model cache."""

    runtime_image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    store_address: str = "hermes-store:7443"
    """host:port of the store's Service."""
    store_ca_configmap: str = ""
    """ConfigMap in the run's namespace whose key ca.crt signs the store's certificate; "": no TLS."""
    model_claim: str = ""
    """PersistentVolumeClaim of the model cache in the run's namespace; "": bundled models only."""
    hub_token_secret: str = ""
    """Secret with key `token` for gated models; "": none."""
    hub_endpoint: str = ""
    """Where a mirror of the Hub is; "": the Hub itself."""
    max_concurrent_runs: int = 0
    """Runs at a time in all namespaces together; 0: as many as there are."""
