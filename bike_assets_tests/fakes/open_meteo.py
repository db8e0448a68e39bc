"""A fake Open-Meteo: its archive, forecast and previous-runs APIs over real HTTP, and faults on request.

    python -m bike_assets_tests.fakes.open_meteo --port 8998

Its weather is that of the simulated city, with offsets that tell where a value is from: the forecast is half a degree
too warm, what was predicted n days before n degrees. Belongs here: what the service answers. Does not belong here:
sockets (`service`).
"""

import argparse
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl

from bike_assets.sources.open_meteo import Addresses
from bike_assets.sources.simulated_weather import month_weather
from bike_assets_tests.fakes.service import Answer, FakeService, Faults

FORECAST_OFFSET = 0.5
ARCHIVE_DELAY = timedelta(days=2)

_COLUMNS = {"temperature_2m": "temperature_c", "rain": "rain_mm", "wind_speed_10m": "wind_kmh"}
_VARIABLE = re.compile(r"^(temperature_2m|rain|wind_speed_10m)(?:_previous_day([1-7]))?$")


class FakeOpenMeteo(FakeService):
    """The three APIs at paths of one host."""

    def __init__(self, now: datetime, *, seed: int = 7, faults: Faults | None = None, port: int = 0) -> None:
        """A service that does not listen yet; `now` is its clock."""
        super().__init__(faults, port)
        self.now = now
        self.seed = seed

    @property
    def addresses(self) -> Addresses:
        """Where its APIs are."""
        return Addresses(
            f"{self.url}/v1/archive", f"{self.url}/v1/forecast", f"{self.url}/previous/v1/forecast"
        )

    def truth(self, first: date, last: date) -> pl.DataFrame:
        """The hours of UTC days: `ts_utc`, `temperature_c`, `rain_mm`, `wind_kmh`, rain in the hour that begins."""
        months = range(first.year * 12 + first.month - 1, last.year * 12 + last.month)
        hours = pl.concat(month_weather(self.seed, month // 12, month % 12 + 1) for month in months)
        return hours.filter(pl.col("ts_utc").dt.date().is_between(first, last))

    def respond(self, path: str, query: dict[str, str], headers: Mapping[str, str]) -> Answer:
        """The answer of the real service."""
        del headers
        try:
            first, last = (date.fromisoformat(query[name]) for name in ("start_date", "end_date"))
            float(query["latitude"]), float(query["longitude"])
        except (KeyError, ValueError) as error:
            return _refused(f"Parameter missing or invalid: {error}")
        furthest = self.now.date() + timedelta(days=0 if path.endswith("/archive") else 15)
        if first > last or last > furthest:
            return _refused(f"Parameter 'end_date' is out of allowed range from 1940-01-01 to {furthest}")
        hours = self.truth(first - timedelta(days=1), last).with_columns(
            pl.col("rain_mm").shift(1)  # The rain of the preceding hour.
        )
        hours = hours.filter(pl.col("ts_utc").dt.date() >= first)
        known = pl.col("ts_utc") < self.now - ARCHIVE_DELAY if path.endswith("/archive") else pl.lit(True)
        hourly: dict[str, list[Any]] = {"time": hours.get_column("ts_utc").dt.epoch("s").to_list()}
        for name in query.get("hourly", "").split(","):
            found = _VARIABLE.match(name)
            if found is None or (found[2] is not None) != path.startswith("/previous"):
                return _refused(f"Cannot initialize HourlyVariable from invalid String value {name}")
            value = pl.col(_COLUMNS[found[1]])
            if found[1] == "temperature_2m":
                value += int(found[2]) if found[2] else 0.0 if path.endswith("/archive") else FORECAST_OFFSET
            if found[2]:
                # Nothing was predicted by runs that are still to come.
                known = pl.col("ts_utc") - timedelta(days=int(found[2])) <= self.now
            hourly[name] = hours.select(pl.when(known).then(value)).to_series().to_list()
        return Answer.json(
            {
                "latitude": 48.86,
                "longitude": 2.35,
                "utc_offset_seconds": 0,
                "timezone": "GMT",
                "hourly": hourly,
            }
        )


def _refused(reason: str) -> Answer:
    return Answer.json({"error": True, "reason": reason}, 400)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8998)
    parser.add_argument("--seed", type=int, default=7, help="of the simulated city")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that meet a fault")
    given = parser.parse_args()
    service = FakeOpenMeteo(datetime.now(UTC), seed=given.seed, faults=Faults(given.faults), port=given.port)
    for name, address in asdict(service.addresses).items():
        print(f"BIKE_OPEN_METEO_{name.upper()}_URL={address}", flush=True)  # noqa: T201
    service.serve_forever()


if __name__ == "__main__":
    main()
