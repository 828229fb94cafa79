"""A store served by TCP to callers with a token, and the relay that brings a run's pod to it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hermes_runtime import errors
from hermes_runtime.store import Event, ResultKey
from hermes_runtime.store.client import StoreClient
from hermes_runtime.supervise import tcp
from tests.e2e.served import serving, start, stop
from tests.e2e.token_reviews import ReviewServer

OWN, OTHER = "team.night.0a1b2c3d", "team.day.0a1b2c3d"
READER = "system:serviceaccount:hermes:hermes-reader"
NAMES = {
    "night's": "system:serviceaccount:team:hermes-run-night",
    "reader's": READER,
    "stranger's": "system:serviceaccount:team:default",
}


@pytest.fixture
def reviews(tmp_path) -> Iterator[tuple[ReviewServer, Path]]:
    server = ReviewServer(dict(NAMES))
    with server.serving(tmp_path) as kubeconfig:
        yield server, kubeconfig


def serve_words(folder: Path, listen: str = "127.0.0.1:0", *more: str | Path) -> list[str | Path]:
    return [
        *("store", "serve", "--folder", folder / "store", "--listen", listen),
        *("--authenticate", "token-review", "--reader", READER, *more),
    ]


@asynccontextmanager
async def store(folder: Path, kubeconfig: Path, *more: str | Path) -> AsyncIterator[str]:
    """A store by TCP; its address."""
    words = serve_words(folder, "127.0.0.1:0", *more)
    async with serving(*words, ready=folder / "store-ready", KUBECONFIG=str(kubeconfig)) as (_, where):
        yield where


@asynccontextmanager
async def relayed(folder: Path, to: str, token: str, *more: str | Path) -> AsyncIterator[Path]:
    """A relay to `to`; its socket."""
    (folder / "token").write_text(token)
    words: list[str | Path] = ["store", "relay", "--socket", folder / "s" / "relay", "--to", to]
    async with serving(
        *words, "--token-file", folder / "token", *more, ready=folder / "s" / "ready" / "store"
    ):
        yield folder / "s" / "relay"


def event(stream: str) -> Event:
    return Event(stream=stream, type="t", payload=b"p", previous=b"", written_at=datetime.now(UTC))


async def test_every_call_goes_through_the_relay_and_the_bytes_are_the_same(tmp_path, reviews):
    server, kubeconfig = reviews
    large = bytes(range(256)) * 40_000  # more than one message
    async with (
        store(tmp_path, kubeconfig) as to,
        relayed(tmp_path, to, "night's") as socket,
        StoreClient(socket) as client,
    ):
        small_digest, _ = await client.put(b"small")
        large_digest, _ = await client.put(large, lease=f"{OWN}/a")
        assert (await client.get(small_digest))[0] == b"small"
        assert (await client.get(large_digest))[0] == large
        assert (await client.get(large_digest, offset=5, length=3))[0] == large[5:8]
        stored = await client.append(event(f"{OWN}/x"))
        assert await client.head(f"{OWN}/x") == stored.digest
        assert [e.digest async for e in client.events(stream_prefix=OWN)] == [stored.digest]
        key = ResultKey(run=OWN, instance="i", arm="A")
        assert await client.record_result(key, b"r") == (True, b"r")
        assert [found async for found in client.results(OWN)] == [(key, b"r")]
        assert await client.drop_lease(f"{OWN}/a")
        assert [stat.state.value for stat in await client.stat([small_digest])] == ["present"]
        with pytest.raises(errors.StaleWriter, match="has moved on"):  # class and text of the store's error
            await client.append(event(f"{OWN}/x"))
        assert server.asked == ["night's"]  # asked once, remembered since


async def test_a_run_cannot_touch_another_nor_a_stranger_anything_and_a_reader_writes_nothing(
    tmp_path, reviews
):
    _, kubeconfig = reviews
    async with store(tmp_path, kubeconfig) as to:

        def caller(token: str) -> StoreClient:
            return StoreClient(tcp.channel(to, token=lambda: token))

        async with caller("night's") as run, caller("reader's") as reader, caller("stranger's") as stranger:
            digest, _ = await run.put(b"x" * 4_000_000)
            await run.append(event(f"{OWN}/x"))
            trials: list[Awaitable[object]] = [run.append(event(f"{OTHER}/x")), run.head(f"{OTHER}/x")]
            for trial in (*trials, run.collect_garbage()):
                with pytest.raises(errors.Denied, match="hermes-run-night"):
                    await trial
            with pytest.raises(errors.Denied):
                [e async for e in run.events()]
            assert len([e async for e in reader.events()]) == 1
            assert (await reader.get(digest))[0] == b"x" * 4_000_000
            trials = [reader.append(event(f"{OWN}/y")), reader.put(b"y"), reader.put(b"y" * 4_000_000)]
            for trial in trials:
                with pytest.raises(errors.Denied, match="write nothing"):
                    await trial
            with pytest.raises(errors.Denied, match="neither a run"):
                await stranger.get(digest)
        async with caller("made up") as nobody, StoreClient(tcp.channel(to)) as silent:
            with pytest.raises(errors.Unauthenticated, match="unknown token"):
                await nobody.get(digest)
            trials = [silent.stat([]), silent.put(b"y" * 4_000_000)]
            for trial in trials:
                with pytest.raises(errors.Unauthenticated, match="show a token"):
                    await trial


async def test_a_token_that_rotates_is_read_again(tmp_path, reviews):
    server, kubeconfig = reviews
    async with (
        store(tmp_path, kubeconfig) as to,
        relayed(tmp_path, to, "night's") as socket,
        StoreClient(socket) as client,
    ):
        await client.stat([])
        server.names["night's second"] = NAMES["night's"]
        (tmp_path / "token").write_text("night's second")
        await client.stat([])
        assert server.asked == ["night's", "night's second"]


async def test_a_store_that_goes_and_comes_is_a_short_wait_for_a_patient_caller(tmp_path, reviews):
    _, kubeconfig = reviews
    ready, more = tmp_path / "store-ready", {"KUBECONFIG": str(kubeconfig)}
    async with (
        serving(*serve_words(tmp_path), ready=ready, **more) as (first, to),
        relayed(tmp_path, to, "night's") as socket,
        StoreClient(socket, patience_seconds=60) as client,
        StoreClient(socket) as hasty,
    ):
        digest, _ = await client.put(b"kept")
        await stop(first)
        with pytest.raises(errors.PeerLost):
            await hasty.stat([])
        waiting = asyncio.create_task(client.get(digest))
        async with serving(*serve_words(tmp_path, to), ready=ready, **more):
            assert (await waiting)[0] == b"kept"


async def test_an_api_server_that_fails_is_unavailable_and_not_a_refusal(tmp_path, reviews):
    server, kubeconfig = reviews
    server.is_broken = True
    async with (
        store(tmp_path, kubeconfig) as to,
        StoreClient(tcp.channel(to, token=lambda: "night's")) as run,
    ):
        with pytest.raises(errors.PeerLost, match="500"):
            await run.stat([])
        server.is_broken = False
        assert await run.stat([]) == []


async def test_deadlines_and_cancelled_calls_reach_the_store(tmp_path, reviews):
    _, kubeconfig = reviews
    async with store(tmp_path, kubeconfig) as to, relayed(tmp_path, to, "night's") as socket:
        async with StoreClient(socket, timeout_seconds=0.0) as late:
            with pytest.raises(errors.TimedOut):
                await late.stat([])
        async with StoreClient(socket) as client:
            for number in range(20):
                await client.append(event(f"{OWN}/{number}"))
            events = client.events(stream_prefix=OWN)
            await anext(events)
            await events.aclose()  # half-way
            assert await client.stat([]) == []


async def test_a_store_is_served_by_tls_and_a_renewed_certificate_is_taken_up(tmp_path, reviews):
    _, kubeconfig = reviews
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def renew(name: str) -> None:
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=s"),
                *("-keyout", key, "-out", certificate, "-addext", f"subjectAltName=DNS:{name}"),
            ],
            check=True,
            capture_output=True,
        )

    renew("hermes-store")
    more = ("--tls-certificate", certificate, "--tls-key", key)
    async with store(tmp_path, kubeconfig, *more) as to:
        words = ("--ca-file", certificate, "--server-name", "hermes-store")
        async with relayed(tmp_path, to, "night's", *words) as socket, StoreClient(socket) as client:
            assert (await client.put(b"x"))[0].size_bytes == 1
        async with StoreClient(tcp.channel(to, token=lambda: "night's")) as plain:
            with pytest.raises(errors.PeerLost):
                await plain.stat([])
        renew("renewed")
        renewed = tcp.channel(to, token=lambda: "night's", ca_file=certificate, server_name="renewed")
        async with StoreClient(renewed) as client:
            assert await client.stat([]) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_store_and_relay_end_on_a_signal_at_once_with_exit_code_0(tmp_path, reviews, number):
    _, kubeconfig = reviews
    async with serving(
        *serve_words(tmp_path), ready=tmp_path / "store-ready", KUBECONFIG=str(kubeconfig)
    ) as (process, to):
        (tmp_path / "token").write_text("night's")
        words = ("--socket", tmp_path / "relay", "--to", to, "--token-file", tmp_path / "token")
        async with serving("store", "relay", *words, ready=tmp_path / "relay-ready") as (relay, _):
            started = time.monotonic()
            assert await stop(relay, number) == 0
            assert await stop(process, number) == 0
            assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("serve", "--listen", "127.0.0.1:0"), "--listen needs --authenticate"),
        (("serve", "--listen", "everywhere", "--authenticate", "token-review"), "no address"),
        (("serve",), "give --socket"),
        (("relay", "--socket", "s", "--to", "h:1", "--token-file", "none"), "none cannot be read"),
    ],
)
async def test_what_is_used_wrongly_is_refused_with_the_remedy(tmp_path, words, message):
    folder = ("--folder", tmp_path / "store") if words[0] == "serve" else ()
    process = await start("store", *words, *folder)
    async with asyncio.timeout(60):
        _, said = await process.communicate()
    assert process.returncode in (1, 2)
    assert message in said.decode()
    assert "Traceback" not in said.decode()
