"""Instances from mutants: one defect put into a package, found by at least two of its own tests.

A mutant becomes an instance if its tests ran to the end, at least two failed and none was broken, and
a second look in other company (the visible failing tests with those that pass; the hidden ones by
themselves; all on the sound source) says the same. Decisions depend on the mutant alone and are kept
in a journal in the cache, so a build that was interrupted goes on where it was.

Same seed, same packages, same instances, byte for byte, wherever the cache lies.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from hermes_runtime.agents.edits import EditKind, is_invertible
from hermes_runtime.agents.patch import make_patch
from hermes_runtime.errors import BadInput, Busy
from hermes_runtime.evaluate.checkout import read_text
from hermes_runtime.evaluate.datasets import baseline as baselines
from hermes_runtime.evaluate.datasets.baseline import Baseline
from hermes_runtime.evaluate.datasets.candidates import Candidate, Deck, bystanders, in_suite_order
from hermes_runtime.evaluate.datasets.packages import Say, Subject, names, prepare
from hermes_runtime.evaluate.instances import Instance, to_line
from hermes_runtime.models.cache import cache_folder
from hermes_runtime.sandbox import Bench, Ending, Limits, Sandbox
from hermes_runtime.sandbox.choose import choose
from hermes_runtime.sandbox.suite import Status, TestSuite, open_suite

FAILING_MIN, FAILING_MAX = 2, 40
"""Fewer could not be split into visible and hidden; more is no single defect to look at."""
TRIES_OF_A_KIND = 6
"""Mutants of one kind that are tried for one instance before the next kind has its turn."""
TEST_LIMITS = Limits(wall_seconds=30.0, cpu_seconds=5)
"""A mutant that loops is stopped by processor time, which does not depend on how busy the host is."""
TEST_TIMEOUT_SECONDS = 20.0
MESSAGE_LINES_MAX, MESSAGE_WIDTH_MAX = 6, 160


class Decision(BaseModel):
    """What trying one mutant found; a line of the journal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    refused: str = ""
    """Why it is no instance; empty if it is one."""
    fail_to_pass: tuple[str, ...] = ()
    pass_to_pass: tuple[str, ...] = ()
    visible: tuple[str, ...] = ()
    problem_statement: str = ""


def build(
    out: Path,
    count: int,
    seed: int,
    packages: Sequence[str | Subject] | None = None,
    cache: Path | None = None,
    sandbox: Sandbox | None = None,
    say: Say = lambda _: None,
) -> Path:
    """As `build_mutants`, for callers without an event loop."""
    return asyncio.run(build_mutants(out, count, seed, packages, cache, sandbox, say))


async def build_mutants(
    out: Path,
    count: int,
    seed: int,
    packages: Sequence[str | Subject] | None = None,
    cache: Path | None = None,
    sandbox: Sandbox | None = None,
    say: Say = lambda _: None,
) -> Path:
    """Make `count` instances and return the file they are in.

    `out` is that file, or a folder in which it is named by seed, count and packages. Sources and
    environments are linked beside it (`sources/`, `environments/`), and named so in the file.
    `packages`: names, or trees of the caller's own; None: all that HERMES knows.

    Raises:
        BadInput: no such package, tests that fail before any mutation, or too few mutants.
        PeerLost, Damaged, Unsupported: see `packages.prepare`.
    """
    if count < 1:
        raise BadInput(f"{count} instances cannot be made; ask for at least one")
    if cache is None:
        cache = cache_folder(os.environ, Path.home())
    sandbox = sandbox or choose("auto")
    chosen = list(packages) if packages is not None else list(names())
    subjects = await asyncio.to_thread(_subjects, chosen, cache, say)
    file = out if out.suffix == ".jsonl" else out / _file_name(count, seed, subjects, whole=packages is None)
    async with AsyncExitStack() as stack:
        lines = [_Line(subject, place, seed, sandbox, cache, say) for place, subject in enumerate(subjects)]
        for line in lines:
            stack.push_async_callback(line.close)
        await _fill(lines, count, seed, say)
        instances = interleaved([line.instances() for line in lines])
    _link(file.parent, subjects)
    _write(file, "".join(to_line(instance) + "\n" for instance in instances))
    return file


def _subjects(chosen: Sequence[str | Subject], cache: Path, say: Say) -> list[Subject]:
    wanted = [one for one in chosen if isinstance(one, str)]
    fetched = {one.name: one for one in prepare(wanted, cache, say)} if wanted else {}
    subjects = [fetched[one] if isinstance(one, str) else one for one in chosen]
    if len({subject.name for subject in subjects}) < len(subjects) or not subjects:
        raise BadInput("each package is named once, and at least one is")
    return subjects


def _file_name(count: int, seed: int, subjects: Sequence[Subject], *, whole: bool) -> str:
    words = "\n".join(f"{subject.name} {subject.version}" for subject in subjects)
    mark = "" if whole else "-" + hashlib.sha256(words.encode()).hexdigest()[:8]
    return f"mutants-{count}-seed{seed}{mark}.jsonl"


async def _fill(lines: list[_Line], count: int, seed: int, say: Say) -> None:
    """Share `count` out evenly over the packages; what one cannot give, the others must."""
    places = asyncio.Semaphore(os.cpu_count() or 1)
    told = 0

    def progress() -> None:
        nonlocal told
        done, tried = sum(len(line.accepted) for line in lines), sum(line.tried for line in lines)
        if done > told:
            told = done
            say(f"mutants: {done} of {count} ({tried} tried)")

    order = list(lines)
    random.Random(f"{seed} packages").shuffle(order)
    missing = count
    while missing:
        open_lines = [line for line in order if not line.is_exhausted]
        if not open_lines:
            raise BadInput(
                f"only {count - missing} of {count} mutants are to be had from "
                f"{', '.join(line.subject.name for line in lines)}; ask for fewer, or name more packages"
            )
        share, more = divmod(missing, len(open_lines))
        try:
            async with asyncio.TaskGroup() as group:
                for place, line in enumerate(open_lines):
                    wanted = len(line.accepted) + share + (place < more)
                    group.create_task(line.fill(wanted, places, progress), name=line.subject.name)
        except BaseExceptionGroup as failed:
            raise _first(failed) from failed
        missing = count - sum(len(line.accepted) for line in lines)


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure itself: a caller asked for a build, not for a group of tasks."""
    first = failed.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


@dataclass(slots=True)
class _Line:
    """One package at work: its warm interpreter, its deck of mutants, what was accepted."""

    subject: Subject
    place: int
    seed: int
    sandbox: Sandbox
    cache: Path
    say: Say
    accepted: list[tuple[Candidate, Decision]] = field(default_factory=list)
    tried: int = 0
    is_exhausted: bool = False
    _suite: TestSuite | None = None
    _deck: Deck | None = None
    _files: baselines.Files | None = None
    _baseline: Baseline | None = None
    _journal: Journal | None = None

    async def fill(self, wanted: int, places: asyncio.Semaphore, progress: Callable[[], None]) -> None:
        """Try mutants until `wanted` are accepted or none is left."""
        if len(self.accepted) >= wanted:
            return
        async with places:
            await self._open()
            while len(self.accepted) < wanted and not self.is_exhausted:
                await self._one_more()
                progress()

    async def close(self) -> None:
        """End the warm interpreter."""
        if self._suite is not None:
            await self._suite.close()
            self._suite = None

    def instances(self) -> list[Instance]:
        """What was accepted, as instances, in order."""
        return [
            instance_of(self.subject, number, candidate, decision, self._code())
            for number, (candidate, decision) in enumerate(self.accepted, start=1)
        ]

    def _code(self) -> tuple[str, ...]:
        return self._files.code if self._files is not None else ()

    async def _warm(self) -> TestSuite:
        if self._suite is None:
            bench = Bench(
                tree=self.subject.tree, python=self.subject.python, import_roots=self.subject.import_roots
            )
            self._suite = await open_suite(self.sandbox, bench)
        return self._suite

    async def _open(self) -> None:
        if self._deck is not None:
            return
        subject = self.subject
        self._files = await asyncio.to_thread(baselines.files_of, subject)
        key = await asyncio.to_thread(baselines.key_of, subject)
        place = self.cache / "baselines" / f"{subject.name}-{key}.json"
        known = await asyncio.to_thread(baselines.read, place)
        if known is None:
            self.say(f"{subject.name}: running its tests under coverage")
            known = await baselines.measure(subject, self._files, await self._warm(), self.say)
            await asyncio.to_thread(baselines.write, known, place)
        self._baseline = known
        self._journal = Journal(self.cache / "decisions" / f"{subject.name}-{key}.jsonl")
        sources = {path: read_text(subject.tree, path) or "" for path in self._files.code}
        sources = {path: text for path, text in sources.items() if text.isascii() or _is_utf8(text)}
        self._deck = await asyncio.to_thread(Deck, subject.name, sources, known, self.seed)

    async def _one_more(self) -> None:
        """Try mutants, the kind whose turn it is first, until one is accepted or none is left."""
        assert self._deck is not None
        for kind in turn(self.place, len(self.accepted), self.seed):
            for _ in range(TRIES_OF_A_KIND):
                candidate = await asyncio.to_thread(self._deck.draw, kind)
                if candidate is None:
                    break
                if self._is_used(candidate):
                    continue
                decision = await self._decide(candidate)
                self.tried += 1
                if not decision.refused:
                    self.accepted.append((candidate, decision))
                    return
        self.is_exhausted = self._deck.is_empty()

    def _is_used(self, candidate: Candidate) -> bool:
        """One instance a line is enough."""
        places = {(taken.path, taken.edit.line) for taken, _ in self.accepted}
        return (candidate.path, candidate.edit.line) in places

    async def _decide(self, candidate: Candidate) -> Decision:
        assert self._baseline is not None
        assert self._journal is not None
        known = self._journal.get(candidate.key)
        if known is None:
            if not await asyncio.to_thread(is_invertible, candidate.source, candidate.edit):
                known = Decision(key=candidate.key, refused="no edit leads back")
            else:
                known = await decide(candidate, self._baseline, await self._warm(), self.subject)
            await asyncio.to_thread(self._journal.add, known)
        return known


def _is_utf8(text: str) -> bool:
    """Whether no byte was kept as a surrogate: such a text fits into no JSON."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


class Journal:
    """Decisions on disk, a line each; a line that was cut off is as good as none.

    A cache that cannot be written keeps nothing new.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._known: dict[str, Decision] = {}
        if place.is_file():
            for line in place.read_bytes().split(b"\n"):
                try:
                    decision = Decision.model_validate_json(line)
                except ValidationError:
                    continue
                self._known.setdefault(decision.key, decision)

    def get(self, key: str) -> Decision | None:
        """What was decided of it."""
        return self._known.get(key)

    def add(self, decision: Decision) -> None:
        """Keep it."""
        self._known[decision.key] = decision
        if baselines.is_read_only(self._place.parent):
            return
        self._place.parent.mkdir(parents=True, exist_ok=True)
        with self._place.open("ab") as file:
            # a line of its own even after one that was cut off
            file.write(b"\n" + decision.model_dump_json().encode() + b"\n")


def turn(place: int, number: int, seed: int) -> list[EditKind]:
    """Kinds in the order in which a package's next instance tries them; all have their turn to be first."""
    kinds = list(EditKind)
    random.Random(f"{seed} kinds").shuffle(kinds)
    start = (place * 5 + number) % len(kinds)
    return kinds[start:] + kinds[:start]


async def decide(candidate: Candidate, baseline: Baseline, suite: TestSuite, subject: Subject) -> Decision:
    """Run a mutant's tests; see the module's docstring for what makes it an instance."""
    key = candidate.key
    others = bystanders(candidate, baseline)
    wanted = in_suite_order((*candidate.tests, *others), baseline)
    mutated = {candidate.path: candidate.mutated.encode("utf-8", "surrogateescape")}
    first = await suite.run(wanted, files=mutated, limits=TEST_LIMITS)
    if first.ending is not Ending.EXITED:
        return Decision(key=key, refused=f"its tests {first.ending.value}")
    statuses = {test: first.results.get(test, Status.MISSING) for test in wanted}
    broken = [test for test, status in statuses.items() if status not in (Status.PASSED, Status.FAILED)]
    if broken:
        return Decision(key=key, refused=f"{len(broken)} tests neither pass nor fail")
    failing = tuple(test for test, status in statuses.items() if status is Status.FAILED)
    passing = tuple(test for test, status in statuses.items() if status is Status.PASSED)
    if not FAILING_MIN <= len(failing) <= FAILING_MAX:
        return Decision(key=key, refused=f"{len(failing)} tests fail")
    if not passing:
        return Decision(key=key, refused="no test passes")
    visible, hidden = split(failing, key)
    shown = await suite.run(in_suite_order((*visible, *passing), baseline), files=mutated, limits=TEST_LIMITS)
    apart = await suite.run(hidden, files=mutated, limits=TEST_LIMITS)
    again = {**shown.results, **apart.results}
    if any(again.get(test) is not statuses[test] for test in wanted):
        return Decision(key=key, refused="flaky: another run says otherwise")
    sound = await suite.run(wanted, limits=TEST_LIMITS)
    if any(sound.results.get(test) is not Status.PASSED for test in wanted):
        return Decision(key=key, refused="its tests do not pass by themselves on the sound source")
    secret = (candidate.edit.old_line, candidate.edit.new_line)
    return Decision(
        key=key,
        fail_to_pass=failing,
        pass_to_pass=passing,
        visible=visible,
        problem_statement=statement(subject, visible, shown.log, secret),
    )


def split(failing: Sequence[str], key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """About half visible, the rest hidden; at least one of each. The same for the same mutant."""
    visible_count = min((len(failing) + 1) // 2, len(failing) - 1)
    visible = set(random.Random(key).sample(list(failing), visible_count))
    return (
        tuple(test for test in failing if test in visible),
        tuple(test for test in failing if test not in visible),
    )


def statement(subject: Subject, visible: Sequence[str], log: str, secret: Sequence[str]) -> str:
    """What a user would see: which tests fail, and what they say. Never a line that holds the defect."""
    messages = messages_of(log, visible)
    version = subject.version.partition(" ")[0]
    out = [f"Some tests of {subject.name} {version} fail:".replace("  ", " "), ""]
    hidden = [line.strip() for line in secret if len(line.strip()) > 3]
    for test in visible:
        out.append(f"- {test}")
        lines = [line for line in messages.get(test, ()) if not any(part in line for part in hidden)]
        out += [f"      {line[:MESSAGE_WIDTH_MAX]}" for line in lines[:MESSAGE_LINES_MAX]]
    return "\n".join(out) + "\n"


_HEADING = re.compile(r"_{3,} (.+) _{3,}")


def messages_of(log: str, tests: Sequence[str]) -> dict[str, list[str]]:
    """For each failed test, the lines of pytest's log that say what was wrong (those marked `E`)."""
    waiting: dict[str, list[str]] = {}
    for test in tests:
        waiting.setdefault(".".join(test.split("::")[1:]), []).append(test)
    found: dict[str, list[str]] = {}
    current: str | None = None
    for line in log.split("\n"):
        heading = _HEADING.fullmatch(line)
        if heading is not None:
            same_name = waiting.get(heading.group(1), [])
            current = same_name.pop(0) if same_name else None
        elif current is not None and line.startswith("E ") and line[1:].strip():
            found.setdefault(current, []).append(line[1:].strip())
    return found


def instance_of(
    subject: Subject, number: int, candidate: Candidate, decision: Decision, code: tuple[str, ...]
) -> Instance:
    """An accepted mutant as an instance; paths as they are linked beside the file of instances."""
    return Instance(
        instance_id=f"{subject.name}__mutant-{number:04d}",
        repo=subject.name,
        base_commit=subject.version,
        version=subject.version.partition(" ")[0],
        problem_statement=decision.problem_statement,
        patch=make_patch(candidate.path, candidate.mutated, candidate.source),
        setup_patch=make_patch(candidate.path, candidate.source, candidate.mutated),
        FAIL_TO_PASS=decision.fail_to_pass,
        PASS_TO_PASS=decision.pass_to_pass,
        visible_tests=decision.visible,
        source=f"sources/{subject.name}",
        python=f"environments/{subject.name}/bin/{subject.python.name}",
        import_roots=subject.import_roots,
        editable_files=code,
        test_timeout_seconds=TEST_TIMEOUT_SECONDS,
        bug_kind=candidate.edit.kind.value,
    )


def interleaved(rows: Sequence[Sequence[Instance]]) -> list[Instance]:
    """The first of each package, then the second of each, ..."""
    longest = max((len(row) for row in rows), default=0)
    return [row[place] for place in range(longest) for row in rows if place < len(row)]


def _link(folder: Path, subjects: Sequence[Subject]) -> None:
    targets: Mapping[str, Path] = {
        **{f"sources/{subject.name}": subject.tree for subject in subjects},
        **{f"environments/{subject.name}": subject.python.parent.parent for subject in subjects},
    }
    for name, target in targets.items():
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            if link.readlink() == target.absolute():
                continue
        elif link.exists():
            raise Busy(f"{link} is in the way of a link to {target}; choose another folder for the instances")
        new = link.with_name(f".{link.name}-{os.getpid()}")
        new.symlink_to(target.absolute())
        new.replace(link)


def _write(file: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, delete=False) as new:
        new.write(text)
    Path(new.name).chmod(0o644)
    Path(new.name).replace(file)
