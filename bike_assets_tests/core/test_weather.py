"""Weather enters features as it was known: a morning's own forecast, and observations of the days before it."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from bike_assets.core.calendar import days_between, hours_of_day, local_columns
from bike_assets.core.contracts import UTC_TIMESTAMP
from bike_assets.core.errors import PermanentError
from bike_assets.core.features import LOOKBACK_DAYS, WEATHER_FEATURES, build_features, drop_weather
from bike_assets.core.weather import feels_like, lay_out, observed_as_forecast
from bike_assets_tests.core.synthetic import city

FIRST, LAST = date(2023, 9, 20), date(2024, 1, 20)
ISSUE = date(2024, 1, 10)
DAY = timedelta(days=1)


def observations(first: date, last: date) -> pl.DataFrame:
    """Every hour's observed weather, from a seed."""
    hours = [hour for day in days_between(first, last) for hour in hours_of_day(day)]
    rng = np.random.default_rng(3)
    frame = pl.DataFrame({"ts_utc": hours}, schema={"ts_utc": UTC_TIMESTAMP}).with_columns(
        temperature_c=pl.Series(rng.normal(9, 5, len(hours))),
        rain_mm=pl.Series(rng.gamma(0.2, 1.0, len(hours))),
        wind_kmh=pl.Series(rng.gamma(4, 4, len(hours))),
        kind=pl.lit("observed"),
    )
    return local_columns(frame).drop("local_hour")


@pytest.fixture(scope="module")
def counts() -> pl.DataFrame:
    return city(FIRST, LAST, counters=2)


@pytest.fixture(scope="module")
def weather() -> pl.DataFrame:
    return observed_as_forecast(observations(FIRST, LAST), days_between(ISSUE - 20 * DAY, LAST))


def test_without_weather_its_features_are_null_and_all_others_the_same(
    counts: pl.DataFrame, weather: pl.DataFrame
) -> None:
    with_it, without = (build_features(counts, [ISSUE], weather=frame) for frame in (weather, None))
    others = [name for name in with_it.columns if name not in WEATHER_FEATURES]
    assert_frame_equal(with_it.select(others), without.select(others), check_exact=True)
    for name in WEATHER_FEATURES:
        assert without[name].null_count() == without.height
        assert with_it[name].null_count() == 0, name
    assert_frame_equal(build_features(counts, [ISSUE], weather=weather.clear()), without, check_exact=True)


def test_features_hold_the_forecast_and_compare_it_with_the_past(
    counts: pl.DataFrame, weather: pl.DataFrame
) -> None:
    features = build_features(counts, [ISSUE], weather=weather)
    ts = datetime(2024, 1, 12, 7, tzinfo=UTC)  # Friday 08:00 local
    (row,) = features.filter(pl.col("target_ts") == ts, counter_id="c01").iter_rows(named=True)
    seen = {
        hour: values
        for hour, *values in weather.filter(kind="observed")
        .select("ts_utc", "temperature_c", "rain_mm", "wind_kmh")
        .iter_rows()
    }
    temperature, rain, wind = seen[ts]
    assert row["temperature"] == np.float32(temperature)
    assert row["rain_hour"] == np.float32(np.log1p(rain))
    assert row["wind"] == np.float32(wind)
    near = sum(seen[ts + timedelta(hours=k)][1] for k in (-1, 0, 1))
    assert row["rain_near"] == pytest.approx(np.log1p(near))
    assert row["yesterday_rain_day"] == pytest.approx(
        np.log1p(sum(seen[datetime(2024, 1, 9, hour, tzinfo=UTC)][1] for hour in range(6, 21)))
    )
    assert row["temperature_excess"] == pytest.approx(temperature - 9, abs=6)
    assert row["rain_before"] == pytest.approx(
        np.log1p(sum(seen[datetime(2024, 1, 12, hour, tzinfo=UTC)][1] for hour in (5, 6)))
    )


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(issue=st.dates(ISSUE - 10 * DAY, LAST), seed=st.integers(0, 2**16))
def test_no_weather_that_was_not_known_changes_a_feature(
    counts: pl.DataFrame, weather: pl.DataFrame, issue: date, seed: int
) -> None:
    """Later observations and every other morning's forecast are shuffled, doubled or gone: nothing changes."""
    unknown = (
        pl.when(pl.col("kind") == "observed")
        .then(pl.col("service_date") >= issue)
        .otherwise(pl.col("service_date") != issue)
    )
    later = weather.filter(unknown)
    other = later.with_columns(pl.col("temperature_c", "rain_mm", "wind_kmh").shuffle(seed=seed) * 2).sample(
        fraction=0.7, seed=seed
    )
    changed = pl.concat([weather.filter(~unknown), other]).sample(fraction=1, shuffle=True, seed=seed)
    assert_frame_equal(
        build_features(counts, [issue], weather=changed),
        build_features(counts, [issue], weather=weather),
        check_exact=True,
    )


def test_older_weather_and_other_issue_dates_do_not_matter(
    counts: pl.DataFrame, weather: pl.DataFrame
) -> None:
    alone = build_features(
        counts,
        [ISSUE],
        weather=weather.filter(pl.col("service_date").is_between(ISSUE - LOOKBACK_DAYS * DAY, ISSUE)),
    )
    together = build_features(counts, [ISSUE - 5 * DAY, ISSUE, ISSUE + DAY], weather=weather)
    assert_frame_equal(together.filter(service_date=ISSUE), alone, check_exact=True)


@pytest.mark.parametrize(("day", "known"), [(date(2024, 3, 31), 23), (date(2023, 10, 29), 24)])
def test_days_of_clock_changes_fill_the_hours_they_have(day: date, known: int) -> None:
    seen = observations(day, day)
    laid = lay_out(observed_as_forecast(seen, [day]), [day], [day], 1, "Europe/Paris")
    assert np.isfinite(laid.observed[0]).sum() == known
    assert np.array_equal(laid.observed[:, 0], laid.forecast[:, 0, 0], equal_nan=True)
    if known == 24:
        twice = seen["temperature_c"][2:4].mean()
        assert laid.observed[0, 0, 2] == twice


def test_a_table_without_its_columns_is_refused(counts: pl.DataFrame, weather: pl.DataFrame) -> None:
    with pytest.raises(PermanentError, match="rain_mm"):
        build_features(counts, [ISSUE], weather=weather.drop("rain_mm"))


def test_wind_chills_cold_air_only() -> None:
    temperature, wind = np.array([-5.0, 5.0, 5.0, 20.0, np.nan]), np.array([30.0, 30.0, 0.0, 30.0, 3.0])
    felt = feels_like(temperature, wind)
    assert felt[0] == pytest.approx(-13.0, abs=0.2)  # the published table for -5 °C and 30 km/h
    assert felt[1] == pytest.approx(0.1, abs=0.2)
    assert felt[2:4].tolist() == [5.0, 20.0]
    assert np.isnan(felt[4])


def test_dropping_weather_is_a_property_of_the_issue_date(
    counts: pl.DataFrame, weather: pl.DataFrame
) -> None:
    features = build_features(counts, days_between(ISSUE - 19 * DAY, ISSUE), horizons=[1], weather=weather)
    dropped = drop_weather(features, 0.4, seed=1)
    gone = dropped.group_by("service_date").agg(pl.col("temperature").is_null().mean())["temperature"]
    assert set(gone) == {0.0, 1.0}
    assert 4 <= gone.sum() <= 12
    others = [name for name in features.columns if name not in WEATHER_FEATURES]
    assert_frame_equal(dropped.select(others), features.select(others))
    part = features.filter(service_date=ISSUE)
    assert_frame_equal(drop_weather(part, 0.4, seed=1), dropped.filter(service_date=ISSUE))
    assert drop_weather(features, 0.0) is features
