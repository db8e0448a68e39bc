"""The forecasting model: one gradient-boosted model for all counters and horizons, with calibrated intervals.

Belongs here: fitting, forecasting, interval calibration, and the model's files. Does not belong here: how
features are computed (see `bike_assets.core.features`), where models are registered, and which one serves.

A forecast is an expected count, made of recent days of the same kind, times a learned correction. The correction
comes from trees with Tweedie's loss (Jørgensen 1987), on counts divided by the counter's 28-day level so that a
quiet lane and a boulevard teach each other. What a day is like (weather, strikes) is common to all counters, so a
year of training is a few hundred cases and not a million: the trees are the mean of members that each saw half of
the weeks, and their correction is shrunk. Intervals are split conformal (Papadopoulos et al. 2002): quantiles of
scaled errors on days the calibrating model has not seen.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bike_assets.core.errors import PermanentError
from bike_assets.core.features import COUNT_FEATURES, FEATURE_COLUMNS, sample_rows

MODEL_FILE = "model.cbm"
CALIBRATION_FILE = "calibration.json"
FORMAT_VERSION = 1

COVERAGES = (80, 90)
LEVEL_EDGES = (3.0, 10.0, 30.0, 100.0, 300.0)
"""Forecasts (bicycles an hour) are calibrated in classes between these."""
MIN_CLASS_ROWS = 200
"""A class with fewer calibration rows uses its horizon's rows, or all rows."""

HOLDOUT_SCHEMA = pl.Schema(
    {
        "service_date": pl.Date(),
        "counter_id": pl.String(),
        "target_ts": pl.Datetime("us", "UTC"),
        "horizon": pl.Int32(),
        "hourly_count": pl.Float64(),
        "forecast": pl.Float64(),
        "mean4": pl.Float64(),
    }
)
"""Columns of `Forecaster.holdout`: issue date, counter, hour, horizon, truth, forecast and baseline."""

Array = NDArray[np.float64]


UNUSED_FEATURES: tuple[str, ...] = tuple(
    name
    for name in FEATURE_COLUMNS
    if name.startswith("network") and name not in ("network_ratio_1d", "network_ratio_7d")
)
"""Features the trees must not split on: so much of the network's state names the very day, and trees then learn
days by heart. Counters without a past get their daily profile from them."""

BLOCK_DAYS = 14
"""Members are trained on blocks of this many target days."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        iterations: trees of each member.
        members: models averaged into one; complementary pairs, each trained on one half of the weeks.
        depth: depth of the (symmetric) trees.
        learning_rate: shrinkage of each tree.
        l2_leaf_reg: L2 regularisation of leaf values.
        shrinkage: share of the learned (logarithmic) correction that is applied.
        tweedie_power: variance power of the loss, 1 (Poisson) to 2 (gamma).
        weight_power: a row weighs its counter's level to this power.
        max_rows: rows to train on at most; more are thinned by a hash.
        calibration_days: last local days of the training truth used to calibrate intervals.
        calibration_members: members of the model that is fitted without those days.
        cap_factor: forecasts end at this multiple of the counter's 56-day maximum.
        seed: of sampling, of the halves and of CatBoost.
        thread_count: threads of CatBoost, -1 for all cores.
    """

    iterations: int = 150
    members: int = 4
    depth: int = 6
    learning_rate: float = 0.1
    l2_leaf_reg: float = 5.0
    shrinkage: float = 0.8
    tweedie_power: float = 1.5
    weight_power: float = 0.5
    max_rows: int = 200_000
    calibration_days: int = 28
    calibration_members: int = 2
    cap_factor: float = 1.3
    seed: int = 20240101
    thread_count: int = -1


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


def _conformal(error: Array, coverage: float) -> tuple[float, float]:
    """Lower and upper error that hold this share, with the finite-sample correction of split conformal."""
    n, tail = len(error), (1 - coverage) / 2
    ordered = np.sort(error)
    rank = min(int(np.ceil((n + 1) * (1 - tail))), n)
    return float(min(ordered[n - rank], 0.0)), float(max(ordered[rank - 1], 0.0))


class Forecaster:
    """A trained model with its calibration. Make one with `fit` or `load`."""

    def __init__(self, config: TrainConfig | None = None) -> None:
        self.config = config or TrainConfig()
        self.calibration = Calibration()
        self.holdout = HOLDOUT_SCHEMA.to_frame()
        """Forecasts of the calibration days by the model that was fitted without them, with truth: the honest
        measure of a training. Empty on a loaded forecaster, and where there was too little history."""
        self._model: Any = None

    def fit(
        self, features: pl.DataFrame, truth: pl.DataFrame, config: TrainConfig | None = None
    ) -> "Forecaster":
        """Train on features whose hour has been counted, and calibrate intervals on the last days.

        Args:
            features: rows of `features_contract(FEATURE_COLUMNS)`, all of them or a sample.
            truth: counter_id, ts_utc, hourly_count up to the end of training; later rows must not be in it.
            config: how to train.

        Returns:
            This forecaster, trained.

        Raises:
            PermanentError: no row of features has a count.
        """
        self.config = config = config or self.config
        rows = _with_truth(features, truth)
        if rows.is_empty():
            raise PermanentError(
                "training: no feature row has a counted hour; give counts of the days the features forecast"
            )
        if rows.height > config.max_rows:
            rows = sample_rows(rows, config.max_rows / rows.height, config.seed)
        rows = rows.sort("service_date", "counter_id", "target_ts")
        self.calibration = self._calibrate(rows)
        self._model = _train(rows, config, config.members)
        return self

    def _calibrate(self, rows: pl.DataFrame) -> Calibration:
        """Fit without the last days of truth, forecast them, and keep the quantiles of the errors."""
        config = self.config
        newest = rows.select(pl.col("target_ts").max()).item()
        start = newest - timedelta(days=config.calibration_days)
        before = rows.filter(pl.col("target_ts") <= start)
        # Only forecasts issued after the last training hour are as blind as a real one.
        after = rows.filter(pl.col("service_date") > start.date())
        blind = before.height >= MIN_CLASS_ROWS and after.height >= MIN_CLASS_ROWS
        if not blind:
            before = after = rows  # too little history: intervals of training errors are better than none
        forecast = _point(_train(before, config, config.calibration_members), after, config)
        if blind:
            self.holdout = after.with_columns(
                pl.Series("forecast", forecast), pl.col("mean4").cast(pl.Float64)
            ).select(HOLDOUT_SCHEMA.names())
        return calibrate(
            forecast, after["hourly_count"].to_numpy().astype(np.float64), after["horizon"].to_numpy()
        )

    def predict(self, features: pl.DataFrame) -> pl.DataFrame:
        """Forecast every row of features.

        Returns:
            service_date, counter_id, target_ts, horizon, forecast, lower_80, upper_80, lower_90, upper_90,
            mean4, seasonal_naive in the order of the rows; numbers are Float64, finite and not negative, and
            lower_90 <= lower_80 <= forecast <= upper_80 <= upper_90.

        Raises:
            PermanentError: the forecaster is not trained.
        """
        if self._model is None:
            raise PermanentError("the forecaster is not trained; call fit or load first")
        forecast = _point(self._model, features, self.config)
        columns: dict[str, Array] = {"forecast": forecast}
        for coverage in COVERAGES:
            low, high = self.interval(forecast, features["horizon"].to_numpy(), coverage)
            columns[f"lower_{coverage}"], columns[f"upper_{coverage}"] = low, high
        columns["lower_90"] = np.minimum(columns["lower_90"], columns["lower_80"])
        columns["upper_90"] = np.maximum(columns["upper_90"], columns["upper_80"])
        return features.select("service_date", "counter_id", "target_ts", "horizon").with_columns(
            *(pl.Series(name, values, dtype=pl.Float64) for name, values in columns.items()),
            *(features[name].cast(pl.Float64) for name in ("mean4", "seasonal_naive")),
        )

    @property
    def catboost(self) -> Any:
        """The fitted CatBoost model, whose inputs are features with counts divided by the level."""
        if self._model is None:
            raise PermanentError("the forecaster is not trained; call fit or load first")
        return self._model

    def interval(self, forecast: Array, horizon: NDArray[Any], coverage: int) -> tuple[Array, Array]:
        """Lower and upper end of the interval around forecasts.

        Args:
            forecast: expected counts.
            horizon: days ahead, 1 to 7.
            coverage: 80 or 90 (per cent).
        """
        table = np.array(self.calibration.quantiles[coverage])
        quantile = table[horizon - 1, np.digitize(forecast, LEVEL_EDGES)]
        spread = scale(forecast)
        return np.maximum(forecast + quantile[:, 0] * spread, 0.0), forecast + quantile[:, 1] * spread

    def feature_importance(self) -> dict[str, float]:
        """Share of the loss change each feature explains (PredictionValuesChange), summing to 100, largest first."""
        if self._model is None:
            raise PermanentError("the forecaster is not trained; call fit or load first")
        shares = self._model.get_feature_importance()
        return dict(sorted(zip(FEATURE_COLUMNS, map(float, shares), strict=True), key=lambda item: -item[1]))

    def save(self, folder: Path) -> None:
        """Write `model.cbm` and `calibration.json` into a folder, which is made if needed."""
        if self._model is None:
            raise PermanentError("the forecaster is not trained; call fit or load first")
        folder.mkdir(parents=True, exist_ok=True)
        metadata = self._model.get_metadata()
        # A loaded model carries empty parameters, about which CatBoost complains on stderr at the next loading.
        if "params" in list(metadata):
            del metadata["params"]
        self._model.save_model(str(folder / MODEL_FILE))
        (folder / CALIBRATION_FILE).write_text(
            json.dumps(
                {
                    "format": FORMAT_VERSION,
                    "features": list(FEATURE_COLUMNS),
                    "config": asdict(self.config),
                    "calibration": {
                        "rows": self.calibration.rows,
                        "level_edges": list(LEVEL_EDGES),
                        "quantiles": {str(key): value for key, value in self.calibration.quantiles.items()},
                    },
                },
                indent=1,
            )
            + "\n",
            encoding="utf-8",
        )

    @classmethod
    def load(cls, folder: Path) -> "Forecaster":
        """Read what `save` wrote.

        Raises:
            PermanentError: a file is missing or damaged, or the model takes other features.
        """
        from catboost import CatBoostError, CatBoostRegressor

        try:
            stored = json.loads((folder / CALIBRATION_FILE).read_text(encoding="utf-8"))
            config = TrainConfig(**stored["config"])
            calibration = Calibration(
                rows=stored["calibration"]["rows"],
                quantiles={
                    int(key): [[(low, high) for low, high in row] for row in table]
                    for key, table in stored["calibration"]["quantiles"].items()
                },
            )
            trees = CatBoostRegressor()
            trees.load_model(str(folder / MODEL_FILE))
        except (OSError, ValueError, KeyError, TypeError, CatBoostError) as error:
            raise PermanentError(
                f"model in {folder}: {str(error).splitlines()[0]}; train it again"
            ) from error
        if stored["format"] != FORMAT_VERSION or stored["features"] != list(FEATURE_COLUMNS):
            raise PermanentError(
                f"model in {folder} takes other features than this version gives; train it again"
            )
        self = cls(config)
        self.calibration, self._model = calibration, trees
        return self


def _with_truth(features: pl.DataFrame, truth: pl.DataFrame) -> pl.DataFrame:
    known = truth.select(
        "counter_id", target_ts="ts_utc", hourly_count=pl.col("hourly_count").cast(pl.Float64)
    )
    return features.join(known.drop_nulls(), on=["counter_id", "target_ts"], how="inner")


def _matrix(rows: pl.DataFrame) -> NDArray[np.float32]:
    """Inputs of the trees [row, input], counts divided by the level."""
    level = rows["level_28d"].to_numpy()
    matrix = np.empty((rows.height, len(FEATURE_COLUMNS)), dtype=np.float32, order="F")
    for i, name in enumerate(FEATURE_COLUMNS):
        values = rows[name].to_numpy()
        matrix[:, i] = values / level if name in COUNT_FEATURES else values
    return matrix


def _expected(rows: pl.DataFrame) -> Array:
    """What recent same weekdays and same kinds of day say; a counter without any gets the city's daily profile."""
    level = rows["level_28d"].to_numpy().astype(np.float64)
    week, kind = (rows[name].to_numpy().astype(np.float64) for name in ("week_mean_clean", "type_ewm"))
    profile = np.nan_to_num(rows["network_profile"].to_numpy().astype(np.float64), nan=1.0)
    both = np.where(np.isnan(week), kind, np.where(np.isnan(kind), week, 0.5 * (week + kind)))
    # A correction is a factor: it needs something above 0 to work on.
    return np.asarray(np.where(np.isnan(both), level * profile, both) + 0.02 * level + 0.3)


def _train(rows: pl.DataFrame, config: TrainConfig, members: int) -> Any:
    """Fit members on complementary halves of the weeks and average them."""
    from catboost import CatBoostRegressor, Pool

    matrix, level = _matrix(rows), rows["level_28d"].to_numpy().astype(np.float64)
    expected = _expected(rows)
    target, weight, baseline = (
        rows["hourly_count"].to_numpy() / level,
        level**config.weight_power,
        np.log(expected / level),
    )
    blocks = rows["target_ts"].dt.epoch("d").to_numpy() // BLOCK_DAYS
    trees = []
    for member in range(members):
        chosen = _half(blocks, member, config.seed)
        model = CatBoostRegressor(
            loss_function=f"Tweedie:variance_power={config.tweedie_power}",
            iterations=config.iterations,
            depth=config.depth,
            learning_rate=config.learning_rate,
            l2_leaf_reg=config.l2_leaf_reg,
            random_seed=config.seed + member,
            thread_count=config.thread_count,
            ignored_features=list(UNUSED_FEATURES),
            allow_writing_files=False,
            verbose=False,
        )
        model.fit(
            Pool(
                matrix[chosen],
                target[chosen],
                weight=weight[chosen],
                baseline=baseline[chosen],
                feature_names=list(FEATURE_COLUMNS),
            )
        )
        trees.append(model)
    return _average(trees)


def _average(models: list[Any]) -> Any:
    """One model whose raw value is the mean of the models'."""
    from catboost import sum_models

    average = sum_models(models, weights=[1.0 / len(models)] * len(models))
    metadata = average.get_metadata()
    for key in list(metadata):
        if key.startswith("model"):  # random ids and times of day: the same training must give the same bytes
            del metadata[key]
    return average


def _half(blocks: NDArray[np.int64], member: int, seed: int) -> NDArray[np.bool_]:
    """Rows of one half of the blocks; members 2k and 2k + 1 share the blocks between them."""
    found = np.unique(blocks)
    order = np.random.default_rng([seed, member // 2]).permutation(found)
    middle = len(found) // 2
    half = order[:middle] if member % 2 else order[middle:]
    return np.asarray(np.isin(blocks, half if len(half) else found))


def _point(model: Any, rows: pl.DataFrame, config: TrainConfig) -> Array:
    """Expected counts, within what the counter has shown."""
    if rows.is_empty():
        return np.zeros(0)
    correction = model.predict(
        _matrix(rows), prediction_type="RawFormulaVal", thread_count=config.thread_count
    )
    forecast = _expected(rows) * np.exp(config.shrinkage * np.asarray(correction, dtype=np.float64))
    ceiling = rows["max_56d"].to_numpy().astype(np.float64) * config.cap_factor
    return np.asarray(np.maximum(np.fmin(forecast, ceiling), 0.0))
