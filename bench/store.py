"""What putting and getting a blob costs: our store, in process and behind a socket, beside plain means.

    python -m bench.store [--json] [--repeat 60]

All in one run, one caller at a time unless it says otherwise, on the disk that holds the temporary
folder, with warm caches. Raw files are written as safely as ours (temp file, fsync, rename, fsync of
the folder) and so is the standard library's sqlite3 (WAL, synchronous=FULL); neither verifies.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from hermes_runtime.store import Digest
from hermes_runtime.store.client import StoreClient
from hermes_runtime.store.disk import DiskStore

SIZES = (256, 1024, 4096, 16 * 1024, 64 * 1024, 256 * 1024, 1 << 20, 4 << 20, 16 << 20)
SLICE_BYTES = 1024
SUBJECTS = ("raw file", "sqlite3", "DiskStore", "served store")
CONCURRENT = 32

SERVER = (
    "import asyncio, sys, pathlib; from hermes_runtime.store.service import serve; "
    "asyncio.run(serve(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])))"
)
FILLER = """
import os, random, sys
from pathlib import Path
from hermes_runtime.store.disk import DiskStore
store, rng, number = DiskStore(Path(sys.argv[1])), random.Random(1), 0
while True:
    digest = store.put(rng.randbytes(100_000 if number % 10 == 0 else 1024))
    number += 1
    if number == int(sys.argv[2]):
        os.write(1, digest.hex.encode() + b" %d\\n" % digest.size_bytes)
"""


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    parser.add_argument("--repeat", type=int, default=60, help="calls per size (fewer for large ones)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hermes-bench-") as name:
        place = Path(name)
        command = [sys.executable, "-c", SERVER, str(place / "sock"), str(place / "served")]
        with subprocess.Popen(command) as server:
            try:
                found = asyncio.run(measured(place, options.repeat))
            finally:
                server.terminate()
        found["recovery"] = [recovery(place / f"killed-{count}", count) for count in (1000, 10_000)]
    print(json.dumps(found, indent=2) if options.json else tables(found))


async def measured(place: Path, repeat: int) -> dict[str, Any]:
    """All measurements of blobs, in milliseconds, with the served store already started."""
    rows: list[dict[str, Any]] = []
    async with StoreClient(place / "sock") as client:
        await client.ready(timeout_seconds=60)
        with closing(DiskStore(place / "disk")) as store, closing(database(place)) as plain:
            for size_bytes in SIZES:
                count = max(12, min(repeat, (128 << 20) // size_bytes))
                rows += await of_size(place, size_bytes, count, store, plain, client)
        return {"blobs": rows, "together": await puts_together(client, repeat * 10)}


def database(place: Path) -> sqlite3.Connection:
    """A plain table of blobs."""
    connection = sqlite3.connect(place / "plain.db", isolation_level=None)
    connection.executescript(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE b (k BLOB PRIMARY KEY, v BLOB)"
    )
    return connection


async def of_size(
    place: Path,
    size_bytes: int,
    count: int,
    store: DiskStore,
    plain: sqlite3.Connection,
    client: StoreClient,
) -> list[dict[str, Any]]:
    """One row per subject. The subjects take turns, so that a noisy moment hits all alike."""
    rng = random.Random(size_bytes)
    blobs = [rng.randbytes(size_bytes) for _ in range(min(count, 200))]
    digests = [Digest.of(data) for data in blobs]
    times: dict[tuple[str, str], list[float]] = {}

    def timed(subject: str, what: str, call: Callable[[], object]) -> None:
        started = time.perf_counter()
        call()
        times.setdefault((subject, what), []).append((time.perf_counter() - started) * 1e3)

    async def awaited(subject: str, what: str, call: Awaitable[object]) -> None:
        started = time.perf_counter()
        await call
        times.setdefault((subject, what), []).append((time.perf_counter() - started) * 1e3)

    def select(digest: Digest) -> bytes:
        ((value,),) = plain.execute("SELECT v FROM b WHERE k = ?", (digest.sha256,))
        return bytes(value)

    def insert(digest: Digest, data: bytes) -> None:
        plain.execute("INSERT INTO b VALUES (?, ?)", (digest.sha256, data))

    for data, digest in zip(blobs, digests, strict=True):
        path = place / digest.hex
        timed("raw file", "put", partial(write_file, path, data))
        timed("sqlite3", "put", partial(insert, digest, data))
        timed("DiskStore", "put", partial(store.put, data))
        await awaited("served store", "put", client.put(data))
    for digest in digests:
        path = place / digest.hex
        timed("raw file", "get", path.read_bytes)
        timed("sqlite3", "get", partial(select, digest))
        timed("DiskStore", "get", partial(store.get, digest))
        await awaited("served store", "get", client.get(digest))
        timed("DiskStore", "slice", partial(store.get, digest, length=SLICE_BYTES))
        await awaited("served store", "slice", client.get(digest, length=SLICE_BYTES))
        path.unlink()
    return [
        {
            "size_bytes": size_bytes,
            "subject": subject,
            "calls": len(blobs),
            **{f"{what}_ms_{name}": value for what in ("put", "get", "slice")
               for name, value in percentiles(times.get((subject, what), [])).items()},
        }
        for subject in SUBJECTS
    ]  # fmt: skip


def write_file(path: Path, data: bytes) -> None:
    """As safely as ours."""
    temp = path.with_suffix(".tmp")
    with temp.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temp.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


async def puts_together(client: StoreClient, count: int) -> dict[str, float]:
    """Puts of 1 KiB per second, one caller and many."""
    found = {}
    for callers in (1, CONCURRENT):
        rng = random.Random(callers)
        queue = iter([rng.randbytes(1024) for _ in range(count)])

        async def caller(queue=queue) -> None:
            for data in queue:
                await client.put(data)

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(callers):
                group.create_task(caller(), name=f"caller {number}")
        found[f"puts_per_second_{callers}"] = count / (time.perf_counter() - started)
    return found


def recovery(folder: Path, count: int) -> dict[str, float]:
    """Opening after a kill in the middle of writing, with `count` blobs and more in the folder."""
    filler = [sys.executable, "-c", FILLER, str(folder), str(count)]
    with subprocess.Popen(filler, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        name, size_bytes = process.stdout.readline().split()
        process.send_signal(signal.SIGKILL)
        process.wait()
    started = time.perf_counter()
    store = DiskStore(folder)
    opened = time.perf_counter()
    store.get(Digest(bytes.fromhex(name.decode()), int(size_bytes)))
    read = time.perf_counter()
    store.close()
    return {"blobs": count, "open_ms": (opened - started) * 1e3, "first_get_ms": (read - opened) * 1e3}


def percentiles(times: list[float]) -> dict[str, float | None]:
    """p50 and p95; None without times."""
    if not times:
        return {"p50": None, "p95": None}
    return {
        "p50": statistics.median(times),
        "p95": sorted(times)[min(len(times) - 1, int(len(times) * 0.95))],
    }


def tables(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| size | subject | calls | put p50 | put p95 | get p50 | get p95 | 1 KiB slice p50 | p95 (ms) |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["blobs"]:
        cells = [f"{row[f'{what}_ms_{p}']:.2f}" if row[f"{what}_ms_{p}"] is not None else ""
                 for what in ("put", "get", "slice") for p in ("p50", "p95")]  # fmt: skip
        size = row["size_bytes"]
        name = f"{size} B" if size < 1024 else f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"
        lines.append("| " + " | ".join([name, row["subject"], str(row["calls"]), *cells]) + " |")
    lines += ["", "| served store, puts of 1 KiB | per second |", "|---|---:|"]
    lines += [f"| {name.rsplit('_', 1)[1]} callers | {value:.0f} |"
              for name, value in found["together"].items()]  # fmt: skip
    lines += ["", "| opening after SIGKILL, blobs | open ms | first get ms |", "|---:|---:|---:|"]
    lines += [f"| {row['blobs']} | {row['open_ms']:.1f} | {row['first_get_ms']:.2f} |"
              for row in found["recovery"]]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
