"""A thousand runs at one operator: how many requests, how much memory, none when idle, none at a restart."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.fake_api import FakeApi, cluster, new_run, phase
from tests.e2e.operator_process import operated, operator_process, until

pytestmark = pytest.mark.timing

RUNS = 1000
MEMORY_BYTES_MAX = 128 << 20
IDLE_SECONDS = 4.0
BUSY_SECONDS_MAX = 240.0


def _are_running(api: FakeApi) -> bool:
    # The last ones first: they end the wait.
    return all(phase(api, f"run-{number}") == "Running" for number in reversed(range(RUNS)))


async def test_a_thousand_runs_cost_few_requests_and_little_memory_and_nothing_when_idle(tmp_path):
    async with cluster(ends=False, delay_seconds=0.0) as api:
        async with operated(api, tmp_path) as operator:
            for number in range(RUNS):
                api.put("hermesruns", new_run(f"run-{number}"))
            await until(lambda: _are_running(api), BUSY_SECONDS_MAX)
            writes = len(api.written())
            await asyncio.sleep(1.5)  # what is still under way
            before = len(api.requests)
            await asyncio.sleep(IDLE_SECONDS)
            idle = [one for one in api.requests[before:] if one.resource != "leases"]
            memory, seconds = operator.memory_bytes(), operator.processor_seconds()
            print(f"{RUNS} runs: {writes / RUNS:.2f} writes each, {memory >> 20} MiB, {seconds:.1f} s of CPU")
            await operator.stopped()

        assert idle == []
        assert writes <= 5 * RUNS
        assert memory <= MEMORY_BYTES_MAX

        before = len(api.written())
        async with operator_process(tmp_path / "kubeconfig", tmp_path) as operator:
            await operator.leading(BUSY_SECONDS_MAX)
            api.put("hermesruns", new_run("one-more"))
            await until(lambda: phase(api, "one-more") == "Running", BUSY_SECONDS_MAX)
            in_step = await operator.metric("hermes_operator_reconciles_total", outcome="in step")
            print(
                f"after a restart: {operator.memory_bytes() >> 20} MiB, {operator.processor_seconds():.1f} s"
            )

            assert in_step >= RUNS
            assert {one.name.removesuffix("-1").rpartition("run-")[2] for one in api.written()[before:]} == {
                "one-more",
                "hermes-one-more",
            }
            assert operator.memory_bytes() <= MEMORY_BYTES_MAX
