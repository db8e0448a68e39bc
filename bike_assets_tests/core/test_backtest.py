"""Backtests see what production would have seen, score every counted hour, and judge what they scored."""

from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from bike_assets.core.backtest import (
    GROUPINGS,
    NO_HISTORY,
    BacktestConfig,
    evaluate,
    fit,
    issue,
    plan_origins,
    told_weather,
    training_data,
    verdict,
)
from bike_assets.core.errors import PermanentError
from bike_assets.core.features import WARM_UP_DAYS
from bike_assets.core.metrics import join_truth, score
from bike_assets.core.model import TrainConfig
from bike_assets_tests.core.synthetic import city

FIRST, LAST = date(2024, 5, 1), date(2024, 7, 14)
CONFIG = BacktestConfig(
    date(2024, 7, 1), LAST, training=TrainConfig(iterations=20, members=2, max_rows=4_000, calibration_days=7)
)


def _flagged(counts: pl.DataFrame) -> pl.DataFrame:
    return counts.with_columns(
        is_outage=(pl.col("counter_id") == "c01") & (pl.col("service_date") == date(2024, 7, 3)),
        is_spike=pl.lit(False),
        is_stuck=pl.lit(False),
        is_believable=pl.lit(True),
    )


@pytest.fixture(scope="module")
def counts() -> pl.DataFrame:
    return _flagged(city(FIRST - timedelta(days=60), LAST))


@pytest.fixture(scope="module")
def scored(counts: pl.DataFrame) -> pl.DataFrame:
    return _run(counts)


def _run(counts: pl.DataFrame) -> pl.DataFrame:
    (origin,) = plan_origins(CONFIG, counts["service_date"].min())  # type: ignore[arg-type]
    data = training_data(counts, origin, CONFIG.training)
    return issue(fit("catboost", data, CONFIG.training), counts, origin, data)


def test_trains_once_or_on_the_first_of_every_month() -> None:
    start = date(2024, 1, 1)
    once = BacktestConfig(date(2024, 5, 20), date(2024, 7, 10))
    (origin,) = plan_origins(once, start)
    assert (origin.train_until, origin.first, origin.last) == (date(2024, 5, 19), once.first, once.last)
    assert origin.train_from == start + timedelta(days=WARM_UP_DAYS)
    monthly = plan_origins(
        BacktestConfig(once.first, once.last, date(2024, 4, 30), "monthly", window_days=30), start
    )
    assert [(o.train_until, o.first, o.last) for o in monthly] == [
        (date(2024, 4, 30), date(2024, 5, 20), date(2024, 5, 31)),
        (date(2024, 5, 31), date(2024, 6, 1), date(2024, 6, 30)),
        (date(2024, 6, 30), date(2024, 7, 1), date(2024, 7, 10)),
    ]
    assert [(o.train_until - o.train_from).days for o in monthly] == [29, 29, 29]
    assert sum(len(o.issue_dates) for o in monthly) == len(origin.issue_dates)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"last": date(2024, 5, 19)}, "ends before it begins"),
        ({"train_until": date(2024, 5, 20)}, "its own training"),
        ({"window_days": 0}, "at least 1"),
        ({"families": ("prophet",)}, "choose one of catboost"),
    ],
)
def test_an_impossible_backtest_is_refused(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(PermanentError, match=word):
        BacktestConfig(**{"first": date(2024, 5, 20), "last": date(2024, 6, 20), **arguments})  # type: ignore[arg-type]


def test_too_little_history_is_refused() -> None:
    with pytest.raises(PermanentError, match="give older counts"):
        plan_origins(CONFIG, CONFIG.first - timedelta(days=WARM_UP_DAYS))


def test_every_counted_hour_is_scored_at_every_horizon_it_was_forecast_at(
    counts: pl.DataFrame, scored: pl.DataFrame
) -> None:
    days = (LAST - CONFIG.first).days + 1
    for horizon in range(1, 8):
        rows = scored.filter(horizon=horizon)
        assert rows.height == (days - horizon + 1) * 24 * counts["counter_id"].n_unique()
    assert scored.select("service_date", "counter_id", "target_ts").is_duplicated().sum() == 0
    truth = join_truth(scored.drop("hourly_count"), counts)
    assert truth["hourly_count"].to_list() == scored["hourly_count"].to_list()


def test_training_sees_nothing_after_its_end(counts: pl.DataFrame) -> None:
    (origin,) = plan_origins(CONFIG, counts["service_date"].min())  # type: ignore[arg-type]
    later = pl.col("service_date") > origin.train_until
    other = counts.with_columns(
        hourly_count=pl.when(later).then(pl.col("hourly_count") * 3 + 7).otherwise("hourly_count")
    )
    one, two = (training_data(frame, origin, CONFIG.training) for frame in (counts, other))
    assert one.truth["service_date"].max() == origin.train_until
    assert one.features["service_date"].max() == origin.train_until
    for name in ("features", "truth", "counters"):
        assert getattr(one, name).equals(getattr(two, name)), name


@pytest.mark.parametrize("window", [None, 20])
def test_rows_of_an_earlier_training_are_as_good_as_new(counts: pl.DataFrame, window: int | None) -> None:
    config = replace(CONFIG, first=date(2024, 6, 25), retrain="monthly", window_days=window)
    first, last = plan_origins(config, counts["service_date"].min())  # type: ignore[arg-type]
    few = replace(CONFIG.training, max_rows=4_000, recent_days=5)
    earlier = training_data(counts, first, few)
    key = ["service_date", "counter_id", "target_ts"]
    once, anew = (
        training_data(counts, last, few, earlier=given).features.sort(key) for given in (earlier, None)
    )
    assert first.train_until < last.train_until
    assert once.equals(anew)


def test_a_forecast_sees_nothing_from_its_issue_date_on(counts: pl.DataFrame, scored: pl.DataFrame) -> None:
    day = date(2024, 7, 8)
    rng = np.random.default_rng(1)
    shuffled = counts.with_columns(
        hourly_count=pl.when(pl.col("service_date") >= day)
        .then(pl.Series(rng.permutation(counts["hourly_count"].to_numpy())))
        .otherwise("hourly_count")
    )
    known = ["service_date", "counter_id", "target_ts", "forecast", "lower_90", "upper_90", "mean4"]
    other = _run(shuffled)
    before, after = (frame.filter(pl.col("service_date") <= day).select(known) for frame in (scored, other))
    assert before.equals(after)
    assert not scored.select(known).equals(other.select(known))  # later issue dates do see them


def test_training_learns_from_believable_hours_only(counts: pl.DataFrame) -> None:
    (origin,) = plan_origins(CONFIG, counts["service_date"].min())  # type: ignore[arg-type]
    odd = counts.with_columns(is_believable=pl.col("service_date") != date(2024, 6, 20))
    data = training_data(odd, origin, CONFIG.training)
    assert date(2024, 6, 20) not in data.truth["service_date"]


def test_measures_of_the_groups_are_those_of_their_rows(scored: pl.DataFrame) -> None:
    table = evaluate(scored)
    assert set(table["grouping"]) == set(GROUPINGS)
    by_hand = score(*(scored.filter(horizon=3)[name] for name in ("hourly_count", "forecast", "mean4")))
    found = table.filter(rows="all", grouping="horizon", group="3").row(0, named=True)
    assert (found["n"], found["r2"]) == (by_hand.n, pytest.approx(by_hand.r2))
    assert found["skill_mean4"] == pytest.approx(by_hand.skill)
    every = scored.height
    for grouping in GROUPINGS:
        assert table.filter(rows="all", grouping=grouping)["n"].sum() == every, grouping
    trusted = table.filter(rows="trusted", grouping="overall")["n"].item()
    assert trusted == every - 24 * 3  # an outage of a day, forecast by three vintages
    holidays = table.filter(rows="all", grouping="holiday")["group"].to_list()
    assert holidays == ["ordinary", "public holiday", "school holiday"]  # 14 July is one, and a Sunday


def test_baselines_run_beside_every_family() -> None:
    config = BacktestConfig(CONFIG.first, LAST, families=("catboost", "seasonal_naive"))
    assert config.all_families == ("catboost", "seasonal_naive", "mean_of_four_weeks")


def test_a_counter_without_history_is_scored_and_named_so(counts: pl.DataFrame) -> None:
    young = counts.filter((pl.col("counter_id") != "c03") | (pl.col("service_date") >= CONFIG.first))
    table = evaluate(_run(young)).filter(rows="all", grouping="level")
    row = table.filter(group=NO_HISTORY).row(0, named=True)
    assert row["n"] > 0
    assert row["mase"] is None


def test_the_verdict_names_what_the_seasonal_naive_wins(scored: pl.DataFrame) -> None:
    good = verdict(evaluate(scored))
    assert (good.months_lost, good.horizons_lost) == ((), ())
    bad = scored.with_columns(
        forecast=pl.when(pl.col("counter_id") == "c02").then(1e4).otherwise("seasonal_naive"),
        upper_90=pl.when(pl.col("counter_id") == "c02").then(0.0).otherwise(1e6),
    )
    found = verdict(evaluate(bad))
    assert found.counters_won == 0  # equal is not better
    assert "c02" in found.counters_lost
    assert found.months_lost == ("2024-07",)
    assert found.counters_covered_90 == 0  # one covers nothing, the others cover everything


def test_no_truth_is_an_error(scored: pl.DataFrame) -> None:
    with pytest.raises(PermanentError, match="no hour of the period was counted"):
        evaluate(scored.head(0))


def test_what_models_are_told_of_the_weather(counts: pl.DataFrame) -> None:
    (origin,) = plan_origins(CONFIG, counts["service_date"].min())  # type: ignore[arg-type]
    hours = counts.select("service_date", "ts_utc").unique().sort("ts_utc")
    weather = hours.with_columns(
        kind=pl.lit("observed"), temperature_c=pl.lit(20.0), rain_mm=pl.lit(0.0), wind_kmh=pl.lit(5.0)
    )
    assert told_weather(weather, [origin], "none") is None
    assert told_weather(weather.head(0), [origin], "known") is None
    assert told_weather(None, [origin], "observed") is None
    known, perfect = (told_weather(weather, [origin], mode) for mode in ("known", "observed"))
    told = [
        training_data(counts, origin, CONFIG.training, frame).features["temperature"].drop_nulls()
        for frame in (None, known, perfect)
    ]
    assert [values.len() > 0 for values in told] == [False, False, True]  # nobody kept a forecast
