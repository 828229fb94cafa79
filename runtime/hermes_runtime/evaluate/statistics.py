"""Intervals, tests and power for arms tried on the same instances.

Pure functions of counts and numbers. A pair of arms on n instances is the table a, b, c, d: solved
by both, by the first only, by the second only, by neither; b + c instances are discordant. What is
said in words about these numbers is not decided here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Counts of paired outcomes of a first and a second arm."""

    both: int
    first_only: int
    second_only: int
    neither: int

    def __post_init__(self) -> None:
        if min(self.both, self.first_only, self.second_only, self.neither) < 0:
            raise ValueError(f"counts must not be negative: {self}")

    @property
    def n(self) -> int:
        """Number of pairs."""
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def discordant(self) -> int:
        """Pairs in which exactly one arm solved the instance."""
        return self.first_only + self.second_only


def wilson(successes: int, n: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Wilson score interval of a proportion; 0 to 1 around 0 where n is 0.

    Source: Wilson 1927, without continuity correction.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return Interval(value=0.0, low=0.0, high=1.0)
    z = float(stats.norm.ppf((1 + confidence) / 2))
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # the bounds are exactly 0 and 1 at the ends; rounding must not say otherwise
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return Interval(value=p, low=low, high=high)


def newcombe(pairs: Pairs, *, confidence: float = CONFIDENCE) -> Interval:
    """Difference of two paired proportions, first less second, with its interval.

    Source: Newcombe 1998 (Statistics in Medicine 17, 2635-2650), method 10: the Wilson intervals of
    both, combined with the correlation phi, which is continuity-corrected where ad > bc.
    """
    a, b, c, d, n = pairs.both, pairs.first_only, pairs.second_only, pairs.neither, pairs.n
    if n == 0:
        return Interval(value=0.0, low=-1.0, high=1.0)
    first, second = wilson(a + b, n, confidence=confidence), wilson(a + c, n, confidence=confidence)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    numerator = float(a * d - b * c)
    if numerator > 0:
        numerator = max(numerator - n / 2, 0.0)
    phi = numerator / math.sqrt(margins) if margins else 0.0
    down_1, up_1 = first.value - first.low, first.high - first.value
    down_2, up_2 = second.value - second.low, second.high - second.value
    difference = (b - c) / n
    delta = math.sqrt(max(0.0, down_1**2 - 2 * phi * down_1 * up_2 + up_2**2))
    epsilon = math.sqrt(max(0.0, up_1**2 - 2 * phi * up_1 * down_2 + down_2**2))
    return Interval(value=difference, low=max(-1.0, difference - delta), high=min(1.0, difference + epsilon))


def mcnemar(pairs: Pairs) -> float:
    """Two-sided p of the exact McNemar test; 1 where no pair is discordant."""
    if pairs.discordant == 0:
        return 1.0
    return float(stats.binomtest(pairs.first_only, pairs.discordant, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for all of them being looked at, in the order given.

    Source: Holm 1979, step-down.
    """
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted


def mcnemar_power(n: int, *, discordance: float, difference: float, alpha: float = ALPHA) -> float:
    """Probability that the exact McNemar test of n pairs has p <= alpha.

    `discordance` is the true share of discordant pairs, `difference` the true difference of the two
    proportions; |difference| <= discordance. The number of discordant pairs is binomial, and given
    it the test is a binomial test; both sums are exact, up to tails below 1e-12.
    """
    if not (0 < discordance <= 1 and abs(difference) <= discordance + 1e-12):
        raise ValueError(f"discordance {discordance} and difference {difference} do not go together")
    if n < 1:
        return 0.0
    low, high = (int(x) for x in stats.binom.ppf([1e-12, 1 - 1e-12], n, discordance))
    discordant = np.arange(max(low, 0), min(high, n) + 1)
    share = min(1.0, (discordance + difference) / (2 * discordance))
    # the largest k with 2 P(X <= k) <= alpha, X ~ Binomial(m, 1/2); ppf gives the first one beyond
    edge = stats.binom.ppf(alpha / 2, discordant, 0.5)
    edge = np.where(2 * stats.binom.cdf(edge, discordant, 0.5) <= alpha, edge, edge - 1)
    rejects = stats.binom.cdf(edge, discordant, share) + stats.binom.sf(
        discordant - edge - 1, discordant, share
    )
    rejects = np.where(edge < 0, 0.0, rejects)
    return float(np.sum(stats.binom.pmf(discordant, n, discordance) * rejects))


def pairs_needed(
    *, discordance: float, difference: float, power: float = 0.8, alpha: float = ALPHA, limit: int = 1_000_000
) -> int | None:
    """Pairs with which the exact McNemar test reaches `power`; None if more than `limit`.

    The power of an exact test rises in small steps; the answer is within one step of the smallest n.
    """

    def enough(n: int) -> bool:
        return mcnemar_power(n, discordance=discordance, difference=difference, alpha=alpha) >= power

    if difference == 0:
        return None
    # by the normal approximation n is near (z_a + z_b)^2 discordance / difference^2
    z = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    high = max(6, math.ceil(z * z * discordance / difference**2))
    if high > 2 * limit:
        return None
    while not enough(high):
        high = math.ceil(high * 1.25)
    low = high // 2
    while low > 1 and enough(low):
        low //= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high if high <= limit else None


def cost_ratio(
    first: Sequence[float],
    second: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = 4999,
    confidence: float = CONFIDENCE,
) -> Interval | None:
    """Total of `first` over total of `second`, paired by instance, with its bootstrap interval.

    None where a total is not positive. The bootstrap is BCa on the logarithm of the ratio; where it
    is degenerate it falls back to the percentile interval, and where every pair has the same ratio
    the interval is a point. One pair says nothing of the spread: its interval is 0 to infinity.
    """
    x, y = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if x.shape != y.shape:
        raise ValueError(f"not paired: {x.size} and {y.size} costs")
    if not x.size or x.sum() <= 0 or y.sum() <= 0:
        return None
    ratio = float(x.sum() / y.sum())
    if np.allclose(x, ratio * y, rtol=1e-12, atol=0):
        return Interval(value=ratio, low=ratio, high=ratio)
    if x.size == 1:
        return Interval(value=ratio, low=0.0, high=math.inf)

    def log_ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            logs: np.ndarray = np.log(np.sum(a, axis=axis)) - np.log(np.sum(b, axis=axis))
        return logs

    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # degenerate data is answered below, not warned of
            found = stats.bootstrap(
                (x, y),
                log_ratio,
                paired=True,
                method=method,
                n_resamples=resamples,
                batch=max(1, 1_000_000 // x.size),
                confidence_level=confidence,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            return Interval(value=ratio, low=math.exp(found.low), high=math.exp(found.high))
    return Interval(value=ratio, low=0.0, high=math.inf)


def percentile(values: Sequence[float], q: float) -> float | None:
    """The q-th percentile (0 to 100), linear between neighbours; None of nothing."""
    return float(np.percentile(np.asarray(values, dtype=float), q)) if len(values) else None
