# ruff: noqa: E501  (the sealed are programs in strings)
"""The seal on real processes: each test seals a process of its own, and looks at what it and its children can do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "runtime"

PRELUDE = """
import ctypes, errno, json, os, signal, socket, subprocess, sys, threading, time
sys.path.insert(0, os.environ["HERMES_TEST_ROOT"])
from hermes_runtime.supervise.seal import seal

def refused(act):
    try:
        act().close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "OPENED"
"""


def sealed(source: str) -> dict[str, object]:
    """Run `source` in a fresh interpreter; it leaves what it found in `told`."""
    code = PRELUDE + textwrap.dedent(source) + "\nprint(json.dumps(told))\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PATH": "/usr/bin:/bin", "HERMES_TEST_ROOT": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(told, dict)
    return told


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK"])
def test_every_family_but_unix_is_refused_and_counted(family: str) -> None:
    told = sealed(f"""
        one = seal()
        first = refused(lambda: socket.socket(socket.{family}, socket.SOCK_RAW))
        left, right = socket.socketpair()
        left.send(b"x")
        told = {{"first": first, "unix": right.recv(1).decode(), **one.evidence()}}
        left.close(), right.close()
    """)
    callers = told.pop("attempted_by")
    assert told == {"first": "EAFNOSUPPORT", "unix": "x", "wall": "seccomp", "counted": True, "attempts": 1}
    assert isinstance(callers, list)
    assert [(one["syscall"], one["family"], one["count"]) for one in callers] == [("socket", family, 1)]


def test_a_clean_run_has_no_attempts() -> None:
    told = sealed("""
        one = seal()
        subprocess.run([sys.executable, "-c", "import asyncio; asyncio.run(asyncio.sleep(0))"], check=True)
        told = one.evidence()
    """)
    assert told == {"wall": "seccomp", "counted": True, "attempts": 0, "attempted_by": []}


def test_c_code_that_holds_pythons_lock_is_answered() -> None:
    told = sealed("""
        one = seal()
        holding = ctypes.PyDLL(None, use_errno=True)
        result = holding.socket(2, 1, 0)
        told = {"result": result, "errno": errno.errorcode[ctypes.get_errno()], "attempts": one.attempts}
    """)
    assert told == {"result": -1, "errno": "EAFNOSUPPORT", "attempts": 1}


def test_subprocesses_and_other_programs_are_sealed_and_counted() -> None:
    told = sealed("""
        one = seal()
        python = subprocess.run([sys.executable, "-c", "import socket; socket.socket()"], capture_output=True)
        bash = subprocess.run(["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9"], capture_output=True)
        told = {"python": python.returncode, "bash": bash.returncode, "attempts": one.attempts,
                "comms": sorted(caller.comm for caller in one.attempted_by)}
    """)
    assert told["python"] == 1
    assert told["bash"] == 1
    assert told["attempts"] == 2
    assert told["comms"] == sorted(["bash", Path(sys.executable).resolve().name[:15]]) or "bash" in str(
        told["comms"]
    )


def test_threads_that_ran_before_are_sealed() -> None:
    told = sealed("""
        go, found = threading.Event(), []
        def work():
            go.wait()
            found.append(refused(socket.socket))
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads: thread.start()
        one = seal()
        go.set()
        for thread in threads: thread.join()
        told = {"found": found, "attempts": one.attempts}
    """)
    assert told == {"found": ["EAFNOSUPPORT"] * 4, "attempts": 4}


def test_io_uring_and_stolen_descriptors_are_refused() -> None:
    told = sealed("""
        one = seal()
        libc = ctypes.CDLL(None, use_errno=True)
        ring = (libc.syscall(425, 4, ctypes.create_string_buffer(120)), errno.errorcode[ctypes.get_errno()])
        stolen = (libc.syscall(438, 3, 0, 0), errno.errorcode[ctypes.get_errno()])
        told = {"ring": ring, "stolen": stolen}
    """)
    assert told == {"ring": [-1, "ENOSYS"], "stolen": [-1, "EPERM"]}


def test_calls_still_fail_when_the_counter_is_killed() -> None:
    told = sealed("""
        one = seal()
        before = refused(socket.socket)
        attempts = one.attempts
        children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
            os.waitpid(int(child), 0)
        after = refused(socket.socket)
        told = {"before": before, "after": after, "counted": one.counted, "attempts": [attempts, one.attempts]}
    """)
    assert told == {"before": "EAFNOSUPPORT", "after": "ENOSYS", "counted": False, "attempts": [1, 1]}


def test_a_child_that_outlives_the_sealer_stays_sealed() -> None:
    told = sealed("""
        reading, writing = os.pipe()
        if os.fork() == 0:
            seal()
            sealer = os.getpid()
            if os.fork() == 0:
                while os.getppid() == sealer: time.sleep(0.01)
                os.write(writing, refused(socket.socket).encode())
            os._exit(0)
        os.close(writing)
        told = {"found": os.read(reading, 100).decode()}
    """)
    assert told == {"found": "EAFNOSUPPORT"}


def test_sealing_twice_keeps_the_first_count() -> None:
    told = sealed("""
        one = seal()
        two = seal()
        code = "import sys; sys.path.insert(0, sys.argv[1]); from hermes_runtime.supervise.seal import seal; "
        code += "one = seal(); print(one.inherited, one.counted)"
        child = subprocess.run([sys.executable, "-c", code, sys.path[0]], capture_output=True, text=True)
        found = refused(socket.socket)
        told = {"found": found, "inherited": two.inherited, "attempts": one.attempts, "child": child.stdout.split()}
    """)
    assert told == {"found": "EAFNOSUPPORT", "inherited": True, "attempts": 1, "child": ["True", "False"]}


def test_names_and_interfaces_do_not_crash() -> None:
    told = sealed("""
        seal()
        def names():
            socket.getaddrinfo("example.org", 80)
        told = {"interfaces": refused(socket.if_nameindex), "connect": refused(lambda: socket.create_connection(("127.0.0.1", 9)))}
        try: names(); told["names"] = "FOUND"
        except OSError: told["names"] = "none"
    """)
    assert told == {"interfaces": "EAFNOSUPPORT", "connect": "EAFNOSUPPORT", "names": "none"}


def test_sandboxes_open_under_the_seal(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("def test_a():\n    pass\n")
    told = sealed(f"""
        import asyncio
        from pathlib import Path
        from hermes_runtime.sandbox import Bench
        from hermes_runtime.sandbox.bubblewrap import Bubblewrap
        from hermes_runtime.sandbox.landlock import Landlock
        from hermes_runtime.sandbox.suite import open_suite
        one = seal()
        told = {{}}
        async def run():
            for sandbox in (Bubblewrap(), Landlock()):
                if sandbox.unavailable() is None:
                    suite = await open_suite(sandbox, Bench(tree=Path({str(tmp_path)!r}), python=Path(sys.executable)))
                    told[sandbox.name] = [one.value for one in (await suite.run([])).results.values()]
                    await suite.close()
        asyncio.run(run())
        told["attempts"] = one.attempts
    """)
    assert told.pop("attempts") == 0
    assert told
    assert all(results == ["passed"] for results in told.values())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_can_seal() -> None:
    python = Path("/usr/bin/python3")
    if not python.exists() or not os.access(ROOT, os.R_OK):
        pytest.skip("no interpreter that everybody can run")
    code = PRELUDE + "one = seal()\nrefused(socket.socket)\nprint(json.dumps(one.evidence()))\n"
    done = subprocess.run(
        [python, "-c", code],
        env={"PATH": "/usr/bin:/bin", "HERMES_TEST_ROOT": str(ROOT)},
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        timeout=60,
        check=False,
    )
    if b"ImportError" in done.stderr or b"SyntaxError" in done.stderr:
        pytest.skip("the system's Python is older than 3.11")
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["attempts"] == 1
