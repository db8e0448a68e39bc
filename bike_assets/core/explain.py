"""Why a forecast is what it is: from the recent days of its kind, input by input, to the number forecast.

Belongs here: contributions to single forecasts of the default family. Does not belong here: weight of inputs over all
forecasts (`Forecaster.feature_importance`), and printing.

The correction is a sum on the logarithmic scale, of the trees' Shapley values (Lundberg et al. 2020) and of the
regression's terms, so every input multiplies the forecast by a factor. Factors become bicycles by the logarithmic mean,
the decomposition that leaves no rest and in which no order of the inputs matters (LMDI, Ang 2004): contributions and
the starting point sum to the forecast.
"""

from typing import Final

import numpy as np
import polars as pl

from bike_assets.core.correction import Array, corrected, expected
from bike_assets.core.errors import PermanentError
from bike_assets.core.features import FEATURE_COLUMNS
from bike_assets.core.model import Forecaster

START: Final = "recent days of this kind"
USUAL: Final = "what the model adds on average"
CEILING: Final = "ceiling of what the counter has shown"

_KEYS: Final = ("service_date", "counter_id", "target_ts", "horizon")


def explain(forecaster: Forecaster, features: pl.DataFrame) -> pl.DataFrame:
    """Contributions to the forecast of every row.

    Args:
        forecaster: trained, of family catboost.
        features: rows of `build_features`; a few, for an explanation costs more than a forecast.

    Returns:
        service_date, counter_id, target_ts, horizon, part, value, factor, bicycles: the rows in their order, each with
        its parts: `START` first (where the forecast begins: an hour's own recent counts), then `USUAL`, then every
        input that did anything, largest effect first, then `CEILING` where it lowered the forecast. `value` is the
        input as the features have it, null for the other parts and where it was unknown. `bicycles` of one forecast
        sum to it; `factor` multiply to it / START, the ceiling's included.

    Raises:
        PermanentError: the forecaster is of another family, or not trained.
    """
    family = forecaster.catboost
    if features.is_empty():
        raise PermanentError("there is nothing to explain: no row of features was given")
    config = forecaster.config
    shares = family.contributions(features, config)
    logs = config.shrinkage * np.column_stack([shares[:, -1], shares[:, :-1]])
    start = expected(features)
    free = start * np.exp(logs.sum(axis=1))
    forecast = corrected(features, shares.sum(axis=1), config)
    bicycles = _logarithmic_mean(free, start)[:, None] * logs
    parts = []
    for row, key in enumerate(features.select(_KEYS).iter_rows()):
        inputs = [
            (name, features[name][row], float(np.exp(log)), float(effect))
            for name, log, effect in zip((USUAL, *FEATURE_COLUMNS), logs[row], bicycles[row], strict=True)
            if name != USUAL and log != 0
        ]
        inputs.sort(key=lambda part: -abs(part[3]))
        lines = [
            (START, None, 1.0, float(start[row])),
            (USUAL, None, float(np.exp(logs[row, 0])), float(bicycles[row, 0])),
            *inputs,
        ]
        if forecast[row] != free[row]:
            ratio = float(forecast[row] / free[row])
            if abs(ratio - 1) > 1e-9:
                lines.append((CEILING, None, ratio, float(forecast[row] - free[row])))
        parts += [(*key, *line) for line in lines]
    schema = {name: features.schema[name] for name in _KEYS} | {
        "part": pl.String(),
        "value": pl.Float64(),
        "factor": pl.Float64(),
        "bicycles": pl.Float64(),
    }
    return pl.DataFrame(parts, schema=schema, orient="row")


def _logarithmic_mean(one: Array, other: Array) -> Array:
    """(a - b) / ln(a / b), and a where both are equal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(one / other)
        mean = np.where(np.abs(ratio) < 1e-9, one, (one - other) / ratio)
    return np.asarray(mean)
