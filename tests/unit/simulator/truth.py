"""What really happened, whatever the operator saw of it; and what the played parts of a cluster share."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from hermes_operator.names import Who
from hermes_operator.status import Manifest
from tests.unit.simulator.faults import Odds
from tests.unit.simulator.server import Clock, Server

ARMS = ("A", "C", "PM")
INSTANCES_PER_SHARD = 4


@dataclass(kw_only=True)
class JobTruth:
    """What the cluster knows of a Job, whatever became of the object."""

    run_uid: str
    name: str
    uid: str
    is_pull: bool
    completions: int
    limit_seconds: int
    counted: set[str] = field(default_factory=set)
    failures: Counter[int] = field(default_factory=Counter)
    completed: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    culprits: set[Who] = field(default_factory=set)
    """Who made pods fail."""
    vanished: set[int] = field(default_factory=set)
    """Shards of which a pod that had ended is gone."""
    driver_started_at: float | None = None
    ending: str = ""
    message: str = ""
    ended: str = ""
    """"Complete" or the reason of its failure."""


@dataclass(kw_only=True)
class RunTruth:
    """One HermesRun."""

    uid: str
    name: str
    trouble: str
    """What keeps its first attempt from starting; "": nothing."""
    is_pull_failing: bool
    jobs: list[JobTruth] = field(default_factory=list)
    solved: dict[tuple[int, str], int] = field(default_factory=dict)
    recorded: Counter[int] = field(default_factory=Counter)
    """Results of each shard in the store, under each arm: what was recorded stays."""


class Ground:
    """What the parts of the played cluster share."""

    def __init__(self, seed: int, odds: Odds) -> None:
        self.dice = random.Random(seed)
        self.odds = odds
        self.clock = Clock()
        self.server = Server(self.clock)
        self.runs: dict[str, RunTruth] = {}
        self.jobs: dict[str, JobTruth] = {}


def main_container(truth: JobTruth) -> str:
    return "pull" if truth.is_pull else "driver"


def owner_of(manifest: Manifest) -> str:
    owners = manifest["metadata"].get("ownerReferences") or ()
    return str(owners[0]["uid"]) if owners else ""


def index_of(pod: Manifest) -> int:
    return int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])


def exit_code_of(pod: Manifest) -> int | None:
    for one in pod["status"].get("containerStatuses") or ():
        if "terminated" in one["state"]:
            return int(one["state"]["terminated"]["exitCode"])
    return None


def is_disrupted(pod: Manifest) -> bool:
    return any(one["type"] == "DisruptionTarget" for one in pod["status"].get("conditions") or ())
