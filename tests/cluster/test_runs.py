"""Whole runs on a cluster with HERMES installed: what comes out, and what survives in their own pods.

What is lost around them (store, operator, kubelet) is in test_lost.py, what is refused in test_refused.py.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster import fence, kind
from tests.cluster.runs import (
    RESULTS,
    Folder,
    Hermes,
    Run,
    done,
    index_of,
    kill,
    pod_of_runtime,
    process_of,
    told_of,
    until,
)

CONTAINERS = ("driver", "model", "tester", "store")
SUSPENDED = "suspended"

LEAVER = """
import socket
try:
    socket.create_connection(("192.0.2.1", 443), timeout=2)
except OSError:
    pass
else:
    raise SystemExit("through")
"""


def test_a_run_brings_the_results_of_one_machine_and_leaves_nothing_but_them(
    hermes: Hermes, run: Callable[..., Run], on_this_machine: Folder, tmp_path: Path
) -> None:
    engine = hermes.cluster.engine
    left_before = fence.left_by_pod(engine, kind.NODE)
    reached_before = fence.reached_by_pod(engine, kind.NODE)
    whole = run("whole", parallelism=2)
    found = whole.succeeds()
    assert found["progress"]["doneOfTotal"] == f"{RESULTS}/{RESULTS}"
    assert found["shards"]["succeeded"] == 2
    conditions = {one["type"]: (one["status"], one["reason"]) for one in found["conditions"]}
    assert conditions == {
        "Accepted": ("True", "DocumentValid"),
        "ModelVerified": ("Unknown", "VerifiedWhenLoaded") if hermes.is_slim else ("True", "Bundled"),
        "Started": ("True", "DriverStarted"),
        "Complete": ("True", "AllShardsDone"),
        "Hermetic": ("True", "NoSocketAttempted"),
        "Reconciled": ("True", "InStep"),
    }
    assert hermes.is_slim or found["loaded"]["weightBytes"] > 0
    addresses = {pod["status"]["podIP"] for pod in whole.pods()}
    assert len(addresses) == 2

    folder = whole.fetch(tmp_path / "run")
    assert folder.predictions() == on_this_machine.predictions()
    assert any(on_this_machine.predictions()["PM"].values())  # the team itself has solved one
    assert folder.recorded() == on_this_machine.recorded()
    assert (folder.path / "report.html").stat().st_size > 10_000
    assert folder.summary()["hermetic"]["attempts"] == 0
    assert len(json.dumps(whole.manifest)) < 8 * 1024

    leaver = done(hermes, pod_of_runtime(hermes, "leaver", LEAVER))["status"]["podIP"]
    left, reached = fence.left_by_pod(engine, kind.NODE), fence.reached_by_pod(engine, kind.NODE)
    assert left[leaver] > left_before.get(leaver, 0)  # what is not sealed, and tries, is counted
    assert ("192.0.2.1", 443) in reached[leaver]
    store = (hermes.get("pod", "hermes-store-0")["status"]["podIP"], 7443)
    names = hermes.get("pods", "--namespace", "kube-system", "--selector", "k8s-app=kube-dns")["items"]
    for address in addresses:
        assert left.get(address, 0) == left_before.get(address, 0)
        of_this_run = reached[address] - reached_before.get(address, set())
        assert store in of_this_run
        assert of_this_run <= {store, *((pod["status"]["podIP"], 53) for pod in names)}
    whole.delete()
    until("children collected", lambda: not whole.children(), 60)


@pytest.fixture(scope="module")
def disturbed(hermes: Hermes, script: Path) -> dict[str, Run]:
    """A run for each container that is killed in its middle, and one that is suspended there; at once."""

    def disturb(name: str) -> Run:
        run = hermes.start(f"disturbed-{name}")
        if name == SUSPENDED:
            run.in_the_middle(1)
            run.edit(suspend=True)
        else:
            pid = process_of(hermes, run.pod_at_work(), name)
            run.in_the_middle()
            kill(hermes, pid)
        return run

    names = (*CONTAINERS, SUSPENDED)
    with ThreadPoolExecutor() as at_once:
        return dict(zip(names, at_once.map(disturb, names), strict=True))


@pytest.mark.parametrize("victim", CONTAINERS)
def test_a_container_killed_in_mid_run_loses_and_doubles_nothing(
    disturbed: dict[str, Run], on_this_machine: Folder, tmp_path: Path, victim: str
) -> None:
    killed = disturbed[victim]
    killed.succeeds()
    pods = [pod for pod in killed.pods() if index_of(pod) == 0]
    # a driver's end is its pod's: the shard is tried again; a sidecar is started again where it was
    assert len(pods) == (2 if victim == "driver" else 1)
    assert victim == "driver" or told_of(pods[0], victim)["restartCount"] == 1
    folder = killed.fetch(tmp_path / "run")
    assert folder.predictions() == on_this_machine.predictions()
    assert folder.recorded() == on_this_machine.recorded()
    killed.delete()


def test_a_suspended_run_goes_on_where_it_was(
    disturbed: dict[str, Run], on_this_machine: Folder, tmp_path: Path
) -> None:
    paused = disturbed[SUSPENDED]
    paused.until("Suspended", lambda found: found.get("phase") == "Suspended")
    until("no pod at work", lambda: all(pod["status"]["phase"] == "Succeeded" for pod in paused.pods()), 60)
    assert paused.status["shards"] == {"active": 0, "failed": 0, "succeeded": 1, "total": 2}
    paused.edit(suspend=False)
    paused.succeeds()
    assert [index_of(pod) for pod in paused.pods()].count(0) == 1
    folder = paused.fetch(tmp_path / "run")
    assert folder.predictions() == on_this_machine.predictions()
    assert folder.recorded() == on_this_machine.recorded()
    paused.delete()
