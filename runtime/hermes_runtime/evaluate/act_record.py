"""An act as a reader sees it: who said what to whom, in a line, in points, and in an excerpt.

The report and `explain` show these and know nothing of the wire. `act_record` makes one from an act
and its content, resolved by the caller; contents are untrusted text and are escaped where shown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hermes.act.v1 import act_pb2

BODY_CHARACTERS = 4_000
"""Longest excerpt kept."""
POINTS = 12
"""Most points kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActRecord:
    """One act of one attempt."""

    step: int
    """Order within the attempt, from 1."""
    round: int
    """From 1; 0 before the first."""
    sender: str
    """driver, planner, coder or tester; so is receiver."""
    receiver: str
    kind: str
    """REQUEST, INFORM, PROPOSE, CONFIRM or ERROR."""
    content: str
    """task, log, spectrum, places, candidates, outcomes, refusal; "" for words without structure."""
    anchored: bool
    """Whether the payload lay in the store and only its address travelled."""
    alias: str
    """The anchor's short name, for example "@p3"; "" if not anchored."""
    wire_bytes: int
    payload_bytes: int
    """Size of the content, wherever it travelled."""
    summary: str
    """What it says, in one line."""
    points: tuple[str, ...] = ()
    """What it says, in some: places, candidates, verdicts."""
    body: str = ""
    """Excerpt of a log, or the first patch."""
    parent: int | None = None
    """Step of the act that this one answers or follows from; None for the first."""


def act_record(
    act: act_pb2.Act,
    content: act_pb2.Content | None,
    *,
    step: int,
    wire_bytes: int,
    parent: int | None = None,
) -> ActRecord:
    """The record of `act`. `content` is its payload, inline or read from the store; None if it has
    only words, or if the blob is gone (then the anchor's head stands for it)."""
    payload = act.WhichOneof("payload")
    anchored = payload == "anchor"
    size = {
        "anchor": act.anchor.digest.size_bytes,
        "inline": len(act.inline.data),
        "text": len(act.text.encode()),
    }.get(payload or "", 0)
    which = content.WhichOneof("content") if content is not None else None
    points: tuple[str, ...]
    if content is None or which is None:
        text = act.anchor.head if anchored else act.text
        summary, points, body = _line(text) or "(no content)", (), text if "\n" in text.strip() else ""
    else:
        summary, points, body = _said(content)
    return ActRecord(
        step=step,
        round=act.header.round,
        sender=_name(act_pb2.Role.Name(act.sender), "ROLE_"),
        receiver=_name(act_pb2.Role.Name(act.receiver), "ROLE_"),
        kind=act_pb2.ActKind.Name(act.kind).removeprefix("ACT_KIND_"),
        content=which or "",
        anchored=anchored,
        alias=act.anchor.alias if anchored else "",
        wire_bytes=wire_bytes,
        payload_bytes=size,
        summary=summary,
        points=points[:POINTS] + ((f"and {len(points) - POINTS} more",) if len(points) > POINTS else ()),
        body=body[:BODY_CHARACTERS],
        parent=parent,
    )


def _name(value: str, prefix: str) -> str:
    return value.removeprefix(prefix).lower().replace("_", " ")


def _line(text: str) -> str:
    """The first line that says something, cut."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= 160 else line[:159] + "…"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _said(content: act_pb2.Content) -> tuple[str, tuple[str, ...], str]:
    """Line, points, excerpt."""
    match content.WhichOneof("content"):
        case "task":
            task = content.task
            shown = (
                f"{_count(len(task.failing_tests), 'failing test')} shown, {len(task.passing_tests)} to keep"
            )
            return f"{task.instance_id}: {shown}", tuple(task.failing_tests), task.problem_statement
        case "log":
            # the end of a test log tells more than its start
            lines = [line for line in content.log.text.splitlines() if line.strip()]
            return _line(lines[-1]) if lines else "(empty log)", (), content.log.text[-BODY_CHARACTERS:]
        case "spectrum":
            spectrum = content.spectrum
            lines_count = sum(len(file.line_steps) for file in spectrum.files)
            tests = f"{spectrum.failing_count} failing and {spectrum.passing_count} passing tests"
            said = f"{_count(lines_count, 'line')} of {_count(len(spectrum.files), 'file')} run by {tests}"
            return said, (), ""
        case "places":
            points = tuple(f"{p.file_path}:{p.line}  suspicion {p.ochiai:.2f}" for p in content.places.places)
            first = f"; first {points[0].split('  ')[0]}" if points else ""
            return _count(len(points), "place") + first, points, ""
        case "candidates":
            candidates = content.candidates.candidates
            points = tuple(f"{c.id}  score {c.score:.2f}" for c in candidates)
            first = f"; first {candidates[0].id}" if candidates else ""
            body = candidates[0].patch if candidates else ""
            return _count(len(candidates), "candidate") + first, points, body
        case "outcomes":
            return _outcomes(content.outcomes)
        case "refusal":
            reason = _name(act_pb2.RefusalReason.Name(content.refusal.reason), "REFUSAL_REASON_")
            return f"{reason}: {_line(content.refusal.message)}", (), content.refusal.subject
        case _:
            return "(empty)", (), ""


def _outcomes(outcomes: act_pb2.Outcomes) -> tuple[str, tuple[str, ...], str]:
    verdicts = [_name(act_pb2.Verdict.Name(outcome.verdict), "VERDICT_") for outcome in outcomes.outcomes]
    points = tuple(
        f"{outcome.candidate_id}  {verdict}" + (f": {outcome.failed_test}" if outcome.failed_test else "")
        for outcome, verdict in zip(outcomes.outcomes, verdicts, strict=True)
    )
    tried = [verdict for verdict in verdicts if verdict != "skipped"]
    counts = ", ".join(f"{number} {verdict}" for verdict, number in sorted(Counter(tried).items()))
    passed = next((o.patch for o in outcomes.outcomes if o.verdict == act_pb2.VERDICT_PASSED), "")
    return f"{len(tried)} tried" + (f": {counts}" if counts else ""), points, passed
