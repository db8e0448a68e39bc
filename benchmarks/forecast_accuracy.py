"""Accuracy of the forecasting core on real exports, by horizon, against both baselines, without the platform.

    python benchmarks/forecast_accuracy.py --data FILE... --train-until 2024-01-28 --test-until 2024-02-25

Trains on hours up to --train-until, issues a forecast on every later day without retraining, and scores
every counted hour up to --test-until. Files are the portal's CSV exports or its Parquet exports; where they
overlap, the later file on the command line wins.
"""

import argparse
import time
from datetime import date, timedelta
from pathlib import Path

import polars as pl

from bike_assets.core.calendar import LOCAL_TZ, days_between, local_columns
from bike_assets.core.contracts import UTC_TIMESTAMP
from bike_assets.core.features import build_features, sample_rows
from bike_assets.core.metrics import accuracy_by_horizon, join_truth
from bike_assets.core.model import Forecaster, TrainConfig

CHUNK_DAYS = 28
WARM_UP_DAYS = 28


def read(path: Path) -> pl.DataFrame:
    """counter_id, ts_utc and hourly_count of one export."""
    if path.suffix == ".parquet":
        return pl.read_parquet(path).select(
            counter_id="id_compteur", ts_utc=pl.col("date").cast(UTC_TIMESTAMP), hourly_count="sum_counts"
        )
    stamp = pl.col("Date et heure de comptage")
    return pl.read_csv(path, separator=";", infer_schema=False).select(
        counter_id="Identifiant du compteur",
        ts_utc=stamp.str.to_datetime("%Y-%m-%dT%H:%M:%S%z", time_unit="us", time_zone="UTC"),
        hourly_count=pl.col("Comptage horaire").cast(pl.Float64),
    )


def load(paths: list[Path]) -> pl.DataFrame:
    """Cleaned counts: one row per counter and hour, with the wall clock."""
    frame = pl.concat([read(path) for path in paths]).unique(
        ["counter_id", "ts_utc"], keep="last", maintain_order=True
    )
    frame = local_columns(frame.with_columns(pl.col("hourly_count").cast(pl.Int64)), tz=LOCAL_TZ)
    # The second of the two repeated hours is the merged one when the first is nowhere in the data.
    repeats = pl.col("ts_utc") - pl.duration(hours=1)
    local, before = (pl.col("ts_utc").dt.convert_time_zone(LOCAL_TZ), repeats.dt.convert_time_zone(LOCAL_TZ))
    repeated = local.dt.hour() == before.dt.hour()
    alone = ~repeats.is_in(frame["ts_utc"].unique().implode())
    both = repeated & alone
    halves = pl.when(both).then(pl.col("hourly_count") // 2).otherwise(pl.col("hourly_count"))
    return frame.with_columns(hourly_count=halves).sort("counter_id", "ts_utc")


def chunks(counts: pl.DataFrame, days: list[date]) -> list[pl.DataFrame]:
    """Features of the issue dates, a month at a time."""
    return [build_features(counts, days[i : i + CHUNK_DAYS]) for i in range(0, len(days), CHUNK_DAYS)]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--train-until", type=date.fromisoformat, required=True)
    parser.add_argument("--test-until", type=date.fromisoformat, required=True)
    parser.add_argument("--rows", type=int, default=TrainConfig().max_rows, help="training rows")
    args = parser.parse_args()

    started = time.perf_counter()
    counts = load(args.data)
    known = counts.filter(pl.col("service_date") <= args.train_until)
    # Stray rows long before the rest must not stretch the window: start where counters are common.
    daily = known.group_by("service_date").agg(pl.len()).filter(pl.col("len") >= 24).sort("service_date")
    first = daily["service_date"][0] + timedelta(days=WARM_UP_DAYS)
    loaded = time.perf_counter()
    train_days = days_between(first, args.train_until)
    fraction = min(1.0, 1.1 * args.rows / (len(train_days) * counts["counter_id"].n_unique() * 168))
    sampled = []
    for i in range(0, len(train_days), CHUNK_DAYS):
        features = build_features(known, train_days[i : i + CHUNK_DAYS])
        sampled.append(sample_rows(features, fraction))
    built = time.perf_counter()
    model = Forecaster().fit(pl.concat(sampled), known, TrainConfig(max_rows=args.rows))
    fitted = time.perf_counter()
    test_days = days_between(args.train_until + timedelta(days=1), args.test_until)
    predictions = pl.concat([model.predict(part) for part in chunks(counts, test_days)])
    truth = counts.filter(pl.col("service_date") <= args.test_until)
    done = time.perf_counter()

    print(
        f"{'day':>3} {'n':>8} | {'R2':>6} {'RMSE':>6} {'MAE':>6} {'WAPE':>6} {'GEH<5':>6} {'skill':>6}",
        end="",
    )
    print(f" | {'R2 mean4':>8} {'R2 naive':>8} | {'in 80%':>6} {'in 90%':>6}")
    by_horizon = accuracy_by_horizon(predictions, truth)
    mean4 = accuracy_by_horizon(predictions, truth, "mean4")
    naive = accuracy_by_horizon(predictions, truth, "seasonal_naive")
    scored = join_truth(predictions, truth)
    for h, m in by_horizon.items():
        rows = scored.filter(pl.col("horizon") == h)
        inside = [
            rows.select(pl.col("hourly_count").is_between(f"lower_{c}", f"upper_{c}").mean()).item()
            for c in (80, 90)
        ]
        print(
            f"{h:>3} {m.n:>8} | {m.r2:6.4f} {m.rmse:6.2f} {m.mae:6.2f} {m.wape:6.4f} {m.geh5_share:6.4f} "
            f"{m.skill:6.4f} | {mean4[h].r2:8.4f} {naive[h].r2:8.4f} | {inside[0]:6.3f} {inside[1]:6.3f}"
        )
    print(
        f"read {loaded - started:.1f} s, features of {len(train_days)} days {built - loaded:.1f} s, "
        f"fit {fitted - built:.1f} s, {len(test_days)} issue dates scored {done - fitted:.1f} s"
    )


if __name__ == "__main__":
    main()
