"""The forecaster: a trained model of some family with calibrated intervals, and its files.

Belongs here: which rows are trained on, what is held out, and forecasts with their intervals as a table. Does not
belong here: how features are computed (`bike_assets.core.features`), what a family learns
(`bike_assets.core.families`), how intervals are calibrated (`bike_assets.core.intervals`), where models are
registered, and which one serves.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from bike_assets.core.affluence import Affluence, learn_affluence
from bike_assets.core.errors import PermanentError
from bike_assets.core.families import CatBoostFamily, PointModel, family_of
from bike_assets.core.features import FEATURE_COLUMNS, drop_weather, sample_rows
from bike_assets.core.intervals import (
    COVERAGES,
    ERROR_COLUMNS,
    LEVEL_EDGES,
    MIN_CLASS_ROWS,
    NEWCOMER_WIDENING,
    Array,
    Calibration,
    calibrate,
    interval,
    recalibrate,
)
from bike_assets.core.metrics import join_truth
from bike_assets.core.newcomers import BASES, MIN_HISTORY_DAYS
from bike_assets.core.training import TrainConfig

__all__ = [
    "AFFLUENCE_FILE",
    "CALIBRATION_FILE",
    "HOLDOUT_SCHEMA",
    "Forecaster",
    "TrainConfig",
    "make_forecaster",
]

CALIBRATION_FILE = "calibration.json"
AFFLUENCE_FILE = "affluence.json"
FORMAT_VERSION = 6

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


def make_forecaster(family: str = "catboost", config: TrainConfig | None = None) -> "Forecaster":
    """An untrained forecaster of a family.

    Args:
        family: a name of `bike_assets.core.families.FAMILIES`.
        config: how to train; its own family is overridden.

    Raises:
        PermanentError: there is no such family.
    """
    family_of(family)
    return Forecaster(replace(config or TrainConfig(), family=family))


class Forecaster:
    """A trained model with its calibration. Make one with `fit` or `load`."""

    def __init__(self, config: TrainConfig | None = None) -> None:
        self.config = config or TrainConfig()
        self.calibration = Calibration()
        self.holdout = HOLDOUT_SCHEMA.to_frame()
        """Forecasts of the calibration days by the model that was fitted without them, with truth: the honest
        measure of a training. Empty on a loaded forecaster, and where there was too little history."""
        self.affluence = Affluence()
        """What calls an hour of a counter high or low."""
        self._model: PointModel | None = None

    @property
    def model(self) -> PointModel:
        """What was learned.

        Raises:
            PermanentError: the forecaster is not trained.
        """
        if self._model is None:
            raise PermanentError("the forecaster is not trained; call fit or load first")
        return self._model

    def fit(
        self, features: pl.DataFrame, truth: pl.DataFrame, config: TrainConfig | None = None
    ) -> "Forecaster":
        """Train on features whose hour has been counted, and calibrate intervals on the last days.

        Args:
            features: rows of `features_contract(FEATURE_COLUMNS)`, all of them or a sample.
            truth: counter_id, ts_utc, hourly_count up to the end of training; later rows must not be in it.
            config: how to train; `calibration_days` are a third of the issue dates at most.

        Returns:
            This forecaster, trained.

        Raises:
            PermanentError: no row of features has a count, or the family is unknown.
        """
        self.config = config = config or self.config
        family = family_of(config.family)
        rows = with_truth(features, truth)
        if rows.is_empty():
            raise PermanentError(
                "training: no feature row has a counted hour; give counts of the days the features forecast"
            )
        if rows.height > config.max_rows:
            rows = sample_rows(rows, config.max_rows / rows.height, config.seed)
        rows = rows.sort("service_date", "counter_id", "target_ts")
        # A short history keeps two thirds of its days to learn from.
        days = (rows["service_date"].max() - rows["service_date"].min()).days // 3  # type: ignore[operator, union-attr]
        self.config = config = replace(config, calibration_days=min(config.calibration_days, max(days, 1)))
        self.calibration = self._calibrate(rows)
        self._model = family.train(drop_weather(rows, config.weather_dropout, config.seed), config)
        self.affluence = learn_affluence(truth, self.holdout)
        return self

    def _calibrate(self, rows: pl.DataFrame) -> Calibration:
        """Fit without the last days of truth, forecast them, and keep the quantiles of the errors."""
        config = replace(self.config, members=self.config.calibration_members)
        newest = rows.select(pl.col("target_ts").max()).item()
        start = newest - timedelta(days=config.calibration_days)
        before = rows.filter(pl.col("target_ts") <= start)
        # Only forecasts issued after the last training hour are as blind as a real one.
        after = rows.filter(pl.col("service_date") > start.date())
        blind = before.height >= MIN_CLASS_ROWS and after.height >= MIN_CLASS_ROWS
        if not blind:
            before = after = rows  # too little history: intervals of training errors are better than none
        learned = drop_weather(before, config.weather_dropout, config.seed)
        forecast = family_of(config.family).train(learned, config).forecast(after, config)
        errors = after.with_columns(pl.Series("forecast", forecast), pl.col("mean4").cast(pl.Float64))
        if blind:
            self.holdout = errors.select(HOLDOUT_SCHEMA.names())
        return calibrate(errors)

    def predict(self, features: pl.DataFrame, calibration: Calibration | None = None) -> pl.DataFrame:
        """Forecast every row of features.

        Args:
            features: rows of `features_contract(FEATURE_COLUMNS)`.
            calibration: of the intervals; by default that of the training. `issue` gives what later errors say.

        Returns:
            service_date, counter_id, target_ts, horizon, forecast, lower_80, upper_80, lower_90, upper_90,
            mean4, seasonal_naive and basis (one of `newcomers.BASES`) in the order of the rows; numbers are
            Float64, finite and not negative, and
            lower_90 <= lower_80 <= forecast <= upper_80 <= upper_90.

        Raises:
            PermanentError: the forecaster is not trained.
        """
        forecast = self.model.forecast(features, self.config)
        return self._with_intervals(features, forecast, calibration or self.calibration)

    def issue(
        self, features: pl.DataFrame, counts: pl.DataFrame, errors: pl.DataFrame
    ) -> tuple[pl.DataFrame, dict[date, Calibration]]:
        """Forecasts of some issue dates, the intervals of each from the errors that were known on its morning.

        The same whether the issue dates come one by one, with what was issued before in `errors`, or together.

        Args:
            features: rows of `features_contract(FEATURE_COLUMNS)` of any issue dates.
            counts: counter_id, ts_utc, hourly_count; of an issue date only hours of the days before it are used.
            errors: `ERROR_COLUMNS` of earlier forecasts of this model, and its holdout.

        Returns:
            The rows of `predict`, and by which calibration each issue date was forecast.
        """
        forecast = self.model.forecast(features, self.config)
        points = features.select("service_date", "counter_id", "target_ts", "horizon").with_columns(
            forecast=pl.Series(forecast, dtype=pl.Float64)
        )
        pool = pl.concat([errors.select(ERROR_COLUMNS), join_truth(points, counts).select(ERROR_COLUMNS)])
        calibrations, parts = {}, []
        for (issue_date,), rows in (
            features.with_row_index("row")
            .partition_by("service_date", as_dict=True, maintain_order=True)
            .items()
        ):
            assert isinstance(issue_date, date)  # noqa: S101
            calibrations[issue_date] = recalibrate(pool, issue_date, self.calibration)
            chosen = forecast[rows["row"].to_numpy()]
            issued = self._with_intervals(rows, chosen, calibrations[issue_date])
            parts.append(issued.with_columns(rows["row"]))
        if not parts:
            return self.predict(features), {}
        return pl.concat(parts).sort("row").drop("row"), calibrations

    def _with_intervals(
        self, features: pl.DataFrame, forecast: Array, calibration: Calibration
    ) -> pl.DataFrame:
        columns: dict[str, Array] = {"forecast": forecast}
        horizon, counter_ids = features["horizon"].to_numpy(), features["counter_id"]
        newcomer = (features["history_days"] < MIN_HISTORY_DAYS).fill_null(False).to_numpy()
        for coverage in COVERAGES:
            low, high = interval(calibration, forecast, horizon, coverage, counter_ids)
            low = np.where(newcomer, np.maximum(forecast - (forecast - low) * NEWCOMER_WIDENING, 0.0), low)
            high = np.where(newcomer, forecast + (high - forecast) * NEWCOMER_WIDENING, high)
            columns[f"lower_{coverage}"], columns[f"upper_{coverage}"] = low, high
        columns["lower_90"] = np.minimum(columns["lower_90"], columns["lower_80"])
        columns["upper_90"] = np.maximum(columns["upper_90"], columns["upper_80"])
        return features.select("service_date", "counter_id", "target_ts", "horizon").with_columns(
            *(pl.Series(name, values, dtype=pl.Float64) for name, values in columns.items()),
            *(features[name].cast(pl.Float64) for name in ("mean4", "seasonal_naive")),
            basis=pl.Series(np.where(newcomer, BASES[1], BASES[0]), dtype=pl.String),
        )

    @property
    def catboost(self) -> CatBoostFamily:
        """The fitted default family, with its trees and its regression.

        Raises:
            PermanentError: the forecaster is not trained, or of another family.
        """
        if not isinstance(self.model, CatBoostFamily):
            raise PermanentError(f"a forecaster of family {self.config.family} has no CatBoost model")
        return self.model

    def feature_importance(self) -> dict[str, float]:
        """Weight of each input in per cent, largest first; all 0 where the family cannot tell."""
        shares: Mapping[str, float] = self.model.importance()
        found = {name: 100.0 * shares.get(name, 0.0) for name in FEATURE_COLUMNS}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def save(self, folder: Path) -> None:
        """Write the model's files, `calibration.json` and `affluence.json` into a folder, which is made if needed."""
        model = self.model
        folder.mkdir(parents=True, exist_ok=True)
        model.save(folder)
        (folder / CALIBRATION_FILE).write_text(
            json.dumps(
                {
                    "format": FORMAT_VERSION,
                    "features": list(FEATURE_COLUMNS),
                    "config": asdict(self.config),
                    "level_edges": list(LEVEL_EDGES),
                    "calibration": json.loads(self.calibration.to_json()),
                },
                indent=1,
            )
            + "\n",
            encoding="utf-8",
        )

        (folder / AFFLUENCE_FILE).write_text(
            json.dumps(asdict(self.affluence), indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, folder: Path) -> "Forecaster":
        """Read what `save` wrote.

        Raises:
            PermanentError: a file is missing or damaged, or the model takes other features.
        """
        try:
            stored = json.loads((folder / CALIBRATION_FILE).read_text(encoding="utf-8"))
            if stored["format"] != FORMAT_VERSION or stored["features"] != list(FEATURE_COLUMNS):
                raise PermanentError(
                    f"model in {folder} takes other features than this version gives; train it again"
                )
            config = TrainConfig(**{**stored["config"], "net_layers": tuple(stored["config"]["net_layers"])})
            calibration = Calibration.from_json(json.dumps(stored["calibration"]))
            model = family_of(config.family).load(folder)
            affluence = Affluence(**json.loads((folder / AFFLUENCE_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise PermanentError(f"model in {folder}: {reason}; train it again") from error
        self = cls(config)
        self.calibration, self.affluence, self._model = calibration, affluence, model
        return self


def with_truth(features: pl.DataFrame, truth: pl.DataFrame) -> pl.DataFrame:
    """Feature rows whose hour was counted, with their hourly_count (Float64).

    Args:
        features: has counter_id and target_ts.
        truth: counter_id, ts_utc, hourly_count.
    """
    known = truth.select(
        "counter_id", target_ts="ts_utc", hourly_count=pl.col("hourly_count").cast(pl.Float64)
    )
    return features.join(known.drop_nulls(), on=["counter_id", "target_ts"], how="inner")
