"""What Dagster's bookkeeping costs: its own stores against ours with open connections, in the same run.

    python benchmarks/event_log.py [PARTITIONS] [--postgres]

Materialises an asset that does nothing over a range of daily partitions in one run, as an ingestion of a year does,
three times with each storage in turn, and prints the seconds of the fastest and their ratio: CPU seconds with SQLite,
those of the clock with --postgres, where a server of its own does half of the work.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from bike_assets_tests.emulators.processes import postgres_server

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

POSTGRES_STORAGES = {
    "stock": """
storage:
  postgres:
    postgres_url: "{url}"
""",
    "pooled": """
storage:
  custom:
    module: bike_assets.postgres_storage
    class: PooledPostgresStorage
    config:
      postgres_url: "{url}"
""",
}


@dg.asset(
    partitions_def=dg.DailyPartitionsDefinition(start_date=FIRST.isoformat()),
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def nothing() -> dg.MaterializeResult:
    """Costs nothing itself, so that what is measured is bookkeeping."""
    return dg.MaterializeResult(metadata={"dagster/row_count": 0})


def seconds(storage: str, partitions: int, clock: Callable[[], float]) -> float:
    """Seconds of one run over so many partitions, in an instance with this storage."""
    last = FIRST + timedelta(days=partitions - 1)
    job = dg.Definitions(assets=[nothing]).get_implicit_global_asset_job_def()
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "dagster.yaml").write_text(
            storage.replace("{home}", home) + "telemetry:\n  enabled: false\n"
        )
        with dg.DagsterInstance.from_config(home) as instance:
            started = clock()
            result = job.execute_in_process(
                instance=instance,
                tags={
                    ASSET_PARTITION_RANGE_START_TAG: FIRST.isoformat(),
                    ASSET_PARTITION_RANGE_END_TAG: last.isoformat(),
                },
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
            spent = clock() - started
            stored = len(instance.get_materialized_partitions(dg.AssetKey("nothing")))
    if not result.success or stored != partitions:
        raise SystemExit(f"{storage}: {stored} of {partitions} partitions were recorded")
    return spent


def main() -> None:
    """Measure both and print the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("partitions", type=int, nargs="?", default=421)
    parser.add_argument("--postgres", action="store_true")
    options = parser.parse_args()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    spent: dict[str, list[float]] = {name: [] for name in STORAGES}
    for _ in range(REPEATS):
        for name in STORAGES:
            with ExitStack() as servers:
                if options.postgres:
                    server = servers.enter_context(postgres_server())
                    url = server.url("dagster").replace("+psycopg2", "")
                    storage, clock = POSTGRES_STORAGES[name].replace("{url}", url), time.perf_counter
                else:
                    storage, clock = STORAGES[name], time.process_time
                spent[name].append(seconds(storage, options.partitions, clock))
    best = {name: min(found) for name, found in spent.items()}
    kind = "s" if options.postgres else "CPU s"
    for name, found in best.items():
        print(f"{name:<7} {found:6.2f} {kind} for {options.partitions} partitions (fastest of {REPEATS})")
    print(f"ratio   {best['stock'] / best['pooled']:6.2f}")


if __name__ == "__main__":
    main()
