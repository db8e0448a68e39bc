"""The store of runs that keeps its connections: the same records as Dagster's own."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.runs import SqliteRunStorage

from bike_assets.home import open_instance
from bike_assets.run_storage import PooledSqliteRunStorage
from bike_assets.settings import Settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Settings, dg.DagsterInstance]]:
    # Opening a home sets these for its child processes; set first, so that monkeypatch restores them.
    for name in ("DAGSTER_HOME", "BIKE_HOME", "BIKE_WAREHOUSE"):
        monkeypatch.setenv(name, "")
    settings = Settings(home=tmp_path / "home")
    with open_instance(settings) as instance:
        yield settings, instance


def test_dagsters_own_class_reads_the_runs_of_a_home(home: tuple[Settings, dg.DagsterInstance]) -> None:
    settings, instance = home
    assert isinstance(instance.run_storage, PooledSqliteRunStorage)
    run = instance.create_run_for_job(dg.GraphDefinition("nothing").to_job(), tags={"user": "anna"})
    stock = SqliteRunStorage.from_local(str(settings.dagster_home / "history"))
    assert [(found.run_id, found.tags["user"]) for found in stock.get_runs()] == [(run.run_id, "anna")]

    instance.run_storage.dispose()
    instance.delete_run(run.run_id)  # disposed of, it opens its connections again
    assert stock.get_runs() == []
