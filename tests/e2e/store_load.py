"""A process that writes to a store and says what was acknowledged, until it is killed.

`load FOLDER SEED`: threads put, append, record, drop and collect; one line on stdout for each
acknowledgement. `die FOLDER STEP WORK`: does one piece of work and kills itself at a step of it.
`fill FOLDER`: fills a small disk and prints what happened, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from hermes_runtime.errors import Exhausted
from hermes_runtime.store import Digest, Event, ResultKey
from hermes_runtime.store.disk import ROW_BYTES_MAX, DiskStore

WRITTEN_AT = datetime(2026, 1, 1, tzinfo=UTC)


def content(name: str) -> bytes:
    """The bytes that belong to a name: mostly small, one in four large."""
    rng = random.Random(name)
    size_bytes = rng.randrange(ROW_BYTES_MAX + 1, 400_000) if rng.random() < 0.25 else rng.randrange(20_000)
    return rng.randbytes(size_bytes)


def event(stream: str, number: int, previous: bytes, digests: tuple[Digest, ...] = ()) -> Event:
    """The event of that number in a stream."""
    return Event(
        stream=stream,
        type="t",
        payload=b"%d" % number,
        previous=previous,
        written_at=WRITTEN_AT,
        digests=digests,
    )


def acknowledge(*words: object) -> None:
    """One line, in one write: what a pipe took stays in it when its writer is killed."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def load(store: DiskStore, seed: str) -> None:
    """Write until killed."""

    def work(thread: int) -> None:
        stream, head = f"{seed}/{thread}", b""
        for number in range(1_000_000):
            name = f"{stream}/{number}"
            digest = store.put(content(name), lease="kept")
            acknowledge("put", name)
            head = store.append(event(stream, number, head, (digest,))).digest
            acknowledge("event", stream, number, head.hex())
            store.record_result(ResultKey(run=seed, instance=name, arm="A"), name.encode())
            acknowledge("result", seed, name)
            store.put(content(name + " guess"), lease=f"guess {thread}")
            if number % 5 == 4:
                store.drop_lease(f"guess {thread}")
                store.collect_garbage(datetime.now(UTC))

    for thread in range(3):
        threading.Thread(target=work, args=(thread,)).start()


def die(folder: Path, step: str, work: str) -> None:
    """Do one piece of work and be killed at `step` of it."""
    is_armed = False

    def at(reached: str) -> None:
        if is_armed and reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    store = DiskStore(folder, at=at)
    kept = store.put(b"kept" * 30_000, lease="kept")
    store.put(b"dropped" * 30_000, lease="dropped")
    store.drop_lease("dropped")
    is_armed = True
    match work:
        case "row":
            store.put(b"new", lease="new")
        case "file":
            store.put(b"new" * 30_000, lease="new")
        case "again":
            store.put_pieces(iter((b"kept" * 30_000,)), lease="kept")
        case "event":
            store.append(event("s", 0, b"", (kept,)))
        case "garbage":
            store.collect_garbage(datetime.now(UTC))
    raise AssertionError(f"{work} has no step {step!r}")


def fill(folder: Path) -> None:
    """Fill a disk of a few MiB, read, free some space, write again."""
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    refusals, kept = [], []
    store = DiskStore(folder / "store")
    for size_bytes in (300_000, 30_000, 1000):
        for number in range(10_000):
            data = random.Random(f"{size_bytes} {number}").randbytes(size_bytes)
            try:
                kept.append((store.put(data), data))
            except Exhausted as error:
                refusals.append(str(error))
                break
    reads_on_full_disk = all(store.get(digest) == data for digest, data in kept)
    half_written = [path.name for path in (folder / "store" / "tmp").iterdir()]
    store.close()
    store = DiskStore(folder / "store")
    reads_after_restart = all(store.get(digest) == data for digest, data in kept)
    ballast.unlink()
    again = store.put(b"again" * 20_000)
    written_again = store.get(again) == b"again" * 20_000
    store.close()
    print(
        json.dumps(
            {
                "kept": len(kept),
                "refusals": refusals,
                "reads on full disk": reads_on_full_disk,
                "half written": half_written,
                "reads after restart": reads_after_restart,
                "written again": written_again,
            }
        )
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["load", folder, seed]:
            load(DiskStore(Path(folder)), seed)
        case ["die", folder, step, work]:
            die(Path(folder), step, work)
        case ["fill", folder]:
            fill(Path(folder))
