# ruff: noqa: E501  (the attackers are programs in strings)
"""What every sandbox promises, asked of each by code that tries to break it.

The attacker is a test file of the candidate: it runs inside and asserts from there that it is walled
off; what it may have done outside is looked at from here.
"""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hermes_runtime.errors import BadInput, PeerLost
from hermes_runtime.sandbox import Attempt, Bench, Ending, Limits, Sandbox
from hermes_runtime.sandbox.bubblewrap import Bubblewrap
from hermes_runtime.sandbox.landlock import Landlock
from hermes_runtime.sandbox.suite import Status, TestReport, TestSuite, open_suite
from tests.contract.sandbox_bench import TREE, make_environment, make_tree

EVIL = "tests/test_evil.py"
QUICK = Limits(wall_seconds=30, cpu_seconds=30, memory_bytes=512 << 20)


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("environment") / "venv", sys.executable)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree")


@pytest.fixture(params=[pytest.param(Bubblewrap, marks=pytest.mark.bubblewrap), Landlock])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    made: Sandbox = request.param()
    reason = made.unavailable()
    if reason:
        pytest.skip(reason)
    return made


@asynccontextmanager
async def opened(sandbox: Sandbox, tree: Path, python: Path) -> AsyncIterator[TestSuite]:
    suite = await open_suite(sandbox, Bench(tree=tree, python=python))
    try:
        yield suite
    finally:
        await suite.close()


async def attack(
    sandbox: Sandbox, tree: Path, python: Path, source: str, limits: Limits = QUICK
) -> TestReport:
    """Run `source` as a test file of its own."""
    async with opened(sandbox, tree, python) as suite:
        files = {EVIL: textwrap.dedent(source).encode()}
        return await suite.run([EVIL], files=files, limits=limits)


def held(report: TestReport) -> None:
    """Every test of the attacker passed: it found each wall standing."""
    assert report.ending is Ending.EXITED, report.log
    assert set(report.results.values()) == {Status.PASSED}, report.log


# What it is for


async def test_each_kind_of_result_is_told(sandbox: Sandbox, tree: Path, python: Path) -> None:
    names = ["add[a[x]]", "add[b::c/d]", "box", "skipped", "xfailed", "error", "prints", "gone"]
    tests = [f"tests/test_sums.py::test_{name}" for name in names]
    async with opened(sandbox, tree, python) as suite:
        report = await suite.run([*tests, "tests/test_gone.py::test_x"])
    told = [report.results[test].value for test in tests]
    assert told == ["passed", "failed", "passed", "skipped", "xfailed", "error", "failed", "missing"]
    assert report.results["tests/test_gone.py::test_x"] is Status.MISSING
    assert report.ending is Ending.EXITED


async def test_a_file_stands_for_its_tests_and_nothing_for_all(
    sandbox: Sandbox, tree: Path, python: Path
) -> None:
    async with opened(sandbox, tree, python) as suite:
        by_file = await suite.run(["tests/test_sums.py"])
        by_function = await suite.run(["tests/test_sums.py::test_add"])
        everything = await suite.run([])
    assert len(by_file.results) == 7
    assert by_file.results == everything.results
    assert len(by_function.results) == 2


async def test_equal_runs_give_equal_logs(sandbox: Sandbox, tree: Path, python: Path) -> None:
    async with opened(sandbox, tree, python) as suite:
        first = await suite.run(["tests/test_sums.py"])
        second = await suite.run(["tests/test_sums.py"])
    assert first.log == second.log
    assert "hermes" not in first.log


async def test_coverage_tells_which_tests_ran_a_line(sandbox: Sandbox, tree: Path, python: Path) -> None:
    async with opened(sandbox, tree, python) as suite:
        report = await suite.run(["tests/test_sums.py"], coverage=["pkg/sums.py"])
    low, high = "tests/test_sums.py::test_add[a[x]]", "tests/test_sums.py::test_add[b::c/d]"
    assert report.coverage == {
        "pkg/sums.py": {
            5: frozenset({low, high}),
            6: frozenset({high}),
            7: frozenset({low}),
            14: frozenset({"tests/test_sums.py::test_box"}),
        }
    }


async def test_a_run_may_stop_at_the_first_failure(sandbox: Sandbox, tree: Path, python: Path) -> None:
    async with opened(sandbox, tree, python) as suite:
        report = await suite.run(["tests/test_sums.py"], stop_at_first=True)
    assert report.results["tests/test_sums.py::test_add[b::c/d]"] is Status.FAILED
    assert report.results["tests/test_sums.py::test_box"] is Status.NOT_RUN


async def test_a_file_that_does_not_import_is_an_error_and_no_other(
    sandbox: Sandbox, tree: Path, python: Path
) -> None:
    async with opened(sandbox, tree, python) as suite:
        tests = ["tests/test_evil.py::test_x", "tests/test_sums.py::test_box"]
        report = await suite.run(tests, files={EVIL: b"import nothing_of_that_name"})
        damaged = await suite.run(tests[1:], files={"pkg/sums.py": b"def add(:"})
        conftest = await suite.run(tests[1:], files={"conftest.py": b"1 / 0"})
    assert list(report.results.values()) == [Status.ERROR, Status.PASSED]
    assert list(damaged.results.values()) == [Status.ERROR]
    assert list(conftest.results.values()) == [Status.ERROR]


async def test_attempts_may_run_at_once(sandbox: Sandbox, tree: Path, python: Path) -> None:
    async with opened(sandbox, tree, python) as suite, asyncio.TaskGroup() as group:
        runs = [
            group.create_task(
                suite.run([EVIL], files={EVIL: f"def test_x():\n    assert {number} != 2\n".encode()})
            )
            for number in range(4)
        ]
        async with asyncio.timeout(60):
            reports = [await run for run in runs]
    assert [report.results[f"{EVIL}::test_x"].value for report in reports] == [
        "passed",
        "passed",
        "failed",
        "passed",
    ]


# Files


async def test_the_next_attempt_sees_the_original_tree(sandbox: Sandbox, tree: Path, python: Path) -> None:
    spoil = """
        from pathlib import Path
        def test_spoil():
            Path("tests/test_sums.py").write_text("def test_box(): assert 0")
            Path("pkg/sums.py").unlink()
            Path("new").mkdir()
    """
    async with opened(sandbox, tree, python) as suite:
        spoilt = await suite.run([EVIL], files={EVIL: textwrap.dedent(spoil).encode()})
        after = await suite.run(["tests/test_sums.py::test_box", EVIL])
    held(spoilt)
    assert list(after.results.values()) == [Status.PASSED, Status.MISSING]
    assert {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()} == set(TREE)


async def test_nothing_outside_the_tree_can_be_written(
    sandbox: Sandbox, tree: Path, python: Path, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    report = await attack(
        sandbox,
        tree,
        python,
        f"""
        import os, sys, pytest
        import _pytest
        OUTSIDE = ["{tmp_path}/x", "{tree}/x", "/etc/x", "/usr/x", "/dev/x", "/hermes/lower/x",
                   os.path.dirname(_pytest.__file__) + "/x", sys.prefix + "/x", "/var/tmp/x", "/x",
                   "/dev/shm/../x", "/proc/self/../x", "/srv/x", "/proc/sys/kernel/core_pattern"]
        @pytest.mark.parametrize("path", OUTSIDE)
        def test_write(path):
            with pytest.raises(OSError):
                open(path, "w")
        def test_make_a_link_out_and_write_through_it():
            os.symlink("{tmp_path}", "out")
            with pytest.raises(OSError):
                open("out/x", "w")
        def test_truncate_and_rename():
            for act in (lambda: os.truncate(_pytest.__file__, 0), lambda: os.rename("pkg", "{tmp_path}/pkg"),
                        lambda: os.link(_pytest.__file__, "linked"), lambda: os.mkdir("{tmp_path}/d"),
                        lambda: os.chroot("."), lambda: os.mknod("device", 0o60600, 0x0801)):
                with pytest.raises(OSError):
                    act()
        """,
    )
    held(report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree"]
    assert not (tree / "x").exists()


async def test_the_hosts_private_files_cannot_be_read(
    sandbox: Sandbox, tree: Path, python: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    report = await attack(
        sandbox,
        tree,
        python,
        f"""
        import os, sys, pytest
        HIDDEN = ["{secret}", "tests/link", "/etc/shadow", "/etc/gshadow", "/var/log/dpkg.log"]
        @pytest.mark.parametrize("path", HIDDEN)
        def test_read(path):
            if path == "tests/link":
                os.symlink("{secret}", path)
            with pytest.raises(OSError):
                open(path)
        @pytest.mark.parametrize("folder", ["/root", "/home", "{tmp_path}", "/sys", "/var", "/run"])
        def test_list(folder):
            try:
                seen = os.listdir(folder)
            except OSError:
                seen = []
            # where the interpreter is below it, the way there is seen and nothing beside it
            assert all(sys.prefix.startswith(f"{{folder}}/{{name}}") or
                       sys.base_prefix.startswith(f"{{folder}}/{{name}}") for name in seen)
        """,
    )
    held(report)


async def test_a_link_in_the_tree_does_not_lead_the_replaced_files_out(
    sandbox: Sandbox, tree: Path, python: Path, tmp_path: Path
) -> None:
    (tmp_path / "target").mkdir()
    (tree / "away").symlink_to(tmp_path / "target")
    (tree / "file").symlink_to(tmp_path / "target" / "file")
    async with opened(sandbox, tree, python) as suite:
        with pytest.raises(BadInput):
            await suite.run([EVIL], files={"away/x": b"x"})
        with pytest.raises(BadInput):
            await suite.run([EVIL], files={"../x": b"x"})
        replaced = await suite.run(
            [EVIL], files={"file": b"mine", EVIL: b"def test_x(): assert open('file').read() == 'mine'"}
        )
    held(replaced)
    assert not list((tmp_path / "target").iterdir())
    assert not (tmp_path / "x").exists()


async def test_an_attempt_cannot_read_anothers_tree(sandbox: Sandbox, tree: Path, python: Path) -> None:
    hide = """
        import os, time
        def test_hide():
            open("secret-of-the-first", "w").write(os.getcwd())
            open(os.environ["TMPDIR"] + "/secret-of-the-first", "w").write("x")
            while not os.path.exists("never"): time.sleep(0.01)
    """
    seek = """
        import os, glob
        def test_seek():
            roots = {os.path.realpath(os.path.join(os.getcwd(), *up)) for up in ([".."], ["..", ".."])}
            for root in [*roots, "/tmp", "/hermes", "/testbed", "/dev/shm", "/proc"]:
                for folder, _, files in os.walk(root):
                    assert not [file for file in files if file.startswith("secret-of")], folder
    """
    async with opened(sandbox, tree, python) as suite, asyncio.TaskGroup() as group:
        limits = Limits(wall_seconds=4)
        first = group.create_task(
            suite.run([EVIL], files={EVIL: textwrap.dedent(hide).encode()}, limits=limits)
        )
        second = await suite.run([EVIL], files={EVIL: textwrap.dedent(seek).encode()})
        held(second)
        assert (await first).ending is Ending.TIMED_OUT


# Processes


async def test_no_socket_but_a_unix_pair_can_be_opened(sandbox: Sandbox, tree: Path, python: Path) -> None:
    report = await attack(
        sandbox,
        tree,
        python,
        """
        import ctypes, errno, platform, socket, subprocess, sys, pytest
        libc = ctypes.CDLL(None, use_errno=True)
        AF = {"INET": 2, "INET6": 10, "NETLINK": 16, "PACKET": 17, "ALG": 38, "VSOCK": 40, "BLUETOOTH": 31}
        @pytest.mark.parametrize("family", AF.values(), ids=AF)
        @pytest.mark.parametrize("kind", [1, 2, 3])
        def test_ctypes(family, kind):
            assert libc.socket(family, kind, 0) == -1
            assert ctypes.get_errno() == errno.EAFNOSUPPORT
        def test_the_raw_system_call():
            number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
            assert libc.syscall(number, 2, 1, 0) == -1
            # bits above the 32 that the kernel looks at do not hide the family
            assert libc.syscall(number, ctypes.c_long(1 << 32 | 2), 1, 0) == -1
        def test_io_uring():
            assert libc.syscall(425, 4, ctypes.create_string_buffer(120)) == -1
            assert ctypes.get_errno() == errno.ENOSYS
        def test_names_and_interfaces_do_not_crash():
            with pytest.raises(OSError):
                socket.create_connection(("1.1.1.1", 53), timeout=1)
            with pytest.raises(OSError):
                socket.if_nameindex()
            with pytest.raises(OSError):
                socket.getaddrinfo("example.org", 80)
        def test_a_subprocess():
            done = subprocess.run([sys.executable, "-c", "import socket; socket.socket()"], capture_output=True)
            assert b"Address family not supported" in done.stderr
        def test_a_unix_pair_works():
            left, right = socket.socketpair()
            left.send(b"x")
            assert right.recv(1) == b"x"
        """,
    )
    held(report)


async def test_unix_sockets_of_the_host_cannot_be_reached(
    sandbox: Sandbox, tree: Path, python: Path, tmp_path: Path
) -> None:
    path = f"{tmp_path}/s"
    abstract = f"hermes-test-{os.getpid()}"

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    named = await asyncio.start_unix_server(served, path)
    hidden = await asyncio.start_unix_server(served, "\0" + abstract)
    Path(path).chmod(0o777)
    try:
        report = await attack(
            sandbox,
            tree,
            python,
            f"""
            import socket, pytest
            @pytest.mark.parametrize("name", ["{path}", chr(0) + "{abstract}"], ids=["path", "abstract"])
            def test_connect(name):
                with pytest.raises(OSError):
                    socket.socket(socket.AF_UNIX).connect(name)
                with pytest.raises(OSError):
                    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", name)
            """,
        )
    finally:
        named.close()
        hidden.close()
    held(report)


async def test_the_host_cannot_be_seen_in_proc_nor_in_the_environment(
    sandbox: Sandbox, tree: Path, python: Path
) -> None:
    report = await attack(
        sandbox,
        tree,
        python,
        f"""
        import os, pytest
        HOST = {os.getpid()}
        def test_environment():
            allowed = {{"HOME", "TMPDIR", "PATH", "LANG", "TZ", "PYTHONPATH", "PYTHONHASHSEED", "COVERAGE_CORE",
                        "PYTHONDONTWRITEBYTECODE", "PYTEST_CURRENT_TEST", "PYTEST_VERSION", "LC_CTYPE"}}
            assert set(os.environ) <= allowed
        def test_proc():
            mine = {{"1", str(os.getpid())}}
            try:
                seen = {{name for name in os.listdir("/proc") if name.isdigit()}}
            except PermissionError:
                seen = set()
            assert seen <= mine
            for other in {{HOST, os.getppid(), 1}} - {{os.getpid()}}:
                for what in ("environ", "mem", "maps", "root", "cwd", *(f"fd/{{n}}" for n in range(64))):
                    path = f"/proc/{{other}}/{{what}}"
                    try:
                        got = os.listdir(path) if what in ("root", "cwd") else open(path, "rb").read(1)
                    except OSError:
                        continue
                    assert not got, (path, got)
        def test_descriptors():
            for name in os.listdir("/proc/self/fd"):
                try:
                    target = os.readlink(f"/proc/self/fd/{{name}}")
                except OSError:
                    continue
                assert target.startswith(("pipe:", "/dev/null", "/proc", "/tmp", "/hermes/tmp", os.environ["TMPDIR"]))
        """,
    )
    held(report)


async def test_the_zygote_can_be_neither_killed_nor_traced(
    sandbox: Sandbox, tree: Path, python: Path
) -> None:
    source = f"""
        import ctypes, os, signal, pytest
        libc = ctypes.CDLL(None, use_errno=True)
        HOST = {os.getpid()}
        def test_kill():
            for other in {{HOST, os.getppid()}}:
                if other > 1:
                    with pytest.raises(OSError):
                        os.kill(other, signal.SIGKILL)
        def test_ptrace():
            for other in {{HOST, os.getppid(), 1}}:
                assert libc.ptrace(16, other, 0, 0) == -1
                assert libc.process_vm_readv(other, None, 0, None, 0, 0) == -1
        def test_namespaces_and_mounts():
            for act in (libc.unshare(0x10000000), libc.unshare(0x00020000), libc.mount(b"x", b"/tmp", b"tmpfs", 0, 0)):
                assert act == -1
        def test_capabilities():
            status = open("/proc/self/status").read()
            assert "CapEff:\\t0000000000000000" in status and "CapBnd:\\t0000000000000000" in status
            assert "NoNewPrivs:\\t1" in status and "Seccomp:\\t2" in status
    """
    async with opened(sandbox, tree, python) as suite:
        held(await suite.run([EVIL], files={EVIL: textwrap.dedent(source).encode()}))
        held(await suite.run(["tests/test_sums.py::test_box"]))


async def test_a_fork_bomb_ends_and_the_next_attempt_runs(sandbox: Sandbox, tree: Path, python: Path) -> None:
    bomb = """
        import os
        def test_bomb():
            while True:
                try: os.fork()
                except OSError: pass
    """
    async with opened(sandbox, tree, python) as suite:
        limits = Limits(wall_seconds=20, processes=32)
        begun = time.monotonic()
        report = await suite.run([EVIL], files={EVIL: textwrap.dedent(bomb).encode()}, limits=limits)
        assert report.ending is Ending.PROCESS_LIMIT
        assert time.monotonic() - begun < 15
        held(await suite.run(["tests/test_sums.py::test_box"]))


async def test_a_timeout_kills_daemons_that_ignore_signals(
    sandbox: Sandbox, tree: Path, python: Path, tmp_path: Path
) -> None:
    mark = f"hermes-daemon-{os.getpid()}-{sandbox.name}"
    source = f"""
        import os, signal, subprocess, sys, time
        DAEMON = '''
        import os, signal, time
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        os.setsid()
        if os.fork(): os._exit(0)
        time.sleep(1000)
        '''
        def test_hang():
            code = "\\n".join(line.strip() if "try" not in line and "except" not in line else line
                             for line in DAEMON.splitlines())
            if os.fork() == 0:
                for number in range(1, 65):
                    try: signal.signal(number, signal.SIG_IGN)
                    except (OSError, ValueError): pass
                os.setsid()
                if os.fork(): os._exit(0)
                os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)", "{mark}"])
            print("daemon started", flush=True)
            time.sleep(1000)
    """
    report = await attack(sandbox, tree, python, source, Limits(wall_seconds=2))
    assert report.ending is Ending.TIMED_OUT
    assert list(report.results.values()) == [Status.ERROR]
    assert not _processes_with(mark)


async def test_what_a_passing_test_left_running_is_killed(sandbox: Sandbox, tree: Path, python: Path) -> None:
    mark = f"hermes-left-{os.getpid()}-{sandbox.name}"
    source = f"""
        import subprocess, sys
        def test_leave():
            code = "import os, time; os.fork(); time.sleep(1000)"
            subprocess.Popen([sys.executable, "-c", code, "{mark}"], start_new_session=True).returncode = 0
    """
    report = await attack(sandbox, tree, python, source)
    held(report)
    assert not _processes_with(mark)


async def test_a_cancelled_run_is_killed(sandbox: Sandbox, tree: Path, python: Path) -> None:
    mark = f"hermes-cancelled-{os.getpid()}-{sandbox.name}"
    source = f"""
        import os, sys
        def test_hang():
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)", "{mark}"])
    """
    async with opened(sandbox, tree, python) as suite:
        async with asyncio.TaskGroup() as group:
            run = group.create_task(suite.run([EVIL], files={EVIL: textwrap.dedent(source).encode()}))
            await _until(lambda: bool(_processes_with(mark)))
            run.cancel()
        await _until(lambda: not _processes_with(mark))
        held(await suite.run(["tests/test_sums.py::test_box"]))


def _processes_with(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


async def _until(happened: object) -> None:
    assert callable(happened)
    async with asyncio.timeout(30):
        while not happened():
            await asyncio.sleep(0.01)


# Limits


async def test_a_gigabyte_of_output_ends_the_attempt(sandbox: Sandbox, tree: Path, python: Path) -> None:
    source = """
        import os
        def test_shout():
            part = b"x" * (1 << 20)
            for _ in range(1 << 10):
                os.write(2, part)
    """
    async with opened(sandbox, tree, python) as suite:
        files = {
            "conftest.py": textwrap.dedent(source).replace("def test_shout", "def shout").encode()
            + b"shout()"
        }
        limits = Limits(output_bytes=1 << 20, wall_seconds=30)
        report = await suite.run(["tests/test_sums.py::test_box"], files=files, limits=limits)
    assert report.ending is Ending.OUTPUT_LIMIT
    assert len(report.log) <= 1 << 20
    assert list(report.results.values()) == [Status.ERROR]


async def test_a_memory_hog_is_told_from_other_deaths(sandbox: Sandbox, tree: Path, python: Path) -> None:
    hog = """
        import time
        def test_hog():
            kept = []
            while True:
                kept.append(bytearray(b"x") * (8 << 20))
                time.sleep(0.01)
    """
    report = await attack(sandbox, tree, python, hog, Limits(memory_bytes=256 << 20, wall_seconds=30))
    assert report.ending is Ending.OUT_OF_MEMORY
    assert list(report.results.values()) == [Status.ERROR]


async def test_one_absurd_allocation_is_the_tests_own_failure(
    sandbox: Sandbox, tree: Path, python: Path
) -> None:
    source = "def test_absurd():\n    [0] * 10**11\n"
    report = await attack(sandbox, tree, python, source, Limits(memory_bytes=256 << 20))
    assert report.ending is Ending.EXITED
    assert list(report.results.values()) == [Status.FAILED]


async def test_a_large_file_cannot_be_written(sandbox: Sandbox, tree: Path, python: Path) -> None:
    source = """
        import pytest
        def test_large():
            with pytest.raises(OSError), open("large", "wb") as file:
                for _ in range(64): file.write(bytes(1 << 20))
    """
    held(await attack(sandbox, tree, python, source, Limits(file_bytes=8 << 20)))


async def test_burning_the_cpu_is_a_timeout(sandbox: Sandbox, tree: Path, python: Path) -> None:
    source = """
        import os
        def test_burn():
            os.fork()
            while True: pass
    """
    report = await attack(sandbox, tree, python, source, Limits(wall_seconds=60, cpu_seconds=2))
    assert report.ending is Ending.TIMED_OUT
    assert report.seconds < 30


@pytest.mark.parametrize(
    ("act", "ending", "status"),
    [
        pytest.param("os.kill(os.getpid(), 11)", Ending.SIGNALLED, Status.ERROR, id="a signal"),
        pytest.param("os.abort()", Ending.SIGNALLED, Status.ERROR, id="an abort"),
        pytest.param("os._exit(0)", Ending.EXITED, Status.ERROR, id="a silent exit"),
        pytest.param("sys.exit(0)", Ending.EXITED, Status.FAILED, id="an exit"),
        pytest.param("os.write(3, b'{broken')", Ending.EXITED, Status.PASSED, id="a spoilt report"),
    ],
)
async def test_endings_are_told_apart(
    sandbox: Sandbox, tree: Path, python: Path, act: str, ending: Ending, status: Status
) -> None:
    report = await attack(sandbox, tree, python, f"import os, sys\ndef test_end():\n    {act}\n")
    assert report.ending is ending
    told = report.results.get(f"{EVIL}::test_end")
    assert told is status or (status is Status.PASSED and told in (Status.ERROR, Status.NOT_RUN))


# Sessions


async def test_a_killed_zygote_costs_one_retry(sandbox: Sandbox, tree: Path, python: Path) -> None:
    async with opened(sandbox, tree, python) as suite:
        session = suite._session
        process = session._process  # type: ignore[union-attr]
        process.kill()
        process.wait()
        held(await suite.run(["tests/test_sums.py::test_box"]))
        assert suite._session is not session


async def test_a_closed_session_says_so(sandbox: Sandbox, tree: Path, python: Path) -> None:
    session = await sandbox.open(Bench(tree=tree, python=python))
    await session.close()
    await session.close()
    with pytest.raises(PeerLost, match="closed"):
        await session.run(Attempt(request={"tests": []}))


async def test_an_interpreter_without_pytest_is_named(sandbox: Sandbox, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not there"):
        await sandbox.open(Bench(tree=tree, python=tmp_path / "nothing"))
    bare = Path("/usr/bin/python3")
    if bare.exists():
        with pytest.raises(BadInput, match="no_such_module"):
            await sandbox.open(Bench(tree=tree, python=bare, preload=("no_such_module",)))


async def test_nothing_is_left_behind(sandbox: Sandbox, tree: Path, python: Path) -> None:
    source = """
        import os
        def test_lock_away():
            os.makedirs("a/b/c"); open("a/b/c/d", "w").close()
            os.chmod("a/b", 0); os.chmod("a", 0)
    """
    async with opened(sandbox, tree, python) as suite:
        folder: Path = suite._session._folder  # type: ignore[union-attr]
        held(await suite.run([EVIL], files={EVIL: textwrap.dedent(source).encode()}))
        assert folder.exists()
    assert not folder.exists()
