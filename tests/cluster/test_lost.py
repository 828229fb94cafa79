"""What is lost around a run in its middle: the store, the operator, the node's kubelet. The run goes on."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.cluster.runs import (
    Folder,
    Hermes,
    Manifest,
    Run,
    index_of,
    kill,
    on_the_node,
    process_of,
    until,
    vanish,
)

STORE = "app.kubernetes.io/component=store"
OPERATOR = "app.kubernetes.io/component=operator"


def one_pod(hermes: Hermes, selector: str) -> Manifest:
    (pod,) = hermes.get("pods", "--selector", f"app.kubernetes.io/name=hermes,{selector}")["items"]
    return dict(pod)


def ended_as_if_nothing_had_been(run: Run, undisturbed: Folder, out: Path) -> None:
    """Succeeded, with every result once and the same, and no shard begun a second time."""
    found = run.succeeds()
    assert found["shards"]["succeeded"] == 2
    assert found.get("failure") is None
    conditions = {one["type"]: one["status"] for one in found["conditions"]}
    assert (conditions["Complete"], conditions["Hermetic"], conditions["Reconciled"]) == ("True",) * 3
    assert Counter(index_of(pod) for pod in run.pods()) == {0: 1, 1: 1}
    folder = run.fetch(out)
    assert folder.predictions() == undisturbed.predictions()
    assert folder.recorded() == undisturbed.recorded()


def test_a_store_killed_and_then_deleted_in_mid_run_loses_and_doubles_no_result(
    hermes: Hermes, run: Callable[..., Run], on_this_machine: Folder, tmp_path: Path
) -> None:
    going = run("store-lost")
    before = one_pod(hermes, STORE)
    pid = process_of(hermes, before, "store")
    going.in_the_middle(0)
    kill(hermes, pid)
    going.in_the_middle(1)
    vanish(hermes, before["metadata"]["name"])
    ended_as_if_nothing_had_been(going, on_this_machine, tmp_path / "run")
    assert one_pod(hermes, STORE)["metadata"]["uid"] != before["metadata"]["uid"]


def test_an_operator_killed_and_then_deleted_in_mid_run_goes_on_where_it_was(
    hermes: Hermes, run: Callable[..., Run], on_this_machine: Folder, tmp_path: Path
) -> None:
    going = run("operator-lost")
    before = one_pod(hermes, OPERATOR)
    pid = process_of(hermes, before, "operator")
    going.pod_at_work(0)
    kill(hermes, pid)
    going.pod_at_work(1)
    vanish(hermes, before["metadata"]["name"])
    ended_as_if_nothing_had_been(going, on_this_machine, tmp_path / "run")
    jobs = [child for child in going.children() if child.startswith("Job/")]
    assert jobs == ["Job/hermes-operator-lost-1"]


def test_a_node_whose_kubelet_is_away_for_a_while_repeats_no_shard(
    hermes: Hermes, run: Callable[..., Run], on_this_machine: Folder, tmp_path: Path
) -> None:
    def node_is(ready: str) -> Callable[[], bool]:
        words = (
            "get",
            "nodes",
            "--output",
            "jsonpath={.items[0].status.conditions[?(@.type=='Ready')].status}",
        )
        return lambda: hermes.kubectl(*words) == ready

    going = run("kubelet-away")
    going.shard_is_done()
    going.pod_at_work(1)
    on_the_node(hermes, "systemctl", "stop", "kubelet")
    try:
        until("the node counts as lost", node_is("Unknown"), 120)
    finally:
        on_the_node(hermes, "systemctl", "start", "kubelet")
    until("the node is back", node_is("True"), 120)
    ended_as_if_nothing_had_been(going, on_this_machine, tmp_path / "run")
