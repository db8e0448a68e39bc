"""Every family learns, repeats itself, survives its files and answers a row alone as among others."""

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.core.calendar import days_between
from bike_assets.core.errors import PermanentError
from bike_assets.core.families import FAMILIES
from bike_assets.core.features import FEATURE_COLUMNS, build_features
from bike_assets.core.log_linear import HIGHEST, LOG_LINEAR_FILE, LOWEST, LogLinearFamily, _table
from bike_assets.core.metrics import accuracy_by_horizon
from bike_assets.core.model import Forecaster, make_forecaster
from bike_assets.core.training import TrainConfig
from bike_assets_tests.core.synthetic import city

FIRST, TRAINED_UNTIL, LAST = date(2023, 10, 1), date(2024, 1, 14), date(2024, 1, 20)
DAY = timedelta(days=1)
LEARNED = ("catboost", "log_linear", "random_forest", "neural_net", "ensemble")
CONFIG = TrainConfig(
    iterations=30,
    members=2,
    depth=4,
    calibration_days=21,
    thread_count=2,
    forest_trees=6,
    net_epochs=60,
    net_layers=(8,),
    shrinkage=0.9,  # few rows teach much that is not so
)


@pytest.fixture(scope="module")
def counts() -> pl.DataFrame:
    return city(FIRST, LAST)


@pytest.fixture(scope="module")
def training(counts: pl.DataFrame) -> pl.DataFrame:
    return build_features(counts, days_between(FIRST + 35 * DAY, TRAINED_UNTIL)).gather_every(15)


@pytest.fixture(scope="module")
def known(counts: pl.DataFrame) -> pl.DataFrame:
    return counts.filter(pl.col("service_date") <= TRAINED_UNTIL)


@pytest.fixture(scope="module")
def trained(training: pl.DataFrame, known: pl.DataFrame) -> dict[str, Forecaster]:
    return {name: make_forecaster(name, CONFIG).fit(training, known) for name in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_repeats_itself_and_survives_its_files(
    family: str,
    trained: dict[str, Forecaster],
    training: pl.DataFrame,
    known: pl.DataFrame,
    tmp_path: Path,
) -> None:
    model = trained[family]
    again = make_forecaster(family, CONFIG).fit(training.sample(fraction=1, shuffle=True, seed=2), known)
    for folder, forecaster in (("one", model), ("two", again)):
        forecaster.save(tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    loaded = Forecaster.load(tmp_path / "one")
    assert loaded.config == replace(CONFIG, family=family)
    rows = training.tail(2000)
    whole = model.predict(rows)
    assert_frame_equal(loaded.predict(rows), whole, check_exact=True)
    alone = pl.concat([model.predict(rows[i : i + 1]) for i in range(0, 2000, 500)])
    assert_frame_equal(alone, whole.gather_every(500), check_exact=True)


def test_learned_families_beat_both_baselines(trained: dict[str, Forecaster], counts: pl.DataFrame) -> None:
    features = build_features(counts, days_between(TRAINED_UNTIL + DAY, LAST), horizons=[1])
    rmse = {
        name: accuracy_by_horizon(model.predict(features), counts)[1].rmse for name, model in trained.items()
    }
    for name in LEARNED:
        assert rmse[name] < min(rmse["seasonal_naive"], rmse["mean_of_four_weeks"]), rmse
    baseline = accuracy_by_horizon(trained["mean_of_four_weeks"].predict(features), counts)
    assert baseline[1].skill == 0


def test_importances_are_shares_of_known_features(trained: dict[str, Forecaster]) -> None:
    for name, model in trained.items():
        shares = model.feature_importance()
        assert set(shares) == set(FEATURE_COLUMNS)
        assert sum(shares.values()) == pytest.approx(0 if name == "neural_net" else 100)


def test_the_default_is_the_mean_of_trees_and_regression(
    trained: dict[str, Forecaster], training: pl.DataFrame
) -> None:
    rows = training.tail(500).with_columns(max_56d=pl.lit(None, dtype=pl.Float32))  # no ceiling
    model = trained["catboost"].catboost
    mean, trees, linear = (model.forecast(rows, replace(CONFIG, linear_share=share)) for share in (0.5, 0, 1))
    np.testing.assert_allclose(mean, np.sqrt(trees * linear))
    assert model.linear is not None
    np.testing.assert_allclose(linear, model.linear.forecast(rows, CONFIG))


def test_trees_alone_keep_no_regression(training: pl.DataFrame, known: pl.DataFrame, tmp_path: Path) -> None:
    alone = make_forecaster("catboost", replace(CONFIG, linear_share=0.0, iterations=5)).fit(training, known)
    alone.save(tmp_path)
    assert not (tmp_path / LOG_LINEAR_FILE).exists()
    rows = training.tail(500)
    assert_frame_equal(Forecaster.load(tmp_path).predict(rows), alone.predict(rows), check_exact=True)


def test_parts_of_the_regression_sum_to_its_correction(
    trained: dict[str, Forecaster], training: pl.DataFrame
) -> None:
    linear = trained["catboost"].catboost.linear
    assert linear is not None
    rows = training.tail(500)
    steep = LogLinearFamily({**linear._arrays, "coefficients": 50 * linear._arrays["coefficients"]})
    for regression in (linear, steep):
        parts, correction = regression.contributions(rows), regression.correction(rows)
        np.testing.assert_allclose(parts.sum(axis=1), correction, rtol=1e-9, atol=1e-9)
        assert LOWEST <= correction.min() <= correction.max() <= HIGHEST
    assert (correction == HIGHEST).any()


def test_terms_written_in_blocks_are_the_terms() -> None:
    values = [np.random.default_rng(i).normal(size=2_500) for i in range(3)]
    np.testing.assert_array_equal(_table(values), np.column_stack([np.ones(2_500), *values]))


def test_members_stop_early_where_other_weeks_no_longer_gain(
    training: pl.DataFrame, known: pl.DataFrame
) -> None:
    config = replace(CONFIG, iterations=400, learning_rate=0.8, early_stopping_rounds=5, linear_share=0.0)
    stopped, again = (make_forecaster("catboost", config).fit(training, known) for _ in range(2))
    trees = stopped.catboost.trees.tree_count_
    assert 0 < trees < 100
    rows = training.tail(500)
    assert_frame_equal(stopped.predict(rows), again.predict(rows), check_exact=True)


def test_an_unknown_family_and_files_of_another_are_clear_errors(
    trained: dict[str, Forecaster], tmp_path: Path
) -> None:
    with pytest.raises(PermanentError, match="random_forest"):
        make_forecaster("prophet")
    with pytest.raises(PermanentError, match="no CatBoost model"):
        _ = trained["random_forest"].catboost
    trained["random_forest"].save(tmp_path)
    (tmp_path / "random_forest.npz").write_bytes(b"not a forest")
    with pytest.raises(PermanentError, match="train it again"):
        Forecaster.load(tmp_path)
