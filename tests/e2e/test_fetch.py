"""A run of a cluster's store, fetched through tokens and a port-forward's bridge, end to end to its report.

Store, relay, sidecars and drivers are real processes; the Kubernetes API is the one part that is not:
`Here` hands out the token and connects to the store's port.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, ClassVar

import pytest

from hermes_runtime.errors import BadInput, Damaged, Denied, NotFound, PeerLost
from hermes_runtime.evaluate.cluster import Connection, Installation, Manifest, Token, Wanted, bring, store_of
from hermes_runtime.evaluate.fetch import fetch
from hermes_runtime.evaluate.folder import RunFolder
from hermes_runtime.evaluate.views import explain_instance, write_views
from hermes_runtime.store import ResultKey, StoredEvent, fsck
from hermes_runtime.store.client import StoreClient
from hermes_runtime.store.disk import DiskStore
from hermes_runtime.supervise import tcp
from tests.e2e.conftest import hermes, write_shop
from tests.e2e.served import serving
from tests.e2e.test_shard import ARMS, RUN, document_of, pod
from tests.e2e.token_reviews import ReviewServer

READER = "system:serviceaccount:hermes-system:hermes-reader"
NAMES = {
    "night's": "system:serviceaccount:team:hermes-run-scripted",
    "reader's": READER,
    "stranger's": "system:serviceaccount:team:default",
}
AT = Installation()
WANTED = Wanted(namespace="team", name="scripted")


class Here:
    """The Kubernetes API as far as fetching needs it, for a store that this machine serves."""

    def __init__(self, address: str, run: Manifest, *, token: str = "reader's") -> None:
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self.runs = [run]
        self.text = token
        self.asked_for_token = 0
        self.connections: list[socket.socket] = []
        self.refuses = ""
        self.slow_seconds = 0.0
        """How long the way to the pod takes to open, as on a busy or distant cluster."""

    def run(self, namespace: str, name: str) -> Manifest:
        assert (namespace, name) == ("team", "scripted")
        return self.runs.pop(0) if len(self.runs) > 1 else self.runs[0]

    def token(self, at: Installation) -> Token:
        self.asked_for_token += 1
        return Token(text=self.text, expires_at=time.time() + 3600)

    def authority(self, at: Installation) -> str | None:
        return None

    def connect(self, at: Installation) -> Connection:
        if self.refuses:
            raise PeerLost(self.refuses)
        time.sleep(self.slow_seconds)
        line = socket.create_connection((self.host, self.port))
        self.connections.append(line)
        return Connection(line, lambda: "")


@asynccontextmanager
async def store(folder: Path) -> AsyncIterator[str]:
    """The installation's store, over `folder`/store; its address."""
    words = ("store", "serve", "--folder", folder / "store", "--listen", "127.0.0.1:0")
    with ReviewServer(dict(NAMES)).serving(folder) as kubeconfig:
        async with serving(
            *(*words, "--authenticate", "token-review", "--reader", READER),
            ready=folder / "store-ready",
            KUBECONFIG=str(kubeconfig),
        ) as (_, where):
            yield where


def hermes_run(document: str, **status: Any) -> Manifest:
    """The HermesRun as the API gives it."""
    run: Manifest = json.loads(document)
    run["metadata"] |= {"namespace": "team", "uid": "0a1b2c3d-0000-0000-0000-000000000000"}
    return {**run, "status": {"runId": RUN, "progress": {"total": 8}, **status}}


@pytest.fixture(scope="module")
def worked(tmp_path_factory) -> Path:
    """A folder with a shop, its run on a laptop, and the store in which two shards left the same run."""
    home = tmp_path_factory.mktemp("fetch")
    write_shop(home)
    (home / "after-one").mkdir()

    async def work() -> None:
        document = document_of(home)
        async with store(home) as to:
            for index in (0, 1):
                async with pod(home / f"pod{index}", to, document, index) as made:
                    code, said = await made.drive()
                    assert code == 0, said

    asyncio.run(work())
    done = hermes("run", "-f", home / "scripted.yaml", "--out", home / "laptop", cwd=home)
    assert done.returncode == 0, done.stderr
    return home


def predictions(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {
        arm: [json.loads(line) for line in (folder / "predictions" / f"{arm}.jsonl").read_text().splitlines()]
        for arm in ARMS
    }


async def test_a_fetched_run_has_the_views_of_the_same_run_on_a_laptop(worked: Path, tmp_path: Path):
    run = hermes_run(document_of(worked), phase="Succeeded")
    async with asyncio.timeout(120), store(worked) as address:
        said: list[str] = []
        assert await bring(Here(address, run), AT, WANTED, RunFolder(tmp_path / "run"), said.append) == run
    report = await asyncio.to_thread(write_views, tmp_path / "run")
    assert b"<html" in report.read_bytes()
    assert predictions(tmp_path / "run") == predictions(worked / "laptop")
    here, there = (
        json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "run", worked / "laptop")
    )
    assert here["run"] == there["run"] == "scripted"
    for arm in ("A", "C", "PM"):
        assert {name: here["arms"][arm][name] for name in ("n", "resolved", "pass_at_1")} == {
            name: there["arms"][arm][name] for name in ("n", "resolved", "pass_at_1")
        }
    assert (here["hermetic"]["wall"], here["hermetic"]["attempts"]) == ("seccomp", 0)
    assert "return result - discount" in explain_instance(tmp_path / "run", "shop__minus", "PM", colour=False)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"run.yaml", "instances.jsonl", "manifest.json", "results.parquet", "ledger.parquet"} <= names
    assert fsck.check(tmp_path / "run" / "store").is_sound
    assert hermes("report", tmp_path / "run").returncode == 0


async def test_a_fetch_that_was_cut_off_goes_on_where_it_was(worked: Path, tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    async with asyncio.timeout(120), store(worked) as address:
        api = Here(address, hermes_run(document_of(worked)))

        def cut(text: str) -> None:
            if "events" in text:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await bring(api, AT, WANTED, folder, cut)
        known = folder.read_fetched()
        assert known is not None
        assert known.copied_to > 0
        async with store_of(api, AT) as client:
            second = await fetch(client, folder, RUN)
            third = await fetch(client, folder, RUN)
    with closing(DiskStore(folder.store)) as store_here, closing(DiskStore(worked / "store")) as store_there:
        events = [found.digest for found in store_there.events(stream_prefix=f"{RUN}/")]
        assert [found.digest for found in store_here.events()] == events
        assert list(store_here.results(RUN)) == list(store_there.results(RUN))
    assert second.events < len(events)
    assert (third.events, third.blobs, third.results, third.shards) == (0, 0, 8, (0, 1))


async def test_a_lost_port_forward_is_opened_again(worked: Path, tmp_path: Path):
    async with asyncio.timeout(120), store(worked) as address:
        api = Here(address, hermes_run(document_of(worked)))
        async with store_of(api, AT) as client:
            (line,) = api.connections
            line.shutdown(socket.SHUT_RDWR)
            copied = await fetch(client, RunFolder(tmp_path / "run"), RUN)
    assert copied.results == 8
    assert len(api.connections) == 2
    assert api.asked_for_token == 1


async def test_a_port_forward_that_takes_a_second_to_open_is_waited_for(worked: Path, tmp_path: Path):
    async with asyncio.timeout(120), store(worked) as address:
        api = Here(address, hermes_run(document_of(worked)))
        api.slow_seconds = 1.0
        async with store_of(api, AT) as client:
            assert await client.head(f"{RUN}/shard/0")
    assert len(api.connections) == 1


async def test_events_that_break_off_in_the_middle_go_on_after_the_last_page(worked: Path, tmp_path: Path):
    class Cut(StoreClient):
        """Loses the store after 17 events, twice."""

        asked_after: ClassVar[list[int]] = []

        async def events(
            self, *, stream_prefix: str = "", after: int = 0
        ) -> AsyncGenerator[StoredEvent, None]:
            self.asked_after.append(after)
            count = 0
            async for event in super().events(stream_prefix=stream_prefix, after=after):
                yield event
                count += 1
                if count == 17 and len(self.asked_after) < 3:
                    raise PeerLost("the connection is gone")

    async with (
        asyncio.timeout(120),
        store(worked) as address,
        Cut(tcp.channel(address, token=lambda: "reader's")) as client,
    ):
        copied = await fetch(client, RunFolder(tmp_path / "run"), RUN, page_events=5)
    with (
        closing(DiskStore(tmp_path / "run" / "store")) as here,
        closing(DiskStore(worked / "store")) as there,
    ):
        events = list(there.events(stream_prefix=f"{RUN}/"))
        assert [event.digest for event in here.events()] == [event.digest for event in events]
    assert Cut.asked_after == [0, events[14].sequence, events[29].sequence]
    assert copied.events == len(events)


async def test_a_store_that_is_lost_at_once_again_is_given_up(worked: Path, tmp_path: Path):
    class Gone(StoreClient):
        """Never has an event."""

        async def events(
            self, *, stream_prefix: str = "", after: int = 0
        ) -> AsyncGenerator[StoredEvent, None]:
            raise PeerLost("the connection is gone")
            yield

    async with Gone(tmp_path / "nobody") as client:
        with pytest.raises(PeerLost, match="the connection is gone"):
            await fetch(client, RunFolder(tmp_path / "run"), RUN)


async def test_who_may_not_read_the_store_is_told_so(worked: Path, tmp_path: Path):
    async with asyncio.timeout(120), store(worked) as address:
        api = Here(address, hermes_run(document_of(worked)), token="stranger's")
        with pytest.raises(Denied, match="nor a reader of this store"):
            await bring(api, AT, WANTED, RunFolder(tmp_path / "run"))


async def test_a_port_forward_that_is_refused_says_why(worked: Path, tmp_path: Path):
    api = Here("127.0.0.1:9", hermes_run(document_of(worked)))
    api.refuses = "no pod of Service hermes-store is ready"
    with pytest.raises(PeerLost, match="no pod of Service hermes-store is ready"):
        async with asyncio.timeout(120), store_of(api, AT, ready_seconds=2.0):
            pass


async def test_a_run_that_the_store_does_not_know_is_not_found(worked: Path, tmp_path: Path):
    async with asyncio.timeout(120), store(worked) as address:
        api = Here(address, hermes_run(document_of(worked)))
        wanted = Wanted(namespace="team", name="scripted", run_id="team.scripted.ffffffff")
        with pytest.raises(NotFound, match=r"holds nothing of run team\.scripted\.ffffffff"):
            await bring(api, AT, wanted, RunFolder(tmp_path / "run"))


async def test_the_folder_of_another_run_is_left_as_it_is(worked: Path, tmp_path: Path):
    async with asyncio.timeout(120), store(worked) as address:
        api = Here(address, hermes_run(document_of(worked)))
        with pytest.raises(BadInput, match="holds a run of this machine"):
            await bring(api, AT, WANTED, RunFolder(worked / "laptop"))
        await bring(api, AT, WANTED, RunFolder(tmp_path / "run"))
        again = Wanted(namespace="team", name="scripted", run_id="team.scripted.ffffffff")
        with pytest.raises(BadInput, match=r"holds run team\.scripted\.0a1b2c3d and not"):
            await bring(api, AT, again, RunFolder(tmp_path / "run"))


async def test_another_result_than_before_is_damage_and_not_overwritten(worked: Path, tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    with closing(DiskStore(worked / "store")) as there:
        key, _ = next(there.results(RUN))
    folder.store.mkdir(parents=True)
    with closing(DiskStore(folder.store)) as here:
        here.record_result(ResultKey(run=RUN, instance=key.instance, arm=key.arm), b"{}")
    (folder.root / "fetched.json").write_text(json.dumps({"run_id": RUN}))
    async with asyncio.timeout(120), store(worked) as address:
        api = Here(address, hermes_run(document_of(worked)))
        with pytest.raises(Damaged, match="has another result"):
            await bring(api, AT, WANTED, folder)


async def test_watching_says_each_change_and_fetches_at_the_end(worked: Path, tmp_path: Path):
    document, said = document_of(worked), list[str]()
    async with asyncio.timeout(120), store(worked) as address:
        api = Here(address, {})
        api.runs = [
            hermes_run(document, phase=phase, progress={"total": 8, "done": done})
            for phase, done in (("Starting", 0), ("Running", 3), ("Running", 3), ("Succeeded", 8))
        ]
        wanted = Wanted(namespace="team", name="scripted", watch=True)
        run = await bring(api, AT, wanted, RunFolder(tmp_path / "run"), said.append, every_seconds=0.0)
    assert run is not None
    assert [line for line in said if "results" in line and "in all" not in line] == [
        "Starting; 0 of 8 results",
        "Running; 3 of 8 results",
        "Succeeded; 8 of 8 results",
    ]
    assert said[-1].endswith("8 results in all")


async def test_a_backup_goes_through_a_relay(worked: Path, tmp_path: Path):
    (tmp_path / "token").write_text("reader's\n")
    async with asyncio.timeout(120), store(worked) as address:
        words = ("store", "relay", "--to", address, "--token-file", tmp_path / "token")
        async with serving(*words, "--socket", tmp_path / "s", ready=tmp_path / "ready"):
            done = await asyncio.to_thread(
                hermes, "store", "backup", "--socket", tmp_path / "s", "--to", tmp_path / "backup"
            )
    assert done.returncode == 0, done.stderr
    back = hermes("store", "restore", "--from", tmp_path / "backup", "--folder", tmp_path / "store", "--json")
    assert json.loads(back.stdout)["results"] == 8
