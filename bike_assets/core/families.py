"""Families of models behind one interface: what is learned about an hour, and how it is kept in files.

Belongs here: how each family is trained, asked and stored. Does not belong here: features
(`bike_assets.core.features`), intervals (`bike_assets.core.intervals`), the options of a training, which rows it takes
and what they weigh (`bike_assets.core.training`).

Every learned family forecasts what recent days of the same kind say, times a learned correction. The trees of the
default have Tweedie's loss (Jørgensen 1987), on counts divided by the counter's 28-day level so that a quiet lane and
a boulevard teach each other. What a day is like (weather, strikes) is common to all counters, so a year of training is
a few hundred cases and not a million: members each see half of the weeks, a log-linear regression has half a say
(`bike_assets.core.log_linear`), and the mean correction is shrunk.

Files hold numbers only, never code: nothing of a model is unpickled. Asking a family needs neither CatBoost nor
scikit-learn nor anything else that only training needs.
"""

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bike_assets.core.correction import (
    GREATEST_FACTOR,
    LEAST_FACTOR,
    Array,
    Matrix,
    column,
    corrected,
    expected,
    matrix,
)
from bike_assets.core.errors import PermanentError
from bike_assets.core.features import FEATURE_COLUMNS
from bike_assets.core.log_linear import LOG_LINEAR_FILE, LogLinearFamily
from bike_assets.core.training import TrainConfig, row_weights
from bike_assets.core.trees import SymmetricTrees

MODEL_FILE = "model.cbm"
FOREST_FILE = "random_forest.npz"
NETWORK_FILE = "neural_net.npz"

BLOCK_DAYS = 14
"""Members are trained on blocks of this many target days."""

UNUSED_FEATURES: tuple[str, ...] = tuple(
    name
    for name in FEATURE_COLUMNS
    if name == "history_days"
    or (name.startswith("network") and name not in ("network_ratio_1d", "network_ratio_7d"))
)
"""Features no model may learn from: so much of the network's state names the very day, and days are then learned by
heart. Counters without a past get their daily profile from them."""

USED_FEATURES: tuple[str, ...] = tuple(name for name in FEATURE_COLUMNS if name not in UNUSED_FEATURES)


class PointModel(Protocol):
    """A family: expected counts of feature rows."""

    @classmethod
    def train(cls, rows: pl.DataFrame, config: TrainConfig) -> Self:
        """Fit to feature rows with their `hourly_count` (Float64), sorted by issue date, counter and hour."""
        ...

    def forecast(self, rows: pl.DataFrame, config: TrainConfig) -> Array:
        """Expected count of every row; finite and not negative, and the same whatever rows are asked with it."""
        ...

    def save(self, folder: Path) -> None:
        """Write the family's own files into an existing folder; the same model gives the same bytes."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            OSError, ValueError, KeyError: a file is missing or damaged.
        """
        ...

    def importance(self) -> Mapping[str, float]:
        """Weight of each input, in shares of 1; empty where the family has no such thing."""
        ...


class CatBoostFamily:
    """Gradient-boosted symmetric trees (Prokhorenkova et al. 2018), averaged with a log-linear regression: the default.

    The mean is of corrections, in logarithms: `TrainConfig.linear_share` is the regression's part of it.
    """

    def __init__(self, trees: SymmetricTrees, linear: LogLinearFamily | None, stored: bytes) -> None:
        """Take what a forecast needs, and the trees once more as CatBoost keeps them."""
        self.linear = linear
        self._trees, self._stored = trees, stored

    @classmethod
    def train(cls, rows: pl.DataFrame, config: TrainConfig) -> Self:
        """Fit members on complementary halves of the weeks and average them."""
        from catboost import CatBoostRegressor, Pool

        inputs, level = matrix(rows), column(rows, "level_28d")
        target, weight, baseline = (
            rows["hourly_count"].to_numpy() / level,
            row_weights(rows, config),
            np.log(expected(rows) / level),
        )

        def pool(part: NDArray[np.bool_]) -> Pool:
            return Pool(
                inputs[part],
                target[part],
                weight=weight[part],
                baseline=baseline[part],
                feature_names=list(FEATURE_COLUMNS),
            )

        blocks = rows["target_ts"].dt.epoch("d").to_numpy() // BLOCK_DAYS
        members = []
        # Trees wait for one another's split at every depth; the regression takes the cores meanwhile.
        with ThreadPoolExecutor(1) as beside:
            fitting = beside.submit(LogLinearFamily.train, rows, config) if config.linear_share else None
            for member in range(config.members):
                chosen = _half(blocks, member, config.seed)
                model = CatBoostRegressor(
                    loss_function=f"Tweedie:variance_power={config.tweedie_power}",
                    iterations=config.iterations,
                    depth=config.depth,
                    learning_rate=config.learning_rate,
                    l2_leaf_reg=config.l2_leaf_reg,
                    border_count=config.border_count,
                    random_seed=config.seed + member,
                    thread_count=config.thread_count,
                    ignored_features=list(UNUSED_FEATURES),
                    allow_writing_files=False,
                    verbose=False,
                )
                if config.early_stopping_rounds and not chosen.all():
                    model.fit(
                        pool(chosen),
                        eval_set=pool(~chosen),
                        early_stopping_rounds=config.early_stopping_rounds,
                        use_best_model=True,
                    )
                else:
                    model.fit(pool(chosen))
                members.append(model)
            linear = fitting.result() if fitting else None
        average = _average(members)
        return cls(SymmetricTrees.of(average), linear, _bytes(average))

    @cached_property
    def trees(self) -> Any:
        """CatBoost's own model, which explains and is published; forecasting needs neither it nor CatBoost.

        Raises:
            ValueError: what was stored is damaged.
        """
        from catboost import CatBoostError, CatBoostRegressor

        try:
            return CatBoostRegressor().load_model(blob=self._stored)
        except CatBoostError as error:
            raise ValueError(str(error).splitlines()[0]) from error

    def forecast(self, rows: pl.DataFrame, config: TrainConfig) -> Array:
        """Expected count of every row."""
        if rows.is_empty():
            return np.zeros(0)
        correction = self._trees.raw(matrix(rows))
        if self.linear is not None:
            correction += config.linear_share * (self.linear.correction(rows) - correction)
        return corrected(rows, correction, config)

    def contributions(self, rows: pl.DataFrame, config: TrainConfig) -> Array:
        """What every input adds to the correction [row, feature of FEATURE_COLUMNS and what all rows have in common].

        Of the trees Shapley values, computed by CatBoost (Lundberg et al. 2020); of the regression its terms.
        """
        from catboost import Pool

        pool = Pool(matrix(rows), feature_names=list(FEATURE_COLUMNS))
        shares = np.asarray(
            self.trees.get_feature_importance(pool, type="ShapValues", thread_count=config.thread_count),
            dtype=np.float64,
        )
        if self.linear is not None:
            shares += config.linear_share * (self.linear.contributions(rows) - shares)
        return shares

    def save(self, folder: Path) -> None:
        """Write `trees.npz`, `model.cbm` and, of the regression, `log_linear.npz`."""
        if self.linear is not None:
            self.linear.save(folder)
        self._trees.save(folder)
        (folder / MODEL_FILE).write_bytes(self._stored)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `trees.npz` and `model.cbm`, and `log_linear.npz` where it is."""
        linear = LogLinearFamily.load(folder) if (folder / LOG_LINEAR_FILE).exists() else None
        return cls(SymmetricTrees.load(folder), linear, (folder / MODEL_FILE).read_bytes())

    def importance(self) -> Mapping[str, float]:
        """Share of the loss change each feature explains in the trees (PredictionValuesChange)."""
        shares = np.asarray(self.trees.get_feature_importance(), dtype=np.float64)
        return dict(zip(FEATURE_COLUMNS, (shares / max(shares.sum(), 1e-12)).tolist(), strict=True))


def _average(models: list[Any]) -> Any:
    """One model whose raw value is the mean of the models'."""
    from catboost import sum_models

    average = sum_models(models, weights=[1.0 / len(models)] * len(models))
    metadata = average.get_metadata()
    for key in list(metadata):
        if key.startswith("model"):  # random ids and times of day: the same training must give the same bytes
            del metadata[key]
    return average


def _bytes(model: Any) -> bytes:
    metadata = model.get_metadata()
    # A loaded model carries empty parameters, about which CatBoost complains on stderr at the next loading.
    if "params" in list(metadata):
        del metadata["params"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / MODEL_FILE
        model.save_model(str(file))
        return file.read_bytes()


def _half(blocks: NDArray[np.int64], member: int, seed: int) -> NDArray[np.bool_]:
    """Rows of one half of the blocks; members 2k and 2k + 1 share the blocks between them."""
    found = np.unique(blocks)
    order = np.random.default_rng([seed, member // 2]).permutation(found)
    middle = len(found) // 2
    half = order[:middle] if member % 2 else order[middle:]
    return np.asarray(np.isin(blocks, half if len(half) else found))


def _learnable(rows: pl.DataFrame, config: TrainConfig) -> tuple[Matrix, Array, Array]:
    """Inputs, target and weight of the families that learn the factor between count and expectation.

    Weights hold the expectation, so that a mean of targets is a ratio of counts: many zeros of quiet hours then do
    not outweigh the few hours that people ride in.
    """
    level, usual = column(rows, "level_28d"), expected(rows)
    target = np.clip(rows["hourly_count"].to_numpy() / usual, 0.0, GREATEST_FACTOR)
    weight = usual / level * row_weights(rows, config)
    return matrix(rows)[:, _USED], target, weight / weight.mean()


_USED: Final = np.array([FEATURE_COLUMNS.index(name) for name in USED_FEATURES])


class RandomForestFamily:
    """Means over decorrelated trees (Breiman 2001), trained by scikit-learn and asked as plain arrays."""

    _ABSENT: Final = np.float32(-9.0)
    """Stands for an unknown input: below everything that is known."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = dict(arrays)

    @classmethod
    def train(cls, rows: pl.DataFrame, config: TrainConfig) -> Self:
        """Fit the factor between count and expectation."""
        from sklearn.ensemble import RandomForestRegressor

        inputs, target, weight = _learnable(rows, config)
        forest = RandomForestRegressor(
            n_estimators=config.forest_trees,
            min_samples_leaf=config.forest_leaf,
            max_depth=config.forest_depth,
            max_features=0.33,
            max_samples=min(len(target), max(1_000, len(target) // 2)),
            n_jobs=config.thread_count,
            random_state=config.seed % 2**32,
        )
        forest.fit(np.nan_to_num(inputs, nan=float(cls._ABSENT)), target, sample_weight=weight)
        trees = [estimator.tree_ for estimator in forest.estimators_]
        return cls(
            {
                "sizes": np.array([tree.node_count for tree in trees], dtype=np.int64),
                "feature": np.concatenate([tree.feature for tree in trees]).astype(np.int32),
                "threshold": np.concatenate([tree.threshold for tree in trees]).astype(np.float64),
                "left": np.concatenate([tree.children_left for tree in trees]).astype(np.int32),
                "right": np.concatenate([tree.children_right for tree in trees]).astype(np.int32),
                "value": np.concatenate([tree.value.reshape(-1) for tree in trees]).astype(np.float64),
                "importance": forest.feature_importances_.astype(np.float64),
            }
        )

    def forecast(self, rows: pl.DataFrame, config: TrainConfig) -> Array:
        """Expected count of every row."""
        if rows.is_empty():
            return np.zeros(0)
        inputs = np.nan_to_num(matrix(rows)[:, _USED], nan=float(self._ABSENT))
        names = ("feature", "threshold", "left", "right", "value")
        ends = np.cumsum(self._arrays["sizes"])
        total, row = np.zeros(len(inputs)), np.arange(len(inputs))
        for start, end in zip(ends - self._arrays["sizes"], ends, strict=True):
            feature, threshold, left, right, value = (self._arrays[name][start:end] for name in names)
            node = np.zeros(len(inputs), dtype=np.int32)
            while (inner := left[node] >= 0).any():
                at = node[inner]
                lower = inputs[row[inner], feature[at]] <= threshold[at]
                node[inner] = np.where(lower, left[at], right[at])
            total += value[node]
        factor = np.maximum(total / len(ends), LEAST_FACTOR)
        return corrected(rows, np.log(factor), config)

    def save(self, folder: Path) -> None:
        """Write `random_forest.npz`."""
        np.savez(folder / FOREST_FILE, **self._arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `random_forest.npz`."""
        return cls(_read_arrays(folder / FOREST_FILE))

    def importance(self) -> Mapping[str, float]:
        """Share of the squared error each feature's splits explain."""
        return dict(zip(USED_FEATURES, self._arrays["importance"].tolist(), strict=True))


class NeuralNetFamily:
    """A small feed-forward net with Poisson loss, trained by scikit-learn and asked as plain arrays."""

    _BLOCK: Final = 4096
    """Rows that go through the layers at a time. Always as many, so that a row's sums are added in one order."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = dict(arrays)

    @classmethod
    def train(cls, rows: pl.DataFrame, config: TrainConfig) -> Self:
        """Fit the factor between count and expectation."""
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor

        inputs, target, weight = _learnable(rows, config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a feature that is never known
            centre, spread = np.nanmean(inputs, axis=0), np.nanstd(inputs, axis=0)
        scaling = {
            "centre": np.nan_to_num(centre).astype(np.float64),
            "spread": np.where(np.nan_to_num(spread) > 0, spread, 1.0).astype(np.float64),
        }
        net = MLPRegressor(
            loss="poisson",
            hidden_layer_sizes=config.net_layers,
            batch_size=min(512, len(target)),
            alpha=1e-3,
            learning_rate_init=2e-3,
            max_iter=config.net_epochs,
            random_state=config.seed % 2**32,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is chosen
            net.fit(_standardised(inputs, scaling), target, sample_weight=weight)
        layers = {f"weights_{i}": layer.astype(np.float64) for i, layer in enumerate(net.coefs_)}
        biases = {f"bias_{i}": bias.astype(np.float64) for i, bias in enumerate(net.intercepts_)}
        return cls({**scaling, **layers, **biases})

    def forecast(self, rows: pl.DataFrame, config: TrainConfig) -> Array:
        """Expected count of every row."""
        if rows.is_empty():
            return np.zeros(0)
        inputs = _standardised(matrix(rows)[:, _USED], self._arrays)
        correction = np.empty(len(inputs))
        block = np.zeros((self._BLOCK, inputs.shape[1]))
        depth = sum(name.startswith("bias") for name in self._arrays)
        for start in range(0, len(inputs), self._BLOCK):
            part = inputs[start : start + self._BLOCK]
            block[: len(part)] = part
            values = block
            for i in range(depth):
                values = values @ self._arrays[f"weights_{i}"] + self._arrays[f"bias_{i}"]
                values = np.maximum(values, 0.0) if i < depth - 1 else values
            correction[start : start + self._BLOCK] = values[: len(part), 0]
        return corrected(rows, np.clip(correction, np.log(LEAST_FACTOR), np.log(GREATEST_FACTOR)), config)

    def save(self, folder: Path) -> None:
        """Write `neural_net.npz`."""
        np.savez(folder / NETWORK_FILE, **self._arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `neural_net.npz`."""
        return cls(_read_arrays(folder / NETWORK_FILE))

    def importance(self) -> Mapping[str, float]:
        """Nothing: weights of a net say little about its inputs."""
        return {}


def _standardised(inputs: Matrix, scaling: Mapping[str, NDArray[Any]]) -> Array:
    scaled = (inputs.astype(np.float64) - scaling["centre"]) / scaling["spread"]
    return np.asarray(np.clip(np.nan_to_num(scaled), -4.0, 4.0))


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


class EnsembleFamily:
    """The geometric mean of families that err in different ways."""

    MEMBERS: Final = ("catboost", "random_forest", "neural_net")

    def __init__(self, members: Mapping[str, PointModel]) -> None:
        self.members = dict(members)

    @classmethod
    def train(cls, rows: pl.DataFrame, config: TrainConfig) -> Self:
        """Fit each member to the same rows."""
        return cls({name: FAMILIES[name].train(rows, replace(config, family=name)) for name in cls.MEMBERS})

    def forecast(self, rows: pl.DataFrame, config: TrainConfig) -> Array:
        """Expected count of every row."""
        logs = np.zeros(rows.height)
        for model in self.members.values():
            logs += np.log(np.maximum(model.forecast(rows, config), 1e-3))
        return np.asarray(np.exp(logs / len(self.members)))

    def save(self, folder: Path) -> None:
        """Write the files of each member."""
        for model in self.members.values():
            model.save(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the files of each member."""
        return cls({name: FAMILIES[name].load(folder) for name in cls.MEMBERS})

    def importance(self) -> Mapping[str, float]:
        """Mean of the members' shares, of those that have any."""
        shares = [share for model in self.members.values() if (share := model.importance())]
        return {name: sum(share.get(name, 0.0) for share in shares) / len(shares) for name in FEATURE_COLUMNS}


class _Baseline:
    """A feature that is the forecast: nothing to learn, nothing to keep."""

    column: str

    @classmethod
    def train(cls, rows: pl.DataFrame, config: TrainConfig) -> Self:  # noqa: ARG003
        """There is nothing to fit."""
        return cls()

    def forecast(self, rows: pl.DataFrame, config: TrainConfig) -> Array:  # noqa: ARG002
        """The baseline as it stands in the features."""
        return column(rows, self.column)

    def save(self, folder: Path) -> None:
        """There is nothing to write."""

    @classmethod
    def load(cls, folder: Path) -> Self:  # noqa: ARG003
        """There is nothing to read."""
        return cls()

    def importance(self) -> Mapping[str, float]:
        """All of it is the one column."""
        return {self.column: 1.0}


class SeasonalNaiveFamily(_Baseline):
    """The last same hour of the week that was known."""

    column = "seasonal_naive"


class MeanOfFourWeeksFamily(_Baseline):
    """The mean of the last four same hours of the week."""

    column = "mean4"


FAMILIES: Final[Mapping[str, type[PointModel]]] = {
    "catboost": CatBoostFamily,
    "log_linear": LogLinearFamily,
    "random_forest": RandomForestFamily,
    "neural_net": NeuralNetFamily,
    "ensemble": EnsembleFamily,
    "seasonal_naive": SeasonalNaiveFamily,
    "mean_of_four_weeks": MeanOfFourWeeksFamily,
}
"""Every family by the name that a configuration and a table call it."""


def family_of(name: str) -> type[PointModel]:
    """The family of a name.

    Raises:
        PermanentError: there is none of that name.
    """
    if name not in FAMILIES:
        raise PermanentError(f"there is no family of models {name!r}; choose one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
