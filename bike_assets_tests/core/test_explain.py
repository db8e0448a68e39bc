"""Explanations add up: bicycles to the forecast, factors to what the model made of the recent days."""

from datetime import date

import polars as pl
import pytest

from bike_assets.core.errors import PermanentError
from bike_assets.core.explain import CEILING, START, USUAL, explain
from bike_assets.core.features import FEATURE_COLUMNS, build_features
from bike_assets.core.model import Forecaster, make_forecaster
from bike_assets.core.training import TrainConfig
from bike_assets_tests.core.synthetic import city

CONFIG = TrainConfig(iterations=20, members=2, max_rows=3_000, calibration_days=7)
DAY = date(2024, 6, 10)


@pytest.fixture(scope="module")
def counts() -> pl.DataFrame:
    return city(date(2024, 3, 1), date(2024, 6, 9), counters=3)


@pytest.fixture(scope="module")
def forecaster(counts: pl.DataFrame) -> Forecaster:
    days = [date(2024, 5, day) for day in range(1, 32)]
    return make_forecaster("catboost", CONFIG).fit(build_features(counts, days), counts)


@pytest.fixture(scope="module")
def features(counts: pl.DataFrame) -> pl.DataFrame:
    return build_features(counts, [DAY]).sample(20, seed=1)


def test_parts_sum_to_the_forecast(forecaster: Forecaster, features: pl.DataFrame) -> None:
    parts = explain(forecaster, features)
    keys = ["service_date", "counter_id", "target_ts", "horizon"]
    whole = parts.group_by(keys, maintain_order=True).agg(
        pl.col("bicycles").sum(), pl.col("factor").product(), start=pl.col("bicycles").first()
    )
    forecast = forecaster.predict(features)
    assert whole.select(keys).equals(forecast.select(keys))
    assert whole["bicycles"].to_list() == pytest.approx(forecast["forecast"].to_list(), abs=1e-9)
    assert (whole["factor"] * whole["start"]).to_list() == pytest.approx(forecast["forecast"].to_list())


def test_every_part_is_named_with_its_value_and_in_order(
    forecaster: Forecaster, features: pl.DataFrame
) -> None:
    one = explain(forecaster, features.head(1))
    assert one["part"].head(2).to_list() == [START, USUAL]
    inputs = one.filter(pl.col("part").is_in(FEATURE_COLUMNS))
    assert inputs.height > 5
    for row in inputs.iter_rows(named=True):
        assert row["value"] == features[row["part"]][0]
    sizes = inputs["bicycles"].abs().to_list()
    assert sizes == sorted(sizes, reverse=True)


def test_the_ceiling_is_a_part_of_its_own(forecaster: Forecaster, features: pl.DataFrame) -> None:
    low = features.head(1).with_columns(max_56d=pl.lit(0.5, pl.Float32))
    parts = explain(forecaster, low)
    assert parts["part"][-1] == CEILING
    assert parts["bicycles"][-1] < 0
    assert parts["bicycles"].sum() == pytest.approx(0.5 * CONFIG.cap_factor)


def test_what_cannot_be_explained_is_refused(features: pl.DataFrame, counts: pl.DataFrame) -> None:
    naive = make_forecaster("seasonal_naive", CONFIG).fit(build_features(counts, [date(2024, 5, 1)]), counts)
    with pytest.raises(PermanentError, match="seasonal_naive has no CatBoost model"):
        explain(naive, features)
    with pytest.raises(PermanentError, match="nothing to explain"):
        explain(
            make_forecaster("catboost", CONFIG).fit(build_features(counts, [DAY.replace(day=1)]), counts),
            features.head(0),
        )
