"""Storing weather: forecasts stay as they were issued, observations arrive later, nothing known is lost."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.assets.weather import store_weather
from bike_assets.core.contracts import RAW_WEATHER
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.sources.simulated_weather import SimulatedWeather
from bike_assets.sources.weather import WEATHER_SCHEMA, WeatherBatch

FIRST, LAST = date(2024, 3, 30), date(2024, 4, 1)
MORNING = datetime(2024, 4, 2, 5, tzinfo=UTC)
LATER = MORNING + timedelta(days=1)


@pytest.fixture
def warehouse(tmp_path: Path) -> DuckDBWarehouse:
    return DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"))


@pytest.fixture(scope="module")
def given() -> pl.DataFrame:
    return SimulatedWeather(seed=7, last_day=LAST).read(FIRST, LAST).rows


def stored(warehouse: DuckDBWarehouse, rows: pl.DataFrame, now: datetime = LATER) -> list[date]:
    return store_weather(warehouse, WeatherBatch(rows), FIRST, LAST, now=now)[1]


def test_rows_are_stored_as_the_source_gave_them_and_the_same_again_writes_nothing(
    warehouse: DuckDBWarehouse, given: pl.DataFrame
) -> None:
    assert stored(warehouse, given, MORNING) == [FIRST, FIRST + timedelta(days=1), LAST]
    assert stored(warehouse, given) == []

    found = warehouse.read(RAW_WEATHER)
    assert_frame_equal(found.select(WEATHER_SCHEMA.names()), given.sort(RAW_WEATHER.key))
    assert found.get_column("ingested_at").unique().to_list() == [MORNING]


def test_observations_that_arrive_later_join_the_forecast_of_their_day(
    warehouse: DuckDBWarehouse, given: pl.DataFrame
) -> None:
    stored(warehouse, given.filter((pl.col("kind") == "forecast") | (pl.col("service_date") < LAST)), MORNING)

    assert stored(warehouse, given.filter(kind="observed")) == [LAST]
    assert warehouse.read(RAW_WEATHER).height == given.height


def test_a_forecast_put_together_afterwards_does_not_replace_the_one_of_the_morning(
    warehouse: DuckDBWarehouse, given: pl.DataFrame
) -> None:
    earlier = given.with_columns(
        issued_at=pl.col("issued_at") - timedelta(hours=24), temperature_c=pl.lit(0.0)
    ).filter(kind="forecast")
    stored(warehouse, given, MORNING)

    assert stored(warehouse, earlier) == []
    assert_frame_equal(
        warehouse.read(RAW_WEATHER).select(WEATHER_SCHEMA.names()), given.sort(RAW_WEATHER.key)
    )


def test_the_forecast_of_the_morning_replaces_one_put_together_of_older_runs(
    warehouse: DuckDBWarehouse, given: pl.DataFrame
) -> None:
    stored(warehouse, given.with_columns(issued_at=pl.col("issued_at") - timedelta(hours=24)), MORNING)
    later = given.filter(kind="forecast", service_date=LAST)

    assert stored(warehouse, later) == [LAST]
    assert warehouse.read(RAW_WEATHER, LAST, LAST).filter(kind="forecast").height == later.height


def test_corrected_observations_replace_their_day_alone(
    warehouse: DuckDBWarehouse, given: pl.DataFrame
) -> None:
    stored(warehouse, given, MORNING)
    corrected = given.filter(kind="observed", service_date=FIRST).with_columns(rain_mm=pl.lit(9.0))

    assert stored(warehouse, corrected) == [FIRST]
    found = warehouse.read(RAW_WEATHER, FIRST, FIRST).filter(kind="observed")
    assert found.get_column("rain_mm").unique().to_list() == [9.0]


def test_no_weather_is_stored_as_none_and_takes_none_away(
    warehouse: DuckDBWarehouse, given: pl.DataFrame
) -> None:
    nothing = pl.DataFrame(schema=WEATHER_SCHEMA)
    assert stored(warehouse, nothing) == []
    stored(warehouse, given, MORNING)
    assert stored(warehouse, nothing) == []
    assert warehouse.read(RAW_WEATHER).height == given.height
