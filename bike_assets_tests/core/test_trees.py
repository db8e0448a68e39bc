"""Trees out of CatBoost sum to the same bits as CatBoost's own, and refuse what they do not know."""

from pathlib import Path

import numpy as np
import pytest
from catboost import CatBoostRegressor, Pool, sum_models

from bike_assets.core.correction import Array, Matrix
from bike_assets.core.trees import TREES_FILE, SymmetricTrees

ROWS = 20_000


def inputs(seed: int = 1) -> Matrix:
    """Numbers of every size, many of them equal, a sixth unknown; more rows than are summed at a time."""
    dice = np.random.default_rng(seed)
    values = dice.normal(size=(ROWS, 6)) * 10.0 ** dice.integers(-3, 4, size=6)
    values[:, 5] = np.round(values[:, 5])
    values[dice.random(values.shape) < 1 / 6] = np.nan
    return values.astype(np.float32)


def trained(seed: int = 1, **options: object) -> CatBoostRegressor:
    rows = inputs()
    target = np.nan_to_num(rows[:, 0]) * np.isnan(rows[:, 1]) + np.sin(np.nan_to_num(rows[:, 2]))
    model = CatBoostRegressor(
        **{"iterations": 40, "depth": 6, "random_seed": seed, "thread_count": 2, **options},
        allow_writing_files=False,
        verbose=False,
    )
    return model.fit(Pool(rows, target))


def raw(model: CatBoostRegressor, rows: Matrix) -> Array:
    return np.asarray(model.predict(rows, prediction_type="RawFormulaVal"))


@pytest.mark.parametrize("depth", [1, 6, 10])
def test_sums_are_those_of_catboost_to_the_last_bit(depth: int, tmp_path: Path) -> None:
    one, two = trained(depth=depth), trained(seed=2, depth=depth, iterations=7)
    for model in (one, sum_models([one, two], weights=[0.5, 0.5])):
        trees = SymmetricTrees.of(model)
        trees.save(tmp_path)
        # Rows that it was not trained on, and borders themselves: the side on which they fall.
        rows = inputs(seed=2)
        rows[0, 0] = rows[1, 0] = np.float32(model.get_borders()[0][0])
        rows[1] = np.inf
        for asked in (trees, SymmetricTrees.load(tmp_path)):
            np.testing.assert_array_equal(asked.raw(rows), raw(model, rows), strict=True)
            np.testing.assert_array_equal(asked.raw(rows[17:18]), raw(model, rows[17:18]))
    assert trees.raw(rows[:0]).shape == (0,)


@pytest.mark.parametrize(
    "options",
    [{"grow_policy": "Depthwise", "depth": 3}, {"nan_mode": "Max"}],
    ids=["other trees", "other unknowns"],
)
def test_trees_of_another_kind_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not known here"):
        SymmetricTrees.of(trained(iterations=3, **options))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    trees = SymmetricTrees.of(trained(iterations=3))
    for name, change in {
        "leaf": lambda leaf: leaf[1:],
        "question": lambda question: question + 1000,
        "feature": lambda feature: feature[1:],
    }.items():
        arrays = dict(trees._arrays)
        arrays[name] = change(arrays[name])
        np.savez(tmp_path / TREES_FILE, **arrays)
        with pytest.raises(ValueError, match="do not fit"):
            SymmetricTrees.load(tmp_path)
