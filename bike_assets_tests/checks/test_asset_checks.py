"""Asset checks: they look at the right days, warn, and never fail a run, whatever goes wrong with them."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import polars as pl
import pytest

from bike_assets.assets.ingestion import store
from bike_assets.checks import asset_checks
from bike_assets.checks.asset_checks import WINDOW_DAYS, build_asset_checks, checked_days, run_days
from bike_assets.checks.expectations import SuiteResult
from bike_assets.core.contracts import RAW_COUNTS
from bike_assets.core.errors import TransientError
from bike_assets.core.freshness import Freshness, evaluate_freshness
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.settings import Settings
from bike_assets_tests.tables import batch, day_rows

DAY = date(2024, 1, 10)
NOW = datetime(2024, 1, 11, 6, tzinfo=UTC)


@pytest.fixture
def warehouse(tmp_path: Path) -> DuckDBWarehouse:
    return DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def evaluate(
    instance: dg.DagsterInstance,
    warehouse: DuckDBWarehouse,
    *wanted: str,
    tags: dict[str, str] | None = None,
) -> dict[str, dg.AssetCheckEvaluation]:
    """Run checks alone, as from the UI; their results by `asset:name`."""
    checks = [
        check
        for check in build_asset_checks(Settings(home=Path(warehouse.path).parent))
        if {f"{key.asset_key.to_user_string()}:{key.name}" for key in check.check_keys} & set(wanted)
    ]
    definitions = dg.Definitions(asset_checks=checks, resources={"warehouse": warehouse})
    job = dg.define_asset_job(
        "checks", selection=dg.AssetSelection.checks(*(key for check in checks for key in check.check_keys))
    )
    result = (
        dg.Definitions.merge(definitions, dg.Definitions(jobs=[job]))
        .resolve_job_def("checks")
        .execute_in_process(
            instance=instance,
            tags=tags,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    )
    assert result.success
    return {
        f"{found.asset_key.to_user_string()}:{found.check_name}": found
        for found in result.get_asset_check_evaluations()
    }


class Context:
    """The part of a check's context that says which partitions its run is about."""

    def __init__(self, tags: dict[str, str]) -> None:
        self.run = type("Run", (), {"tags": tags})()


ONE_DAY = Context({"dagster/partition": "2024-01-10"})
RANGE = Context(
    {"dagster/asset_partition_range_start": "2023-06-01", "dagster/asset_partition_range_end": "2024-01-10"}
)
ALONE = Context({})


def test_the_days_of_a_run_are_its_partitions() -> None:
    assert run_days(ONE_DAY) == (DAY, DAY)  # type: ignore[arg-type]
    assert run_days(RANGE) == (date(2023, 6, 1), DAY)  # type: ignore[arg-type]
    assert run_days(ALONE) is None  # type: ignore[arg-type]


def test_a_check_of_a_long_range_looks_at_its_end(warehouse: DuckDBWarehouse) -> None:
    assert checked_days(ONE_DAY, warehouse, RAW_COUNTS) == (DAY, DAY)  # type: ignore[arg-type]
    assert checked_days(RANGE, warehouse, RAW_COUNTS) == (DAY - timedelta(days=WINDOW_DAYS - 1), DAY)  # type: ignore[arg-type]


def test_a_check_started_alone_looks_at_the_newest_weeks(warehouse: DuckDBWarehouse) -> None:
    assert checked_days(ALONE, warehouse, RAW_COUNTS) == (None, None)  # type: ignore[arg-type]

    store(warehouse, batch(day_rows(DAY)), DAY, DAY, now=NOW)

    assert checked_days(ALONE, warehouse, RAW_COUNTS) == (DAY - timedelta(days=WINDOW_DAYS - 1), DAY)  # type: ignore[arg-type]


def test_every_table_has_its_suite_and_all_warn_only() -> None:
    names = {
        f"{key.asset_key.to_user_string()}:{key.name}"
        for check in build_asset_checks(Settings())
        for key in check.check_keys
    }

    assert names == {
        "raw_counts:expectations",
        "cleaned_counts:expectations",
        "counter_health:expectations",
        "filled_counts:expectations",
        "features:expectations",
        "predictions:expectations",
        "raw_counts:freshness",
        "counter_health:incidents",
        "forecast_accuracy:beats_mean_of_four_weeks",
    }
    assert not any(spec.blocking for check in build_asset_checks(Settings()) for spec in check.check_specs)


def test_checks_over_nothing_end_in_warnings_and_not_in_a_failed_run(
    instance: dg.DagsterInstance, warehouse: DuckDBWarehouse
) -> None:
    found = evaluate(
        instance,
        warehouse,
        "raw_counts:freshness",
        "counter_health:incidents",
        "forecast_accuracy:beats_mean_of_four_weeks",
    )

    assert len(found) == 3
    for result in found.values():
        assert not result.passed
        assert result.severity is dg.AssetCheckSeverity.WARN
        assert result.description


def test_an_exception_in_a_check_is_its_result(
    instance: dg.DagsterInstance, warehouse: DuckDBWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object, **__: object) -> SuiteResult:
        raise TransientError("the file is open\nin another process")

    monkeypatch.setattr(asset_checks, "run_suite", busy)
    store(warehouse, batch(day_rows(DAY)), DAY, DAY, now=NOW)

    found = evaluate(instance, warehouse, "raw_counts:expectations")["raw_counts:expectations"]

    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.WARN
    assert found.description == "the check itself failed: the file is open in another process"


def test_a_suite_is_given_the_partitions_of_its_run(
    instance: dg.DagsterInstance, warehouse: DuckDBWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[pl.DataFrame, pl.DataFrame]] = []

    def look(name: str, frame: pl.DataFrame, history: pl.DataFrame) -> SuiteResult:
        seen.append((frame, history))
        raise TransientError("seen")

    monkeypatch.setattr(asset_checks, "run_suite", look)
    days = [DAY + timedelta(days=offset) for offset in range(4)]
    store(warehouse, batch(*(day_rows(day) for day in days)), days[0], days[-1], now=NOW)

    evaluate(
        instance,
        warehouse,
        "raw_counts:expectations",
        tags={
            "dagster/asset_partition_range_start": days[1].isoformat(),
            "dagster/asset_partition_range_end": days[2].isoformat(),
        },
    )

    ((frame, before),) = seen
    assert frame.get_column("service_date").unique().sort().to_list() == days[1:3]
    assert before.get_column("service_date").unique().to_list() == days[:1], (
        "what is usual comes from the days before"
    )


@pytest.mark.parametrize(
    ("newest", "now", "silent"),
    [
        ("2024-06-11 23:00", "2024-06-12 07:00", 0),  # yesterday's counts are there
        ("2024-06-10 23:00", "2024-06-12 07:00", 1),  # not published yet
        (
            "2024-06-07 23:00",
            "2024-06-12 23:59",
            2,
        ),  # since Friday: Monday and Tuesday, Wednesday has not ended
        ("2024-06-07 23:00", "2024-06-13 00:00", 3),
        (
            "2024-03-28 23:00",
            "2024-04-02 23:59",
            1,
        ),  # Easter, Sunday of 23 hours: Good Friday alone
        ("2024-10-25 23:00", "2024-10-28 23:59", 0),  # a weekend of 49 hours
        ("2024-10-25 23:00", "2024-10-29 00:00", 1),
        ("2024-04-30 23:00", "2024-05-14 07:00", 6),  # of May: the 1st, 8th and 9th are holidays
    ],
)
def test_working_days_that_ended_without_a_count_are_silent(newest: str, now: str, silent: int) -> None:
    last, present = (
        datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Paris")) for text in (newest, now)
    )

    age = (present.astimezone(UTC) - last.astimezone(UTC)) / timedelta(days=1)

    assert evaluate_freshness(last, now=present, max_days=silent + 1) == Freshness(age, silent, is_fresh=True)
    assert evaluate_freshness(last, now=present, max_days=silent) == Freshness(age, silent, is_fresh=False)


def test_no_counts_are_not_fresh() -> None:
    assert evaluate_freshness(None, now=NOW, max_days=3) == Freshness(None, None, is_fresh=False)


@pytest.mark.parametrize(
    ("partition", "fresh"), [("2024-01-10", True), ("2024-01-14", True), ("2024-01-15", False)]
)
def test_freshness_of_a_partition_is_judged_at_that_days_end(
    instance: dg.DagsterInstance, warehouse: DuckDBWarehouse, partition: str, fresh: bool
) -> None:
    store(warehouse, batch(day_rows(DAY)), DAY, DAY, now=NOW)

    found = evaluate(instance, warehouse, "raw_counts:freshness", tags={"dagster/partition": partition})

    assert found["raw_counts:freshness"].passed is fresh


@pytest.mark.parametrize(
    ("squared_error", "baseline", "passed"),
    [(50.0, 100.0, True), (100.0, 100.0, False), (120.0, 100.0, False)],
)
def test_a_forecast_must_beat_the_mean_of_four_weeks_at_every_horizon(
    instance: dg.DagsterInstance,
    warehouse: DuckDBWarehouse,
    squared_error: float,
    baseline: float,
    passed: bool,
) -> None:
    with warehouse.connect() as connection:
        connection.execute("CREATE SCHEMA bike_traffic_analytics")
        connection.execute(
            "CREATE TABLE bike_traffic_analytics.forecast_accuracy AS "
            "SELECT * FROM (VALUES (DATE '2024-01-10', 1, 24, 10.0, 100.0), (DATE '2024-01-10', 2, 24, ?, ?), "
            # Older than four weeks: says nothing about now.
            "(DATE '2023-01-10', 1, 24, 9000.0, 1.0)) "
            "AS t(service_date, horizon, hours, squared_error_sum, mean4_squared_error_sum)",
            [squared_error, baseline],
        )

    found = evaluate(instance, warehouse, "forecast_accuracy:beats_mean_of_four_weeks")

    assert found["forecast_accuracy:beats_mean_of_four_weeks"].passed is passed
