"""The season-adjusted pieces: which days to compare with, what is tested, which counter left its city."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from bike_assets.core.drift import (
    DriftPolicy,
    alarms,
    counter_drift,
    per_counter_drift,
    reference_days,
    skill_fell,
    summarise_drift,
    testable_columns,
)
from bike_assets.core.errors import ContractError, PermanentError
from bike_assets.core.features import FEATURE_COLUMNS
from bike_assets.core.skill import SkillChange

MONDAY = date(2024, 2, 5)
WEEK = [MONDAY + timedelta(days=i) for i in range(7)]


def span(first: date, last: date) -> list[date]:
    return [first + timedelta(days=i) for i in range((last - first).days + 1)]


def counts(days: list[date], levels: dict[str, float], seed: int = 1) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    hours = pl.DataFrame({"service_date": days}).join(
        pl.DataFrame({"local_hour": range(24)}, schema={"local_hour": pl.Int32}), how="cross"
    )
    shape = np.tile(1 + np.sin(np.arange(24) / 24 * 2 * np.pi), len(days))
    return pl.concat(
        hours.with_columns(
            counter_id=pl.lit(name),
            hourly_count=pl.Series(generator.poisson(level * shape), dtype=pl.Int64),
        )
        for name, level in levels.items()
    )


CITY = {f"c{i}": 80.0 + 10 * i for i in range(12)}
BEFORE = span(MONDAY - timedelta(weeks=4), MONDAY - timedelta(days=1))


def test_the_reference_is_the_same_weeks_a_year_earlier() -> None:
    chosen = reference_days(current_days=WEEK, available_days=span(date(2022, 12, 1), WEEK[-1]))
    assert chosen.kind == "year_earlier"
    assert len(chosen.days) == 21
    assert chosen.days[7:14] == tuple(day - timedelta(days=364) for day in WEEK)
    assert [day.weekday() for day in chosen.days[7:14]] == [day.weekday() for day in WEEK]


def test_without_a_year_the_most_recent_same_weekdays_serve() -> None:
    current = [WEEK[0], WEEK[5]]
    chosen = reference_days(current_days=current, available_days=span(date(2023, 11, 1), WEEK[-1]))
    assert chosen.kind == "preceding"
    assert len(chosen.days) == 8
    assert {day.weekday() for day in chosen.days} == {0, 5}
    assert max(chosen.days) == MONDAY - timedelta(days=2)
    assert min(chosen.days) == MONDAY - timedelta(weeks=4)


@pytest.mark.parametrize("first", [date(2022, 1, 1), date(2023, 12, 1)])
def test_the_reference_never_overlaps_the_window_nor_lies_after_its_start(first: date) -> None:
    # A long window with later days available: every one of them must be refused.
    current = span(MONDAY, MONDAY + timedelta(days=27))
    chosen = reference_days(current_days=current, available_days=span(first, date(2024, 12, 31)))
    assert chosen.days
    assert max(chosen.days) < MONDAY


def test_the_other_season_is_no_reference() -> None:
    summer = span(date(2023, 6, 1), date(2023, 8, 31))
    assert reference_days(current_days=WEEK, available_days=summer).kind == "none"


def test_a_weekday_without_any_earlier_day_leaves_no_fair_reference() -> None:
    mondays = [MONDAY - timedelta(weeks=i) for i in range(1, 5)]
    assert reference_days(current_days=WEEK, available_days=mondays).days == ()
    assert reference_days(current_days=[MONDAY], available_days=mondays).kind == "preceding"


def test_a_year_with_holes_serves_up_to_the_coverage() -> None:
    year = [day - timedelta(days=364) for day in WEEK]
    assert reference_days(current_days=WEEK, available_days=year[:6]).kind == "year_earlier"
    assert reference_days(current_days=WEEK, available_days=year[:5]).kind == "none"


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ContractError, match="no day"):
        reference_days(current_days=[], available_days=WEEK)


def health(
    changes: dict[str, float],
    *,
    days: int = 7,
    state: str = "alive",
    deviations: dict[str, float] | None = None,
) -> pl.DataFrame:
    """A week of COUNTER_HEALTH in which every counter has one change of level, ten deviations a unit of log."""
    rows = [
        {
            "service_date": LAST - timedelta(days=back),
            "counter_id": name,
            "state": state if name == "c0" else "alive",
            "known_hours": 24,
            "reason": "as told",
            "change": change,
            "deviation": (deviations or {}).get(name, 20 * float(np.log(change))),
        }
        for name, change in changes.items()
        for back in range(days)
    ]
    return pl.DataFrame(rows)


LAST = MONDAY - timedelta(days=1)
CALM = {f"c{i}": 1 + 0.02 * (-1) ** i for i in range(20)}


def test_a_calm_week_has_no_drift() -> None:
    found = counter_drift(health(CALM), LAST, DriftPolicy())
    assert found.height == 20
    assert found["drifted"].sum() == 0


def test_a_counter_that_left_its_city_is_found_and_comes_first() -> None:
    found = counter_drift(health({**CALM, "c3": 0.5}), LAST, DriftPolicy())
    assert found.filter("drifted")["counter_id"].to_list() == ["c3"]
    assert found.row(0, named=True)["counter_id"] == "c3"
    assert found.row(0, named=True)["windows"] == 3


@pytest.mark.parametrize(("days", "drifts"), [(1, False), (3, True)])
def test_one_window_is_not_enough_and_two_are(days: int, drifts: bool) -> None:
    moved = health({"c3": 0.5}, days=days)
    before = health(CALM).filter(
        (pl.col("counter_id") != "c3") | (pl.col("service_date") <= LAST - timedelta(days))
    )
    found = counter_drift(pl.concat([before, moved]), LAST, DriftPolicy())
    assert (found.filter(counter_id="c3")["drifted"].item()) is drifts


def test_a_sure_but_small_change_is_no_drift() -> None:
    found = counter_drift(health({**CALM, "c3": 0.9}, deviations={"c3": -40.0}), LAST, DriftPolicy())
    assert found["drifted"].sum() == 0
    strict = DriftPolicy(counter_fall=0.05)
    assert (
        counter_drift(health({**CALM, "c3": 0.9}, deviations={"c3": -40.0}), LAST, strict)["drifted"].sum()
        == 1
    )


def test_many_tests_raise_the_bar() -> None:
    # Benjamini and Hochberg: at 5 % and 20 counters, a lone finding needs p <= 0.0025.
    alone = health({**CALM, "c3": 0.5}, deviations={"c3": -6.0})  # p = 0.004
    assert counter_drift(alone, LAST, DriftPolicy())["drifted"].sum() == 0
    few = alone.filter(pl.col("counter_id").is_in(["c1", "c2", "c3"]))
    assert counter_drift(few, LAST, DriftPolicy())["drifted"].sum() == 1


def test_p_values_are_those_of_students_t_with_four_degrees() -> None:
    found = counter_drift(health({"c1": 0.5}, deviations={"c1": -2.776445}), LAST, DriftPolicy())
    assert found["p_value"].item() == pytest.approx(0.05, abs=1e-6)


def test_a_dead_counter_is_an_incident_and_no_drift() -> None:
    week = health({**CALM, "c0": 0.01}, state="dead")
    counters = counter_drift(week, LAST, DriftPolicy())
    assert counters["drifted"].sum() == 0
    told = alarms(None, counters, week, LAST)
    assert [(alarm.about, alarm.which) for alarm in told] == [("incident", "c0")]
    assert told[0].why == "dead on 7 of the last 7 days: as told"


def test_a_new_counter_is_told_and_those_of_the_first_day_are_not() -> None:
    old = health(CALM, days=30)
    week = pl.concat([old, health({"new": 1.0}, days=3)])
    told = alarms(None, counter_drift(week, LAST, DriftPolicy()), week, LAST)
    assert [(alarm.about, alarm.which) for alarm in told] == [("new_counter", "new")]


def test_lost_skill_needs_size_certainty_and_lost_accuracy() -> None:
    policy = DriftPolicy()
    assert skill_fell(SkillChange(0.25, 0.10, 0.01, 28, 0.2), policy)
    assert not skill_fell(SkillChange(0.25, 0.101, 0.01, 28, 0.2), policy)
    assert not skill_fell(SkillChange(0.25, 0.10, 0.0101, 28, 0.2), policy)
    assert not skill_fell(SkillChange(0.25, 0.10, 0.01, 28, 0.199), policy), "the baseline alone got better"
    assert not skill_fell(SkillChange(0.25, 0.10, 0.01, 28, None), policy)
    assert not skill_fell(SkillChange(None, None, None, 3), policy)


@pytest.mark.parametrize(
    "wrong",
    [
        {"skill_p": 0.0},
        {"network_change": 1.0},
        {"sudden_z": -1.0},
        {"error_rise": 0.0},
        {"slow_z": float("nan")},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(PermanentError, match=next(iter(wrong))):
        DriftPolicy(**wrong)


def test_an_ordinary_week_drifts_nowhere() -> None:
    found = per_counter_drift(current=counts(WEEK, CITY, seed=2), reference=counts(BEFORE, CITY))
    assert found.height == len(CITY)
    assert found["drifted"].sum() == 0
    assert found["status"].unique().to_list() == ["tested"]


def test_a_city_that_moves_as_one_drifts_nowhere() -> None:
    strike = {name: level * 1.8 for name, level in CITY.items()}
    found = per_counter_drift(current=counts(WEEK, strike, seed=2), reference=counts(BEFORE, CITY))
    assert found["drifted"].sum() == 0
    assert found["city_change"][0] == pytest.approx(1.8, rel=0.05)


def test_a_counter_that_stays_while_its_city_moves_is_found() -> None:
    strike = {name: level * 1.8 for name, level in CITY.items()} | {"c3": CITY["c3"]}
    found = per_counter_drift(current=counts(WEEK, strike, seed=2), reference=counts(BEFORE, CITY))
    assert found.filter("drifted")["counter_id"].to_list() == ["c3"]
    assert found["change"][0] == pytest.approx(1, rel=0.05)
    assert found["z"][0] < 0


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_a_counter_that_leaves_its_city_is_found_and_its_direction_told(factor: float) -> None:
    # Also what a swap of reference and current would turn round.
    moved = {**CITY, "c3": CITY["c3"] * factor}
    found = per_counter_drift(current=counts(WEEK, moved, seed=2), reference=counts(BEFORE, CITY))
    assert found.filter("drifted")["counter_id"].to_list() == ["c3"]
    first = found.row(0, named=True)
    assert first["counter_id"] == "c3"
    assert first["change"] == pytest.approx(factor, rel=0.05, abs=0.01)
    assert (first["z"] > 0) is (factor > 1)
    assert (first["n_current"], first["n_reference"]) == (7 * 24, 28 * 24)


def test_reference_and_current_cannot_be_given_by_position() -> None:
    frame = counts(WEEK, CITY)
    with pytest.raises(TypeError):
        per_counter_drift(frame, frame)  # type: ignore[misc]
    with pytest.raises(TypeError):
        reference_days(WEEK, WEEK)  # type: ignore[misc]


def test_an_outage_hides_in_the_reference_but_shows_in_the_window() -> None:
    reference = counts(BEFORE, CITY).with_columns(
        is_outage=(pl.col("counter_id") == "c5") & (pl.col("service_date") >= BEFORE[14])
    )
    reference = reference.with_columns(
        hourly_count=pl.when("is_outage").then(0).otherwise("hourly_count").cast(pl.Int64)
    )
    now = counts(WEEK, CITY, seed=2).with_columns(is_outage=pl.lit(False))
    assert per_counter_drift(current=now, reference=reference)["drifted"].sum() == 0
    dead = now.with_columns(
        is_outage=pl.col("counter_id") == "c6",
        hourly_count=pl.when(pl.col("counter_id") == "c6").then(0).otherwise("hourly_count").cast(pl.Int64),
    )
    found = per_counter_drift(current=dead, reference=reference)
    assert found.filter("drifted")["counter_id"].to_list() == ["c6"]


def test_a_spike_is_a_matter_of_quality_and_not_of_drift() -> None:
    now = counts(WEEK, CITY, seed=2).with_row_index().with_columns(is_spike=pl.col("index") == 30)
    now = now.with_columns(
        hourly_count=pl.when("is_spike").then(900_000).otherwise("hourly_count").cast(pl.Int64)
    )
    assert per_counter_drift(current=now, reference=counts(BEFORE, CITY))["drifted"].sum() == 0


def test_counters_that_came_or_went_are_told_apart_and_not_tested() -> None:
    now = pl.concat(
        [
            counts(WEEK, {**{f"c{i}": 100.0 for i in range(5)}, "new": 100.0}),
            counts(WEEK[:1], {"short": 100.0}).head(23),
            counts(WEEK, {"null": 100.0}).with_columns(hourly_count=pl.lit(None, pl.Int64)),
        ]
    )
    reference = counts(BEFORE, {**{f"c{i}": 100.0 for i in range(5)}, "gone": 9.0, "short": 9.0, "null": 9.0})
    found = per_counter_drift(current=now, reference=reference)
    status = dict(found.select("counter_id", "status").iter_rows())
    assert (status["new"], status["gone"]) == ("no_reference", "no_current")
    assert (status["short"], status["null"]) == ("too_few_hours", "no_current")
    untested = found.filter(pl.col("status") != "tested")
    assert untested["drifted"].sum() == 0
    assert untested["z"].null_count() == untested.height == 4


def test_a_missing_column_is_named_with_its_side() -> None:
    frame = counts(WEEK, CITY)
    with pytest.raises(ContractError, match="local_hour is missing from the reference"):
        per_counter_drift(current=frame, reference=frame.drop("local_hour"))
    with pytest.raises(ContractError, match="hourly_count is missing from the current"):
        per_counter_drift(current=frame.drop("hourly_count"), reference=frame)


def test_identifiers_times_and_calendar_columns_are_never_tested() -> None:
    schema = {
        "service_date": pl.Date(),
        "counter_id": pl.String(),
        "site_id": pl.Int64(),
        "target_ts": pl.Datetime("us", "UTC"),
        "latitude": pl.Float64(),
        "horizon": pl.Int32(),
        "local_hour": pl.Int32(),
        "level_window_28d": pl.Float32(),
        "hourly_count": pl.Int64(),
        "is_outage": pl.Boolean(),
    }
    assert testable_columns(schema) == ["level_window_28d", "hourly_count"]


def test_of_the_models_inputs_the_measured_are_tested_and_the_calendar_is_not() -> None:
    tested = testable_columns({name: pl.Float32() for name in FEATURE_COLUMNS})
    calendar = ("holiday", "school", "bridge", "year_", "day_type", "horizon")
    assert not [name for name in tested if any(word in name for word in calendar)]
    assert {"hour", "weekday"}.isdisjoint(tested)
    assert {"mean4", "level_28d", "day_lag_1", "week_lag_1", "weekend_ratio"} <= set(tested)


def test_a_summary_counts_the_drifted_share() -> None:
    summary = summarise_drift(
        {"a": 0.1, "b": 0.0999, "c": 0.7, "d": 0.0},
        n_reference=5,
        n_current=6,
        threshold=0.1,
        method="wasserstein",
        untestable=["e"],
    )
    assert summary.drifted == ("c", "a")
    assert summary.share == 0.5
    assert (summary.n_reference, summary.n_current, summary.untestable) == (5, 6, ("e",))
    empty = summarise_drift({}, n_reference=0, n_current=0, threshold=0.1, method="wasserstein")
    assert empty.share is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1])
def test_a_score_that_is_no_distance_is_refused(bad: float) -> None:
    with pytest.raises(ContractError, match="score of a"):
        summarise_drift({"a": bad}, n_reference=1, n_current=1, threshold=0.1, method="wasserstein")
