"""What cleaning and the tables for people cost: seconds and peak memory of dbt, by rows.

    python benchmarks/cleaning.py [MILLION ROWS ...]

Fills a warehouse with a simulated city, replicated under other counter ids until it has so many rows of raw counts
(1.5 by default), and runs dbt as the assets do, process and parsing included: everything and the tables for people, in
a home where dbt has parsed nothing yet, and again where it has; then two single days. Prints seconds, processor seconds
(which a busy machine hardly changes) and the peak memory of dbt. The claim: 1.5 million rows in under 20 s, and linear
to 10 million in under 6 GB.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psutil

from bike_assets.assets.dbt_models import CLEANING_MODELS, DESCRIBING_MODELS
from bike_assets.assets.ingestion import store
from bike_assets.core.contracts import RAW_COUNTS
from bike_assets.resources.dbt import partition_environment
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.settings import REPOSITORY
from bike_assets.sources.simulator import SimulatorSource

FIRST, LAST = date(2023, 1, 1), date(2024, 2, 25)
CITY = 24
PROJECT = REPOSITORY / "dbt_project"


def fill(path: Path, rows: int) -> int:
    """A warehouse with at least so many rows of raw counts; returns how many."""
    warehouse = DuckDBWarehouse(path=str(path))
    source = SimulatorSource(counters=CITY, first_day=FIRST, last_day=LAST)
    store(warehouse, source.read(FIRST, LAST), FIRST, LAST, now=datetime.now(UTC))
    columns = ", ".join(name for name in RAW_COUNTS.column_names if name not in ("counter_id", "site_id"))
    with warehouse.connect() as connection:
        (city,) = connection.execute(f"SELECT count(*) FROM {RAW_COUNTS.relation}").fetchone() or (0,)
        copies = -(-rows // city)
        connection.execute(
            f"INSERT INTO {RAW_COUNTS.relation} (counter_id, site_id, {columns}) "
            f"SELECT counter_id || '-' || i, site_id || '-' || i, {columns} "
            f"FROM {RAW_COUNTS.relation}, range(1, {copies}) AS copies(i)"
        )
    return int(city * copies)


def dbt(
    path: Path, models: tuple[str, ...], days: tuple[date, date] | None = None
) -> tuple[float, int, float]:
    """Seconds, peak megabytes and CPU seconds of `dbt build` as the assets call it."""
    began, spent = time.perf_counter(), _cpu_seconds()
    process = subprocess.Popen(
        [
            *(
                str(Path(sys.executable).parent / "dbt"),
                "--quiet",
                "build",
                "--exclude-resource-type",
                "unit_test",
            ),
            *("--select", *models, "--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT)),
            *("--target-path", str(path.parent / "dbt"), "--log-path", str(path.parent / "dbt")),
        ],
        env={**_environment(path), **(partition_environment(*days) if days else {})},
    )
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, psutil.Process(process.pid).memory_info().rss)
        except psutil.Error:
            break
        time.sleep(0.05)
    if process.wait():
        raise SystemExit("dbt failed")
    return time.perf_counter() - began, peak // 2**20, _cpu_seconds() - spent


def _cpu_seconds() -> float:
    """Of all processes that were started here and have ended: what a busy machine does not change."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environment(path: Path) -> dict[str, str]:
    return {**os.environ, "BIKE_WAREHOUSE": str(path), "DBT_SEND_ANONYMOUS_USAGE_STATS": "false"}


def measure(millions: float) -> None:
    """Build everything over so many rows and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "warehouse.duckdb"
        rows = fill(path, int(millions * 1e6))
        print(f"{rows / 1e6:5.2f} M rows", flush=True)
        for turn in ("first", "again"):
            cleaning, tables = dbt(path, CLEANING_MODELS, (FIRST, LAST)), dbt(path, DESCRIBING_MODELS)
            wall, cpu = cleaning[0] + tables[0], cleaning[2] + tables[2]
            print(
                f"  {turn}: cleaning {cleaning[0]:5.1f} s ({cleaning[2]:5.1f} CPU s), "
                f"tables for people {tables[0]:5.1f} s ({tables[2]:5.1f}), together {wall:5.1f} s "
                f"({cpu:5.1f}) = {cpu / rows * 1e6:4.1f} CPU s per M rows; "
                f"peak {max(cleaning[1], tables[1]):,} MB",
                flush=True,
            )
        for day in (LAST, LAST - timedelta(days=1)):
            seconds, _, processor = dbt(path, CLEANING_MODELS, (day, day))
            print(f"  {day}: {seconds:.1f} s ({processor:.1f} CPU s)", flush=True)


def main() -> None:
    """Measure each size asked for."""
    for millions in [float(argument) for argument in sys.argv[1:]] or [1.5]:
        measure(millions)


if __name__ == "__main__":
    main()
