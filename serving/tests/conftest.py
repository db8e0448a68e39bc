"""A small city with trained forecasters, a real MLflow server, and real processes of the service."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from fastapi import FastAPI

from bike_assets.core.bundle import (
    ISSUE_DAYS,
    Bundle,
    BundleInfo,
    BundleKeys,
    load_bundle,
    load_or_create_keys,
    write_bundle,
)
from bike_assets.core.calendar import hours_of_day, local_columns
from bike_assets.core.contracts import COUNTERS
from bike_assets.core.features import LOOKBACK_DAYS, build_features
from bike_assets.core.model import Forecaster, TrainConfig
from bike_serving.app import create_app
from bike_serving.champion import Champion
from bike_serving.registry import ModelRef
from bike_serving.security.access import Meter, Role
from bike_serving.security.keys import create_key
from bike_serving.settings import Settings
from serving.tests.wire import Wire

LAST_DAY = date(2024, 3, 30)  # the day before the spring clock change, so that a forecast day has 23 hours
COUNTER_IDS = ["100-E", "100-W", "200-N"]
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "NO_PROXY": "127.0.0.1",
}


def _eventually(check: Callable[[], Any], seconds: float = 60, what: str = "it") -> Any:
    """The first true answer of `check`, asked again until the time is over."""
    end = time.monotonic() + seconds
    while True:
        if answer := check():
            return answer
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.03)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """Ask again until the answer is true."""
    return _eventually


@dataclass
class Process:
    """A server process on a port of its own."""

    command: list[str]
    log: Path
    port: int = field(default_factory=_free_port)
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    key: str = ""

    def client(self, key: str | None = None) -> httpx.Client:
        """A client of the service that presents its unlimited admin key, or another."""
        shown = self.key if key is None else key
        return httpx.Client(base_url=self.url, timeout=20, headers={"X-API-Key": shown} if shown else {})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.launch()
        self.wait()

    def launch(self) -> None:
        command = [part.format(port=self.port) for part in self.command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **QUIET, **self.env},
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                start_new_session=True,
            )

    def wait(self) -> None:
        _eventually(self.answers, 180, f"an answer of {self.command}")

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            httpx.get(f"{self.url}/health", timeout=2)
        except httpx.TransportError:
            return False
        return True

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # MLflow's server is a child of its command
            self.process.wait()
            self.process = None

    def terminate(self) -> int:
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(timeout=60)
        self.process = None
        return status


@dataclass(frozen=True)
class City:
    """History, two forecasters that disagree, keys, and a home to write bundles into."""

    history: pl.DataFrame
    forecasters: tuple[Forecaster, Forecaster]
    keys: BundleKeys
    home: Path

    def offline(self, forecaster: int = 0, issue_date: date | None = None) -> pl.DataFrame:
        """The forecast as the platform computes it, without any bundle."""
        day = issue_date or LAST_DAY + timedelta(days=1)
        return self.forecasters[forecaster].predict(build_features(self.history, [day]))

    def write(
        self, version: str, forecaster: int = 0, run_id: str = "run", name: str = "bike-traffic"
    ) -> Path:
        info = BundleInfo(
            model_name=name,
            model_version=version,
            run_id=run_id,
            git_commit="f" * 40,
            data_hash="a" * 64,
            trained_until=LAST_DAY - timedelta(days=7),
            metrics={"1": {"r2": 0.91}},
            created_at=datetime(2024, 3, 31, 5, tzinfo=UTC),
        )
        return write_bundle(
            self.home / "bundles",
            self.forecasters[forecaster],
            self.history,
            info,
            self.keys.signing_key,
            counters=_counters(),
        )

    def load(self, path: Path) -> Bundle:
        return load_bundle(path, self.keys.public_key)


def _counters() -> pl.DataFrame:
    return COUNTERS.conform(
        pl.DataFrame({"counter_id": COUNTER_IDS}).with_columns(
            counter_name=pl.lit("Quai d'Orsay ") + pl.col("counter_id"),
            site_id=pl.lit("s"),
            site_name=pl.lit("Quai d'Orsay"),
            latitude=pl.lit(48.8629),
            longitude=pl.lit(2.3137),
            first_seen=pl.lit(datetime(2020, 1, 1, tzinfo=UTC)),
            last_seen=pl.lit(datetime(2024, 3, 30, 22, tzinfo=UTC)),
            hours=pl.lit(100),
            mean_hourly_count=pl.lit(20.0),
            site_key=pl.lit("s"),
            counters_at_site=pl.lit(2),
            last_counted=pl.lit(None),
            status=pl.lit("active"),
            coverage=pl.lit(1.0),
            replaced_by=pl.lit(None),
        )
    )


def _history(last_day: date = LAST_DAY) -> pl.DataFrame:
    days = [last_day - timedelta(days=back) for back in reversed(range(LOOKBACK_DAYS + ISSUE_DAYS + 2))]
    hours = pl.DataFrame({"ts_utc": [hour for day in days for hour in hours_of_day(day)]}).with_columns(
        pl.col("ts_utc").cast(pl.Datetime("us", "UTC"))
    )
    levels = pl.DataFrame({"counter_id": COUNTER_IDS, "level": [40.0, 90.0, 15.0]})
    rush = (pl.col("local_hour") - 8).abs().clip(upper_bound=6).neg() + 7
    noise = pl.struct("ts_utc", "counter_id").hash(seed=7) % 9
    return (
        local_columns(hours)
        .join(levels, how="cross")
        .with_columns(
            (pl.col("level") * rush / 7 + noise).round().cast(pl.Int64).alias("hourly_count"),
        )
    )


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> City:
    history = _history()
    features = build_features(history, [LAST_DAY - timedelta(days=back) for back in range(8, 20)])
    truth = history.select("counter_id", "ts_utc", "hourly_count")

    def fit(iterations: int) -> Forecaster:
        config = TrainConfig(iterations=iterations, depth=3, thread_count=1)
        return Forecaster().fit(features, truth, config)

    home = tmp_path_factory.mktemp("home")
    return City(history, (fit(10), fit(25)), load_or_create_keys(home / "keys"), home)


@pytest.fixture(scope="session")
def autumn(city: City) -> tuple[pl.DataFrame, Bundle]:
    """History up to the eve of the autumn clock change, and a bundle with it: its newest day has 25 hours."""
    history = _history(date(2024, 10, 26))
    info = BundleInfo(
        model_name="bike-traffic",
        model_version="1",
        run_id="run",
        git_commit="f" * 40,
        data_hash="a" * 64,
        trained_until=LAST_DAY,
        metrics={},
        created_at=datetime(2024, 10, 27, 5, tzinfo=UTC),
    )
    path = write_bundle(city.home / "bundles", city.forecasters[0], history, info, city.keys.signing_key)
    return history, city.load(path)


@dataclass
class Registry:
    """A real MLflow server, filled through MLflow's own client."""

    server: Process
    city: City
    client: Any

    def register(self, name: str, forecaster: int = 0) -> str:
        """A new version with a run and a bundle, without alias."""
        if not self.client.search_registered_models(filter_string=f"name='{name}'"):
            self.client.create_registered_model(name)
        run = self.client.create_run("0").info
        run_id = run.run_id
        version = str(self.client.create_model_version(name, f"{run.artifact_uri}/model", run_id).version)
        path = self.city.write(version, forecaster, run_id, name)
        self.client.set_model_version_tag(name, version, "bundle_id", path.name)
        return version

    def promote(self, name: str, version: str) -> None:
        self.client.set_registered_model_alias(name, "champion", version)

    def bundle_id(self, name: str, version: str) -> str:
        return str(self.client.get_model_version(name, version).tags["bundle_id"])

    def bundle_path(self, name: str, version: str) -> Path:
        return self.city.home / "bundles" / self.bundle_id(name, version)


@pytest.fixture(scope="session")
def _mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """MLflow's server, launched but perhaps not listening yet: it takes a while, and there is else to do."""
    folder = tmp_path_factory.mktemp("mlflow")
    server = Process(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "{port}"),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
            *("--artifacts-destination", f"{folder}/artifacts"),
        ],
        folder / "log",
    )
    try:
        server.launch()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def _registry(_mlflow: Process, city: City) -> Registry:
    os.environ.update(QUIET)
    from mlflow.tracking import MlflowClient

    _mlflow.wait()
    return Registry(_mlflow, city, MlflowClient(_mlflow.url))


@pytest.fixture
def registry(_registry: Registry) -> Registry:
    """The MLflow server, running whatever an earlier test did to it."""
    if _registry.server.process is None:
        _registry.server.start()
    return _registry


@pytest.fixture
def serve(city: City, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start the service for a registered model; all are stopped in the end."""
    started = []

    def start(name: str, mlflow_url: str, **settings: str) -> Process:
        process = service(city, tmp_path, name, mlflow_url, **settings)
        started.append(process)
        process.start()
        return process

    yield start
    for process in started:
        process.kill()


UNLIMITED = {Meter.PREDICT: 0, Meter.TRAIN: 0}


def service(city: City, state: Path, name: str, mlflow_url: str, **settings: str) -> Process:
    _, key = create_key(state / "state" / "keys.json", "tests", Role.ADMIN, UNLIMITED)
    env = {
        "BIKE_SERVING_HOME": str(city.home),
        "BIKE_SERVING_STATE_DIR": str(state / "state"),
        "BIKE_SERVING_MODEL_NAME": name,
        "BIKE_SERVING_MLFLOW_URL": mlflow_url,
        "BIKE_SERVING_POLL_SECONDS": "0.1",
        **{f"BIKE_SERVING_{key.upper()}": value for key, value in settings.items()},
    }
    command = [sys.executable, "-m", "bike_serving", "--port", "{port}"]
    return Process(command, state / "service.log", env=env, key=key)


class LocalClient:
    """Asks an application in this process, without a socket."""

    def __init__(self, app: FastAPI, headers: dict[str, str]) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = httpx.AsyncClient(transport=Wire(app), base_url="http://service", headers=headers)

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self._loop.run_until_complete(self._client.request(method, path, **more))

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.request("POST", path, **more)

    def __del__(self) -> None:
        self._loop.close()


@dataclass(frozen=True)
class InProcess:
    """The application in this process, its champion loaded from a bundle, no registry within reach."""

    app: FastAPI
    state: Path
    keys: dict[Role, str]

    def client(self, role: Role | None = Role.READER, key: str | None = None) -> LocalClient:
        """A client with an unlimited key of a role, another key, or none."""
        shown = key or (self.keys[role] if role else None)
        return LocalClient(self.app, {"X-API-Key": shown} if shown else {})


def _in_process(city: City, state: Path, **settings: Any) -> InProcess:
    keys = {role: create_key(state / "keys.json", role, role, UNLIMITED)[1] for role in Role}
    nowhere = {"mlflow_url": "http://127.0.0.1:9"}
    app = create_app(Settings(home=city.home, state_dir=state, **{**nowhere, **settings}))
    path = city.write("1")
    app.state.holder.current = Champion(ModelRef("bike-traffic", "1", "run", path.name), city.load(path))
    return InProcess(app, state, keys)


@pytest.fixture(scope="session")
def local(city: City, tmp_path_factory: pytest.TempPathFactory) -> InProcess:
    """One application for all tests that change nothing."""
    return _in_process(city, tmp_path_factory.mktemp("local"))


@pytest.fixture(scope="session")
def in_process(city: City) -> Iterator[Callable[..., InProcess]]:
    """Make an application with a state folder and settings of its own."""
    made = []

    def make(state: Path, **settings: Any) -> InProcess:
        made.append(_in_process(city, state, **settings))
        return made[-1]

    yield make
    for service in made:
        service.app.state.registry.close()


@pytest.fixture(scope="session")
def api(_registry: Registry, city: City, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a service that has loaded the first forecaster."""
    _registry.promote("api", _registry.register("api"))
    process = service(city, tmp_path_factory.mktemp("api"), "api", _registry.server.url)
    try:
        process.start()
        with process.client() as client:
            _eventually(lambda: client.get("/ready").status_code == 200, what="a loaded model")
            yield client
    finally:
        process.kill()


DAGSTER_RUN = "0d3b2c1a-1f6e-4c55-9d58-3a8a3f6f0c11"


class Dagster(BaseHTTPRequestHandler):
    """Answers with what the test puts into `answers`, by the field that a query asks for."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        field = next(name for name in ("launchRun", "runsOrError", "runOrError") if name in asked["query"])
        self.server.asked.append((field, asked["variables"]))
        body = self.server.answers.get(field, b"no JSON")
        body = body if isinstance(body, bytes) else json.dumps({"data": {field: body}}).encode()
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def dagster() -> Iterator[Any]:
    """A server that answers as Dagster's GraphQL API does; a test may change `answers` and `status`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dagster)
    server.asked, server.status = [], 200
    server.answers = {
        "launchRun": {"__typename": "LaunchRunSuccess", "run": {"runId": DAGSTER_RUN}},
        "runsOrError": {"__typename": "Runs", "results": []},
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
