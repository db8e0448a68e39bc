"""Fixtures that several kinds of tests share; the expensive one is made once, also for several workers."""

import fcntl
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from bike_assets.resources.bigquery import BigQueryWarehouse
from bike_assets.settings import Settings, load_settings
from bike_assets_tests.emulators.processes import BigQueryEmulator, bigquery_emulator
from bike_assets_tests.homes import RUN_SECONDS, DemoHome, bike_assets, one_json, settings_of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for the demo first pays for it, so all who may be first get the time."""
    for item in items:
        if "demo_home" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(RUN_SECONDS))


@pytest.fixture(scope="session")
def demo_home(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> DemoHome:
    """A home filled by the demo over the smallest city. Only to be read; `homes.copy_home` makes one to change."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent  # where all workers of this run look
    home, said = shared / "demo" / "home", shared / "demo" / "said.json"
    home.parent.mkdir(exist_ok=True)
    with (shared / "demo" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            done = bike_assets("demo", "--home", home, "--json")
            assert done.returncode == 0, done.stderr
            said.write_text(json.dumps([done.stdout, done.stderr]))
    stdout, stderr = json.loads(said.read_text())
    return DemoHome(home, one_json(stdout), stderr, settings_of(home))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of the smallest city over a home that is not there yet, with no `.env` and no variable read."""
    return settings_of(tmp_path / "home")


@pytest.fixture(scope="session")
def emulated_bigquery() -> Iterator[BigQueryEmulator]:
    """A server that speaks BigQuery's API, started once a test process."""
    with bigquery_emulator() as emulator:
        yield emulator


@pytest.fixture
def bigquery_warehouse(
    emulated_bigquery: BigQueryEmulator, monkeypatch: pytest.MonkeyPatch
) -> BigQueryWarehouse:
    """The warehouse of a project that is empty yet, in that server."""
    for name, value in emulated_bigquery.environment(f"test-{uuid.uuid4().hex[:12]}").items():
        monkeypatch.setenv(name, value)
    return BigQueryWarehouse.from_settings(load_settings())
