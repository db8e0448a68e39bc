"""The live sources through the command line, against services that speak their protocols."""

from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from bike_assets.sources.simulator import SimulatorSource
from bike_assets_tests.exports import api_frame
from bike_assets_tests.fakes.open_meteo import FakeOpenMeteo
from bike_assets_tests.fakes.opendatasoft import EVERY_FAULT, FakePortal
from bike_assets_tests.fakes.service import Faults
from bike_assets_tests.homes import bike_assets, one_json, tables

pytestmark = [pytest.mark.integration, pytest.mark.slow]

FIRST, LAST = date(2024, 10, 20), date(2024, 11, 10)
KEY = "a-key-nobody-may-see"


def city() -> pl.DataFrame:
    counts = SimulatorSource(counters=2, first_day=FIRST, last_day=LAST).read(FIRST, LAST).counts
    return counts.sort("published_until").unique(["counter_id", "ts_utc"], keep="last").sort("ts_utc")


def test_ingest_from_the_portal_through_faults_with_weather_and_without_showing_the_key(
    tmp_path: Path,
) -> None:
    counts, home = city(), tmp_path / "home"
    with (
        FakePortal(api_frame(counts), faults=Faults(0.2, 5, EVERY_FAULT)) as portal,
        FakeOpenMeteo(datetime.now(UTC)) as weather,
    ):
        portal.key = KEY
        environment = {
            "BIKE_PARIS_PORTAL": portal.url,
            "BIKE_PARIS_API_KEY": KEY,
            "BIKE_OPEN_METEO_ARCHIVE_URL": weather.addresses.archive,
            "BIKE_OPEN_METEO_FORECAST_URL": weather.addresses.forecast,
            "BIKE_OPEN_METEO_PREVIOUS_RUNS_URL": weather.addresses.previous_runs,
        }
        done = bike_assets("ingest", "--source", "paris", "--home", home, "--json", env=environment)

    assert done.returncode == 0, done.stderr
    assert one_json(done.stdout)["days"] == [str(FIRST), str(LAST)]
    found = tables(home)
    raw = found["bike_traffic_raw.raw_counts"]
    assert raw.height == counts.height
    assert raw.get_column("hourly_count").sum() == counts.get_column("hourly_count").sum()
    hours = found["bike_traffic_raw.raw_weather"]
    assert hours.filter(kind="observed").height == 22 * 24 + 1 + 24
    assert hours.filter(kind="forecast").get_column("service_date").n_unique() == 23
    assert KEY not in done.stdout + done.stderr
    shown = [path for path in home.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert shown == []


def test_without_weather_the_counts_are_there_and_the_reason_is_told(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with FakePortal(api_frame(city())) as portal:
        environment = {
            "BIKE_PARIS_PORTAL": portal.url,
            "BIKE_OPEN_METEO_ARCHIVE_URL": f"{portal.url}/nothing-here",
        }
        done = bike_assets("ingest", "--source", "paris", "--home", home, env=environment)

    assert done.returncode == 0, done.stderr
    assert "no weather: raw_weather: " in done.stderr
    assert "404" in done.stderr
    assert "everything else works without it" in done.stderr
    assert tables(home)["bike_traffic_raw.raw_counts"].height == city().height


def test_a_portal_that_says_no_is_one_line(tmp_path: Path) -> None:
    with FakePortal(api_frame(city())) as portal:
        portal.quota = 0
        done = bike_assets(
            "ingest", "--source", "paris", "--home", tmp_path, env={"BIKE_PARIS_PORTAL": portal.url}
        )

    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "the quota of calls is spent until 2030-01-01 00:00 UTC" in line
