"""A counter with little history is forecast from its neighbours, at a level of its own, and says so."""

from datetime import date, timedelta

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.core.features import build_features
from bike_assets.core.newcomers import MIN_HISTORY_DAYS
from bike_assets_tests.core.synthetic import city

FIRST, LAST = date(2023, 10, 1), date(2024, 1, 15)
ISSUE = date(2024, 1, 10)
DAY = timedelta(days=1)
POSITIONS = pl.DataFrame(
    {
        "counter_id": ["c00", "c01", "c02", "c03", "new"],
        "latitude": [48.80, 48.90, 48.85, 48.8501, 48.8502],
        "longitude": [2.25, 2.45, 2.35, 2.3501, 2.3502],
    }
)


@pytest.fixture(scope="module")
def counts() -> pl.DataFrame:
    return city(FIRST, LAST)


def level(features: pl.DataFrame, counter: str) -> float:
    return float(features.filter(counter_id=counter)["level_28d"][0])


def with_newcomer(counts: pl.DataFrame, days: int) -> pl.DataFrame:
    """`c03` as it would be had it been installed so many days before the issue date."""
    return counts.filter((pl.col("counter_id") != "c03") | (pl.col("service_date") >= ISSUE - days * DAY))


def test_a_counter_nobody_has_seen_has_its_neighbours_day(counts: pl.DataFrame) -> None:
    features = build_features(counts, [ISSUE], counter_ids=["new"], positions=POSITIONS)
    assert features["counter_id"].unique().to_list() == ["new"]
    assert features["history_days"].unique().to_list() == [0.0]
    whole = build_features(counts, [ISSUE], positions=POSITIONS)
    lenders = [level(whole, name) for name in ("c02", "c03")]
    assert min(lenders) * 0.7 < level(features, "new") < max(lenders)
    for name in ("week_mean_clean", "type_ewm", "own_ratio_7d", "max_56d"):
        assert features[name].null_count() == 0
    assert features["mean4"].unique().to_list() == [0.0]  # a baseline borrows nothing
    everywhere = build_features(counts, [ISSUE], counter_ids=["new"])
    assert level(everywhere, "new") < level(features, "new")  # far and quiet counters lend as well


def test_a_few_days_of_its_own_give_the_level(counts: pl.DataFrame) -> None:
    true = level(build_features(counts, [ISSUE]), "c03")
    features = build_features(with_newcomer(counts, 3), [ISSUE], positions=POSITIONS)
    assert level(features, "c03") == pytest.approx(true, rel=0.35)
    mine = features.filter(counter_id="c03").select("target_ts", "week_mean_clean")
    real = (
        build_features(counts, [ISSUE]).filter(counter_id="c03").select("target_ts", truth="week_mean_clean")
    )
    both = mine.join(real, on="target_ts")
    assert both.select(pl.corr("week_mean_clean", "truth")).item() > 0.85


def test_others_are_not_touched_and_history_ends_the_loan(counts: pl.DataFrame) -> None:
    others = pl.col("counter_id") != "c03"
    young = build_features(with_newcomer(counts, 3), [ISSUE], positions=POSITIONS).filter(others)
    alone = build_features(counts.filter(others), [ISSUE], positions=POSITIONS)
    names = [name for name in young.columns if not name.startswith(("network", "week_mean_adjusted"))]
    assert_frame_equal(young.select(names), alone.select(names), check_exact=True)
    for positions in (POSITIONS, None):
        old = build_features(with_newcomer(counts, MIN_HISTORY_DAYS), [ISSUE], positions=positions)
        assert old.filter(counter_id="c03")["type_ewm"].null_count() < 168
        assert old["history_days"].min() >= MIN_HISTORY_DAYS  # type: ignore[operator]
    given = build_features(with_newcomer(counts, MIN_HISTORY_DAYS), [ISSUE], positions=POSITIONS)
    assert_frame_equal(given, old, check_exact=True)


def test_a_newcomer_borrows_the_same_whatever_else_is_asked(counts: pl.DataFrame) -> None:
    known = with_newcomer(counts, 3)
    alone = build_features(known, [ISSUE], counter_ids=["c03"], positions=POSITIONS)
    together = build_features(known, [ISSUE - DAY, ISSUE, ISSUE + DAY], positions=POSITIONS)
    assert_frame_equal(alone, together.filter(counter_id="c03", service_date=ISSUE), check_exact=True)
