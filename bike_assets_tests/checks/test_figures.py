"""Figures of days and counters: clock changes, holidays and bridge days are ordinary, what is not stands out."""

from datetime import date, timedelta

import polars as pl
import pytest

from bike_assets.checks.expectations import run_suite
from bike_assets.checks.figures import HISTORY_DAYS, counter_figures, day_figures
from bike_assets.core.calendar import is_bridge_day, is_public_holiday
from bike_assets.core.contracts import CLEANED_COUNTS
from bike_assets_tests.core.synthetic import city
from bike_assets_tests.tables import cleaned

USABLE = frozenset(CLEANED_COUNTS.column_names)


def split(counts: pl.DataFrame, day: date) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A day, and the history before it."""
    return counts.filter(pl.col("service_date") == day), counts.filter(pl.col("service_date") < day)


def around(day: date, counters: int = 4) -> pl.DataFrame:
    return cleaned(city(day - timedelta(days=HISTORY_DAYS), day, counters=counters, seed=4))


@pytest.mark.parametrize(("day", "hours"), [(date(2023, 10, 29), 25), (date(2024, 3, 31), 23)])
def test_a_day_of_23_or_25_hours_is_complete_and_of_ordinary_volume(day: date, hours: int) -> None:
    frame, history = split(around(day), day)

    figures = day_figures(frame, USABLE, history).row(0, named=True)

    assert figures["hours"] == hours
    assert figures["completeness"] == 1
    assert figures["volume_ratio"] == 1
    assert figures["hour_shift"] < 0.15
    assert counter_figures(frame, history)["known_share"].to_list() == [1.0] * 4


def test_a_public_holiday_is_held_against_sundays_and_a_bridge_day_against_saturdays() -> None:
    """Ascension Day 2024 is a Thursday, and its Friday a bridge: both as quiet as the weekend."""
    holiday, bridge = date(2024, 5, 9), date(2024, 5, 10)
    counts = around(bridge)
    quiet = pl.col("service_date").is_in([holiday, bridge])
    counts = counts.with_columns(
        hourly_count=pl.when(quiet).then(pl.col("hourly_count") // 2).otherwise("hourly_count")
    )
    for day in (holiday, bridge):
        frame, history = split(counts, day)
        held = day_figures(frame, USABLE, history)["weekday_ratio"].item()
        # 1 and 8 May are holidays before it, 1 April is Easter Monday.
        same = history.filter(
            pl.col("service_date").map_elements(
                lambda other, day=day: (
                    (other.weekday() == 6 or is_public_holiday(other))
                    if day == holiday
                    else other.weekday() == 5 or is_bridge_day(other)
                ),
                return_dtype=pl.Boolean,
            )
        )
        usual = same.group_by("service_date").agg(pl.col("hourly_count").mean())["hourly_count"].median()
        assert held == pytest.approx(frame["hourly_count"].mean() / usual)  # type: ignore[operator]


def test_with_less_than_three_such_days_before_nothing_is_said() -> None:
    day = date(2024, 2, 14)
    counts = around(day).filter(pl.col("service_date") > day - timedelta(days=15))
    figures = day_figures(*_swap(split(counts, day)))

    assert figures["weekday_ratio"].item() is None
    assert figures["hour_shift"].item() is None


def _swap(parts: tuple[pl.DataFrame, pl.DataFrame]) -> tuple[pl.DataFrame, frozenset[str], pl.DataFrame]:
    return parts[0], USABLE, parts[1]


def test_counts_that_moved_by_hours_and_counters_that_vanished_break_their_rules() -> None:
    day = date(2024, 2, 14)
    frame, history = split(around(day, counters=5), day)
    assert run_suite("cleaned_counts", frame, history).passed

    moved = frame.sort("counter_id", "ts_utc").with_columns(
        hourly_count=pl.concat([frame["hourly_count"][-5:], frame["hourly_count"][:-5]])
    )
    (failure,) = run_suite("cleaned_counts", moved, history).failures
    assert "come at other hours" in failure.rule

    vanished = frame.filter(pl.col("counter_id") > "c01")
    (failure,) = run_suite("cleaned_counts", vanished, history).failures
    assert "80 % of their hours" in failure.rule
    assert [row["known_share"] for row in failure.sample] == [0.0, 0.0]


def test_a_counter_is_not_missed_before_its_first_row_nor_a_week_after_its_last() -> None:
    day = date(2024, 2, 14)
    frame, history = split(around(day), day)
    young = frame.filter(pl.col("counter_id") != "c01"), history.filter(pl.col("counter_id") != "c01")
    removed = history.filter(
        (pl.col("counter_id") != "c02") | (pl.col("service_date") < day - timedelta(days=7))
    )

    assert counter_figures(frame, young[1])["known_share"].to_list() == [1.0] * 4
    assert counter_figures(young[0], young[1]).height == 3
    assert counter_figures(frame.filter(pl.col("counter_id") != "c02"), removed).height == 3
