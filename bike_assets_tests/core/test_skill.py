"""Lost skill: chance is not taken for it, a real fall is."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from bike_assets.core.skill import fairly_based, skill_change


def days(skill: float, number: int, seed: int) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    baseline = draw.gamma(8, 1000, number)
    return pl.DataFrame(
        {
            "service_date": [date(2024, 1, 1) + timedelta(days=day) for day in range(number)],
            "squared_error": baseline * (1 - skill) ** 2 * draw.gamma(30, 1 / 30, number),
            "baseline_squared_error": baseline,
            "hours": 24,
            "count_sum": 240.0,
            "count_square_sum": 24 * 149.0,
        }
    )


def test_skill_is_one_minus_the_ratio_of_the_root_mean_squares() -> None:
    flat = days(0.3, 1, 1).with_columns(squared_error=9.0, baseline_squared_error=25.0)
    found = skill_change(pl.concat([flat] * 14), pl.concat([flat] * 20))
    assert found.held_out == found.lately == pytest.approx(0.4)
    assert found.fall == pytest.approx(0)
    assert found.days == 20


def test_a_fall_is_told_from_chance() -> None:
    assert (skill_change(days(0.3, 28, 1), days(0.05, 28, 2)).p_value or 0) < 0.01
    by_chance = [
        skill_change(days(0.3, 28, seed), days(0.3, 28, 100 + seed)).p_value or 0 for seed in range(40)
    ]
    assert sum(p <= 0.05 for p in by_chance) <= 6
    assert skill_change(days(0.1, 28, 1), days(0.4, 28, 2)).p_value == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("before", "now"), [(13, 28), (28, 13), (28, 0)])
def test_too_few_days_say_nothing(before: int, now: int) -> None:
    found = skill_change(days(0.3, before, 1), days(0.1, now, 2))
    assert (found.held_out, found.lately, found.p_value, found.fall, found.error_rise) == (None,) * 5
    assert found.days == now


def test_a_baseline_without_error_gives_no_skill() -> None:
    perfect = days(0.3, 28, 1).with_columns(baseline_squared_error=pl.lit(0.0))
    assert skill_change(perfect, days(0.3, 28, 2)).lately is None


def test_the_error_is_held_against_the_spread_of_the_counts() -> None:
    """Counts of mean 10 and variance 49 first, then of variance 196: the error doubles, so does the spread."""
    before = days(0.3, 28, 1).with_columns(squared_error=24.0, baseline_squared_error=90.0)
    calm = before.with_columns(baseline_squared_error=30.0)
    wide = before.with_columns(squared_error=96.0, count_square_sum=24 * 296.0)
    worse = before.with_columns(squared_error=96.0)

    assert skill_change(before, calm).error_rise == pytest.approx(0), "the baseline got better, nothing else"
    assert skill_change(before, wide).error_rise == pytest.approx(0)
    assert skill_change(before, worse).error_rise == pytest.approx(1)


@pytest.mark.parametrize("change", [{"squared_error": 0.0}, {"count_square_sum": 2400.0}])
def test_without_error_or_spread_no_rise_is_known(change: dict[str, float]) -> None:
    assert skill_change(days(0.3, 28, 1).with_columns(**change), days(0.3, 28, 2)).error_rise is None


def test_the_same_days_give_the_same_answer() -> None:
    assert skill_change(days(0.3, 28, 1), days(0.1, 28, 2)) == skill_change(
        days(0.3, 28, 1), days(0.1, 28, 2)
    )


def test_rows_whose_baseline_holds_an_impossible_count_are_left_out() -> None:
    rows = pl.DataFrame(
        [(date(2024, 1, 1) + timedelta(days=day), counter) for day in range(40) for counter in ("a", "b")],
        schema=["service_date", "counter_id"],
        orient="row",
    )
    impossible = pl.DataFrame({"service_date": [date(2024, 1, 3)], "counter_id": ["a"]})

    gone = rows.join(fairly_based(rows, impossible), on=rows.columns, how="anti")

    assert gone.sort("service_date").rows() == [
        (date(2024, 1, 3) + timedelta(days=7 * week), "a") for week in (1, 2, 3, 4)
    ]
    assert fairly_based(rows, impossible.head(0)).equals(rows)
