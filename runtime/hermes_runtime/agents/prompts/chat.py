"""The chat dialect, for any instruct model: its own chat template, search/replace edits.

    path/to/file.py
    <<<<<<< SEARCH
    lines as they are
    =======
    lines as they should be
    >>>>>>> REPLACE

An edit that cannot be used comes back as BadEdit, whose message tells the model what to mend.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hermes.act.v1 import act_pb2 as pb
from hermes.model.v1 import model_pb2
from hermes_runtime.agents.conversation import Evidence

CONTEXT_LINES = 20
"""Lines shown either side of a suspicious place."""

_BLOCK = re.compile(
    r"^(?P<path>[^\s`<>]+\.py)[ \t]*\n(?:```\w*\n)?"
    r"<{5,9} SEARCH[ \t]*\n(?P<old>.*?)(?:^|\n)={5,9}[ \t]*\n(?P<new>.*?)(?:^|\n)?>{5,9} REPLACE",
    re.MULTILINE | re.DOTALL,
)

_RULES = """You repair Python programs. Answer with one or more edits and nothing else. Each edit is:
path/to/file.py
<<<<<<< SEARCH
exact lines of the file, enough to be found once
=======
the lines that replace them
>>>>>>> REPLACE
Do not edit tests. Change as little as you can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadEdit:
    """An answer that cannot be used, and what to mend."""

    message: str
    subject: str


def rank_messages(
    task: pb.Task, places: Sequence[pb.Place], sources: Mapping[str, str], evidence: Sequence[Evidence]
) -> list[model_pb2.Message]:
    """Asks for the order of suspicious places, named by numbers from 1."""
    listed = "\n".join(
        f"{number}. {place.file_path}:{place.line}: {_line(sources, place).strip()}"
        for number, place in enumerate(places, start=1)
    )
    question = (
        f"{_about(task, evidence)}\nThese lines ran in the failing tests:\n{listed}\n"
        "Which lines are most likely wrong? Answer with their numbers, most likely first, like: 3, 1, 2"
    )
    return [
        model_pb2.Message(role="system", content="You find defects in Python programs."),
        model_pb2.Message(role="user", content=question),
    ]


def parse_order(answer: str, count: int) -> list[int]:
    """Indices (from 0) in the order of the numbers in `answer`; numbers that name nothing are dropped."""
    named = [int(number) - 1 for number in re.findall(r"\d{1,6}", answer)]
    return [index for index in dict.fromkeys(named) if 0 <= index < count]


def repair_messages(
    task: pb.Task,
    places: Sequence[pb.Place],
    sources: Mapping[str, str],
    evidence: Sequence[Evidence],
    outcomes: Sequence[pb.Outcome],
    refusals: Sequence[pb.Refusal],
) -> list[model_pb2.Message]:
    """Asks for a repair. What stays the same over the rounds comes first, what is new comes last."""
    parts = [_about(task, evidence)]
    parts += [f"{path}, suspicious part:\n{text}" for path, text in _excerpts(places, sources)]
    if outcomes:
        tried = "\n".join(
            f"{outcome.patch.rstrip()}\n-> {_word(outcome.verdict)} {outcome.failed_test}"
            for outcome in outcomes
            if outcome.verdict != pb.VERDICT_SKIPPED
        )
        parts.append(f"These patches were tried and did not repair it:\n{tried}")
    parts += [
        f"An earlier edit could not be used: {refusal.message}\n{refusal.subject}" for refusal in refusals
    ]
    parts.append("Answer with the edit that repairs it.")
    return [
        model_pb2.Message(role="system", content=_RULES),
        model_pb2.Message(role="user", content="\n\n".join(parts)),
    ]


def parse_edits(answer: str, sources: Mapping[str, str]) -> dict[str, str] | BadEdit:
    """The files that the answer's edits change, whole, or what is wrong with the first bad one."""
    blocks = list(_BLOCK.finditer(answer))
    if not blocks:
        return BadEdit(message="no edit found; write path, SEARCH and REPLACE as told", subject=answer[:2000])
    after: dict[str, str] = {}
    for block in blocks:
        path, old, new = block["path"], block["old"], block["new"]
        if path not in sources:
            known = ", ".join(sorted(sources))
            return BadEdit(message=f"{path} may not be edited; the files are: {known}", subject=block[0])
        text = after.get(path, sources[path])
        count = _count_of(text, old)
        if count != 1:
            found = "is not in" if count == 0 else f"is {count} times in"
            return BadEdit(message=f"the SEARCH text {found} {path}; it must be there once", subject=block[0])
        start = 0 if text.startswith(old + "\n") or text == old else text.index("\n" + old) + 1
        changed = text[:start] + new + text[start + len(old) :]
        if not new:  # lines taken out whole
            changed = text[:start] + text[start + len(old) :].removeprefix("\n")
        try:
            ast.parse(changed)
        except (SyntaxError, ValueError) as error:
            return BadEdit(message=f"{path} would no longer parse: {error}", subject=block[0])
        after[path] = changed
    changed_files = {path: text for path, text in after.items() if text != sources[path]}
    return changed_files or BadEdit(message="the edit changes nothing", subject=blocks[0][0])


def _count_of(text: str, old: str) -> int:
    """How often whole lines `old` are in `text`; an empty search is nowhere."""
    return f"\n{text.rstrip(chr(10))}\n".count(f"\n{old}\n") if old.strip() else 0


def _about(task: pb.Task, evidence: Sequence[Evidence]) -> str:
    parts = [f"Repository {task.repo}.", task.problem_statement.strip()]
    if task.failing_tests:
        parts.append("Failing tests: " + ", ".join(task.failing_tests))
    for shown in evidence:
        parts.append(f"Log {shown.alias}: {shown.head}" if shown.alias else f"Log:\n{shown.text.rstrip()}")
    return "\n".join(part for part in parts if part)


def _word(verdict: pb.Verdict.ValueType) -> str:
    return pb.Verdict.Name(verdict).removeprefix("VERDICT_").lower().replace("_", " ")


def _line(sources: Mapping[str, str], place: pb.Place) -> str:
    lines = sources[place.file_path].splitlines()
    return lines[place.line - 1] if place.line <= len(lines) else ""


def _excerpts(places: Sequence[pb.Place], sources: Mapping[str, str]) -> list[tuple[str, str]]:
    """For each file, the stretches of lines around its places, in the order of the best place."""
    shown: dict[str, set[int]] = {}
    for place in places:
        around = range(max(1, place.line - CONTEXT_LINES), place.line + CONTEXT_LINES + 1)
        shown.setdefault(place.file_path, set()).update(around)
    excerpts: list[tuple[str, str]] = []
    for path, numbers in shown.items():
        lines = sources[path].splitlines()
        text = "\n".join(lines[n - 1] for n in sorted(numbers) if n <= len(lines))
        excerpts.append((path, text))
    return excerpts
