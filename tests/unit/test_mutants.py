from __future__ import annotations

import dataclasses
import json
import random
import re
import tarfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_runtime.agents.edits import EditKind
from hermes_runtime.errors import BadInput, Damaged, PeerLost
from hermes_runtime.evaluate.datasets.baseline import Baseline, files_of, judge, measure, units_of
from hermes_runtime.evaluate.datasets.candidates import Deck, bystanders, in_suite_order, runners_by_line
from hermes_runtime.evaluate.datasets.mutants import Decision, decide, messages_of, split, statement, turn
from hermes_runtime.evaluate.datasets.packages import (
    PACKAGES,
    Subject,
    package,
    pins,
    refusal,
    unpack,
)
from hermes_runtime.models.cache import cache_folder
from hermes_runtime.sandbox import Attempt, Bench, Ending, Outcome
from hermes_runtime.sandbox.suite import Status, open_suite

PASSED, FAILED, SKIPPED, MISSING = Status.PASSED, Status.FAILED, Status.SKIPPED, Status.MISSING

SOURCE = """\
LIMIT = 10


def add(a, b):
    total = (
        a
        + b
    )
    if total > LIMIT:
        return LIMIT
    return total
"""
BASELINE = Baseline(
    tests=("t.py::a", "t.py::b", "t.py::c", "u.py::d"),
    dropped={},
    lines={"m.py": {6: (0, 1), 9: (0, 1, 2), 10: (2,), 11: (0, 1)}},
)
SUBJECT = Subject(
    name="calc", version="1.0 sha256:00", tree=Path("t"), python=Path("p"), code="m.py", tests=("t.py",)
)


def test_every_package_is_pinned_by_sha256_and_has_a_permissive_licence():
    assert set(pins()) == {one.name for one in PACKAGES}
    assert len(PACKAGES) >= 6
    assert {one.licence for one in PACKAGES} <= {"MIT", "BSD-3-Clause"}


def test_an_unknown_package_is_refused_with_those_there_are():
    with pytest.raises(BadInput, match="boltons, cachetools"):
        package("numpy")


def test_the_cache_is_where_the_environment_says_else_at_home():
    assert cache_folder({}, Path("/h")) == Path("/h/.cache/hermes")
    assert cache_folder({"HERMES_CACHE": "/c"}, Path("/h")) == Path("/c")


@pytest.mark.parametrize(
    ("stderr", "kind", "said"),
    [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", Damaged, "other bytes"),
        ("WARNING: Retrying\nERROR: No matching distribution found for x", PeerLost, "PIP_INDEX_URL"),
        ("ERROR: Connection to https://me:secret@host refused", PeerLost, "https://host"),
    ],
)
def test_what_pip_says_becomes_an_error_with_a_remedy(stderr, kind, said):
    error = refusal("sources", stderr)
    assert type(error) is kind
    assert said in str(error)
    assert "secret" not in str(error)


def archive(folder: Path, files: dict[str, bytes], link: str | None = None) -> Path:
    file = folder / "x-1.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
        if link is not None:
            info = tarfile.TarInfo("x-1/pkg/link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info)
    return file


def test_a_source_distribution_gives_its_top_files_and_the_folders_asked_for(tmp_path):
    files = {"x-1/PKG-INFO": b"i", "x-1/pkg/a.py": b"a", "x-1/docs/d.rst": b"d", "x-1/tests/t.py": b"t"}
    unpack(archive(tmp_path, files, link="/etc/passwd"), tmp_path / "tree", keep=("pkg", "tests"))
    found = sorted(p.relative_to(tmp_path / "tree").as_posix() for p in (tmp_path / "tree").rglob("*.*"))
    assert found == ["pkg/a.py", "tests/t.py"]
    assert (tmp_path / "tree" / "PKG-INFO").is_file()
    assert not (tmp_path / "tree" / "pkg" / "link").is_symlink()


@pytest.mark.parametrize("name", ["x-1/../../out", "/abs", "../x"])
def test_a_source_distribution_that_leaves_its_folder_is_refused(tmp_path, name):
    with pytest.raises(BadInput, match="leaves its folder"):
        unpack(archive(tmp_path, {name: b"x"}), tmp_path / "tree", keep=("pkg",))


def test_a_test_that_passes_once_only_is_flaky_and_dropped():
    found = judge("calc", set(), {"a": PASSED, "b": PASSED}, {"a": PASSED, "b": FAILED})
    assert found.tests == ("a",)
    assert found.dropped == {"b": "flaky: passed, then failed"}


def test_a_few_tests_that_fail_before_any_mutation_are_dropped_with_the_reason():
    both = {**{f"t{n}": PASSED for n in range(9)}, "bad": FAILED, "no": SKIPPED}
    found = judge("calc", set(), both, both)
    assert found.dropped == {"bad": "failed before any mutation"}
    assert len(found.tests) == 9


def test_a_package_whose_tests_fail_before_any_mutation_is_refused():
    both = {"t.py::a": PASSED, "t.py::b": FAILED, "t.py::c": FAILED}
    with pytest.raises(BadInput, match=r"calc: 2 of 3 tests fail before any mutation, for example t\.py::b"):
        judge("calc", set(), both, both)


def test_a_package_without_any_test_is_refused():
    with pytest.raises(BadInput, match="none ran at all"):
        judge("calc", {"t.py::a"}, {"t.py::a": MISSING}, {"t.py::a": MISSING})


def test_tests_are_asked_for_by_function_and_class_and_by_method_where_some_are_skipped():
    source = (
        "class TestA:\n    def test_x(self): ...\n    def test_y(self): ...\n"
        "class Mixin:\n    def test_z(self): ...\n"
        "class B(unittest.TestCase):\n    def test_w(self): ...\n"
        "def test_f(): ...\ndef test_slow(): ...\ndef helper(): ...\n"
    )
    skip = ("t.py::TestA::test_y", "t.py::test_slow")
    assert list(units_of(source, "t.py", skip)) == ["t.py::TestA::test_x", "t.py::B", "t.py::test_f"]


def test_a_statement_of_several_lines_is_run_by_the_tests_of_any_of_them():
    found = runners_by_line(SOURCE, BASELINE.lines["m.py"])
    assert found == {
        **dict.fromkeys((5, 6, 7, 8), (0, 1)),
        9: (0, 1, 2),
        10: (2,),
        11: (0, 1),
    }


def drawn(seed: int) -> list[tuple[str, int, str]]:
    deck = Deck("calc", {"m.py": SOURCE}, BASELINE, seed)
    out = []
    for kind in EditKind:
        while (candidate := deck.draw(kind)) is not None:
            out.append((kind.value, candidate.edit.line, candidate.edit.new_line))
    assert deck.is_empty()
    return out


def test_the_same_seed_draws_the_same_mutants_and_another_seed_the_same_in_another_order():
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert sorted(drawn(1)) == sorted(drawn(2))


def test_only_lines_that_two_tests_run_are_mutated():
    assert {line for _, line, _ in drawn(1)} <= {5, 6, 7, 8, 9, 11}


def test_bystanders_are_tests_of_the_same_code_or_test_files_that_do_not_run_the_line():
    deck = Deck("calc", {"m.py": SOURCE}, BASELINE, 1)
    candidate = None
    while candidate is None or candidate.edit.line != 11:
        candidate = deck.draw(EditKind.VARIABLE)
        assert candidate is not None
    assert candidate.tests == ("t.py::a", "t.py::b")
    assert bystanders(candidate, BASELINE) == ("t.py::c",)


def test_tests_are_run_in_the_order_of_the_suite():
    assert in_suite_order(("u.py::d", "t.py::a"), BASELINE) == ("t.py::a", "u.py::d")


@given(count=st.integers(2, 60), key=st.text())
def test_about_half_of_the_failing_tests_are_visible_and_at_least_one_is_hidden(count, key):
    failing = [f"t{n}" for n in range(count)]
    visible, hidden = split(failing, key)
    assert sorted((*visible, *hidden), key=failing.index) == failing
    assert visible
    assert hidden
    assert abs(len(visible) - len(hidden)) <= 1
    assert split(failing, key) == (visible, hidden)


@given(seed=st.integers(), place=st.integers(0, 20))
def test_every_kind_has_its_turn_to_be_tried_first(seed, place):
    assert {turn(place, number, seed)[0] for number in range(len(EditKind))} == set(EditKind)
    assert set(turn(place, 0, seed)) == set(EditKind)


LOG = """\
=================================== FAILURES ===================================
___________________________________ test_add ___________________________________
t.py:4: in test_add
    assert add(1, 2) == 3
E   assert -1 == 3
E    +  where -1 = add(1, 2)
__________________________ TestAll.test_more[x - y] ____________________________
m.py:7: in add
    total = a - b
E   TypeError: total = a - b is wrong
=========================== short test summary info ============================
FAILED t.py::test_add - assert -1 == 3
"""


def test_messages_are_what_pytest_marks_with_an_e_test_by_test():
    assert messages_of(LOG, ["t.py::test_add", "t.py::TestAll::test_more[x - y]"]) == {
        "t.py::test_add": ["assert -1 == 3", "+  where -1 = add(1, 2)"],
        "t.py::TestAll::test_more[x - y]": ["TypeError: total = a - b is wrong"],
    }


def test_a_statement_says_what_a_user_sees_and_no_line_of_the_defect():
    text = statement(
        SUBJECT,
        ["t.py::test_add", "t.py::TestAll::test_more[x - y]"],
        LOG,
        ("    total = a + b", "    total = a - b"),
    )
    assert text == (
        "Some tests of calc 1.0 fail:\n\n"
        "- t.py::test_add\n      assert -1 == 3\n      +  where -1 = add(1, 2)\n"
        "- t.py::TestAll::test_more[x - y]\n"
    )


def test_a_statement_is_cut_where_a_test_has_much_to_say():
    log = "____ test_add ____\n" + "".join(f"E   {'x' * 500}{n}\n" for n in range(50))
    text = statement(SUBJECT, ["t.py::test_add"], log, ())
    assert len(text) < 6 * 200
    assert len(re.findall("x{160}", text)) == 6


def test_shuffling_by_a_text_is_the_same_in_every_python():
    order = list(range(8))
    random.Random("1 kinds").shuffle(order)
    assert order == [3, 1, 5, 4, 6, 7, 0, 2]


class ScriptedSession:
    """Answers the n-th attempt by the n-th script: statuses of the requested tests, or how it ended."""

    def __init__(self, *scripts: Mapping[str, str] | Ending) -> None:
        self._scripts = list(scripts)
        self.asked: list[Sequence[str]] = []

    async def run(self, attempt: Attempt) -> Outcome:
        wanted = attempt.request["tests"]
        assert isinstance(wanted, list)
        self.asked.append(wanted)
        script = self._scripts.pop(0)
        ending = script if isinstance(script, Ending) else Ending.EXITED
        statuses = {} if isinstance(script, Ending) else {test: script.get(test, "passed") for test in wanted}
        lines: list[object] = [{"collected": list(statuses)}]
        lines += [{"test": test, "status": status} for test, status in statuses.items()]
        lines += [{"done": 0}] if ending is Ending.EXITED else []
        report = "".join(json.dumps(line) + "\n" for line in lines).encode()
        return Outcome(
            ending=ending, exit_code=0, output=LOG.encode(), report=report, setup_seconds=0.0, seconds=0.0
        )

    async def close(self) -> None: ...


class ScriptedSandbox:
    name = "scripted"

    def __init__(self, session: ScriptedSession) -> None:
        self._session = session

    def unavailable(self) -> str | None:
        return None

    async def open(self, bench: Bench) -> ScriptedSession:
        return self._session


async def decided(*scripts: Mapping[str, str] | Ending) -> tuple[Decision, ScriptedSession]:
    session = ScriptedSession(*scripts)
    suite = await open_suite(ScriptedSandbox(session), Bench(tree=Path("t"), python=Path("p")))
    deck = Deck("calc", {"m.py": SOURCE}, BASELINE, 1)
    candidate = None
    while candidate is None or candidate.edit.line != 11:
        candidate = deck.draw(EditKind.VARIABLE)
        assert candidate is not None
    return await decide(candidate, BASELINE, suite, SUBJECT), session


BOTH_FAIL = {"t.py::a": "failed", "t.py::b": "failed"}


async def test_a_mutant_that_two_tests_find_in_every_company_is_an_instance():
    decision, session = await decided(BOTH_FAIL, BOTH_FAIL, BOTH_FAIL, {})
    assert decision.refused == ""
    assert decision.fail_to_pass == ("t.py::a", "t.py::b")
    assert decision.pass_to_pass == ("t.py::c",)
    (visible,) = decision.visible
    (hidden,) = set(decision.fail_to_pass) - {visible}
    everything = ["t.py::a", "t.py::b", "t.py::c"]
    assert session.asked == [everything, [visible, "t.py::c"], [hidden], everything]


@pytest.mark.parametrize(
    ("scripts", "why"),
    [
        pytest.param([Ending.TIMED_OUT], "its tests timed out", id="it loops"),
        pytest.param([Ending.SIGNALLED], "its tests signalled", id="out of processor time"),
        pytest.param(
            [{**BOTH_FAIL, "t.py::c": "error"}], "1 tests neither pass nor fail", id="broken at import"
        ),
        pytest.param([{"t.py::a": "failed"}], "1 tests fail", id="too few fail"),
        pytest.param([{**BOTH_FAIL, "t.py::c": "failed"}], "no test passes", id="nothing passes"),
        pytest.param([BOTH_FAIL, {}, {}], "flaky: another run says otherwise", id="flaky failure"),
        pytest.param(
            [BOTH_FAIL, {**BOTH_FAIL, "t.py::c": "failed"}, BOTH_FAIL], "flaky: another", id="flaky bystander"
        ),
        pytest.param(
            [BOTH_FAIL, BOTH_FAIL, BOTH_FAIL, {"t.py::c": "failed"}],
            "do not pass by themselves",
            id="needs others",
        ),
    ],
)
async def test_a_mutant_that_is_no_fair_task_is_refused_with_the_reason(scripts, why):
    decision, _ = await decided(*scripts)
    assert why in decision.refused


async def test_a_flaky_test_is_dropped_from_the_baseline_and_told(tmp_path):
    (tmp_path / "m.py").write_text(SOURCE)
    (tmp_path / "t.py").write_text("def test_a(): ...\ndef test_b(): ...\n")
    subject = dataclasses.replace(SUBJECT, tree=tmp_path)
    suite = await open_suite(
        ScriptedSandbox(ScriptedSession({}, {"t.py::test_b": "failed"})),
        Bench(tree=tmp_path, python=Path("p")),
    )
    said: list[str] = []
    found = await measure(subject, files_of(subject), suite, said.append)
    assert found.tests == ("t.py::test_a",)
    assert said == ["calc: t.py::test_b is not used: flaky: passed, then failed"]
