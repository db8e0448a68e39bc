"""The network's level: what calendar, season and weather explain raises no alarm, what they do not does."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from bike_assets.core.calendar import days_between
from bike_assets.core.drift import DriftPolicy, network_drift
from bike_assets.core.network import Network, growing_shifts, network, network_level, sudden_shifts

FIRST, LAST = date(2023, 1, 1), date(2024, 5, 19)
DAYS = days_between(FIRST, LAST)


def city(seed: int, factor: dict[date, float] | None = None) -> pl.DataFrame:
    """Daily counts of eight counters with season, week and a shared AR(1) mood; `factor` multiplies days."""
    draw = np.random.default_rng(seed)
    mood = np.zeros(len(DAYS))
    for i in range(1, len(DAYS)):
        mood[i] = 0.5 * mood[i - 1] + draw.normal(0, 0.08)
    angle = 2 * np.pi * (np.array([day.timetuple().tm_yday for day in DAYS]) - 20) / 365.25
    weekend = np.array([day.weekday() >= 5 for day in DAYS])
    level = np.exp(mood - 0.2 * np.cos(angle)) * np.where(weekend, 0.7, 1.0)
    level *= np.array([(factor or {}).get(day, 1.0) for day in DAYS])
    return pl.concat(
        pl.DataFrame(
            {"service_date": DAYS, "daily_count": draw.poisson(size * level).astype(float)}
        ).with_columns(counter_id=pl.lit(f"c{number}"))
        for number, size in enumerate(range(400, 1200, 100))
    )


def since(first: date, factor: float) -> dict[date, float]:
    return {day: factor for day in DAYS if day >= first}


def test_clean_weeks_are_calm_and_a_fall_of_two_fifths_is_found_in_its_second_week() -> None:
    policy = DriftPolicy()
    clean = alarmed = 0
    for seed in range(6):
        calm = network(city(seed), DAYS)
        for week in range(20):
            clean += network_drift(calm, LAST - timedelta(weeks=week), policy) is not None
        shift = network_drift(network(city(seed, since(LAST - timedelta(days=8), 0.6)), DAYS), LAST, policy)
        alarmed += shift is not None and 0.45 < shift.change < 0.8
    assert clean <= 3  # of 120
    assert alarmed == 6


def test_what_was_over_by_the_weekend_is_still_found() -> None:
    strike = {LAST - timedelta(days=back): 1.8 for back in range(2, 7)}
    shift = network_drift(network(city(3, strike), DAYS), LAST, DriftPolicy())
    assert shift is not None
    assert shift.kind == "sudden"
    assert shift.first >= LAST - timedelta(days=8)
    assert shift.change > 1.4


def test_weather_that_explains_a_fall_keeps_it_quiet() -> None:
    """Wet weeks come and go; a city that always rides less in the rain has not drifted in one more wet week."""
    draw = np.random.default_rng(5)
    wet = np.repeat(draw.random(len(DAYS) // 7 + 1) < 0.25, 7)[: len(DAYS)]
    wet[-7:] = True
    rain = np.where(wet, 16.0, 0.0)
    counts = city(2, {day: 0.55 for day, is_wet in zip(DAYS, wet, strict=True) if is_wet})
    hours = pl.DataFrame(
        {
            "ts_utc": pl.Series(DAYS).cast(pl.Datetime("us")).dt.offset_by("12h").dt.replace_time_zone("UTC"),
            "temperature_c": np.full(len(DAYS), 14.0),
            "rain_mm": rain,
        }
    )

    blind = max(abs(shift.z) for shift in sudden_shifts(network(counts, DAYS), LAST))
    told = max(abs(shift.z) for shift in sudden_shifts(network(counts, DAYS, hours), LAST))

    assert told < blind
    assert network_drift(network(counts, DAYS, hours), LAST, DriftPolicy()) is None


def test_the_level_does_not_hang_on_which_counters_are_there() -> None:
    counts = city(1)
    gone = counts.filter((pl.col("counter_id") != "c7") | (pl.col("service_date") < date(2024, 1, 1)))
    full, fewer = network_level(counts, DAYS), network_level(gone, DAYS)
    assert np.nanmax(np.abs(full - fewer)) < 0.1


def test_days_on_which_hardly_a_counter_tells_are_not_known() -> None:
    counts = city(1).filter((pl.col("service_date") != LAST) | pl.col("counter_id").is_in(["c1", "c2"]))
    level = network_level(counts, DAYS)
    assert np.isnan(level[-1])
    assert not np.isnan(level[:-1]).any()


def test_nothing_is_expected_without_history() -> None:
    short = DAYS[-60:]
    known = network(city(1), short)
    assert sudden_shifts(known, LAST) == []
    assert growing_shifts(known, LAST) == []
    assert (
        network_drift(Network(tuple(DAYS), np.full(len(DAYS), np.nan), known.inputs[:1]), LAST, DriftPolicy())
        is None
    )


def test_a_level_that_has_moved_away_for_weeks_is_slow() -> None:
    factor = {day: 1 + 0.006 * max(0, (day - LAST + timedelta(days=90)).days) for day in DAYS}
    shifts = growing_shifts(network(city(4, factor), DAYS), LAST)
    assert len(shifts) == 2
    assert all(shift.change > 1.2 and shift.z > DriftPolicy().slow_z for shift in shifts)


def test_with_history_for_eight_weeks_alone_these_are_looked_at() -> None:
    assert len(growing_shifts(network(city(4), DAYS[-150:]), LAST)) == 1


@pytest.mark.parametrize("direction", [1, -1])
def test_a_trend_that_hides_in_eight_weeks_shows_in_sixteen(direction: int) -> None:
    factor = {day: (1 + 0.004 * direction) ** max(0, (day - LAST).days + 110) for day in DAYS}
    shorter, longer = growing_shifts(network(city(5, factor), DAYS), LAST)
    assert (shorter.kind, longer.kind) == ("slow", "trend")
    assert abs(longer.z) > max(abs(shorter.z), DriftPolicy().trend_z)
    assert longer.z * direction > 0


@pytest.mark.parametrize("later", [1, 10])
def test_what_comes_after_the_day_changes_nothing(later: int) -> None:
    until = LAST - timedelta(days=later)
    counts = city(6)
    cut = days_between(FIRST, until)
    wild = counts.with_columns(
        daily_count=pl.when(pl.col("service_date") > until).then(9_999.0).otherwise("daily_count")
    )
    seen, blind = network(wild.filter(pl.col("service_date") <= until), cut), network(counts, cut)
    assert sudden_shifts(seen, until) == sudden_shifts(blind, until)
