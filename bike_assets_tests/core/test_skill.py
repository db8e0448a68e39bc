"""Lost skill: chance is not taken for it, a real fall is."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from bike_assets.core.skill import skill_change


def days(skill: float, number: int, seed: int) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    baseline = draw.gamma(8, 1000, number)
    return pl.DataFrame(
        {
            "service_date": [date(2024, 1, 1) + timedelta(days=day) for day in range(number)],
            "squared_error": baseline * (1 - skill) ** 2 * draw.gamma(30, 1 / 30, number),
            "baseline_squared_error": baseline,
        }
    )


def test_skill_is_one_minus_the_ratio_of_the_root_mean_squares() -> None:
    flat = pl.DataFrame(
        {"service_date": [date(2024, 1, 1)], "squared_error": [9.0], "baseline_squared_error": [25.0]}
    )
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
    assert (found.held_out, found.lately, found.p_value, found.fall) == (None, None, None, None)
    assert found.days == now


def test_a_baseline_without_error_gives_no_skill() -> None:
    perfect = days(0.3, 28, 1).with_columns(baseline_squared_error=pl.lit(0.0))
    assert skill_change(perfect, days(0.3, 28, 2)).lately is None


def test_the_same_days_give_the_same_answer() -> None:
    assert skill_change(days(0.3, 28, 1), days(0.1, 28, 2)) == skill_change(
        days(0.3, 28, 1), days(0.1, 28, 2)
    )
