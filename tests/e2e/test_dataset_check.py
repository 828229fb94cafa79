"""Instances proved, and graders not fooled, in real sandboxes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pytest

from hermes_runtime.agents.patch import make_patch
from hermes_runtime.errors import BadInput, NotFound
from hermes_runtime.evaluate.check import check, check_all
from hermes_runtime.evaluate.checkout import checkout
from hermes_runtime.evaluate.grading import grade
from hermes_runtime.evaluate.instances import Instance, read_instances
from hermes_runtime.sandbox import Sandbox
from hermes_runtime.sandbox.bubblewrap import Bubblewrap
from hermes_runtime.sandbox.landlock import Landlock
from tests.e2e.bare_environment import bare_environment

FILE = "tests/test_money.py"
MISFIT = make_patch("money.py", "a\n", "b\n")
CHANGE = "--- a/money.py\n+++ b/money.py\n@@ -4 +4 @@\n-    return paid + price\n+    return 3\n"
NEW_TEST = make_patch("tests/test_new.py", None, "x\n")
PAGE = Path(__file__).parents[2] / "docs" / "instances.md"


@pytest.fixture(params=["bubblewrap", "landlock"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    one: Sandbox = Bubblewrap() if request.param == "bubblewrap" else Landlock()
    reason = one.unavailable()
    if reason is not None:
        pytest.skip(reason)
    return one


def example(folder: Path) -> Path:
    """The files of the worked example; returns the file of instances."""
    found = re.findall(
        r"^`([^`\n]+)`:\n\n```\w+\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    assert [name for name, _ in found] == ["wallet/money.py", "wallet/tests/test_money.py", "instances.jsonl"]
    for name, text in found:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(json.loads(text)) + "\n" if name.endswith(".jsonl") else text)
    return folder / "instances.jsonl"


class Wallet(Protocol):
    def __call__(self, folder: Path, **change: object) -> Instance: ...


@pytest.fixture(scope="module")
def wallet(tmp_path_factory: pytest.TempPathFactory) -> Wallet:
    python = bare_environment(tmp_path_factory.mktemp("environment") / "bare")

    def of(folder: Path, **change: object) -> Instance:
        (instance,) = read_instances(example(folder))
        return instance.model_copy(update={"python": str(python), **change})

    return of


async def test_the_worked_example_of_the_documentation_holds(tmp_path, sandbox):
    (instance,) = read_instances(example(tmp_path))
    checked = await check(instance, sandbox)
    assert (checked.problems, checked.notes) == ((), ())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(
            {
                "FAIL_TO_PASS": ("tests/test_money.py::test_not_enough",),
                "PASS_TO_PASS": (),
                "visible_tests": (),
            },
            "in FAIL_TO_PASS, but passed by the unpatched tree: tests/test_money.py::test_not_enough",
            id="nothing fails",
        ),
        pytest.param(
            {"PASS_TO_PASS": ("tests/test_money.py::test_nowhere",)},
            "in PASS_TO_PASS, but not passed by the unpatched tree: tests/test_money.py::test_nowhere",
            id="a test that is not there",
        ),
        pytest.param(
            {"patch": MISFIT},
            "the gold patch does not fit",
            id="gold does not fit",
        ),
        pytest.param(
            {"patch": CHANGE},
            "in FAIL_TO_PASS, but not passed with the gold patch: tests/test_money.py::test_no_change",
            id="gold does not resolve",
        ),
        pytest.param(
            {"patch": NEW_TEST},
            "nothing but tests",
            id="gold changes tests",
        ),
        pytest.param({"setup_patch": MISFIT}, "setup_patch", id="setup does not fit"),
        pytest.param({"editable_files": ("gone.py",)}, "editable_files names gone.py", id="no such file"),
        pytest.param({"source": "/nowhere"}, "no folder", id="no source"),
        pytest.param({"python": "/nowhere/bin/python"}, "/nowhere/bin/python", id="no interpreter"),
    ],
)
async def test_what_does_not_hold_is_said(tmp_path, wallet, change, problem):
    checked = await check(wallet(tmp_path, **change), Landlock())
    assert any(problem in said for said in checked.problems), checked.problems


async def test_without_a_gold_patch_the_rest_is_proved_and_that_is_said(tmp_path, wallet, sandbox):
    (checked,) = await check_all([wallet(tmp_path, patch="")], sandbox, jobs=1)
    assert checked.problems == ()
    assert "not proved" in checked.notes[0]


TESTS_THAT_ALWAYS_PASS = "def test_change(): ...\ndef test_no_change(): ...\n"
HOOK = (
    "import pytest\n@pytest.hookimpl(hookwrapper=True)\ndef pytest_runtest_makereport(item, call):\n"
    "    out = yield\n    out.get_result().outcome = 'passed'\n"
)
FAKE = "import sys\nsys.modules['money'] = type(sys)('money')\n"


def attacks(tests: str) -> Mapping[str, str]:
    return {
        "edits the tests": make_patch("tests/test_money.py", tests, TESTS_THAT_ALWAYS_PASS),
        "deletes the tests": make_patch("tests/test_money.py", tests, None),
        "adds a conftest": make_patch("conftest.py", None, HOOK),
        "adds a conftest beside the tests": make_patch("tests/conftest.py", None, HOOK),
        "adds a configuration": make_patch("pytest.ini", None, "[pytest]\naddopts = --collect-only\n"),
        "adds another": make_patch("pyproject.toml", None, "[tool.pytest]\naddopts = ['-p', 'evil']\n"),
        "adds sitecustomize": make_patch("sitecustomize.py", None, FAKE),
        "shadows pytest": make_patch("pytest.py", None, "def main(*a, **k): return 0\n"),
        "shadows a module of the standard library": make_patch("random.py", None, FAKE),
        "shadows a package of pytest": make_patch("_pytest/__init__.py", None, FAKE),
        "makes a path file": make_patch("evil.pth", None, "import os; os._exit(0)\n"),
    }


@pytest.mark.parametrize("name", attacks(""))
async def test_a_patch_to_what_steers_the_tests_resolves_nothing(tmp_path, wallet, name):
    instance = wallet(tmp_path)
    tree = checkout(instance, tmp_path / "tree")
    patch = attacks((tree / "tests/test_money.py").read_text())[name]
    graded = await grade(instance, tree, patch, Landlock())
    assert graded.applied
    assert not graded.resolved
    assert not any(graded.fail_to_pass.values())
    assert all(graded.pass_to_pass.values())


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import os\nos._exit(0)\n", id="leaves at import"),
        pytest.param("raise SystemExit(0)\n", id="exits at import"),
        pytest.param("import sys\nsys.exit = None\nwhile True: pass\n", id="never ends"),
        pytest.param("print('2 passed in 0.01s')\nimport os\nos.kill(os.getpid(), 9)\n", id="prints success"),
    ],
)
async def test_code_that_ends_the_tests_resolves_nothing(tmp_path, wallet, sandbox, code):
    instance = wallet(tmp_path, test_timeout_seconds=3.0)
    tree = checkout(instance, tmp_path / "tree")
    patch = make_patch("money.py", (tree / "money.py").read_text(), code)
    graded = await grade(instance, tree, patch, sandbox)
    assert graded.applied
    assert not any((*graded.fail_to_pass.values(), *graded.pass_to_pass.values(), graded.resolved))


async def test_the_gold_patch_resolves_beside_an_attack_that_is_left_out(tmp_path, wallet, sandbox):
    instance = wallet(tmp_path)
    tree = checkout(instance, tmp_path / "tree")
    before = {file: file.read_bytes() for file in tree.rglob("*") if file.is_file()}
    graded = await grade(
        instance, tree, instance.patch + make_patch("conftest.py", None, "raise 1\n"), sandbox
    )
    assert graded.resolved
    assert before == {file: file.read_bytes() for file in tree.rglob("*") if file.is_file()}


@pytest.mark.parametrize("patch", ["", "\n", "I am sure that it works now.", MISFIT])
async def test_a_patch_that_is_empty_or_does_not_fit_is_graded_as_not_applied(tmp_path, wallet, patch):
    instance = wallet(tmp_path)
    graded = await grade(instance, checkout(instance, tmp_path / "tree"), patch, Landlock())
    assert (graded.applied, graded.resolved) == (False, False)
    assert set(graded.fail_to_pass) == set(instance.FAIL_TO_PASS)
    assert graded.log


async def test_tests_that_only_the_test_patch_holds_are_graded(tmp_path, wallet, sandbox):
    new = "from money import change\n\ndef test_more(): assert change(9, 1) == 8\n"
    instance = wallet(
        tmp_path,
        FAIL_TO_PASS=("tests/test_more.py::test_more",),
        visible_tests=(),
        test_patch=make_patch("tests/test_more.py", None, new),
    )
    checked = await check(instance, sandbox)
    assert checked.problems == ()


def git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_of_a_git_repository_the_commit_is_taken_and_without_one_the_folder(tmp_path, wallet):
    instance = wallet(tmp_path)
    repository = tmp_path / "wallet"
    git(repository, "init", "-q")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "one")
    first = git(repository, "rev-parse", "HEAD")
    (repository / "later.py").write_text("x = 1\n")
    with_commit = instance.model_copy(update={"base_commit": first})
    tree = checkout(with_commit, tmp_path / "a")
    assert sorted(path.name for path in tree.iterdir()) == ["money.py", "tests"]
    folder = checkout(instance, tmp_path / "b")
    assert sorted(path.name for path in folder.iterdir()) == ["later.py", "money.py", "tests"]
    with pytest.raises(NotFound, match="base_commit abc is not in"):
        checkout(instance.model_copy(update={"base_commit": "abc"}), tmp_path / "c")


def test_caches_are_no_part_of_a_tree(tmp_path, wallet):
    instance = wallet(tmp_path)
    for name in ("__pycache__/money.pyc", ".pytest_cache/x", ".git/HEAD", "tests/old.pyc"):
        file = tmp_path / "wallet" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    tree = checkout(instance, tmp_path / "tree")
    assert sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*.*")) == [
        "money.py",
        "tests/test_money.py",
    ]


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside", "/"])
def test_a_link_that_leads_out_of_the_source_is_refused(tmp_path, wallet, target):
    instance = wallet(tmp_path)
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "wallet" / "link").symlink_to(target)
    with pytest.raises(BadInput, match="leads out of the tree"):
        checkout(instance, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_a_patch_through_a_link_is_refused_and_leaves_no_tree(tmp_path, wallet):
    instance = wallet(tmp_path, setup_patch=make_patch("alias/new.py", None, "x\n"))
    (tmp_path / "wallet" / "alias").symlink_to("tests")
    with pytest.raises(BadInput, match="goes through the link"):
        checkout(instance, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_a_setup_patch_that_leaves_the_tree_is_refused(tmp_path, wallet):
    patch = "--- /dev/null\n+++ b/../evil.py\n@@ -0,0 +1 @@\n+x\n"
    with pytest.raises(BadInput, match="only paths inside the tree"):
        checkout(wallet(tmp_path, setup_patch=patch), tmp_path / "tree")
    assert not (tmp_path / "evil.py").exists()
