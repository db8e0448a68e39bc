"""Affluence: whether an hour is busier than the counter's own mean, as a probability that can be believed.

Belongs here: thresholds, the probability drawn from a forecast, and how good both are. Does not belong here: the
forecast itself, and where the thresholds are stored (`bike_assets.core.model`).

The probability that a count exceeds the threshold is a logistic function of the forecast's distance to it, in units
of the error to expect of such a forecast. Its only parameter is the slope, fitted on held-out days (Platt 1999,
without the constant: the days of a calibration may all be busier or quieter than those to come, and a constant would
learn that). So an hour is called high exactly when its forecast exceeds the threshold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import polars as pl

from bike_assets.core.intervals import Array, scale

MIN_ROWS: Final = 200
"""With fewer held-out rows the slope is `USUAL_SLOPE`."""

USUAL_SLOPE: Final = 1.7
"""A logistic function of this slope is close to the normal distribution of a forecast's scaled error."""

RELIABILITY_BINS: Final = 10


@dataclass(frozen=True)
class Affluence:
    """What turns forecasts into affluence.

    Attributes:
        slope: of the logistic function.
        thresholds: counter → mean hourly count of its training, above which an hour is high.
        rows: held-out rows behind the slope, 0 where it is `USUAL_SLOPE`.
    """

    slope: float = USUAL_SLOPE
    thresholds: Mapping[str, float] = field(default_factory=dict)
    rows: int = 0


def learn_affluence(truth: pl.DataFrame, holdout: pl.DataFrame) -> Affluence:
    """Thresholds from the counts of the training, the slope from forecasts of held-out days.

    Args:
        truth: counter_id, ts_utc, hourly_count up to the end of training.
        holdout: rows of `HOLDOUT_SCHEMA`; the thresholds of its rows come from the hours before the first of them.
    """
    blind = holdout["target_ts"].min()
    before = truth if blind is None else truth.filter(pl.col("ts_utc") < blind)
    rows = holdout.join(_means(before), on="counter_id", how="inner")
    slope, used = USUAL_SLOPE, 0
    if rows.height >= MIN_ROWS:
        distance = _distance(rows["forecast"].to_numpy(), rows["threshold"].to_numpy())
        slope, used = _fit_slope(distance, (rows["hourly_count"] > rows["threshold"]).to_numpy()), rows.height
    return Affluence(slope, dict(_means(truth).iter_rows()), used)


def _means(truth: pl.DataFrame) -> pl.DataFrame:
    return (
        truth.group_by("counter_id")
        .agg(threshold=pl.col("hourly_count").mean())
        .drop_nulls("threshold")
        .sort("counter_id")
    )


def _distance(forecast: Array, threshold: Array) -> Array:
    return np.asarray((forecast - threshold) / scale(forecast))


def _fit_slope(distance: Array, high: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    """Maximum likelihood by Newton's method; the likelihood is concave in the one parameter."""
    slope = USUAL_SLOPE
    for _ in range(50):
        p = _logistic(slope * distance)
        curvature = float(np.sum(distance**2 * p * (1 - p)))
        if curvature < 1e-9:
            break
        step = float(np.sum(distance * (high - p))) / curvature
        slope = float(np.clip(slope + step, 0.1, 20.0))
        if abs(step) < 1e-9:
            break
    return slope


def _logistic(values: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -50.0, 50.0))))


def with_affluence(predictions: pl.DataFrame, affluence: Affluence) -> pl.DataFrame:
    """Predictions with `threshold` (bicycles an hour) and `high_probability`, null for counters without a threshold.

    Args:
        predictions: has counter_id and forecast.
    """
    thresholds = pl.DataFrame(
        {"counter_id": list(affluence.thresholds), "threshold": list(affluence.thresholds.values())},
        schema={"counter_id": pl.String, "threshold": pl.Float64},
    )
    joined = predictions.join(thresholds, on="counter_id", how="left", maintain_order="left")
    distance = _distance(
        joined["forecast"].cast(pl.Float64).to_numpy(),
        joined["threshold"].fill_null(float("nan")).to_numpy(),
    )
    return joined.with_columns(
        pl.Series("high_probability", _logistic(affluence.slope * distance)).fill_nan(None)
    )


_HIGH: Final = pl.col("hourly_count") > pl.col("threshold")
_CALLED: Final = pl.col("high_probability") > 0.5


def affluence_table(scored: pl.DataFrame | pl.LazyFrame, by: Sequence[str] = ()) -> pl.DataFrame:
    """How good the classes and their probabilities are, for each group of rows.

    Args:
        scored: hourly_count, threshold, high_probability and the columns of `by`; rows without a threshold are left
            out.

    Returns:
        The groups in order, with n, high_share (truly high), accuracy, precision, recall, f1 (of `high`, called where
        the probability exceeds a half), brier (Brier 1950: mean squared error of the probability) and brier_skill
        against always saying high_share. What is not defined is null.
    """
    rows = (
        scored.lazy()
        .drop_nulls(("threshold", "high_probability"))
        .select(*by, p=pl.col("high_probability").cast(pl.Float64), high=_HIGH, called=_CALLED)
    )
    both = (pl.col("high") & pl.col("called")).sum()
    measures = [
        pl.len().cast(pl.Int64).alias("n"),
        pl.col("high").mean().alias("high_share"),
        (pl.col("high") == pl.col("called")).mean().alias("accuracy"),
        (both / pl.col("called").sum()).alias("precision"),
        (both / pl.col("high").sum()).alias("recall"),
        (2 * both / (pl.col("called").sum() + pl.col("high").sum())).alias("f1"),
        ((pl.col("p") - pl.col("high").cast(pl.Float64)) ** 2).mean().alias("brier"),
    ]
    table = (rows.group_by(by).agg(measures).sort(by) if by else rows.select(measures)).with_columns(
        brier_skill=1 - pl.col("brier") / (pl.col("high_share") * (1 - pl.col("high_share")))
    )
    floats = pl.selectors.float() - pl.selectors.by_name(*by)
    return table.with_columns(pl.when(floats.is_finite()).then(floats).name.keep()).collect()


def reliability(scored: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    """Whether hours said to be high with some probability are so that often.

    Returns:
        probability (mean said), high_share (came true) and n, a row a tenth of probability that was ever said.
    """
    return (
        scored.lazy()
        .drop_nulls(("threshold", "high_probability"))
        .select(p=pl.col("high_probability").cast(pl.Float64), high=_HIGH)
        .with_columns(
            bin=(pl.col("p") * RELIABILITY_BINS).floor().clip(0, RELIABILITY_BINS - 1).cast(pl.Int32)
        )
        .group_by("bin")
        .agg(probability=pl.col("p").mean(), high_share=pl.col("high").mean(), n=pl.len().cast(pl.Int64))
        .sort("bin")
        .drop("bin")
        .collect()
    )
