"""How a model is trained: the options, which rows are taken, and what each weighs.

Belongs here: `TrainConfig`, reading it from a file's values, and the choice of rows. Does not belong here: what a
family learns from them (`bike_assets.core.families`), what is held out (`bike_assets.core.model`), and the search
for better options (`bike_assets.core.tuning`).
"""

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, timedelta
from typing import Any, Final, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bike_assets.core.errors import PermanentError

ROWS_PER_COUNTER: Final = 6_000
"""Rows of training a counter at most: more of the same weeks teach a small city nothing, and cost as much."""

RARE_COUNTER_LIMIT: Final = 5.0
"""A rare counter's rows weigh at most so many times as much as the median counter's."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        family: a name of `bike_assets.core.families.FAMILIES`.
        iterations: trees of each member, at most (catboost).
        members: models averaged into one; complementary pairs, each trained on one half of the weeks (catboost).
        depth: depth of the (symmetric) trees (catboost).
        learning_rate: shrinkage of each tree (catboost).
        l2_leaf_reg: L2 regularisation of leaf values (catboost).
        border_count: values that a feature is binned into; more cost time and bring no accuracy (catboost).
        tweedie_power: variance power of the loss, 1 (Poisson) to 2 (gamma) (catboost).
        linear_share: part of the log-linear regression in the mean with the trees, 0 to 1; 0: trees alone (catboost).
        linear_ridge: ridge penalty of the regression's standardised coefficients (log_linear, catboost).
        early_stopping_rounds: a member ends when that many trees have not improved its forecast of the weeks it was
            not trained on, and keeps the trees up to the best; 0 grows all (catboost with 2 members or more).
        forest_trees: trees of the random forest.
        forest_leaf: fewest rows in a leaf of it.
        forest_depth: greatest depth of its trees.
        net_layers: neurons of each hidden layer of the neural net.
        net_epochs: passes of the neural net over the rows.
        shrinkage: share of the learned (logarithmic) correction that is applied.
        weather_dropout: share of issue dates that are trained on without their weather. One model then forecasts
            with weather and without, as well as two would, and rests less on it.
        weight_power: a row weighs its counter's level to this power.
        recency_half_life_days: a row weighs half of one that was issued so many days later; 0: age does not matter.
        rare_counter_power: a row weighs (rows of the median counter / rows of its counter) to this power, so that
            counters with a short past are not outvoted; 0: all rows alike.
        recent_days: the window that slides: so many issue dates before the end are recent, those before them the
            baseline; 0: no such difference.
        recent_share: share of the rows that are recent (`recent_days`); the rest is drawn from the baseline.
        max_rows: rows to train on at most; more are thinned by a hash.
        calibration_days: last local days of the training truth used to calibrate intervals, of a short history the last
            third.
        calibration_members: members of the model that is fitted without those days (catboost).
        cap_factor: forecasts end at this multiple of the counter's 56-day maximum.
        seed: of sampling, of the halves and of every random choice of a family.
        thread_count: threads, -1 for all cores.

    Raises:
        PermanentError: a value is outside what it may be.
    """

    family: str = "catboost"
    iterations: int = 150
    members: int = 4
    depth: int = 6
    learning_rate: float = 0.1
    l2_leaf_reg: float = 5.0
    border_count: int = 64
    tweedie_power: float = 1.5
    linear_share: float = 0.5
    linear_ridge: float = 100.0
    early_stopping_rounds: int = 0
    forest_trees: int = 60
    forest_leaf: int = 20
    forest_depth: int = 14
    net_layers: tuple[int, ...] = (64, 32)
    net_epochs: int = 12
    shrinkage: float = 0.95
    weather_dropout: float = 0.35
    weight_power: float = 0.5
    recency_half_life_days: float = 0.0
    rare_counter_power: float = 0.0
    recent_days: int = 0
    recent_share: float = 0.5
    max_rows: int = 200_000
    calibration_days: int = 28
    calibration_members: int = 2
    cap_factor: float = 1.3
    seed: int = 20240101
    thread_count: int = -1

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise PermanentError(
                    f"training: {name} = {value}; give a value of {low:g}"
                    + (f" to {high:g}" if math.isfinite(high) else " or more")
                )
        if not self.net_layers or min(self.net_layers) < 1:
            raise PermanentError(
                f"training: net_layers = {self.net_layers}; give at least one layer of neurons"
            )


_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "iterations": (1, math.inf),
    "members": (1, math.inf),
    "depth": (1, 16),
    "learning_rate": (1e-4, 1),
    "l2_leaf_reg": (0, math.inf),
    "border_count": (1, 65_535),
    "tweedie_power": (1.01, 1.99),
    "linear_share": (0, 1),
    "linear_ridge": (0.01, math.inf),
    "early_stopping_rounds": (0, math.inf),
    "forest_trees": (1, math.inf),
    "forest_leaf": (1, math.inf),
    "forest_depth": (1, math.inf),
    "net_epochs": (1, math.inf),
    "shrinkage": (0, 1.5),
    "weather_dropout": (0, 1),
    "weight_power": (0, 2),
    "recency_half_life_days": (0, math.inf),
    "rare_counter_power": (0, 1),
    "recent_days": (0, 10_000),
    "recent_share": (0.01, 1),
    "max_rows": (1, math.inf),
    "calibration_days": (1, math.inf),
    "calibration_members": (1, math.inf),
    "cap_factor": (1, math.inf),
    "seed": (0, math.inf),
}
"""Smallest and greatest value of each number of `TrainConfig`."""


def parse_options(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options of `TrainConfig` as a file gives them, checked by name and type.

    Args:
        values: option → value; lists stand for tuples, whole numbers for floats.
        where: what messages call the file.

    Raises:
        PermanentError: an option is unknown, or its value of the wrong type; the message names both.
    """
    known = {field.name: field.type for field in fields(TrainConfig)}
    options: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise PermanentError(
                f"{where}: there is no training option {name!r}; choose of {', '.join(sorted(known))}"
            )
        kind = known[name]
        if isinstance(kind, types.GenericAlias):
            (inner, _) = get_args(kind)
            fits = isinstance(value, list | tuple) and all(type(part) is inner for part in value)
            value = tuple(value) if fits else value
        else:
            fits = type(value) is kind or (kind is float and type(value) is int)
            value = float(value) if fits and kind is float else value
        if not fits:
            named = getattr(kind, "__name__", str(kind))
            raise PermanentError(f"{where}: {name} = {value!r} is no {named}; correct it or leave it out")
        options[name] = value
    return options


def rows_wanted(counters: int, config: TrainConfig) -> int:
    """Rows that a training on so many counters takes at most."""
    return min(config.max_rows, ROWS_PER_COUNTER * counters)


def day_shares(
    days: Sequence[date], rows_per_day: float, wanted: float, config: TrainConfig
) -> dict[date, float]:
    """Share of each issue date's rows that a training takes.

    All alike without `recent_days`. With it the recent days give `recent_share` of the rows wanted and the baseline
    the rest; where one of the two has too few rows, all of its rows are taken.

    Args:
        days: issue dates, ascending.
        rows_per_day: rows that a day has, about.
        wanted: rows of the training.
        config: `recent_days` and `recent_share`.
    """

    def share(part: Sequence[date], rows: float) -> dict[date, float]:
        return dict.fromkeys(part, min(1.0, rows / max(rows_per_day * len(part), 1.0)))

    start = days[-1] - timedelta(days=config.recent_days - 1) if config.recent_days else days[0]
    baseline, recent = [day for day in days if day < start], [day for day in days if day >= start]
    if not baseline:
        return share(recent, wanted)
    return {
        **share(baseline, wanted * (1 - config.recent_share)),
        **share(recent, wanted * config.recent_share),
    }


def row_weights(rows: pl.DataFrame, config: TrainConfig) -> Array:
    """What each training row weighs by its counter's level, its age and how rare its counter is.

    Args:
        rows: has level_28d, service_date and counter_id.
        config: `weight_power`, `recency_half_life_days` and `rare_counter_power`.
    """
    weight = rows["level_28d"].to_numpy().astype(np.float64) ** config.weight_power
    if config.recency_half_life_days:
        issued = rows["service_date"].to_physical().to_numpy().astype(np.float64)
        weight = weight * 0.5 ** ((issued.max() - issued) / config.recency_half_life_days)
    if config.rare_counter_power:
        own = rows.select(pl.len().over("counter_id")).to_series().to_numpy().astype(np.float64)
        usual = float(np.median(rows.group_by("counter_id").len()["len"].to_numpy()))
        weight = weight * np.clip(
            (usual / own) ** config.rare_counter_power, 1 / RARE_COUNTER_LIMIT, RARE_COUNTER_LIMIT
        )
    return np.asarray(weight)
