"""The event log that keeps its connections: the same records as Dagster's own, from any number of writers."""

import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from bike_assets.event_log import PooledSqliteEventLogStorage
from bike_assets.home import open_instance
from bike_assets.settings import Settings

KEY = dg.AssetKey("counted")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Opening a home sets these for its child processes; set first, so that monkeypatch restores them.
    for name in ("DAGSTER_HOME", "BIKE_HOME", "BIKE_WAREHOUSE", "DAGSTER_EVENT_BATCH_SIZE"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("DAGSTER_EVENT_BATCH_SIZE")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    with open_instance(settings) as found:
        yield found


@dg.asset
def counted(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    context.log.info("é — a line of text")
    return dg.MaterializeResult(metadata={"rows": 5})


@dg.asset_check(asset=counted)
def is_five() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


def run(instance: dg.DagsterInstance) -> str:
    definitions = dg.Definitions(assets=[counted], asset_checks=[is_five])
    job = definitions.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        instance=instance, run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    ).run_id


def test_a_run_after_the_first_has_the_tables_that_dagster_would_make(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    stock = SqliteEventLogStorage(str(tmp_path / "stock"))
    with stock.run_connection("a-run"):
        pass
    run(instance)
    copied = Path(instance.event_log_storage._base_dir) / f"{run(instance)}.db"  # type: ignore[attr-defined]

    def tables(path: Path) -> list[tuple[str, ...]]:
        with closing(sqlite3.connect(path)) as database:
            made = database.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
            return [*made, *database.execute("SELECT * FROM alembic_version").fetchall()]

    assert tables(copied) == tables(tmp_path / "stock" / "a-run.db")
    assert not list(copied.parent.glob("*.[0-9]*")), "no copy is left beside them"


def materialised(instance: dg.DagsterInstance) -> int:
    return len(instance.fetch_materializations(KEY, limit=1000).records)


def test_a_home_uses_it(instance: dg.DagsterInstance) -> None:
    assert isinstance(instance.event_log_storage, PooledSqliteEventLogStorage)


def test_dagsters_own_class_reads_the_same_records_from_the_same_files(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    run_ids = [run(instance) for _ in range(2)]
    ours = instance.event_log_storage
    stock = SqliteEventLogStorage(str(settings.dagster_home / "history" / "runs"))

    for run_id in run_ids:
        events = ours.get_logs_for_run(run_id)
        assert len(events) > 5
        assert events == stock.get_logs_for_run(run_id)
    records = dg.AssetRecordsFilter(asset_key=KEY)
    assert ours.fetch_materializations(records, limit=10) == stock.fetch_materializations(records, limit=10)
    assert ours.all_asset_keys() == stock.all_asset_keys() == [KEY]
    assert ours.get_maximum_record_id() == stock.get_maximum_record_id()
    check = dg.AssetCheckKey(KEY, "is_five")
    history = ours.get_asset_check_execution_history(check, limit=5)
    assert len(history) == 2
    assert history == stock.get_asset_check_execution_history(check, limit=5)


def test_it_reads_what_dagsters_own_class_wrote(tmp_path: Path) -> None:
    home = tmp_path / "stock"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as stock:
        run_id = run(stock)
        base = next(home.rglob("index.db")).parent
        expected = stock.event_log_storage.get_logs_for_run(run_id)

    ours = PooledSqliteEventLogStorage(str(base))
    assert ours.get_logs_for_run(run_id) == expected
    ours.dispose()


@pytest.mark.filterwarnings("ignore:Parameter `backfill_policy`")
def test_events_of_a_range_are_stored_together_and_say_what_they_say_one_by_one(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.asset(
        partitions_def=dg.DailyPartitionsDefinition(start_date="2024-01-01", end_date="2024-02-01"),
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def daily() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata={"rows": 5})

    batches: list[list[EventLogEntry]] = []
    together = instance.event_log_storage
    store = together.store_event_batch
    monkeypatch.setattr(
        together, "store_event_batch", lambda events: (batches.append(list(events)), store(events))
    )
    run_id = (
        dg.Definitions(assets=[daily])
        .resolve_implicit_global_asset_job_def()
        .execute_in_process(
            instance=instance,
            tags={
                ASSET_PARTITION_RANGE_START_TAG: "2024-01-03",
                ASSET_PARTITION_RANGE_END_TAG: "2024-01-07",
            },
        )
        .run_id
    )
    one_by_one = SqliteEventLogStorage(str(tmp_path / "one_by_one"))
    for event in together.get_logs_for_run(run_id):
        one_by_one.store_event(event)

    planned, made = batches
    assert (len(planned), len(made)) == (5, 5)
    assert together.get_logs_for_run(run_id) == one_by_one.get_logs_for_run(run_id)
    for kind in (
        dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
        dg.DagsterEventType.ASSET_MATERIALIZATION,
    ):
        wanted = dg.EventRecordsFilter(kind, asset_key=daily.key)
        assert together.get_event_records(wanted) == one_by_one.get_event_records(wanted)
    assert together.get_asset_records() == one_by_one.get_asset_records()
    found = together.get_latest_tags_by_partition(
        daily.key, dg.DagsterEventType.ASSET_MATERIALIZATION, ["dagster/data_version"]
    )
    assert len(found) == 5
    assert found == one_by_one.get_latest_tags_by_partition(
        daily.key, dg.DagsterEventType.ASSET_MATERIALIZATION, ["dagster/data_version"]
    )


def test_a_failed_write_leaves_nothing_behind(instance: dg.DagsterInstance) -> None:
    storage = instance.event_log_storage
    assert isinstance(storage, PooledSqliteEventLogStorage)
    run(instance)
    before = materialised(instance)

    def fail_half_way() -> None:
        with storage.index_connection() as connection:
            connection.exec_driver_sql("DELETE FROM event_logs")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()

    assert materialised(instance) == before == 1


def test_threads_may_write_at_once(instance: dg.DagsterInstance) -> None:
    def report(n: int) -> None:
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY, metadata={"n": n}))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(report, range(20)))

    records = instance.fetch_materializations(KEY, limit=100).records
    assert sorted(record.asset_materialization.metadata["n"].value for record in records) == list(range(20))  # type: ignore[union-attr]


WRITER = """
    import sys
    from pathlib import Path
    import dagster as dg
    from bike_assets.home import open_instance
    from bike_assets.settings import Settings

    with open_instance(Settings(home=Path(sys.argv[1]))) as instance:
        print("ready", flush=True)
        sys.stdin.readline()
        for n in range(15):
            instance.report_runless_asset_event(dg.AssetMaterialization("counted"))
"""


@pytest.mark.slow
def test_processes_may_write_at_once(instance: dg.DagsterInstance, settings: Settings) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(settings.home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for _ in range(15):
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY))

    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    assert materialised(instance) == 45


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed in /proc on Linux only")
def test_disposing_closes_every_file_and_using_it_again_opens_them(settings: Settings) -> None:
    with open_instance(settings) as instance:
        run_id = run(instance)
        storage = instance.event_log_storage
        assert _open_files(settings.dagster_home), "nothing was kept open"

        storage.dispose()

        assert not _open_files(settings.dagster_home / "history" / "runs")
        assert storage.get_logs_for_run(run_id)


def _open_files(folder: Path) -> list[str]:
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = descriptor.readlink()
        except OSError:  # closed since it was listed
            continue
        if target.is_relative_to(folder):
            links.append(str(target))
    return links


@dg.asset(pool="duckdb")
def alone() -> None: ...


def test_a_run_waits_for_a_place_in_a_pool_without_work(instance: dg.DagsterInstance) -> None:
    store = instance.event_log_storage
    store.initialize_concurrency_limit_to_default("duckdb")
    assert store.claim_concurrency_slot("duckdb", "another", "step").is_claimed
    assert store.claim_concurrency_slot("duckdb", "a third", "step").sleep_interval == 0
    store.free_concurrency_slot_for_step("a third", "step")
    job = dg.Definitions(assets=[alone]).resolve_implicit_global_asset_job_def()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(
            job.execute_in_process,
            instance=instance,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        # Whatever is found, the place is freed, or the run would wait for ever.
        try:
            deadline = time.monotonic() + 60
            while not any(
                step.run_id != "another" for step in store.get_concurrency_info("duckdb").pending_steps
            ):
                assert time.monotonic() < deadline, "the run does not ask for a place"
                time.sleep(0.05)
            before = time.process_time()
            time.sleep(2)
            spent = time.process_time() - before
            assert not waiting.done()
        finally:
            store.free_concurrency_slot_for_step("another", "step")
        assert waiting.result(60).success
    assert spent < 1


def test_a_place_that_is_freed_while_a_step_asks_is_not_lost(instance: dg.DagsterInstance) -> None:
    store = instance.event_log_storage
    store.initialize_concurrency_limit_to_default("duckdb")
    # What is there when the other's end came between the look for a place and the note.
    store.add_pending_step("duckdb", "run", "step")  # type: ignore[attr-defined]

    assert not store.claim_concurrency_slot("duckdb", "run", "step").is_claimed
    assert store.claim_concurrency_slot("duckdb", "run", "step").is_claimed
