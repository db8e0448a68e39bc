"""Affluence: thresholds of the training, probabilities that hold, measures by hand."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from bike_assets.core.affluence import (
    USUAL_SLOPE,
    Affluence,
    affluence_table,
    learn_affluence,
    reliability,
    with_affluence,
)
from bike_assets.core.contracts import UTC_TIMESTAMP
from bike_assets.core.intervals import scale
from bike_assets.core.model import HOLDOUT_SCHEMA

START = datetime(2024, 5, 1, tzinfo=UTC)


def _truth(counts: dict[str, list[int | None]]) -> pl.DataFrame:
    rows = [
        (name, START + timedelta(hours=i), count)
        for name, values in counts.items()
        for i, count in enumerate(values)
    ]
    schema = {"counter_id": pl.String, "ts_utc": UTC_TIMESTAMP, "hourly_count": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _holdout(slope: float, n: int = 4_000, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Hours whose truth is high with a logistic probability of the given slope, and earlier counts of mean 50."""
    rng = np.random.default_rng(seed)
    forecast = rng.uniform(5, 120, n)
    high = rng.uniform(size=n) < 1 / (1 + np.exp(-slope * (forecast - 50) / scale(forecast)))
    later = [START + timedelta(days=30, hours=i) for i in range(n)]
    holdout = pl.DataFrame(
        {
            "service_date": [stamp.date() for stamp in later],
            "counter_id": ["a"] * n,
            "target_ts": later,
            "horizon": [1] * n,
            "hourly_count": np.where(high, 80.0, 20.0),
            "forecast": forecast,
            "mean4": forecast,
        },
        schema=HOLDOUT_SCHEMA,
    )
    return _truth({"a": [40, 60]}), holdout


def test_the_threshold_is_the_counters_own_mean_and_the_slope_is_found() -> None:
    truth, holdout = _holdout(slope=3.0)
    found = learn_affluence(truth, holdout)
    assert found.thresholds == {"a": 50.0}
    assert found.slope == pytest.approx(3.0, rel=0.1)
    assert found.rows == holdout.height


def test_thresholds_of_held_out_days_know_nothing_of_them() -> None:
    truth, holdout = _holdout(slope=3.0)
    later = holdout.select("counter_id", ts_utc="target_ts", hourly_count=pl.lit(10_000, pl.Int64))
    everything = pl.concat([truth, later])
    found = learn_affluence(everything, holdout)
    assert found.slope == learn_affluence(truth, holdout).slope
    assert found.thresholds["a"] > 1_000  # the model that serves may use all it was given


def test_too_few_held_out_rows_leave_the_usual_slope() -> None:
    truth, holdout = _holdout(slope=3.0, n=50)
    found = learn_affluence(truth, holdout)
    assert (found.slope, found.rows) == (USUAL_SLOPE, 0)
    assert learn_affluence(truth, holdout.head(0)).thresholds == {"a": 50.0}


def test_high_exactly_where_the_forecast_exceeds_the_threshold_and_unknown_counters_have_none() -> None:
    predictions = pl.DataFrame({"counter_id": ["a", "a", "a", "new"], "forecast": [49.0, 50.0, 51.0, 5.0]})
    found = with_affluence(predictions, Affluence(2.0, {"a": 50.0}))
    assert found["threshold"].to_list() == [50.0, 50.0, 50.0, None]
    low, even, high, unknown = found["high_probability"].to_list()
    assert low < 0.5 < high
    assert even == 0.5
    assert unknown is None


def test_measures_by_hand() -> None:
    scored = pl.DataFrame(
        {
            "hourly_count": [9.0, 9, 1, 1, 1],
            "threshold": [5.0, 5, 5, 5, None],
            "high_probability": [0.9, 0.4, 0.6, 0.1, None],
        }
    )
    found = affluence_table(scored).row(0, named=True)
    assert (found["n"], found["high_share"], found["accuracy"]) == (4, 0.5, 0.5)
    assert (found["precision"], found["recall"], found["f1"]) == (0.5, 0.5, 0.5)
    assert found["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.01) / 4)
    assert found["brier_skill"] == pytest.approx(1 - 0.185 / 0.25)
    never = affluence_table(scored.with_columns(hourly_count=0.0, high_probability=0.1)).row(0, named=True)
    assert (never["precision"], never["recall"], never["brier_skill"]) == (None, None, None)


def test_probabilities_that_hold_lie_on_the_diagonal() -> None:
    truth, holdout = _holdout(slope=2.0, n=20_000)
    scored = with_affluence(holdout.with_columns(), learn_affluence(truth, holdout))
    bins = reliability(scored)
    assert bins["n"].sum() == holdout.height
    gap = (bins["probability"] - bins["high_share"]).abs()
    assert (gap * bins["n"]).sum() / holdout.height < 0.02
