"""The operator's process against an API over HTTP: a run's life, its requests, how it starts and stops."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from hermes_operator.decide import API_REQUESTS_PER_RUN_MAX
from tests.e2e.fake_api import Object, cluster, new_run, phase
from tests.e2e.operator_process import ROOT, operated, operator_process, until


async def test_a_run_lives_from_its_creation_to_its_removal_within_its_budget_of_requests(tmp_path):
    async with cluster() as api, operated(api, tmp_path) as operator:
        api.put("hermesruns", new_run("first", ttlSecondsAfterFinished=2))
        await until(lambda: phase(api, "first") == "Succeeded")
        status = api.at("hermesruns", "research", "first")["status"]
        await until(lambda: api.get("hermesruns", "research", "first") is None)

        assert status["progress"]["arms"] == [{"name": "A", "done": 2, "solved": 1}]
        assert [api.of(kind) for kind in ("jobs", "pods", "serviceaccounts", "networkpolicies")] == [[]] * 4
        assert [event["reason"] for event in api.of("events")] == ["AllShardsDone"]
        assert len(api.written()) <= API_REQUESTS_PER_RUN_MAX, api.written()
        assert {one.verb for one in api.requests if one.agent.startswith("kopf")} <= {
            "discover",
            "list",
            "watch",
        }
        code, _ = await operator.stopped()
        assert code == 0


async def test_runs_of_several_namespaces_are_told_apart(tmp_path):
    async with cluster() as api, operated(api, tmp_path, namespaces="left,right"):
        for namespace in ("left", "right", "unwatched"):
            api.put("hermesruns", new_run("same", namespace))
        await until(lambda: {phase(api, "same", where) for where in ("left", "right")} == {"Succeeded"})

        assert phase(api, "same", "unwatched") == ""


async def test_a_run_made_before_the_operator_is_found(tmp_path):
    async with cluster() as api:
        api.put("hermesruns", new_run("early"))
        async with operated(api, tmp_path):
            await until(lambda: phase(api, "early") == "Succeeded")


async def test_a_run_that_cannot_run_says_why_and_costs_one_write(tmp_path):
    async with cluster() as api, operated(api, tmp_path):
        api.put("hermesruns", new_run("wrong", evaluate={"instances": {"file": "here.jsonl"}}))
        await until(lambda: phase(api, "wrong"))
        api.put("hermesruns", new_run("right"))
        await until(lambda: phase(api, "right") == "Succeeded")

        conditions = api.at("hermesruns", "research", "wrong")["status"]["conditions"]
        accepted = next(one for one in conditions if one["type"] == "Accepted")
        assert (accepted["status"], accepted["reason"]) == ("False", "NotOnACluster")
        assert [one.verb for one in api.written() if "wrong" in one.name] == ["apply"]


async def test_a_job_that_somebody_deletes_is_made_again(tmp_path):
    async with cluster(ends=False) as api, operated(api, tmp_path):
        api.put("hermesruns", new_run("first"))
        await until(lambda: phase(api, "first") == "Running")
        before = api.at("jobs", "research", "hermes-first-1")["metadata"]["uid"]
        api.remove("jobs", "research", "hermes-first-1")
        again = await until(lambda: api.get("jobs", "research", "hermes-first-1"))

        assert again["metadata"]["uid"] != before


async def test_a_run_of_the_same_name_is_another_run(tmp_path):
    async with cluster(ends=False) as api, operated(api, tmp_path):
        api.put("hermesruns", new_run("first"))
        await until(lambda: phase(api, "first") == "Running")
        before = api.at("jobs", "research", "hermes-first-1")["metadata"]["uid"]
        api.remove("hermesruns", "research", "first")
        api.put("hermesruns", new_run("first"))
        await until(lambda: phase(api, "first") == "Running")

        assert api.at("jobs", "research", "hermes-first-1")["metadata"]["uid"] != before


async def test_the_cap_holds_runs_back_and_lets_them_go_one_after_another(tmp_path):
    async with cluster(delay_seconds=0.1) as api:
        live: list[int] = []

        def count(resource: str, _: Object) -> None:
            if resource == "jobs":
                live.append(sum("completionTime" not in one.get("status", {}) for one in api.of("jobs")))

        api.on_change.append(count)
        async with operated(api, tmp_path, HERMES_MAX_CONCURRENT_RUNS="2"):
            for number in range(8):
                api.put("hermesruns", new_run(f"run-{number}"))
            await until(lambda: all(phase(api, f"run-{n}") == "Succeeded" for n in range(8)))

        assert max(live) == 2


async def test_health_and_metrics_are_served(tmp_path):
    async with cluster() as api, operated(api, tmp_path) as operator:
        api.put("hermesruns", new_run("first"))
        await until(lambda: phase(api, "first") == "Succeeded")

        assert [await operator.ask(path) for path in ("/livez", "/readyz")] == [(200, "ok\n")] * 2
        assert await operator.metric("hermes_operator_leader") == 1
        assert await operator.metric("hermes_operator_runs", phase="Succeeded") == 1
        applies = await operator.metric("hermes_operator_api_requests_total", verb="apply", code="200")
        assert applies == sum(one.verb == "apply" for one in api.requests)
        _, text = await operator.ask("/metrics")
        assert "first" not in text


@pytest.mark.timing
async def test_sigterm_gives_the_lease_back_and_ends_with_0_within_five_seconds(tmp_path):
    async with cluster() as api, operated(api, tmp_path) as operator:
        for number in range(50):
            api.put("hermesruns", new_run(f"run-{number}"))
        code, seconds = await operator.stopped()

        assert (code, seconds < 5.0) == (0, True), seconds
        assert api.at("leases", "research", "hermes-operator")["spec"]["holderIdentity"] == ""


@pytest.mark.timing
async def test_sigterm_while_standing_by_ends_with_0(tmp_path):
    async with cluster() as api, operated(api, tmp_path):
        async with operator_process(tmp_path / "kubeconfig", tmp_path, name="operator-1") as other:
            await other.ready()
            code, seconds = await other.stopped()

        assert (code, seconds < 2.0) == (0, True), seconds
        assert api.at("leases", "research", "hermes-operator")["spec"]["holderIdentity"] == "operator-0"


async def test_the_log_has_one_json_object_a_line_with_the_run(tmp_path):
    async with cluster() as api, operated(api, tmp_path) as operator:
        api.put("hermesruns", new_run("first"))
        await until(lambda: phase(api, "first") == "Succeeded")
        await operator.stopped()
        lines = [json.loads(line) for line in operator.log.read_text("utf-8").splitlines()]

    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    assert {line["run"] for line in lines if "run" in line} == {"research/first"}
    assert [line for line in lines if line["level"] not in ("info",)] == []


def _operator(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    folders = os.pathsep.join(str(ROOT / part) for part in ("operator", "runtime", "proto/gen"))
    return subprocess.run(
        [sys.executable, "-m", "hermes_operator", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": folders, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_crd_prints_the_custom_resource_definition():
    found = _operator("crd")

    assert (found.returncode, found.stderr) == (0, "")
    assert yaml.safe_load(found.stdout)["metadata"]["name"] == "hermesruns.hermes.dev"


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        pytest.param({}, "HERMES_NAMESPACES is not set", id="settings"),
        pytest.param(
            {"HERMES_NAMESPACES": "a", "HERMES_RUNTIME_IMAGE": "i", "KUBECONFIG": "/nowhere"},
            "no cluster to talk to",
            id="cluster",
        ),
    ],
)
def test_used_wrongly_it_says_so_in_one_line_and_ends_with_2(environment, told):
    found = _operator("run", **environment)

    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert told in found.stderr
