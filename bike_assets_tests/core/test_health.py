"""Counter health: every state from the fault that makes it, nothing from the future, no alarm for weather."""

from collections.abc import Callable
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.core.calendar import days_between
from bike_assets.core.contracts import COUNTER_HEALTH, COUNTER_INCIDENTS
from bike_assets.core.errors import PermanentError
from bike_assets.core.health import (
    HEALTH_COLUMNS,
    LOOKBACK_DAYS,
    NOT_LEARNED,
    UNHEALTHY,
    HealthPolicy,
    State,
    counter_health,
    incidents,
    of_healthy_days,
    without,
)
from bike_assets_tests.core.synthetic import city

LAST = date(2024, 4, 14)
"""Two weeks after the spring clock change."""
FIRST = LAST - timedelta(days=LOOKBACK_DAYS + 20)
FAULT = LAST - timedelta(days=6)
"""The seven days up to the last one are broken."""

Fault = Callable[[pl.DataFrame], pl.DataFrame]


@pytest.fixture(scope="module")
def counts() -> pl.DataFrame:
    return city(FIRST, LAST, counters=6, seed=3)


def broken(counts: pl.DataFrame, value: pl.Expr, counter: str = "c03", since: date = FAULT) -> pl.DataFrame:
    """Another count at one counter from a day on."""
    faulty = (pl.col("counter_id") == counter) & (pl.col("service_date") >= since)
    return counts.with_columns(
        hourly_count=pl.when(faulty).then(value).otherwise("hourly_count").cast(pl.Int64)
    )


def state_of(health: pl.DataFrame, day: date = LAST, counter: str = "c03") -> str:
    return str(health.filter(service_date=day, counter_id=counter)["state"].item())


def halved(seed: int = 0) -> pl.Expr:
    rng = np.random.default_rng(seed)
    return pl.col("hourly_count").map_batches(
        lambda values: pl.Series(rng.binomial(values.to_numpy(), 0.5)), return_dtype=pl.Int64
    )


def test_an_ordinary_city_is_alive_in_every_week_of_its_seasons(counts: pl.DataFrame) -> None:
    health = counter_health(counts, LAST - timedelta(days=20), LAST)

    assert COUNTER_HEALTH.violations(health) == []
    assert health.height == 21 * 6
    assert set(health["state"]) == {State.ALIVE}
    assert health["change"].is_between(0.75, 1.3).all()


@pytest.mark.parametrize(
    ("value", "state", "reason"),
    [
        (pl.lit(0), State.DEAD, "24 hours of zero where"),
        (halved(), State.DRIFTING, "% of its usual level over seven days"),
        (pl.col("hourly_count") * 2, State.DRIFTING, "% of its usual level over seven days"),
        (pl.lit(37), State.STUCK, "the same count"),
        (pl.lit(None), State.SILENT, "nothing published for 7 days"),
        (pl.when(pl.col("local_hour") < 6).then("hourly_count").otherwise(0), State.DEAD, "zeros in most"),
    ],
)
def test_a_fault_of_seven_days_is_found_and_named(
    counts: pl.DataFrame, value: pl.Expr, state: State, reason: str
) -> None:
    health = counter_health(broken(counts, value), LAST, LAST)

    assert state_of(health) == state
    assert reason in health.filter(counter_id="c03")["reason"].item()
    assert set(health.filter(pl.col("counter_id") != "c03")["state"]) == {State.ALIVE}


def test_dead_silent_and_stuck_are_found_on_their_first_day(counts: pl.DataFrame) -> None:
    for value, state in ((pl.lit(0), State.DEAD), (pl.lit(None), State.SILENT), (pl.lit(37), State.STUCK)):
        assert state_of(counter_health(broken(counts, value, since=LAST), LAST, LAST)) == state


def test_rows_that_are_missing_are_as_silent_as_rows_of_null(counts: pl.DataFrame) -> None:
    missing = counts.filter((pl.col("counter_id") != "c03") | (pl.col("service_date") < FAULT))

    assert_frame_equal(
        counter_health(missing, LAST, LAST), counter_health(broken(counts, pl.lit(None)), LAST, LAST)
    )


@pytest.mark.parametrize("level", [0.5, 1.8])
def test_what_the_whole_city_does_alarms_nobody(counts: pl.DataFrame, level: float) -> None:
    moved = counts.with_columns(
        hourly_count=pl.when(pl.col("service_date") >= FAULT)
        .then((pl.col("hourly_count") * level).round())
        .otherwise("hourly_count")
        .cast(pl.Int64)
    )

    health = counter_health(moved, FAULT, LAST)

    assert set(health["state"]) == {State.ALIVE}
    expected, counted = health["expected_count"].sum(), health["daily_count"].sum()
    assert counted == pytest.approx(expected, rel=0.1), "the city's move is in what is expected"


def test_a_day_is_judged_by_the_past_alone_and_the_same_alone_or_in_a_range(counts: pl.DataFrame) -> None:
    faulty = broken(counts, halved(), since=LAST - timedelta(days=15))
    whole = counter_health(faulty, LAST - timedelta(days=12), LAST)

    for back in (0, 5, 12):
        day = LAST - timedelta(days=back)
        known = faulty.filter(pl.col("service_date").is_between(day - timedelta(days=LOOKBACK_DAYS), day))
        assert_frame_equal(counter_health(known, day, day), whole.filter(service_date=day), check_exact=True)


def test_a_counter_that_returned_is_alive_after_two_good_days(counts: pl.DataFrame) -> None:
    back = LAST - timedelta(days=2)
    value = pl.when(pl.col("service_date") < back).then(halved()).otherwise("hourly_count")
    health = counter_health(broken(counts, value, since=back - timedelta(days=8)), back, LAST)

    assert state_of(health, LAST) == State.ALIVE


def test_a_new_counter_is_alive_before_it_has_a_past(counts: pl.DataFrame) -> None:
    young = counts.filter((pl.col("counter_id") != "c03") | (pl.col("service_date") >= FAULT))
    health = counter_health(young, LAST, LAST).filter(counter_id="c03")

    assert health["state"].item() == State.ALIVE
    assert health["change"].item() is None


def test_one_counter_alone_has_no_city_and_is_held_against_itself(counts: pl.DataFrame) -> None:
    alone = broken(counts, halved()).filter(pl.col("counter_id") == "c03")

    assert state_of(counter_health(alone, LAST, LAST)) == State.DRIFTING
    assert state_of(counter_health(broken(alone, pl.lit(0)), LAST, LAST)) == State.DEAD


def test_no_counts_no_rows_and_a_missing_column_is_named(counts: pl.DataFrame) -> None:
    assert counter_health(counts.head(0), FIRST, LAST).is_empty()
    with pytest.raises(PermanentError, match="local_hour"):
        counter_health(counts.drop("local_hour"), LAST, LAST)
    assert set(HEALTH_COLUMNS) <= set(counts.columns)


@pytest.mark.parametrize("change", [{"fall": 1.0}, {"rise": 0.0}, {"persistent_days": 8}, {"silent_days": 0}])
def test_a_policy_that_makes_no_sense_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(PermanentError, match="counter health"):
        HealthPolicy(**change)  # type: ignore[arg-type]


def test_counts_without_the_days_of_a_state_are_all_others(counts: pl.DataFrame) -> None:
    health = counter_health(broken(counts, pl.lit(37)), FAULT, LAST)

    kept = without(counts, health, NOT_LEARNED)

    gone = counts.join(kept, on=["counter_id", "ts_utc"], how="anti")
    assert set(gone["counter_id"]) == {"c03"}
    assert gone["service_date"].unique().sort().to_list() == days_between(FAULT, LAST)
    assert_frame_equal(without(counts, health, [State.DEAD]), counts)
    assert_frame_equal(without(counts, health.head(0), UNHEALTHY), counts)


def test_a_model_is_not_judged_by_the_day_a_counter_came_back(counts: pl.DataFrame) -> None:
    health = counter_health(broken(counts, pl.lit(0)), FAULT, LAST).filter(
        pl.col("service_date") <= FAULT + timedelta(days=1)
    )
    rows = counts.select("counter_id", "service_date").unique()

    gone = rows.join(of_healthy_days(rows, health), on=rows.columns, how="anti")

    assert set(gone["counter_id"]) == {"c03"}
    assert gone["service_date"].sort().to_list() == days_between(FAULT, FAULT + timedelta(days=2))
    assert_frame_equal(of_healthy_days(rows, health.head(0)), rows)


def test_a_forecast_is_judged_only_if_its_counter_was_alive_the_day_before_it_was_issued() -> None:
    health = states(("a", "alive", 3), ("a", "dead", 2), ("a", "alive", 15), ("b", "alive", 20))
    start = date(2024, 1, 1)
    rows = pl.DataFrame(
        [
            (counter, start + timedelta(days=issue), start + timedelta(days=issue + ahead))
            for counter in ("a", "b")
            for issue in range(1, 12)
            for ahead in range(7)
        ],
        schema=["counter_id", "issue_date", "service_date"],
        orient="row",
    )

    gone = rows.join(of_healthy_days(rows, health, "issue_date"), on=rows.columns, how="anti")

    assert set(gone["counter_id"]) == {"a"}
    dead = [start + timedelta(days=3), start + timedelta(days=4)]
    assert_frame_equal(
        gone,
        rows.filter(
            pl.col("counter_id") == "a",
            pl.col("service_date").is_in(dead) | (pl.col("issue_date") - timedelta(days=1)).is_in(dead),
        ),
        check_row_order=False,
    )


def states(*runs: tuple[str, str, int]) -> pl.DataFrame:
    """Health of counters, given as runs of (counter, state, days) from 1 January on."""
    rows, day = [], {}
    for counter, state, days in runs:
        for _ in range(days):
            day[counter] = day.get(counter, date(2023, 12, 31)) + timedelta(days=1)
            rows.append((day[counter], counter, state, f"{state} on {day[counter]}"))
    return pl.DataFrame(rows, schema=["service_date", "counter_id", "state", "reason"], orient="row")


def test_an_incident_is_opened_once_and_closed_when_the_counter_returns() -> None:
    found = incidents(
        states(("a", "alive", 3), ("a", "dead", 2), ("a", "alive", 1), ("a", "dead", 4), ("a", "alive", 5))
    )

    assert COUNTER_INCIDENTS.violations(found) == []
    row = found.row(0, named=True)
    assert found.height == 1, "one good day between does not end it"
    assert (row["service_date"], row["last_bad_day"], row["closed_on"]) == (
        date(2024, 1, 4),
        date(2024, 1, 10),
        date(2024, 1, 11),
    )
    assert (row["status"], row["state"], row["days"]) == ("closed", "dead", 6)
    assert row["reason"] == "dead on 2024-01-10"


def test_an_incident_stays_open_until_the_counter_is_alive_for_three_days() -> None:
    for good_days, status in ((0, "open"), (2, "open"), (3, "closed")):
        found = incidents(states(("a", "alive", 3), ("a", "stuck", 2), ("a", "alive", good_days)))
        assert found["status"].to_list() == [status]


def test_incidents_of_counters_are_their_own_and_a_later_one_is_another() -> None:
    found = incidents(
        states(
            ("a", "dead", 2), ("a", "alive", 3), ("a", "drifting", 2), ("a", "alive", 3),
            ("b", "alive", 10),
            ("c", "silent", 6),
        )
    )  # fmt: skip

    assert found.select("counter_id", "state", "status").rows() == [
        ("a", "dead", "closed"),
        ("c", "silent", "removed"),
        ("a", "drifting", "closed"),
    ]
    assert incidents(states(("b", "alive", 3))).is_empty()


def test_what_a_holiday_does_to_counters_of_leisure_and_of_commuters_alarms_neither() -> None:
    """Two weeks of school holidays: commuters stay away, leisure doubles, and one counter is halved beside that."""
    days = days_between(FIRST, LAST)
    draw = np.random.default_rng(5)
    holiday = [day > LAST - timedelta(days=12) for day in days]
    frames = []
    for number in range(12):
        leisure = number % 3 == 0
        weekend = np.array([day.weekday() >= 5 for day in days])
        level = np.where(weekend, 60.0 if leisure else 22.0, 50.0)
        level = (
            level * np.where(holiday, 1.6 if leisure else 0.75, 1.0) * np.exp(draw.normal(0, 0.06, len(days)))
        )
        if number == 7:
            level = level * np.where([day >= FAULT for day in days], 0.5, 1.0)
        frames.append(
            pl.DataFrame(
                {
                    "service_date": [day for day in days for _ in range(24)],
                    "local_hour": np.tile(np.arange(24), len(days)),
                    "hourly_count": draw.poisson(np.repeat(level, 24)),
                }
            ).with_columns(pl.col("local_hour").cast(pl.Int32), counter_id=pl.lit(f"c{number:02}"))
        )
    health = counter_health(pl.concat(frames), LAST - timedelta(days=12), LAST)

    assert set(health.filter(pl.col("state") != State.ALIVE)["counter_id"]) == {"c07"}
    assert state_of(health, counter="c07") == State.DRIFTING
