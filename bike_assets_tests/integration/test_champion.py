"""Changes of champion over a real MLflow and the real service: killed at every step, and fifty at once."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bike_assets.core.contracts import AUDIT_LOG, CLEANED_COUNTS
from bike_assets.resources.registry import CHAMPION, PREVIOUS
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.settings import REPOSITORY
from bike_assets_tests.homes import environment
from bike_assets_tests.integration.test_parity import free_port, server
from bike_assets_tests.tables import (
    TRAINED_UNTIL,
    registry_in,
    registry_of,
    small_city,
    small_features,
    small_forecaster,
    version_tags,
)

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(1800)]

SWAP_SECONDS = 5.0
STEPS = 11
"""Writes of a change: two rows of the log with their heads, bundle and its tag, two aliases, three tags."""

Change = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions of the small model in MLflow, and counts to forecast from."""
    home = tmp_path_factory.mktemp("champion")
    registry = registry_in(home)
    for number in range(1, 4):
        registry.log_training(
            small_forecaster(number),
            dagster_run_id=f"run-{number}",
            params={},
            metrics={},
            tags=version_tags(),
            example=small_features(TRAINED_UNTIL, TRAINED_UNTIL).head(5),
        )
    days = small_city()["service_date"]
    DuckDBWarehouse(path=str(home / "warehouse.duckdb")).replace(
        CLEANED_COUNTS,
        small_city(),
        days.min(),  # type: ignore[arg-type]
        days.max(),  # type: ignore[arg-type]
    )
    return home


@pytest.fixture(scope="module")
def change(folder: Path) -> Iterator[Change]:
    """Carries out orders at once, each in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "bike_assets_tests.changer", str(folder)],
        cwd=REPOSITORY,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def order(*orders: dict[str, Any]) -> list[dict[str, Any]]:
            asked.write(json.dumps(orders) + "\n")
            asked.flush()
            found: list[dict[str, Any]] = json.loads(answers.readline())
            return found

        order({"do": "promote", "version": "1", "id": "first"})
        yield order
        asked.close()


@pytest.fixture(scope="module")
def service(folder: Path, change: Change) -> Iterator[httpx.Client]:
    """A reader of the service, which looks at MLflow every two seconds as it does by default."""
    del change  # the service waits for a champion
    programs = Path(sys.executable).parent
    mlflow, serving = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    registry = [
        *(str(programs / "mlflow"), "server", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--default-artifact-root", (folder / "artifacts").as_uri(), "--workers", "1"),
        *("--host", "127.0.0.1", "--port", mlflow.rsplit(":", 1)[1]),
    ]
    variables = {
        "BIKE_SERVING_MLFLOW_URL": mlflow,
        "BIKE_SERVING_BUNDLES_DIR": str(folder / "bundles"),
        "BIKE_SERVING_PUBLIC_KEY": str(folder / "keys" / "bundle.pub"),
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
        with httpx.Client(base_url=serving, headers={"X-API-Key": key}, timeout=30) as client:
            yield client


def served(service: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = service.get("/model").json()["model"]
    return found


def wait_for(service: httpx.Client, version: str) -> float:
    """The moment at which the service answers with a version."""
    deadline = time.time() + 30
    while served(service)["version"] != version:
        assert time.time() < deadline, f"{served(service)} and not {version}"
        time.sleep(0.02)
    return time.time()


def assert_agreement(folder: Path, change: Change, service: httpx.Client) -> str:
    """Audit log, MLflow, bundle and GET /model name the same champion."""
    (state,) = change({"do": "show"})
    registry = registry_of(folder)
    champion, previous = registry.by_alias(CHAMPION), registry.by_alias(PREVIOUS)
    assert champion is not None
    assert state["faults"] == []
    assert not state["unfinished"]
    assert state["champion"] == champion.version
    assert state["previous"] == (previous.version if previous else None)
    bundle = champion.tags["bundle_id"]
    manifest = json.loads((folder / "bundles" / bundle / "manifest.json").read_text())
    assert manifest["model"]["version"] == champion.version
    wait_for(service, champion.version)
    assert served(service)["bundle_id"] == bundle
    return champion.version


def test_a_change_reaches_the_service_within_five_seconds(
    change: Change, service: httpx.Client, folder: Path
) -> None:
    seconds = []
    for order in ({"do": "promote", "version": "2"}, {"do": "rollback", "version": "2"}):
        (answer,) = change(order)
        assert answer["outcome"] == "changed", answer
        seconds.append(wait_for(service, answer["champion"]) - answer["moved_at"])
    print(f"seconds from alias to GET /model: {seconds}")  # noqa: T201
    assert max(seconds) < SWAP_SECONDS
    assert assert_agreement(folder, change, service) == "1"


@pytest.mark.parametrize("kind", ["promote", "rollback"])
def test_killed_before_every_step_everything_agrees_again(
    change: Change, service: httpx.Client, folder: Path, kind: str
) -> None:
    died = 0
    for step in range(1, STEPS + 2):
        before = assert_agreement(folder, change, service)
        if kind == "rollback":
            change({"do": "promote", "version": str(int(before) % 3 + 1)})
            before = assert_agreement(folder, change, service)
        order = {"do": kind, "version": before if kind == "rollback" else str(int(before) % 3 + 1)}
        (answer,) = change({**order, "kill_before": step, "id": f"{kind} {step}"})
        died += answer["killed"]

        # Before anybody comes to mend it the service follows MLflow, and the log tells what was about to happen.
        alias = registry_of(folder).champion().version
        wait_for(service, alias)
        log = DuckDBWarehouse(path=str(folder / "warehouse.duckdb")).read(AUDIT_LOG)
        named = log.filter(log["operation_id"] == f"{kind} {step}")["event"].to_list()
        assert alias == before or named

        assert assert_agreement(folder, change, service) == alias
        (again,) = change({**order, "id": f"{kind} {step}"})
        assert again["outcome"] == ("unchanged" if alias != before else "changed"), again
    assert died >= STEPS - 1


def test_fifty_at_once_leave_one_champion_and_a_log_that_explains_it(
    change: Change, service: httpx.Client, folder: Path
) -> None:
    warehouse = DuckDBWarehouse(path=str(folder / "warehouse.duckdb"))
    before = assert_agreement(folder, change, service)
    rows = warehouse.read(AUDIT_LOG).height

    answers = change(
        *(
            {
                "do": "promote" if number % 2 else "rollback",
                "version": str(number % 3 + 1),
                "id": f"{number} of 50",
            }
            for number in range(50)
        )
    )

    assert not any(answer["killed"] for answer in answers)
    # A rollback that comes after a rollback has nowhere to go and changes nothing.
    refused = [answer["error"] for answer in answers if "error" in answer]
    assert all("none to go back to" in error for error in refused), refused
    champion = assert_agreement(folder, change, service)
    log = warehouse.read(AUDIT_LOG)[rows:]
    serving = before
    for row in log.iter_rows(named=True):
        if row["event"].endswith("_begun"):
            assert row["replaced_version"] == serving
        else:
            assert row["event"] in ("promoted", "rolled_back")
            serving = row["model_version"]
    assert serving == champion
    changed = sum(answer.get("outcome") == "changed" for answer in answers)
    assert log.height == 2 * changed
    assert changed > 0
