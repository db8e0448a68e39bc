"""A source as of a morning: nothing that was published later is there yet."""

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from bike_assets.core.calendar import LOCAL_TZ
from bike_assets.sources.as_of import History, weather_on
from bike_assets.sources.base import COUNTS_SCHEMA, REJECTED_SCHEMA, SourceBatch
from bike_assets.sources.simulated_weather import SimulatedWeather
from bike_assets.sources.simulator import Scenario, SimulatorSource

FIRST, LAST = date(2024, 5, 1), date(2024, 5, 31)


def simulator(**settings: object) -> SimulatorSource:
    return SimulatorSource(
        counters=4, first_day=FIRST, last_day=LAST, scenario=Scenario.LATE_CORRECTION,
        scenario_start=date(2024, 5, 10), **settings,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("morning", [date(2024, 5, 11), date(2024, 5, 18), date(2024, 6, 9)])
def test_it_is_what_the_simulator_itself_says_was_known(morning: date) -> None:
    history = History.of(simulator().read(FIRST, LAST))
    known = simulator(known_on=morning - timedelta(days=1)).read(FIRST, LAST).counts
    assert history.read(FIRST, LAST, morning=morning).counts.equals(known)


def test_days_are_published_the_morning_after() -> None:
    history = History.of(simulator().read(FIRST, LAST))
    assert history.span() == (FIRST, LAST)
    days = history.read(FIRST, LAST, morning=date(2024, 5, 9)).counts["service_date"]
    assert (days.min(), days.max()) == (FIRST, date(2024, 5, 8))
    assert history.read(FIRST, FIRST, morning=FIRST).counts.is_empty()


def test_the_first_export_counts_as_daily_and_a_later_value_from_its_own_export_on() -> None:
    """Two exports of one hour: the portal had shown the first value for months when the second was written."""
    early, late = datetime(2024, 6, 30, 21, tzinfo=UTC), datetime(2024, 9, 30, 21, tzinfo=UTC)
    row = simulator().read(date(2024, 5, 2), date(2024, 5, 2)).counts.head(1)
    exports = pl.concat(
        [
            row.with_columns(
                published_until=pl.lit(early), source_file=pl.lit("june"), hourly_count=pl.lit(0.0)
            ),
            row.with_columns(
                published_until=pl.lit(late), source_file=pl.lit("september"), hourly_count=pl.lit(9.0)
            ),
        ]
    ).cast(dict(COUNTS_SCHEMA.items()))
    batch = SourceBatch(exports, pl.DataFrame(schema=REJECTED_SCHEMA), files=frozenset({"june", "september"}))
    history = History.of(batch)

    def known(morning: date) -> list[float]:
        return history.read(FIRST, LAST, morning=morning).counts["hourly_count"].to_list()

    assert known(date(2024, 5, 2)) == []
    assert known(date(2024, 5, 3)) == known(date(2024, 9, 30)) == [0.0]
    assert sorted(known(date(2024, 10, 1))) == [0.0, 9.0]
    told = history.read(FIRST, LAST, morning=date(2024, 5, 3)).counts["published_until"]
    assert told.dt.convert_time_zone(LOCAL_TZ).dt.date().item() == date(2024, 5, 2), "no word of the export"
    assert history.read(FIRST, LAST, morning=date(2024, 5, 3)).files == batch.files


def test_weather_is_forecast_on_its_morning_and_observed_on_the_next() -> None:
    morning = date(2024, 5, 10)
    batch = SimulatedWeather(seed=7, last_day=LAST).read(FIRST, LAST)
    known = weather_on(batch, morning).rows
    newest = dict(known.group_by("kind").agg(pl.col("service_date").max()).iter_rows())
    assert newest == {"observed": morning - timedelta(days=1), "forecast": morning}
