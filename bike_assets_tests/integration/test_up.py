"""`bike-assets up` as a person meets it: real processes over a filled home, seen through a real browser."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from bike_assets_tests import browser
from bike_assets_tests.homes import SMALL_CITY, DemoHome, command, copy_home, environment

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

START_SECONDS = 240
"""For three servers to answer; tests share two cores with other things."""

RUN_SECONDS = 180
ASSETS = (
    "raw_counts",
    "cleaned_counts",
    "counters",
    "features",
    "trained_model",
    "champion",
    "predictions",
    "forecast_accuracy",
    "drift_report",
    "retraining_decision",
)


@dataclass(frozen=True)
class Up:
    """A running `bike-assets up`: its process and home, the champion of the demo, what was said, where it listens."""

    process: subprocess.Popen[bytes]
    home: Path
    champion: dict[str, str]
    said: Path
    dagster: str
    mlflow: str
    serving: str

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The answer of Dagster's GraphQL API."""
        answer = httpx.post(
            f"{self.dagster}/graphql", json={"query": query, "variables": variables}, timeout=60
        ).json()
        assert "errors" not in answer, answer["errors"]
        found: dict[str, Any] = answer["data"]
        return found

    def newest_run(self) -> dict[str, Any]:
        """Id, status and tags of the run started last."""
        query = "{runsOrError(limit: 1) {... on Runs {results {runId status tags {key value}}}}}"
        found: dict[str, Any] = self.ask(query)["runsOrError"]["results"][0]
        return found

    def wait_for_run(self, before: str) -> dict[str, Any]:
        """The run that was started after `before`, once it has ended."""
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            run = self.newest_run()
            if run["runId"] != before and run["status"] in {"SUCCESS", "FAILURE", "CANCELED"}:
                return run
            time.sleep(0.5)
        raise AssertionError(f"the run did not end within {RUN_SECONDS} s: {self.newest_run()}")


@pytest.fixture(scope="module")
def home(demo_home: DemoHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_home(demo_home.path, tmp_path_factory.mktemp("up") / "home")


@pytest.fixture(scope="module")
def up(demo_home: DemoHome, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    ports = _free_ports(3)
    said = tmp_path_factory.mktemp("up") / "said"
    arguments = _arguments(home, ports)
    with said.open("wb") as out:
        process = subprocess.Popen(
            command("up", *arguments),
            env=environment(**SMALL_CITY),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Ctrl-C" not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, f"not up after {START_SECONDS} s: {said.read_text()}"
            time.sleep(0.2)
        yield Up(
            process, home, demo_home.result["champion"], said, *(f"http://127.0.0.1:{port}" for port in ports)
        )
    finally:
        _end(process)


@pytest.fixture(scope="module")
def page(up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if browser.program() is None:
        pytest.skip("no chromium on PATH; .ci/run installs it")
    with browser.open_page(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def test_it_says_where_everything_is(up: Up) -> None:
    said = up.said.read_text()
    for address in (up.dagster, up.mlflow, up.serving):
        assert f" {address}\n" in said


def test_graph_shows_every_asset(up: Up, page: browser.Page) -> None:
    page.open(f"{up.dagster}/asset-groups")
    page.wait_for("ingestion", "cleaning", "forecasting", "monitoring")
    # Alt+E expands the groups.
    for kind in ("rawKeyDown", "keyUp"):
        page.call(
            "Input.dispatchKeyEvent", type=kind, modifiers=1, key="e", code="KeyE", windowsVirtualKeyCode=69
        )
    page.wait_for(*(name for name in ASSETS if name != "retraining_decision"))  # a long name is shortened


def test_every_asset_is_materialised_and_complete_days_are_complete(up: Up) -> None:
    nodes = up.ask(
        "{assetNodes {assetKey {path} assetMaterializations(limit: 1) {runId}"
        " partitionStats {numMaterialized numPartitions numFailed}}}"
    )["assetNodes"]
    found = {node["assetKey"]["path"][-1]: node for node in nodes}
    assert set(ASSETS) <= set(found)
    for name in ASSETS:
        assert found[name]["assetMaterializations"], name
    for name in ("raw_counts", "cleaned_counts", "features"):
        stats = found[name]["partitionStats"]
        assert stats["numMaterialized"] == stats["numPartitions"] > 0, name
        assert stats["numFailed"] == 0, name


def test_checks_of_an_asset_have_results(up: Up, page: browser.Page) -> None:
    page.open(f"{up.dagster}/assets/raw_counts?view=checks")
    text = page.wait_for("Checks (2)", "expectations", "freshness", "Passed", "rules_evaluated")
    assert "Not evaluated" not in text


def test_schedules_and_the_sensor_are_there_and_off(up: Up, page: browser.Page) -> None:
    page.open(f"{up.dagster}/automation")
    page.wait_for("daily_ingest", "daily_forecast", "weekly_monitoring", "retraining", "Asset sensor")
    repository = up.ask(
        "{repositoriesOrError {... on RepositoryConnection {nodes {"
        "schedules {name scheduleState {status}} sensors {name sensorState {status}}}}}}"
    )["repositoriesOrError"]["nodes"][0]
    states = {
        *(found["scheduleState"]["status"] for found in repository["schedules"]),
        *(found["sensorState"]["status"] for found in repository["sensors"]),
    }
    assert states == {"STOPPED"}, "nothing runs by itself on a laptop"


def test_materialising_from_the_page_succeeds(up: Up, page: browser.Page) -> None:
    """The newest forecast, by mouse; its link to the model opens in the MLflow of this very start."""
    before = up.newest_run()["runId"]
    page.open(f"{up.dagster}/assets/predictions?view=overview")
    page.wait_for("Materialize…", "bike-traffic version")
    page.click_text("Materialize…", then="Launch runs to materialize predictions")
    page.click_text("Latest", then="Launch 1 run")
    page.click_text("Launch 1 run")

    run = up.wait_for_run(before)

    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    assert run["status"] == "SUCCESS", (up.home / "logs" / "dagster-ui.log").read_text()[-3000:]
    assert tags["dagster/from_ui"] == "true"
    assert tags["dagster/partition"] == "2025-01-01", "the newest day that can have a forecast"
    entries = up.ask(
        '{assetNodes(assetKeys: [{path: ["predictions"]}]) {assetMaterializations(limit: 1) {runId'
        " metadataEntries {label ... on UrlMetadataEntry {url}}}}}"
    )["assetNodes"][0]["assetMaterializations"][0]
    assert entries["runId"] == run["runId"]
    (link,) = [entry["url"] for entry in entries["metadataEntries"] if entry["label"] == "mlflow_run"]
    assert link.startswith(f"{up.mlflow}/#/experiments/")
    page.open(link)
    page.wait_for("Finished", "holdout.day_1.r2", "trained_until")


def test_drift_report_opens_in_mlflow(up: Up, page: browser.Page) -> None:
    entries = up.ask(
        '{assetNodes(assetKeys: [{path: ["drift_report"]}]) {assetMaterializations(limit: 1) {'
        " metadataEntries {label ... on UrlMetadataEntry {url}}}}}"
    )["assetNodes"][0]["assetMaterializations"][0]["metadataEntries"]
    (link,) = [entry["url"] for entry in entries if entry["label"] == "report"]
    page.open(up.mlflow + link[link.index("/#/") :])
    page.wait_for("drift.html", "drift.json")
    run_id = link.split("/runs/")[1].split("/")[0]
    html = httpx.get(f"{up.mlflow}/get-artifact?path=drift.html&run_uuid={run_id}", timeout=60)
    assert html.status_code == 200
    assert "drift" in html.text.lower()


def test_rest_service_forecasts(up: Up) -> None:
    health = httpx.get(f"{up.serving}/ready", timeout=30)
    assert health.status_code == 200
    key = {"X-API-Key": (up.home / "serving" / "reader.key").read_text().strip()}
    assert f"$(cat {up.home}/serving/reader.key)" in up.said.read_text()
    assert key["X-API-Key"] not in up.said.read_text()
    assert httpx.get(f"{up.serving}/counters", timeout=30).status_code == 401
    counter = httpx.get(f"{up.serving}/counters", headers=key, timeout=30).json()["counters"][0]["counter_id"]
    answer = httpx.post(
        f"{up.serving}/predict",
        headers=key,
        json={"counter_ids": [counter], "target_hours": [f"{health.json()['issue_date']}T08:00:00+01:00"]},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    (forecast,) = answer.json()["forecasts"]
    assert forecast["lower_80"] <= forecast["forecast"] <= forecast["upper_80"]
    assert answer.json()["model"]["version"] == up.champion["version"]


def test_a_taken_port_is_one_line_with_the_remedy(up: Up, tmp_path: Path) -> None:
    """Told before an empty home is filled, which takes minutes."""
    port = int(up.dagster.rsplit(":", 1)[1])
    done = subprocess.run(
        command("up", *_arguments(tmp_path / "home", (port, *_free_ports(2)))),
        env=environment(**SMALL_CITY),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: port {port} on 127.0.0.1 is taken; end what listens there or choose another with --dagster-port"
    ]
    assert not (tmp_path / "home").exists()


def test_a_home_is_served_once(up: Up) -> None:
    done = subprocess.run(
        command("up", *_arguments(up.home, _free_ports(3))),
        env=environment(**SMALL_CITY),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "is served by another `bike-assets up`; end that one or give another --home" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_service_that_dies_is_named_and_the_others_end(up: Up) -> None:
    """The last test of the module: nothing is left after it."""
    started = _processes_of(up.process.pid)
    assert len(started) >= 6, "the command, four services and their code servers"
    (service,) = [pid for pid, line in started.items() if "bike-serving" in line]
    os.kill(service, signal.SIGKILL)

    assert up.process.wait(60) == 1
    assert "error: REST service ended with status -9" in up.said.read_text()
    assert _left(started) == {}


def test_sigterm_ends_everything_it_started(home: Path, tmp_path: Path) -> None:
    """While the services still start, which is when a half-made set is most easily left behind."""
    with (tmp_path / "said").open("wb") as out:
        process = subprocess.Popen(
            command("up", *_arguments(home, _free_ports(3))),
            env=environment(**SMALL_CITY),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while "MLflow " not in (tmp_path / "said").read_text():
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        started = _processes_of(process.pid)
        assert len(started) >= 5
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert _left(started) == {}
    finally:
        _end(process)


def _arguments(home: Path, ports: tuple[int, ...]) -> list[str]:
    names = ("--dagster-port", "--mlflow-port", "--serving-port")
    return [
        "--home",
        str(home),
        *(word for name, port in zip(names, ports, strict=True) for word in (name, str(port))),
    ]


def _free_ports(n: int) -> tuple[int, ...]:
    probes = [socket.socket() for _ in range(n)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(probe.getsockname()[1] for probe in probes)
    finally:
        for probe in probes:
            probe.close()


def _processes_of(root: int) -> dict[int, str]:
    """The process and all its descendants, by id, with their command lines."""
    ps = shutil.which("ps")
    assert ps
    listing = subprocess.run(
        [ps, "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()]
    found = {root}
    while grown := {int(pid) for pid, parent, *_ in rows if int(parent) in found} - found:
        found |= grown
    return {int(row[0]): row[2] for row in rows if int(row[0]) in found and len(row) > 2}


def _left(started: dict[int, str]) -> dict[int, str]:
    """Those of the processes that are still there, under the same command line."""
    alive = _processes_by_id()
    return {pid: line for pid, line in started.items() if alive.get(pid) == line}


def _processes_by_id() -> dict[int, str]:
    ps = shutil.which("ps")
    assert ps
    listing = subprocess.run(
        [ps, "-ww", "-eo", "pid=,args="], capture_output=True, text=True, check=True
    ).stdout
    return {int(row[0]): row[1] for line in listing.splitlines() if len(row := line.split(None, 1)) > 1}


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        for pid in _processes_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait(10)
