"""Every Great Expectations suite on a city's tables of 1.5 M rows: the claim is under 30 s on 2 cores.

    python benchmarks/quality.py [--rows 1500000]

Processor time is shown beside wall time, because on a busy machine only the first says something. The tables hold one
broken row each, which must be found; the import of Great Expectations is measured apart.
"""

import argparse
import time
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

COUNTERS = 113
START = datetime(2023, 1, 1, tzinfo=UTC)


def hours(rows: int) -> pl.DataFrame:
    """Counters and hours with a daily shape, and every column that the tables share."""
    n = rows // COUNTERS
    start = pl.lit(START).cast(pl.Datetime("us", "UTC"))
    frame = pl.DataFrame({"i": np.arange(n * COUNTERS)}).with_columns(
        counter_id=pl.format("1000{}-1010", pl.col("i") // n),
        ts_utc=start + pl.duration(hours=pl.col("i") % n),
        hourly_count=(pl.col("i") * 7919 % 83),
    )
    return local_columns(frame).with_columns(
        published_count="hourly_count", counter_name=pl.lit("c"), site_id=pl.lit("s"), site_name=pl.lit("s"),
        latitude=48.8, longitude=2.3, installation_date=None, source=pl.lit("archive"),
        source_file=pl.lit("f"), published_until=start, ingested_at=start, content_hash=pl.lit("x"),
        is_merged_hour=False, is_outage=False, is_spike=False, is_stuck=False, revisions=1,
        count_filled="hourly_count", fill_method=pl.lit("published"),
        target_ts="ts_utc", horizon=pl.col("i") % 7 + 1, forecast="hourly_count",
        lower_80=0.0, upper_80=90.0, lower_90=0.0, upper_90=95.0, mean4=40.0, seasonal_naive=40.0,
        model_name=pl.lit("m"), model_version=pl.lit("1"), run_id=pl.lit("r"),
        **{name: pl.lit(1.0) for name in FEATURE_COLUMNS if name not in ("mean4", "seasonal_naive")},
    )  # fmt: skip


def health(rows: int) -> pl.DataFrame:
    """A row a counter and day, as many as there are hours elsewhere."""
    n = rows // COUNTERS
    return pl.DataFrame({"i": np.arange(n * COUNTERS)}).select(
        counter_id=pl.format("1000{}-1010", pl.col("i") // n),
        service_date=pl.lit(START.date() - timedelta(days=10_000)) + pl.duration(days=pl.col("i") % n),
        state=pl.lit("alive"), known_hours=24, silent_days=0, daily_count=500.0, expected_count=500.0,
        change=1.0, deviation=0.0, stuck_hours=1, reason=pl.lit("as usual"),
    )  # fmt: skip


def table(contract: TableContract, frame: pl.DataFrame) -> pl.DataFrame:
    """The frame as the contract's table, with something in every column that it does not have."""
    fill = {pl.Boolean: False, pl.String: "x", pl.Float32: 1.0, pl.Float64: 1.0, pl.Int32: 1, pl.Int64: 1}
    lacking = [column for column in contract.columns if column.name not in frame.columns]
    return contract.conform(
        frame.with_columns(pl.lit(fill.get(column.dtype)).alias(column.name) for column in lacking)  # type: ignore[call-overload]
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_500_000)
    args = parser.parse_args()
    began = time.perf_counter()
    run_suite("cleaned_counts", table(CLEANED_COUNTS, hours(COUNTERS * 24)))
    print(f"import and first run {time.perf_counter() - began:.1f} s")
    wide = hours(args.rows)
    tables: dict[SuiteName, pl.DataFrame] = {
        "raw_counts": table(RAW_COUNTS, wide),
        "cleaned_counts": table(CLEANED_COUNTS, wide),
        "counter_health": table(COUNTER_HEALTH, health(args.rows)),
        "filled_counts": table(FILLED_COUNTS, wide),
        "features": table(features_contract(FEATURE_COLUMNS), wide),
        "predictions": table(PREDICTIONS, wide),
    }
    key = {"raw_counts": "hourly_count", "counter_health": "change", "features": "mean4"}
    print(f"{'suite':>16} {'rows':>10} {'rules':>6} {'broken':>7} {'wall s':>7} {'cpu s':>7}")
    wall = cpu = 0.0
    for name, rows in tables.items():
        # One needle: an impossible value or a repeated key must be found among all rows.
        column = key.get(name)
        needle = (
            pl.concat([rows, rows[[rows.height // 2]]])
            if column is None
            else rows.with_columns(
                pl.when(pl.int_range(pl.len()) == rows.height // 2)
                .then(float("inf"))
                .otherwise(column)
                .cast(rows.schema[column])
                .alias(column)
            )
        )
        started, processor = time.perf_counter(), time.process_time()
        result = run_suite(name, needle)
        spent = time.perf_counter() - started, time.process_time() - processor
        wall, cpu = wall + spent[0], cpu + spent[1]
        if result.passed:
            raise SystemExit(f"{name}: the broken row was not found")
        print(
            f"{name:>16} {needle.height:>10,} {result.evaluated:>6} {len(result.failures):>7} "
            f"{spent[0]:7.1f} {spent[1]:7.1f}"
        )
    print(f"{'all':>16} {'':>10} {'':>6} {'':>7} {wall:7.1f} {cpu:7.1f}")


if __name__ == "__main__":
    main()
