"""Weather as a forecaster may know it: observed on the days before the issue date, forecast from there on.

Belongs here: laying rows of `RAW_WEATHER` out by day and hour, what is derived from temperature, rain and wind, and
the stand-in for forecasts that nobody kept. Does not belong here: where weather comes from, and how features compare
it with the weather of the days that a forecast rests on (`bike_assets.core.features`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bike_assets.core.calendar import LOCAL_TZ, local_columns
from bike_assets.core.errors import PermanentError

WEATHER_COLUMNS: Final = ("temperature_c", "rain_mm", "wind_kmh")
_KEYS: Final = ("service_date", "ts_utc", "kind")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class KnownWeather:
    """Observed [quantity, day, hour of the wall clock] and forecast [quantity, issue date, day ahead, hour].

    Quantities are those of `WEATHER_COLUMNS`, in their order and units; NaN where unknown. Observations of an issue
    date and of later days stand here too: who reads them looks at days before the issue date only.
    """

    observed: Array
    forecast: Array


def lay_out(
    weather: pl.DataFrame | None, days: Sequence[date], issue_dates: Sequence[date], horizons: int, tz: str
) -> KnownWeather:
    """Rows of `RAW_WEATHER` as arrays; what is missing, or all of it, is NaN.

    Args:
        weather: service_date, ts_utc, kind and `WEATHER_COLUMNS`; None where there is no weather.
        days: local days of the observations, each after the other.
        issue_dates: local days of issue, ascending.
        horizons: days ahead that a forecast is looked at, the issue date being the first.
        tz: time zone of the wall clock.

    Raises:
        PermanentError: a column is missing.
    """
    observed = np.full((len(WEATHER_COLUMNS), len(days), 24), np.nan)
    forecast = np.full((len(WEATHER_COLUMNS), len(issue_dates), horizons, 24), np.nan)
    if weather is None:
        return KnownWeather(observed, forecast)
    if missing := [name for name in (*_KEYS, *WEATHER_COLUMNS) if name not in weather.columns]:
        raise PermanentError(f"features need the column {', '.join(missing)} of raw weather")
    # Sorted, because means are taken over rows in the order they come in.
    rows = weather.filter(pl.col("service_date").is_between(days[0], issue_dates[-1])).sort(*_KEYS)
    local = local_columns(rows.rename({"service_date": "issued"}), tz=tz)
    hour = pl.col("local_hour").cast(pl.Int64)
    day = (pl.col("service_date") - days[0]).dt.total_days().cast(pl.Int64) * 24 + hour
    seen = local.filter(pl.col("kind") == "observed", pl.col("service_date").is_between(days[0], days[-1]))
    ahead = (pl.col("service_date") - pl.col("issued")).dt.total_days().cast(pl.Int64)
    place = {issued: i for i, issued in enumerate(issue_dates)}
    coming = local.filter(
        pl.col("kind") == "forecast", pl.col("issued").is_in(list(place)), ahead.is_between(0, horizons - 1)
    )
    issue = pl.col("issued").replace_strict(place, return_dtype=pl.Int64)
    for i, name in enumerate(WEATHER_COLUMNS):
        observed[i] = _mean_at(seen, day, name, observed[i].size).reshape(observed[i].shape)
        at = (issue * horizons + ahead) * 24 + hour
        forecast[i] = _mean_at(coming, at, name, forecast[i].size).reshape(forecast[i].shape)
    return KnownWeather(observed, forecast)


def _mean_at(rows: pl.DataFrame, place: pl.Expr, name: str, size: int) -> Array:
    """An hour that the wall clock repeats has the mean of both."""
    known = rows.select(place=place, value=pl.col(name).cast(pl.Float64)).drop_nulls()
    where, value = known["place"].to_numpy(), known["value"].to_numpy()
    with np.errstate(invalid="ignore"):
        return np.asarray(np.bincount(where, value, size) / np.bincount(where, minlength=size))


def feels_like(temperature_c: Array, wind_kmh: Array) -> Array:
    """Wind chill in °C (JAG/TI formula of 2001); above 10 °C and in still air the temperature itself."""
    strength = np.maximum(wind_kmh, 4.8) ** 0.16
    chill = 13.12 + 0.6215 * temperature_c - 11.37 * strength + 0.3965 * temperature_c * strength
    return np.asarray(
        np.where((temperature_c <= 10) & (wind_kmh > 4.8), np.minimum(chill, temperature_c), temperature_c)
    )


def observed_as_forecast(
    weather: pl.DataFrame, issue_dates: Sequence[date], days: int = 7, tz: str = LOCAL_TZ
) -> pl.DataFrame:
    """Weather in which every issue date's forecast was perfect: for days whose forecasts nobody kept.

    A measure of what weather is worth, not of what would have been forecast: real ones err more, and ever more with
    the days ahead.

    Args:
        weather: columns of `lay_out`; its forecasts are dropped.
        issue_dates: days on which a forecast is issued.
        days: local days each covers, the issue date being the first.
        tz: time zone of the local days.
    """
    observed = weather.filter(kind="observed")
    local = local_columns(observed.rename({"service_date": "issued"}), tz=tz).drop("issued", "local_hour")
    parts = [observed]
    for ahead in range(days):
        issued = pl.DataFrame({"issued": sorted(set(issue_dates))}, schema={"issued": pl.Date}).with_columns(
            service_date=pl.col("issued") + timedelta(days=ahead)
        )
        parts.append(
            local.join(issued, on="service_date", how="inner")
            .with_columns(service_date="issued", kind=pl.lit("forecast"))
            .select(observed.columns)
        )
    return pl.concat(parts)
