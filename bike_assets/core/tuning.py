"""A search for better training options within a time budget, judged on later days than it trains on.

Belongs here: which options are varied and how far, the order of trials, the splits and the choice. Does not belong
here: reading features and writing the file of options (`bike_assets.tune`), and training (`bike_assets.core.families`).

Random search (Bergstra and Bengio 2012): with few trials and options of unlike weight it finds as good a value as a
grid of many times its size. A trial is trained on the days before each split and scored on those after, never the
other way round; what it forecast is what its horizons would have known. The options in force are the first trial, and
only what beats them is proposed.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from typing import Any, Final

import numpy as np
import polars as pl

from bike_assets.core.errors import PermanentError
from bike_assets.core.families import family_of
from bike_assets.core.features import drop_weather
from bike_assets.core.intervals import target_day
from bike_assets.core.training import Array, TrainConfig

_COMMON: Final[Mapping[str, tuple[float, float]]] = {
    "shrinkage": (0.8, 1.0),
    "weight_power": (0.3, 0.8),
}
SPACE: Final[Mapping[str, Mapping[str, tuple[float, float]]]] = {
    "catboost": {
        **_COMMON,
        "iterations": (80, 300),
        "depth": (5, 8),
        "learning_rate": (0.04, 0.2),
        "l2_leaf_reg": (1.0, 30.0),
        "tweedie_power": (1.2, 1.8),
        "linear_ridge": (10.0, 1000.0),
    },
    "log_linear": {**_COMMON, "linear_ridge": (10.0, 1000.0)},
    "random_forest": {**_COMMON, "forest_trees": (30, 120), "forest_leaf": (5, 80), "forest_depth": (8, 20)},
    "neural_net": {**_COMMON, "net_epochs": (5, 25)},
    "ensemble": {**_COMMON, "iterations": (80, 300), "forest_leaf": (5, 80), "net_epochs": (5, 25)},
}
"""Smallest and greatest value of the options that are varied, by family; all but the common ones on a log scale."""

FOLD_DAYS: Final = 28
FOLDS: Final = 2
"""Splits, each scored on this many days: one alone would choose for its own weather."""


@dataclass(frozen=True)
class Trial:
    """Options that were tried.

    Attributes:
        options: what differs from the options in force.
        rmse: root of the mean squared error of all splits (bicycles an hour).
        fold_rmse: that of each split, the newest first.
        seconds: what it took.
    """

    options: Mapping[str, Any]
    rmse: float
    fold_rmse: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Tuning:
    """A finished search: trials in the order they ran, and the options of the best."""

    trials: tuple[Trial, ...]
    best: TrainConfig

    @property
    def gain(self) -> float:
        """Share of the RMSE of the options in force that the best saves."""
        return 1.0 - min(trial.rmse for trial in self.trials) / self.trials[0].rmse


def splits(newest: date) -> list[tuple[date, date]]:
    """Last day of training and last day scored of each split, the newest first."""
    ends = [newest - timedelta(days=FOLD_DAYS * fold) for fold in range(FOLDS)]
    return [(end - timedelta(days=FOLD_DAYS), end) for end in ends]


def tune(
    rows: pl.DataFrame,
    config: TrainConfig,
    budget_seconds: float,
    clock: Callable[[], float],
    max_trials: int | None = None,
    progress: Callable[[Trial], None] = lambda _: None,
) -> Tuning:
    """Try options until the time is used up.

    The order of trials follows from the seed; the budget only says how many there are. The first trial runs whatever
    the budget; no other begins that would not end in time, judged by the slowest before it.

    Args:
        rows: features with their hourly_count (Float64).
        config: the options in force.
        budget_seconds: time for all trials.
        clock: seconds that pass, as `time.monotonic`.
        max_trials: ends the search earlier.
        progress: is told each trial when it ends.

    Raises:
        PermanentError: the family has nothing to tune, or a split has no rows to train on or to score.
    """
    if config.family not in SPACE:
        raise PermanentError(f"tune: {config.family} has no options; choose one of {', '.join(SPACE)}")
    folds = [_fold(rows, *split) for split in splits(rows.select(target_day().max()).item())]
    chance = np.random.default_rng(config.seed)
    trials: list[Trial] = []
    options: dict[str, Any] = {}
    started, best = clock(), config
    while True:
        begun = clock()
        tried = replace(config, **options)
        squared, counted, by_fold = 0.0, 0, []
        for before, after in folds:
            error = _squared_errors(before, after, tried)
            by_fold.append(float(np.sqrt(error.mean())))
            squared, counted = squared + float(error.sum()), counted + len(error)
        trial = Trial(options, float(np.sqrt(squared / counted)), tuple(by_fold), clock() - begun)
        if trials and trial.rmse < min(other.rmse for other in trials):
            best = tried
        trials.append(trial)
        progress(trial)
        slowest = max(other.seconds for other in trials)
        if clock() - started + slowest > budget_seconds or len(trials) == max_trials:
            return Tuning(tuple(trials), best)
        options = draw(config, chance)


def draw(config: TrainConfig, chance: np.random.Generator) -> dict[str, Any]:
    """Options of one trial, each drawn from its range of `SPACE`."""
    drawn: dict[str, Any] = {}
    for name, (low, high) in SPACE[config.family].items():
        place = chance.random()
        value = low + (high - low) * place if name in _COMMON else low * (high / low) ** place
        whole = isinstance(asdict(config)[name], int)
        drawn[name] = round(value) if whole else float(f"{value:.3g}")
    return drawn


def _fold(rows: pl.DataFrame, until: date, last: date) -> tuple[pl.DataFrame, pl.DataFrame]:
    before = rows.filter(target_day() <= until)
    after = rows.filter(pl.col("service_date") > until, target_day() <= last)
    if before.is_empty() or after.is_empty():
        raise PermanentError(
            f"tune: no rows to train on up to {until} or to score up to {last}; it needs more than "
            f"{FOLDS * FOLD_DAYS} issue dates with features"
        )
    return before, after


def _squared_errors(before: pl.DataFrame, after: pl.DataFrame, config: TrainConfig) -> Array:
    ordered = before.sort("service_date", "counter_id", "target_ts")
    learned = drop_weather(ordered, config.weather_dropout, config.seed)
    forecast = family_of(config.family).train(learned, config).forecast(after, config)
    return np.asarray(np.square(forecast - after["hourly_count"].to_numpy()))
