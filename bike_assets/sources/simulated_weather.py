"""The weather of the simulated city: what it was, what was expected of it, and what it does to traffic.

Belongs here: the one weather that both the simulated counts and `raw_weather` are made from, so that a model can
learn from the second what moved the first. Does not belong here: anything else that moves counts.

Temperature is a yearly and a daily wave and an anomaly that lasts for days; rain comes in showers of two to eight
hours; wind varies from day to day. A forecast is the truth with errors that grow from day to day as those of
real ones do: about 0.8 °C on the issue date and 2.4 °C six days later, and showers that come at another time, with
another strength, or not at all.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bike_assets.core.calendar import days_between, hours_of_day, issue_time, local_columns
from bike_assets.core.contracts import UTC_TIMESTAMP
from bike_assets.sources.seeded import rng, shock
from bike_assets.sources.weather import FORECAST_DAYS, WEATHER_SCHEMA, WeatherBatch, observed_rows

_Floats = NDArray[np.float64]

_RAIN, _WARMTH, _WIND, _FORECAST = 2, 8, 9, 10  # Streams; the others are those of `simulator`.

_ANOMALY_SPREAD = 3.0
_EFFECT_PER_DEGREE = 0.028
_HEAVY_RAIN_MM, _HEAVY_RAIN_EFFECT = 5.0, 0.45


@lru_cache(maxsize=256)
def month_weather(seed: int, year: int, month: int) -> pl.DataFrame:
    """The hours of a UTC month and their weather.

    Returns:
        One row an hour: `ts_utc`, `service_date`, `local_hour`, `temperature_c`, `rain_mm`, `wind_kmh`, and
        `anomaly_c`, the degrees by which it is warmer than usual.
    """
    start = datetime(year, month, 1, tzinfo=UTC)
    end = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    frame = local_columns(
        pl.DataFrame({"ts_utc": pl.datetime_range(start, end, "1h", closed="left", eager=True)}).cast(
            {"ts_utc": UTC_TIMESTAMP}
        )
    )
    service_date = frame.get_column("service_date")
    days = days_between(service_date[0], service_date[-1])
    day_index = (service_date.to_physical() - service_date.to_physical()[0]).to_numpy()
    hour = frame.get_column("local_hour").to_numpy()

    year_wave = np.cos(2 * np.pi * (np.array([day.timetuple().tm_yday for day in days]) - 20) / 365.25)
    anomaly = shock(seed, _WARMTH, 0, days, memory=0.7, spread=_ANOMALY_SPREAD)
    daily_swing = (4.0 - 1.5 * year_wave)[day_index] * np.cos(2 * np.pi * (hour - 15) / 24)
    wind = 12.0 * np.exp(shock(seed, _WIND, 0, days, memory=0.6, spread=0.4))
    return frame.with_columns(
        temperature_c=pl.Series((12.5 - 8.0 * year_wave + anomaly)[day_index] + daily_swing),
        rain_mm=pl.Series(_showers(seed, year, month, frame.height)),
        wind_kmh=pl.Series(wind[day_index] * (1.0 + 0.25 * np.cos(2 * np.pi * (hour - 14) / 24))),
        anomaly_c=pl.Series(anomaly[day_index]),
    )


def traffic_factor(weather: pl.DataFrame) -> _Floats:
    """By how much the weather of each hour multiplies traffic: about 3 % a degree, heavy rain takes 45 %."""
    warmth = np.exp(_EFFECT_PER_DEGREE * weather.get_column("anomaly_c").to_numpy())
    rain = weather.get_column("rain_mm").to_numpy()
    factor: _Floats = warmth * (1.0 - _HEAVY_RAIN_EFFECT * np.sqrt(rain / _HEAVY_RAIN_MM))
    return factor


def _showers(seed: int, year: int, month: int, hours: int) -> _Floats:
    draw = rng(seed, _RAIN, year, month)
    strength = np.zeros(hours)
    for _ in range(int(draw.poisson(11))):
        begin = int(draw.integers(hours))
        strength[begin : begin + int(draw.integers(2, 9))] = draw.uniform(0.1, 0.45)
    millimetres: _Floats = _HEAVY_RAIN_MM * (strength / _HEAVY_RAIN_EFFECT) ** 2
    return millimetres


def _observed(seed: int, first: date, last: date) -> pl.DataFrame:
    """The weather of every hour of the local days from `first` to `last`."""
    start, end = hours_of_day(first)[0], hours_of_day(last)[-1]
    months = [
        month_weather(seed, number // 12, number % 12 + 1)
        for number in range(start.year * 12 + start.month - 1, end.year * 12 + end.month)
    ]
    return pl.concat(months).filter(pl.col("ts_utc").is_between(start, end))


def _forecast(seed: int, issue_date: date) -> pl.DataFrame:
    """What was expected on the morning of the issue date of the hours of that day and the six after it."""
    truth = _observed(seed, issue_date, issue_date + timedelta(days=FORECAST_DAYS - 1))
    draw = rng(seed, _FORECAST, issue_date.toordinal())
    lead = (truth.get_column("service_date") - issue_date).dt.total_days().to_numpy()
    leads = np.arange(FORECAST_DAYS)
    warmth_error = np.cumsum(draw.standard_normal(FORECAST_DAYS) * np.where(leads == 0, 0.7, 0.9))
    wind_error = draw.standard_normal(FORECAST_DAYS) * (0.1 + 0.05 * leads)
    strength = np.exp(draw.standard_normal(FORECAST_DAYS) * (0.25 + 0.08 * leads))
    delay = np.rint(draw.standard_normal(FORECAST_DAYS) * (0.5 + 0.5 * leads)).astype(int)
    missed = draw.random(FORECAST_DAYS) < 0.04 + 0.09 * leads
    other_day = draw.integers(1, 27, FORECAST_DAYS)
    rain = truth.get_column("rain_mm").to_numpy()
    expected = np.zeros(len(rain))
    elsewhere = month_weather(seed, issue_date.year, issue_date.month).get_column("rain_mm").to_numpy()
    for ahead in leads:
        hours = lead == ahead
        size = int(hours.sum())
        # Where the day's rain is missed, that of an unrelated day is expected: as often, as much, elsewhere.
        begin = 24 * int(other_day[ahead])
        shown = elsewhere[begin : begin + size] if missed[ahead] else rain[hours]
        expected[hours] = np.roll(shown, delay[ahead]) * strength[ahead]
    return truth.with_columns(
        temperature_c=pl.col("temperature_c")
        + pl.Series(warmth_error[lead] + 0.4 * draw.standard_normal(len(lead))),
        rain_mm=pl.Series(expected),
        wind_kmh=pl.col("wind_kmh") * pl.Series(np.exp(wind_error[lead])),
    )


@dataclass(frozen=True)
class SimulatedWeather:
    """The city's weather as a `WeatherSource`.

    Attributes:
        seed: which city.
        last_day: last local day whose weather was observed; the newest forecast is issued on the day after.
    """

    name: ClassVar[str] = "simulator"

    seed: int
    last_day: date

    def read(self, first: date, last: date) -> WeatherBatch:
        """Forecasts issued on [first, last], and the hours of these days as observed; never a fault."""
        frames = [pl.DataFrame(schema=WEATHER_SCHEMA)]
        if first <= (until := min(last, self.last_day)):
            frames.append(observed_rows(_rounded(_observed(self.seed, first, until)), self.name))
        for issue_date in days_between(first, min(last, self.last_day + timedelta(days=1))):
            expected = _rounded(_forecast(self.seed, issue_date)).with_columns(
                service_date=pl.lit(issue_date),
                kind=pl.lit("forecast"),
                issued_at=pl.lit(issue_time(issue_date), UTC_TIMESTAMP),
                source=pl.lit(self.name),
            )
            frames.append(expected.select(WEATHER_SCHEMA.names()))
        return WeatherBatch(pl.concat(frames))


def _rounded(weather: pl.DataFrame) -> pl.DataFrame:
    """As instruments and services publish it."""
    return weather.with_columns(pl.col("temperature_c", "wind_kmh").round(1), pl.col("rain_mm").round(2))
