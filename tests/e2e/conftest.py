"""A tiny package with two defects, as instances of a user; no network, no build."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """\
def total(prices, discount=0):
    \"\"\"Sum of prices less a discount.\"\"\"
    result = 0
    for price in prices:
        result += price
    if discount > result:
        return 0
    return result - discount


def largest(numbers):
    best = numbers[0]
    for number in numbers:
        if number > best:
            best = number
    return best
"""

TESTS = """\
from shop.cart import largest, total


def test_sum():
    assert total([1, 2, 3]) == 6


def test_discount():
    assert total([5, 5], 3) == 7


def test_discount_of_everything():
    assert total([5], 5) == 0


def test_discount_is_never_more_than_the_sum():
    assert total([5], 9) == 0


def test_largest():
    assert largest([1, 3, 2]) == 3


def test_largest_of_equal():
    assert largest([2, 2]) == 2


def test_largest_is_first():
    assert largest([9, 1]) == 9
"""

DEFECTS = {
    "minus": ("    return result - discount\n", "    return result + discount\n"),
    "order": ("        if number > best:\n", "        if number < best:\n"),
}
FAILING = {
    "minus": ["test_discount", "test_discount_of_everything"],
    "order": ["test_largest", "test_largest_is_first"],
}


def write_instances(folder: Path, names=("minus", "order")) -> Path:
    """Instances of the package in `folder`/source."""
    source = folder / "source"
    (source / "shop").mkdir(parents=True)
    (source / "tests").mkdir()
    (source / "shop" / "__init__.py").write_text("")
    (source / "shop" / "cart.py").write_text(CODE)
    (source / "tests" / "test_cart.py").write_text(TESTS)
    every = [f"tests/test_cart.py::{line[4:-3]}" for line in TESTS.splitlines() if line.startswith("def ")]
    from hermes_runtime.agents.patch import make_patch

    rows = []
    for name in names:
        good, bad = DEFECTS[name]
        broken = CODE.replace(good, bad)
        failing = [f"tests/test_cart.py::{test}" for test in FAILING[name]]
        rows.append(
            {
                "instance_id": f"shop__{name}",
                "repo": "shop",
                "problem_statement": f"Something about {name} is wrong.",
                "patch": make_patch("shop/cart.py", broken, CODE),
                "setup_patch": make_patch("shop/cart.py", CODE, broken),
                "FAIL_TO_PASS": failing,
                "PASS_TO_PASS": [test for test in every if test not in failing],
                "visible_tests": failing[:1],
                "source": "source",
                "python": sys.executable,
                "test_timeout_seconds": 30,
                "bug_kind": name,
            }
        )
    path = folder / "instances.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SCRIPT = """\
dialect: chat
rules:
  - match: 'An earlier edit could not be used'
    completions:
      - |
        shop/cart.py
        <<<<<<< SEARCH
            return result + discount
        =======
            return result - discount
        >>>>>>> REPLACE
  - match: 'Answer with the edit that repairs it'
    completions:
      - |
        shop/cart.py
        <<<<<<< SEARCH
          nothing like it
        =======
            pass
        >>>>>>> REPLACE
  - match: 'Which lines are most likely wrong'
    completions: ["2, 1"]
default: {completions: ["I do not know."]}
"""


def write_shop(tmp_path: Path) -> None:
    """Write instances.jsonl, source/, script.yaml and a run document for each kind of model."""
    write_instances(tmp_path)
    (tmp_path / "script.yaml").write_text(SCRIPT)
    base = (
        "apiVersion: hermes.dev/v1alpha1\nkind: HermesRun\nmetadata: {{name: {name}}}\nspec:\n"
        "  model: {model}\n  evaluate:\n    instances: {{file: instances.jsonl}}\n    rounds: 3\n"
        "    candidates: 4\n    instanceTimeoutSeconds: 120\n    control: enumerate\n"
    )
    scripted = "{backend: scripted, source: {path: script.yaml}}"
    (tmp_path / "scripted.yaml").write_text(base.format(name="scripted", model=scripted))
    (tmp_path / "bundled.yaml").write_text(base.format(name="bundled", model="{source: {bundled: repair}}"))


@pytest.fixture
def shop(tmp_path) -> Path:
    """A folder as `write_shop` makes it."""
    write_shop(tmp_path)
    return tmp_path


def hermes_command(*words: str | Path) -> list[str]:
    """The command line of `hermes` in this environment."""
    return [sys.executable, "-m", "hermes_runtime.cli", *map(str, words)]


def environment() -> dict[str, str]:
    """This environment, with the sources on the path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def hermes(
    *words: str | Path, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `hermes` to its end."""
    return subprocess.run(
        hermes_command(*words),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def require(program: str) -> None:
    """Skip, saying why, where a program is missing; fail where CI forgot it."""
    if shutil.which(program) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{program} is not installed; CI installs it")
        pytest.skip(f"{program} is not installed")
