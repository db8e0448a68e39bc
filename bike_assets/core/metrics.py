"""How good a forecast is: the accuracy measures of the platform, each defined once.

Belongs here: numbers computed from truth, forecast and baseline. Does not belong here: decisions made from
them (see `bike_assets.core.promotion` and `bike_assets.core.retraining`), and plots.

GEH is the measure of traffic engineers (UK DMRB, Volume 12; named after Geoffrey E. Havers). The baseline is
the mean of the last four same hours of the week known at issue time.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from bike_assets.core.errors import PermanentError

GEH_LIMIT = 5.0
"""A modelled hourly flow is acceptable below this (DMRB)."""


@dataclass(frozen=True)
class Metrics:
    """Accuracy over n hours. Errors are in bicycles an hour; shares, R² and skill have no unit."""

    n: int
    r2: float
    rmse: float
    mae: float
    wape: float
    geh5_share: float
    rmse_mean4: float
    skill: float


def geh(truth: ArrayLike, forecast: ArrayLike) -> NDArray[np.float64]:
    """GEH of each hour, sqrt(2 (m - c)² / (m + c)) for hourly flows m and c; 0 where both are 0."""
    c, m = np.asarray(truth, dtype=np.float64), np.asarray(forecast, dtype=np.float64)
    total = m + c
    with np.errstate(divide="ignore", invalid="ignore"):
        squared = np.where(total > 0, 2.0 * (m - c) ** 2 / total, 0.0)
    return np.asarray(np.sqrt(squared), dtype=np.float64)


def score(truth: ArrayLike, forecast: ArrayLike, baseline: ArrayLike) -> Metrics:
    """Accuracy of a forecast over all rows given, against truth and a baseline on the same rows.

    Args:
        truth: counts, one an hour; every row counts.
        forecast: expected counts, same length.
        baseline: forecast of the baseline (mean4), same length.

    Returns:
        The metrics. R² is NaN where truth does not vary, WAPE where it sums to 0, skill where the baseline
        is perfect. `skill` = 1 - RMSE / RMSE of the baseline.

    Raises:
        PermanentError: no rows, different lengths, or a value that is not finite.
    """
    y, f, b = (np.asarray(values, dtype=np.float64) for values in (truth, forecast, baseline))
    if not len(y) or len(y) != len(f) or len(y) != len(b):
        raise PermanentError(
            f"accuracy needs equally many truths, forecasts and baselines, got {len(y)}, {len(f)}, {len(b)}"
        )
    for name, values in (("truth", y), ("forecast", f), ("baseline", b)):
        if not np.isfinite(values).all():
            raise PermanentError(
                f"accuracy: {name} has a value that is missing or infinite; drop or fill it first"
            )
    error = f - y
    squared = float(np.mean(error**2))
    variance = float(np.mean((y - y.mean()) ** 2))
    total = float(np.sum(np.abs(y)))
    rmse, rmse_baseline = float(np.sqrt(squared)), float(np.sqrt(np.mean((b - y) ** 2)))
    return Metrics(
        n=len(y),
        r2=1.0 - squared / variance if variance > 0 else float("nan"),
        rmse=rmse,
        mae=float(np.mean(np.abs(error))),
        wape=float(np.sum(np.abs(error))) / total if total > 0 else float("nan"),
        geh5_share=float(np.mean(geh(y, f) < GEH_LIMIT)),
        rmse_mean4=rmse_baseline,
        skill=1.0 - rmse / rmse_baseline if rmse_baseline > 0 else float("nan"),
    )


def join_truth(predictions: pl.DataFrame, truth: pl.DataFrame) -> pl.DataFrame:
    """Predictions whose hour has been counted, with its `hourly_count` as Float64.

    Args:
        predictions: has counter_id and target_ts.
        truth: counter_id, ts_utc, hourly_count; hours without a count are left out.
    """
    known = truth.select(
        "counter_id", target_ts="ts_utc", hourly_count=pl.col("hourly_count").cast(pl.Float64)
    )
    return predictions.join(
        known.drop_nulls(), on=["counter_id", "target_ts"], how="inner", maintain_order="left"
    )


def accuracy_by_horizon(
    predictions: pl.DataFrame, truth: pl.DataFrame, column: str = "forecast"
) -> dict[int, Metrics]:
    """Accuracy of each horizon day over every counted hour, outages included.

    Args:
        predictions: columns counter_id, target_ts, horizon, mean4 and the forecast.
        truth: counter_id, ts_utc, hourly_count.
        column: the forecast to judge: forecast, mean4 or seasonal_naive.

    Returns:
        Metrics by horizon, ascending; a horizon without any truth is left out.
    """
    scored = join_truth(predictions, truth)
    return {
        int(horizon): score(rows["hourly_count"], rows[column], rows["mean4"])
        for (horizon,), rows in sorted(scored.partition_by("horizon", as_dict=True).items())
    }
