"""What a run says: summary.json, predictions and tables, as views of its results.

`summarize` is pure; `write` puts the files into the run's folder, each whole or not at all. Costs
are those of every instance tried, solved or not, so "per solve" bills the failures to the solves.
Which words a figure deserves is decided by the report.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from hermes_runtime.errors import BadInput
from hermes_runtime.evaluate.folder import write_atomically
from hermes_runtime.evaluate.results import LedgerRow, Result
from hermes_runtime.evaluate.statistics import (
    ALPHA,
    Interval,
    Pairs,
    cost_ratio,
    holm,
    mcnemar,
    mcnemar_power,
    newcombe,
    pairs_needed,
    percentile,
    wilson,
)

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

SCHEMA_VERSION = 1
SIZE_CLASSES: tuple[tuple[str, float], ...] = (
    ("<= 256 B", 256),
    ("<= 1 KiB", 1 << 10),
    ("<= 4 KiB", 4 << 10),
    ("<= 16 KiB", 16 << 10),
    ("<= 64 KiB", 64 << 10),
    ("<= 256 KiB", 256 << 10),
    ("> 256 KiB", math.inf),
)
"""Classes of payload size: name and largest size in bytes."""
ASSUMED_DISCORDANCE = 0.1
"""Share of discordant pairs to plan with where none was observed."""
PLANNED_DIFFERENCE = 0.05
"""Difference in Pass@1 that the power of every comparison is given for, besides the observed one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a summary needs besides the results."""

    run: str
    arms: tuple[str, ...]
    """Arms compared, in order; the control is none of them."""
    control: str | None = None
    """Name of the control's arm, "enumerate"; None if the run has none."""
    instances: int
    """Instances that the run was to try."""
    model: Mapping[str, Json]
    """What was really loaded; `name` and `digest` are shown first."""
    hermetic: Mapping[str, Json]
    """Evidence of the seal."""
    manifest: Mapping[str, Json] = field(default_factory=dict)
    """What ran on what: shown in the report, not part of summary.json."""
    model_name: str = "hermes"
    """`model_name_or_path` of the predictions, before the arm's name."""
    seed: int = 42
    """Seed of the run, and of the bootstrap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens as the model counted them. new, cached and reread are disjoint; deref is part of them."""

    new: int
    cached: int
    reread: int
    decoded: int
    deref: int

    @property
    def prompt(self) -> int:
        """All prompt tokens, from a cache or not."""
        return self.new + self.cached + self.reread


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """Bytes by what they carry. act, envelope and store (put + get) are what talking costs;
    accounting and log are what measuring it costs; model is the agents' traffic with the model."""

    act: int
    envelope: int
    store: int
    accounting: int
    log: int
    model: int
    act_zstd: int
    """Acts alone, each by itself under zstd level 3."""

    @property
    def talking(self) -> int:
        """Acts, their envelopes, and the store traffic they cause."""
        return self.act + self.envelope + self.store

    @property
    def measuring(self) -> int:
        """Expense reports and appends to the event log."""
        return self.accounting + self.log


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeClass:
    """Acts whose payload falls into one class of size, with the store traffic of those payloads."""

    name: str
    acts: int
    anchored: int
    payload_bytes: int
    wire_bytes: int
    store_bytes: int

    @property
    def bytes(self) -> int:
        """Wire and store together."""
        return self.wire_bytes + self.store_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Where the time went, summed over instances; grading is after the end of total."""

    total: float
    model: float
    tests: float
    messages: float
    rest: float
    grading: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Solved instances of one kind of defect."""

    n: int
    resolved: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """One arm over all its instances. None where there is nothing to say."""

    n: int
    resolved: int
    pass_at_1: Interval
    plausible: int
    """Submitted patches that passed every test the agents could see."""
    submitted: int
    bytes_per_solve: float | None
    """Talking: acts, envelopes, store (put + get)."""
    measuring_bytes_per_solve: float | None
    tokens_prefill: int
    """Prompt tokens: new, cached and re-read."""
    tokens_decode: int
    tokens_per_solve: float | None
    """Prompt and decoded tokens."""
    e2e_latency_ms_p50: float | None
    e2e_latency_ms_p95: float | None
    message_path_ms_p95: float | None
    mcp_deref_ms_p95: float | None
    sae_accept_rate: float | None = None
    rollback_ms_p95: float | None = None
    test_runs: int
    test_runs_per_solve: float | None
    rounds_mean: float | None
    tokens: Tokens
    bytes: Bytes
    anchored_acts: int
    acts: int
    predicted_saving_tokens: int
    realised_saving_tokens: int
    predicted_saving_bytes: int
    seconds: Seconds
    size_classes: tuple[SizeClass, ...]
    bug_kinds: Mapping[str, Kind]
    failures: Mapping[str, int]
    """Instances without a patch, by whose failure it was."""
    attempts_extra: int
    """Attempts beyond the first: crashes that were resumed. Only the last attempt is billed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two arms on the instances that both have tried. Differences are `arm` less `against`."""

    arm: str
    against: str
    against_control: bool
    n: int
    both: int
    arm_only: int
    """Solved by `arm` alone: McNemar's b."""
    against_only: int
    """Solved by `against` alone: McNemar's c."""
    neither: int
    difference: Interval
    """Newcombe's paired interval, method 10."""
    p_value: float
    """Exact McNemar, two-sided."""
    p_value_holm: float
    """Adjusted by Holm over all comparisons of the summary."""
    discordance: float
    """Share of discordant pairs that the power is computed with."""
    discordance_assumed: bool
    """True where no discordant pair was observed."""
    alpha: float
    """Level of the power below: 5 % shared out over all comparisons of the summary, as Holm begins."""
    power_observed: float | None
    """Power at this n, were the observed difference the true one; None where it is zero."""
    pairs_needed_observed: int | None
    """Instances for 80 % power at the observed difference; None where it is zero or a million is short."""
    power_planned: float
    """Power at this n to see a true difference of 5 points."""
    pairs_needed_planned: int | None
    tokens_ratio: Interval | None
    """Tokens of `arm` over tokens of `against`, with a paired bootstrap interval."""
    bytes_ratio: Interval | None
    latency_ratio: Interval | None

    @property
    def is_clear(self) -> bool:
        """The interval leaves zero out, and the adjusted p is below 5 %."""
        return self.p_value_holm < ALPHA and not self.difference.low <= 0 <= self.difference.high


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassComparison:
    """Bytes of two arms for the same payloads of one class of size.

    Only payloads that both arms sent on the same instance count, so that a different conversation
    is not taken for a different encoding. A payload's store traffic is spread over its sends.
    """

    name: str
    payloads: int
    """Sends compared."""
    first_bytes: float
    second_bytes: float
    holds: bool | None
    """Whether the first arm's bytes are as claimed; None where nothing can be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A statement on bytes, class by class."""

    claim: str
    """For example "PM <= C"."""
    first: str
    second: str
    holds: bool | None
    """In every class that can be compared; None if there is none."""
    classes: tuple[ClassComparison, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What summary.json says."""

    schema_version: int
    run: str
    seed: int
    instances: int
    complete: bool
    """Every arm and the control has a result for every instance."""
    arms: Mapping[str, ArmSummary]
    control_name: str | None
    control: ArmSummary | None
    comparisons: tuple[Comparison, ...]
    claims: tuple[Claim, ...]
    hermetic: Mapping[str, Json]
    model: Mapping[str, Json]

    @property
    def everyone(self) -> dict[str, ArmSummary]:
        """The arms in order, then the control."""
        control = {self.control_name: self.control} if self.control_name and self.control else {}
        return {**self.arms, **control}


def summarize(results: Sequence[Result], context: RunContext) -> Summary:
    """The summary of `results`, which may be of a run that is not finished.

    Raises BadInput where two results are of the same instance and arm, or of an arm not in `context`.
    """
    by_arm = _by_arm(results, context)
    arms = {arm: _arm(list(by_arm[arm].values())) for arm in context.arms}
    control = _arm(list(by_arm[context.control].values())) if context.control else None
    return Summary(
        schema_version=SCHEMA_VERSION,
        run=context.run,
        seed=context.seed,
        instances=context.instances,
        complete=all(len(found) >= context.instances for found in by_arm.values()),
        arms=arms,
        control_name=context.control,
        control=control,
        comparisons=_comparisons(by_arm, context),
        claims=tuple(
            _claim(claim, first, second, by_arm, strict=strict)
            for claim, first, second, strict in (("PM <= C", "PM", "C", False), ("C < A", "C", "A", True))
            if first in by_arm and second in by_arm
        ),
        hermetic=context.hermetic,
        model=context.model,
    )


def size_class(payload_bytes: int) -> str:
    """Name of the class of a payload."""
    return next(name for name, largest in SIZE_CLASSES if payload_bytes <= largest)


def tokens_of(result: Result) -> Tokens:
    """Tokens of one instance and arm."""
    rows = result.ledger
    return Tokens(
        new=sum(row.prompt_tokens_new for row in rows),
        cached=sum(row.prompt_tokens_cached for row in rows),
        reread=sum(row.prompt_tokens_reread for row in rows),
        decoded=sum(row.decoded_tokens for row in rows),
        deref=sum(row.deref_tokens for row in rows),
    )


def bytes_of(result: Result) -> Bytes:
    """Bytes of one instance and arm, by what they carry."""
    sums: Counter[str] = Counter()
    for row in result.ledger:
        sums[row.entry] += row.wire_bytes + row.store_bytes + row.model_bytes
    return Bytes(
        act=sums["act"],
        envelope=sums["envelope"],
        accounting=sums["accounting"],
        store=sums["store"],
        log=sums["log"],
        model=sums["model"],
        act_zstd=sum(row.wire_bytes_zstd for row in result.ledger if row.entry == "act"),
    )


def _by_arm(results: Iterable[Result], context: RunContext) -> dict[str, dict[str, Result]]:
    """arm -> instance -> result, arms in the context's order with the control last."""
    names = [*context.arms, *([context.control] if context.control else [])]
    found: dict[str, dict[str, Result]] = {name: {} for name in names}
    for result in sorted(results, key=lambda r: r.instance_id):
        if result.arm not in found:
            raise BadInput(
                f"result of {result.instance_id} under arm {result.arm!r}, which is not in run "
                f"{context.run}: {', '.join(names)}; was the run's folder used for another document?"
            )
        if result.instance_id in found[result.arm]:
            raise BadInput(
                f"two results of {result.instance_id} under arm {result.arm}; the store keeps one of each"
            )
        found[result.arm][result.instance_id] = result
    return found


def _per(total: float, solves: int) -> float | None:
    return total / solves if solves else None


def _arm(results: Sequence[Result]) -> ArmSummary:
    resolved = sum(result.grade.resolved for result in results)
    each_tokens = [tokens_of(result) for result in results]
    each_bytes = [bytes_of(result) for result in results]
    tokens = Tokens(
        **{f.name: sum(getattr(t, f.name) for t in each_tokens) for f in dataclasses.fields(Tokens)}
    )
    total = Bytes(**{f.name: sum(getattr(b, f.name) for b in each_bytes) for f in dataclasses.fields(Bytes)})
    rows = [row for result in results for row in result.ledger]
    acts = [row for row in rows if row.entry == "act"]
    test_runs = sum(result.test_runs for result in results)
    latencies = [1000 * result.times.total for result in results]
    kinds: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        kinds[result.bug_kind or "unknown"].append(result.grade.resolved)
    return ArmSummary(
        n=len(results),
        resolved=resolved,
        pass_at_1=wilson(resolved, len(results)),
        plausible=sum(result.plausible for result in results),
        submitted=sum(bool(result.patch) for result in results),
        bytes_per_solve=_per(total.talking, resolved),
        measuring_bytes_per_solve=_per(total.measuring, resolved),
        tokens_prefill=tokens.prompt,
        tokens_decode=tokens.decoded,
        tokens_per_solve=_per(tokens.prompt + tokens.decoded, resolved),
        e2e_latency_ms_p50=percentile(latencies, 50),
        e2e_latency_ms_p95=percentile(latencies, 95),
        message_path_ms_p95=percentile([ms for r in results for ms in r.message_latencies_ms], 95),
        mcp_deref_ms_p95=percentile([ms for r in results for ms in r.deref_latencies_ms], 95),
        test_runs=test_runs,
        test_runs_per_solve=_per(test_runs, resolved),
        rounds_mean=_per(sum(result.rounds for result in results), len(results)),
        tokens=tokens,
        bytes=total,
        anchored_acts=sum(row.anchored for row in acts),
        acts=len(acts),
        predicted_saving_tokens=sum(row.predicted_saving_tokens for row in rows),
        realised_saving_tokens=sum(row.realised_saving_tokens for row in rows),
        predicted_saving_bytes=sum(row.predicted_saving_bytes for row in rows),
        seconds=Seconds(
            **{f.name: sum(getattr(r.times, f.name) for r in results) for f in dataclasses.fields(Seconds)}
        ),
        size_classes=_size_classes(results),
        bug_kinds={name: Kind(n=len(found), resolved=sum(found)) for name, found in sorted(kinds.items())},
        failures=dict(sorted(Counter(r.cause or "none named" for r in results if r.failure).items())),
        attempts_extra=sum(result.attempt - 1 for result in results),
    )


@dataclass(slots=True)
class _Sent:
    """One payload on one instance under one arm."""

    payload_bytes: int
    sends: int = 0
    anchored: int = 0
    wire_bytes: int = 0
    store_bytes: int = 0


def _sent(result: Result) -> dict[str, _Sent]:
    """Payloads by digest; an act without a digest is told by who sent what, when."""

    def key(row: LedgerRow) -> str:
        return (
            row.payload_sha256 or f"{row.round}/{row.agent}/{row.receiver}/{row.content}/{row.payload_bytes}"
        )

    found: dict[str, _Sent] = {}
    for row in result.ledger:
        if row.entry == "act":
            sent = found.setdefault(key(row), _Sent(payload_bytes=row.payload_bytes))
            sent.sends += 1
            sent.anchored += row.anchored
            sent.wire_bytes += row.wire_bytes
            sent.store_bytes += row.store_bytes
    for row in result.ledger:
        # a blob that no act carried belongs to no payload; it still counts in the arm's bytes
        if row.entry == "store" and row.payload_sha256 in found:
            found[row.payload_sha256].store_bytes += row.store_bytes + row.wire_bytes
    return found


def _size_classes(results: Sequence[Result]) -> tuple[SizeClass, ...]:
    sums: dict[str, Counter[str]] = {name: Counter() for name, _ in SIZE_CLASSES}
    for result in results:
        for sent in _sent(result).values():
            sums[size_class(sent.payload_bytes)].update(
                acts=sent.sends,
                anchored=sent.anchored,
                payload_bytes=sent.sends * sent.payload_bytes,
                wire_bytes=sent.wire_bytes,
                store_bytes=sent.store_bytes,
            )
    return tuple(
        SizeClass(
            name=name,
            acts=found["acts"],
            anchored=found["anchored"],
            payload_bytes=found["payload_bytes"],
            wire_bytes=found["wire_bytes"],
            store_bytes=found["store_bytes"],
        )
        for name, found in sums.items()
    )


def _claim(
    claim: str, first: str, second: str, by_arm: Mapping[str, Mapping[str, Result]], *, strict: bool
) -> Claim:
    sums: dict[str, list[float]] = {name: [0.0, 0.0, 0.0] for name, _ in SIZE_CLASSES}
    for instance in by_arm[first].keys() & by_arm[second].keys():
        left, right = _sent(by_arm[first][instance]), _sent(by_arm[second][instance])
        for digest in sorted(left.keys() & right.keys()):
            mine, theirs = left[digest], right[digest]
            sends = min(mine.sends, theirs.sends)
            found = sums[size_class(mine.payload_bytes)]
            found[0] += sends
            found[1] += sends * (mine.wire_bytes + mine.store_bytes) / mine.sends
            found[2] += sends * (theirs.wire_bytes + theirs.store_bytes) / theirs.sends
    classes = tuple(
        ClassComparison(
            name=name,
            payloads=int(sends),
            first_bytes=one,
            second_bytes=two,
            # sums of the same whole numbers in another order may differ in the last bit
            holds=None if not sends else (one < two * (1 - 1e-9) if strict else one <= two * (1 + 1e-9)),
        )
        for name, (sends, one, two) in sums.items()
    )
    said = [found.holds for found in classes if found.holds is not None]
    return Claim(claim=claim, first=first, second=second, holds=all(said) if said else None, classes=classes)


def _comparisons(by_arm: Mapping[str, Mapping[str, Result]], context: RunContext) -> tuple[Comparison, ...]:
    """Every arm against the control, then every later arm against every earlier one."""
    control = context.control
    wanted = [(arm, control) for arm in context.arms] if control else []
    wanted += [(second, first) for first, second in combinations(context.arms, 2)]
    wanted = [(arm, against) for arm, against in wanted if by_arm[arm].keys() & by_arm[against].keys()]
    found = [
        _comparison(
            arm,
            against,
            by_arm,
            is_control=against == control,
            seed=context.seed,
            alpha=ALPHA / len(wanted),
        )
        for arm, against in wanted
    ]
    adjusted = holm([comparison.p_value for comparison in found])
    return tuple(
        dataclasses.replace(comparison, p_value_holm=p) for comparison, p in zip(found, adjusted, strict=True)
    )


def _comparison(
    arm: str,
    against: str,
    by_arm: Mapping[str, Mapping[str, Result]],
    *,
    is_control: bool,
    seed: int,
    alpha: float,
) -> Comparison:
    instances = sorted(by_arm[arm].keys() & by_arm[against].keys())
    mine = [by_arm[arm][instance] for instance in instances]
    theirs = [by_arm[against][instance] for instance in instances]
    outcomes = Counter((m.grade.resolved, t.grade.resolved) for m, t in zip(mine, theirs, strict=True))
    pairs = Pairs(
        both=outcomes[True, True],
        first_only=outcomes[True, False],
        second_only=outcomes[False, True],
        neither=outcomes[False, False],
    )
    observed = pairs.discordant / pairs.n
    discordance = observed or ASSUMED_DISCORDANCE
    difference = (pairs.first_only - pairs.second_only) / pairs.n
    planned_discordance = max(discordance, PLANNED_DIFFERENCE)
    p_value = mcnemar(pairs)

    def tokens(results: Sequence[Result]) -> list[float]:
        return [float(found.prompt + found.decoded) for found in map(tokens_of, results)]

    return Comparison(
        arm=arm,
        against=against,
        against_control=is_control,
        n=pairs.n,
        both=pairs.both,
        arm_only=pairs.first_only,
        against_only=pairs.second_only,
        neither=pairs.neither,
        difference=newcombe(pairs),
        p_value=p_value,
        p_value_holm=p_value,
        discordance=discordance,
        discordance_assumed=observed == 0,
        alpha=alpha,
        power_observed=(
            mcnemar_power(pairs.n, discordance=discordance, difference=difference, alpha=alpha)
            if difference
            else None
        ),
        pairs_needed_observed=pairs_needed(discordance=discordance, difference=difference, alpha=alpha),
        power_planned=mcnemar_power(
            pairs.n, discordance=planned_discordance, difference=PLANNED_DIFFERENCE, alpha=alpha
        ),
        pairs_needed_planned=pairs_needed(
            discordance=planned_discordance, difference=PLANNED_DIFFERENCE, alpha=alpha
        ),
        tokens_ratio=cost_ratio(tokens(mine), tokens(theirs), seed=seed),
        bytes_ratio=cost_ratio(
            [float(bytes_of(r).talking) for r in mine],
            [float(bytes_of(r).talking) for r in theirs],
            seed=seed,
        ),
        latency_ratio=cost_ratio([r.times.total for r in mine], [r.times.total for r in theirs], seed=seed),
    )


def to_json(summary: Summary) -> str:
    """summary.json: keys in the order of the fields; an infinite bound is null."""
    data = dataclasses.asdict(summary)
    for found in (*data["arms"].values(), *([data["control"]] if data["control"] else [])):
        found["bytes"]["wire"] = sum(found["bytes"][part] for part in ("act", "envelope", "accounting"))
    return json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: object) -> Json:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _finite(below) for key, below in value.items()}
        case list() | tuple():
            return [_finite(below) for below in value]
        case str() | int() | None:
            return value
        case _:
            return str(value)


def predictions(results: Iterable[Result], *, arm: str, model_name: str) -> str:
    """JSON Lines as the official SWE-bench harness reads them, sorted by instance."""
    lines = (
        json.dumps(
            {
                "instance_id": result.instance_id,
                "model_name_or_path": f"{model_name}-{arm}",
                "model_patch": result.patch,
            },
            ensure_ascii=False,
        )
        for result in sorted(results, key=lambda r: r.instance_id)
        if result.arm == arm
    )
    return "".join(line + "\n" for line in lines)


_ARROW: dict[object, pa.DataType] = {
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    str: pa.string(),
}


def results_table(results: Iterable[Result]) -> pa.Table:
    """One row for each result, costs summed; sorted by instance and arm."""
    columns: dict[str, list[object]] = {}
    for result in sorted(results, key=lambda r: (r.instance_id, r.arm)):
        tokens, total = tokens_of(result), bytes_of(result)
        row: dict[str, object] = {
            name: getattr(result, name)
            for name, about in Result.model_fields.items()
            if about.annotation in _ARROW or name == "cause"
        }
        row |= {"resolved": result.grade.resolved, "applied": result.grade.applied}
        for name in ("fail_to_pass", "pass_to_pass"):
            verdicts: dict[str, bool] = getattr(result.grade, name)
            row |= {f"{name}_passed": sum(verdicts.values()), f"{name}_total": len(verdicts)}
        row |= {f"{f.name}_seconds": getattr(result.times, f.name) for f in dataclasses.fields(Seconds)}
        row |= {f"{f.name}_tokens": getattr(tokens, f.name) for f in dataclasses.fields(Tokens)}
        row |= {f"{f.name}_bytes": getattr(total, f.name) for f in dataclasses.fields(Bytes)}
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return pa.table(columns)


def ledger_table(results: Iterable[Result]) -> pa.Table:
    """One row for each entry of the ledgers, with the instance and arm it belongs to."""
    schema = pa.schema(
        [("run", pa.string()), ("instance_id", pa.string()), ("arm", pa.string()), ("attempt", pa.int64())]
        + [
            (name, _ARROW.get(about.annotation, pa.string()))
            for name, about in LedgerRow.model_fields.items()
        ]
    )
    columns: dict[str, list[object]] = {name: [] for name in schema.names}
    for result in sorted(results, key=lambda r: (r.instance_id, r.arm)):
        for row in result.ledger:
            for name in ("run", "instance_id", "arm", "attempt"):
                columns[name].append(getattr(result, name))
            for name in LedgerRow.model_fields:
                columns[name].append(getattr(row, name))
    return pa.table(columns, schema=schema)


def write(folder: Path, summary: Summary, results: Sequence[Result], *, model_name: str) -> None:
    """Write summary.json, predictions/<arm>.jsonl, results.parquet and ledger.parquet.

    Each file is replaced whole: a reader, or a crash, never meets half of one. summary.json is last,
    so that where it is there, the rest is too. Safe to repeat.
    """
    for arm in summary.everyone:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_+.-]*", arm):
            raise BadInput(f"arm {arm!r} cannot name a file; use letters, digits, '+', '-', '_' and '.'")
        text = predictions(results, arm=arm, model_name=model_name)
        write_atomically(folder / "predictions" / f"{arm}.jsonl", text.encode())
    for name, table in (("results", results_table(results)), ("ledger", ledger_table(results))):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_atomically(folder / f"{name}.parquet", sink.getvalue().to_pybytes())
    write_atomically(folder / "summary.json", to_json(summary).encode())
