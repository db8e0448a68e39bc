"""Every Great Expectations suite on a city's tables of 1.5 M rows: the claim is under 30 s on 2 cores, and
a cost that grows with the rows up to 10 M, under 6 GB.

    python benchmarks/quality.py [--rows 1500000] [--suites features]

Processor time is shown beside wall time, because on a busy machine only the first says something. The tables hold one
broken row each, which must be found. The import of Great Expectations is left out; the table is part of the peak, which
also holds what making it left behind.
"""

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from bike_assets.checks.expectations import SuiteName, run_suite
from bike_assets.core.calendar import local_columns
from bike_assets.core.contracts import (
    CLEANED_COUNTS,
    COUNTER_HEALTH,
    FILLED_COUNTS,
    PREDICTIONS,
    RAW_COUNTS,
    TableContract,
    features_contract,
)
from bike_assets.core.features import FEATURE_COLUMNS
from bike_assets.peak_memory import PeakMemory

COUNTERS = 113
START = datetime(2023, 1, 1, tzinfo=UTC)


def hours(rows: int) -> pl.DataFrame:
    """Counters and hours with a daily shape, and every column of a table that is not one constant."""
    n = rows // COUNTERS
    start = pl.lit(START).cast(pl.Datetime("us", "UTC"))
    frame = pl.DataFrame({"i": np.arange(n * COUNTERS)}).with_columns(
        counter_id=pl.format("1000{}-1010", pl.col("i") // n),
        ts_utc=start + pl.duration(hours=pl.col("i") % n),
        hourly_count=pl.col("i") * 7919 % 83,
        horizon=(pl.col("i") % 7 + 1).cast(pl.Int32),
    )
    return local_columns(frame.drop("i"))


def health(rows: int) -> pl.DataFrame:
    """A row a counter and day, as many as there are hours elsewhere."""
    n = rows // COUNTERS
    return pl.DataFrame({"i": np.arange(n * COUNTERS)}).select(
        counter_id=pl.format("1000{}-1010", pl.col("i") // n),
        service_date=pl.lit(START.date() - timedelta(days=10_000)) + pl.duration(days=pl.col("i") % n),
        state=pl.lit("alive"), known_hours=24, silent_days=0, daily_count=500.0, expected_count=500.0,
        change=1.0, deviation=0.0, stuck_hours=1, reason=pl.lit("as usual"),
    )  # fmt: skip


SAME: dict[str, object] = {
    "source": "archive", "published_until": START, "ingested_at": START, "fill_method": "published",
    "lower_80": 0.0, "upper_80": 90.0, "lower_90": 0.0, "upper_90": 95.0, "latitude": 48.8, "longitude": 2.3,
}  # fmt: skip
COPIES = {
    "published_count": "hourly_count", "count_filled": "hourly_count", "forecast": "hourly_count",
    "target_ts": "ts_utc",
}  # fmt: skip


def table(contract: TableContract, frame: pl.DataFrame) -> pl.DataFrame:
    """The frame as the contract's table, with a constant in every column that it does not have."""
    fill = {pl.Boolean: False, pl.String: "x", pl.Float32: 1.0, pl.Float64: 1.0, pl.Int32: 1, pl.Int64: 1}
    columns = {}
    for column in contract.columns:
        source = COPIES.get(column.name, column.name)
        constant = SAME.get(column.name, fill.get(column.dtype))  # type: ignore[call-overload]
        value = pl.col(source) if source in frame.columns else pl.lit(constant)
        columns[column.name] = value.cast(column.dtype)
    return frame.select(**columns)


KEYS: dict[SuiteName, str] = {"raw_counts": "hourly_count", "counter_health": "change", "features": "mean4"}
CONTRACTS: dict[SuiteName, TableContract] = {
    "raw_counts": RAW_COUNTS,
    "cleaned_counts": CLEANED_COUNTS,
    "counter_health": COUNTER_HEALTH,
    "filled_counts": FILLED_COUNTS,
    "features": features_contract(FEATURE_COLUMNS),
    "predictions": PREDICTIONS,
}


def broken(name: SuiteName, n: int) -> pl.DataFrame:
    """The suite's table with one needle: an impossible value or a repeated key."""
    rows = table(CONTRACTS[name], health(n) if name == "counter_health" else hours(n))
    middle = rows.height // 2
    if name not in KEYS:
        return pl.concat([rows, rows[[middle]]])
    column = KEYS[name]
    there = pl.int_range(pl.len()) == middle
    value = pl.when(there).then(float("inf")).otherwise(column).cast(rows.schema[column])
    return rows.with_columns(value.alias(column))


def measure(name: SuiteName, n: int) -> tuple[float, float]:
    """Hold the table against its suite, and print and return seconds of wall and processor time."""
    # The libraries are read once a process, whatever the table.
    run_suite("cleaned_counts", table(CLEANED_COUNTS, hours(COUNTERS * 24)))
    rows = broken(name, n)
    started, processor = time.perf_counter(), time.process_time()
    with PeakMemory() as memory:
        result = run_suite(name, rows)
    spent = time.perf_counter() - started, time.process_time() - processor
    if result.passed:
        raise SystemExit(f"{name}: the broken row was not found")
    print(
        f"{name:>16} {rows.height:>10,} {result.evaluated:>6} {len(result.failures):>7} "
        f"{spent[0]:7.1f} {spent[1]:7.1f} {memory.megabytes:8,} {rows.estimated_size('mb'):8,.0f}",
        flush=True,
    )
    return spent


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_500_000)
    parser.add_argument("--suites", nargs="+", choices=list(CONTRACTS), default=list(CONTRACTS))
    args = parser.parse_args()
    heads = ("rules", "broken", "wall s", "cpu s", "peak MB", "table MB")
    print(f"{'suite':>16} {'rows':>10} {' '.join(heads)}")
    # A process a suite, as the checks of an asset have: what one leaves behind is not the next one's.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        spent = list(pool.map(measure, args.suites, [args.rows] * len(args.suites)))
    wall, cpu = (sum(part) for part in zip(*spent, strict=True))
    print(f"{'all':>16} {'':>10} {'':>6} {'':>7} {wall:7.1f} {cpu:7.1f}")


if __name__ == "__main__":
    main()
