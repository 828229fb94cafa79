"""A run's processes: started, restarted, stopped, and never left behind."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from hermes_runtime.errors import HermesError, PeerLost
from hermes_runtime.supervise.tree import ProcessTree, Program

SERVER = """
import sys, threading
from hermes_runtime.supervise.parent import end_with_parent
end_with_parent()
open(sys.argv[1], "a").write("up\\n")
threading.Event().wait()
"""


def program(marker: Path, text: str = SERVER, name: str = "server") -> Program:
    seen = 0

    async def ready() -> None:
        nonlocal seen
        count = len(marker.read_text().splitlines()) if marker.exists() else 0
        if count <= seen:
            raise PeerLost("not yet")
        seen = count

    return Program(name=name, argv=[sys.executable, "-c", text, str(marker)], ready=ready, ready_seconds=20)


async def gone(pid: int) -> None:
    """Wait until a process is gone (a zombie is)."""
    async with asyncio.timeout(20):
        # another process's end is no event of this loop
        while Path(f"/proc/{pid}").exists() and ") Z" not in Path(f"/proc/{pid}/stat").read_text():
            await asyncio.sleep(0.02)


async def test_a_killed_process_is_started_again_and_said_so(tmp_path):
    told: asyncio.Queue[str] = asyncio.Queue()
    async with ProcessTree(logs=tmp_path / "logs", on_restart=told.put_nowait) as tree:
        await tree.start(program(tmp_path / "marker"))
        first = tree.pid("server")
        os.kill(first, signal.SIGKILL)
        assert "SIGKILL" in await asyncio.wait_for(told.get(), 20)
        async with asyncio.timeout(20):
            while tree.pid("server") == first:
                await asyncio.sleep(0.02)
            await tree.until_ready("server")
        assert tree.restarts == {"server": 1}
        last = tree.pid("server")
    await gone(last)


async def test_a_process_that_ends_before_it_is_ready_is_an_error_with_the_end_of_its_log(tmp_path):
    async with ProcessTree(logs=tmp_path / "logs") as tree:
        with pytest.raises(HermesError, match="exit code 3") as caught:
            await tree.start(program(tmp_path / "m", "import sys; print('no licence'); sys.exit(3)"))
        assert "no licence" in str(caught.value)


async def test_no_process_outlives_a_killed_parent(tmp_path):
    marker = tmp_path / "marker"
    parent = f"""
import asyncio, sys
from pathlib import Path
from hermes_runtime.supervise.tree import ProcessTree, Program
async def ready():
    while not Path({str(marker)!r}).exists():
        await asyncio.sleep(0.02)
async def main():
    async with ProcessTree(logs=Path({str(tmp_path)!r}) / "logs") as tree:
        argv = [sys.executable, "-c", {SERVER!r}, {str(marker)!r}]
        await tree.start(Program(name="s", argv=argv, ready=ready))
        print(tree.pid("s"), flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        parent,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout
    child = int(await asyncio.wait_for(process.stdout.readline(), 30))
    process.kill()
    await process.wait()
    await gone(child)
