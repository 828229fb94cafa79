"""The causal chain of one instance under one arm, in the terminal.

Told in the order of causes: what failed, where suspicion fell, what was tried, what was submitted,
how it was graded, what it cost; and within that every act after the act that it answers. Acts and
logs are untrusted: nothing of them reaches the terminal as a control code.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hermes_runtime.evaluate.act_record import ActRecord
from hermes_runtime.evaluate.results import Result
from hermes_runtime.evaluate.shown import duration, number, shown, size
from hermes_runtime.evaluate.summary import bytes_of, tokens_of

WIDTH = 100
LOG_LINES = 12
"""Most lines shown of a log; of a patch three times as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Paint:
    """ANSI colours, or none."""

    colour: bool

    def __call__(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def title(self, text: str) -> str:
        return self(text, "1")

    def soft(self, text: str) -> str:
        return self(text, "2")

    def good(self, text: str) -> str:
        return self(text, "32")

    def bad(self, text: str) -> str:
        return self(text, "31")

    def warn(self, text: str) -> str:
        return self(text, "33")


def explain(result: Result, acts: Sequence[ActRecord], *, gold: str = "", colour: bool = False) -> str:
    """The story of `result`, ending in a newline. `acts` may be empty, if the log is gone."""
    paint = _Paint(colour=colour)
    told = in_causal_order(acts)
    parts = [_title(result, paint)]
    if not told:
        parts.append(paint.soft("The event log has no acts of this attempt; the result alone is told."))
    parts += [
        _section("What failed", _acts(told, paint, ("task", "log", "spectrum"), body="log", before=1), paint),
        *_rounds(told, paint),
        _section("What was submitted", _submitted(result, gold, paint), paint),
        _section("How it was graded", _graded(result, paint), paint),
        _section("What it cost", _cost(result, told, paint), paint),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def in_causal_order(acts: Iterable[ActRecord]) -> list[ActRecord]:
    """Parents before children, siblings by step. An act whose parent is unknown counts as a first
    one; acts that name each other in a circle come last, by step, and none is lost."""
    ordered = sorted(acts, key=lambda act: act.step)
    known = {act.step for act in ordered}
    children: dict[int | None, list[ActRecord]] = {}
    for act in ordered:
        parent = act.parent if act.parent in known and act.parent != act.step else None
        children.setdefault(parent, []).append(act)
    found: list[ActRecord] = []
    waiting = list(children.get(None, ()))
    while waiting:
        # the earliest act that is ready: time order wherever causes allow it
        act = min(waiting, key=lambda ready: ready.step)
        waiting.remove(act)
        found.append(act)
        waiting.extend(children.get(act.step, ()))
    told = {act.step for act in found}
    return found + [act for act in ordered if act.step not in told]


def _title(result: Result, paint: _Paint) -> str:
    if result.grade.resolved:
        outcome = paint.good("solved")
    elif result.plausible:
        outcome = paint.warn("passes the tests it saw, fails hidden ones")
    elif result.patch:
        outcome = paint.bad("wrong patch")
    else:
        outcome = paint.bad("no patch")
    where = f"{shown(result.repo)}{f', {shown(result.bug_kind)}' if result.bug_kind else ''}"
    tries = f", attempt {result.attempt}" if result.attempt > 1 else ""
    return f"{paint.title(result.instance_id)} under {paint.title(result.arm)}: {outcome}\n" + paint.soft(
        f"{where}; run {shown(result.run)}{tries}, started {shown(result.started_at)}"
    )


def _section(title: str, lines: Iterable[str], paint: _Paint) -> str:
    body = "\n".join(f"  {line}" if line else "" for line in lines)
    return f"{paint.title(title)}\n{body}" if body else ""


def _wrapped(text: str, indent: int = 0) -> list[str]:
    pad = " " * indent
    return textwrap.wrap(
        " ".join(shown(text).split()), WIDTH - 4, initial_indent=pad, subsequent_indent=pad + "  ",
        break_on_hyphens=False,
    )  # fmt: skip


def _block(text: str, lines: int, *, tail: bool = False) -> list[str]:
    """Lines of a text, `lines` of them at most, from its end if `tail`."""
    found = shown(text).rstrip("\n").split("\n")
    left_out = len(found) - lines
    if left_out > 0:
        kept = found[-lines:] if tail else found[:lines]
        note = f"… {left_out} lines left out"
        found = [note, *kept] if tail else [*kept, note]
    return [f"| {line[: WIDTH * 2]}" for line in found]


def _acts(
    acts: Sequence[ActRecord],
    paint: _Paint,
    contents: Sequence[str],
    *,
    body: str = "",
    before: int | None = None,
    round_: int | None = None,
) -> Iterator[str]:
    """What acts with these contents said, each thing once: context is sent again every turn."""
    told: set[tuple[str, str, tuple[str, ...]]] = set()
    for act in acts:
        if act.content not in contents or (before is not None and act.round >= before):
            continue
        key = (act.content, act.summary, act.points)
        if (round_ is not None and act.round != round_) or key in told:
            continue
        told.add(key)
        anchored = f", anchored {shown(act.alias)}" if act.anchored else ""
        yield (
            f"{act.sender} → {act.receiver}  {act.kind} {act.content} "
            + paint.soft(f"({size(act.payload_bytes)}, {size(act.wire_bytes)} on the wire{anchored})")
        )
        for line in _wrapped(act.summary, 2):
            yield paint.bad(line) if act.kind == "ERROR" else line
        for point in act.points:
            for line in _wrapped(point, 4):
                yield _verdict(line, paint) if act.content == "outcomes" else line
        if act.body and act.content == body:
            yield from (paint.soft(f"    {line}") for line in _block(act.body, LOG_LINES, tail=True))


def _verdict(line: str, paint: _Paint) -> str:
    """A verdict in its colour."""
    words = line.split()
    if words[1:2] == ["passed"]:
        return paint.good(line)
    return paint.warn(line) if words[1:2] in (["regressed:"], ["regressed"], ["skipped"]) else paint.bad(line)


def _rounds(acts: Sequence[ActRecord], paint: _Paint) -> Iterator[str]:
    for round_ in sorted({act.round for act in acts if act.round > 0}):
        suspects = list(_acts(acts, paint, ("places",), round_=round_))
        tried = list(_acts(acts, paint, ("candidates", "outcomes", "refusal", ""), round_=round_))
        yield _section(f"Round {round_}: where suspicion fell", suspects, paint)
        yield _section(f"Round {round_}: what was tried", tried, paint)


def _submitted(result: Result, gold: str, paint: _Paint) -> Iterator[str]:
    if not result.patch:
        why = f": {shown(result.failure)}" if result.failure else ""
        blame = f" (a failure of the {result.cause})" if result.cause else ""
        yield from _wrapped(f"nothing{why}{blame}")
    else:
        yield from _diff(result.patch, paint)
    if gold and gold != result.patch:
        yield ""
        yield paint.soft("the gold patch, which no agent saw:")
        yield from _diff(gold, paint)
    elif gold:
        yield paint.soft("this is the gold patch to the letter")


def _diff(patch: str, paint: _Paint) -> Iterator[str]:
    for line in _block(patch, 3 * LOG_LINES):
        match line[2:3], line[2:5]:
            case _, "+++" | "---":
                yield paint.soft(line)
            case "+", _:
                yield paint.good(line)
            case "-", _:
                yield paint.bad(line)
            case _:
                yield line


def _graded(result: Result, paint: _Paint) -> Iterator[str]:
    grade = result.grade
    if not grade.applied:
        yield paint.bad("the patch did not apply" if result.patch else "there was no patch to grade")
    for name, verdicts in (("FAIL_TO_PASS", grade.fail_to_pass), ("PASS_TO_PASS", grade.pass_to_pass)):
        if not verdicts:
            continue
        passed = sum(verdicts.values())
        line = f"{name}: {passed} of {len(verdicts)} pass"
        yield paint.good(line) if passed == len(verdicts) else paint.bad(line)
        failing = [test for test, ok in verdicts.items() if not ok]
        for test in failing[:LOG_LINES]:
            yield paint.bad(f"  fails  {shown(test)}")
        if len(failing) > LOG_LINES:
            yield paint.soft(f"  … {len(failing) - LOG_LINES} more")
    if grade.log and not grade.resolved:
        yield from (paint.soft(line) for line in _block(grade.log, LOG_LINES, tail=True))


def _cost(result: Result, acts: Sequence[ActRecord], paint: _Paint) -> Iterator[str]:
    tokens, total, times = tokens_of(result), bytes_of(result), result.times
    yield (
        f"tokens   {number(tokens.prompt + tokens.decoded)}: {number(tokens.new)} new, "
        f"{number(tokens.cached)} cached, {number(tokens.reread)} re-read, {number(tokens.decoded)} decoded"
        + (f"; {number(tokens.deref)} of the prompt for anchors" if tokens.deref else "")
    )
    yield (
        f"bytes    {size(total.talking)}: {size(total.act)} acts, {size(total.envelope)} envelopes, "
        f"{size(total.store)} store; {size(total.measuring)} more for accounting and log"
    )
    yield (
        f"time     {duration(times.total)}: {duration(times.model)} model, {duration(times.tests)} tests, "
        f"{duration(times.messages)} messages, {duration(max(0.0, times.rest))} rest; "
        f"{duration(times.grading)} grading after it"
    )
    anchored = sum(act.anchored for act in acts)
    yield (
        f"turns    {result.rounds} rounds, {result.test_runs} test runs"
        + (f", {len(acts)} acts, {anchored} of them anchored" if acts else "")
    )
    if result.attempt > 1:
        yield paint.soft("earlier attempts ended in a crash; only this one is billed")
