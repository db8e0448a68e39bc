"""The forecasting model: one gradient-boosted model for all counters and horizons, with calibrated intervals.

Belongs here: fitting, forecasting, interval calibration, and the model's files. Does not belong here: how
features are computed (see `bike_assets.core.features`), where models are registered, and which one serves.

The target is the count divided by the counter's 28-day level, so that a quiet lane and a boulevard teach each
other; the loss is Tweedie's (Jørgensen 1987), made for counts with many zeros. Intervals are split conformal
(Papadopoulos et al. 2002): quantiles of scaled errors on days the calibration model has not seen.
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

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        iterations: number of trees.
        depth: depth of the (symmetric) trees.
        learning_rate: shrinkage of each tree.
        l2_leaf_reg: L2 regularisation of leaf values.
        tweedie_power: variance power of the loss, 1 (Poisson) to 2 (gamma).
        weight_power: a row weighs its counter's level to this power.
        max_rows: rows to train on at most; more are thinned by a hash.
        calibration_days: last local days of the training truth used to calibrate intervals.
        calibration_iterations: trees of the model that is fitted without those days.
        cap_factor: forecasts end at this multiple of the counter's 56-day maximum.
        seed: of sampling and of CatBoost.
        thread_count: threads of CatBoost, -1 for all cores.
    """

    iterations: int = 350
    depth: int = 8
    learning_rate: float = 0.08
    l2_leaf_reg: float = 5.0
    tweedie_power: float = 1.5
    weight_power: float = 0.5
    max_rows: int = 300_000
    calibration_days: int = 28
    calibration_iterations: int = 150
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
        self._model = _train(rows, config, config.iterations)
        return self

    def _calibrate(self, rows: pl.DataFrame) -> Calibration:
        """Fit without the last days of truth, forecast them, and keep the quantiles of the errors."""
        config = self.config
        newest = rows.select(pl.col("target_ts").max()).item()
        start = newest - timedelta(days=config.calibration_days)
        before = rows.filter(pl.col("target_ts") <= start)
        # Only forecasts issued after the last training hour are as blind as a real one.
        after = rows.filter(pl.col("service_date") > start.date())
        if before.height < MIN_CLASS_ROWS or after.height < MIN_CLASS_ROWS:
            before = after = rows  # too little history: intervals of training errors are better than none
        model = _train(before, config, min(config.iterations, config.calibration_iterations))
        forecast = _point(model, after, config)
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
        spread = scale(forecast)
        horizon = features["horizon"].to_numpy() - 1
        kind = np.digitize(forecast, LEVEL_EDGES)
        columns: dict[str, Array] = {"forecast": forecast}
        for coverage in COVERAGES:
            table = np.array(self.calibration.quantiles[coverage])
            columns[f"lower_{coverage}"] = np.maximum(forecast + table[horizon, kind, 0] * spread, 0.0)
            columns[f"upper_{coverage}"] = forecast + table[horizon, kind, 1] * spread
        columns["lower_90"] = np.minimum(columns["lower_90"], columns["lower_80"])
        columns["upper_90"] = np.maximum(columns["upper_90"], columns["upper_80"])
        return features.select("service_date", "counter_id", "target_ts", "horizon").with_columns(
            *(pl.Series(name, values, dtype=pl.Float64) for name, values in columns.items()),
            *(features[name].cast(pl.Float64) for name in ("mean4", "seasonal_naive")),
        )

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
            model = CatBoostRegressor()
            model.load_model(str(folder / MODEL_FILE))
        except (OSError, ValueError, KeyError, TypeError, CatBoostError) as error:
            raise PermanentError(
                f"model in {folder}: {str(error).splitlines()[0]}; train it again"
            ) from error
        if stored["format"] != FORMAT_VERSION or stored["features"] != list(FEATURE_COLUMNS):
            raise PermanentError(
                f"model in {folder} takes other features than this version gives; train it again"
            )
        self = cls(config)
        self.calibration, self._model = calibration, model
        return self


def _with_truth(features: pl.DataFrame, truth: pl.DataFrame) -> pl.DataFrame:
    known = truth.select(
        "counter_id", target_ts="ts_utc", hourly_count=pl.col("hourly_count").cast(pl.Float64)
    )
    return features.join(known.drop_nulls(), on=["counter_id", "target_ts"], how="inner")


def _matrix(rows: pl.DataFrame) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Inputs [row, feature], counts divided by the level, and the level [row]."""
    level = rows["level_28d"].to_numpy().astype(np.float32)
    matrix = np.empty((rows.height, len(FEATURE_COLUMNS)), dtype=np.float32, order="F")
    for i, name in enumerate(FEATURE_COLUMNS):
        values = rows[name].to_numpy()
        matrix[:, i] = values / level if i < len(COUNT_FEATURES) else values
    return matrix, level


def _train(rows: pl.DataFrame, config: TrainConfig, iterations: int) -> Any:
    from catboost import CatBoostRegressor, Pool

    matrix, level = _matrix(rows)
    target = rows["hourly_count"].to_numpy() / level
    model = CatBoostRegressor(
        loss_function=f"Tweedie:variance_power={config.tweedie_power}",
        iterations=iterations,
        depth=config.depth,
        learning_rate=config.learning_rate,
        l2_leaf_reg=config.l2_leaf_reg,
        random_seed=config.seed,
        thread_count=config.thread_count,
        allow_writing_files=False,
        verbose=False,
    )
    model.fit(Pool(matrix, target, weight=level**config.weight_power, feature_names=list(FEATURE_COLUMNS)))
    return model


def _point(model: Any, rows: pl.DataFrame, config: TrainConfig) -> Array:
    """Expected counts, within what the counter has shown."""
    if rows.is_empty():
        return np.zeros(0)
    matrix, level = _matrix(rows)
    share = model.predict(matrix, prediction_type="Exponent", thread_count=config.thread_count)
    forecast = np.asarray(share, dtype=np.float64) * level.astype(np.float64)
    ceiling = rows["max_56d"].to_numpy().astype(np.float64) * config.cap_factor
    return np.asarray(np.maximum(np.fmin(forecast, ceiling), 0.0))
