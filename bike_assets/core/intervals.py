"""Intervals around forecasts, by conformal methods: how far off forecasts were says how far off they will be.

Belongs here: what is learned from errors of forecasts that did not know the truth, and the ends of intervals. Does
not belong here: how forecasts are made (`bike_assets.core.families`), and where their errors are kept.

Split conformal (Papadopoulos et al. 2002): quantiles of scaled errors, by horizon and class of forecast.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

COVERAGES = (80, 90)
LEVEL_EDGES = (3.0, 10.0, 30.0, 100.0, 300.0)
"""Forecasts (bicycles an hour) are calibrated in classes between these."""
MIN_CLASS_ROWS = 200
"""A class with fewer calibration rows uses its horizon's rows, or all rows."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """Quantiles of scaled errors by coverage, horizon and class of forecast.

    Attributes:
        rows: calibration rows behind it, 0 if there was too little history to calibrate.
        quantiles: coverage → [horizon 1..7][class of forecast] → (low, high) of the scaled error.
    """

    rows: int = 0
    quantiles: Mapping[int, list[list[tuple[float, float]]]] = field(default_factory=dict)


def scale(forecast: Array) -> Array:
    """Size of error to expect of a forecast, up to a factor: Poisson noise and a share of the flow."""
    return np.asarray(np.sqrt(forecast + 1.0 + (0.3 * forecast) ** 2))


def calibrate(forecast: Array, truth: Array, horizon: NDArray[np.int64]) -> Calibration:
    """Split-conformal calibration from forecasts and truth of hours that the model was not trained on.

    Args:
        forecast: expected counts.
        truth: counts.
        horizon: days ahead, 1 to 7.
    """
    error = (truth - forecast) / scale(forecast)
    kind = np.digitize(forecast, LEVEL_EDGES)
    quantiles: dict[int, list[list[tuple[float, float]]]] = {}
    for coverage in COVERAGES:
        table = []
        for h in range(1, 8):
            row = []
            for k in range(len(LEVEL_EDGES) + 1):
                chosen = (horizon == h) & (kind == k)
                if chosen.sum() < MIN_CLASS_ROWS:
                    chosen = kind == k
                if chosen.sum() < MIN_CLASS_ROWS:
                    chosen = np.ones(len(error), dtype=bool)
                row.append(_conformal(error[chosen], coverage / 100))
            table.append(row)
        quantiles[coverage] = table
    return Calibration(rows=len(error), quantiles=quantiles)


def interval(
    calibration: Calibration, forecast: Array, horizon: NDArray[Any], coverage: int
) -> tuple[Array, Array]:
    """Lower and upper end of the interval around forecasts.

    Args:
        calibration: what was learned from errors.
        forecast: expected counts.
        horizon: days ahead, 1 to 7.
        coverage: 80 or 90 (per cent).
    """
    table = np.array(calibration.quantiles[coverage])
    quantile = table[horizon - 1, np.digitize(forecast, LEVEL_EDGES)]
    spread = scale(forecast)
    return np.maximum(forecast + quantile[:, 0] * spread, 0.0), forecast + quantile[:, 1] * spread


def _conformal(error: Array, coverage: float) -> tuple[float, float]:
    """Lower and upper error that hold this share, with the finite-sample correction of split conformal."""
    n, tail = len(error), (1 - coverage) / 2
    ordered = np.sort(error)
    rank = min(int(np.ceil((n + 1) * (1 - tail))), n)
    return float(min(ordered[n - rank], 0.0)), float(max(ordered[rank - 1], 0.0))
