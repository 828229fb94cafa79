"""Instances made of a small package, in real sandboxes and without a network."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermes_runtime.errors import BadInput, Busy
from hermes_runtime.evaluate.check import check_all
from hermes_runtime.evaluate.checkout import checkout
from hermes_runtime.evaluate.datasets import baseline as baselines
from hermes_runtime.evaluate.datasets.baseline import Baseline
from hermes_runtime.evaluate.datasets.mutants import Decision, Journal, build_mutants
from hermes_runtime.evaluate.datasets.packages import Subject
from hermes_runtime.evaluate.instances import read_instances
from hermes_runtime.sandbox import Sandbox
from hermes_runtime.sandbox.bubblewrap import Bubblewrap
from hermes_runtime.sandbox.choose import choose
from hermes_runtime.sandbox.landlock import Landlock
from tests.e2e.bare_environment import bare_environment

CODE = '''\
"""Prices."""


def total(prices, discount=0):
    """Sum of prices less a discount, never below zero."""
    result = 0
    for price in prices:
        result += price
    if discount > result:
        return 0
    return result - discount


def largest(numbers):
    best = numbers[0]
    for number in numbers[1:]:
        if number > best:
            best = number
    return best


def count_down(start):
    left = []
    while start > 0:
        left.append(start)
        start -= 1
    return left
'''
TESTS = """\
import pytest

from shop import count_down, largest, total


@pytest.mark.parametrize(("prices", "expected"), [([], 0), ([1], 1), ([1, 2], 3), ([2, 2], 4)])
def test_total(prices, expected):
    assert total(prices) == expected


def test_discount():
    assert total([5, 5], 3) == 7


def test_discount_is_never_below_zero():
    assert total([1], 3) == 0


class TestLargest:
    def test_first(self):
        assert largest([3, 1]) == 3

    def test_last(self):
        assert largest([1, 2, 3]) == 3


def test_count_down():
    assert count_down(3) == [3, 2, 1]


def test_count_down_of_nothing():
    assert count_down(0) == []
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_environment(tmp_path_factory.mktemp("environment") / "bare")


def shop(folder: Path, python: Path, tests: str = TESTS) -> Subject:
    (folder / "src" / "shop").mkdir(parents=True)
    (folder / "src" / "shop" / "__init__.py").write_text(CODE)
    (folder / "tests").mkdir()
    (folder / "tests" / "test_shop.py").write_text(tests)
    return Subject(
        name="shop",
        version="1.0",
        tree=folder,
        python=python,
        code="src/shop",
        tests=("tests",),
        import_roots=("src", "."),
    )


def sandboxes() -> list[Sandbox]:
    return [one for one in (Bubblewrap(), Landlock()) if one.unavailable() is None]


async def test_every_instance_holds_and_hides_tests_and_shows_no_defect(tmp_path, python):
    subject = shop(tmp_path / "shop", python)
    said: list[str] = []
    file = await build_mutants(tmp_path / "out", 6, 1, [subject], tmp_path / "cache", say=said.append)
    instances = list(read_instances(file))
    assert [one.instance_id for one in instances] == [f"shop__mutant-{n:04d}" for n in range(1, 7)]
    assert [one.problems for one in await check_all(instances, choose("auto"), jobs=2)] == [()] * 6
    assert len({one.bug_kind for one in instances}) >= 3
    for one in instances:
        assert 0 < len(one.visible_tests) < len(one.FAIL_TO_PASS)
        hidden = set(one.FAIL_TO_PASS) - set(one.visible_tests)
        assert not any(f"- {test}\n" in one.problem_statement for test in hidden)
        assert all(f"- {test}\n" in one.problem_statement for test in one.visible_tests)
        changed = [line[1:].strip() for line in one.setup_patch.splitlines() if line[:1] in "+-"]
        assert not any(
            line in one.problem_statement for line in changed if len(line) > 3 and line[0] not in "+-"
        )
        assert one.editable_files == ("src/shop/__init__.py",)
    assert said[-1].startswith("mutants: 6 of 6")


async def test_the_same_seed_gives_the_same_bytes_in_any_cache_and_any_sandbox(tmp_path, python):
    subject = shop(tmp_path / "shop", python)
    files = []
    for place, sandbox in enumerate((*sandboxes(), *sandboxes())):
        out, cache = tmp_path / f"out{place}" / "instances.jsonl", tmp_path / f"cache{place}"
        files.append((await build_mutants(out, 5, 7, [subject], cache, sandbox)).read_bytes())
    assert len(set(files)) == 1
    other = await build_mutants(tmp_path / "other.jsonl", 5, 8, [subject], tmp_path / "cache0")
    assert other.read_bytes() != files[0]


async def test_a_build_that_was_cut_off_goes_on_from_its_journal_to_the_same_end(tmp_path, python):
    subject = shop(tmp_path / "shop", python)
    whole = await build_mutants(tmp_path / "a.jsonl", 5, 3, [subject], tmp_path / "cache")
    (journal,) = (tmp_path / "cache" / "decisions").iterdir()
    decided = journal.read_bytes()
    journal.write_bytes(decided[: len(decided) // 2])
    again = await build_mutants(tmp_path / "b.jsonl", 5, 3, [subject], tmp_path / "cache")
    assert again.read_bytes() == whole.read_bytes()


class NoSandbox:
    """Whoever opens a session runs tests."""

    name = "none"

    def unavailable(self) -> str | None:
        return None

    async def open(self, bench: object) -> object:
        raise AssertionError("a test was run although all is decided")


async def test_what_was_decided_is_not_run_again(tmp_path, python):
    subject = shop(tmp_path / "shop", python)
    first = await build_mutants(tmp_path / "a.jsonl", 4, 3, [subject], tmp_path / "cache")
    nothing: Sandbox = NoSandbox()  # type: ignore[assignment]  # its session is never made
    second = await build_mutants(tmp_path / "b.jsonl", 4, 3, [subject], tmp_path / "cache", nothing)
    assert first.read_bytes() == second.read_bytes()


@pytest.fixture
def image_cache() -> Iterator[Path]:
    """A cache as in an image: everybody may read it and nobody, this process included, may write."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        cache = Path(folder, "cache")
        cache.mkdir()
        cache.chmod(0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)
        yield cache
        if os.getuid() == 0:
            os.seteuid(0)


def test_a_cache_that_cannot_be_written_keeps_nothing_and_is_no_error(image_cache):
    baselines.write(Baseline(tests=("a",), dropped={}, lines={}), image_cache / "baselines" / "a.json")
    journal = Journal(image_cache / "decisions" / "a.jsonl")
    journal.add(Decision(key="one", refused="flaky"))
    assert journal.get("one") is not None
    assert list(image_cache.iterdir()) == []


async def test_a_package_whose_tests_fail_before_any_mutation_is_refused_by_name(tmp_path, python):
    subject = shop(tmp_path / "shop", python, TESTS.replace("== expected", "== -1"))
    with pytest.raises(BadInput, match=r"shop: . of .. tests fail before any mutation, for example tests/"):
        await build_mutants(tmp_path / "out", 2, 1, [subject], tmp_path / "cache")


async def test_a_package_that_cannot_be_imported_is_refused_by_name(tmp_path, python):
    subject = shop(tmp_path / "shop", python, TESTS.replace("from shop", "from shopp"))
    with pytest.raises(BadInput, match="shop"):
        await build_mutants(tmp_path / "out", 2, 1, [subject], tmp_path / "cache")


async def test_more_instances_than_there_are_mutants_is_an_error_with_their_number(tmp_path, python):
    tests = "".join(f"def test_{n}(): assert largest([{n}, 2]) == {max(n, 2)}\n" for n in (1, 3, 5))
    subject = shop(tmp_path / "shop", python, "from shop import largest\n" + tests)
    with pytest.raises(BadInput, match=r"only \d+ of 500 mutants are to be had from shop"):
        await build_mutants(tmp_path / "out", 500, 1, [subject], tmp_path / "cache")


async def test_a_folder_in_the_way_of_the_links_is_named(tmp_path, python):
    subject = shop(tmp_path / "shop", python)
    (tmp_path / "out" / "sources" / "shop").mkdir(parents=True)
    with pytest.raises(Busy, match="sources/shop is in the way"):
        await build_mutants(tmp_path / "out", 1, 1, [subject], tmp_path / "cache")


async def test_the_unpatched_tree_has_the_mutation_and_the_source_is_left_alone(tmp_path, python):
    subject = shop(tmp_path / "shop", python)
    file = await build_mutants(tmp_path / "out", 1, 1, [subject], tmp_path / "cache")
    (instance,) = read_instances(file)
    tree = checkout(instance, tmp_path / "trees" / "one")
    assert (tree / "src/shop/__init__.py").read_text() != CODE
    assert (subject.tree / "src/shop/__init__.py").read_text() == CODE
    assert not list(subject.tree.rglob("__pycache__"))
