"""The filter, the report and the choice, without a kernel: values in, values out."""

from __future__ import annotations

import ast
import errno
from pathlib import Path

import pytest

from hermes_runtime.errors import BadInput, Unsupported
from hermes_runtime.sandbox import Bench, Ending, Outcome, Sandbox, Session
from hermes_runtime.sandbox.choose import choose
from hermes_runtime.sandbox.interpreter import interpreter_of
from hermes_runtime.sandbox.suite import Status, report_of, steady
from hermes_runtime.supervise import seccomp

ALLOW, KILL, NOTIFY = 0x7FFF0000, 0x80000000, 0x7FC00000
X86, ARM, I386 = 0xC000003E, 0xC00000B7, 0x40000003


def answer(rules: seccomp.Rules, number: int, *words: int, arch: int = X86, machine: str = "x86_64") -> int:
    """Interpret the filter as the kernel does; a refusal is its errno."""
    data = {0: number, 4: arch}
    for index, word in enumerate((*words, 0, 0)):
        data[16 + 8 * index] = word & 0xFFFFFFFF
    at = accumulator = 0
    code = seccomp.instructions(rules, machine)
    while True:
        what, if_true, if_false, k = code[at]
        at += 1
        if what == 0x20:
            accumulator = data[k]
        elif what == 0x54:
            accumulator &= k
        elif what == 0x06:
            return k & 0xFFFF if k & 0x7FFF0000 == 0x00050000 else k
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[what]
            at += if_true if holds else if_false


@pytest.mark.parametrize(
    ("rules", "call", "expected"),
    [
        pytest.param(seccomp.SEAL_UNCOUNTED, (41, 1, 1), ALLOW, id="a unix socket"),
        pytest.param(seccomp.SEAL_UNCOUNTED, (41, 2, 1), errno.EAFNOSUPPORT, id="an internet socket"),
        pytest.param(seccomp.SEAL_UNCOUNTED, (41, 1 << 32 | 2, 1), errno.EAFNOSUPPORT, id="high bits"),
        pytest.param(seccomp.SEAL_UNCOUNTED, (53, 16, 1), errno.EAFNOSUPPORT, id="a netlink pair"),
        pytest.param(seccomp.SEAL_COUNTED, (41, 10, 1), NOTIFY, id="counted"),
        pytest.param(seccomp.SEAL_UNCOUNTED, (425,), errno.ENOSYS, id="io_uring"),
        pytest.param(seccomp.SEAL_UNCOUNTED, (0x40000029, 1, 1), errno.ENOSYS, id="x32"),
        pytest.param(seccomp.SEAL_UNCOUNTED, (272, 0x10000000), ALLOW, id="a sealed run may unshare"),
        pytest.param(seccomp.BENCH, (272, 0x10000000), errno.EPERM, id="a test may not"),
        pytest.param(seccomp.BENCH, (56, 0x10000000), errno.EPERM, id="nor by clone"),
        pytest.param(seccomp.BENCH, (56, 0x003D0F00), ALLOW, id="a thread"),
        pytest.param(seccomp.BENCH, (435,), errno.ENOSYS, id="nor by clone3"),
        pytest.param(seccomp.BENCH, (16, 0, 0x5412), errno.EPERM, id="typing into the terminal"),
        pytest.param(seccomp.BENCH, (16, 0, 0x5401), ALLOW, id="asking the terminal"),
        pytest.param(seccomp.BENCH, (42, 3), ALLOW, id="connecting in namespaces"),
        pytest.param(seccomp.BENCH_ON_HOST, (42, 3), errno.EACCES, id="connecting on the host"),
        pytest.param(seccomp.BENCH_ON_HOST, (41, 1, 2 | 0o2000000), errno.EACCES, id="a unix datagram"),
        pytest.param(seccomp.BENCH_ON_HOST, (53, 1, 1), ALLOW, id="a unix pair"),
        pytest.param(seccomp.BENCH_ON_HOST, (0, 3), ALLOW, id="reading"),
    ],
)
def test_the_filter_answers(rules: seccomp.Rules, call: tuple[int, ...], expected: int) -> None:
    assert answer(rules, *call) == expected


def test_foreign_architectures_are_killed_and_each_knows_its_own_numbers() -> None:
    assert answer(seccomp.BENCH, 41, 1, arch=I386) == KILL
    assert answer(seccomp.BENCH, 198, 2, arch=ARM, machine="aarch64") == errno.EAFNOSUPPORT
    assert answer(seccomp.BENCH, 41, 2, arch=ARM, machine="aarch64") == errno.EPERM  # there: pivot_root
    with pytest.raises(Unsupported, match="riscv64"):
        seccomp.instructions(seccomp.BENCH, "riscv64")


def outcome(*lines: bytes, ending: Ending = Ending.EXITED) -> Outcome:
    return Outcome(
        ending=ending, exit_code=0, output=b"", report=b"\n".join(lines), setup_seconds=0.0, seconds=0.0
    )


def test_a_test_that_took_the_attempt_with_it_is_an_error_and_later_ones_were_not_run() -> None:
    told = outcome(b'{"collected":["a::x","a::y","a::z"]}', b'{"test":"a::x","status":"passed"}')
    assert report_of(["a::x", "a::y", "a::z", "a::gone"], told).results == {
        "a::x": Status.PASSED,
        "a::y": Status.ERROR,
        "a::z": Status.NOT_RUN,
        "a::gone": Status.ERROR,
    }


def test_what_the_tested_code_writes_into_the_report_breaks_nothing() -> None:
    told = outcome(
        b"\xff{", b'{"collected":["a"]}', b'{"test":"a","status":"great"}', b"[1]", b'{"done":0,"coverage":3}'
    )
    assert report_of(["a"], told).results == {"a": Status.ERROR}


def test_durations_addresses_and_temporary_paths_are_steady() -> None:
    assert steady("1 passed in 1.23s, <A at 0x7f12ab34cd56>") == "1 passed in 0.00s, <A at 0x0>"
    assert steady("/tmp/hermes-sandbox-a1_b/attempts/17/tree/x.py:3") == "/testbed/x.py:3"


class FakeSandbox:
    """A sandbox that is there or not."""

    def __init__(self, name: str, reason: str | None) -> None:
        self.name, self._reason = name, reason

    def unavailable(self) -> str | None:
        return self._reason

    async def open(self, bench: Bench) -> Session:
        raise Unsupported("a fake")


def test_auto_takes_the_first_that_works_and_a_name_is_never_replaced() -> None:
    first, second = FakeSandbox("bubblewrap", "install it"), FakeSandbox("landlock", None)
    sandboxes: list[Sandbox] = [first, second]
    assert choose("auto", sandboxes) is second
    with pytest.raises(Unsupported, match="install it"):
        choose("bubblewrap", sandboxes)


def test_the_inside_is_python_3_9() -> None:
    inside = Path(seccomp.__file__).parents[1] / "sandbox" / "inside"
    for path in inside.glob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 9))


def test_an_interpreter_brings_its_environment_and_not_its_neighbours(tmp_path: Path) -> None:
    home = tmp_path / "home"
    installed = home / "pythons" / "3.12"
    (installed / "lib" / "python3.12").mkdir(parents=True)
    (installed / "lib" / "python3.12" / "os.py").touch()
    (installed / "bin").mkdir()
    (installed / "bin" / "python3").touch()
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(installed / "bin" / "python3")
    (home / "venv" / "bin").mkdir(parents=True)
    (home / "venv" / "pyvenv.cfg").write_text(f"home = {home / 'bin'}\n")
    (home / "venv" / "bin" / "python").symlink_to(home / "bin" / "python3")
    found = interpreter_of(home / "venv" / "bin" / "python")
    assert found.folders == (str(home / "venv"), str(installed))
    assert found.links == ((str(home / "bin" / "python3"), str(installed / "bin" / "python3")),)
    with pytest.raises(BadInput, match="not there"):
        interpreter_of(home / "nothing")
