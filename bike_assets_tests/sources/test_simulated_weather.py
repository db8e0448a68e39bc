"""The simulated weather: one for counts and weather, and forecasts that get worse the further they look."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from bike_assets.core.calendar import hours_of_day, issue_time
from bike_assets.sources.simulated_weather import SimulatedWeather, month_weather, traffic_factor
from bike_assets.sources.simulator import SimulatorSource
from bike_assets.sources.weather import WEATHER_SCHEMA

FIRST, LAST = date(2023, 9, 1), date(2024, 4, 30)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return SimulatedWeather(seed=7, last_day=LAST).read(FIRST, LAST + timedelta(days=1)).rows


def observed(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(kind="observed").select("ts_utc", "temperature_c", "rain_mm", "wind_kmh")


def errors(rows: pl.DataFrame, column: str) -> list[float]:
    """Root mean square error of the forecasts on each of the days they look at."""
    both = rows.filter(kind="forecast").join(observed(rows), on="ts_utc", suffix="_truth")
    lead = (pl.col("ts_utc").dt.convert_time_zone("Europe/Paris").dt.date() - pl.col("service_date")).dt
    squared = (pl.col(column) - pl.col(f"{column}_truth")) ** 2
    by_lead = both.group_by(lead.total_days().alias("lead")).agg(squared.mean().sqrt().alias("rmse"))
    return by_lead.sort("lead").get_column("rmse").to_list()


def test_a_partition_has_its_day_as_observed_and_the_forecast_of_its_week(rows: pl.DataFrame) -> None:
    assert rows.schema == WEATHER_SCHEMA
    for day in (FIRST, date(2023, 10, 29), date(2024, 3, 31)):
        part = rows.filter(service_date=day)
        assert part.filter(kind="observed").get_column("ts_utc").to_list() == hours_of_day(day)
        week = [hour for ahead in range(7) for hour in hours_of_day(day + timedelta(days=ahead))]
        forecast = part.filter(kind="forecast")
        assert forecast.get_column("ts_utc").to_list() == week
        assert forecast.get_column("issued_at").unique().to_list() == [issue_time(day)]


def test_the_newest_forecast_is_issued_after_the_last_observed_day(rows: pl.DataFrame) -> None:
    assert rows.filter(kind="observed").get_column("service_date").max() == LAST
    assert rows.filter(kind="forecast").get_column("service_date").max() == LAST + timedelta(days=1)


def test_a_day_is_the_same_in_every_range(rows: pl.DataFrame) -> None:
    for day in (FIRST, date(2024, 2, 29)):
        alone = SimulatedWeather(seed=7, last_day=date(2030, 1, 1)).read(day, day).rows
        assert alone.equals(rows.filter(service_date=day).sort("kind", descending=True))


def test_errors_of_forecasts_grow_with_the_days_they_look_ahead(rows: pl.DataFrame) -> None:
    warmth = errors(rows, "temperature_c")
    assert warmth == sorted(warmth)
    assert 0.6 < warmth[0] < 1.2
    assert 1.8 < warmth[6] < 3.2
    rain = errors(rows, "rain_mm")
    assert 0 < rain[0] < 0.75 * rain[6]


def test_forecasts_expect_as_much_rain_as_falls(rows: pl.DataFrame) -> None:
    fallen = rows.filter(kind="observed").get_column("rain_mm").mean()
    expected = rows.filter(kind="forecast").get_column("rain_mm").mean()
    assert expected == pytest.approx(fallen, rel=0.35)


def test_it_is_a_climate(rows: pl.DataFrame) -> None:
    truth = observed(rows)
    assert truth.get_column("temperature_c").is_between(-12, 35).all()
    wet = (truth.get_column("rain_mm") > 0).mean()
    assert 0.02 < float(wet or 0) < 0.12


def test_counts_follow_the_weather() -> None:
    """Rain and cold keep people away by what `traffic_factor` says, in the counts themselves."""
    counts = SimulatorSource(counters=30, first_day=FIRST, last_day=LAST).read(FIRST, LAST).counts
    city = counts.group_by("ts_utc").agg(pl.col("hourly_count").sum())
    weather = pl.concat(
        month_weather(7, year, month) for year, month in ((2023, 10), (2023, 11), (2024, 2), (2024, 3))
    )
    hours = weather.with_columns(factor=pl.Series(traffic_factor(weather))).join(city, on="ts_utc")
    usual = pl.col("hourly_count").median().over(pl.col("ts_utc").dt.weekday(), "local_hour")
    busy = hours.with_columns(usual=usual).filter(pl.col("usual") > 200)
    wet = busy.filter(pl.col("rain_mm") > 2).select((pl.col("hourly_count") / pl.col("usual")).mean()).item()
    dry = busy.filter(rain_mm=0).select((pl.col("hourly_count") / pl.col("usual")).mean()).item()
    assert wet < 0.8 * dry
    log = busy.select(pl.col("factor").log(), (pl.col("hourly_count") / pl.col("usual")).log().alias("moved"))
    assert np.corrcoef(log.to_numpy().T)[0, 1] > 0.4
