"""What acts cost: encoding by arm, bytes of a conversation by class of payload, the message path.

    python -m bench.acts [encode|talk|path]

from the repository's root, with its source roots on PYTHONPATH. Prints Markdown tables. The message path
is a real AgentService in a process of its own, over a Unix socket, that echoes one act.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import zstandard

from hermes.act.v1 import act_pb2 as pb
from hermes.agent.v1 import agent_pb2, agent_pb2_grpc
from hermes_runtime.acts import build, codec, ledger
from hermes_runtime.acts.anchors import HARD_ANCHOR_BYTES
from hermes_runtime.acts.arms import arm
from hermes_runtime.acts.receive import Receiver
from hermes_runtime.store.digest import Digest
from hermes_runtime.supervise import rpc
from tests.unit.rehearsal import Rehearsal, Script, content

SIZES = (200, 800, 3_000, 12_000, 48_000, 200_000, 300_000)
"""One for each class of payload size."""

KINDS = ("task", "log", "spectrum", "places", "candidates", "outcomes")


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    heads = list(heads)
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


def microseconds(work: Callable[[], object]) -> float:
    """The median of runs that take about 30 ms in all."""
    started = time.perf_counter()
    work()
    once = max(1e-6, time.perf_counter() - started)
    times = []
    for _ in range(max(5, min(2000, int(0.03 / once)))):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2] * 1e6


def bare() -> pb.Act:
    trace = build.trace_id(run="bench", instance="boltons__1", arm="C", attempt=1)
    return build.bare_act(
        trace=trace,
        span=build.span_id(trace, 1),
        kind=pb.ACT_KIND_INFORM,
        sender=pb.ROLE_TESTER,
        receiver=pb.ROLE_DRIVER,
        header=pb.Header(repo="boltons", task_type="log", tool="pytest", round=1),
    )


def encode_tables() -> None:
    squeezer = zstandard.ZstdCompressor(level=3)
    rows = []
    for kind in KINDS:
        for size in SIZES:
            said = content(kind, size)
            data = build.content_bytes(said)
            anchor = build.said_by_anchor(bare(), Digest.of(data), alias="@l1", head=build.head_of(said))
            cells: list[object] = [kind, f"{len(data):,}"]
            for act, encoding in (
                (build.said_inline(bare(), said), agent_pb2.ENCODING_JSON),
                (build.said_inline(bare(), said), agent_pb2.ENCODING_PROTOBUF),
                (anchor, agent_pb2.ENCODING_PROTOBUF),
            ):
                how = codec.codec(encoding)
                written = how.encode(act)
                encode = microseconds(lambda how=how, act=act: how.encode(act))  # type: ignore[misc]
                decode = microseconds(lambda how=how, written=written: how.decode(written))  # type: ignore[misc]
                cells += [
                    f"{len(written):,} / {len(squeezer.compress(written)):,}",
                    f"{encode:.0f} / {decode:.0f}",
                ]
            rows.append(cells)
    print("### One act: bytes plain / zstd-3, µs to encode / decode (checked both ways)\n")
    heads = ["content", "payload B", "A: B", "A: µs", "C: B", "C: µs", "PM, anchored: B", "PM, anchored: µs"]
    table(heads, rows)


async def talk_tables() -> None:
    for rounds in (1, 4):
        rows = []
        for size in SIZES:
            talks = {
                name: await Rehearsal(script=Script.all_of(size, rounds), arm=arm(name)).run()
                for name in ("A", "C", "PM")
            }
            found = {
                name: [each for each in ledger.bytes_by_class(talk.entries) if each.acts]
                for name, talk in talks.items()
            }
            for large in found["C"]:
                same = {name: next(e for e in each if e.name == large.name) for name, each in found.items()}
                if large.name != ledger.size_class(size):
                    continue  # the asking words, the same in every row
                a, c, pm = (same[name] for name in ("A", "C", "PM"))
                verdict = "yes" if pm.total_bytes <= c.total_bytes < a.total_bytes else "**no**"
                rows.append(
                    [
                        large.name,
                        f"{a.total_bytes:,}",
                        f"{c.total_bytes:,}",
                        f"{pm.wire_bytes:,} + {pm.store_bytes:,}",
                        f"{pm.total_bytes - c.total_bytes:+,}",
                        verdict,
                        f"{a.wire_bytes_zstd:,} / {c.wire_bytes_zstd:,} / {pm.wire_bytes_zstd:,}",
                        f"{pm.anchored} of {pm.acts}",
                        f"{pm.predicted_saving_bytes:,} / {pm.realised_saving_bytes:,}",
                        f"{pm.realised_saving_tokens:,}",
                    ]
                )
        print(f"### A conversation of {rounds} round(s), every content of one size: bytes\n")
        table(
            [
                "class", "A", "C", "PM: wire + store", "PM - C", "PM <= C < A",
                "zstd-3 acts A / C / PM", "anchored", "PM saved B: predicted / realised", "PM saved tokens",
            ],
            rows,
        )  # fmt: skip
    print(f"From {HARD_ANCHOR_BYTES // 1024} KiB no message carries a payload: everything is anchored.\n")


class Echo(agent_pb2_grpc.AgentServiceServicer):
    """Reads a delivery as agents do and answers with its last content."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def Deliver(self, request: agent_pb2.DeliverRequest, context: Any) -> agent_pb2.DeliverResponse:
        asked = codec.decode_all(request.acts)[-1]
        return await self._receiver.receive(asked, request)

    async def Describe(self, request: agent_pb2.DescribeRequest, context: Any) -> agent_pb2.DescribeResponse:
        return agent_pb2.DescribeResponse(schema_versions=[build.SCHEMA_VERSION])


async def echoed(request: agent_pb2.DeliverRequest) -> agent_pb2.DeliverResponse:
    asked = codec.decode(request.acts[-1])
    answer = build.answer_to(asked, 0, kind=pb.ACT_KIND_INFORM, sender=asked.receiver, header=asked.header)
    said = build.check(asked)
    assert said is not None
    acts = codec.encode_all([build.said_inline(answer, said)], request.profile.encoding)
    return agent_pb2.DeliverResponse(acts=acts, expense=agent_pb2.Expense(handling_seconds=1e-4))


async def serve_echo(socket: Path) -> None:
    async with Receiver(echoed) as receiver:
        add = [lambda server: agent_pb2_grpc.add_AgentServiceServicer_to_server(Echo(receiver), server)]
        serving = asyncio.Event()
        async with asyncio.TaskGroup() as team:
            team.create_task(rpc.serve(socket, add, serving=serving), name="serve")
            await serving.wait()
            print("serving", flush=True)


async def path_table(calls: int) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "echo" / "sock"
        echo = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bench.acts",
            "echo",
            "--socket",
            str(socket),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert echo.stdout is not None
            async with asyncio.timeout(30):
                await echo.stdout.readline()
            channel = rpc.channel(socket)
            deliver: Any = agent_pb2_grpc.AgentServiceStub(channel).Deliver
            for name in ("A", "C"):
                for size in (800, 12_000, 200_000):
                    for callers in (1, 8):
                        times = await called(deliver, name, size, callers, calls)
                        at = [times[min(len(times) - 1, int(len(times) * q))] for q in (0.5, 0.95, 0.99)]
                        rows.append([name, f"{size:,}", callers, len(times), *(f"{1e3 * t:.2f}" for t in at)])
            await channel.close(None)
        finally:
            echo.terminate()
            await echo.wait()
    print("### Message path: one act there and back, encoded, checked, deduplicated (ms)\n")
    table(["arm", "payload B", "callers", "calls", "p50", "p95", "p99"], rows)


async def called(deliver: Any, name: str, size: int, callers: int, calls: int) -> list[float]:
    """Seconds of each call, sorted: from an act to the answer's act."""
    profile = arm(name).profile(dialect="line_repair", seed=1, candidates=8)
    said = content("log", size)
    times: list[float] = []

    async def caller(number: int) -> None:
        trace = build.trace_id(run=f"{name}/{size}/{callers}", instance=str(number), arm=name, attempt=1)
        for step in range(calls // callers):
            act = bare()
            act.trace_id, act.span_id = trace, build.span_id(trace, step)
            started = time.perf_counter()
            acts = codec.encode_all([build.said_inline(act, said)], profile.encoding)
            request = agent_pb2.DeliverRequest(acts=acts, profile=profile)
            response = await rpc.call(deliver, request, timeout_seconds=30)
            codec.decode_all(response.acts)
            if step >= 10:  # the first ones warm up
                times.append(time.perf_counter() - started)

    async with asyncio.TaskGroup() as team:
        for number in range(callers):
            team.create_task(caller(number), name=f"caller {number}")
    return sorted(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["all", "encode", "talk", "path", "echo"], default="all")
    parser.add_argument("--socket", type=Path, help="for echo: where to serve")
    parser.add_argument("--calls", type=int, default=800, help="calls for each row of the message path")
    arguments = parser.parse_args()
    if arguments.what == "echo":
        asyncio.run(serve_echo(arguments.socket))
        return
    if arguments.what in ("all", "encode"):
        encode_tables()
    if arguments.what in ("all", "talk"):
        asyncio.run(talk_tables())
    if arguments.what in ("all", "path"):
        asyncio.run(path_table(arguments.calls))


if __name__ == "__main__":
    main()
