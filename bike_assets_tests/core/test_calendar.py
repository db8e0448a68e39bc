"""Local days have 23, 24 or 25 hours, and the calendar knows which days are holidays."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import polars as pl
import pytest

from bike_assets.core.calendar import (
    calendar_table,
    days_between,
    days_to_public_holiday,
    hours_of_day,
    is_bridge_day,
    is_public_holiday,
    is_school_holiday,
    issue_time,
    local_columns,
    target_date,
)
from bike_assets.core.contracts import UTC_TIMESTAMP


@pytest.mark.parametrize(
    ("day", "hours", "first"),
    [
        (date(2024, 1, 15), 24, datetime(2024, 1, 14, 23, tzinfo=UTC)),
        (date(2024, 7, 1), 24, datetime(2024, 6, 30, 22, tzinfo=UTC)),
        (date(2024, 3, 31), 23, datetime(2024, 3, 30, 23, tzinfo=UTC)),
        (date(2023, 10, 29), 25, datetime(2023, 10, 28, 22, tzinfo=UTC)),
    ],
)
def test_hours_of_a_local_day(day: date, hours: int, first: datetime) -> None:
    found = hours_of_day(day)
    assert len(found) == hours
    assert found[0] == first
    assert all(later - earlier == timedelta(hours=1) for earlier, later in pairwise(found))
    assert hours_of_day(day + timedelta(days=1))[0] == found[-1] + timedelta(hours=1)


def test_hours_of_a_year_are_every_hour_once() -> None:
    hours = [hour for day in days_between(date(2024, 1, 1), date(2024, 12, 31)) for hour in hours_of_day(day)]
    assert len(hours) == len(set(hours)) == 366 * 24


def test_hours_of_a_day_in_another_time_zone() -> None:
    assert hours_of_day(date(2024, 1, 15), "America/New_York")[0] == datetime(2024, 1, 15, 5, tzinfo=UTC)


def test_a_forecast_is_issued_at_seven_local() -> None:
    assert issue_time(date(2024, 1, 15)) == datetime(2024, 1, 15, 6, tzinfo=UTC)
    assert issue_time(date(2024, 7, 15)) == datetime(2024, 7, 15, 5, tzinfo=UTC)


def test_horizon_one_is_the_issue_date() -> None:
    assert target_date(date(2024, 2, 28), 1) == date(2024, 2, 28)
    assert target_date(date(2024, 2, 28), 7) == date(2024, 3, 5)


def test_local_columns_follow_the_wall_clock() -> None:
    frame = pl.DataFrame({"ts_utc": pl.Series(hours_of_day(date(2023, 10, 29)), dtype=UTC_TIMESTAMP)})
    local = local_columns(frame)
    assert local["service_date"].unique().to_list() == [date(2023, 10, 29)]
    assert local["local_hour"].to_list() == [0, 1, 2, 2, *range(3, 24)]
    assert local.schema["local_hour"] == pl.Int32
    spring = pl.DataFrame({"ts_utc": pl.Series(hours_of_day(date(2024, 3, 31)), dtype=UTC_TIMESTAMP)})
    assert local_columns(spring)["local_hour"].to_list() == [0, 1, *range(3, 24)]


def test_public_holidays() -> None:
    assert is_public_holiday(date(2024, 5, 1))
    assert is_public_holiday(date(2024, 4, 1))  # Easter Monday, which moves
    assert not is_public_holiday(date(2024, 3, 29))  # Good Friday is one in Alsace only


def test_bridge_days_lie_between_a_holiday_and_a_weekend() -> None:
    assert is_bridge_day(date(2024, 5, 10))  # Friday after Ascension Day
    assert is_bridge_day(date(2023, 8, 14))  # Monday before Assumption Day
    assert not is_bridge_day(date(2024, 5, 9))
    assert not is_bridge_day(date(2024, 5, 11))
    assert not is_bridge_day(date(2024, 5, 2))


def test_school_holidays_are_those_of_zone_c() -> None:
    assert is_school_holiday(date(2024, 2, 12))  # zones A and C
    assert not is_school_holiday(date(2024, 2, 26))  # zones A and B
    assert not is_school_holiday(date(2024, 3, 12))


def test_years_without_a_school_calendar_have_no_school_holidays() -> None:
    assert not is_school_holiday(date(2090, 7, 20))


def test_distance_to_a_public_holiday() -> None:
    assert days_to_public_holiday(date(2024, 5, 1)) == 0
    assert days_to_public_holiday(date(2024, 4, 29)) == 2
    assert days_to_public_holiday(date(2024, 5, 3)) == 2
    assert days_to_public_holiday(date(2024, 3, 1)) == 7


def test_calendar_table() -> None:
    table = calendar_table(days_between(date(2024, 5, 8), date(2024, 5, 12)))
    assert table["weekday"].to_list() == [2, 3, 4, 5, 6]
    assert table["is_public_holiday"].to_list() == [True, True, False, False, False]
    assert table["is_bridge_day"].to_list() == [False, False, True, False, False]
