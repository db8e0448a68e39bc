"""Intervals around forecasts, by conformal methods: how far off forecasts were says how far off they will be.

Belongs here: what is learned from errors of forecasts that did not know the truth, and the ends of intervals. Does
not belong here: how forecasts are made (`bike_assets.core.families`), and where their errors are kept.

Split conformal (Papadopoulos et al. 2002): quantiles of scaled errors, by horizon and class of forecast, widened or
narrowed for each counter by how its own errors lay within them. What a forecast errs changes with the season and the
city, so the errors are those of the last six weeks whose truth is known at issue, and newer days weigh more (weighted
conformal quantiles for data that drift, Barber et al. 2023).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bike_assets.core.features import sample_rows

COVERAGES = (80, 90)
LEVEL_EDGES = (3.0, 10.0, 30.0, 100.0, 300.0)
"""Forecasts (bicycles an hour) are calibrated in classes between these."""
MIN_CLASS_ROWS = 200
"""A class with fewer calibration rows uses its horizon's rows, or all rows."""

WINDOW_DAYS = 42
"""Days before the issue date whose errors count."""
HALF_LIFE_DAYS = 14.0
"""An error weighs half of one that is so many days newer."""
MIN_DAYS = 14
"""With errors of fewer days the calibration of the training stays."""
MAX_ROWS = 40_000
"""Errors that a calibration looks at; more are thinned by a hash."""
COUNTER_DAYS = 7.0
"""A counter with errors of this many days is believed by half, as against the pool of all."""

NEWCOMER_WIDENING = 1.5
"""By how much intervals of newcomers are wider, until errors of their own say more."""

ERROR_COLUMNS: Final = ("service_date", "counter_id", "target_ts", "horizon", "hourly_count", "forecast")
"""Issue date, counter, hour, days ahead, truth and forecast."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """Quantiles of scaled errors by coverage, horizon and class of forecast, and what single counters differ by.

    Attributes:
        rows: calibration rows behind it, 0 if there was too little history to calibrate.
        quantiles: coverage → [horizon 1..7][class of forecast] → (low, high) of the scaled error.
        counters: coverage → counter → by how much its interval is wider than the pool's.
    """

    rows: int = 0
    quantiles: Mapping[int, list[list[tuple[float, float]]]] = field(default_factory=dict)
    counters: Mapping[int, Mapping[str, float]] = field(default_factory=dict)

    def to_json(self) -> str:
        """All of it as JSON; floats keep their shortest exact form."""
        return json.dumps(
            {"rows": self.rows, "quantiles": self.quantiles, "counters": self.counters}, sort_keys=True
        )

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """What `to_json` gave.

        Raises:
            ValueError, KeyError, TypeError: it is not that.
        """
        stored = json.loads(text)
        return cls(
            rows=stored["rows"],
            quantiles={
                int(key): [[(low, high) for low, high in row] for row in table]
                for key, table in stored["quantiles"].items()
            },
            counters={int(key): dict(factors) for key, factors in stored["counters"].items()},
        )


def scale(forecast: Array) -> Array:
    """Size of error to expect of a forecast, up to a factor: Poisson noise and a share of the flow."""
    return np.asarray(np.sqrt(forecast + 1.0 + (0.3 * forecast) ** 2))


def target_day() -> pl.Expr:
    """Local day of a target, which follows from issue date and horizon without any time-zone rule."""
    return pl.col("service_date") + pl.duration(days=pl.col("horizon") - 1)


def known_errors(errors: pl.DataFrame, issue_date: date) -> pl.DataFrame:
    """Errors whose truth was published when the forecast of an issue date is made, of the last `WINDOW_DAYS`.

    Args:
        errors: `ERROR_COLUMNS`, any rows.
        issue_date: only hours of the days before it are known.
    """
    known = errors.filter(
        target_day().is_between(issue_date - timedelta(days=WINDOW_DAYS), issue_date - timedelta(days=1))
    ).select(ERROR_COLUMNS)
    if known.height > MAX_ROWS:
        known = sample_rows(known, MAX_ROWS / known.height)
    return known.sort("service_date", "counter_id", "target_ts")


def recalibrate(errors: pl.DataFrame, issue_date: date, otherwise: Calibration) -> Calibration:
    """The calibration for an issue date, from errors known by then.

    Args:
        errors: `ERROR_COLUMNS` of forecasts that did not know their truth; those of later hours are not used.
        issue_date: local day of issue.
        otherwise: what stands where too few days are known.
    """
    known = known_errors(errors, issue_date)
    if known.select(target_day().n_unique()).item() < MIN_DAYS or known.height < MIN_CLASS_ROWS:
        return otherwise
    return calibrate(known)


def calibrate(errors: pl.DataFrame) -> Calibration:
    """Quantiles of the scaled errors of forecasts that did not know their truth.

    Args:
        errors: `ERROR_COLUMNS`, at least one row. Each day weighs by its age alone, one of few rows as much as one
            of many, so that a sample of older errors and all of the newer ones can stand together.
    """
    forecast, truth = (errors[name].to_numpy().astype(np.float64) for name in ("forecast", "hourly_count"))
    horizon = errors["horizon"].to_numpy()
    per_day = errors.select(pl.len().over(target_day(), "horizon")).to_series().to_numpy()
    day = errors.select(target_day().cast(pl.Int32)).to_series().to_numpy().astype(np.float64)
    weight = 0.5 ** ((day.max() - day) / HALF_LIFE_DAYS) / per_day
    error = (truth - forecast) / scale(forecast)
    kind = np.digitize(forecast, LEVEL_EDGES)
    order = np.argsort(error, kind="stable")
    forecast, horizon, weight, error, kind = (
        part[order] for part in (forecast, horizon, weight, error, kind)
    )
    everything = np.ones(len(error), dtype=bool)
    quantiles: dict[int, list[list[tuple[float, float]]]] = {coverage: [] for coverage in COVERAGES}
    for h in range(1, 8):
        rows: dict[int, list[tuple[float, float]]] = {coverage: [] for coverage in COVERAGES}
        for k in range(len(LEVEL_EDGES) + 1):
            chosen = next(
                (
                    mask
                    for mask in ((horizon == h) & (kind == k), kind == k)
                    if np.count_nonzero(mask) >= MIN_CLASS_ROWS
                ),
                everything,
            )
            for coverage in COVERAGES:
                tail = (1 - coverage / 100) / 2
                rows[coverage].append(
                    (
                        min(-_quantile(-error[chosen][::-1], weight[chosen][::-1], 1 - tail), 0.0),
                        max(_quantile(error[chosen], weight[chosen], 1 - tail), 0.0),
                    )
                )
        for coverage in COVERAGES:
            quantiles[coverage].append(rows[coverage])
    pool = Calibration(rows=len(error), quantiles=quantiles)
    counter_ids = errors["counter_id"].gather(order)
    days = dict(errors.group_by("counter_id").agg(target_day().n_unique()).iter_rows())
    counters: dict[int, dict[str, float]] = {}
    for coverage in COVERAGES:
        low, high = _pooled(pool, forecast, horizon, coverage)
        # 1 at the end of the pool's interval, 0 at the forecast.
        place = np.where(error < 0, error / np.minimum(low, -1e-6), error / np.maximum(high, 1e-6))
        counters[coverage] = {}
        for (counter,), part in (
            pl.DataFrame({"counter": counter_ids, "place": place, "weight": weight})
            .sort("counter", "place")
            .partition_by("counter", as_dict=True)
            .items()
        ):
            own = _quantile(part["place"].to_numpy(), part["weight"].to_numpy(), coverage / 100)
            trust = days[counter] / (days[counter] + COUNTER_DAYS)
            counters[coverage][str(counter)] = float(np.clip(own, 0.25, 6.0) ** trust)
    return Calibration(rows=pool.rows, quantiles=quantiles, counters=counters)


def _quantile(ordered: Array, weight: Array, share: float) -> float:
    """Smallest value below which this share of the weight lies, counting the unknown next one as infinite."""
    reached = np.cumsum(weight)
    wanted = share * (reached[-1] + weight.max())
    return float(ordered[min(int(np.searchsorted(reached, wanted)), len(ordered) - 1)])


def _pooled(
    calibration: Calibration, forecast: Array, horizon: NDArray[Any], coverage: int
) -> tuple[Array, Array]:
    table = np.array(calibration.quantiles[coverage])
    quantile = table[horizon - 1, np.digitize(forecast, LEVEL_EDGES)]
    return quantile[:, 0], quantile[:, 1]


def interval(
    calibration: Calibration,
    forecast: Array,
    horizon: NDArray[Any],
    coverage: int,
    counter_ids: pl.Series | None = None,
) -> tuple[Array, Array]:
    """Lower and upper end of the interval around forecasts.

    Args:
        calibration: what was learned from errors.
        forecast: expected counts.
        horizon: days ahead, 1 to 7.
        coverage: 80 or 90 (per cent).
        counter_ids: whose forecasts they are; without, the pool's interval.
    """
    low, high = _pooled(calibration, forecast, horizon, coverage)
    spread = scale(forecast)
    if counter_ids is not None and (factors := calibration.counters.get(coverage)):
        spread = (
            spread
            * counter_ids.replace_strict(dict(factors), default=1.0, return_dtype=pl.Float64).to_numpy()
        )
    return np.maximum(forecast + low * spread, 0.0), forecast + high * spread
