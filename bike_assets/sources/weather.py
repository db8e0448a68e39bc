"""Where weather comes from: what every source of it gives, choosing one by name, and reading it from a file.

Belongs here: the types that weather sources and their readers share, and those sources that are a few lines. Does
not belong here: an API (`open_meteo`), the simulated city (`simulated_weather`), and writing to the warehouse.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, get_args

import polars as pl

from bike_assets.core.calendar import LOCAL_TZ, local_columns
from bike_assets.core.contracts import RAW_WEATHER, UTC_TIMESTAMP
from bike_assets.core.errors import PermanentError
from bike_assets.sources.base import ADDED_ON_WRITING, SourceFault

if TYPE_CHECKING:
    from bike_assets.sources.open_meteo import Addresses

FORECAST_DAYS: Final = 7
"""Local days that a weather forecast covers, its issue date the first: those of the traffic forecast."""

WEATHER_SCHEMA: Final = pl.Schema(
    {name: dtype for name, dtype in RAW_WEATHER.polars_schema.items() if name not in ADDED_ON_WRITING}
)
"""Columns and types of `WeatherBatch.rows`: `RAW_WEATHER` without what is added on writing."""

WEATHER_COLUMNS: Final = {
    "temperature_c": ("temperature_c", "temperature", "temp_c", "temp", "temperature_2m"),
    "rain_mm": ("rain_mm", "rain"),
    "wind_kmh": ("wind_kmh", "wind", "wind_speed_10m"),
}
"""Our name of each quantity, and what files may call it."""

WeatherName = Literal["none", "simulator", "file", "open-meteo"]


@dataclass(frozen=True)
class WeatherBatch:
    """What a source gave for a range of days: columns of `WEATHER_SCHEMA`, and its faults in words."""

    rows: pl.DataFrame
    faults: Sequence[SourceFault] = ()


class WeatherSource(Protocol):
    """Where weather comes from."""

    @property
    def name(self) -> str:
        """What the column `source` says."""
        ...

    def read(self, first: date, last: date) -> WeatherBatch:
        """Forecasts issued on the days in [first, last], and the hours of these local days as observed.

        What the source cannot give, or not yet, is left out: weather is never there for sure.

        Raises:
            PermanentError: the source has nothing readable.
            TransientError: the source cannot be reached just now.
        """
        ...


def open_weather(
    name: WeatherName,
    *,
    data: Sequence[Path] = (),
    seed: int = 7,
    last_day: date | None = None,
    position: tuple[float, float] = (48.8566, 2.3522),
    addresses: "Addresses | None" = None,
) -> WeatherSource:
    """The source of that name. Nothing is read before it is asked for.

    Args:
        name: which.
        data: files of observed weather; `file` only.
        seed: of the simulated city; `simulator` only.
        last_day: its last day that was observed; `simulator` only, and needed there.
        position: degrees north and east; `open-meteo` only.
        addresses: of Open-Meteo's APIs, where they are not its own.

    Raises:
        PermanentError: an unknown name, or arguments that do not go with the source.
    """
    if name == "simulator":
        from bike_assets.sources.simulated_weather import SimulatedWeather

        if last_day is None:
            raise PermanentError("weather simulator: the last day of the simulated city is not given")
        return SimulatedWeather(seed=seed, last_day=last_day)
    if name == "open-meteo":
        from bike_assets.sources.open_meteo import Addresses, OpenMeteo
        from bike_assets.sources.polite_http import PoliteClient

        return OpenMeteo(PoliteClient(), *position, addresses or Addresses())
    if name == "file":
        return WeatherFiles(tuple(data))
    if name == "none":
        return NoWeather()
    raise PermanentError(
        f"no weather source is called {name!r}; choose one of {', '.join(get_args(WeatherName))}"
    )


@dataclass(frozen=True)
class NoWeather:
    """The source of those who have none."""

    name: str = "none"

    def read(self, first: date, last: date) -> WeatherBatch:
        """No rows."""
        del first, last
        return WeatherBatch(pl.DataFrame(schema=WEATHER_SCHEMA))


def observed_rows(hours: pl.DataFrame, source: str) -> pl.DataFrame:
    """Observed hours as rows of `WEATHER_SCHEMA`, published when their local day has ended.

    Args:
        hours: `ts_utc`, `temperature_c`, `rain_mm`, `wind_kmh`; hours that know nothing are left out.
        source: name of the source.
    """
    midnight = pl.col("service_date").dt.offset_by("1d").cast(pl.Datetime("us"))
    return (
        local_columns(hours)
        .filter(~pl.all_horizontal(pl.col(list(WEATHER_COLUMNS)).is_null()))
        .with_columns(
            kind=pl.lit("observed"),
            issued_at=midnight.dt.replace_time_zone(LOCAL_TZ).dt.convert_time_zone("UTC"),
            source=pl.lit(source),
        )
        .select(WEATHER_SCHEMA.names())
    )


@dataclass(frozen=True)
class WeatherFiles:
    """Observed weather in CSV or Parquet files: `ts_utc` and any of `WEATHER_COLUMNS`. It knows no forecasts.

    Attributes:
        paths: the files; where they overlap the later one is right.
    """

    paths: Sequence[Path]
    name: str = "file"

    def read(self, first: date, last: date) -> WeatherBatch:
        """Observed hours of the local days in [first, last].

        Raises:
            PermanentError: there is no file, or one is not such a file.
        """
        rows = self._rows.filter(pl.col("service_date").is_between(first, last))
        return WeatherBatch(rows, self._missing)

    @cached_property
    def _missing(self) -> tuple[SourceFault, ...]:
        """Quantities that a file does not have, or has under a name nobody knows."""
        return tuple(
            SourceFault(
                path.name,
                "",
                f"has no {name} (its columns are {', '.join(columns[:9])})",
                f"name one {' or '.join(known[:3])}, or do without",
                set_aside=False,
            )
            for path in self.paths
            for columns in [_columns(path)]
            for name, known in WEATHER_COLUMNS.items()
            if not set(known) & set(columns)
        )

    @cached_property
    def _rows(self) -> pl.DataFrame:
        if not self.paths:
            raise PermanentError("weather file: no files are given; name them in BIKE_WEATHER_DATA")
        hours = pl.concat(_weather_file(path) for path in self.paths)
        return observed_rows(hours.unique("ts_utc", keep="last").sort("ts_utc"), self.name)


def _columns(path: Path) -> list[str]:
    return list(
        pl.read_parquet_schema(path) if path.suffix == ".parquet" else pl.read_csv(path, n_rows=0).columns
    )


def _weather_file(path: Path) -> pl.DataFrame:
    """Hours of one file: `ts_utc` and the names of `WEATHER_COLUMNS`; a time without zone is UTC, as its name says."""
    try:
        frame = (
            pl.read_parquet(path)
            if path.suffix == ".parquet"
            else pl.read_csv(path, infer_schema_length=None)
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise PermanentError(
            f"{path.name}: cannot be read as weather ({str(error).splitlines()[0]}); give Parquet or CSV"
        ) from error
    labels = {
        name: next((label for label in known if label in frame.columns), None)
        for name, known in WEATHER_COLUMNS.items()
    }
    if "ts_utc" not in frame.columns or not any(labels.values()):
        raise PermanentError(
            f"{path.name}: has columns {', '.join(frame.columns[:9])}; weather needs ts_utc and one of "
            + ", ".join(WEATHER_COLUMNS)
        )
    instant = pl.col("ts_utc")
    if frame.schema["ts_utc"] == pl.String:
        instant = instant.str.to_datetime(time_zone="UTC", time_unit="us", strict=True)
    elif getattr(frame.schema["ts_utc"], "time_zone", None) is None:
        instant = instant.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    try:
        return frame.select(
            instant.cast(UTC_TIMESTAMP).alias("ts_utc"),
            *(
                (pl.col(label) if label else pl.lit(None)).cast(pl.Float64).fill_nan(None).alias(name)
                for name, label in labels.items()
            ),
        )
    except pl.exceptions.PolarsError as error:
        raise PermanentError(
            f"{path.name}: {str(error).splitlines()[0]}; times are ISO 8601 in UTC, the rest are numbers"
        ) from error
