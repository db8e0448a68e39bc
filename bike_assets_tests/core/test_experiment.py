"""An experiment that is looked at every day: sticky arms, paired days, an honest interval, and a rule that stops."""

from datetime import UTC, date, datetime, timedelta
from math import inf, isclose
from typing import Any

import numpy as np
import polars as pl
import pytest

from bike_assets.core.errors import ContractError, PermanentError
from bike_assets.core.experiment import (
    DayPair,
    ExperimentPolicy,
    arm_of,
    compare,
    pair_days,
    variance_inflation,
)

FIRST = date(2024, 1, 1)
POLICY = ExperimentPolicy()


def days(gains: Any) -> list[DayPair]:
    """Days on which the challenger's error is so much smaller, as shares of a champion's error of 10 %."""
    return [
        DayPair(FIRST + timedelta(days=n), 100, 10_000.0, 1000.0, 1000.0 * (1 - float(gain)))
        for n, gain in enumerate(gains)
    ]


def noise(seed: int, n: int = POLICY.max_days, spread: float = 0.04) -> Any:
    return spread * np.random.default_rng(seed).standard_normal(n)


# Arms


def test_the_same_subject_has_the_same_arm_always_and_everywhere() -> None:
    """Written down, so that another Python, process or release assigns as this one does."""
    assert [arm_of(f"counter-{n}", "4", 0.5) for n in range(8)] == [
        "challenger", "champion", "challenger", "challenger", "challenger", "challenger", "champion", "champion",
    ]  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_share_is_kept(share: float) -> None:
    arms = [arm_of(f"caller {n}", "4", share) for n in range(20_000)]

    assert abs(arms.count("challenger") / 20_000 - share) <= 0.01
    if share in (0.0, 1.0):
        assert len(set(arms)) == 1


def test_a_larger_share_takes_nobody_back() -> None:
    subjects = [str(n) for n in range(2000)]
    few = {one for one in subjects if arm_of(one, "4", 0.1) == "challenger"}
    many = {one for one in subjects if arm_of(one, "4", 0.3) == "challenger"}

    assert few < many


def test_another_experiment_draws_anew() -> None:
    subjects = [str(n) for n in range(4000)]
    both = sum(arm_of(one, "4", 0.5) == arm_of(one, "5", 0.5) for one in subjects)

    assert 0.45 < both / 4000 < 0.55


# Pairing


def forecasts(value: float, issue: date = FIRST, hours: int = 48, counter: str = "100-E") -> pl.DataFrame:
    start = datetime(issue.year, issue.month, issue.day, tzinfo=UTC) - timedelta(
        hours=1
    )  # Midnight in Paris.
    return pl.DataFrame(
        {
            "service_date": [issue] * hours,
            "counter_id": [counter] * hours,
            "target_ts": [start + timedelta(hours=n) for n in range(hours)],
            "horizon": [1 + n // 24 for n in range(hours)],
            "forecast": [value] * hours,
        },
        schema_overrides={"target_ts": pl.Datetime("us", "UTC")},
    )


def truth(value: float | None = 100.0, hours: int = 48) -> pl.DataFrame:
    return (
        forecasts(0.0, hours=hours)
        .select("counter_id", ts_utc="target_ts")
        .with_columns(hourly_count=pl.lit(value, dtype=pl.Float64))
    )


def test_errors_are_summed_by_the_local_day_of_the_hour() -> None:
    found = pair_days(forecasts(90.0), forecasts(104.0), truth())

    assert found == (
        DayPair(FIRST, 24, 2400.0, 240.0, 96.0),
        DayPair(FIRST + timedelta(days=1), 24, 2400.0, 240.0, 96.0),
    )


def test_only_hours_that_both_forecast_and_that_were_counted_are_compared() -> None:
    (day,) = pair_days(forecasts(90.0), forecasts(104.0, hours=5), truth())
    assert (day.hours, day.champion_error, day.challenger_error) == (5, 50.0, 20.0)

    (day,) = pair_days(forecasts(90.0), forecasts(104.0), truth(hours=3))
    assert day.hours == 3
    assert pair_days(forecasts(90.0), forecasts(104.0), truth(None)) == ()
    assert pair_days(forecasts(90.0), forecasts(104.0, counter="200-N"), truth()) == ()


def test_forecasts_of_one_hour_issued_on_several_days_are_one_day() -> None:
    def two(value: float) -> pl.DataFrame:
        earlier = forecasts(value).with_columns(pl.col("horizon") + 1, service_date=FIRST - timedelta(days=1))
        return pl.concat([forecasts(value), earlier])

    found = pair_days(two(90.0), two(104.0), truth())
    assert [(day.day, day.hours) for day in found] == [(FIRST, 48), (FIRST + timedelta(days=1), 48)]


def test_two_versions_in_one_arm_are_refused() -> None:
    with pytest.raises(ContractError, match="champion stands twice"):
        pair_days(pl.concat([forecasts(90.0), forecasts(91.0)]), forecasts(104.0), truth())
    with pytest.raises(ContractError, match="challenger is not a number"):
        pair_days(forecasts(90.0), forecasts(float("nan")), truth())


# The rule


def test_before_the_first_days_there_is_no_look() -> None:
    answer = compare(days(noise(1, POLICY.min_days - 1) + 0.5))

    assert (answer.verdict, answer.looks, answer.stop) == ("continue", (), False)
    assert "13 days of truth, 14 are needed" in answer.reasons[-1]


def test_a_clearly_better_challenger_is_found_at_the_first_look() -> None:
    answer = compare(days(noise(1) + 0.3))

    assert answer.verdict == "challenger_better"
    assert len(answer.looks) == 1
    assert answer.looks[0].day == FIRST + timedelta(days=POLICY.min_days - 1)
    assert answer.looks[0].lower < 0.3 < answer.looks[0].upper
    assert answer.champion_wape == pytest.approx(0.1)
    assert answer.challenger_wape == pytest.approx(0.07, abs=0.002)


def test_a_clearly_worse_one_too() -> None:
    assert compare(days(noise(1) - 0.3)).verdict == "champion_better"


def test_a_gain_not_worth_it_stops_although_it_is_real() -> None:
    answer = compare(days(noise(1, spread=0.001) + 0.005))

    assert answer.verdict == "no_difference"
    assert answer.looks[-1].lower > 0
    assert "less than 1.0%" in answer.reasons[-1]


def test_equal_models_end_with_the_last_day() -> None:
    answer = compare(days(noise(3)))

    assert answer.verdict == "no_difference"
    assert len(answer.looks) == POLICY.max_days - POLICY.min_days + 1


def test_an_answer_stands_whatever_comes_later() -> None:
    early = noise(1, 20) + 0.3
    short, long = compare(days(early)), compare(days([*early, *(noise(2, 60) - 0.5)]))

    assert long == short


def test_a_look_a_day_is_what_each_day_would_have_said() -> None:
    gains = noise(5) + 0.01
    whole = compare(days(gains))
    for n in range(POLICY.min_days, POLICY.min_days + len(whole.looks)):
        assert compare(days(gains[:n])).looks[-1] == whole.looks[n - POLICY.min_days]


def test_models_that_never_differ_have_an_interval_of_nothing() -> None:
    answer = compare(days([0.0] * 20))

    assert answer.verdict == "no_difference"
    assert (answer.looks[0].lower, answer.looks[0].upper) == (0.0, 0.0)


def test_a_champion_without_error_leaves_nothing_to_say() -> None:
    perfect = [DayPair(FIRST + timedelta(days=n), 24, 100.0, 0.0, 5.0) for n in range(20)]

    answer = compare(perfect)
    assert answer.verdict == "continue"
    assert (answer.looks[-1].lower, answer.looks[-1].upper) == (-inf, inf)


def test_days_out_of_order_are_refused() -> None:
    with pytest.raises(ContractError, match="not in order"):
        compare(list(reversed(days(noise(1)))))


# Honesty


def found_by_peeking(gains: Any) -> bool:
    """What a t-test of 5 % would have said on some day."""
    return any(
        abs(gains[:n].mean()) > 2.0 * gains[:n].std(ddof=1) / np.sqrt(n)
        for n in range(POLICY.min_days, len(gains))
    )


@pytest.mark.parametrize("correlation", [0.0, 0.4])
def test_looking_every_day_at_equal_models_finds_a_difference_in_at_most_5_of_100(correlation: float) -> None:
    wrong = peeked = 0
    seeds = 200
    for seed in range(seeds):
        white = noise(seed, POLICY.max_days + 20)
        gains = np.zeros(len(white))
        for n in range(1, len(white)):
            gains[n] = correlation * gains[n - 1] + np.sqrt(1 - correlation**2) * white[n]
        gains = gains[20:]
        wrong += compare(days(gains)).verdict in ("challenger_better", "champion_better")
        peeked += found_by_peeking(gains)

    assert wrong / seeds <= POLICY.alpha
    assert peeked / seeds > 0.2, "the test would pass without its correction"


def test_the_bound_is_that_of_the_mixtures_likelihood_ratio() -> None:
    """Held against the ratio itself: at the interval's end it is 1 / alpha."""
    gains = noise(11, 40) + 0.02
    look = compare(days(gains), ExperimentPolicy(min_days=40)).looks[0]
    n, g = 40, POLICY.likely_effect**2
    error = gains.std(ddof=1) / np.sqrt(n) * np.sqrt(variance_inflation(gains))
    t2 = (look.effect - look.lower) ** 2 / error**2
    ratio = (1 + n * g) ** -0.5 * ((n - 1 + t2) / (n - 1 + t2 / (1 + n * g))) ** (n / 2)

    assert isclose(ratio, 1 / POLICY.alpha, rel_tol=1e-6)


def test_days_that_hang_together_widen_the_interval() -> None:
    together = np.repeat([0.05, -0.05], 20)

    assert variance_inflation(together) == pytest.approx(9.0)  # The most that is believed of so few days.
    assert variance_inflation(np.array([0.05, -0.05] * 20)) == 1.0
    assert variance_inflation(np.zeros(20)) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"worth": 0.0},
        {"min_days": 2},
        {"min_days": 90},
        {"likely_effect": 0.0},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PermanentError, match=next(iter(wrong))):
        ExperimentPolicy(**wrong)
