"""What a run waits for is told from its pods, once for each reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hermes_operator.names import Condition, Phase, Reason
from hermes_operator.status import Manifest
from tests.unit.sample_cluster import a_job, a_pod, a_run, begun, decided, exited, waiting

RUN = a_run()
BEGUN = replace(RUN, status=begun(RUN))
JOB = a_job(RUN)
INITIALIZING = waiting("PodInitializing")


def unscheduled(message: str) -> list[Manifest]:
    return [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]


def crashed(code: int, reason: str = "Error", log: str = "") -> Manifest:
    return {"state": waiting("CrashLoopBackOff"), "lastState": exited(code, log, reason=reason)}


def pending(
    driver: Manifest = INITIALIZING,
    conditions: list[Manifest] | None = None,
    sidecars: dict[str, Manifest] | None = None,
) -> Manifest:
    return a_pod(JOB, phase="Pending", driver=driver, conditions=conditions, sidecars=sidecars)


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        (pending(), Reason.WAITING_FOR_PODS, ""),
        (pending(conditions=unscheduled("0/3 nodes: no GPU")), Reason.UNSCHEDULABLE, "0/3 nodes: no GPU"),
        (
            pending(conditions=unscheduled('persistentvolumeclaim "models" not found')),
            Reason.VOLUME_NOT_BOUND,
            "models",
        ),
        (
            pending(conditions=unscheduled("0/1 nodes: pod has unbound immediate PersistentVolumeClaims")),
            Reason.VOLUME_NOT_BOUND,
            "claim models: 0/1 nodes",
        ),
        (
            pending(waiting("ErrImagePull", "no such image")),
            Reason.IMAGE_PULL_FAILED,
            "driver: no such image",
        ),
        (pending(waiting("ImagePullBackOff", "later")), Reason.IMAGE_PULL_FAILED, "driver: later"),
        (pending(waiting("CreateContainerConfigError", "no Secret")), Reason.WAITING_FOR_PODS, "no Secret"),
        (pending(sidecars={"model": crashed(1)}), Reason.MODEL_FAILED, "model exited 1"),
        (
            pending(sidecars={"model": crashed(1, log="Traceback ...\nhermes: no module named torch\n\n")}),
            Reason.MODEL_FAILED,
            "model exited 1: hermes: no module named torch",
        ),
        (pending(sidecars={"model": crashed(137, "OOMKilled")}), Reason.OUT_OF_MEMORY, "raise its limit"),
        (pending(sidecars={"store": crashed(1)}), Reason.STORE_LOST, "store exited 1"),
        (pending(sidecars={"coder": crashed(1)}), Reason.AGENT_FAILED, "coder exited 1"),
        (pending(sidecars={"model": crashed(143)}), Reason.WAITING_FOR_PODS, ""),
    ],
)
def test_a_reason(pod: Manifest, reason: Reason, words: str):
    decision = decided(BEGUN, JOB, pod)
    condition = decision.status.conditions[Condition.STARTED]
    assert decision.status.phase is Phase.STARTING
    assert (condition.status, condition.reason) == ("False", reason)
    assert words in condition.message
    assert len(decision.announcements) == bool(words)


def test_a_reason_is_announced_once_and_keeps_its_first_message():
    first = decided(BEGUN, JOB, pending(conditions=unscheduled("0/3 nodes")))
    later = decided(replace(RUN, status=first.status), JOB, pending(conditions=unscheduled("0/4 nodes")))
    assert later.status == first.status
    assert later.announcements == ()


def test_a_job_without_pods_says_so_after_a_minute():
    early = decided(BEGUN, JOB)
    assert early.status == BEGUN.status
    assert early.next_at is not None
    late = decided(BEGUN, JOB, seconds=60)
    assert "has no pod" in late.status.conditions[Condition.STARTED].message


@pytest.mark.parametrize("driver", [{"running": {"startedAt": "2030-01-01T11:59:00Z"}}, exited(1)])
def test_a_run_runs_once_a_driver_has_started(driver: Manifest):
    decision = decided(BEGUN, JOB, a_pod(JOB, driver=driver))
    assert decision.status.phase is Phase.RUNNING
    assert decision.status.running_at is not None
    assert decision.status.shards.active == 1
    assert decision.status.conditions[Condition.STARTED].status == "True"
    again = decided(replace(RUN, status=decision.status), JOB)
    assert again.status.phase is Phase.RUNNING
