"""What is served is what was computed offline, to the last digit: a real MLflow server and the real service."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from bike_assets.settings import REPOSITORY
from bike_assets_tests.homes import DemoHome, environment, tables

VALUES = ("forecast", "lower_80", "upper_80", "lower_90", "upper_90")
START_SECONDS = 240

pytestmark = pytest.mark.integration


@contextlib.contextmanager
def server(command: list[str], log: Path, env: dict[str, str], url: str) -> Iterator[None]:
    """A server that answers at `url` before anything is asked of it, ended with all its children."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=env, cwd=REPOSITORY, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(url, timeout=5).is_success:
                    break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def service(demo_home: DemoHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A reader of the service over the demo's registry and bundles."""
    folder = tmp_path_factory.mktemp("service")
    programs = Path(sys.executable).parent
    mlflow, serving = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    settings = demo_home.settings
    registry = [
        *(str(programs / "mlflow"), "server", "--backend-store-uri", settings.tracking_uri),
        *("--default-artifact-root", settings.artifacts_dir.as_uri(), "--workers", "1"),
        *("--host", "127.0.0.1", "--port", mlflow.rsplit(":", 1)[1]),
    ]
    variables = {
        "BIKE_SERVING_MLFLOW_URL": mlflow,
        "BIKE_SERVING_BUNDLES_DIR": str(settings.bundles_dir),
        "BIKE_SERVING_PUBLIC_KEY": str(settings.keys_dir / "bundle.pub"),
        "BIKE_SERVING_STATE_DIR": str(folder / "state"),
        "BIKE_SERVING_PORT": serving.rsplit(":", 1)[1],
    }
    quiet = environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    with (
        server(registry, folder / "mlflow.log", quiet, f"{mlflow}/health"),
        server(
            [str(programs / "bike-serving")],
            folder / "serving.log",
            environment(**variables),
            f"{serving}/ready",
        ),
    ):
        key = (folder / "state" / "reader.key").read_text().strip()
        with httpx.Client(base_url=serving, headers={"X-API-Key": key}, timeout=120) as client:
            yield client


@pytest.fixture(scope="module")
def offline(demo_home: DemoHome) -> pl.DataFrame:
    """The table of vintages, with instants in UTC."""
    found = tables(demo_home.path)["bike_traffic_predictions.predictions"]
    return found.with_columns(pl.col("target_ts").dt.replace_time_zone("UTC"))


def ask(service: httpx.Client, **body: Any) -> dict[str, Any]:
    response = service.post("/predict", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert isinstance(answer, dict)
    return answer


def served(answer: dict[str, Any]) -> dict[tuple[str, datetime], tuple[Any, ...]]:
    return {
        (row["counter_id"], datetime.fromisoformat(row["target_ts"].replace("Z", "+00:00"))): (
            row["horizon"],
            *(row[name] for name in VALUES),
        )
        for row in answer["forecasts"]
    }


def computed(vintage: pl.DataFrame) -> dict[tuple[str, datetime], tuple[Any, ...]]:
    return {
        (counter_id, target_ts.astimezone(UTC)): tuple(rest)
        for counter_id, target_ts, *rest in vintage.select(
            "counter_id", "target_ts", "horizon", *VALUES
        ).iter_rows()
    }


@pytest.mark.parametrize(
    "issue_date", [None, date(2024, 12, 4), date(2024, 12, 17), date(2024, 12, 25), date(2024, 12, 31)]
)
def test_a_whole_vintage_is_served_as_it_was_computed(
    service: httpx.Client, offline: pl.DataFrame, issue_date: date | None
) -> None:
    vintage = offline.filter(service_date=issue_date or date(2025, 1, 1))
    hours = [hour.isoformat() for hour in vintage["target_ts"].unique().sort()]
    asked = {"issue_date": issue_date.isoformat()} if issue_date else {}
    answer = ask(
        service, counter_ids=vintage["counter_id"].unique().sort().to_list(), target_hours=hours, **asked
    )
    assert len(answer["forecasts"]) == vintage.height == 4 * 168
    # Equal floats, not close ones.
    assert served(answer) == computed(vintage)
    assert answer["issue_date"] == (issue_date or date(2025, 1, 1)).isoformat()
    assert {answer["model"]["version"]} == set(vintage["model_version"])
    assert {answer["model"]["run_id"]} == set(vintage["run_id"])


def test_any_single_question_has_the_same_answer(service: httpx.Client, offline: pl.DataFrame) -> None:
    """One counter and hour asked alone, in local time, is not computed otherwise than in a vintage."""
    choice = random.Random(7)
    for _ in range(20):
        row = offline.row(choice.randrange(offline.height), named=True)
        local = row["target_ts"].astimezone(UTC) + timedelta(hours=1)
        answer = ask(
            service,
            counter_ids=[row["counter_id"]],
            target_hours=[local.replace(tzinfo=None).isoformat() + "+01:00"],
            issue_date=row["service_date"].isoformat(),
        )
        (forecast,) = answer["forecasts"]
        assert forecast["horizon"] == row["horizon"]
        assert [forecast[name] for name in VALUES] == [row[name] for name in VALUES]


def test_the_service_names_the_champion_of_the_demo(service: httpx.Client, demo_home: DemoHome) -> None:
    model = service.get("/model").json()
    assert {name: model["model"][name] for name in ("name", "version", "run_id")} == demo_home.result[
        "champion"
    ]
    assert model["trained_until"] == "2024-12-03"
    listed = service.get("/counters").json()["counters"]
    assert len(listed) == demo_home.result["counters"]
