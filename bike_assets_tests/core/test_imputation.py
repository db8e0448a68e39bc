"""Filling: better than the plain profile on hidden hours, published counts untouched, the method always named."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.core.calendar import hours_of_day
from bike_assets.core.contracts import FILLED_COUNTS
from bike_assets.core.errors import PermanentError
from bike_assets.core.imputation import FUTURE_DAYS, PAST_DAYS, WINDOW_DAYS, FillMethod, fill_gaps
from bike_assets_tests.core.synthetic import city

AUTUMN, SPRING = date(2023, 10, 29), date(2024, 3, 31)
FLAGS = {name: pl.lit(False) for name in ("is_outage", "is_spike", "is_stuck")}
FIRST, LAST = AUTUMN - timedelta(days=5), AUTUMN + timedelta(days=14)


@pytest.fixture(scope="module")
def counts() -> pl.DataFrame:
    start, end = FIRST - timedelta(days=PAST_DAYS), LAST + timedelta(days=FUTURE_DAYS)
    return city(start, end, counters=6, seed=5).with_columns(**FLAGS)


@pytest.fixture(scope="module")
def gone(counts: pl.DataFrame) -> pl.DataFrame:
    """Counter-days to hide: one in ten of those wanted."""
    days = counts.filter(pl.col("service_date").is_between(FIRST, LAST)).select("counter_id", "service_date")
    days = days.unique(maintain_order=True)
    return days.filter(pl.Series(np.random.default_rng(2).random(days.height) < 0.1))


def test_hidden_hours_are_filled_better_than_by_the_plain_profile(
    counts: pl.DataFrame, gone: pl.DataFrame
) -> None:
    key = ["counter_id", "service_date"]
    known = counts.join(gone, on=key, how="anti")
    truth = counts.join(gone, on=key).select("counter_id", "ts_utc", truth="hourly_count")
    slot = [pl.col("service_date").dt.weekday().alias("weekday"), "local_hour"]
    plain = (
        known.filter(pl.col("service_date").is_between(FIRST - timedelta(28), LAST + timedelta(28)))
        .group_by("counter_id", *slot)
        .agg(plain=pl.col("hourly_count").mean())
    )

    filled = fill_gaps(known, FIRST, LAST).join(truth, on=["counter_id", "ts_utc"])
    scored = filled.with_columns(slot[0]).join(plain, on=["counter_id", "weekday", "local_hour"])

    assert scored.height == truth.height > 200
    assert set(filled["fill_method"]) == {FillMethod.NEIGHBOURS}
    error, plain_error = (
        (scored[name] - scored["truth"]).abs().sum() / scored["truth"].sum()
        for name in ("count_filled", "plain")
    )
    assert error < 0.9 * plain_error


def test_published_counts_stay_and_every_hour_of_the_day_is_there(
    counts: pl.DataFrame, gone: pl.DataFrame
) -> None:
    known = counts.join(gone, on=["counter_id", "service_date"], how="anti")
    filled = fill_gaps(known, FIRST, LAST)

    assert FILLED_COUNTS.violations(filled) == []
    published = filled.filter(pl.col("fill_method") == FillMethod.PUBLISHED)
    within = known.filter(pl.col("service_date").is_between(FIRST, LAST))
    assert published.height == within.height
    assert (published["count_filled"] == published["hourly_count"]).all()
    hours = filled.group_by("counter_id", "service_date").len()
    assert hours.height == 6 * 20
    assert set(hours.filter(pl.col("service_date") != AUTUMN)["len"]) == {24}
    assert set(hours.filter(pl.col("service_date") == AUTUMN)["len"]) == {25}


def test_both_hours_that_autumn_shows_twice_are_counted_or_filled() -> None:
    frame = city(AUTUMN - timedelta(days=30), AUTUMN, counters=4).with_columns(**FLAGS)
    day = fill_gaps(frame, AUTUMN, AUTUMN)

    assert day.height == 4 * 25
    assert set(day["fill_method"]) == {FillMethod.PUBLISHED}
    missing = frame.filter((pl.col("counter_id") != "c01") | (pl.col("service_date") < AUTUMN))
    filled = fill_gaps(missing, AUTUMN, AUTUMN).filter(counter_id="c01")
    assert filled["ts_utc"].to_list() == hours_of_day(AUTUMN)
    assert set(filled["fill_method"]) == {FillMethod.NEIGHBOURS}


def test_the_hour_that_spring_skips_is_no_gap() -> None:
    frame = city(SPRING - timedelta(days=30), SPRING, counters=4).with_columns(**FLAGS)
    day = fill_gaps(frame.filter(pl.col("service_date") < SPRING), SPRING, SPRING)

    assert day.height == 4 * 23
    assert FillMethod.PUBLISHED not in set(day["fill_method"])


def test_outages_spikes_stuck_hours_and_sure_zeros_are_estimated_too(counts: pl.DataFrame) -> None:
    day = pl.col("service_date") == LAST
    at = {name: (pl.col("counter_id") == name) & day for name in ("c02", "c03", "c04", "c05")}
    faulty = counts.with_columns(
        is_outage=at["c03"],
        is_stuck=at["c02"] & (pl.col("local_hour") > 20),
        is_spike=at["c04"] & (pl.col("local_hour") == 8),
        hourly_count=pl.when(at["c05"] & pl.col("local_hour").is_between(8, 9))
        .then(0)
        .otherwise("hourly_count"),
    )

    filled = fill_gaps(faulty, LAST, LAST).filter(pl.col("fill_method") != FillMethod.PUBLISHED)

    assert filled.group_by("counter_id").len().sort("counter_id").rows() == [
        ("c02", 3),
        ("c03", 24),
        ("c04", 1),
        ("c05", 2),
    ]
    assert (filled.filter(counter_id="c05")["count_filled"] > 12).all()


def test_one_counter_alone_is_filled_from_its_own_profile(counts: pl.DataFrame) -> None:
    alone = counts.filter(pl.col("counter_id") == "c04")
    filled = fill_gaps(alone.filter(pl.col("service_date") != LAST), LAST, LAST)

    assert set(filled["fill_method"]) == {FillMethod.PROFILE}
    expected = alone.filter(pl.col("service_date") == LAST)["hourly_count"].sum()
    assert filled["count_filled"].sum() == pytest.approx(expected, rel=0.5)


def test_without_anything_known_the_method_is_none_and_a_counter_long_silent_has_no_rows(
    counts: pl.DataFrame,
) -> None:
    first_day = counts["service_date"].min()
    assert isinstance(first_day, date)
    begun = counts.filter(pl.col("service_date") <= first_day, pl.col("local_hour") < 12)
    filled = fill_gaps(begun, first_day, first_day + timedelta(days=WINDOW_DAYS + 1))

    assert set(filled.filter(pl.col("local_hour") >= 12)["fill_method"]) == {FillMethod.NONE}
    assert filled.filter(pl.col("fill_method") == FillMethod.NONE)["count_filled"].null_count() > 0
    assert filled["service_date"].max() == first_day + timedelta(days=WINDOW_DAYS)


def test_a_day_is_filled_the_same_alone_and_in_a_range(counts: pl.DataFrame, gone: pl.DataFrame) -> None:
    known = counts.join(gone, on=["counter_id", "service_date"], how="anti")
    whole = fill_gaps(known, FIRST, LAST)
    for day in gone["service_date"].unique().sort().head(3):
        assert_frame_equal(fill_gaps(known, day, day), whole.filter(service_date=day), check_exact=True)


def test_no_counts_no_rows_and_a_missing_column_is_named(counts: pl.DataFrame) -> None:
    assert fill_gaps(counts.head(0), FIRST, LAST).is_empty()
    with pytest.raises(PermanentError, match="is_spike"):
        fill_gaps(counts.drop("is_spike"), FIRST, LAST)
