"""Asset checks: Great Expectations suites, freshness, and the quality of forecasts.

They warn and never fail a run: a broken contract has already stopped the partition before it was written (see
`bike_assets.core.contracts`), and a doubtful forecast is better than none. Each check reads the partitions of
its run; started alone from the UI, it reads the newest weeks.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

import dagster as dg
import polars as pl
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from bike_assets.assets.metadata import sample_table
from bike_assets.checks.expectations import SuiteName, SuiteResult, run_suite
from bike_assets.checks.figures import HISTORY_DAYS
from bike_assets.checks.report import write_report
from bike_assets.core.calendar import hours_of_day
from bike_assets.core.contracts import (
    CLEANED_COUNTS,
    COUNTER_HEALTH,
    COUNTER_INCIDENTS,
    FILLED_COUNTS,
    PREDICTIONS,
    RAW_COUNTS,
    TableContract,
    features_contract,
)
from bike_assets.core.features import FEATURE_COLUMNS
from bike_assets.core.freshness import evaluate_freshness
from bike_assets.resources.warehouse import Warehouse
from bike_assets.settings import Settings
from bike_assets.tags import WAREHOUSE_POOL

WINDOW_DAYS: Final = 28
"""A check of a long range looks at its last four weeks: rules about shares and volumes need no more."""

_HISTORY_COLUMNS: Final = ("service_date", "counter_id", "local_hour", "hourly_count")

_TABLES: Final[dict[SuiteName, TableContract]] = {
    "raw_counts": RAW_COUNTS,
    "cleaned_counts": CLEANED_COUNTS,
    "counter_health": COUNTER_HEALTH,
    "filled_counts": FILLED_COUNTS,
    "features": features_contract(FEATURE_COLUMNS),
    "predictions": PREDICTIONS,
}


def build_asset_checks(settings: Settings) -> list[dg.AssetChecksDefinition]:
    """Every check of the graph but dbt's tests, which dagster-dbt turns into checks itself."""
    return [
        *(_expectations_check(name, settings.reports_dir / "quality") for name in _TABLES),
        _freshness_check(settings.freshness_max_days),
        _incidents_check(),
        _model_quality_check(settings),
    ]


def _expectations_check(table: SuiteName, reports: Path) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=table,
        name="expectations",
        description=f"Great Expectations suite of {table}: types, nulls, ranges, keys, volumes and shares",
        pool=WAREHOUSE_POOL,
    )
    def expectations(context: dg.AssetCheckExecutionContext, warehouse: Warehouse) -> dg.AssetCheckResult:
        return _never_failing(lambda: _suite_result(table, context, warehouse, reports))

    return expectations


def _suite_result(
    table: SuiteName, context: dg.AssetCheckExecutionContext, warehouse: Warehouse, reports: Path
) -> dg.AssetCheckResult:
    contract = _TABLES[table]
    first, last = checked_days(context, warehouse, contract)
    rows = warehouse.read(contract, first, last, order=False)
    history = None
    if first is not None and "hourly_count" in contract.column_names:
        columns = [name for name in _HISTORY_COLUMNS if name in contract.column_names]
        history = warehouse.read(
            contract,
            first - timedelta(days=HISTORY_DAYS),
            first - timedelta(days=1),
            columns=columns,
            order=False,
        )
    result = run_suite(table, rows, history)
    page = write_report(reports, result, first, last, contract.relation)
    return suite_check_result(result, first, last, page)


def suite_check_result(
    result: SuiteResult, first: date | None, last: date | None, page: Path
) -> dg.AssetCheckResult:
    """A suite's result in Dagster's words: broken rules, failing rows of the first of them, and the page with all."""
    broken = pl.DataFrame(
        [
            {"column": failure.column, "rule": failure.rule, "observed": failure.observed}
            for failure in result.failures
        ]
    )
    metadata: dict[str, dg.MetadataValue] = {
        "days": dg.MetadataValue.text(f"{first} to {last}"),
        "rows": dg.MetadataValue.int(result.n_rows),
        "report": dg.MetadataValue.path(page),
        "rules_evaluated": dg.MetadataValue.int(result.evaluated),
        "broken_rules": sample_table(broken, 20) if result.failures else dg.MetadataValue.text("none"),
    }
    rows = next((failure.sample for failure in result.failures if failure.sample), None)
    if rows:
        metadata["failing_rows"] = sample_table(pl.DataFrame(list(rows)), 20)
    return dg.AssetCheckResult(
        passed=result.passed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=metadata,
        description="; ".join(f"{failure.column} {failure.rule}" for failure in result.failures) or None,
    )


def checked_days(
    context: dg.AssetCheckExecutionContext, warehouse: Warehouse, contract: TableContract
) -> tuple[date | None, date | None]:
    """The partitions to look at: those of the run, at most the last four weeks of them."""
    days = run_days(context)
    if days:
        start, end = days
    else:
        newest = warehouse.newest_day(contract)
        if newest is None:
            return None, None
        start, end = newest - timedelta(days=WINDOW_DAYS - 1), newest
    return max(start, end - timedelta(days=WINDOW_DAYS - 1)), end


def run_days(context: dg.AssetCheckExecutionContext) -> tuple[date, date] | None:
    """First and last partition of the run the check is part of; None where it was started alone."""
    tags = context.run.tags
    first = tags.get(ASSET_PARTITION_RANGE_START_TAG) or tags.get(PARTITION_NAME_TAG)
    last = tags.get(ASSET_PARTITION_RANGE_END_TAG) or tags.get(PARTITION_NAME_TAG)
    return (date.fromisoformat(first), date.fromisoformat(last)) if first and last else None


def _freshness_check(max_days: int) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset="raw_counts",
        name="freshness",
        description="Few working days have ended without a count, by the data's own timestamps",
        pool=WAREHOUSE_POOL,
    )
    def freshness(context: dg.AssetCheckExecutionContext, warehouse: Warehouse) -> dg.AssetCheckResult:
        def look() -> dg.AssetCheckResult:
            newest = None
            if last := warehouse.newest_day(RAW_COUNTS):
                newest = max(warehouse.read(RAW_COUNTS, last, last, columns=["ts_utc"])["ts_utc"])
            # A backfill of an old day is as fresh as that day allows; started alone, the check asks about today.
            day = run_days(context)
            now = hours_of_day(day[1])[-1] + timedelta(hours=1) if day else datetime.now(UTC)
            answer = evaluate_freshness(newest, now=now, max_days=max_days)
            return dg.AssetCheckResult(
                passed=answer.is_fresh,
                severity=dg.AssetCheckSeverity.WARN,
                description=None if answer.is_fresh else f"newest count {newest}, judged at {now}",
                metadata={
                    "newest_hour": str(newest),
                    "judged_at": str(now),
                    "max_days": max_days,
                    **({"age_days": answer.age_days} if answer.age_days is not None else {}),
                    **({"silent_days": answer.silent_days} if answer.silent_days is not None else {}),
                },
            )

        return _never_failing(look)

    return freshness


def _incidents_check() -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset="counter_health",
        name="incidents",
        description="No counter is silent, dead, stuck or drifting on the newest day",
        pool=WAREHOUSE_POOL,
    )
    def open_incidents(context: dg.AssetCheckExecutionContext, warehouse: Warehouse) -> dg.AssetCheckResult:
        def look() -> dg.AssetCheckResult:
            _, day = checked_days(context, warehouse, COUNTER_HEALTH)
            if day is None:
                return _nothing_to_check("no day of counter_health is materialised")
            known = warehouse.read(COUNTER_INCIDENTS, last=day)
            ended = (pl.col("closed_on") <= day) | (pl.col("status") == "removed")
            lasting = known.filter(~ended.fill_null(False)).sort("service_date", descending=True)
            return dg.AssetCheckResult(
                passed=lasting.is_empty(),
                severity=dg.AssetCheckSeverity.WARN,
                description="; ".join(
                    f"{row['counter_id']} {row['state']} since {row['service_date']}"
                    for row in lasting.head(10).iter_rows(named=True)
                )
                or None,
                metadata={
                    "day": str(day),
                    "open": lasting.height,
                    "opened_that_day": lasting.filter(pl.col("service_date") == day).height,
                    "closed_that_day": known.filter(pl.col("closed_on") == day).height,
                    "incidents": sample_table(lasting, 50),
                },
            )

        return _never_failing(look)

    return open_incidents


def _nothing_to_check(why: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN, description=why)


def _model_quality_check(settings: Settings) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset="forecast_accuracy",
        name="beats_mean_of_four_weeks",
        description="At every horizon the champion's error is smaller than that of the mean of four weeks",
        pool=WAREHOUSE_POOL,
    )
    def model_quality(warehouse: Warehouse) -> dg.AssetCheckResult:
        def look() -> dg.AssetCheckResult:
            skill = warehouse.query(
                """
                SELECT horizon, sum(hours) AS hours,
                       1 - sqrt(sum(squared_error_sum) / nullif(sum(mean4_squared_error_sum), 0)) AS skill
                FROM bike_traffic_analytics.forecast_accuracy
                WHERE service_date > (SELECT max(service_date) FROM bike_traffic_analytics.forecast_accuracy) - 28
                GROUP BY horizon ORDER BY horizon
                """
            )
            worst = skill.get_column("skill").min() if skill.height else None
            return dg.AssetCheckResult(
                passed=isinstance(worst, float) and worst > settings.quality_min_skill,
                severity=dg.AssetCheckSeverity.WARN,
                description=None if skill.height else "no forecast has truth yet",
                metadata={"skill": sample_table(skill)},
            )

        return _never_failing(look)

    return model_quality


def _never_failing(look: Callable[[], dg.AssetCheckResult]) -> dg.AssetCheckResult:
    """A warning must not be able to fail a run; what went wrong with it is its result."""
    try:
        return look()
    except Exception as error:  # whatever it was, the check did not pass and says so
        return dg.AssetCheckResult(
            passed=False,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"the check itself failed: {' '.join(str(error).split()) or type(error).__name__}",
        )
