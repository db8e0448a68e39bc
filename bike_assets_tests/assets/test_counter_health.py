"""The asset `counter_health`: one run over many days, incidents told once, a plot on the newest day alone."""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.assets.counter_health import build_counter_health, news
from bike_assets.core.contracts import CLEANED_COUNTS, COUNTER_HEALTH, COUNTER_INCIDENTS
from bike_assets.core.health import LOOKBACK_DAYS, State
from bike_assets.partitions import service_days
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.runner import materialize
from bike_assets_tests.core.synthetic import city
from bike_assets_tests.tables import BETA_BACKFILL_POLICY, cleaned

pytestmark = BETA_BACKFILL_POLICY

LAST = date(2024, 4, 14)
DEAD_FROM = LAST - timedelta(days=3)
START = LAST - timedelta(days=100)


@pytest.fixture(scope="module")
def counts() -> pl.DataFrame:
    frame = city(START, LAST, counters=4, seed=1)
    dead = (pl.col("counter_id") == "c02") & (pl.col("service_date") >= DEAD_FROM)
    return cleaned(frame.with_columns(hourly_count=pl.when(dead).then(0).otherwise("hourly_count")))


@pytest.fixture
def warehouse(tmp_path: Path, counts: pl.DataFrame) -> DuckDBWarehouse:
    warehouse = DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"))
    warehouse.replace(CLEANED_COUNTS, counts, START, LAST)
    return warehouse


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def run(warehouse: DuckDBWarehouse, instance: dg.DagsterInstance, first: date, last: date) -> list[str]:
    """Materialise the days; the warnings of the run."""
    definitions = dg.Definitions(
        assets=[build_counter_health(service_days(START, LAST))], resources={"warehouse": warehouse}
    )
    materialize(definitions, instance, ["counter_health"], days=(first, last))
    (record, *_) = instance.get_run_records()
    return [
        entry.user_message
        for entry in instance.all_logs(record.dagster_run.run_id)
        if entry.level == 30  # warning
    ]


def test_a_dead_counter_is_one_incident_told_once_and_closed_when_it_returns(
    warehouse: DuckDBWarehouse, instance: dg.DagsterInstance, counts: pl.DataFrame
) -> None:
    (opened,) = run(warehouse, instance, LAST - timedelta(days=9), LAST - timedelta(days=1))
    assert opened.startswith(f"counter c02 is dead since {DEAD_FROM}: 24 hours of zero where ")

    assert run(warehouse, instance, LAST, LAST) == [], "the second day of an incident is no news"

    incidents = warehouse.read(COUNTER_INCIDENTS)
    assert incidents.select("counter_id", "service_date", "status", "days").rows() == [
        ("c02", DEAD_FROM, "open", 4)
    ]
    states = warehouse.read(COUNTER_HEALTH)
    assert states.height == 10 * 4
    assert states.filter(pl.col("state") == State.DEAD).height == 4

    # A late correction brings the counts: the counter was never dead, and the incident is gone.
    mended = counts.with_columns(
        hourly_count=pl.when(pl.col("counter_id") == "c02")
        .then(pl.col("hourly_count").max().over("service_date", "local_hour"))
        .otherwise("hourly_count")
    )
    warehouse.replace(CLEANED_COUNTS, mended, START, LAST)
    assert run(warehouse, instance, LAST - timedelta(days=9), LAST) == []
    assert "dead" not in set(warehouse.read(COUNTER_INCIDENTS)["state"])


def test_the_newest_day_of_a_range_shows_table_and_plot_and_running_it_again_changes_nothing(
    warehouse: DuckDBWarehouse, instance: dg.DagsterInstance
) -> None:
    first = LAST - timedelta(days=2)
    run(warehouse, instance, first, LAST)
    once = warehouse.read(COUNTER_HEALTH), warehouse.read(COUNTER_INCIDENTS)
    shown = {
        event.asset_materialization.partition: event.asset_materialization.metadata
        for event in instance.fetch_materializations(dg.AssetKey("counter_health"), limit=10).records
        if event.asset_materialization
    }

    assert sorted(shown) == [str(first + timedelta(days=k)) for k in range(3)]
    newest = shown[str(LAST)]
    assert [record.data["state"] for record in newest["not_alive"].value.records] == ["dead"]  # type: ignore[union-attr]
    assert str(newest["states"].value).startswith("![")
    assert "states" not in shown[str(first)]

    run(warehouse, instance, first, LAST)
    assert_frame_equal(warehouse.read(COUNTER_HEALTH), once[0])
    assert_frame_equal(warehouse.read(COUNTER_INCIDENTS), once[1])


def test_days_judged_one_by_one_are_those_judged_at_once(
    warehouse: DuckDBWarehouse, instance: dg.DagsterInstance
) -> None:
    run(warehouse, instance, LAST - timedelta(days=1), LAST)
    at_once = warehouse.read(COUNTER_HEALTH)
    for day in (LAST, LAST - timedelta(days=1)):
        run(warehouse, instance, day, day)

    assert_frame_equal(warehouse.read(COUNTER_HEALTH), at_once)
    assert (LAST - START).days < LOOKBACK_DAYS, "a short history is no error"


def test_news_are_what_opened_and_what_ended() -> None:
    def table(*rows: tuple[date, str, date | None, str]) -> pl.DataFrame:
        frame = pl.DataFrame(
            rows, schema=["service_date", "counter_id", "closed_on", "status"], orient="row",
            schema_overrides={"closed_on": pl.Date},
        )  # fmt: skip
        return COUNTER_INCIDENTS.conform(
            frame.with_columns(
                state=pl.lit("dead"), days=pl.lit(2), last_bad_day=pl.lit(LAST), reason=pl.lit("zeros")
            )
        )

    before = table((START, "a", None, "open"), (START, "b", None, "open"), (START, "c", LAST, "closed"))
    now = table(
        (START, "a", LAST, "closed"),
        (START, "b", None, "removed"),
        (START, "c", LAST, "closed"),
        (LAST, "d", None, "open"),
        (LAST, "e", LAST, "closed"),  # opened and closed in the days of one backfill: no news
    )

    assert news(before, now) == [
        f"counter d is dead since {LAST}: zeros",
        f"counter a: dead since {START}, alive again on {LAST}",
        f"counter b: dead since {START}, taken for removed",
    ]
    assert news(now, now) == []
