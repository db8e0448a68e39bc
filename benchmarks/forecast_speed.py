"""How fast features, training and scoring are, beside the libraries that others would take, measured in one run.

    uv run --with mlforecast python benchmarks/forecast_speed.py [features] [training] [scoring]

The claims, on 2 cores and under 6 GB: features of 1.5 M counted hours at 7 horizons in under 10 s, a full training in
under 120 s, 113 counters x 168 hours scored in under 1 s. Features are made as backtests make them, a few weeks of
issue dates at a time, every one of `FEATURE_COLUMNS`. pandas and mlforecast make fewer: lags of days and weeks, means
of four weeks and of the last 28 days, an exponentially weighted mean; neither weather, nor the city, nor holidays, nor
masks. Each does what its users would write, once a horizon, as none knows of issue dates. Where mlforecast is not
installed it is left out, and said to be.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import Final

import numpy as np
import pandas as pd
import polars as pl

from bike_assets.core.backtest import CHUNK_DAYS, THREADS
from bike_assets.core.calendar import days_between, hours_of_day, local_columns
from bike_assets.core.contracts import UTC_TIMESTAMP
from bike_assets.core.features import FEATURE_COLUMNS, build_features, sample_rows
from bike_assets.core.model import Forecaster, with_truth
from bike_assets.core.training import TrainConfig
from bike_assets.peak_memory import PeakMemory

COUNTERS: Final = 113
ROWS: Final = 1_500_000
FIRST: Final = date(2023, 1, 2)
WEEK: Final = 7 * 24
HORIZONS: Final = range(1, 8)


def city(days: Sequence[date]) -> pl.DataFrame:
    """Cleaned counts of every counter and hour: a daily and weekly shape and noise."""
    hours = pl.DataFrame(
        {"ts_utc": [hour for day in days for hour in hours_of_day(day)]}, schema={"ts_utc": UTC_TIMESTAMP}
    )
    frame = local_columns(hours).join(pl.DataFrame({"counter": np.arange(COUNTERS)}), how="cross")
    shape = 1.2 - np.cos((frame["local_hour"].to_numpy() - 3) / 24 * 2 * np.pi)
    weekend = np.where(frame["service_date"].dt.weekday().to_numpy() > 5, 0.6, 1.0)
    rate = shape * weekend * (5 + frame["counter"].to_numpy())
    counts = np.random.default_rng(0).poisson(rate).astype(np.int64)
    return (
        frame.with_columns(counter_id=pl.format("c{}", "counter"), hourly_count=pl.Series(counts))
        .drop("counter")
        .sort("counter_id", "ts_utc")
    )


def timed(name: str, work: Callable[[], int], base: float | None = None) -> float:
    """Run, and print seconds, what was made, memory, and how many times as long as the base it took."""
    with PeakMemory() as memory:
        started = time.perf_counter()
        made = work()
        seconds = time.perf_counter() - started
    ratio = f"  {seconds / base:6.1f} x ours" if base else ""
    print(f"  {name:<52} {seconds:7.1f} s  {made:>12,} values  {memory.megabytes:>6,} MB{ratio}", flush=True)
    return seconds


def ours(counts: pl.DataFrame, days: Sequence[date]) -> int:
    """Features of every issue date."""
    parts = [days[start : start + CHUNK_DAYS] for start in range(0, len(days), CHUNK_DAYS)]
    with ThreadPoolExecutor(THREADS) as pool:
        rows = pool.map(lambda part: build_features(counts, part).height, parts)
        return sum(rows) * len(FEATURE_COLUMNS)


def with_pandas(counts: pd.DataFrame) -> int:
    """Lags and rolling means a horizon, by groupby as users of pandas write them."""
    made = 0
    by_counter = counts.groupby("counter_id", sort=False)["hourly_count"]
    for horizon in HORIZONS:
        known = 24 * horizon
        columns = {f"lag_{lag}": by_counter.shift(lag) for lag in (known, known + 24, known + 48)}
        weeks = [by_counter.shift(WEEK * week) for week in range(1, 5)]
        columns |= {f"week_{week}": lag for week, lag in enumerate(weeks, 1)}
        columns["mean4"] = pd.concat(weeks, axis=1).mean(axis=1)
        lagged = columns[f"lag_{known}"].groupby(counts["counter_id"], sort=False)
        columns["level_28d"] = lagged.rolling(28 * 24, min_periods=1).mean().reset_index(level=0, drop=True)
        columns["level_7d"] = lagged.rolling(WEEK, min_periods=1).mean().reset_index(level=0, drop=True)
        columns["ewm"] = lagged.ewm(halflife=10 * 24).mean().reset_index(level=0, drop=True)
        columns["hour"], columns["weekday"] = counts["ts_utc"].dt.hour, counts["ts_utc"].dt.dayofweek
        made += pd.DataFrame(columns).astype(np.float32).size
    return made


def with_mlforecast(counts: pd.DataFrame) -> int:
    """The same features by mlforecast, with both threads."""
    from mlforecast import MLForecast
    from mlforecast.lag_transforms import ExponentiallyWeightedMean, RollingMean, SeasonalRollingMean

    made = 0
    frame = counts.rename(columns={"counter_id": "unique_id", "ts_utc": "ds", "hourly_count": "y"})
    for horizon in HORIZONS:
        known = 24 * horizon
        pipeline = MLForecast(
            models=[],
            freq="h",
            lags=[known, known + 24, known + 48, *(WEEK * week for week in range(1, 5))],
            lag_transforms={
                known: [
                    RollingMean(28 * 24, min_samples=1),
                    RollingMean(WEEK, min_samples=1),
                    ExponentiallyWeightedMean(alpha=1 - 0.5 ** (1 / 240)),
                ],
                WEEK: [SeasonalRollingMean(season_length=WEEK, window_size=4, min_samples=1)],
            },
            date_features=["hour", "dayofweek"],
            num_threads=2,
        )
        made += pipeline.preprocess(frame, static_features=[], dropna=False).drop(columns=["y"]).size
    return made


def features() -> None:
    """Features of 1.5 M counted hours at seven horizons."""
    days = days_between(FIRST, FIRST + timedelta(days=ROWS // (COUNTERS * 24)))
    counts = city(days).head(ROWS)
    print(f"features of {counts.height:,} counted hours at {len(HORIZONS)} horizons")
    base = timed(f"ours, {len(FEATURE_COLUMNS)} a row", lambda: ours(counts, days))
    frame = counts.select("counter_id", "ts_utc", "hourly_count").to_pandas()
    frame["ts_utc"] = frame["ts_utc"].dt.tz_localize(None)
    timed("pandas, 13 a row", lambda: with_pandas(frame), base)
    if importlib.util.find_spec("mlforecast"):
        timed("mlforecast, 13 a row", lambda: with_mlforecast(frame), base)
    else:
        print(
            "  mlforecast is not installed here: uv run --with mlforecast python benchmarks/forecast_speed.py"
        )


def training() -> None:
    """A full training (holdout, calibration and final model) and a random forest on the same rows and features."""
    from sklearn.ensemble import RandomForestRegressor

    config = TrainConfig(thread_count=2)
    days = days_between(FIRST, FIRST + timedelta(days=399))
    counts = city(days)
    share = config.max_rows / (len(days[56:]) * COUNTERS * WEEK)
    parts = [
        sample_rows(build_features(counts, days[start : start + CHUNK_DAYS]), share * 1.05)
        for start in range(56, len(days), CHUNK_DAYS)
    ]
    rows = with_truth(pl.concat(parts), counts).head(config.max_rows)
    print(f"training on {rows.height:,} rows of {len(FEATURE_COLUMNS)} features")
    sample = rows.drop("hourly_count")
    base = timed(
        "ours: held out, calibrated, trained on all",
        lambda: Forecaster().fit(sample, counts, config).holdout.height,
    )
    inputs = rows.select(FEATURE_COLUMNS).to_numpy().astype(np.float32)
    counted = rows["hourly_count"].to_numpy()
    forest = RandomForestRegressor(n_estimators=100, min_samples_leaf=5, n_jobs=2, random_state=0)
    timed(
        "scikit-learn random forest, 100 trees, once",
        lambda: len(forest.fit(inputs, counted).estimators_),
        base,
    )


def scoring() -> None:
    """Features and forecast with intervals of every counter for the seven days from one morning."""
    days = days_between(FIRST, FIRST + timedelta(days=200))
    counts = city(days)
    known = [build_features(counts, days[start : start + CHUNK_DAYS]) for start in range(56, 200, CHUNK_DAYS)]
    sampled = pl.concat([sample_rows(part, 0.05) for part in known])
    forecaster = Forecaster().fit(sampled, counts, TrainConfig(thread_count=2))
    morning = [days[-1] + timedelta(days=1)]
    forecaster.predict(build_features(counts, morning))
    print(f"scoring {COUNTERS} counters x {WEEK} hours")
    timed(
        "ours: features, forecast and intervals",
        lambda: forecaster.predict(build_features(counts, morning)).height,
    )


PARTS: Final = {"features": features, "training": training, "scoring": scoring}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="{features,training,scoring}", help="all by default")
    parts = parser.parse_args().parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    for part in parts:
        PARTS[part]()


if __name__ == "__main__":
    main()
