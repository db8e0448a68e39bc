"""The configured sources of counts and of weather, as resources."""

from datetime import date
from functools import lru_cache
from pathlib import Path

import dagster as dg

from bike_assets.settings import Settings, SourceName, load_settings
from bike_assets.sources import Portal, open_source
from bike_assets.sources.base import CountsSource, SourceBatch
from bike_assets.sources.open_meteo import Addresses
from bike_assets.sources.weather import WeatherBatch, WeatherName, open_weather


class CountsSourceResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Where counts come from. What is opened is kept, so that a file is parsed once a process."""

    source: SourceName
    data: list[str]
    simulator_seed: int
    simulator_counters: int
    simulator_first_day: str
    simulator_last_day: str
    simulator_scenario: str
    simulator_scenario_start: str
    paris_portal: str
    paris_dataset: str
    refetch_days: int
    downloads: str

    @classmethod
    def from_settings(cls, settings: Settings) -> "CountsSourceResource":
        """The source that the settings name."""
        return cls(
            source=settings.source,
            data=[str(path) for path in settings.data],
            simulator_seed=settings.simulator_seed,
            simulator_counters=settings.simulator_counters,
            simulator_first_day=settings.simulator_first_day.isoformat(),
            simulator_last_day=settings.simulator_last_day.isoformat(),
            simulator_scenario=settings.simulator_scenario,
            simulator_scenario_start=settings.simulator_scenario_start.isoformat(),
            paris_portal=settings.paris_portal,
            paris_dataset=settings.paris_dataset,
            refetch_days=settings.refetch_days,
            downloads=str(settings.downloads_dir),
        )

    def open(self) -> CountsSource:
        """The source itself.

        Raises:
            PermanentError: it is not known, or its files are not there.
        """
        return _open(
            self.source,
            tuple(self.data),
            self.simulator_seed,
            self.simulator_counters,
            date.fromisoformat(self.simulator_first_day),
            date.fromisoformat(self.simulator_last_day),
            self.simulator_scenario or None,
            date.fromisoformat(self.simulator_scenario_start) if self.simulator_scenario else None,
            Portal(
                self.paris_portal,
                self.paris_dataset,
                Path(self.downloads) / self.paris_dataset,
                self.refetch_days,
                # Not configuration of the resource: Dagster shows that to everyone.
                _api_key() if self.source == "paris" else "",
            ),
        )

    def read(self, first: date, last: date) -> SourceBatch:
        """Rows of the local days from `first` to `last`."""
        return self.open().read(first, last)


class WeatherSourceResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Where weather comes from."""

    source: WeatherName
    data: list[str]
    simulator_seed: int
    simulator_last_day: str
    latitude: float
    longitude: float
    archive_url: str
    forecast_url: str
    previous_runs_url: str

    @classmethod
    def from_settings(cls, settings: Settings) -> "WeatherSourceResource":
        """The source that the settings name."""
        return cls(
            source=settings.weather_source,
            data=[str(path) for path in settings.weather_data],
            simulator_seed=settings.simulator_seed,
            simulator_last_day=settings.simulator_last_day.isoformat(),
            latitude=settings.weather_latitude,
            longitude=settings.weather_longitude,
            archive_url=settings.open_meteo_archive_url,
            forecast_url=settings.open_meteo_forecast_url,
            previous_runs_url=settings.open_meteo_previous_runs_url,
        )

    def read(self, first: date, last: date) -> WeatherBatch:
        """Forecasts issued on the days from `first` to `last`, and the observed hours of these days.

        Raises:
            PermanentError: the source is not known, or has nothing readable.
            TransientError: it cannot be reached just now.
        """
        source = open_weather(
            self.source,
            data=[Path(path) for path in self.data],
            seed=self.simulator_seed,
            last_day=date.fromisoformat(self.simulator_last_day),
            position=(self.latitude, self.longitude),
            addresses=Addresses(self.archive_url, self.forecast_url, self.previous_runs_url),
        )
        return source.read(first, last)


def forget_sources() -> None:
    """Let go of everything that was parsed, once no more is read from it."""
    _open.cache_clear()


def _api_key() -> str:
    key = load_settings().paris_api_key
    return key.get_secret_value() if key else ""


@lru_cache(maxsize=2)
def _open(
    source: str,
    data: tuple[str, ...],
    seed: int,
    counters: int,
    first_day: date,
    last_day: date,
    scenario: str | None,
    scenario_start: date | None,
    portal: Portal,
) -> CountsSource:
    return open_source(
        source,
        data=[Path(path) for path in data],
        seed=seed,
        counters=counters,
        first_day=first_day,
        last_day=last_day,
        scenario=scenario,
        scenario_start=scenario_start,
        portal=portal,
    )
