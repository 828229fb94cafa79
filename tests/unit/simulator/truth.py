"""What really happened, whatever the operator saw of it; and what the played parts of a cluster share."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

from hermes_operator.names import Who
from hermes_operator.status import Manifest
from tests.unit.simulator.faults import Odds
from tests.unit.simulator.server import EPOCH, Clock, Server

INDEX = "batch.kubernetes.io/job-completion-index"
FAILURES = "batch.kubernetes.io/job-index-failure-count"
IGNORED = "batch.kubernetes.io/job-index-ignored-failure-count"
TRACKING = "batch.kubernetes.io/job-tracking"
"""Finalizer of pods that their Job has still to count."""

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
    """uids of pods whose failure counts."""
    failures: int = 0
    last_failure_at: float = 0.0
    told: set[str] = field(default_factory=set)
    """uids of pods that the Job saw end, well or not."""
    going_since: float | None = None
    """When it was last set going."""
    deadline_after: tuple[float, float] | None = None
    """Seconds that it had been going when its deadline ended it, and the deadline."""
    alarms: set[float] = field(default_factory=set)
    """Instants at which its controller looks at it again."""
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
    return int(pod["metadata"]["annotations"][INDEX])


def exit_code_of(pod: Manifest) -> int | None:
    for one in pod["status"].get("containerStatuses") or ():
        if "terminated" in one["state"]:
            return int(one["state"]["terminated"]["exitCode"])
    return None


def is_disrupted(pod: Manifest) -> bool:
    return any(one["type"] == "DisruptionTarget" for one in pod["status"].get("conditions") or ())


def failures_before(pod: Manifest) -> int:
    """Pods of its index that failed before it and count."""
    return int(pod["metadata"]["annotations"][FAILURES])


def ignored_before(pod: Manifest) -> int:
    """Pods of its index that failed before it and do not count."""
    return int(pod["metadata"]["annotations"][IGNORED])


def fatal_codes(truth: JobTruth) -> tuple[int, ...]:
    """Exit codes that end the Job."""
    return (2, 3) if truth.is_pull else (2,)


def is_counted(truth: JobTruth, pod: Manifest) -> bool:
    """No Ignore rule stands before (matchPodFailurePolicy, pod_failure_policy.go: the first that matches
    decides): a disruption never counts, nor a driver that was told to stop, whoever told it."""
    return not is_disrupted(pod) and (truth.is_pull or exit_code_of(pod) != 143)


def finished_at(pod: Manifest) -> float:
    """getFinishedTime, backoff_utils.go: by its containers, else by what is known of it."""
    told = [
        one["state"]["terminated"].get("finishedAt")
        for one in pod["status"].get("containerStatuses") or ()
        if "terminated" in one["state"]
    ]
    metadata = pod["metadata"]
    text = next(iter(told), None) or metadata.get("deletionTimestamp") or metadata["creationTimestamp"]
    return datetime.fromisoformat(text).timestamp() - EPOCH.timestamp()
