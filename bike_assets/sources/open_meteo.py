"""Weather of Open-Meteo: observed from its archive, forecasts as they were issued.

Belongs here: which of its APIs knows what, and what its hours mean. Does not belong here: retries (`polite_http`).

- Observed hours are those of the Historical Weather API, some days late: what is not there yet is left out.
- The forecast of today, asked for by 07:00, is that of the Forecast API. Later it would know more than the forecast of
  counts could have known.
- The forecast of an earlier day is put together from the Previous Runs API, which keeps what was predicted a whole
  number of days before each hour. Of the hours k days after the issue date it takes what was predicted k + 1 days
  before them: always on the day before the issue date, so never too late, and a little older than it might have been.

Temperature and wind are of the instant, rain is of the hour before it; an hour of ours begins at its timestamp, so its
rain stands one hour later in the answer.

Reference: https://open-meteo.com/en/docs, /historical-weather-api, /previous-runs-api
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, ClassVar, Final
from zoneinfo import ZoneInfo

import polars as pl

from bike_assets.core.calendar import LOCAL_TZ, days_between, issue_time, local_columns
from bike_assets.core.contracts import UTC_TIMESTAMP
from bike_assets.core.errors import PermanentError
from bike_assets.sources.polite_http import PoliteClient
from bike_assets.sources.weather import (
    FORECAST_DAYS,
    WEATHER_COLUMNS,
    WEATHER_SCHEMA,
    WeatherBatch,
    observed_rows,
)

ARCHIVE_URL: Final = "https://archive-api.open-meteo.com/v1/archive"
FORECAST_URL: Final = "https://api.open-meteo.com/v1/forecast"
PREVIOUS_RUNS_URL: Final = "https://previous-runs-api.open-meteo.com/v1/forecast"

PREVIOUS_RUNS_SINCE: Final = date(2021, 4, 1)
"""First day of which the Previous Runs API knows anything, temperature; rain and wind begin in 2024."""

_VARIABLES: Final = {"temperature_c": "temperature_2m", "rain_mm": "rain", "wind_kmh": "wind_speed_10m"}
_DAYS_A_CALL: Final = 90
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Addresses:
    """Where the three APIs are; by default Open-Meteo's own, free of charge for what is not commercial."""

    archive: str = ARCHIVE_URL
    forecast: str = FORECAST_URL
    previous_runs: str = PREVIOUS_RUNS_URL


@dataclass(frozen=True)
class OpenMeteo:
    """Open-Meteo as a `WeatherSource`.

    Attributes:
        client: who asks.
        latitude, longitude: where, in degrees.
        addresses: where the three APIs are.
        now: the clock, which says what is still to come.
    """

    name: ClassVar[str] = "open-meteo"

    client: PoliteClient
    latitude: float
    longitude: float
    addresses: Addresses = Addresses()
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def read(self, first: date, last: date) -> WeatherBatch:
        """Forecasts issued on the days in [first, last], and the hours of these days as observed.

        Raises:
            PermanentError: an API refuses, or does not answer as it should.
            TransientError: it cannot be reached just now, or the quota is spent.
        """
        now = self.now()
        today = now.astimezone(ZoneInfo(LOCAL_TZ)).date()
        frames = [pl.DataFrame(schema=WEATHER_SCHEMA)]
        for start, end in _parts(first, min(last, today - _DAY)):
            hours = self._hours(self.addresses.archive, list(_VARIABLES.values()), start - _DAY, end)
            rows = observed_rows(_quantities(hours), self.name)
            frames.append(rows.filter(pl.col("service_date").is_between(start, end)))
        newest = min(last, today)
        if first <= today <= last and now <= issue_time(today):
            frames.append(self._live(today, now))
            newest = today - _DAY
        for start, end in _parts(max(first, PREVIOUS_RUNS_SINCE), newest):
            frames.extend(self._afterwards(start, end))
        return WeatherBatch(pl.concat(frames))

    def _live(self, issue_date: date, now: datetime) -> pl.DataFrame:
        """The forecast as it is now."""
        week = issue_date + (FORECAST_DAYS - 1) * _DAY
        hours = self._hours(self.addresses.forecast, list(_VARIABLES.values()), issue_date - _DAY, week)
        return self._issued(_quantities(hours), issue_date, pl.lit(now, UTC_TIMESTAMP))

    def _afterwards(self, first: date, last: date) -> Iterator[pl.DataFrame]:
        """The forecasts issued on these days, put together from what was predicted on the days before."""
        ages = range(1, FORECAST_DAYS + 1)
        names = [f"{variable}_previous_day{age}" for variable in _VARIABLES.values() for age in ages]
        week = (FORECAST_DAYS - 1) * _DAY
        answer = self._hours(self.addresses.previous_runs, names, first - _DAY, last + week)
        by_age = [
            local_columns(_quantities(answer, f"_previous_day{age}")).with_columns(
                issued_at=pl.col("ts_utc") + timedelta(hours=1) - age * _DAY
            )
            for age in ages
        ]
        for issue_date in days_between(first, last):
            hours = pl.concat(
                predicted.filter(pl.col("service_date") == issue_date + (age - 1) * _DAY)
                for age, predicted in zip(ages, by_age, strict=True)
            )
            yield self._issued(hours, issue_date, pl.col("issued_at"))

    def _issued(self, hours: pl.DataFrame, issue_date: date, issued_at: pl.Expr) -> pl.DataFrame:
        """The hours of the issue date and the six days after it, as rows; hours that know nothing are left out."""
        return (
            local_columns(hours)
            .filter(
                pl.col("service_date").is_between(issue_date, issue_date + (FORECAST_DAYS - 1) * _DAY),
                ~pl.all_horizontal(pl.col(list(WEATHER_COLUMNS)).is_null()),
            )
            .with_columns(
                service_date=pl.lit(issue_date),
                kind=pl.lit("forecast"),
                issued_at=issued_at,
                source=pl.lit(self.name),
            )
            .select(WEATHER_SCHEMA.names())
        )

    def _hours(self, url: str, variables: Sequence[str], first: date, last: date) -> pl.DataFrame:
        """The hours of these UTC days and one more empty one: `ts_utc` and the variables."""
        params: dict[str, str | int] = {
            "latitude": f"{self.latitude:.4f}",
            "longitude": f"{self.longitude:.4f}",
            "hourly": ",".join(variables),
            "start_date": first.isoformat(),
            "end_date": last.isoformat(),
            "timezone": "GMT",
            "timeformat": "unixtime",
            "wind_speed_unit": "kmh",
        }
        answer = self.client.persistently(lambda: self.client.json(url, params))
        return _frame(url, answer, variables)


def _frame(url: str, answer: dict[str, Any], variables: Sequence[str]) -> pl.DataFrame:
    try:
        hourly = answer["hourly"]
        return pl.DataFrame(
            {"ts_utc": hourly["time"], **{name: hourly[name] for name in variables}},
            schema={"ts_utc": pl.Int64, **dict.fromkeys(variables, pl.Float64)},
        ).with_columns(pl.from_epoch("ts_utc", "s").cast(pl.Datetime("us")).dt.replace_time_zone("UTC"))
    except (KeyError, TypeError, pl.exceptions.PolarsError) as error:
        raise PermanentError(
            f"{url}: the answer does not have the hours that were asked for ({type(error).__name__}: {error}); "
            "check the address in the settings"
        ) from error


def _quantities(hours: pl.DataFrame, suffix: str = "") -> pl.DataFrame:
    """Hours by their start: `ts_utc` and the names of `WEATHER_COLUMNS`. Rain is told when its hour is over."""
    named = hours.select("ts_utc", **{name: variable + suffix for name, variable in _VARIABLES.items()})
    rain = named.select(pl.col("ts_utc") - timedelta(hours=1), "rain_mm")
    return named.drop("rain_mm").join(rain, on="ts_utc", how="left", maintain_order="left")


def _parts(first: date, last: date) -> Iterator[tuple[date, date]]:
    """The range in pieces of one call each."""
    while first <= last:
        end = min(last, first + (_DAYS_A_CALL - 1) * _DAY)
        yield first, end
        first = end + _DAY
