"""How well counters are forecast that no training saw: sites are left out in turn, and given a history of n days.

    python benchmarks/unseen_counters.py                                                    the simulated city
    python benchmarks/unseen_counters.py --home HOME --train-until 2023-10-31 --to 2023-12-31

HOME is filled as by `bike-assets ingest`. Whole sites are left out (counters at the same place lend each other too
well), one fold in turn, of training and of what the model's inputs know, but for the last n days before each issue
date. The error beside them is that of the other counters of the same size under the same model. The predecessor's
fallback forecasts an unknown counter as one constant known one; here that is the first of the training, by name.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import polars as pl

from bike_assets.assets.forecasting import training_config
from bike_assets.backtest import read_counts, read_weather
from bike_assets.core.backtest import BacktestConfig, fit, plan_origins, told_weather, training_data
from bike_assets.core.calendar import days_between
from bike_assets.core.contracts import COUNTERS
from bike_assets.core.features import build_features
from bike_assets.core.metrics import join_truth
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.settings import load_settings
from bike_assets.sources.base import busy_span

FOLDS: Final = 5
HISTORIES: Final = (0, 1, 3, 7, 28, None)
"""Days of counts that a counter left out has; None: all it has."""
EVERY_DAYS: Final = 9
"""One issue date in so many: all weekdays come up."""
LEVELS: Final = ((10.0, "under 10"), (30.0, "10 to 30"), (100.0, "30 to 100"), (float("inf"), "100 and more"))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home")
    parser.add_argument("--train-until", type=date.fromisoformat, default=date(2024, 11, 15))
    parser.add_argument("--to", type=date.fromisoformat, default=date(2024, 12, 31))
    parser.add_argument("--weather", choices=("none", "known", "observed"), default="observed")
    parser.add_argument("--rows", type=int, default=80_000)
    parser.add_argument("--folds", type=int, default=FOLDS, help="how many of the folds are run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if args.home is None:
            command = [sys.executable, "-m", "bike_assets.cli", "ingest", "--home", temporary]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        measure(args, Path(args.home or temporary))


def measure(args: argparse.Namespace, home: Path) -> None:
    """Leave counters out and print how well they are forecast."""
    settings = load_settings(home=home)
    counts = read_counts(settings, args.to)
    positions = DuckDBWarehouse(path=str(settings.warehouse_path)).read(
        COUNTERS, columns=("counter_id", "latitude", "longitude")
    )
    first = args.train_until + timedelta(days=1)
    config = replace(training_config(settings), max_rows=args.rows)
    origins = plan_origins(BacktestConfig(first, args.to, weather=args.weather), busy_span(counts)[0])
    weather = told_weather(read_weather(settings), origins, args.weather)
    issue_dates = days_between(first, args.to - timedelta(days=6))[::EVERY_DAYS]
    mean = counts.filter("is_believable").group_by("counter_id").agg(mean=pl.col("hourly_count").mean())
    level = pl.lit(LEVELS[-1][1])
    for limit, name in reversed(LEVELS[:-1]):
        level = pl.when(pl.col("mean") < limit).then(pl.lit(name)).otherwise(level)
    levels = mean.select("counter_id", level=level)
    parts = []
    for fold, out in enumerate(itertools.islice(folds(positions, counts), args.folds)):
        seen = counts.filter(~pl.col("counter_id").is_in(out))
        data = training_data(seen, origins[0], config, weather)
        forecaster = fit(config.family, data, config)
        fallback = data.counters["counter_id"][0]
        print(f"fold {fold + 1} of {FOLDS}: {len(out)} counters left out", flush=True)
        for day in issue_dates:
            for history in HISTORIES:
                start = day - timedelta(days=history) if history is not None else date.min
                known = counts.filter(~pl.col("counter_id").is_in(out) | (pl.col("service_date") >= start))
                asked = out if history is not None else None
                features = build_features(
                    known, [day], weather=weather, positions=positions, counter_ids=asked
                )
                forecast = forecaster.predict(features).with_columns(
                    group=pl.when(pl.col("counter_id").is_in(out))
                    .then(pl.lit("all" if history is None else str(history)))
                    .otherwise(pl.lit("known"))
                )
                parts.append(forecast.select("group", "counter_id", "target_ts", "horizon", "forecast"))
                if history is None:
                    constant = forecast.filter(counter_id=fallback).drop("counter_id", "group")
                    others = forecast.filter(pl.col("counter_id").is_in(out)).select(
                        "counter_id", "target_ts"
                    )
                    parts.append(
                        others.join(constant, on="target_ts")
                        .with_columns(group=pl.lit("constant"))
                        .select(parts[-1].columns)
                    )
    # An outage says nothing of the forecast.
    scored = join_truth(pl.concat(parts), counts.filter("is_believable")).join(levels, on="counter_id")
    error = (pl.col("forecast") - pl.col("hourly_count")).abs().sum()
    counted = pl.col("hourly_count").sum()
    table = scored.group_by("group", "level").agg(wape=error / counted, counted=counted)
    wape = {(row["group"], row["level"]): row for row in table.to_dicts() if row["counted"]}
    names = [name for _, name in LEVELS]
    print("\nWAPE of seven days ahead, and its ratio to known counters of the same level")
    print(f"{'history':>10}", *(f"{name:>18}" for name in names))
    for group in ("known", "all", *(str(h) for h in reversed(HISTORIES[:-1])), "constant"):
        cells = []
        for name in names:
            row, base = wape.get((group, name)), wape.get(("known", name))
            cells.append(f"{row['wape']:.3f} ({row['wape'] / base['wape']:.2f})" if row and base else "–")
        print(f"{group:>10}", *(f"{cell:>18}" for cell in cells))


def folds(positions: pl.DataFrame, counts: pl.DataFrame) -> Iterator[list[str]]:
    """Counters of each fold; those of one site together."""
    counted = counts.select("counter_id").unique().join(positions, on="counter_id", how="left")
    place = pl.format("{} {}", pl.col("latitude").round(3), pl.col("longitude").round(3))
    sites = counted.with_columns(site=pl.coalesce(place, "counter_id")).sort("counter_id")
    number = pl.col("site").map_elements(
        lambda site: zlib.crc32(site.encode()) % FOLDS, return_dtype=pl.Int64
    )
    numbered = sites.with_columns(fold=number)
    for fold in range(FOLDS):
        yield numbered.filter(fold=fold)["counter_id"].to_list()


if __name__ == "__main__":
    main()
