"""A store in a process of its own: started, killed, stopped, fought over, and what its calls cost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from hermes.store.v1 import store_pb2
from hermes_runtime.errors import BadInput, NotFound, PeerLost
from hermes_runtime.store import BlobState, Digest, ResultKey
from hermes_runtime.store.client import Cost, StoreClient
from hermes_runtime.store.disk import DiskStore
from hermes_runtime.supervise import rpc

PROGRAM = """
import asyncio, sys
from pathlib import Path
from hermes_runtime.errors import HermesError
from hermes_runtime.store.service import serve
try:
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2])))
except HermesError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def started(socket: Path, folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PROGRAM, str(socket), str(folder)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


async def test_a_killed_store_is_back_with_all_that_it_acknowledged(tmp_path: Path):
    socket, folder = tmp_path / "s.sock", tmp_path / "store"
    digests: list[Digest] = []
    async with asyncio.timeout(60), StoreClient(socket) as client:
        for life in range(3):
            with started(socket, folder) as process:
                await client.ready(timeout_seconds=30)
                for size_bytes in (10, 100_000, 5_000_000):
                    digests.append((await client.put(b"%d" % life * size_bytes))[0])
                await client.record_result(ResultKey(run="r", instance=str(life), arm="A"), b"x")
                for digest in digests:
                    assert Digest.of((await client.get(digest))[0]) == digest
                process.kill()
                process.wait()
            with pytest.raises(PeerLost):
                await client.head("s")
    with closing(DiskStore(folder)) as store:
        assert len(list(store.results("r"))) == 3
        assert {stat.state for stat in store.stat(digests)} == {BlobState.PRESENT}


async def test_a_stopped_store_ends_well_and_leaves_no_socket(tmp_path: Path):
    socket, folder = tmp_path / "s.sock", tmp_path / "store"
    with started(socket, folder) as process:
        async with StoreClient(socket) as client:
            await client.ready(timeout_seconds=30)
            await client.put(b"x")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
    assert not socket.exists()
    assert not (folder / "store.db-wal").exists()


async def test_a_second_store_on_the_folder_is_refused_and_the_first_goes_on(tmp_path: Path):
    socket, folder = tmp_path / "s.sock", tmp_path / "store"
    with started(socket, folder) as first:
        async with StoreClient(socket) as client:
            await client.ready(timeout_seconds=30)
            with started(socket, folder) as second:
                _, said = await asyncio.to_thread(second.communicate, timeout=30)
            assert second.returncode == 1
            assert f"Busy: store folder {folder} is in use by process {first.pid}" in said.decode()
            digest, _ = await client.put(b"still here")
            assert (await client.get(digest))[0] == b"still here"
        first.terminate()


async def test_a_caller_that_goes_away_in_the_middle_of_a_blob_leaves_nothing(tmp_path: Path):
    socket, folder = tmp_path / "s.sock", tmp_path / "store"
    half = b"x" * 1_000_000

    async def pieces(sent: asyncio.Event) -> AsyncIterator[bytes]:
        yield half
        sent.set()
        await asyncio.Event().wait()

    with started(socket, folder) as process:
        async with StoreClient(socket) as client:
            await client.ready(timeout_seconds=30)
            sent = asyncio.Event()
            putting = asyncio.create_task(client.put_pieces(pieces(sent)), name="put")
            await sent.wait()
            putting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await putting
            process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
    with closing(DiskStore(folder)) as store:
        assert store.stat([Digest.of(half)])[0].state is BlobState.NEVER_SEEN
        assert not list((folder / "tmp").iterdir())


async def test_pieces_that_fail_are_raised_and_nothing_is_stored(tmp_path: Path):
    socket = tmp_path / "s.sock"

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise BadInput("the sender's disk is gone")

    with started(socket, tmp_path / "store") as process:
        async with StoreClient(socket) as client:
            await client.ready(timeout_seconds=30)
            with pytest.raises(BadInput, match="the sender's disk is gone"):
                await client.put_pieces(broken())
            assert (await client.stat([Digest.of(b"x" * 100_000)]))[0].state is BlobState.NEVER_SEEN
        process.terminate()


async def test_every_call_costs_the_bytes_of_its_messages(tmp_path: Path):
    socket = tmp_path / "s.sock"
    costs: list[Cost] = []
    with started(socket, tmp_path / "store") as process:
        async with StoreClient(socket, on_cost=costs.append) as client:
            await client.ready(timeout_seconds=30)
            data, large = b"x" * 5000, b"y" * (4 << 20)
            digest, put = await client.put(data)
            _, get = await client.get(digest)
            _, part = await client.get(digest, offset=10, length=20)
            large_digest, put_large = await client.put(large)
            _, get_large = await client.get(large_digest)
            with pytest.raises(NotFound):
                await client.get(Digest.of(b"never"))
            await client.stat([digest])
        process.terminate()
    methods = ["Put", "Get", "Get", "PutStream", "GetStream", "Get", "Stat"]
    assert [cost.method for cost in costs] == methods
    request = store_pb2.PutRequest(digest=digest.to_proto(), data=data)
    assert (put.request_bytes, put.response_bytes) == (rpc.message_bytes(request), 5)
    wanted = store_pb2.GetRequest(digest=digest.to_proto())
    answer = store_pb2.GetResponse(data=data)
    assert (get.request_bytes, get.response_bytes) == (
        rpc.message_bytes(wanted),
        rpc.message_bytes(answer),
    )
    assert part.response_bytes == rpc.message_bytes(store_pb2.GetResponse(data=data[:20]))
    assert len(large) < put_large.request_bytes < len(large) + 200
    assert len(large) < get_large.response_bytes < len(large) + 200
    assert (get.digest, costs[5].response_bytes, costs[6].digest) == (digest, 0, None)
    assert all(cost.seconds > 0 for cost in costs)
