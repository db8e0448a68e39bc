"""A snapshot put back into a home: the tables, what Dagster records of them, and what is said to be made again."""

import shutil
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from bike_assets.core.contracts import CLEANED_COUNTS, RAW_COUNTS, features_contract
from bike_assets.core.errors import PermanentError
from bike_assets.core.features import FEATURE_COLUMNS, LOOKBACK_DAYS
from bike_assets.resources.snapshots import Snapshot, SnapshotStore, Taking
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.restore import restore_snapshot
from bike_assets.settings import Settings
from bike_assets_tests.core.synthetic import city
from bike_assets_tests.tables import cleaned

FIRST, LAST = date(2024, 5, 20), date(2024, 6, 10)
NOW = datetime(2024, 7, 1, tzinfo=UTC)
FEATURES = features_contract(FEATURE_COLUMNS)


@pytest.fixture
def warehouse(settings: Settings) -> DuckDBWarehouse:
    found = DuckDBWarehouse(path=str(settings.warehouse_path))
    found.replace(CLEANED_COUNTS, cleaned(city(FIRST, LAST, counters=2, seed=3)), FIRST, LAST)
    return found


@pytest.fixture
def snapshots(settings: Settings) -> SnapshotStore:
    return SnapshotStore.from_settings(settings)


@pytest.fixture
def kept(warehouse: DuckDBWarehouse, snapshots: SnapshotStore) -> Snapshot:
    return snapshots.take(warehouse, Taking(NOW, "someone", "first")).snapshot


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def restore(
    settings: Settings, instance: dg.DagsterInstance, snapshot: Snapshot, **more: Any
) -> dict[str, Any]:
    arguments: dict[str, Any] = {"tell": lambda _: None, "progress": lambda *_: None, **more}
    return restore_snapshot(settings, instance, snapshot.id, now=NOW, by="someone", **arguments)


def drop(warehouse: DuckDBWarehouse, *days: date) -> None:
    for day in days:
        warehouse.replace(CLEANED_COUNTS, CLEANED_COUNTS.empty(), day, day)


def recorded(instance: dg.DagsterInstance) -> dict[str, Any]:
    """Rows by partition of the cleaned counts, as Dagster has them."""
    found = instance.fetch_materializations(dg.AssetKey("cleaned_counts"), limit=1000).records
    events = [record.asset_materialization for record in reversed(found)]
    return {
        event.partition: event.metadata["dagster/row_count"].value
        for event in events
        if event is not None and event.partition
    }


def test_dagster_is_told_of_the_partitions_that_changed_and_of_no_other(
    settings: Settings, instance: dg.DagsterInstance, warehouse: DuckDBWarehouse, kept: Snapshot
) -> None:
    drop(warehouse, LAST, FIRST)
    new = LAST + timedelta(days=1)
    warehouse.replace(CLEANED_COUNTS, cleaned(city(new, new, counters=2, seed=3)), new, new)

    result = restore(settings, instance, kept)

    assert recorded(instance) == {FIRST.isoformat(): 48, LAST.isoformat(): 48, new.isoformat(): 0}
    assert result["changed_partitions"] == {"cleaned_counts": 3}
    assert warehouse.read(CLEANED_COUNTS).get_column("service_date").max() == LAST


def test_the_state_before_is_kept_and_undoes_the_restore(
    settings: Settings,
    instance: dg.DagsterInstance,
    warehouse: DuckDBWarehouse,
    snapshots: SnapshotStore,
    kept: Snapshot,
) -> None:
    drop(warehouse, LAST)
    before = warehouse.read(CLEANED_COUNTS)

    undo = snapshots.find(restore(settings, instance, kept)["undo"])
    assert undo.taken[-1].message == f"before {kept.short_id} was restored"
    restore(settings, instance, undo)

    assert warehouse.read(CLEANED_COUNTS).equals(before)


def test_what_was_made_from_the_former_rows_is_named(
    settings: Settings, instance: dg.DagsterInstance, warehouse: DuckDBWarehouse, kept: Snapshot
) -> None:
    day = date(2024, 5, 25)
    drop(warehouse, day)
    newest = LAST + timedelta(days=1)
    row = {
        "service_date": [newest],
        "counter_id": ["c00"],
        "target_ts": [datetime(2024, 6, 11, tzinfo=UTC)],
        "horizon": [1],
    }
    features = pl.DataFrame({**row, **{name: [0.0] for name in FEATURE_COLUMNS}})
    warehouse.replace(FEATURES, features, newest, newest)

    assert restore(settings, instance, kept)["rematerialize"] == [
        ["counters", "forecast_accuracy"],
        ["counter_health", "filled_counts", "--from", str(day), "--to", str(LAST)],
        ["features", "--from", "2024-05-26", "--to", str(min(newest, day + timedelta(days=LOOKBACK_DAYS)))],
        ["trained_model", "champion"],
    ]
    assert restore(settings, instance, kept)["rematerialize"] == [], "the second time changes nothing"


def test_raw_counts_alone_ask_for_cleaning(
    settings: Settings, instance: dg.DagsterInstance, warehouse: DuckDBWarehouse, snapshots: SnapshotStore
) -> None:
    from bike_assets.assets.ingestion import store
    from bike_assets_tests.tables import batch, day_rows

    store(warehouse, batch(day_rows(FIRST)), FIRST, FIRST, now=NOW)
    kept = snapshots.take(warehouse, Taking(NOW, "someone", ""), tables=[RAW_COUNTS]).snapshot
    store(warehouse, batch(), FIRST, FIRST, now=NOW)
    cleaned_before = warehouse.read(CLEANED_COUNTS)

    result = restore(settings, instance, kept)

    assert result["rematerialize"][0] == ["cleaned_counts", "--from", str(FIRST), "--to", str(FIRST)]
    assert warehouse.read(RAW_COUNTS).height == 24
    assert warehouse.read(CLEANED_COUNTS).equals(cleaned_before)


def test_killed_before_dagster_was_told_the_next_restore_tells_it(
    settings: Settings, instance: dg.DagsterInstance, warehouse: DuckDBWarehouse, kept: Snapshot
) -> None:
    drop(warehouse, LAST)

    class Killed(BaseException):
        pass

    def killed(_: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        restore(settings, instance, kept, tell=killed)
    assert recorded(instance) == {}

    result = restore(settings, instance, kept)

    assert recorded(instance) == {LAST.isoformat(): 48}
    assert result["rematerialize"]
    assert restore(settings, instance, kept)["rematerialize"] == []


def test_nothing_is_restored_under_a_run_at_work(
    settings: Settings, instance: dg.DagsterInstance, warehouse: DuckDBWarehouse, kept: Snapshot
) -> None:
    drop(warehouse, LAST)
    before = warehouse.read(CLEANED_COUNTS)

    @dg.op
    def nothing() -> None: ...

    @dg.job
    def job() -> None:
        nothing()

    run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    with pytest.raises(PermanentError, match=f"run {run.run_id[:8]} is at work"):
        restore(settings, instance, kept)
    assert warehouse.read(CLEANED_COUNTS).equals(before)


def test_a_home_of_snapshots_alone_can_be_filled(
    settings: Settings, instance: dg.DagsterInstance, warehouse: DuckDBWarehouse, kept: Snapshot
) -> None:
    before = warehouse.read(CLEANED_COUNTS)
    Path(warehouse.path).unlink()
    shutil.rmtree(settings.dagster_home, ignore_errors=True)

    assert restore(settings, instance, kept)["undo"] is None
    assert warehouse.read(CLEANED_COUNTS).equals(before)
