"""report.html: one self-contained file that a stranger reads in a minute.

Decided here: what is shown, in which order, and how much of it; not which words a figure deserves.
The page opens no connection and runs no script (its own policy forbids both); patches, logs and
names come from models and programs, so all of them pass `shown` and are escaped by the template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from hermes_runtime.evaluate import charts
from hermes_runtime.evaluate.act_record import ActRecord
from hermes_runtime.evaluate.folder import write_atomically
from hermes_runtime.evaluate.results import Result
from hermes_runtime.evaluate.shown import duration, number, percent, points, shown, size
from hermes_runtime.evaluate.summary import (
    ArmSummary,
    Comparison,
    Json,
    RunContext,
    Summary,
    bytes_of,
    tokens_of,
)
from hermes_runtime.evaluate.verdict import (
    ABOUT_ARMS,
    Verdict,
    claim_sentence,
    cost_sentence,
    headline,
    interval_of_difference,
    interval_of_share,
    lede,
    listed,
    probability,
    ratio,
    sealed_sentence,
    verdict,
    verdicts,
)

DETAILED_INSTANCES = 60
"""Instances with a section of their own; where arms disagree come first."""
TEXT_CHARACTERS = 1_200_000
"""Room for excerpts of logs and acts in the whole page, shared evenly."""
PATCH_CHARACTERS = 600_000
"""Room for patches, before their markup."""
DIAGRAM_ROWS = 4_000
"""Arrows in all sequence diagrams together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of a diff, with the class of its colour."""

    style: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchView:
    """A patch and who submitted it."""

    title: str
    tone: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaidView:
    """What an act said, the first time it was said."""

    who: str
    what: str
    summary: str
    points: tuple[str, ...]
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamView:
    """One arm on one instance."""

    arm: str
    tone: str
    word: str
    why: str
    rounds: int
    test_runs: int
    tokens: str
    bytes: str
    seconds: str
    tests: str
    acts: int
    diagram: Markup | None
    said: tuple[SaidView, ...]
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One arm's outcome in the overview."""

    tone: str
    word: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceView:
    """One instance under every arm."""

    name: str
    kind: str
    cells: tuple[Cell, ...]
    is_detailed: bool
    patches: tuple[PatchView, ...] = ()
    streams: tuple[StreamView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """An arm at a glance."""

    arm: str
    about: str
    style: str
    share: str
    solved: str
    interval: str
    verdict: Verdict | None
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Numbers under a chart."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart, what to see in it, its legend and its numbers."""

    id: str
    title: str
    short: str
    """Title in the navigation."""
    said: str
    chart: Markup
    legend: tuple[tuple[str, str], ...]
    """Class of the colour, name."""
    table: Table
    notes: tuple[str, ...] = ()


def excerpt(text: str, room: int) -> str:
    """`text` in at most about `room` characters of the page: its head and, mostly, its tail."""
    text = shown(text).strip("\n")
    length = len(escape(text))
    if length <= room:
        return text
    keep = max(80, int(len(text) * room / length) - 60)
    head, tail = text[: keep // 4], text[-(keep - keep // 4) :]
    if "\n" in head:
        head = head[: head.rindex("\n")]
    if "\n" in tail[:-1]:
        tail = tail[tail.index("\n") + 1 :]
    cut = f"{head}\n… {number(len(text) - len(head) - len(tail))} characters left out …\n{tail}"
    # escapes may crowd in the tail
    return cut if len(escape(cut)) <= 2 * room else excerpt(cut, room // 2)


def render(
    summary: Summary,
    results: Sequence[Result],
    context: RunContext,
    *,
    acts: Mapping[str, Sequence[ActRecord]],
    gold: Mapping[str, str],
) -> str:
    """The page. `acts` by stream and `gold` (patches) by instance may lack some, or be empty."""
    styles = _styles(summary)
    figures = tuple(_figures(summary, styles))
    control = {c.arm: verdict(c) for c in summary.comparisons if c.against_control}
    page = _environment().get_template("report.html.j2")
    return page.render(
        css=Markup(_style_sheet()),
        run=shown(summary.run),
        headline=headline(summary),
        lede=lede(summary) if summary.comparisons else "",
        sealed=sealed_sentence(summary),
        findings=tuple(_findings(summary)),
        unfinished=_unfinished(summary, len(results)),
        subtitle=_subtitle(summary),
        cards=tuple(
            _card(name, arm, styles[name], control.get(name)) for name, arm in summary.everyone.items()
        ),
        figures=figures,
        kinds=_kinds_table(summary),
        failures=_failures_table(summary),
        ran_on=_ran_on(summary, context),
        arms=tuple(summary.everyone),
        instances=tuple(_instances(summary, results, acts, gold)),
        detailed=DETAILED_INSTANCES,
        gold_known=bool(gold),
    )


def write_report(path: Path, html: str) -> None:
    """Put the page at `path`, whole or not at all."""
    write_atomically(path, html.encode("utf-8"))


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("hermes_runtime.evaluate", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _style_sheet() -> str:
    found = resources.files("hermes_runtime.evaluate") / "templates" / "report.css"
    return found.read_text(encoding="utf-8")


def _styles(summary: Summary) -> dict[str, str]:
    """Class of each arm's colour."""
    styles = {name: f"arm{index % 6}" for index, name in enumerate(summary.arms)}
    return styles | ({summary.control_name: "control"} if summary.control_name else {})


def _subtitle(summary: Summary) -> str:
    model = summary.model
    parts = [
        f"{number(summary.instances)} instances",
        f"{len(summary.arms)} {'arm' if len(summary.arms) == 1 else 'arms'}"
        + (" and a control without a model" if summary.control_name else ""),
        f"model {shown(str(model['name']))}" if model.get("name") else "",
        f"on {shown(str(model['device']))}" if model.get("device") else "",
        f"seed {summary.seed}",
    ]
    return " · ".join(part for part in parts if part)


def _unfinished(summary: Summary, done: int) -> str:
    if summary.complete:
        return ""
    wanted = summary.instances * (len(summary.arms) + (summary.control_name is not None))
    return (
        f"This run is not finished: {number(done)} of {number(wanted)} results are in. "
        "The same command goes on where it was."
    )


def _findings(summary: Summary) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Question, answers."""
    control = [said.sentence for said in verdicts([c for c in summary.comparisons if c.against_control])]
    if control:
        yield "Does the model help?", tuple(control)
    between = [c for c in summary.comparisons if not c.against_control]
    if between:
        yield "Does the way of talking change what is solved?", tuple(v.sentence for v in verdicts(between))
    costs = [sentence for c in between if (sentence := cost_sentence(c))]
    costs += [claim_sentence(claim) for claim in summary.claims]
    if costs:
        yield "What does it cost?", tuple(costs)


def _optional(value: float | None, unit: str = "") -> str:
    return "–" if value is None else number(value) + unit


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f} ms" if value < 100 else duration(value / 1000)


def _card(name: str, arm: ArmSummary, style: str, found: Verdict | None) -> Card:
    return Card(
        arm=name,
        about=ABOUT_ARMS.get(name, ""),
        style=style,
        share=percent(arm.pass_at_1.value) if arm.n else "–",
        solved=f"{arm.resolved} of {arm.n} solved",
        interval=f"95 % interval {interval_of_share(arm.pass_at_1)}",
        verdict=found,
        facts=(
            ("tokens per solve", _optional(arm.tokens_per_solve)),
            ("bytes per solve", "–" if arm.bytes_per_solve is None else size(arm.bytes_per_solve)),
            ("test runs per solve", _optional(arm.test_runs_per_solve)),
            ("median time", _milliseconds(arm.e2e_latency_ms_p50)),
        ),
    )


def _figures(summary: Summary, styles: Mapping[str, str]) -> Iterator[Figure]:
    everyone = summary.everyone
    yield _solved(summary, styles)
    if summary.comparisons:
        yield _differences(summary.comparisons)
    solving = {name: arm for name, arm in everyone.items() if arm.resolved}
    if solving:
        yield _tokens(solving)
        yield _bytes(solving)
    if any(found.acts for arm in everyone.values() for found in arm.size_classes):
        yield _size_classes(summary, styles)
    if any(arm.n for arm in everyone.values()):
        yield _time({name: arm for name, arm in everyone.items() if arm.n})


def _solved(summary: Summary, styles: Mapping[str, str]) -> Figure:
    control = summary.control
    title = "Solved instances for each arm, with 95 % intervals"
    return Figure(
        id="solved",
        title="Solved",
        short="Solved",
        said="One patch is submitted for each instance; it counts if all tests pass, the hidden ones too. "
        "The line is the 95 % Wilson interval"
        + (", the dashed one the control without a model." if control else "."),
        chart=charts.proportions(
            [
                charts.Bar(
                    label=name,
                    detail=f"{arm.resolved} of {arm.n} · {percent(arm.pass_at_1.value)}",
                    interval=arm.pass_at_1,
                    style=styles[name],
                )
                for name, arm in summary.everyone.items()
            ],
            title=title,
            mark=("control", control.pass_at_1.value) if control and control.n else None,
        ),
        legend=(),
        table=Table(
            caption=title,
            head=(
                "arm",
                "solved",
                "of",
                "Pass@1",
                "95 % interval",
                "plausible",
                "submitted",
                "rounds",
                "test runs",
            ),
            rows=tuple(
                (
                    name,
                    number(arm.resolved),
                    number(arm.n),
                    percent(arm.pass_at_1.value),
                    interval_of_share(arm.pass_at_1),
                    number(arm.plausible),
                    number(arm.submitted),
                    "–" if arm.rounds_mean is None else f"{arm.rounds_mean:.1f}",
                    number(arm.test_runs),
                )
                for name, arm in summary.everyone.items()
            ),
        ),
        notes=("Plausible: the patch passed every test that the agents could see.",),
    )


def _differences(comparisons: Sequence[Comparison]) -> Figure:
    title = "Paired differences in solved instances, with 95 % intervals"

    def needed(value: int | None) -> str:
        return "–" if value is None else number(value)

    return Figure(
        id="differences",
        title="Differences",
        short="Differences",
        said="The same instances under two arms; positive means the first solved more. An interval that "
        "crosses zero is no finding. Newcombe's paired intervals; exact McNemar, adjusted by Holm.",
        chart=charts.forest(
            [
                charts.Point(
                    label=f"{c.arm} − {'control' if c.against_control else c.against}",
                    detail=f"{points(c.difference.value)}  "
                    f"[{points(c.difference.low)}, {points(c.difference.high)}]",
                    interval=c.difference,
                    tone=verdict(c).tone,
                )
                for c in comparisons
            ],
            title=title,
        ),
        legend=(("better", "solves more"), ("worse", "solves fewer"), ("unknown", "cannot be told")),
        table=Table(
            caption=title,
            head=(
                "pair", "only first", "only second", "difference", "95 % interval", "p (McNemar)", "p (Holm)",
                "power at 5 points", "n for 5 points", "n for this difference", "tokens", "bytes", "time",
            ),
            rows=tuple(
                (
                    f"{c.arm} − {c.against}",
                    number(c.arm_only),
                    number(c.against_only),
                    f"{points(c.difference.value)} points",
                    interval_of_difference(c.difference),
                    probability(c.p_value).removeprefix("p = ").removeprefix("p "),
                    probability(c.p_value_holm).removeprefix("p = ").removeprefix("p "),
                    percent(c.power_planned),
                    needed(c.pairs_needed_planned),
                    needed(c.pairs_needed_observed),
                    *(
                        "–" if found is None else ratio(found)
                        for found in (c.tokens_ratio, c.bytes_ratio, c.latency_ratio)
                    ),
                )
                for c in comparisons
            ),
        ),
        notes=(
            "n is the number of instances for 80 % power at the discordance observed (10 % where none was), "
            "with the 5 % level shared out over all comparisons. "
            "Ratios of tokens, bytes and time come with paired bootstrap intervals (BCa).",
        ),
    )  # fmt: skip


def _tokens(arms: Mapping[str, ArmSummary]) -> Figure:
    title = "Model tokens per solved instance"
    kinds = (("new", "t-new"), ("cached", "t-cached"), ("reread", "t-reread"), ("decoded", "t-decoded"))
    words = {
        "new": "prompt, new",
        "cached": "prompt, cached",
        "reread": "prompt, re-read",
        "decoded": "decoded",
    }
    return Figure(
        id="tokens",
        title="Tokens per solve",
        short="Tokens",
        said="All tokens of an arm, those of failed instances too, for each instance solved. Cached prompt "
        "tokens were not computed again; re-read ones were computed a second time.",
        chart=charts.stacked(
            [
                charts.Stack(
                    label=name,
                    detail=number((arm.tokens.prompt + arm.tokens.decoded) / arm.resolved),
                    parts=tuple(
                        (words[kind], getattr(arm.tokens, kind) / arm.resolved, style)
                        for kind, style in kinds
                    ),
                )
                for name, arm in arms.items()
            ],
            title=title,
            said=number,
        ),
        legend=tuple((style, words[kind]) for kind, style in kinds),
        table=Table(
            caption="Model tokens, all instances",
            head=(
                "arm",
                *words.values(),
                "prompt in all",
                "for anchors",
                "per solve",
                "saving, predicted / real",
            ),
            rows=tuple(
                (
                    name,
                    *(number(getattr(arm.tokens, kind)) for kind in words),
                    number(arm.tokens.prompt),
                    number(arm.tokens.deref),
                    number((arm.tokens.prompt + arm.tokens.decoded) / arm.resolved),
                    f"{number(arm.predicted_saving_tokens)} / {number(arm.realised_saving_tokens)}"
                    if arm.anchored_acts
                    else "–",
                )
                for name, arm in arms.items()
            ),
        ),
    )


def _bytes(arms: Mapping[str, ArmSummary]) -> Figure:
    title = "Bytes between agents per solved instance, by what they carry"
    kinds = (
        ("act", "b-act", "acts"), ("envelope", "b-envelope", "envelopes"),
        ("store", "b-store", "store, put + get"), ("accounting", "b-accounting", "accounting"),
        ("log", "b-log", "event log"),
    )  # fmt: skip
    return Figure(
        id="bytes",
        title="Bytes per solve",
        short="Bytes",
        said="Acts, their envelopes and the store traffic they cause are what talking costs; accounting and "
        "the event log (pale) are what measuring it costs, and are not in the figures per solve.",
        chart=charts.stacked(
            [
                charts.Stack(
                    label=name,
                    detail=f"{size(arm.bytes.talking / arm.resolved)} "
                    f"+ {size(arm.bytes.measuring / arm.resolved)}",
                    parts=tuple(
                        (word, getattr(arm.bytes, kind) / arm.resolved, style) for kind, style, word in kinds
                    ),
                )
                for name, arm in arms.items()
            ],
            title=title,
            said=size,
        ),
        legend=tuple((style, word) for _, style, word in kinds),
        table=Table(
            caption="Bytes, all instances",
            head=("arm", *(word for _, _, word in kinds), "talking per solve", "acts with zstd",
                  "with the model", "anchored acts"),
            rows=tuple(
                (
                    name,
                    *(number(getattr(arm.bytes, kind)) for kind, _, _ in kinds),
                    size(arm.bytes.talking / arm.resolved),
                    number(arm.bytes.act_zstd),
                    number(arm.bytes.model),
                    f"{number(arm.anchored_acts)} of {number(arm.acts)}",
                )
                for name, arm in arms.items()
            ),
        ),
    )  # fmt: skip


def _size_classes(summary: Summary, styles: Mapping[str, str]) -> Figure:
    title = "Bytes per act by size of its payload, store traffic included"
    arms = {name: arm for name, arm in summary.arms.items() if arm.acts}
    index = {name: {c.name: c for c in arm.size_classes} for name, arm in arms.items()}
    names = [c.name for c in next(iter(summary.everyone.values())).size_classes]
    seen = [name for name in names if any(index[arm][name].acts for arm in arms)]
    holds = {claim.claim: {c.name: c.holds for c in claim.classes} for claim in summary.claims}
    word = {True: "holds", False: "does not hold", None: "–"}
    return Figure(
        id="classes",
        title="Bytes by size of payload",
        short="Sizes",
        said="Bytes on the wire and to and from the store for each act, each class on a scale of its own. "
        + " ".join(claim_sentence(claim) for claim in summary.claims),
        chart=charts.groups(
            [
                (
                    name.replace("<=", "≤"),
                    [
                        (arm, index[arm][name].bytes / index[arm][name].acts, styles[arm])
                        for arm in arms
                        if index[arm][name].acts
                    ],
                )
                for name in seen
            ],
            title=title,
            said=size,
        ),
        legend=tuple((styles[arm], arm) for arm in arms),
        table=Table(
            caption=title,
            head=(
                "payload",
                *(f"{arm}: acts" for arm in arms),
                *(f"{arm}: bytes" for arm in arms),
                *(claim.replace("<=", "≤") for claim in holds),
            ),
            rows=tuple(
                (
                    name.replace("<=", "≤"),
                    *(number(index[arm][name].acts) for arm in arms),
                    *(number(index[arm][name].bytes) for arm in arms),
                    *(word[found[name]] for found in holds.values()),
                )
                for name in seen
            ),
        ),
        notes=(
            "Whether a claim holds is judged only on payloads that both arms sent on the same instance, with "
            "a payload's store traffic spread over its sends; so a longer conversation is not taken for a "
            "worse encoding.",
        ),
    )


def _time(arms: Mapping[str, ArmSummary]) -> Figure:
    title = "Time per instance, by where it went"
    kinds = (("model", "s-model"), ("tests", "s-tests"), ("messages", "s-messages"), ("rest", "s-rest"))
    return Figure(
        id="time",
        title="Time per instance",
        short="Time",
        said="Mean seconds for each instance tried. Messages: encoding, sockets, store and log, which is all "
        "that a way of talking can change by itself.",
        chart=charts.stacked(
            [
                charts.Stack(
                    label=name,
                    detail=duration(arm.seconds.total / arm.n),
                    parts=tuple(
                        (kind, max(0.0, getattr(arm.seconds, kind)) / arm.n, style) for kind, style in kinds
                    ),
                )
                for name, arm in arms.items()
            ],
            title=title,
            said=duration,
        ),
        legend=tuple((style, kind) for kind, style in kinds),
        table=Table(
            caption="Time, all instances",
            head=("arm", "in all", *(kind for kind, _ in kinds), "grading, after it", "p50", "p95",
                  "message path p95", "anchor read p95"),
            rows=tuple(
                (
                    name,
                    duration(arm.seconds.total),
                    *(duration(getattr(arm.seconds, kind)) for kind, _ in kinds),
                    duration(arm.seconds.grading),
                    _milliseconds(arm.e2e_latency_ms_p50),
                    _milliseconds(arm.e2e_latency_ms_p95),
                    _milliseconds(arm.message_path_ms_p95),
                    _milliseconds(arm.mcp_deref_ms_p95),
                )
                for name, arm in arms.items()
            ),
        ),
    )  # fmt: skip


def _kinds_table(summary: Summary) -> Table | None:
    kinds = sorted({kind for arm in summary.everyone.values() for kind in arm.bug_kinds})
    if not kinds or kinds == ["unknown"]:
        return None

    def solved(arm: ArmSummary, kind: str) -> str:
        found = arm.bug_kinds.get(kind)
        return f"{found.resolved} of {found.n}" if found else "–"

    return Table(
        caption="Solved by kind of defect",
        head=("kind", *summary.everyone),
        rows=tuple(
            (shown(kind), *(solved(arm, kind) for arm in summary.everyone.values())) for kind in kinds
        ),
    )


def _failures_table(summary: Summary) -> Table | None:
    causes = sorted({cause for arm in summary.everyone.values() for cause in arm.failures})
    if not causes:
        return None
    return Table(
        caption="Instances without a patch, by whose failure it was",
        head=("cause", *summary.everyone),
        rows=tuple(
            (cause, *(number(arm.failures.get(cause, 0)) for arm in summary.everyone.values()))
            for cause in causes
        ),
    )


def _flat(value: Json, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _flat(below, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if all(not isinstance(item, Mapping) for item in value):
            yield path, ", ".join(str(item) for item in value) or "none"
        else:
            for index, item in enumerate(value):
                yield from _flat(item, f"{path}[{index}]")
    elif value is not None and value != "":
        yield path, {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _ran_on(summary: Summary, context: RunContext) -> tuple[Table, ...]:
    sections: tuple[tuple[str, Json], ...] = (
        ("Model", summary.model),
        ("Seal", summary.hermetic),
        ("Manifest", context.manifest),
    )
    return tuple(
        Table(
            caption=name,
            head=(),
            rows=tuple((shown(key), excerpt(value, 400)) for key, value in list(_flat(about))[:80]),
        )
        for name, about in sections
        if about
    )


def _cell(result: Result | None) -> Cell:
    match result:
        case None:
            return Cell(tone="none", word="not tried")
        case Result(grade=grade) if grade.resolved:
            return Cell(tone="solved", word="solved")
        case Result(plausible=True):
            return Cell(tone="plausible", word="passes what it saw, fails hidden tests")
        case Result(patch=""):
            return Cell(tone="nopatch", word="no patch")
        case _:
            return Cell(tone="wrong", word="wrong patch")


def _instances(
    summary: Summary,
    results: Sequence[Result],
    acts: Mapping[str, Sequence[ActRecord]],
    gold: Mapping[str, str],
) -> Iterator[InstanceView]:
    arms = tuple(summary.everyone)
    found: dict[str, dict[str, Result]] = {}
    for result in sorted(results, key=lambda r: r.instance_id):
        found.setdefault(result.instance_id, {})[result.arm] = result
    detailed = set(sorted(found, key=lambda name: _interest(found[name]))[:DETAILED_INSTANCES])
    streams = max(1, sum(len(found[name]) for name in detailed))
    for name, by_arm in found.items():
        first = next(iter(by_arm.values()))
        is_detailed = name in detailed
        yield InstanceView(
            name=name,
            kind=shown(first.bug_kind),
            cells=tuple(_cell(by_arm.get(arm)) for arm in arms),
            is_detailed=is_detailed,
            patches=tuple(
                _patches(by_arm, arms, gold.get(name, ""), PATCH_CHARACTERS // (streams + len(detailed)))
            )
            if is_detailed
            else (),
            streams=tuple(
                _stream(by_arm[arm], acts.get(by_arm[arm].stream, ()), streams)
                for arm in arms
                if arm in by_arm
            )
            if is_detailed
            else (),
        )


def _interest(by_arm: Mapping[str, Result]) -> int:
    """0 where arms disagree, 1 where none solved it, 2 where all did."""
    solved = {result.grade.resolved for result in by_arm.values()}
    return 0 if len(solved) > 1 else 2 if True in solved else 1


def _patches(by_arm: Mapping[str, Result], arms: Sequence[str], gold: str, room: int) -> Iterator[PatchView]:
    """The gold patch, then each different patch once."""
    if gold:
        yield PatchView(title="gold patch", tone="gold", lines=diff_lines(gold, room))
    by_patch: dict[str, list[str]] = {}
    for arm in arms:
        if arm in by_arm and by_arm[arm].patch:
            by_patch.setdefault(by_arm[arm].patch, []).append(arm)
    for patch, names in by_patch.items():
        cell = _cell(by_arm[names[0]])
        same = gold and _changes(patch) == _changes(gold)
        yield PatchView(
            title=f"{listed(names)}: {'the gold patch' if same else cell.word}",
            tone=cell.tone,
            lines=diff_lines(patch, room) if not same else diff_lines(patch, min(room, 2_000)),
        )


def _changes(patch: str) -> list[str]:
    """What a patch takes out and puts in, without headers and context."""
    return [
        line.rstrip()
        for line in patch.splitlines()
        if line[:1] in "+-" and line[:3] not in ("+++", "---") and line
    ]


def diff_lines(patch: str, room: int) -> tuple[Line, ...]:
    """A unified diff, each line with the class of its colour."""
    lines: list[Line] = []
    in_hunk = False
    for text in excerpt(patch, room).split("\n"):
        if text.startswith("@@"):
            in_hunk, style = True, "hunk"
        elif text.startswith(("diff ", "index ")) or (not in_hunk and text.startswith(("--- ", "+++ "))):
            in_hunk, style = False, "file"
        elif text.startswith("--- ") and in_hunk and text[4:6] in ("a/", "/d"):
            in_hunk, style = False, "file"  # the next file's header
        else:
            style = {"+": "add", "-": "del", "…": "cut"}.get(text[:1], "same")
        lines.append(Line(style=style, text=text))
    return tuple(lines)


def _stream(result: Result, acts: Sequence[ActRecord], streams: int) -> StreamView:
    cell = _cell(result)
    tokens, total = tokens_of(result), bytes_of(result)
    room = max(600, TEXT_CHARACTERS // streams)
    ordered = sorted(acts, key=lambda act: act.step)
    f2p, p2p = result.grade.fail_to_pass, result.grade.pass_to_pass
    return StreamView(
        arm=result.arm,
        tone=cell.tone,
        word=cell.word,
        why=excerpt(result.failure, 600) + (f" ({result.cause})" if result.failure and result.cause else ""),
        rounds=result.rounds,
        test_runs=result.test_runs,
        tokens=number(tokens.prompt + tokens.decoded),
        bytes=size(total.talking),
        seconds=duration(result.times.total),
        tests=f"{sum(f2p.values())} of {len(f2p)} failing tests fixed, {sum(p2p.values())} of {len(p2p)} kept"
        if f2p
        else "not graded",
        acts=len(ordered),
        diagram=charts.sequence(
            ordered,
            title=f"Acts of {result.instance_id} under {result.arm}",
            most=max(8, DIAGRAM_ROWS // streams),
            said=size,
        )
        if ordered
        else None,
        said=tuple(_said(ordered, room // 2)),
        log=excerpt(result.grade.log, room // 2) if result.grade.log else "",
    )


def _said(acts: Sequence[ActRecord], room: int) -> Iterator[SaidView]:
    """What was said, each thing once: context is sent again every turn."""
    told: set[tuple[str, str, tuple[str, ...], str]] = set()
    for act in acts:
        key = (act.content, act.summary, act.points, act.body)
        if key in told or (act.content == "" and not act.summary):
            continue
        told.add(key)
        view = SaidView(
            who=f"{act.sender} → {act.receiver}",
            what=f"{act.kind} {act.content}".strip() + (f" {shown(act.alias)}" if act.anchored else ""),
            summary=excerpt(act.summary, 300),
            points=tuple(excerpt(point, 200) for point in act.points) if room > 0 else (),
            body=excerpt(act.body, min(1_200, room)) if act.body and room > 200 else "",
        )
        room -= len(escape(view.body)) + sum(len(escape(point)) for point in view.points) + len(view.summary)
        yield view
        if room < -2_000:
            return
