"""What Dagster's bookkeeping costs: its own SQLite event log against ours with open connections, in the same run.

    python benchmarks/event_log.py [PARTITIONS]

Materialises an asset that does nothing over a range of daily partitions in one run, as an ingestion of a year does,
three times with each storage in turn, and prints the CPU seconds of the fastest and their ratio.
"""

import logging
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

FIRST = date(2023, 1, 1)
REPEATS = 3

STORAGES = {
    "stock": "",
    "pooled": """
run_storage:
  module: bike_assets.run_storage
  class: PooledSqliteRunStorage
  config:
    base_dir: "{home}/history"
event_log_storage:
  module: bike_assets.event_log
  class: PooledSqliteEventLogStorage
  config:
    base_dir: "{home}/history/runs"
""",
}


@dg.asset(
    partitions_def=dg.DailyPartitionsDefinition(start_date=FIRST.isoformat()),
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def nothing() -> dg.MaterializeResult:
    """Costs nothing itself, so that what is measured is bookkeeping."""
    return dg.MaterializeResult(metadata={"dagster/row_count": 0})


def cpu_seconds(storage: str, partitions: int) -> float:
    """CPU seconds of one run over so many partitions, in an instance of its own."""
    last = FIRST + timedelta(days=partitions - 1)
    job = dg.Definitions(assets=[nothing]).get_implicit_global_asset_job_def()
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "dagster.yaml").write_text(
            STORAGES[storage].format(home=home) + "telemetry:\n  enabled: false\n"
        )
        with dg.DagsterInstance.from_config(home) as instance:
            started = time.process_time()
            result = job.execute_in_process(
                instance=instance,
                tags={
                    ASSET_PARTITION_RANGE_START_TAG: FIRST.isoformat(),
                    ASSET_PARTITION_RANGE_END_TAG: last.isoformat(),
                },
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
            spent = time.process_time() - started
            stored = len(instance.get_materialized_partitions(dg.AssetKey("nothing")))
    if not result.success or stored != partitions:
        raise SystemExit(f"{storage}: {stored} of {partitions} partitions were recorded")
    return spent


def main() -> None:
    """Measure both and print the ratio."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    partitions = int(sys.argv[1]) if len(sys.argv) > 1 else 421
    spent: dict[str, list[float]] = {name: [] for name in STORAGES}
    for _ in range(REPEATS):
        for name in STORAGES:
            spent[name].append(cpu_seconds(name, partitions))
    best = {name: min(seconds) for name, seconds in spent.items()}
    for name, seconds in best.items():
        print(f"{name:<7} {seconds:6.2f} CPU s for {partitions} partitions (fastest of {REPEATS})")
    print(f"ratio   {best['stock'] / best['pooled']:6.2f}")


if __name__ == "__main__":
    main()
