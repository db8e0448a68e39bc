"""Two ways to say whether an hour is busier than the counter's own mean, on hours neither was trained on.

    python benchmarks/affluence.py                                     the simulated city
    python benchmarks/affluence.py --home paris --train-until 2023-12-31 --to 2024-02-25

*forecast* is what the platform does: a probability drawn from the forecast's distance to the mean. *classifier* is a
CatBoost classifier trained on the same rows and features, told the mean too. The baselines say high or low outright.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from bike_assets.backtest import newest_day, read_counts
from bike_assets.core.affluence import affluence_table, with_affluence
from bike_assets.core.backtest import BacktestConfig, fit, plan_origins, training_data
from bike_assets.core.calendar import days_between
from bike_assets.core.correction import expected, matrix
from bike_assets.core.families import USED_FEATURES
from bike_assets.core.features import FEATURE_COLUMNS, build_features, sample_rows
from bike_assets.core.intervals import scale
from bike_assets.core.metrics import join_truth
from bike_assets.core.training import TrainConfig, rows_wanted
from bike_assets.settings import load_settings
from bike_assets.sources.base import busy_span

SHOWN = ("n", "high_share", "accuracy", "precision", "recall", "f1", "brier", "brier_skill")


def inputs(rows: pl.DataFrame) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """The features the forecaster learns from, and where the mean lies among them."""
    level, mean = rows["level_28d"].to_numpy().astype(float), rows["threshold"].to_numpy()
    usual = expected(rows)
    used = matrix(rows)[:, [FEATURE_COLUMNS.index(name) for name in USED_FEATURES]]
    more = np.column_stack([mean / level, (usual - mean) / scale(usual), np.log((usual + 1) / (mean + 1))])
    return np.column_stack([used, more]).astype(np.float32)


def main() -> None:
    """Run and print."""
    from catboost import CatBoostClassifier

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path)
    parser.add_argument("--train-until", type=date.fromisoformat)
    parser.add_argument("--to", type=date.fromisoformat)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = args.home or Path(temporary)
        if args.home is None:
            command = [sys.executable, "-m", "bike_assets.cli", "ingest", "--home", str(home), "--json"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        settings = load_settings(home=home)
        last = args.to or newest_day(settings)
        until = args.train_until or last - timedelta(days=28)
        counts = read_counts(settings, last)
    config = BacktestConfig(until + timedelta(days=1), last)
    (origin,) = plan_origins(config, busy_span(counts)[0])
    data = training_data(counts, origin, TrainConfig())
    started = time.perf_counter()
    forecaster = fit("catboost", data, TrainConfig())
    fitted = time.perf_counter() - started

    days = days_between(config.first, config.last)
    parts = [build_features(counts, days[i : i + 14]) for i in range(0, len(days), 14)]
    features = join_truth(pl.concat([sample_rows(part, 0.3) for part in parts]), counts)
    scored = with_affluence(forecaster.predict(features), forecaster.affluence).with_columns(
        features["hourly_count"]
    )
    known = scored["threshold"].is_not_null()
    scored, features = (
        scored.filter(known),
        features.filter(known).with_columns(scored["threshold"].drop_nulls()),
    )

    rows = rows_wanted(data.counters.height, TrainConfig())
    training = join_truth(data.features, data.truth).with_columns(forecast="mean4")
    training = with_affluence(training, forecaster.affluence).drop_nulls("threshold")
    training = sample_rows(training, min(1.0, rows / training.height))
    started = time.perf_counter()
    classifier = CatBoostClassifier(
        iterations=200, depth=6, learning_rate=0.1, random_seed=1, verbose=False, allow_writing_files=False
    ).fit(inputs(training), (training["hourly_count"] > training["threshold"]).to_numpy())
    print(f"forecaster {fitted:.0f} s, classifier another {time.perf_counter() - started:.0f} s")

    said = {
        "forecast": scored["high_probability"],
        "classifier": pl.Series(classifier.predict_proba(inputs(features))[:, 1]),
        "mean4": (scored["mean4"] > scored["threshold"]).cast(pl.Float64),
        "seasonal naive": (scored["seasonal_naive"] > scored["threshold"]).cast(pl.Float64),
    }
    print(f"{'':>15}", *(f"{name:>11}" for name in SHOWN))
    for name, probability in said.items():
        row = affluence_table(scored.with_columns(high_probability=probability)).row(0, named=True)
        print(f"{name:>15}", *(f"{row[key]:>11,}" if key == "n" else f"{row[key]:>11.4f}" for key in SHOWN))


if __name__ == "__main__":
    main()
