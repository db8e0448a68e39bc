"""Accuracy measures against numbers worked out by hand."""

import math
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bike_assets.core.contracts import UTC_TIMESTAMP
from bike_assets.core.errors import PermanentError
from bike_assets.core.metrics import (
    GEH,
    INTERVAL_COLUMNS,
    accuracy_by_horizon,
    accuracy_table,
    mase_scale,
    score,
)


def test_score_by_hand() -> None:
    m = score(truth=[10, 20, 30], forecast=[12, 18, 33], baseline=[16, 20, 24])
    assert m.n == 3
    assert m.rmse == pytest.approx(math.sqrt(17 / 3))
    assert m.mae == pytest.approx(7 / 3)
    assert m.wape == pytest.approx(7 / 60)
    assert m.r2 == pytest.approx(1 - 17 / 200)
    assert m.rmse_mean4 == pytest.approx(math.sqrt(72 / 3))
    assert m.skill == pytest.approx(1 - math.sqrt(17 / 72))
    assert m.geh5_share == 1.0


def test_geh_by_hand() -> None:
    rows = pl.DataFrame({"hourly_count": [100.0, 0, 0, 50], "forecast": [150.0, 0, 30, 50]})
    assert rows.select(GEH).to_series().to_list() == pytest.approx(
        [math.sqrt(2 * 2500 / 250), 0.0, math.sqrt(60), 0.0]
    )


def test_geh_share_counts_hours_below_five() -> None:
    m = score(truth=[100, 100], forecast=[150, 200], baseline=[100, 90])
    assert m.geh5_share == 0.5


def test_forecasting_the_mean_explains_nothing_and_the_truth_everything() -> None:
    assert score([1, 2, 3], [2, 2, 2], [2, 2, 2]).r2 == pytest.approx(0)
    perfect = score([1, 2, 3], [1, 2, 3], [2, 2, 2])
    assert (perfect.r2, perfect.skill, perfect.rmse) == (1.0, 1.0, 0.0)


def test_what_is_undefined_is_nan_and_not_a_made_up_number() -> None:
    m = score([0, 0], [1, 1], [0, 0])
    assert math.isnan(m.r2)
    assert math.isnan(m.wape)
    assert math.isnan(m.skill)


@given(st.lists(st.floats(0, 1e4), min_size=2, max_size=30), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(truth: list[float], random: object) -> None:
    order = list(range(len(truth)))
    random.shuffle(order)  # type: ignore[attr-defined]
    forecast, baseline = np.array(truth) * 0.9 + 1, np.array(truth)[::-1]
    one = score(truth, forecast, baseline)
    two = score(np.array(truth)[order], forecast[order], baseline[order])
    assert one.rmse == pytest.approx(two.rmse)
    assert one.geh5_share == two.geh5_share


@pytest.mark.parametrize(
    ("truth", "forecast", "word"),
    [
        ([], [], "0, 0"),
        ([1.0], [1.0, 2.0], "1, 2"),
        ([1.0, math.nan], [1.0, 2.0], "truth"),
        ([1.0], [math.inf], "forecast"),
    ],
)
def test_bad_rows_are_refused(truth: list[float], forecast: list[float], word: str) -> None:
    with pytest.raises(PermanentError, match=word):
        score(truth, forecast, truth)


def test_accuracy_by_horizon_joins_the_hour_and_keeps_outages() -> None:
    start = datetime(2024, 1, 15, tzinfo=UTC)
    hours = [start + timedelta(hours=i) for i in range(4)]
    predictions = pl.DataFrame(
        {
            "service_date": [date(2024, 1, 15)] * 8,
            "counter_id": ["a"] * 8,
            "target_ts": hours + hours,
            "horizon": [1] * 4 + [2] * 4,
            "forecast": [10.0, 10, 10, 10, 20, 20, 20, 20],
            "mean4": [8.0] * 8,
            "seasonal_naive": [5.0] * 8,
        },
        schema_overrides={"target_ts": UTC_TIMESTAMP, "horizon": pl.Int32},
    )
    truth = pl.DataFrame(
        {"counter_id": ["a"] * 4, "ts_utc": hours, "hourly_count": [10, 0, None, 20]},
        schema_overrides={"ts_utc": UTC_TIMESTAMP},
    )
    found = accuracy_by_horizon(predictions, truth)
    assert list(found) == [1, 2]
    assert found[1].n == 3  # the hour without a count has no truth, the zero has
    assert found[1].rmse == pytest.approx(math.sqrt(200 / 3))
    assert found[2].rmse == pytest.approx(math.sqrt((100 + 400) / 3))
    assert accuracy_by_horizon(predictions, truth, "seasonal_naive")[1].rmse == pytest.approx(
        math.sqrt(275 / 3)
    )


def _scored(**columns: list[float]) -> pl.DataFrame:
    """Rows as a backtest scores them; what is not given is null."""
    frame = pl.DataFrame(columns)
    absent = {"mean4", "seasonal_naive", "mase_scale", *INTERVAL_COLUMNS} - set(frame.columns)
    return frame.with_columns(pl.lit(None, pl.Float64).alias(name) for name in absent)


def test_every_measure_by_hand() -> None:
    rows = _scored(
        hourly_count=[10, 20, 30],
        forecast=[12, 18, 33],
        mean4=[16, 20, 24],
        seasonal_naive=[10, 26, 30],
        mase_scale=[2, 4, 5],
        lower_80=[11, 15, 30],
        upper_80=[14, 19, 34],
        lower_90=[9, 14, 29],
        upper_90=[15, 21, 36],
    )
    found = accuracy_table(rows).row(0, named=True)
    assert found["n"] == 3
    assert found["truth_mean"] == 20
    assert found["bias"] == pytest.approx(1)
    assert found["bias_share"] == pytest.approx(3 / 60)
    assert found["mase"] == pytest.approx((2 / 2 + 2 / 4 + 3 / 5) / 3)
    assert found["coverage_80"] == pytest.approx(1 / 3)  # an end belongs to its interval
    assert found["coverage_90"] == 1
    assert found["width_80"] == pytest.approx((3 + 4 + 4) / 3)
    assert found["skill_mean4"] == pytest.approx(1 - math.sqrt(17 / 72))
    assert found["skill_seasonal_naive"] == pytest.approx(1 - math.sqrt(17 / 36))
    lower_80, upper_80 = (0.9 * 1 + 0.1 * 5 + 0), (0.1 * 4 + 0.9 * 1 + 0.1 * 4)
    lower_90, upper_90 = (0.05 * 1 + 0.05 * 6 + 0.05 * 1), (0.05 * 5 + 0.05 * 1 + 0.05 * 6)
    assert found["pinball"] == pytest.approx((lower_80 + upper_80 + lower_90 + upper_90) / 3 / 4)


def test_groups_are_scored_apart_and_without_intervals_there_is_no_coverage() -> None:
    rows = _scored(hourly_count=[1, 2, 5, 5], forecast=[1, 2, 6, 6], mean4=[2, 2, 5, 5])
    found = accuracy_table(rows.with_columns(group=pl.Series([1, 1, 2, 2])), ["group"])
    assert found["group"].to_list() == [1, 2]
    assert found["r2"].to_list() == [1.0, None]
    assert found["skill_mean4"].to_list() == [1.0, None]
    assert (
        found["coverage_90"].to_list() == found["pinball"].to_list() == found["mase"].to_list() == [None] * 2
    )


def test_mase_divides_by_the_seasonal_naive_of_each_counter() -> None:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    counts = {"a": [1, 4, None], "b": [7, 7, 7], "c": [9]}
    truth = pl.DataFrame(
        [
            (name, start + timedelta(days=7 * week), n)
            for name, ns in counts.items()
            for week, n in enumerate(ns)
        ],
        schema={"counter_id": pl.String, "ts_utc": UTC_TIMESTAMP, "hourly_count": pl.Int64},
        orient="row",
    )
    assert mase_scale(truth).rows() == [("a", 3.0)]
