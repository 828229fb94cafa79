"""Which mutants are tried, in which order, and which tests are run for one. Pure and seeded.

Only lines inside functions that at least two sound tests run are mutated. Mutants are drawn kind by
kind, so that no kind crowds out the others, each kind in seeded random order over all files.
"""

from __future__ import annotations

import ast
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hermes_runtime.agents.edits import Edit, EditKind, EditSpace, apply_edit
from hermes_runtime.evaluate.datasets.baseline import Baseline

TESTS_MAX = 150
"""Most tests that may run a mutated line: a function that nearly every test needs is left out."""
BYSTANDERS_MAX = 50
"""Most tests that do not run the mutated line and are run all the same."""
TESTS_MIN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A mutant, not tried yet."""

    path: str
    edit: Edit
    source: str
    mutated: str
    tests: tuple[str, ...]
    """Sound tests that run the mutated line, in the order of the suite."""

    @property
    def key(self) -> str:
        """Names the mutant within its package."""
        words = (self.path, str(self.edit.line), self.edit.old_line, self.edit.new_line)
        return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]


class Deck:
    """All mutants of one package, by kind, shuffled."""

    def __init__(self, name: str, sources: Mapping[str, str], baseline: Baseline, seed: int) -> None:
        self._sources = sources
        self._baseline = baseline
        self._tests: dict[str, dict[int, tuple[int, ...]]] = {}
        self._spaces: dict[str, EditSpace] = {}
        places: dict[EditKind, list[tuple[str, int]]] = {kind: [] for kind in EditKind}
        for path in sorted(sources):
            run_by = runners_by_line(sources[path], baseline.lines.get(path, {}))
            lines = {line for line, tests in run_by.items() if TESTS_MIN <= len(tests) <= TESTS_MAX}
            space = EditSpace(sources[path], lines)
            self._tests[path], self._spaces[path] = run_by, space
            for place in range(len(space)):
                places[space.kind(place)].append((path, place))
        self._places = places
        for kind, found in places.items():
            random.Random(f"{seed} {name} {kind.value}").shuffle(found)
            found.reverse()  # drawn from the end

    def draw(self, kind: EditKind) -> Candidate | None:
        """The next mutant of that kind; None if there is no more."""
        places = self._places[kind]
        while places:
            path, place = places.pop()
            edit = self._spaces[path].checked(place)
            if edit is None:
                continue
            source = self._sources[path]
            names = self._baseline.tests
            return Candidate(
                path=path,
                edit=edit,
                source=source,
                mutated=apply_edit(source, edit),
                tests=tuple(names[index] for index in self._tests[path][edit.line]),
            )
        return None

    def is_empty(self) -> bool:
        """Whether all have been drawn."""
        return not any(self._places.values())


def runners_by_line(source: str, covered: Mapping[int, Sequence[int]]) -> dict[int, tuple[int, ...]]:
    """For each line inside a function: the tests that run its statement, by index.

    A statement of several lines is run as one, whichever of its lines was recorded.
    """
    found: dict[int, tuple[int, ...]] = {}
    for first, last in _statements(ast.parse(source), within=False):
        tests = {test for line in range(first, last + 1) for test in covered.get(line, ())}
        if tests:
            found.update(dict.fromkeys(range(first, last + 1), tuple(sorted(tests))))
    return found


def bystanders(candidate: Candidate, baseline: Baseline) -> tuple[str, ...]:
    """Tests that do not run the mutated line: of the same file of code, then of the same test files."""
    names, taken = baseline.tests, set(candidate.tests)
    same_code = {index for tests in baseline.lines.get(candidate.path, {}).values() for index in tests}
    same_tests = {test.partition("::")[0] for test in candidate.tests}
    near = [test for index, test in enumerate(names) if index in same_code and test not in taken]
    beside = [test for test in names if test.partition("::")[0] in same_tests and test not in taken]
    ordered = list(dict.fromkeys((*near, *beside)))
    if len(ordered) <= BYSTANDERS_MAX:
        return tuple(ordered)
    return tuple(random.Random(candidate.key).sample(ordered, BYSTANDERS_MAX))


def in_suite_order(tests: Sequence[str], baseline: Baseline) -> tuple[str, ...]:
    """The same tests as the suite runs them."""
    wanted = set(tests)
    return tuple(test for test in baseline.tests if test in wanted)


def _statements(node: ast.AST, *, within: bool) -> Iterator[tuple[int, int]]:
    """First and last line of each statement inside functions; of a compound one, of its head."""
    for child in ast.iter_child_nodes(node):
        is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        if isinstance(child, ast.stmt) and within and not is_function and not isinstance(child, ast.ClassDef):
            body = getattr(child, "body", None)
            last = body[0].lineno - 1 if isinstance(body, list) and body else child.end_lineno or child.lineno
            yield child.lineno, max(child.lineno, last)
        yield from _statements(child, within=within or is_function)
