"""Charts as inline SVG: numbers in, markup out; no script, no font, no colour of their own.

Every chart is drawn 460 units wide with its labels above the bars, so that the same drawing is
legible at phone width and in a column of a desktop. Colours are classes of the report's style sheet.
Each chart has a title for readers who do not see it; the same numbers stand in a table beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hermes_runtime.evaluate.act_record import ActRecord
from hermes_runtime.evaluate.statistics import Interval

WIDTH = 460
LIFELINES = ("driver", "planner", "coder", "tester")
KINDS = ("REQUEST", "INFORM", "PROPOSE", "CONFIRM", "ERROR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A proportion with its interval."""

    label: str
    detail: str
    interval: Interval
    style: str
    """Class of its colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One stacked bar."""

    label: str
    detail: str
    parts: tuple[tuple[str, float, str], ...]
    """Name, value, class of its colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A difference with its interval."""

    label: str
    detail: str
    interval: Interval
    tone: str


def _svg(height: float, title: str, parts: Sequence[Markup]) -> Markup:
    body = Markup("").join(parts)
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}"><title>{}</title>{}</svg>'
    ).format(WIDTH, height, title, title, body)


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}">{}</text>').format(
        x, y, style, anchor, text
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
        x1, y1, x2, y2, style
    )


def _rect(
    x: float, y: float, width: float, height: float, style: str, tip: str = "", round_: int = 0
) -> Markup:
    inside = Markup("<title>{}</title>").format(tip) if tip else Markup("")
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="{}" class="{}">{}</rect>'
    ).format(x, y, max(width, 0.0), height, round_, style, inside)


def _whisker(x1: float, x2: float, y: float, style: str = "whisker") -> list[Markup]:
    return [
        _line(x1, y, x2, y, style),
        _line(x1, y - 5, x1, y + 5, style),
        _line(x2, y - 5, x2, y + 5, style),
    ]


def proportions(bars: Sequence[Bar], *, title: str, mark: tuple[str, float] | None = None) -> Markup:
    """Shares from 0 to 100 % with intervals; `mark` is a named share drawn across all of them."""
    left, right, row, top = 4.0, WIDTH - 8.0, 48.0, 8.0 if mark is None else 24.0
    bottom = top + row * len(bars)

    def at(share: float) -> float:
        return left + (right - left) * share

    parts: list[Markup] = []
    for quarter in range(5):
        x = at(quarter / 4)
        parts.append(_line(x, top, x, bottom, "grid"))
        where = "start" if quarter == 0 else "end" if quarter == 4 else "middle"
        parts.append(_text(x, bottom + 15, f"{25 * quarter} %", "tick", where))
    for index, bar in enumerate(bars):
        y = top + row * index
        parts.append(_text(left, y + 15, bar.label, "name"))
        parts.append(_text(right, y + 15, bar.detail, "value", "end"))
        parts.append(_rect(left, y + 21, right - left, 17, "track", round_=3))
        parts.append(_rect(left, y + 21, at(bar.interval.value) - left, 17, bar.style, bar.detail, 3))
        parts.extend(_whisker(at(bar.interval.low), at(bar.interval.high), y + 29.5))
    if mark:
        name, share = mark
        anchor = "start" if share < 0.2 else "end" if share > 0.8 else "middle"
        parts.append(_line(at(share), top - 6, at(share), bottom, "mark"))
        parts.append(_text(at(share), top - 11, name, "tick", anchor))
    return _svg(bottom + 20, title, parts)


def forest(rows: Sequence[Point], *, title: str) -> Markup:
    """Differences with intervals around zero, in points."""
    reach = max([0.1, *(max(abs(p.interval.low), abs(p.interval.high)) for p in rows)])
    reach = min(1.0, -(-reach * 10 // 1) / 10)  # up to the next tenth
    left, right, row, top = 12.0, WIDTH - 12.0, 42.0, 22.0
    bottom = top + row * len(rows)
    middle = (left + right) / 2

    def at(difference: float) -> float:
        return middle + difference / reach * (right - left) / 2

    parts = [_text(left, 12, "← fewer solved", "tick"), _text(right, 12, "more solved →", "tick", "end")]
    for share in (-1.0, -0.5, 0.0, 0.5, 1.0):
        x = at(share * reach)
        parts.append(_line(x, top, x, bottom, "zero" if share == 0 else "grid"))
        where = "start" if share == -1 else "end" if share == 1 else "middle"
        value = 100 * share * reach
        text = f"{value:+g}".replace("-", "−") if share else "0 points"
        parts.append(_text(x, bottom + 15, text, "tick", where))
    for index, point in enumerate(rows):
        y = top + row * index
        parts.append(_text(left, y + 15, point.label, "name halo"))
        parts.append(_text(right, y + 15, point.detail, "value halo", "end"))
        parts.extend(
            _whisker(at(point.interval.low), at(point.interval.high), y + 28, f"whisker {point.tone}")
        )
        parts.append(
            _rect(at(point.interval.value) - 5, y + 23, 10, 10, f"dot {point.tone}", point.detail, 2)
        )
    return _svg(bottom + 20, title, parts)


def stacked(rows: Sequence[Stack], *, title: str, said: Callable[[float], str]) -> Markup:
    """Stacked bars over one scale; `said` writes a value for its tip."""
    left, right, row = 4.0, WIDTH - 4.0, 46.0
    most = max([sum(value for _, value, _ in stack.parts) for stack in rows] or [0.0]) or 1.0
    parts: list[Markup] = []
    for index, stack in enumerate(rows):
        y = row * index
        parts.append(_text(left, y + 15, stack.label, "name"))
        parts.append(_text(right, y + 15, stack.detail, "value", "end"))
        parts.append(_rect(left, y + 21, right - left, 17, "track", round_=3))
        x = left
        for name, value, style in stack.parts:
            width = value / most * (right - left)
            if value > 0:
                parts.append(_rect(x, y + 21, width, 17, style, f"{stack.label}, {name}: {said(value)}"))
                x += width
    return _svg(row * len(rows) + 4, title, parts)


def groups(
    rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], *, title: str, said: Callable[[float], str]
) -> Markup:
    """Groups of bars, each group on a scale of its own: (group, ((bar, value, class), ...))."""
    left, right, bar = 4.0, WIDTH - 4.0, 19.0
    label, room = 44.0, 78.0
    parts: list[Markup] = []
    y = 0.0
    for group, bars in rows:
        most = max(value for _, value, _ in bars) or 1.0
        parts.append(_text(left, y + 15, group, "name"))
        y += 21
        for name, value, style in bars:
            width = value / most * (right - left - label - room)
            parts.append(_text(left + label - 6, y + 12, name[:6], "tick", "end"))
            parts.append(_rect(left + label, y + 1, width, bar - 5, style, f"{name}: {said(value)}", 2))
            parts.append(_text(left + label + width + 6, y + 12, said(value), "tick"))
            y += bar
        y += 9
    return _svg(y, title, parts)


def sequence(acts: Sequence[ActRecord], *, title: str, most: int, said: Callable[[float], str]) -> Markup:
    """Acts as arrows between the agents' lifelines, time going down; the first `most` of them."""
    shown = list(acts[:most])
    columns = {name: 44.0 + index * (WIDTH - 88.0) / 3 for index, name in enumerate(LIFELINES)}
    row, y = 27.0, 46.0
    drawn: list[Markup] = []
    round_ = -1
    for act in shown:
        if act.round != round_:
            round_ = act.round
            name = f"round {round_}" if round_ else "before the first round"
            drawn.append(_line(0, y + 6, WIDTH, y + 6, "round"))
            drawn.append(_text(WIDTH, y + 18, name, "tick halo", "end"))
            y += 12
        start, end = columns.get(act.sender, 44.0), columns.get(act.receiver, WIDTH - 44.0)
        y += row
        step = 7 if end > start else -7
        kind = act.kind.lower() if act.kind in KINDS else "inform"
        tip = f"{act.step}. {act.kind} {act.content}: {act.summary}"
        drawn.append(
            Markup(
                '<g class="act {}"><title>{}</title><path d="M{:.0f} {:.0f}H{:.0f}"{}/>'
                '<path class="tip" d="M{:.0f} {:.0f}l{} -4v8z"/>'
            ).format(
                kind,
                tip[:200],
                start,
                y - 6,
                end - step,
                Markup(' class="anchored"') if act.anchored else "",
                end,
                y - 6,
                -step,
            )
        )
        label = f"{act.kind} {act.content}".strip() + f" · {said(act.wire_bytes)}"
        if act.anchored:
            label += f" {act.alias}".rstrip()
            drawn.append(
                Markup('<path class="anchor" d="M{:.0f} {:.0f}l5 -5 5 5 -5 5z"/>').format(start - 5, y - 6)
            )
        # the label starts at the arrow's left end, or ends at its right one where it would not fit
        near = min(start, end) + 8
        fits = near + 5.6 * len(label) < WIDTH
        drawn.append(
            _text(near, y - 11, label, "says") if fits else _text(WIDTH - 2, y - 11, label, "says", "end")
        )
        drawn.append(Markup("</g>"))
    height = y + 12
    if len(acts) > len(shown):
        drawn.append(
            _text(WIDTH / 2, height + 8, f"and {len(acts) - len(shown)} more acts", "tick", "middle")
        )
        height += 18
    lanes: list[Markup] = []
    for name, x in columns.items():
        lanes.append(_line(x, 28, x, height, "lane"))
        lanes.append(_rect(x - 38, 4, 76, 24, "head", round_=6))
        lanes.append(_text(x, 20, name, "headname", "middle"))
    return _svg(height, title, [*lanes, *drawn])
