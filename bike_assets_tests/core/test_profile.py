"""The shape of a counter's day, computed by hand."""

from datetime import UTC, date, datetime

import polars as pl
import pytest

from bike_assets.core.profile import PROFILE_COLUMNS, daily_profile

DAY = date(2024, 1, 10)


def day(counts: list[float | None], counter: str = "a", on: date = DAY) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "service_date": [on] * len(counts),
            "counter_id": [counter] * len(counts),
            "ts_utc": [datetime(on.year, on.month, on.day, hour % 24, tzinfo=UTC) for hour in range(len(counts))],
            "local_hour": [hour % 24 for hour in range(len(counts))],
            "hourly_count": counts,
        },
        schema_overrides={"hourly_count": pl.Int64, "local_hour": pl.Int32},
        strict=False,
    )  # fmt: skip


def profile(counts: list[float | None]) -> dict[str, float | None]:
    return daily_profile(day(counts)).row(0, named=True)


def test_shares_are_of_the_hours_they_name() -> None:
    counts: list[float | None] = [0.0] * 24
    counts[0] = counts[4] = 5  # night, both ends
    counts[5] = counts[6] = 10  # neither
    counts[7] = counts[9] = 15  # morning, both ends
    counts[10] = counts[15] = 5  # neither
    counts[16] = counts[19] = 10  # evening, both ends
    counts[20] = 10  # neither

    found = profile(counts)

    assert found["daily_count"] == 100
    assert found["night_share"] == pytest.approx(0.10)
    assert found["morning_share"] == pytest.approx(0.30)
    assert found["evening_share"] == pytest.approx(0.20)
    assert found["busiest_hour_count"] == 15
    assert found["zero_share"] == pytest.approx(13 / 24)
    assert found["missing_hours"] == 0


def test_a_day_without_bicycles_has_no_shares_rather_than_nan() -> None:
    found = profile([0.0] * 24)

    assert found["daily_count"] == 0
    assert [found[f"{part}_share"] for part in ("morning", "evening", "night")] == [None] * 3
    assert found["zero_share"] == 1


def test_hours_not_published_are_missing_and_not_zero() -> None:
    found = profile([None] * 6 + [2.0] * 12)

    assert found["missing_hours"] == 12
    assert found["zero_share"] == 0
    assert found["daily_count"] == 24


def test_a_day_of_25_hours_misses_none() -> None:
    assert profile([1.0] * 25)["missing_hours"] == 0


def test_one_sorted_row_a_counter_and_day_whatever_the_order_of_the_rows() -> None:
    frame = pl.concat(
        [day([3.0] * 24, "b"), day([1.0] * 24, "a", date(2024, 1, 11)), day([2.0] * 24, "a")]
    ).sample(fraction=1, shuffle=True, seed=1)

    found = daily_profile(frame)

    assert found.columns == ["service_date", "counter_id", *PROFILE_COLUMNS]
    assert found.select("service_date", "counter_id", "daily_count").rows() == [
        (DAY, "a", 48.0),
        (DAY, "b", 72.0),
        (date(2024, 1, 11), "a", 24.0),
    ]


def test_no_counts_give_no_rows_in_the_same_columns() -> None:
    found = daily_profile(day([]))

    assert found.height == 0
    assert found.columns == ["service_date", "counter_id", *PROFILE_COLUMNS]
