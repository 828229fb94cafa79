"""A store process killed at any moment: nothing acknowledged is lost, nothing wrong is read.

`HERMES_STORE_KILLS` says how many kills at random moments (40 by default).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hermes_runtime.store import BlobState, Digest, ResultKey
from hermes_runtime.store.disk import DiskStore
from hermes_runtime.store.fsck import check
from tests.e2e import store_load

KILLS = int(os.environ.get("HERMES_STORE_KILLS", "40"))
FILE_STEPS = ["temp made", "temp written", "temp synced", "before rename", "renamed", "folder synced"]
COMMIT_STEPS = ["before commit", "committed"]
CASES = [
    *((step, "file") for step in FILE_STEPS + COMMIT_STEPS),
    *((step, "again") for step in FILE_STEPS + COMMIT_STEPS),
    *((step, work) for work in ("row", "event", "garbage") for step in COMMIT_STEPS),
]


def writer(*words: str) -> subprocess.Popen[bytes]:
    program = Path(store_load.__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, str(program), *words], stdout=subprocess.PIPE, env=environment
    )  # fmt: skip


def test_nothing_acknowledged_is_lost_when_the_process_is_killed_at_random_moments(tmp_path: Path):
    folder = tmp_path / "store"
    rng = random.Random(20260101)
    acknowledged: list[list[str]] = []
    for kill in range(KILLS):
        lines = killed(folder, f"k{kill}", rng)
        with closing(DiskStore(folder)) as store:
            assert_all_there(store, lines)
        acknowledged += lines
    assert len(acknowledged) > KILLS
    assert check(folder).faults == ()
    with closing(DiskStore(folder)) as store:
        assert_all_there(store, acknowledged)
        store.collect_garbage(datetime.now(UTC))
    assert check(folder).orphans == 0


def killed(folder: Path, seed: str, rng: random.Random) -> list[list[str]]:
    """What a writer had acknowledged when it was killed: while it starts, or after some work."""
    lines: list[bytes] = []
    with writer("load", str(folder), seed) as process:
        assert process.stdout is not None
        if rng.random() < 0.15:
            spin(rng.uniform(0.1, 0.5))
        else:
            lines += [process.stdout.readline() for _ in range(rng.randrange(1, 60))]
            spin(rng.uniform(0, 0.005))
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        assert process.wait() == -signal.SIGKILL
    return [line.decode().split() for line in lines if line.endswith(b"\n")]


def spin(seconds: float) -> None:
    """A random moment is what is tested here; there is no event to wait for."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def assert_all_there(store: DiskStore, lines: list[list[str]]) -> None:
    events = {
        (stored.event.stream, int(stored.event.payload)): stored.digest.hex() for stored in store.events()
    }
    results: dict[str, dict[ResultKey, bytes]] = {}
    for line in lines:
        match line:
            case ["put", name]:
                data = store_load.content(name)
                assert store.get(Digest.of(data)) == data
            case ["event", stream, number, digest]:
                assert events[stream, int(number)] == digest
            case ["result", run, name]:
                found = results.setdefault(run, dict(store.results(run)))
                assert found[ResultKey(run=run, instance=name, arm="A")] == name.encode()
            case _:
                raise AssertionError(line)


@pytest.mark.parametrize(("step", "work"), CASES)
def test_a_process_killed_at_a_step_of_a_write_leaves_all_or_nothing(tmp_path: Path, step: str, work: str):
    folder = tmp_path / "store"
    with writer("die", str(folder), step, work) as process:
        assert process.wait(timeout=60) == -signal.SIGKILL
    is_committed = step == "committed"
    old, dropped = Digest.of(b"kept" * 30_000), Digest.of(b"dropped" * 30_000)
    new = Digest.of(b"new") if work == "row" else Digest.of(b"new" * 30_000)
    with closing(DiskStore(folder)) as store:
        assert store.get(old) == b"kept" * 30_000
        assert not list((folder / "tmp").iterdir())
        states = [stat.state for stat in store.stat([new, dropped])]
        puts, collects = work in ("row", "file"), work == "garbage"
        assert states == [
            BlobState.PRESENT if puts and is_committed else BlobState.NEVER_SEEN,
            BlobState.EXPIRED if collects and is_committed else BlobState.PRESENT,
        ]
        assert len(list(store.events())) == (work == "event" and is_committed)
        store.collect_garbage(datetime.now(UTC))
    report = check(folder)
    assert (report.faults, report.orphans) == ((), 0)
    files = [path for path in (folder / "objects").rglob("*") if path.is_file()]
    assert len(files) == 1 + (work == "file" and is_committed)
