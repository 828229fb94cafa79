"""Everything together, and what must hold of every write of the operator's.

What must hold in the end is the schedule's business.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from hermes_operator import names
from hermes_operator.decide.failure import is_legal
from hermes_operator.names import ENDED
from hermes_operator.observed import Installation
from hermes_operator.status import Manifest, Status
from tests.unit.simulator.controllers import Controllers
from tests.unit.simulator.faults import CALM, HORIZON_SECONDS, Broken, Odds
from tests.unit.simulator.server import Change, clone
from tests.unit.simulator.truth import Ground, RunTruth, owner_of

STATUS_BYTES_MAX = 4096


class Killed(BaseException):
    """Raised in the middle of a request of a process that is killed there."""


class Life(Protocol):
    """One life of an operator's process."""

    is_alive: bool

    def heard(self, change: Change) -> None:
        """A watch's event."""

    def close(self) -> None:
        """The process is gone."""


class World(Ground):
    """Everything, and what must hold of it."""

    def __init__(self, seed: int, odds: Odds, begin: Callable[[World], Life]) -> None:
        """`begin` starts an operator's process."""
        super().__init__(seed, odds)
        self.seed = seed
        self._begin = begin
        self.installation = Installation(
            runtime_image="hermes:test",
            model_claim="models",
            max_concurrent_runs=odds.cap,
        )
        self.requests: Counter[str] = Counter()
        self.failed_looks: Counter[str] = Counter()
        self.kills = 0
        self.faults_until = 1_800.0
        self.api_away_at = self.dice.uniform(0.0, 600.0) if odds.api_away else None
        self.ended: dict[tuple[str, int], Manifest] = {}
        self.controllers = Controllers(self)
        self.operator: Life | None = None
        self.check_end: Callable[[Status, RunTruth], None] = lambda status, truth: None

    # What is asked by the operator's side

    def odds_now(self) -> Odds:
        return self.odds if self.clock.now < self.faults_until else CALM

    def count_request(self, what: str) -> None:
        self.requests[what] += 1
        if self.clock.now > HORIZON_SECONDS:
            raise Broken(f"{what} although nothing has changed")

    def is_api_away(self) -> bool:
        at = self.api_away_at
        return at is not None and at <= self.clock.now < at + 60.0

    def may_kill(self) -> None:
        if self.dice.random() < self.odds_now().kill:
            raise Killed

    def start_operator(self) -> None:
        if self.is_api_away():
            self.clock.after(5.0, self.start_operator)
            return
        self.operator = self._begin(self)

    def kill(self, operator: Life) -> None:
        if not operator.is_alive:
            return
        self.kills += 1
        self.server.listeners = [one for one in self.server.listeners if one != operator.heard]
        operator.close()
        self.clock.after(self.dice.uniform(0.5, 20.0), self.start_operator)

    # What must hold

    def check_made(self, manifest: Manifest) -> None:
        """Before the operator makes an object."""
        labels = manifest["metadata"]["labels"]
        if manifest["kind"] != "Job" or labels[names.LABEL_COMPONENT] != names.COMPONENT_RUN:
            return
        owner = owner_of(manifest)
        for other in self.server.all("Job"):
            is_run = other["metadata"]["labels"][names.LABEL_COMPONENT] == names.COMPONENT_RUN
            if is_run and owner_of(other) == owner:
                raise Broken(f"{manifest['metadata']['name']} is made beside {other['metadata']['name']}")
        truth = next((one for one in self.runs.values() if one.uid == owner), None)
        if truth is not None:
            known = self.server.get(names.KIND, truth.name)
            status = Status.from_manifest((known or {}).get("status") or {})
            attempt = int(labels[names.LABEL_ATTEMPT])
            is_ours = known is not None and known["metadata"]["uid"] == owner
            if is_ours and status.phase in ENDED and status.attempt >= attempt:
                raise Broken(f"a Job of attempt {attempt}, which has ended")

    def check_deleted(self, run: Manifest) -> None:
        """Before the operator deletes a run."""
        if Status.from_manifest(run.get("status") or {}).phase not in ENDED:
            raise Broken(f"{run['metadata']['name']} is deleted before it has ended")

    def check_status(self, run: Manifest, status: Manifest) -> None:
        """Before the operator writes a status."""
        size = len(json.dumps(status, ensure_ascii=False, separators=(",", ":")).encode())
        if size > STATUS_BYTES_MAX:
            raise Broken(f"a status of {size} bytes")
        new = Status.from_manifest(status)
        if not is_legal(new):
            raise Broken(f"not a legal status: {new.phase} {new.failure}")
        key = (str(run["metadata"]["uid"]), new.attempt)
        kept = {
            part: clone(status.get(part)) for part in ("phase", "failure", "shards", "progress", "finishedAt")
        }
        if key in self.ended and self.ended[key] != kept:
            raise Broken(f"an end was taken back: {self.ended[key]} -> {kept}")
        if new.phase in ENDED and new.attempt and key not in self.ended:
            self.ended[key] = kept
            self.check_end(new, self.runs[key[0]])
