"""A run's pods as processes of this machine: store, relays, sidecars and drivers, some of them killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hermes_runtime.evaluate.results import Result
from hermes_runtime.store import Digest, fsck
from hermes_runtime.store.disk import DiskStore
from tests.e2e.conftest import environment, hermes, hermes_command, write_shop
from tests.e2e.served import serving
from tests.e2e.token_reviews import ReviewServer

RUN = "team.scripted.0a1b2c3d"
ARMS = ("A", "C", "PM", "enumerate")
NAMES = {"night's": "system:serviceaccount:team:hermes-run-scripted"}


def document_of(shop: Path, **spec: Any) -> str:
    """The shop's document as the operator hands it over: JSON, one instance a shard."""
    document = yaml.safe_load((shop / "scripted.yaml").read_text())
    document["spec"]["model"]["source"]["path"] = str(shop / "script.yaml")
    document["spec"]["evaluate"]["instances"]["file"] = str(shop / "instances.jsonl")
    document["spec"] |= {"shardSize": 1, **spec}
    return json.dumps(document)


@dataclass(frozen=True)
class Pod:
    """Where a pod's containers find each other."""

    folder: Path
    document: str
    index: int

    @property
    def sockets(self) -> Path:
        return self.folder / "run"

    @property
    def log(self) -> Path:
        return self.folder / "termination-log"

    def told(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.log.read_bytes())
        assert len(self.log.read_bytes()) <= 4000
        return read

    async def driver(self, *, attempt: int = 1) -> asyncio.subprocess.Process:
        """Start the driver."""
        words = ("--run-id", RUN, "--sockets", self.sockets, "--work", self.folder / "work")
        return await asyncio.create_subprocess_exec(
            *hermes_command("shard", *words, "--models", self.folder, "--termination-log", self.log),
            env={
                **environment(),
                "HERMES_RUN_DOCUMENT": self.document,
                "JOB_COMPLETION_INDEX": str(self.index),
                "HERMES_ATTEMPT": str(attempt),
                "HERMES_CACHE": str(self.folder / "cache"),
            },
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )

    async def drive(self, *, attempt: int = 1) -> tuple[int, str]:
        """Run the driver to its end; exit code and what it printed."""
        process = await self.driver(attempt=attempt)
        async with asyncio.timeout(200):
            _, said = await process.communicate()
        assert process.returncode is not None
        return process.returncode, said.decode()


@asynccontextmanager
async def store(folder: Path) -> AsyncIterator[str]:
    """The installation's store, over `folder`/store; its address."""
    words = ("store", "serve", "--folder", folder / "store", "--listen", "127.0.0.1:0")
    with ReviewServer(dict(NAMES)).serving(folder) as kubeconfig:
        async with serving(
            *(*words, "--authenticate", "token-review"),
            ready=folder / "store-ready",
            KUBECONFIG=str(kubeconfig),
        ) as (_, where):
            yield where


@asynccontextmanager
async def pod(folder: Path, to: str, document: str, index: int) -> AsyncIterator[Pod]:
    """The sidecars of one pod, started in Kubernetes' order."""
    made = Pod(folder, document, index)
    folder.mkdir()
    (folder / "token").write_text("night's\n")
    at = made.sockets
    script = json.loads(document)["spec"]["model"]["source"]["path"]
    start: dict[str, list[str | Path]] = {
        "store": ["store", "relay", "--to", to, "--token-file", folder / "token"],
        "model": ["model", "serve", "--backend", "scripted", "--path", script, "--seal"],
    }
    for role in ("planner", "coder", "tester"):
        start[role] = ["agent", "serve", role, "--store", at / "store", "--model", at / "model"]
        start[role] += ["--sandbox", "landlock", "--seal"]
    async with AsyncExitStack() as stack:
        for name, words in start.items():
            await stack.enter_async_context(serving(*words, "--socket", at / name, ready=at / "ready" / name))
        yield made


def results_of(folder: Path) -> list[Result]:
    """What the store has of the run, once it is not served any more."""
    with closing(DiskStore(folder / "store")) as store:
        return [Result.model_validate_json(data) for _, data in store.results(RUN)]


def patches(results: list[Result]) -> dict[str, dict[str, str]]:
    return {arm: {r.instance_id: r.patch for r in results if r.arm == arm} for arm in ARMS}


@pytest.fixture(scope="module")
def on_a_laptop(tmp_path_factory) -> dict[str, dict[str, str]]:
    """The patches of `hermes run` of the same document."""
    shop = tmp_path_factory.mktemp("laptop")
    write_shop(shop)
    done = hermes("run", "-f", shop / "scripted.yaml", "--out", shop / "out", cwd=shop)
    assert done.returncode == 0, done.stderr
    found = {}
    for arm in ARMS:
        lines = (shop / "out" / "predictions" / f"{arm}.jsonl").read_text().splitlines()
        found[arm] = {row["instance_id"]: row["model_patch"] for row in map(json.loads, lines)}
    return found


async def test_two_shards_of_a_run_give_what_one_machine_gives(shop, tmp_path, on_a_laptop):
    home = tmp_path / "home"
    home.mkdir()
    document = document_of(shop)
    async with store(home) as to:
        for index in (0, 1):
            async with pod(tmp_path / f"pod{index}", to, document, index) as made:
                code, said = await made.drive()
                assert code == 0, said
                told = made.told()
                assert (told["done"], told["total"], told["failure"]) == (4, 4, None)
                assert {name: arm["done"] for name, arm in told["arms"].items()} == dict.fromkeys(ARMS, 1)
                assert told["hermetic"] == {"counted": True, "attempts": 0}
                assert told["manifest"].startswith("mcp://sha256/")
                # what is recorded is not done again, and the same words are said of it
                before = time.monotonic()
                code, said = await made.drive(attempt=2)
                assert code == 0, said
                assert "[1/4]" not in said
                assert made.told()["arms"] == told["arms"]
                assert time.monotonic() - before < 60
    results = results_of(home)
    assert patches(results) == on_a_laptop
    assert Counter((r.instance_id, r.arm) for r in results).most_common(1)[0][1] == 1
    assert {r.run for r in results} == {RUN}
    with closing(DiskStore(home / "store")) as kept:
        for index, name in enumerate(("shop__minus", "shop__order")):
            (event, _) = kept.events(stream_prefix=f"{RUN}/shard/{index}")
            payload = json.loads(event.event.payload)
            assert (event.event.type, payload["index"]) == ("shard", index)
            blobs = {digest.uri: kept.get(digest) for digest in event.event.digests}
            (instance,) = map(json.loads, blobs[payload["instances_jsonl"]].splitlines())
            assert instance["instance_id"] == name
            manifest = json.loads(blobs[payload["manifest"]])
            assert (manifest["run_id"], manifest["hermetic"]["attempts"]) == (RUN, 0)
            assert manifest["hermetic"]["sealed"] == "driver, model, planner, coder, tester"
            assert yaml.safe_load(blobs[payload["document"]])["metadata"]["name"] == "scripted"
            assert kept.stat([Digest.of(blobs[payload["manifest"]])])[0].expires_at is None  # for ever
    assert fsck.check(home / "store").is_sound


async def test_a_driver_killed_in_the_middle_goes_on_where_it_was_and_doubles_nothing(
    shop, tmp_path, on_a_laptop
):
    home = tmp_path / "home"
    home.mkdir()
    async with store(home) as to, pod(tmp_path / "pod", to, document_of(shop, shardSize=2), 0) as made:
        process = await made.driver()
        assert process.stderr
        async for line in process.stderr:
            if line.startswith(b"[3/8]"):
                process.kill()
        await process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert made.told()["done"] >= 3  # said before it was killed
        code, said = await made.drive(attempt=2)
        assert code == 0, said
        assert "[3/8]" not in said
        assert made.told()["done"] == 8
    results = results_of(home)
    assert patches(results) == on_a_laptop
    assert Counter((r.instance_id, r.arm) for r in results).most_common(1)[0][1] == 1


async def test_two_drivers_of_one_shard_at_one_time_record_every_result_once(shop, tmp_path, on_a_laptop):
    """As when a node that was given up comes back: neither takes the other's writing for its own failure."""
    home = tmp_path / "home"
    home.mkdir()
    document = document_of(shop, shardSize=2)
    async with store(home) as to, pod(tmp_path / "pod", to, document, 0) as made:
        (tmp_path / "again").mkdir()
        (tmp_path / "again" / "run").symlink_to(made.sockets)
        again = Pod(tmp_path / "again", document, 0)
        async with asyncio.TaskGroup() as group:
            both = [group.create_task(each.drive()) for each in (made, again)]
        assert [task.result()[0] for task in both] == [0, 0], [task.result()[1] for task in both]
        assert made.told()["arms"] == again.told()["arms"]
    results = results_of(home)
    assert patches(results) == on_a_laptop
    assert len(results) == 8


async def test_sigterm_ends_a_driver_in_seconds_and_it_says_so(shop, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    async with store(home) as to, pod(tmp_path / "pod", to, document_of(shop, shardSize=2), 0) as made:
        process = await made.driver()
        assert process.stderr
        async for line in process.stderr:
            if line.startswith(b"[1/8]"):
                process.terminate()
                before = time.monotonic()
        await process.communicate()
        assert time.monotonic() - before < 5
        assert process.returncode == 143
        told = made.told()
        assert told["failure"]["reason"] == "Terminated"
        assert 1 <= told["done"] < 8
        assert (await made.drive(attempt=2))[0] == 0
        assert made.told()["failure"] is None


async def test_sigterm_while_preparing_ends_the_driver_too(shop, tmp_path):
    (tmp_path / "pod").mkdir()
    made = Pod(tmp_path / "pod", document_of(shop), 0)
    process = await made.driver()
    while not (made.folder / "work" / "shard-0" / "prepared.json").exists():  # nobody serves: it waits
        assert process.returncode is None
        await asyncio.sleep(0.02)
    process.terminate()
    async with asyncio.timeout(5):
        await process.communicate()
    assert process.returncode == 143
    assert made.told()["failure"]["reason"] == "Terminated"


@pytest.mark.parametrize("case", ["no document", "an unknown field", "no such instances"])
async def test_what_the_user_can_mend_is_exit_code_2_and_said(shop, tmp_path, case):
    (tmp_path / "pod").mkdir()
    evaluate = {"instances": {"file": "none.jsonl"}}
    document, message = {
        "no document": ("", "HERMES_RUN_DOCUMENT"),
        "an unknown field": (document_of(shop, sed=1), "spec.sed"),
        "no such instances": (document_of(shop, evaluate=evaluate), "none.jsonl"),
    }[case]
    made = Pod(tmp_path / "pod", document, 0)
    code, said = await made.drive()
    assert (code, "Traceback" in said) == (2, False), said
    failure = made.told()["failure"]
    assert (failure["who"], failure["reason"]) == ("user", "BadInput")
    assert message in failure["message"]


async def test_an_index_beyond_the_instances_is_done_with_nothing(shop, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    async with store(home) as to, pod(tmp_path / "pod", to, document_of(shop), 7) as made:
        code, said = await made.drive()
        assert code == 0, said
        assert (made.told()["done"], made.told()["total"]) == (0, 0)


async def test_a_lost_sidecar_is_waited_for(shop, tmp_path, on_a_laptop):
    """The coder is killed in the middle of the run and started again, as Kubernetes does."""
    home = tmp_path / "home"
    home.mkdir()
    async with store(home) as to, pod(tmp_path / "pod", to, document_of(shop, shardSize=2), 0) as made:
        process = await made.driver()
        assert process.stderr
        coder: list[str | Path] = ["agent", "serve", "coder", "--store", made.sockets / "store"]
        coder += ["--model", made.sockets / "model", "--seal", "--socket", made.sockets / "coder"]
        async with AsyncExitStack() as stack:
            async for line in process.stderr:
                if line.startswith(b"[1/8]"):
                    kill(made.sockets / "coder")
                    ready = made.sockets / "ready" / "coder-again"
                    await stack.enter_async_context(serving(*coder, ready=ready))
            await process.communicate()
            assert process.returncode == 0
    assert patches(results_of(home)) == on_a_laptop


def kill(socket: Path) -> None:
    """Kill the process that was started to serve at `socket`."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        words = entry.read_bytes().split(b"\0")
        if b"serve" in words and str(socket).encode() in words:
            os.kill(int(entry.parent.name), signal.SIGKILL)
            return
    raise AssertionError(f"nobody serves at {socket}")
