"""Intervals hold what they promise, follow the errors of late, and know nothing of later ones."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bike_assets.core.calendar import target_date
from bike_assets.core.intervals import (
    COVERAGES,
    ERROR_COLUMNS,
    WINDOW_DAYS,
    Calibration,
    calibrate,
    interval,
    recalibrate,
)

FIRST, ISSUE = date(2024, 1, 1), date(2024, 3, 20)
DAY = timedelta(days=1)


def vintages(noise: float = 5.0, since: date = FIRST, loud: str = "") -> pl.DataFrame:
    """Errors of fourteen hours a day at five counters and two horizons; those of `loud` are three times as large."""
    rng = np.random.default_rng(12)
    rows = []
    for issue in (since + k * DAY for k in range((ISSUE - since).days + 20)):
        for counter in ("a", "b", "c", "d", "e"):
            for horizon in (1, 4):
                day = target_date(issue, horizon)
                for hour in range(4, 18):
                    rows.append(
                        (issue, counter, datetime(day.year, day.month, day.day, hour, tzinfo=UTC), horizon)
                    )
    frame = pl.DataFrame(
        rows,
        schema={
            "service_date": pl.Date,
            "counter_id": pl.String,
            "target_ts": pl.Datetime("us", "UTC"),
            "horizon": pl.Int32,
        },
        orient="row",
    )
    forecast = rng.uniform(20, 200, frame.height)
    wide = noise * np.where(frame["counter_id"].to_numpy() == loud, 3.0, 1.0)
    truth = np.maximum(forecast + rng.normal(0, 1, frame.height) * wide, 0).round()
    return frame.with_columns(hourly_count=pl.Series(truth), forecast=pl.Series(forecast)).select(
        ERROR_COLUMNS
    )


def covered(calibration: Calibration, errors: pl.DataFrame, coverage: int) -> pl.DataFrame:
    low, high = interval(
        calibration,
        errors["forecast"].to_numpy(),
        errors["horizon"].to_numpy(),
        coverage,
        errors["counter_id"],
    )
    truth = errors["hourly_count"].to_numpy()
    return errors.with_columns(inside=pl.Series((truth >= low) & (truth <= high)))


@pytest.mark.parametrize("coverage", COVERAGES)
def test_exchangeable_errors_are_covered_as_promised(coverage: int) -> None:
    errors = vintages(noise=12.0)
    known, later = (
        errors.filter(part) for part in (pl.col("service_date") < ISSUE, pl.col("service_date") >= ISSUE)
    )
    assert covered(calibrate(known), later, coverage)["inside"].mean() == pytest.approx(
        coverage / 100, abs=0.03
    )


def test_a_counter_that_errs_more_gets_wider_intervals() -> None:
    errors = vintages(loud="c")
    calibration = recalibrate(errors, ISSUE, Calibration())
    later = covered(calibration, errors.filter(pl.col("service_date") >= ISSUE), 90)
    shares = dict(later.group_by("counter_id").agg(pl.col("inside").mean()).iter_rows())
    assert calibration.counters[90]["c"] > 1.3 > 1.0 > calibration.counters[90]["a"]
    assert all(abs(share - 0.9) < 0.08 for share in shares.values()), shares


def test_after_a_change_of_regime_the_intervals_follow() -> None:
    calm, wild = vintages(noise=3.0), vintages(noise=30.0, since=ISSUE - WINDOW_DAYS * DAY)
    errors = pl.concat([calm.filter(pl.col("service_date") < ISSUE - WINDOW_DAYS * DAY), wild])
    before = calibrate(calm.filter(pl.col("service_date") < ISSUE - WINDOW_DAYS * DAY))
    later = errors.filter(pl.col("service_date") >= ISSUE)
    assert covered(before, later, 90)["inside"].mean() < 0.5  # type: ignore[operator]
    followed = covered(recalibrate(errors, ISSUE, before), later, 90)["inside"].mean()
    assert followed == pytest.approx(0.9, abs=0.05)


@settings(max_examples=10, deadline=None)
@given(back=st.integers(0, 40), seed=st.integers(0, 1000))
def test_errors_that_are_not_known_yet_change_nothing(back: int, seed: int) -> None:
    issue = ISSUE - back * DAY
    errors = ERRORS
    day = pl.col("service_date") + pl.duration(days=pl.col("horizon") - 1)
    changed = pl.concat(
        [errors.filter(day < issue), errors.filter(day >= issue).with_columns(hourly_count=pl.lit(1e6))]
    ).sample(fraction=1, shuffle=True, seed=seed)
    assert recalibrate(changed, issue, Calibration()) == recalibrate(errors, issue, Calibration())


ERRORS = vintages()


def test_newer_errors_weigh_more() -> None:
    day = pl.col("service_date")
    calm, wild = (vintages(noise=noise).filter(day < ISSUE) for noise in (3.0, 30.0))
    half = ISSUE - WINDOW_DAYS // 2 * DAY
    calmed = pl.concat([wild.filter(day < half), calm.filter(day >= half)])
    roused = pl.concat([calm.filter(day < half), wild.filter(day >= half)])
    now_calm, now_wild = (recalibrate(errors, ISSUE, Calibration()) for errors in (calmed, roused))
    for (_, low), (_, high) in zip(now_calm.quantiles[80][0], now_wild.quantiles[80][0], strict=True):
        assert low < 0.8 * high


def test_with_few_days_the_training_stands_and_a_dense_day_weighs_no_more() -> None:
    errors, training = vintages(), Calibration(rows=1)
    assert recalibrate(errors, FIRST + 10 * DAY, training) is training
    day = pl.col("service_date").is_between(FIRST, FIRST + 30 * DAY)
    once = calibrate(errors.filter(day))
    # A day sampled more densely is no more of a day.
    dense = calibrate(
        pl.concat([errors.filter(day), errors.filter(pl.col("service_date") == FIRST).sort("horizon")])
    )
    for one, two in zip(once.quantiles[90][0], dense.quantiles[90][0], strict=True):
        assert one == pytest.approx(two, rel=0.06)


def test_json_brings_back_the_same_calibration() -> None:
    calibration = calibrate(ERRORS)
    assert Calibration.from_json(calibration.to_json()) == calibration
