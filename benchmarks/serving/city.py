"""What the serving benchmarks serve: a city of Paris's size, three champions of it, and a registry that names one.

Belongs here: making the bundles once and naming one of them. The registry gives MLflow's answer to the one question
the service asks, so that two cores are not shared with a whole MLflow besides the load. Does not belong here:
measuring.
"""

import json
import threading
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl

from bike_assets.core.bundle import BundleInfo, load_or_create_keys, write_bundle
from bike_assets.core.calendar import days_between
from bike_assets.core.features import build_features, sample_rows
from bike_assets.core.model import Forecaster, TrainConfig
from bike_assets.sources.simulator import SimulatorSource

COUNTERS = 113
LAST_DAY = date(2024, 12, 30)
MODEL = "bike-traffic"


@dataclass(frozen=True)
class City:
    """Bundles in a home: the ids of versions 1, 2, …, one counter and the hours that can be asked for."""

    home: Path
    bundle_ids: list[str]
    counter_ids: list[str]
    issue_date: date

    @property
    def hours(self) -> list[str]:
        """The hours of the first forecast day, as a client writes them."""
        return [f"{self.issue_date}T{hour:02}:00:00+01:00" for hour in range(24)]


def make_city(home: Path, versions: int = 3) -> City:
    """The city in `home`, made if it is not there yet (some tens of seconds)."""
    made = home / "city.json"
    if not made.exists():
        _make(home, versions)
    known = json.loads(made.read_text())
    return City(home, known["bundle_ids"], known["counter_ids"], date.fromisoformat(known["issue_date"]))


def _make(home: Path, versions: int) -> None:
    first = LAST_DAY - timedelta(days=150)
    counts = (
        SimulatorSource(counters=COUNTERS, last_day=LAST_DAY)
        .read(first, LAST_DAY)
        .counts.filter(pl.col("ts_utc").is_not_null())
        .unique(["counter_id", "ts_utc"], keep="last", maintain_order=True)
        .with_columns(pl.col("ts_utc").dt.convert_time_zone("Europe/Paris").dt.hour().alias("local_hour"))
    )
    days = days_between(LAST_DAY - timedelta(days=70), LAST_DAY - timedelta(days=8))
    features = pl.concat(
        [sample_rows(build_features(counts, days[at : at + 14]), 0.1) for at in range(0, len(days), 14)]
    )
    truth = counts.select("counter_id", "ts_utc", "hourly_count").drop_nulls()
    keys = load_or_create_keys(home / "keys")
    bundle_ids = []
    for version in range(1, versions + 1):
        forecaster = Forecaster().fit(features, truth, TrainConfig(seed=version))
        info = BundleInfo(
            model_name=MODEL,
            model_version=str(version),
            run_id=f"run{version}",
            git_commit="f" * 40,
            data_hash="a" * 64,
            trained_until=days[-1],
            metrics={},
            created_at=datetime.now(UTC),
        )
        bundle_ids.append(write_bundle(home / "bundles", forecaster, counts, info, keys.signing_key).name)
    newest = build_features(counts, [LAST_DAY + timedelta(days=1)])
    newest.write_parquet(home / "features.parquet")
    made = {
        "bundle_ids": bundle_ids,
        "counter_ids": sorted(newest["counter_id"].unique()),
        "issue_date": str(LAST_DAY + timedelta(days=1)),
    }
    (home / "city.json").write_text(json.dumps(made))


class Registry:
    """A server that answers like MLflow's registry which version is the champion; `promote` names another."""

    def __init__(self, city: City) -> None:
        self._city = city
        self.version = 1
        registry = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = json.dumps(registry.answer()).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: Any) -> None:
                """A benchmark prints its result and nothing else."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def promote(self, version: int) -> None:
        """Name another version from now on."""
        self.version = version

    def answer(self) -> dict[str, Any]:
        """What MLflow says of an alias."""
        return {
            "model_version": {
                "name": MODEL,
                "version": str(self.version),
                "run_id": f"run{self.version}",
                "tags": [{"key": "bundle_id", "value": self._city.bundle_ids[self.version - 1]}],
            }
        }

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
