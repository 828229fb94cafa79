"""What a sandbox costs: opening a session, setting up an attempt, and a run against the bare test body.

`python bench/sandbox.py [runs]` prints a markdown table. The bare body is the same pytest program in a
fork of a warm interpreter, with no wall around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from hermes_runtime.sandbox import Attempt, Bench, Sandbox
from hermes_runtime.sandbox.bubblewrap import Bubblewrap
from hermes_runtime.sandbox.inside import pytest_inside
from hermes_runtime.sandbox.landlock import Landlock

FILES = 60
TESTS_PER_FILE = 10


def make_tree(tree: Path) -> Path:
    """A package of some size; one file of tests is run."""
    (tree / "tests").mkdir(parents=True)
    for number in range(FILES):
        body = f"def double_{number}(value):\n    return 2 * value\n" * 20
        (tree / f"module_{number}.py").write_text(body)
        tests = "\n".join(
            f"def test_{each}():\n    assert double_{number}({each}) == {2 * each}\n"
            for each in range(TESTS_PER_FILE)
        )
        (tree / "tests" / f"test_{number}.py").write_text(
            f"from module_{number} import double_{number}\n\n{tests}"
        )
    return tree


REQUEST: dict[str, object] = {"tests": ["tests/test_0.py"], "stop_at_first": True}


def bare(tree: Path, temporary: Path) -> float:
    """Seconds of one run in a plain fork of this warm interpreter."""
    begun = time.perf_counter()
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_RDWR)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os.chdir(tree)
        given = {"tree": str(tree), "temporary": str(temporary), "import_roots": [str(tree)]}
        with contextlib.suppress(BaseException):
            pytest_inside.main(REQUEST | given, silence)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"the bare run failed: {status}")
    return time.perf_counter() - begun


async def measure(sandbox: Sandbox, tree: Path, temporary: Path, runs: int) -> str:
    """One row: bare and walled runs by turns, so that both see the same machine."""
    reason = sandbox.unavailable()
    if reason:
        return f"| {sandbox.name} | {reason} | | | | |"
    begun = time.perf_counter()
    session = await sandbox.open(Bench(tree=tree, python=Path(sys.executable)))
    opened = time.perf_counter() - begun
    plain, setups, walled = [], [], []
    for _ in range(runs):
        plain.append(bare(tree, temporary))
        outcome = await session.run(Attempt(request=REQUEST))
        if outcome.exit_code:
            raise SystemExit(outcome.output.decode())
        setups.append(outcome.setup_seconds)
        walled.append(outcome.seconds)
    await session.close()
    ratio = statistics.median(walled) / statistics.median(plain)
    return (
        f"| {sandbox.name} | {opened:.2f} | {1e3 * statistics.median(setups):.1f} "
        f"| {1e3 * statistics.median(walled):.0f} | {1e3 * statistics.median(plain):.0f} | {ratio:.2f} |"
    )


async def main(runs: int) -> None:
    """Print the table."""
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as folder:
        tree, temporary = make_tree(Path(folder) / "tree"), Path(folder) / "tmp"
        temporary.mkdir()
        pytest_inside.warm_up(folder)
        gc.collect()
        gc.freeze()  # as the zygote does
        print("| sandbox | open s | set-up ms p50 | run ms p50 | bare ms p50 | run / bare |")
        print("|---|---|---|---|---|---|")
        for sandbox in (Bubblewrap(), Landlock()):
            print(await measure(sandbox, tree, temporary, runs), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
