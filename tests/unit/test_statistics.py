"""Intervals, tests and power, against published and computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_runtime.evaluate.statistics import (
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

CHECK = Pairs(both=40, first_only=12, second_only=7, neither=41)
counts = st.integers(min_value=0, max_value=400)
tables = st.builds(Pairs, both=counts, first_only=counts, second_only=counts, neither=counts)


def swapped(pairs: Pairs) -> Pairs:
    return Pairs(
        both=pairs.both,
        first_only=pairs.second_only,
        second_only=pairs.first_only,
        neither=pairs.neither,
    )


def test_the_check_value_of_mcnemar_and_newcombe_is_met():
    assert mcnemar(CHECK) == pytest.approx(0.35928, abs=5e-6)
    found = newcombe(CHECK)
    assert (found.value, found.low, found.high) == pytest.approx((0.05, -0.0363, 0.1347), abs=5e-5)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        pytest.param((36, 12, 2, 0), 0.0569, 0.3404, id="36 12 2 0"),
        pytest.param((0, 0, 0, 54), -0.0664, 0.0664, id="no successes"),
        pytest.param((54, 0, 0, 0), -0.0664, 0.0664, id="all successes"),
    ],
)
def test_newcombe_meets_values_computed_by_its_definition(table, low, high):
    both, first, second, neither = table
    found = newcombe(Pairs(both=both, first_only=first, second_only=second, neither=neither))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_wilson_meets_known_values():
    found = wilson(81, 263)  # Newcombe 1998, part 1
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    none = wilson(0, 20)
    assert (none.value, none.low, none.high) == pytest.approx((0.0, 0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20).high == 1.0
    assert wilson(0, 0) == Interval(value=0.0, low=0.0, high=1.0)


def test_wilson_refuses_more_successes_than_tries():
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


@given(tables)
def test_the_paired_interval_holds_its_estimate_and_mirrors_when_arms_swap(pairs):
    found, mirrored = newcombe(pairs), newcombe(swapped(pairs))
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-12)
    assert mcnemar(pairs) == pytest.approx(mcnemar(swapped(pairs)))


def test_without_discordant_pairs_p_is_one():
    assert mcnemar(Pairs(both=3, first_only=0, second_only=0, neither=4)) == 1.0


def test_six_pairs_one_way_are_the_fewest_that_are_significant():
    assert mcnemar(Pairs(both=0, first_only=5, second_only=0, neither=0)) > 0.05
    assert mcnemar(Pairs(both=0, first_only=6, second_only=0, neither=0)) < 0.05


def test_holm_steps_down_and_keeps_the_order_given():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(min_value=0, max_value=1), max_size=12))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    by_p = [a for _, a in sorted(zip(p_values, adjusted, strict=True))]
    assert by_p == sorted(by_p)


@pytest.mark.parametrize(("n", "power"), [(47, 0.05), (164, 0.45), (300, 0.74), (500, 0.94)])
def test_power_at_ten_percent_discordance_and_five_points_meets_the_table(n, power):
    assert mcnemar_power(n, discordance=0.10, difference=0.05) == pytest.approx(power, abs=0.006)


def test_power_equals_a_sum_over_every_possible_table():
    n, discordance, difference = 12, 0.6, 0.3
    first, second = (discordance + difference) / 2, (discordance - difference) / 2
    total = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            if mcnemar(Pairs(both=n - b - c, first_only=b, second_only=c, neither=0)) <= 0.05:
                ways = math.factorial(n) / math.factorial(b) / math.factorial(c) / math.factorial(n - b - c)
                total += ways * first**b * second**c * (1 - discordance) ** (n - b - c)
    assert mcnemar_power(n, discordance=discordance, difference=difference) == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize(("discordance", "needed"), [(0.05, 1039), (0.10, 2050), (0.20, 4018)])
def test_pairs_needed_for_two_points_meet_the_table(discordance, needed):
    found = pairs_needed(discordance=discordance, difference=0.02)
    assert found == pytest.approx(needed, rel=0.005)


@settings(max_examples=25, deadline=None)
@given(st.floats(min_value=0.05, max_value=1), st.floats(min_value=0.1, max_value=1))
def test_the_pairs_needed_reach_the_power_asked_for(discordance, share):
    difference = discordance * share
    needed = pairs_needed(discordance=discordance, difference=difference)
    assert needed is not None
    assert mcnemar_power(needed, discordance=discordance, difference=difference) >= 0.8
    assert mcnemar_power(needed - 1, discordance=discordance, difference=difference) < 0.8


def test_no_number_of_pairs_shows_a_difference_that_is_not_there():
    assert pairs_needed(discordance=0.1, difference=0.0) is None
    assert pairs_needed(discordance=0.1, difference=1e-6) is None
    assert mcnemar_power(0, discordance=0.1, difference=0.05) == 0.0


def test_a_difference_larger_than_the_discordance_is_refused():
    with pytest.raises(ValueError, match="do not go together"):
        mcnemar_power(20, discordance=0.05, difference=0.1)


def test_the_ratio_of_costs_holds_the_truth_and_is_repeatable():
    rng = np.random.default_rng(7)
    base = rng.lognormal(3, 1, 80)
    first = base * 0.6 * rng.lognormal(0, 0.2, 80)
    found = cost_ratio(first.tolist(), base.tolist(), seed=1)
    assert found is not None
    assert found.low < found.value < found.high
    assert found.low < 0.62
    assert 0.58 < found.high < 0.8
    assert found == cost_ratio(first.tolist(), base.tolist(), seed=1)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param([], [], None, id="nothing"),
        pytest.param([0.0, 0.0], [1.0, 2.0], None, id="no cost at all"),
        pytest.param([2.0, 4.0], [1.0, 2.0], (2.0, 2.0, 2.0), id="every pair alike"),
        pytest.param([5.0, 5.0], [5.0, 5.0], (1.0, 1.0, 1.0), id="equal costs"),
    ],
)
def test_degenerate_costs_get_an_answer_and_no_warning(first, second, expected):
    found = cost_ratio(first, second)
    assert (found and (found.value, found.low, found.high)) == expected


def test_sparse_costs_fall_back_instead_of_giving_nan():
    found = cost_ratio([0.0, 0.0, 5.0], [1.0, 1.0, 1.0])
    assert found is not None
    assert not math.isnan(found.low)
    assert not math.isnan(found.high)
    assert found.low <= found.value <= found.high


def test_costs_that_are_not_paired_are_refused():
    with pytest.raises(ValueError, match="not paired"):
        cost_ratio([1.0], [1.0, 2.0])


def test_percentiles_are_linear_and_nothing_has_none():
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert percentile([7.0], 95) == 7.0
    assert percentile([], 50) is None
