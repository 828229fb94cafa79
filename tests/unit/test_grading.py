from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_runtime.agents.patch import make_patch, paths_of
from hermes_runtime.errors import BadInput
from hermes_runtime.evaluate.grading import LOG_BYTES_MAX, code_part, cut, is_kept, is_passed, is_protected
from hermes_runtime.evaluate.instances import Instance
from hermes_runtime.sandbox.suite import Status

INSTANCE = Instance(
    instance_id="calc__1",
    repo="calc",
    problem_statement="",
    FAIL_TO_PASS=("checks/sums.py::test_add",),
    PASS_TO_PASS=(),
    source="calc",
    import_roots=("src", "."),
    editable_files=("src/calc/__init__.py", "src/calc/test/__init__.py"),
)


@pytest.mark.parametrize(
    "path",
    [
        *["tests/test_a.py", "test_a.py", "pkg/tests/data.json", "a/test/x.py", "a_test.py", "conftest.py"],
        *["a/conftest.py", "pytest.ini", "pyproject.toml", "setup.cfg", "tox.ini", "sitecustomize.py"],
        *["usercustomize.py", "x.pth", "src/fast.so", "a/__pycache__/b.pyc", ".coveragerc"],
    ],
)
def test_tests_and_what_steers_them_are_protected(path):
    assert is_protected(path)


@pytest.mark.parametrize(
    "path", ["pkg/a.py", "src/testing.py", "contest.py", "pkg/testing/tools.py", "README.md"]
)
def test_code_is_not_protected(path):
    assert not is_protected(path)


def edit(path: str) -> str:
    return make_patch(path, "1\n", "2\n")


@pytest.mark.parametrize(
    ("patch", "kept"),
    [
        pytest.param(edit("src/calc/__init__.py"), True, id="code"),
        pytest.param(edit("src/calc/other.py"), True, id="code that is not named editable"),
        pytest.param(edit("src/calc/test/__init__.py"), True, id="named editable, whatever it is called"),
        pytest.param(
            edit("checks/sums.py"), False, id="a file of the instance's tests, whatever it is called"
        ),
        pytest.param(make_patch("conftest.py", None, "x\n"), False, id="a new conftest"),
        pytest.param(make_patch("src/random.py", None, "x\n"), False, id="shadows the standard library"),
        pytest.param(make_patch("json/__init__.py", None, "x\n"), False, id="a package that shadows"),
        pytest.param(make_patch("pytest.py", None, "x\n"), False, id="shadows pytest"),
        pytest.param(make_patch("_pytest/runner.py", None, "x\n"), False, id="shadows pytest's inside"),
        pytest.param(make_patch("src/calc/json.py", None, "x\n"), True, id="same name, inside the package"),
        pytest.param(make_patch("src/calc2.py", None, "x\n"), True, id="a new module of its own"),
    ],
)
def test_grading_keeps_what_a_patch_does_to_code_and_leaves_out_the_rest(tmp_path: Path, patch, kept):
    (tmp_path / "src" / "calc").mkdir(parents=True)
    both = patch + edit("src/calc/kept.py")
    assert paths_of(code_part(both, INSTANCE, tmp_path)) == [
        *(paths_of(patch) if kept else []),
        "src/calc/kept.py",
    ]


def test_files_of_the_test_patch_are_the_graders(tmp_path):
    instance = INSTANCE.model_copy(update={"test_patch": edit("data/expected.txt")})
    assert code_part(edit("data/expected.txt"), instance, tmp_path) == ""


def test_what_is_no_patch_is_refused(tmp_path):
    with pytest.raises(BadInput):
        code_part("I fixed it!", INSTANCE, tmp_path)


@pytest.mark.parametrize(
    ("status", "passed", "kept"),
    [
        (Status.PASSED, True, True),
        (Status.XFAILED, True, True),
        (Status.SKIPPED, False, True),
        (Status.FAILED, False, False),
        (Status.ERROR, False, False),
        (Status.MISSING, False, False),
        (Status.NOT_RUN, False, False),
        (None, False, False),
    ],
)
def test_statuses_count_as_swe_bench_counts_them(status, passed, kept):
    assert (is_passed(status), is_kept(status)) == (passed, kept)


@given(log=st.text(alphabet="aé\n", max_size=200), times=st.integers(1, 2000))
def test_a_long_log_is_cut_in_the_middle(log, times):
    out = cut(log * times)
    assert len(out.encode()) <= LOG_BYTES_MAX
    if len((log * times).encode()) <= LOG_BYTES_MAX:
        assert out == log * times
