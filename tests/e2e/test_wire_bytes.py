"""The ledger's bytes are the sockets' bytes: a relay counts what HTTP/2 carries and compares."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from pathlib import Path

import pytest

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2, agent_pb2_grpc
from hermes_runtime.acts import ledger
from hermes_runtime.acts.arms import arm
from hermes_runtime.acts.post import PostOffice
from hermes_runtime.errors import PeerLost
from hermes_runtime.supervise import rpc
from tests.e2e.conftest import environment, hermes_command

PREFACE_BYTES = 24
FRAME_BYTES = 9
DATA, PADDED = 0, 0x8


class Counted:
    """Bytes of HTTP/2 DATA frames in one direction of one connection, as they pass."""

    def __init__(self, *, preface: bool) -> None:
        self.data_bytes = 0
        self._skip = PREFACE_BYTES if preface else 0
        self._held = b""

    def feed(self, chunk: bytes) -> None:
        self._held += chunk
        if self._skip:
            if len(self._held) < self._skip:
                return
            self._held, self._skip = self._held[self._skip :], 0
        while len(self._held) >= FRAME_BYTES:
            size = int.from_bytes(self._held[:3], "big")
            if len(self._held) < FRAME_BYTES + size:
                return
            kind, flags = self._held[3], self._held[4]
            if kind == DATA:
                padding = self._held[FRAME_BYTES] + 1 if flags & PADDED else 0
                self.data_bytes += size - padding
            self._held = self._held[FRAME_BYTES + size :]


class Relay:
    """A Unix socket in front of another one."""

    def __init__(self, at: Path, behind: Path) -> None:
        self._at = at
        self._behind = behind
        self.counts: Counter[str] = Counter()
        self._pumps: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_unix_server(self._relay, self._at)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(self._behind)
        for source, sink, name in ((reader, inner_writer, "request"), (inner_reader, writer, "response")):
            self._pumps.add(asyncio.create_task(self._pump(source, sink, name), name=name))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, name: str) -> None:
        counted = Counted(preface=name == "request")
        with contextlib.closing(sink):
            while chunk := await source.read(1 << 16):
                before = counted.data_bytes
                counted.feed(chunk)
                self.counts[name] += counted.data_bytes - before
                sink.write(chunk)
                await sink.drain()


class NoStore:
    """Nothing is anchored here."""

    async def put(self, data):
        raise AssertionError("nothing is to be put")

    async def get(self, digest):
        raise AssertionError("nothing is to be got")


@pytest.mark.parametrize("name", ["A", "C", "enumerate"])
async def test_the_ledger_bills_every_byte_that_crosses_an_agents_socket(name, tmp_path):
    (tmp_path / "m.py").write_text("def f(x):\n    return x + 1\n")
    served, relayed = tmp_path / "planner", tmp_path / "relay"
    argv = hermes_command(
        *("agent", "serve", "planner", "--socket", served, "--end-with-parent"),
        *("--store", tmp_path / "none", "--model", tmp_path / "none"),
    )
    process = await asyncio.create_subprocess_exec(
        *argv, env=environment(), stdin=asyncio.subprocess.PIPE, stderr=sys.stderr
    )
    profile = agent_pb2.Profile(
        arm=name, encoding=arm(name).encoding, strategy=agent_pb2.STRATEGY_ENUMERATE, seed=1, candidates=4
    )
    post = PostOffice(run="r", instance="i", arm=arm(name), attempt=1, store=NoStore())
    spectrum = pb.Spectrum(
        files=[pb.FileSpectrum(file_path="m.py", line_steps=[2], failing=[1], passing=[0])], failing_count=1
    )
    header = pb.Header(repo="r", task_type="task")
    task = await post.write(pb.ACT_KIND_INFORM, pb.Content(task=pb.Task(tree=str(tmp_path))), header)
    seen = await post.write(pb.ACT_KIND_INFORM, pb.Content(spectrum=spectrum), header)
    billed: Counter[str] = Counter()
    async with Relay(relayed, served) as relay, rpc.channel(relayed) as channel:
        stub = agent_pb2_grpc.AgentServiceStub(channel)
        for number in range(3):
            letters = [task, seen, post.words(f"Rank them, time {number}.", "rank_places", number + 1)]
            request = agent_pb2.DeliverRequest(acts=[letter.envelope for letter in letters], profile=profile)
            async with asyncio.timeout(60):
                while True:
                    try:
                        response = await rpc.call(stub.Deliver, request, timeout_seconds=30)
                        break
                    except PeerLost:
                        await asyncio.sleep(0.1)
            answer = [post.read(envelope) for envelope in response.acts]
            for entry in ledger.entries_of("planner", letters, request, answer, response):
                billed["all"] += entry.wire_bytes
                billed["acts"] += entry.wire_bytes if entry.entry == "act" else 0
    process.terminate()
    await process.communicate()
    assert billed["acts"] > 0
    assert billed["all"] == relay.counts["request"] + relay.counts["response"]
