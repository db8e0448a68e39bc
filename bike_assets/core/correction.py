"""What every learned family starts from and what it learns: expected counts, and a factor to correct them by.

Belongs here: the expectation, applying a correction, and inputs as a matrix. Does not belong here: how a correction is
learned (`bike_assets.core.families`, `bike_assets.core.log_linear`).
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bike_assets.core.features import COUNT_FEATURES, FEATURE_COLUMNS
from bike_assets.core.training import TrainConfig

Array = NDArray[np.float64]
Matrix = NDArray[np.float32]

LEAST_FACTOR, GREATEST_FACTOR = 0.02, 8.0
"""What no correction of a day goes beyond; also where the factors that are learned from end."""


def column(rows: pl.DataFrame, name: str) -> Array:
    """A feature of every row, NaN where unknown."""
    return rows[name].to_numpy().astype(np.float64)


def matrix(rows: pl.DataFrame) -> Matrix:
    """Inputs of a model [row, feature of FEATURE_COLUMNS], counts divided by the level; NaN where unknown."""
    level = rows["level_28d"].to_numpy()
    values = np.empty((rows.height, len(FEATURE_COLUMNS)), dtype=np.float32, order="F")
    for i, name in enumerate(FEATURE_COLUMNS):
        value = rows[name].to_numpy()
        values[:, i] = value / level if name in COUNT_FEATURES else value
    return values


def expected(rows: pl.DataFrame) -> Array:
    """What recent same weekdays and same kinds of day say; a counter without any gets the city's daily profile."""
    level = column(rows, "level_28d")
    week, kind = column(rows, "week_mean_clean"), column(rows, "type_ewm")
    profile = np.nan_to_num(column(rows, "network_profile"), nan=1.0)
    both = np.where(np.isnan(week), kind, np.where(np.isnan(kind), week, 0.5 * (week + kind)))
    # A correction is a factor: it needs something above 0 to work on.
    return np.asarray(np.where(np.isnan(both), level * profile, both) + 0.02 * level + 0.3)


def corrected(rows: pl.DataFrame, correction: Array, config: TrainConfig) -> Array:
    """Expected counts times the shrunk exp(correction), within what the counter has shown."""
    forecast = expected(rows) * np.exp(config.shrinkage * correction)
    return np.asarray(np.maximum(np.fmin(forecast, column(rows, "max_56d") * config.cap_factor), 0.0))
