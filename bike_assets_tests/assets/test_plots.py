"""The pictures: real PNGs, small, drawn from what was given."""

import base64
import re
from datetime import UTC, date, datetime, timedelta
from math import inf

import numpy as np
import polars as pl
import pytest

from bike_assets.assets import plots
from bike_assets.core.drift import summarise_drift
from bike_assets.core.experiment import Look
from bike_assets.core.metrics import Metrics

START = datetime(2023, 10, 20, tzinfo=UTC)
HOURS = 24 * 20


def png(markdown: str) -> bytes:
    match = re.fullmatch(r"!\[[^\]\n]+\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert match, markdown[:80]
    picture = base64.b64decode(match.group(1), validate=True)
    assert picture.startswith(b"\x89PNG\r\n")
    assert picture.endswith(b"IEND\xaeB`\x82")
    assert len(picture) <= plots.MAX_BYTES
    return picture


@pytest.fixture
def counts() -> pl.DataFrame:
    generator = np.random.default_rng(1)
    times = [START + timedelta(hours=hour) for hour in range(HOURS)]
    return pl.concat(
        pl.DataFrame(
            {
                "counter_id": [f"10{c:04d}-1 Totem 73 boulevard de Sébastopol Nord vers Sud {c}"] * HOURS,
                "ts_utc": times,
                "hourly_count": generator.poisson(60 + c, HOURS),
            }
        )
        for c in range(30)
    ).with_columns(service_date=pl.col("ts_utc").dt.date())


@pytest.fixture
def predictions(counts: pl.DataFrame) -> pl.DataFrame:
    count = pl.col("hourly_count").cast(pl.Float64)
    return counts.select(
        "counter_id",
        target_ts="ts_utc",
        horizon=1,
        forecast=count + 3,
        lower_80=count - 9,
        upper_80=count + 12,
    )


def test_forecast_against_truth(counts: pl.DataFrame, predictions: pl.DataFrame) -> None:
    counter = counts["counter_id"][0]
    whole = png(plots.forecast_vs_truth(predictions, counts, counter))
    newest_unknown = counts.filter(pl.col("ts_utc") < START + timedelta(days=17))
    assert png(plots.forecast_vs_truth(predictions, newest_unknown, counter)) != whole
    assert png(plots.forecast_vs_truth(predictions, counts, counter, days=3)) != whole
    assert png(plots.forecast_vs_truth(predictions, counts.head(0), counter))
    assert png(plots.forecast_vs_truth(predictions, counts, "no such counter"))


def test_error_by_horizon_takes_metrics_or_mappings() -> None:
    metrics = {h: Metrics(9, 0.9, 30 + h, 20.0, 0.2, 0.8, 45.0, 1 - (30 + h) / 45) for h in range(1, 8)}
    plain = {h: {"rmse": m.rmse, "rmse_mean4": m.rmse_mean4, "skill": m.skill} for h, m in metrics.items()}
    assert png(plots.error_by_horizon(metrics)) == png(plots.error_by_horizon(plain))
    assert png(plots.error_by_horizon({1: {"rmse": 30, "rmse_mean4": 40, "skill": float("nan")}}))
    assert png(plots.error_by_horizon({}))


def test_drifted_columns() -> None:
    scores = {f"feature_{i}": i / 50 for i in range(40)}
    known = {"n_reference": 5, "n_current": 5, "threshold": 0.1, "method": "wasserstein"}
    some = png(plots.drifted_columns(summarise_drift(scores, **known)))  # type: ignore[arg-type]
    none = png(plots.drifted_columns(summarise_drift(dict.fromkeys(scores, 0.0), **known)))  # type: ignore[arg-type]
    assert some != none
    assert png(plots.drifted_columns(summarise_drift({}, **known)))  # type: ignore[arg-type]


def test_daily_counts(counts: pl.DataFrame) -> None:
    whole = png(plots.daily_counts(counts))
    assert png(plots.daily_counts(counts.filter(pl.col("counter_id") != counts["counter_id"][0]))) != whole
    assert png(plots.daily_counts(counts.head(24)))
    assert png(plots.daily_counts(counts.with_columns(hourly_count=pl.lit(None, pl.Int64))))
    assert png(plots.daily_counts(counts.head(0)))


def test_feature_importance() -> None:
    pairs = [(f"feature_{i}", 100 / (i + 1)) for i in range(30)]
    assert png(plots.feature_importance(pairs)) == png(plots.feature_importance(reversed(pairs)))
    assert png(plots.feature_importance([]))


def test_counter_levels(counts: pl.DataFrame) -> None:
    assert png(plots.counter_levels(counts))
    assert png(plots.counter_levels(counts.head(0)))


def test_the_same_data_give_the_same_picture(counts: pl.DataFrame) -> None:
    assert plots.daily_counts(counts) == plots.daily_counts(counts)


def test_export_differences_are_one_small_picture() -> None:
    from bike_assets.core.contracts import EXPORT_DIFFERENCES

    hour = datetime(2024, 1, 1, tzinfo=UTC)
    rows = pl.DataFrame(
        {
            "difference": ["corrected", "stray rows"],
            "earlier_file": ["a", None],
            "later_file": ["b", "b"],
            "counter_id": ["c1", "c2"],
            "counter_name": ["Quai", None],
            "hours": [172, 6],
            "first_hour": [hour] * 2,
            "last_hour": [hour] * 2,
            "count_before": [0, None],
            "count_after": [90, 5],
        }
    )
    assert png(plots.export_differences(EXPORT_DIFFERENCES.conform(rows)))
    assert png(plots.export_differences(EXPORT_DIFFERENCES.empty()))


def test_an_experiment_whose_interval_has_no_ends_yet() -> None:
    looks = [
        Look(date(2024, 1, 14 + n), 0.01, -inf if n < 2 else -0.02, inf if n < 2 else 0.04) for n in range(5)
    ]

    assert png(plots.experiment(looks, 0.01))
