"""How good a forecast is: the accuracy measures of the platform, each defined once.

Belongs here: numbers computed from truth, forecast and baseline. Does not belong here: decisions made from
them (see `bike_assets.core.promotion` and `bike_assets.core.retraining`), which rows are scored (see
`bike_assets.core.backtest`), and plots.

Definitions and sources are in docs/reference.md, *Measures*. GEH is the measure of traffic engineers (UK DMRB,
Volume 12; named after Geoffrey E. Havers). The baselines are the mean of the last four same hours of the week
known at issue time (mean4) and the last of them (seasonal naive).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from bike_assets.core.errors import PermanentError

GEH_LIMIT = 5.0
"""A modelled hourly flow is acceptable below this (DMRB)."""


INTERVALS = {80: (0.10, 0.90), 90: (0.05, 0.95)}
"""Coverage in per cent → the quantiles that the ends of the interval forecast."""

INTERVAL_COLUMNS = tuple(f"{end}_{coverage}" for coverage in INTERVALS for end in ("lower", "upper"))

_ERROR = pl.col("forecast") - pl.col("hourly_count")
_TOTAL = pl.col("forecast") + pl.col("hourly_count")
GEH = pl.when(_TOTAL > 0).then((2 * _ERROR**2 / _TOTAL).sqrt()).otherwise(0.0)
"""GEH of forecast m and hourly_count c, sqrt(2 (m - c)² / (m + c)) for hourly flows; 0 where both are 0."""


def _rmse(column: str) -> pl.Expr:
    return ((pl.col(column) - pl.col("hourly_count")) ** 2).mean().sqrt()


def _pinball(column: str, quantile: float) -> pl.Expr:
    """Mean loss of a forecast quantile (Koenker and Bassett 1978): what is missed above costs the quantile."""
    missed = pl.col("hourly_count") - pl.col(column)
    return pl.max_horizontal(quantile * missed, (quantile - 1) * missed).mean()


def _interval_measures() -> list[pl.Expr]:
    measures = []
    for coverage in INTERVALS:
        low, high = pl.col(f"lower_{coverage}"), pl.col(f"upper_{coverage}")
        inside = (pl.col("hourly_count") >= low) & (pl.col("hourly_count") <= high)
        measures += [
            inside.mean().alias(f"coverage_{coverage}"),
            (high - low).mean().alias(f"width_{coverage}"),
        ]
    quantiles = [
        _pinball(f"{end}_{coverage}", quantile)
        for coverage, tails in INTERVALS.items()
        for end, quantile in zip(("lower", "upper"), tails, strict=True)
    ]
    return [*measures, (pl.sum_horizontal(quantiles, ignore_nulls=False) / len(quantiles)).alias("pinball")]


def accuracy_table(scored: pl.DataFrame | pl.LazyFrame, by: Sequence[str] = ()) -> pl.DataFrame:
    """Every measure of a forecast, for each group of rows.

    Args:
        scored: a row a forecast hour: hourly_count, forecast, mean4, seasonal_naive, lower_80, upper_80, lower_90,
            upper_90 (bicycles an hour; the ends may be null where a family forecasts no interval), mase_scale
            (null where a counter had no history) and the columns of `by`. Every row has a truth.
        by: columns that make the groups; none for all rows together.

    Returns:
        The groups in order, with n, truth_mean, r2, rmse, mae, wape, mase, bias, bias_share, geh5_share, pinball,
        coverage_80, width_80, coverage_90, width_90, rmse_mean4, rmse_seasonal_naive, skill_mean4,
        skill_seasonal_naive. Errors are in bicycles an hour, shares and skill have no unit; what is not defined
        (R² of a constant truth, coverage without intervals) is null.
    """
    frame = scored.lazy()
    numbers = [
        "hourly_count",
        "forecast",
        "mean4",
        "seasonal_naive",
        "mase_scale",
        *INTERVAL_COLUMNS,
    ]
    frame = frame.select(*by, *(pl.col(name).cast(pl.Float64) for name in numbers))
    truth = pl.col("hourly_count")
    measures = [
        pl.len().cast(pl.Int64).alias("n"),
        truth.mean().alias("truth_mean"),
        (1 - (_ERROR**2).mean() / truth.var(ddof=0)).alias("r2"),
        _rmse("forecast").alias("rmse"),
        _ERROR.abs().mean().alias("mae"),
        (_ERROR.abs().sum() / truth.sum()).alias("wape"),
        (_ERROR.abs() / pl.col("mase_scale")).mean().alias("mase"),
        _ERROR.mean().alias("bias"),
        (_ERROR.sum() / truth.sum()).alias("bias_share"),
        (GEH < GEH_LIMIT).mean().alias("geh5_share"),
        *_interval_measures(),
        _rmse("mean4").alias("rmse_mean4"),
        _rmse("seasonal_naive").alias("rmse_seasonal_naive"),
    ]
    table = (frame.group_by(by).agg(measures).sort(by) if by else frame.select(measures)).with_columns(
        skill_mean4=1 - pl.col("rmse") / pl.col("rmse_mean4"),
        skill_seasonal_naive=1 - pl.col("rmse") / pl.col("rmse_seasonal_naive"),
    )
    floats = pl.selectors.float() - pl.selectors.by_name(*by)
    return table.with_columns(pl.when(floats.is_finite()).then(floats).name.keep()).collect()


def mase_scale(truth: pl.DataFrame) -> pl.DataFrame:
    """What MASE divides by: the mean absolute error of the seasonal naive on the training's own hours.

    Hyndman and Koehler (2006), with a season of a week.

    Args:
        truth: counter_id, ts_utc, hourly_count up to the end of training.

    Returns:
        counter_id and mase_scale (bicycles an hour); no row for a counter without two hours a week apart, or
        whose hours all repeat.
    """
    known = truth.select("counter_id", "ts_utc", pl.col("hourly_count").cast(pl.Float64)).drop_nulls()
    week_later = known.with_columns(pl.col("ts_utc") + pl.duration(days=7))
    return (
        known.join(week_later, on=["counter_id", "ts_utc"], how="inner", suffix="_before")
        .group_by("counter_id")
        .agg(mase_scale=(pl.col("hourly_count") - pl.col("hourly_count_before")).abs().mean())
        .filter(pl.col("mase_scale") > 0)
        .sort("counter_id")
    )


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
    rows = pl.DataFrame({"hourly_count": y, "forecast": f, "mean4": b, "seasonal_naive": b}).with_columns(
        pl.lit(None, pl.Float64).alias(name) for name in ("mase_scale", *INTERVAL_COLUMNS)
    )
    found = accuracy_table(rows).row(0, named=True)
    known = {name: float("nan") if value is None else value for name, value in found.items()}
    return Metrics(
        n=len(y),
        **{name: known[name] for name in ("r2", "rmse", "mae", "wape", "geh5_share", "rmse_mean4")},
        skill=known["skill_mean4"],
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
