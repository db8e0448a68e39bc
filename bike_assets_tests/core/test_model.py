"""The forecaster learns, repeats itself, survives its files, and never gives a number that is not one."""

import json
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from bike_assets.core.calendar import days_between
from bike_assets.core.errors import PermanentError
from bike_assets.core.families import MODEL_FILE, UNUSED_FEATURES
from bike_assets.core.features import FEATURE_COLUMNS, build_features
from bike_assets.core.intervals import ERROR_COLUMNS, target_day
from bike_assets.core.log_linear import LOG_LINEAR_FILE
from bike_assets.core.metrics import accuracy_by_horizon, join_truth
from bike_assets.core.model import AFFLUENCE_FILE, CALIBRATION_FILE, Forecaster, TrainConfig
from bike_assets.core.trees import TREES_FILE
from bike_assets_tests.core.synthetic import city

FIRST, TRAINED_UNTIL, LAST = date(2023, 9, 1), date(2024, 1, 14), date(2024, 1, 28)
DAY = timedelta(days=1)
CONFIG = TrainConfig(
    iterations=40,
    members=2,
    depth=4,
    learning_rate=0.15,
    calibration_days=21,
    max_rows=20_000,
    thread_count=2,
)
ENDS = ["lower_80", "upper_80", "lower_90", "upper_90"]
NUMBERS = ("forecast", "lower_80", "upper_80", "lower_90", "upper_90", "mean4", "seasonal_naive")


@pytest.fixture(scope="module")
def counts() -> pl.DataFrame:
    return city(FIRST, LAST)


@pytest.fixture(scope="module")
def known(counts: pl.DataFrame) -> pl.DataFrame:
    return counts.filter(pl.col("service_date") <= TRAINED_UNTIL)


@pytest.fixture(scope="module")
def training(known: pl.DataFrame) -> pl.DataFrame:
    return build_features(known, days_between(FIRST + 35 * DAY, TRAINED_UNTIL))


@pytest.fixture(scope="module")
def model(training: pl.DataFrame, known: pl.DataFrame) -> Forecaster:
    return Forecaster().fit(training, known, CONFIG)


@pytest.fixture(scope="module")
def predictions(model: Forecaster, counts: pl.DataFrame) -> pl.DataFrame:
    return model.predict(build_features(counts, days_between(TRAINED_UNTIL + DAY, LAST)))


def test_predictions_have_their_columns_and_their_order(predictions: pl.DataFrame) -> None:
    assert predictions.columns == ["service_date", "counter_id", "target_ts", "horizon", *NUMBERS, "basis"]
    for name in NUMBERS:
        assert predictions.schema[name] == pl.Float64
        assert predictions[name].null_count() == 0
        assert predictions[name].is_finite().all()
        assert predictions[name].min() >= 0
    ends = ["lower_90", "lower_80", "forecast", "upper_80", "upper_90"]
    for low, high in pairwise(ends):
        assert (predictions[low] <= predictions[high]).all()


def test_the_model_beats_the_baseline(predictions: pl.DataFrame, counts: pl.DataFrame) -> None:
    accuracy = accuracy_by_horizon(predictions, counts)
    assert list(accuracy) == list(range(1, 8))
    assert accuracy[1].r2 > 0.75
    assert accuracy[1].skill > 0


def test_intervals_hold_about_what_they_promise(predictions: pl.DataFrame, counts: pl.DataFrame) -> None:
    scored = join_truth(predictions, counts)
    for coverage in (80, 90):
        inside = scored["hourly_count"].is_between(scored[f"lower_{coverage}"], scored[f"upper_{coverage}"])
        assert abs(float(inside.mean()) - coverage / 100) < 0.1  # type: ignore[arg-type]


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ahead=st.integers(1, (LAST - TRAINED_UNTIL).days),
    seed=st.integers(0, 2**32 - 1),
    factor=st.sampled_from([0, 1, 1000]),
)
def test_neither_features_nor_forecasts_see_what_is_counted_from_the_issue_date_on(
    model: Forecaster, counts: pl.DataFrame, ahead: int, seed: int, factor: int
) -> None:
    day = TRAINED_UNTIL + ahead * DAY
    future = pl.col("service_date") >= day
    changed = counts.with_columns(
        hourly_count=pl.when(future)
        .then(pl.col("hourly_count").shuffle(seed=seed) * factor)
        .otherwise("hourly_count")
    )
    one, two = (build_features(frame, [day]) for frame in (counts, changed))
    assert_frame_equal(one, two, check_exact=True)
    issued, other = (
        model.issue(features, frame, model.holdout.select(ERROR_COLUMNS))[0]
        for features, frame in ((one, counts), (two, changed))
    )
    assert_frame_equal(issued, other, check_exact=True)


def test_the_same_data_and_seed_give_the_same_model(
    training: pl.DataFrame, known: pl.DataFrame, model: Forecaster, tmp_path: Path
) -> None:
    again = Forecaster().fit(training.sample(fraction=1, shuffle=True, seed=1), known, CONFIG)
    rows = training.tail(2000)
    assert_frame_equal(again.predict(rows), model.predict(rows), check_exact=True)
    model.save(tmp_path / "one")
    again.save(tmp_path / "two")
    for name in (CALIBRATION_FILE, LOG_LINEAR_FILE, MODEL_FILE, TREES_FILE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    other = Forecaster().fit(training, known, TrainConfig(**{**CONFIG.__dict__, "seed": 5}))
    assert not other.predict(rows).equals(model.predict(rows))


def test_files_bring_back_the_same_forecaster(
    model: Forecaster, training: pl.DataFrame, tmp_path: Path
) -> None:
    model.save(tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        AFFLUENCE_FILE,
        CALIBRATION_FILE,
        LOG_LINEAR_FILE,
        MODEL_FILE,
        TREES_FILE,
    ]
    loaded = Forecaster.load(tmp_path / "m")
    rows = training.tail(2000)
    assert_frame_equal(loaded.predict(rows), model.predict(rows), check_exact=True)
    assert loaded.config == model.config
    assert loaded.affluence == model.affluence
    assert set(loaded.affluence.thresholds) == set(training["counter_id"])
    assert loaded.holdout.is_empty()


def test_rows_are_forecast_one_by_one_as_together(model: Forecaster, training: pl.DataFrame) -> None:
    rows = training.tail(50)
    alone = pl.concat([model.predict(rows[i : i + 1]) for i in range(50)])
    assert_frame_equal(alone, model.predict(rows), check_exact=True)
    assert model.predict(rows.clear()).is_empty()


def test_damaged_files_are_one_clear_error(model: Forecaster, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="train it again"):
        Forecaster.load(tmp_path / "nothing")
    model.save(tmp_path)
    stored = json.loads((tmp_path / CALIBRATION_FILE).read_text())
    stored["features"] = stored["features"][1:]
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(stored))
    with pytest.raises(PermanentError, match="features"):
        Forecaster.load(tmp_path)
    model.save(tmp_path)
    (tmp_path / TREES_FILE).write_bytes(b"not a model")
    with pytest.raises(PermanentError, match="train it again"):
        Forecaster.load(tmp_path)


def test_a_counter_never_seen_gets_a_finite_forecast(model: Forecaster, counts: pl.DataFrame) -> None:
    features = build_features(counts, [LAST], counter_ids=["new"])
    forecast = model.predict(features)
    assert forecast.height == 168
    assert all(forecast[name].is_finite().all() for name in NUMBERS)
    assert forecast["forecast"].mean() > 1
    noon = forecast.filter(features["hour"] == 17)["forecast"].mean()
    night = forecast.filter(features["hour"] == 3)["forecast"].mean()
    assert noon > 3 * night  # type: ignore[operator]


def test_a_forecast_ends_at_the_cap(model: Forecaster, training: pl.DataFrame) -> None:
    low = training.tail(500).with_columns(max_56d=pl.lit(3.0, dtype=pl.Float32))
    assert model.predict(low)["forecast"].max() == pytest.approx(3.0 * CONFIG.cap_factor)


def test_training_needs_truth(training: pl.DataFrame, known: pl.DataFrame) -> None:
    with pytest.raises(PermanentError, match="counted hour"):
        Forecaster().fit(training, known.clear(), CONFIG)
    with pytest.raises(PermanentError, match="not trained"):
        Forecaster().predict(training)


@pytest.mark.parametrize("days", [1, 4, 31])
def test_a_short_history_is_learned_from_and_held_out_in_proportion(
    training: pl.DataFrame, known: pl.DataFrame, days: int
) -> None:
    last = training.filter(pl.col("service_date") > TRAINED_UNTIL - days * DAY)
    trained = Forecaster().fit(last, known, CONFIG)
    assert trained.config.calibration_days == {1: 1, 4: 1, 31: 10}[days]
    assert trained.holdout.is_empty() == (days < 31)
    assert trained.predict(last)["forecast"].is_finite().all()


def test_importances_name_every_feature(model: Forecaster) -> None:
    shares = model.feature_importance()
    assert set(shares) == set(FEATURE_COLUMNS)
    assert all(shares[name] == 0 for name in UNUSED_FEATURES)
    assert sum(shares.values()) == pytest.approx(100)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_vintages_are_issued_one_by_one_as_together(
    model: Forecaster, predictions: pl.DataFrame, counts: pl.DataFrame
) -> None:
    days = days_between(TRAINED_UNTIL + DAY, LAST)
    features = build_features(counts, days)
    together, calibrations = model.issue(features, counts, model.holdout)
    assert list(calibrations) == days
    assert_frame_equal(together.drop(ENDS), predictions.drop(ENDS), check_exact=True)
    assert not together.equals(predictions)  # the intervals follow
    for day in (days[0], days[9]):
        before = join_truth(together.filter(pl.col("service_date") < day), counts).select(ERROR_COLUMNS)
        errors = pl.concat([model.holdout.select(ERROR_COLUMNS), before])
        # What is not counted yet, changed beyond recognition.
        known = counts.with_columns(
            hourly_count=pl.when(pl.col("service_date") >= day).then(9_999).otherwise(pl.col("hourly_count"))
        )
        unknown = errors.with_columns(
            hourly_count=pl.when(target_day() >= day).then(9_999.0).otherwise(pl.col("hourly_count"))
        )
        alone, calibration = model.issue(features.filter(service_date=day), known, unknown)
        assert calibration == {day: calibrations[day]}
        assert_frame_equal(alone, together.filter(service_date=day), check_exact=True)
        given = model.predict(features.filter(service_date=day), calibrations[day])
        assert_frame_equal(given, alone, check_exact=True)
    assert model.issue(features.clear(), counts, model.holdout)[0].is_empty()
