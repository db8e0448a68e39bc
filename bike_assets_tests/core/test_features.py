"""Features know the past only, mean what they say, and are the same whoever asks."""

import math
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from bike_assets.core.calendar import days_between
from bike_assets.core.contracts import features_contract
from bike_assets.core.errors import PermanentError
from bike_assets.core.features import (
    COUNT_FEATURES,
    FEATURE_COLUMNS,
    LOOKBACK_DAYS,
    WEATHER_FEATURES,
    build_features,
    sample_rows,
)
from bike_assets.core.quality import dead_days, untrusted
from bike_assets_tests.core.synthetic import city

FIRST, LAST = date(2023, 9, 1), date(2024, 1, 31)
ISSUE = date(2024, 1, 10)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def counts() -> pl.DataFrame:
    return city(FIRST, LAST)


def one(features: pl.DataFrame, counter: str, ts: datetime, column: str) -> float | None:
    found = features.filter((pl.col("counter_id") == counter) & (pl.col("target_ts") == ts))
    assert found.height == 1
    value = found[column].item()
    return None if value is None else float(value)


def count(counts: pl.DataFrame, counter: str, ts: datetime) -> float:
    return float(
        counts.filter((pl.col("counter_id") == counter) & (pl.col("ts_utc") == ts))["hourly_count"].item()
    )


def test_features_keep_their_contract(counts: pl.DataFrame) -> None:
    features = build_features(counts, [ISSUE, ISSUE + DAY])
    features_contract(FEATURE_COLUMNS).check(features)
    assert features.columns == features_contract(FEATURE_COLUMNS).column_names
    assert features.height == 2 * 4 * 168
    assert features.equals(features.sort("service_date", "counter_id", "target_ts"))
    for name in ("mean4", "seasonal_naive", "level_28d"):
        assert features[name].null_count() == 0
    empty = [name for name in FEATURE_COLUMNS if features[name].null_count() == features.height]
    assert empty == list(WEATHER_FEATURES)  # there is no weather here


def test_lags_and_baselines_by_hand(counts: pl.DataFrame) -> None:
    features = build_features(counts, [ISSUE])
    ts = datetime(2024, 1, 12, 7, tzinfo=UTC)  # Friday 08:00 local, horizon 3
    weeks = [count(counts, "c02", ts - timedelta(days=7 * k)) for k in (1, 2, 3, 4)]
    assert one(features, "c02", ts, "horizon") == 3
    assert one(features, "c02", ts, "hour") == 8
    assert one(features, "c02", ts, "weekday") == 4
    assert one(features, "c02", ts, "seasonal_naive") == weeks[0]
    assert one(features, "c02", ts, "mean4") == np.float32(sum(weeks) / 4)
    assert one(features, "c02", ts, "week_lag_2") == weeks[1]
    yesterday = datetime(2024, 1, 9, 7, tzinfo=UTC)
    assert one(features, "c02", ts, "day_lag_1") == count(counts, "c02", yesterday)
    past = counts.filter(
        (pl.col("counter_id") == "c02") & pl.col("service_date").is_between(ISSUE - 28 * DAY, ISSUE - DAY)
    )
    assert one(features, "c02", ts, "level_28d") == pytest.approx(past["hourly_count"].mean(), rel=1e-6)


def test_missing_weeks_are_left_out_of_the_mean_and_nothing_known_is_zero(counts: pl.DataFrame) -> None:
    ts = datetime(2024, 1, 12, 7, tzinfo=UTC)
    gone = [ts - timedelta(days=7), ts - timedelta(days=21)]
    known = counts.filter(~((pl.col("counter_id") == "c02") & pl.col("ts_utc").is_in(gone)))
    features = build_features(known, [ISSUE])
    weeks = [count(counts, "c02", ts - timedelta(days=7 * k)) for k in (2, 4)]
    assert one(features, "c02", ts, "mean4") == np.float32(sum(weeks) / 2)
    assert one(features, "c02", ts, "seasonal_naive") == weeks[0]
    assert one(features, "c02", ts, "week_lag_1") is None
    fresh = build_features(counts, [ISSUE], counter_ids=["c02", "new"]).filter(pl.col("counter_id") == "new")
    assert fresh.height == 168
    assert fresh["mean4"].unique().to_list() == [0.0]
    assert fresh["seasonal_naive"].unique().to_list() == [0.0]
    assert fresh["level_28d"].min() > 1  # the median counter stands in


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), factor=st.sampled_from([0, 3, 1000]))
def test_counts_on_or_after_the_issue_date_change_nothing(
    counts: pl.DataFrame, seed: int, factor: int
) -> None:
    expected = build_features(counts, [ISSUE], horizons=[1, 7])
    future = pl.col("service_date") >= ISSUE
    shuffled = counts.with_columns(
        hourly_count=pl.when(future)
        .then(pl.col("hourly_count").shuffle(seed=seed) * factor)
        .otherwise(pl.col("hourly_count"))
    )
    assert_frame_equal(build_features(shuffled, [ISSUE], horizons=[1, 7]), expected, check_exact=True)
    cut = counts.filter(~future)
    assert_frame_equal(build_features(cut, [ISSUE], horizons=[1, 7]), expected, check_exact=True)


def test_yesterday_is_used(counts: pl.DataFrame) -> None:
    changed = counts.with_columns(
        hourly_count=pl.when(pl.col("service_date") == ISSUE - DAY)
        .then(pl.col("hourly_count") + 50)
        .otherwise(pl.col("hourly_count"))
    )
    before, after = build_features(counts, [ISSUE]), build_features(changed, [ISSUE])
    for name in ("day_lag_1", "own_ratio_1d", "network_ratio_1d", "level_28d"):
        assert not before[name].equals(after[name])


def test_results_do_not_depend_on_other_issue_dates_nor_on_older_history(counts: pl.DataFrame) -> None:
    alone = build_features(counts.filter(pl.col("service_date") >= ISSUE - LOOKBACK_DAYS * DAY), [ISSUE])
    together = build_features(counts, days_between(ISSUE - 9 * DAY, ISSUE + 9 * DAY))
    assert_frame_equal(together.filter(pl.col("service_date") == ISSUE), alone, check_exact=True)


def test_older_counters_that_are_gone_change_nothing(counts: pl.DataFrame) -> None:
    old = counts.filter(pl.col("service_date") < ISSUE - (LOOKBACK_DAYS + 1) * DAY)
    extra = pl.concat([counts, old.with_columns(counter_id=pl.lit("a-") + pl.col("counter_id"))])
    assert_frame_equal(build_features(extra, [ISSUE]), build_features(counts, [ISSUE]), check_exact=True)


def test_lookback_is_enough_and_needed(counts: pl.DataFrame) -> None:
    oldest = counts.filter(pl.col("service_date") >= ISSUE - LOOKBACK_DAYS * DAY)
    assert oldest.height < counts.height
    shorter = counts.filter(pl.col("service_date") >= ISSUE - 30 * DAY)
    assert not build_features(shorter, [ISSUE]).equals(build_features(counts, [ISSUE]))


def test_asking_for_some_counters_gives_their_rows_of_the_whole(counts: pl.DataFrame) -> None:
    whole = build_features(counts, [ISSUE])
    part = build_features(counts, [ISSUE], counter_ids=["c03", "c01"])
    assert_frame_equal(part, whole.filter(pl.col("counter_id").is_in(["c01", "c03"])), check_exact=True)


def test_order_of_rows_and_of_horizons_does_not_matter(counts: pl.DataFrame) -> None:
    expected = build_features(counts, [ISSUE], horizons=[1, 2])
    assert_frame_equal(
        build_features(counts.sample(fraction=1, shuffle=True, seed=3), [ISSUE], horizons=[2, 1]),
        expected,
        check_exact=True,
    )


@pytest.mark.parametrize(("day", "hours"), [(date(2024, 3, 31), 23), (date(2023, 10, 29), 25)])
def test_days_of_clock_changes_have_a_row_for_every_real_hour(day: date, hours: int) -> None:
    features = build_features(city(day - 40 * DAY, day - DAY, counters=1), [day], horizons=[1])
    assert features.height == hours
    assert features["target_ts"].n_unique() == hours
    assert features["hour"].to_list().count(2.0) == hours - 23


def test_the_two_halves_of_the_merged_autumn_hour_are_one_hour_of_their_mean() -> None:
    apart = city(date(2023, 9, 20), date(2023, 11, 4))
    ts = datetime(2023, 11, 5, 1, tzinfo=UTC)  # Sunday 02:00 local
    night = (pl.col("service_date") == date(2023, 10, 29)) & (pl.col("local_hour") == 2)
    both = apart.filter(night & (pl.col("counter_id") == "c03"))
    assert both.height == 2
    features = build_features(apart, [date(2023, 11, 5)], horizons=[1])
    assert one(features, "c03", ts, "seasonal_naive") == both["hourly_count"].mean()
    total = pl.col("hourly_count").sum().over("counter_id", "service_date", "local_hour")
    larger = pl.col("ts_utc").dt.hour() == 0
    halves = apart.with_columns(
        hourly_count=pl.when(night)
        .then(pl.when(larger).then(total - total // 2).otherwise(total // 2))
        .otherwise(pl.col("hourly_count"))
    )
    assert halves["hourly_count"].dtype == pl.Int64
    assert_frame_equal(build_features(halves, [date(2023, 11, 5)], horizons=[1]), features, check_exact=True)


def test_an_outage_is_masked_in_lags_but_not_in_the_baselines(counts: pl.DataFrame) -> None:
    dead = (pl.col("counter_id") == "c03") & pl.col("service_date").is_between(ISSUE - 3 * DAY, ISSUE - DAY)
    broken = counts.with_columns(hourly_count=pl.when(dead).then(0).otherwise(pl.col("hourly_count")))
    features = build_features(broken, [ISSUE]).filter(pl.col("counter_id") == "c03")
    assert features["day_lag_1"].null_count() == features.height
    assert features["dead_days"].unique().to_list() == [3.0]
    assert features["zero_share_1d"].unique().to_list() == [1.0]
    healthy = build_features(counts, [ISSUE]).filter(pl.col("counter_id") == "c03")
    assert features["level_28d"][0] == pytest.approx(healthy["level_28d"][0], rel=0.2)
    ts = datetime(2024, 1, 14, 12, tzinfo=UTC)  # a week after the first dead day
    assert one(features, "c03", ts, "seasonal_naive") == 0
    assert one(features, "c03", ts, "week_lag_1") is None


def test_a_spike_does_not_lift_the_level(counts: pl.DataFrame) -> None:
    spike = (pl.col("counter_id") == "c01") & (pl.col("ts_utc") == datetime(2024, 1, 5, 7, tzinfo=UTC))
    broken = counts.with_columns(hourly_count=pl.when(spike).then(8190).otherwise(pl.col("hourly_count")))
    level = [
        build_features(frame, [ISSUE]).filter(pl.col("counter_id") == "c01")["level_28d"][0]
        for frame in (counts, broken)
    ]
    assert level[1] == pytest.approx(level[0], rel=0.02)


def test_masks_look_backwards_only() -> None:
    rng = np.random.default_rng(1)
    cube = rng.poisson(40, (2, 70, 24)).astype(np.float64)
    cube[0, 50:60] = 0
    whole = untrusted(cube)
    for day in (45, 50, 55, 62):
        assert np.array_equal(untrusted(cube[:, : day + 1]), whole[:, : day + 1])
    assert whole[0, 50:60].all()
    assert not whole[1].any()
    assert dead_days(cube)[0].sum() == 10


def test_a_day_without_any_row_is_not_a_dead_day() -> None:
    cube = np.full((1, 3, 24), np.nan)
    cube[0, 1] = 0
    assert dead_days(cube).tolist() == [[False, True, False]]


def test_null_counts_and_an_empty_past_are_not_an_error(counts: pl.DataFrame) -> None:
    unknown = counts.with_columns(hourly_count=pl.lit(None, dtype=pl.Int64))
    features = build_features(unknown, [ISSUE])
    features_contract(FEATURE_COLUMNS).check(features)
    assert features["level_28d"].is_finite().all()
    assert build_features(counts.clear(), [ISSUE]).is_empty()


def test_wrong_requests_are_refused(counts: pl.DataFrame) -> None:
    with pytest.raises(PermanentError, match="issue date"):
        build_features(counts, [])
    with pytest.raises(PermanentError, match=r"1\.\.7"):
        build_features(counts, [ISSUE], horizons=[8])
    with pytest.raises(PermanentError, match="local_hour"):
        build_features(counts.drop("local_hour"), [ISSUE])


def test_sampling_is_a_property_of_the_row(counts: pl.DataFrame) -> None:
    features = build_features(counts, [ISSUE, ISSUE + DAY])
    kept = sample_rows(features, 0.25, seed=7)
    assert kept.height == pytest.approx(0.25 * features.height, rel=0.15)
    shuffled = sample_rows(features.sample(fraction=1, shuffle=True, seed=1), 0.25, seed=7)
    assert_frame_equal(shuffled.sort("service_date", "counter_id", "target_ts"), kept)
    later = sample_rows(features.filter(pl.col("service_date") == ISSUE + DAY), 0.25, seed=7)
    assert_frame_equal(later, kept.filter(pl.col("service_date") == ISSUE + DAY))
    assert sample_rows(features, 1.0).height == features.height
    assert sample_rows(features, 0.0).is_empty()
    assert not sample_rows(features, 0.25, seed=8).equals(kept)
    smaller = sample_rows(features, 0.1, seed=7)
    assert smaller.join(kept, on=["service_date", "counter_id", "target_ts"], how="anti").is_empty()


def test_sampling_chooses_the_same_rows_on_every_machine() -> None:
    hours = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=i) for i in range(24)]
    frame = pl.DataFrame(
        {
            "counter_id": ["100003096-353242251"] * 24,
            "service_date": [date(2024, 1, 1)] * 24,
            "target_ts": hours,
        }
    )
    assert sample_rows(frame, 0.3, seed=1)["target_ts"].dt.hour().to_list() == [0, 2, 3, 12, 17, 23]


def test_count_features_are_counts(counts: pl.DataFrame) -> None:
    """Twice the traffic: twice every count feature, the same of all ratios (away from the floor)."""
    counts = counts.with_columns(hourly_count=pl.col("hourly_count") + 10)  # a zero could be an outage
    doubled = counts.with_columns(hourly_count=pl.col("hourly_count") * 2)
    one_, two = build_features(counts, [ISSUE]), build_features(doubled, [ISSUE])
    for name in COUNT_FEATURES:
        assert_frame_equal(two.select(name), one_.select(pl.col(name) * 2), rel_tol=1e-5)
    for name in ("network_ratio_1d", "weekday", "level_ratio_7_28"):
        assert_frame_equal(two.select(name), one_.select(name), rel_tol=1e-5)
    assert math.isclose(two["level_28d"].sum(), 2 * one_["level_28d"].sum(), rel_tol=1e-5)
