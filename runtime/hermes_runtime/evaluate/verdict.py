"""Which words a figure deserves: sentences that a stranger may rely on.

A difference is only called one where its interval leaves zero out and its p, adjusted for all
comparisons made, is below 5 %. Everything else is said to be unknown, with the number of instances
that would tell. Pure; used by the report and by whoever prints a summary in a terminal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hermes_runtime.evaluate.shown import number, points
from hermes_runtime.evaluate.statistics import Interval
from hermes_runtime.evaluate.summary import ArmSummary, Claim, Comparison, Summary

ABOUT_ARMS = {
    "A": "natural language in JSON, everything inlined",
    "C": "Protobuf, everything inlined",
    "PM": "Protobuf, anchors where they pay",
    "M": "as A, old tool output masked",
    "enumerate": "no model: edits in random order, same tests, same budget",
}

Tone = Literal["better", "worse", "unknown", "same"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What may be said of a comparison."""

    tone: Tone
    label: str
    """Two or three words."""
    sentence: str


def interval_of_share(interval: Interval) -> str:
    """43–82 %."""
    return f"{100 * interval.low:.0f}–{100 * interval.high:.0f} %"


def interval_of_difference(interval: Interval) -> str:
    """−15 to +24 points."""
    return f"{points(interval.low)} to {points(interval.high)} points"


def listed(names: Sequence[str]) -> str:
    """A, B and C."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def probability(value: float) -> str:
    """p = 0.031, or p < 0.001."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def headline(summary: Summary) -> str:
    """The answer: who solved how many, best first, the control last."""
    tried = {name: arm for name, arm in summary.arms.items() if arm.n}
    if not tried:
        return "Nothing has been tried yet."
    groups: dict[tuple[int, int], list[str]] = {}
    for name, arm in sorted(tried.items(), key=lambda item: -item[1].pass_at_1.value):
        groups.setdefault((arm.resolved, arm.n), []).append(name)
    parts: list[str] = []
    first_n = next(iter(groups))[1]
    for (resolved, n), names in groups.items():
        each = " each" if len(names) > 1 else ""
        if not parts:
            parts.append(f"{listed(names)}{each} solved {resolved} of {n} instances")
        else:
            parts.append(f"{listed(names)}{each} {resolved}" + ("" if n == first_n else f" of {n}"))
    if (control := summary.control) and control.n:
        of = "" if control.n == first_n else f" of {control.n}"
        parts.append(f"the control without a model {control.resolved}{of}")
    return ", ".join(parts) + "."


def lede(summary: Summary) -> str:
    """In one sentence, what is shown and what is not."""
    found = [(c.arm, verdict(c).tone) for c in summary.comparisons if c.against_control]
    if found:
        by_tone = {tone: [arm for arm, t in found if t == tone] for tone in ("better", "worse")}
        unclear = [arm for arm, tone in found if tone not in by_tone]
        said: list[str] = []
        for tone, words in (("better", "the control"), ("worse", "the control")):
            if names := by_tone[tone]:
                does = {"better": ("beats", "beat"), "worse": ("does worse than", "do worse than")}[tone]
                said.append(f"{listed(names)} {does[len(names) > 1]} {words}")
        if unclear and said:
            said.append(f"for {listed(unclear)} this run cannot tell")
        if not said:
            n = max(c.n for c in summary.comparisons)
            said.append(f"With {n} instances, no arm can be told from the control without a model")
        first = "; ".join(said) + "."
    else:
        first = "This run has no control, so it does not show what the model adds."
    between = [c for c in summary.comparisons if not c.against_control]
    if between:
        clear = [c for c in between if c.is_clear]
        first += (
            f" Between arms, {len(clear)} of {len(between)} differences can be told from chance."
            if clear
            else " Between the arms no difference in what is solved can be told from chance."
        )
    return first


def verdict(comparison: Comparison, *, arms: Sequence[str] = ()) -> Verdict:
    """What may be said of `comparison.arm` against `comparison.against`. `arms`: all that the very
    same numbers hold for, to be named together."""
    names = listed(arms or (comparison.arm,))
    each = " each" if len(arms) > 1 else ""
    other = "the control" if comparison.against_control else comparison.against
    found, span = comparison.difference, interval_of_difference(comparison.difference)
    how_many = f"{points(abs(found.value)).lstrip('+')} points"
    if comparison.is_clear:
        better = found.value > 0
        more = "more" if better else "fewer"
        evidence = f"95 % interval {span}; {probability(comparison.p_value_holm)} after Holm"
        return Verdict(
            tone="better" if better else "worse",
            label=f"{'beats' if better else 'loses to'} {other.removeprefix('the ')}",
            sentence=f"{names}{each} solved {how_many} {more} than {other}: beyond chance ({evidence}).",
        )
    if comparison.arm_only == comparison.against_only == 0:
        said = f"{names} solved exactly the instances that {other} solved; "
        said += f"still, {comparison.n} instances leave room for a difference of {span}."
        tone: Tone = "same"
        label = f"same as {other.removeprefix('the ')}"
    elif found.value == 0:
        said = f"{names} and {other} solved equally many, though not the same ones (95 % interval {span})."
        tone, label = "unknown", f"unclear vs {other.removeprefix('the ')}"
    else:
        holms = probability(comparison.p_value_holm)
        crosses = found.low <= 0 <= found.high
        why = "includes zero" if crosses else f"leaves zero out, but not after Holm's correction ({holms})"
        more = "more" if found.value > 0 else "fewer"
        said = f"{names}{each} solved {how_many} {more} than {other}, which may be chance: "
        said += f"the 95 % interval, {span}, {why}."
        tone, label = "unknown", f"unclear vs {other.removeprefix('the ')}"
    return Verdict(tone=tone, label=label, sentence=f"{said} {_would_tell(comparison)}")


def verdicts(comparisons: Sequence[Comparison]) -> list[Verdict]:
    """One for each comparison, but those with the very same numbers said once."""
    alike: dict[tuple[object, ...], list[Comparison]] = {}
    for c in comparisons:
        alike.setdefault((c.against, c.n, c.both, c.arm_only, c.against_only), []).append(c)
    return [verdict(same[0], arms=[c.arm for c in same]) for same in alike.values()]


def _would_tell(comparison: Comparison) -> str:
    """How many instances would be needed."""
    size_of_this = comparison.pairs_needed_observed
    if size_of_this:
        return f"To confirm a difference of this size takes about {number(size_of_this)} instances."
    if comparison.pairs_needed_planned:
        assumed = ", if 10 % come out differently" if comparison.discordance_assumed else ""
        needed = number(comparison.pairs_needed_planned)
        return f"To see a difference of 5 points takes about {needed} instances{assumed}."
    return "A million instances would not tell."


def cost_sentence(comparison: Comparison) -> str:
    """Tokens, bytes and time of one arm as multiples of the other's."""
    other = "the control" if comparison.against_control else comparison.against
    parts = [
        f"{ratio(found)} the {noun}"
        for noun, found in (
            ("tokens", comparison.tokens_ratio),
            ("bytes", comparison.bytes_ratio),
            ("time", comparison.latency_ratio),
        )
        if found
    ]
    return f"{comparison.arm} took {listed(parts)} of {other}." if parts else ""


def ratio(found: Interval) -> str:
    """0.62 times (0.58–0.67)."""
    if found.low == found.high:
        return f"exactly {found.value:.2f} times"
    high = f"{found.high:.2f}" if math.isfinite(found.high) else "∞"
    return f"{found.value:.2f} times ({found.low:.2f}–{high})"


def claim_sentence(claim: Claim) -> str:
    """Whether a statement on bytes holds, and where it does not."""
    said = claim.claim.replace("<=", "≤")
    compared = [found for found in claim.classes if found.holds is not None]
    if not compared:
        return f"{said}: nothing to compare; the arms never sent the same payload."
    sends = number(sum(found.payloads for found in compared))
    failing = [found.name for found in compared if not found.holds]
    if not failing:
        every = "every size class seen" if len(compared) > 1 else "the one size class seen"
        return f"{said} in bytes holds in {every} ({sends} sends of the same payloads compared)."
    return f"{said} in bytes does not hold for payloads {listed(failing)} ({sends} sends compared)."


def sealed_sentence(summary: Summary) -> str:
    """What the evidence says of the network."""
    evidence = summary.hermetic
    wall = evidence.get("wall")
    if not wall or wall == "none":
        return "Not sealed: processes of this run could reach the network."
    if not evidence.get("counted"):
        return f"Sealed by {wall}; attempts to reach the network were refused but could not be counted."
    attempts = evidence.get("attempts", 0)
    made = (
        "no process tried to reach the network"
        if attempts == 0
        else f"{attempts} attempts to leave were refused"
    )
    return f"Sealed by {wall}: {made}."


def outcome_of(arm: ArmSummary) -> str:
    """13 of 20."""
    return f"{arm.resolved} of {arm.n}"
