"""Monitoring: realised accuracy is what numpy says, and a missing report is never taken for no drift."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import dagster as dg
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.assets.monitoring import (
    REPORT_JSON,
    Realised,
    build_retraining_decision,
    decision_row,
    drift_windows,
    health_until,
    held_out_r2,
    past_trainings,
    realised,
    report_folder,
    reported_drift,
    training_hours,
)
from bike_assets.core.contracts import AUDIT_LOG, CLEANED_COUNTS, COUNTER_HEALTH, RETRAINING_DECISIONS
from bike_assets.core.errors import PermanentError
from bike_assets.core.retraining import RetrainingPolicy, decide_retraining
from bike_assets.partitions import service_days
from bike_assets.resources.audit import AuditLog
from bike_assets.resources.registry import ModelRegistry, ModelVersion
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.runner import materialize
from bike_assets.settings import Settings
from bike_assets_tests.tables import version_tags

ISSUE = date(2024, 6, 10)
DAYS = 28
PARTITIONS = service_days(date(2024, 1, 1))


@pytest.fixture
def warehouse(tmp_path: Path) -> DuckDBWarehouse:
    return DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"))


def counts(first: date, last: date) -> pl.DataFrame:
    """A row a day: windows are about days."""
    days = [first + timedelta(days=offset) for offset in range((last - first).days + 1)]
    noon = [datetime(day.year, day.month, day.day, 12, tzinfo=UTC) for day in days]
    return CLEANED_COUNTS.conform(
        pl.DataFrame({"service_date": days, "ts_utc": noon, "published_until": noon}).with_columns(
            counter_id=pl.lit("c1"),
            local_hour=pl.lit(12),
            hourly_count=pl.lit(5),
            published_count=pl.lit(5),
            is_merged_hour=pl.lit(False),
            is_outage=pl.lit(False),
            is_spike=pl.lit(False),
            is_stuck=pl.lit(False),
            revisions=pl.lit(1),
        )
    )


def fill(warehouse: DuckDBWarehouse, first: date, last: date) -> None:
    warehouse.replace(CLEANED_COUNTS, counts(first, last), first, last)


def test_with_a_year_of_counts_drift_is_measured_against_the_same_season(warehouse: DuckDBWarehouse) -> None:
    fill(warehouse, date(2023, 1, 1), date(2024, 6, 20))

    current, reference, kind = drift_windows(warehouse, ISSUE, DAYS)

    assert kind == "year_earlier"
    days = current["service_date"]
    assert (days.min(), days.max(), days.len()) == (
        ISSUE - timedelta(days=DAYS),
        ISSUE - timedelta(days=1),
        DAYS,
    )
    earlier = {day - timedelta(days=364) for day in days}
    assert earlier <= set(reference["service_date"])
    spread = timedelta(days=7)
    assert reference["service_date"].min() == min(earlier) - spread
    assert reference["service_date"].max() == max(earlier) + spread


def test_with_less_it_is_measured_against_the_weeks_before(warehouse: DuckDBWarehouse) -> None:
    fill(warehouse, date(2024, 3, 1), ISSUE)

    current, reference, kind = drift_windows(warehouse, ISSUE, DAYS)

    assert kind == "preceding"
    first = current["service_date"].min()
    assert reference["service_date"].max() == first - timedelta(days=1)  # type: ignore[operator]
    assert not set(reference["service_date"]) & set(current["service_date"])


def test_the_issue_date_itself_is_in_neither_window(warehouse: DuckDBWarehouse) -> None:
    fill(warehouse, date(2024, 3, 1), ISSUE + timedelta(days=10))

    current, reference, _ = drift_windows(warehouse, ISSUE, DAYS)

    assert max(current["service_date"].max(), reference["service_date"].max()) < ISSUE  # type: ignore[type-var]


def test_nothing_to_compare_fails_loudly(warehouse: DuckDBWarehouse) -> None:
    with pytest.raises(dg.Failure, match="no counts from 2024-05-13 to 2024-06-09"):
        drift_windows(warehouse, ISSUE, DAYS)

    fill(warehouse, ISSUE - timedelta(days=DAYS), ISSUE)
    with pytest.raises(dg.Failure, match="no counts of the same season") as caught:
        drift_windows(warehouse, ISSUE, DAYS)
    assert not caught.value.allow_retries


def test_without_counter_health_a_report_says_what_to_make_first(warehouse: DuckDBWarehouse) -> None:
    with pytest.raises(dg.Failure, match="materialise counter_health of these days first"):
        health_until(warehouse, ISSUE)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def write_report(settings: Settings, day: date, share: float | None, fell: bool = False) -> None:
    folder = report_folder(settings, day)
    folder.mkdir(parents=True)
    (folder / REPORT_JSON).write_text(json.dumps({"share": share, "drifted": [], "skill": {"fell": fell}}))


def test_a_missing_report_is_no_absence_of_drift(settings: Settings) -> None:
    write_report(settings, ISSUE - timedelta(days=7), 0.0)

    with pytest.raises(dg.Failure, match="materialise drift_report first") as caught:
        reported_drift(settings, ISSUE)
    assert not caught.value.allow_retries


def test_a_report_says_what_was_found(settings: Settings) -> None:
    write_report(settings, ISSUE, 0.4)

    assert reported_drift(settings, ISSUE)["share"] == 0.4


def accuracy_table(warehouse: DuckDBWarehouse, scored: pl.DataFrame) -> None:
    """Scored hours, added up as the dbt model does."""
    error = pl.col("forecast") - pl.col("truth")
    rows = scored.group_by("service_date", "issue_date", "counter_id", "model_version").agg(
        hours=pl.len().cast(pl.Int64),
        truth_sum=pl.col("truth").sum(),
        truth_square_sum=(pl.col("truth") ** 2).sum(),
        squared_error_sum=(error**2).sum(),
    )
    with warehouse.connect() as connection:
        connection.register("incoming", rows.to_arrow())
        connection.execute("CREATE SCHEMA IF NOT EXISTS bike_traffic_analytics")
        connection.execute(
            "CREATE OR REPLACE TABLE bike_traffic_analytics.forecast_accuracy AS FROM incoming"
        )


def scored_hours() -> pl.DataFrame:
    rng = np.random.default_rng(4)
    n = 4000
    truth = rng.poisson(rng.gamma(2, 40, n)).astype(float)
    return pl.DataFrame(
        {
            # From 40 days before the issue date to 9 days after it.
            "service_date": [ISSUE + timedelta(days=int(day)) for day in rng.integers(-40, 10, n)],
            "counter_id": [f"c{c}" for c in rng.integers(0, 3, n)],
            "model_version": [str(v) for v in rng.integers(1, 3, n)],
            "truth": truth,
            "forecast": truth + rng.normal(3, 25, n),
            "horizon": rng.integers(1, 8, n),
        }
    ).with_columns(issue_date=pl.col("service_date") - pl.duration(days=pl.col("horizon") - 1))


def test_realised_accuracy_is_r2_over_the_hours_of_the_window_and_version(warehouse: DuckDBWarehouse) -> None:
    scored = scored_hours()
    accuracy_table(warehouse, scored)

    found = realised(warehouse, ISSUE, DAYS, "2")

    window = scored.filter(
        pl.col("service_date").is_between(ISSUE - timedelta(days=DAYS), ISSUE - timedelta(days=1)),
        pl.col("model_version") == "2",
    )
    truth, forecast = window["truth"].to_numpy(), window["forecast"].to_numpy()
    assert found.r2 == pytest.approx(
        1 - ((truth - forecast) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
    )
    assert (found.rows, found.days) == (window.height, DAYS)


def test_a_broken_counter_is_not_held_against_the_champion(warehouse: DuckDBWarehouse) -> None:
    broken = pl.date_range(ISSUE - timedelta(days=12), ISSUE - timedelta(days=9), eager=True)
    spoilt = (pl.col("counter_id") == "c1") & (
        pl.col("service_date").is_in(broken.implode())
        | (pl.col("issue_date") - timedelta(days=1)).is_in(broken.implode())
    )
    scored = scored_hours().with_columns(
        forecast=pl.when(spoilt).then(pl.col("truth") + 5000).otherwise("forecast")
    )
    accuracy_table(warehouse, scored)
    assert (realised(warehouse, ISSUE, DAYS, "2").r2 or 0) < 0

    health = pl.DataFrame({"service_date": broken}).with_columns(
        counter_id=pl.lit("c1"),
        state=pl.lit("dead"),
        known_hours=24,
        silent_days=0,
        stuck_hours=1,
        reason=pl.lit("24 hours of zero"),
    )
    rows = pl.concat([COUNTER_HEALTH.empty(), health], how="diagonal_relaxed")
    warehouse.replace(COUNTER_HEALTH, rows, broken[0], broken[-1])

    found = realised(warehouse, ISSUE, DAYS, "2")
    fair = scored.filter(
        ~spoilt,
        pl.col("service_date").is_between(ISSUE - timedelta(days=DAYS), ISSUE - timedelta(days=1)),
        pl.col("model_version") == "2",
    )
    assert found.rows == fair.height
    assert found.rmse == pytest.approx(float(((fair["forecast"] - fair["truth"]) ** 2).mean() ** 0.5))


def test_accuracy_is_the_same_in_whatever_order_a_database_adds(warehouse: DuckDBWarehouse) -> None:
    scored, found = scored_hours(), set()
    for seed in range(8):
        accuracy_table(warehouse, scored.sample(fraction=1, shuffle=True, seed=seed))
        found.add(realised(warehouse, ISSUE, DAYS, "2").r2)

    assert len(found) == 1


def test_without_truth_there_is_no_accuracy_rather_than_a_number(warehouse: DuckDBWarehouse) -> None:
    accuracy_table(warehouse, scored_hours())

    assert realised(warehouse, ISSUE, DAYS, "7") == Realised(None, 0, 0)
    assert realised(warehouse, ISSUE, DAYS, None) == Realised(None, 0, 0)
    assert realised(warehouse, ISSUE - timedelta(days=300), DAYS, "2") == Realised(None, 0, 0)


def test_truth_that_never_changes_has_no_r2(warehouse: DuckDBWarehouse) -> None:
    accuracy_table(warehouse, scored_hours().with_columns(truth=pl.lit(4.0)))

    found = realised(warehouse, ISSUE, DAYS, "2")
    assert found.r2 is None
    assert found.rows > 0


def test_the_audit_row_keeps_its_contract_and_says_everything() -> None:
    answer = decide_retraining(
        0.5, 0.4, n_truth_rows=5000, n_truth_days=20, days_since_training=30, policy=RetrainingPolicy()
    )

    row = RETRAINING_DECISIONS.conform(decision_row(ISSUE, answer, "4")).row(0, named=True)

    assert row["service_date"] == ISSUE
    assert row["retrain"] is answer.retrain is True
    assert row["decision"] == answer.decision
    assert row["reasons"] == "; ".join(answer.reasons)
    assert (row["r2"], row["drift_share"], row["truth_rows"], row["model_version"]) == (0.5, 0.4, 5000, "4")


def test_the_audit_row_of_too_little_truth_keeps_its_contract_too() -> None:
    answer = decide_retraining(
        None, None, n_truth_rows=0, n_truth_days=0, days_since_training=None, policy=RetrainingPolicy()
    )

    assert RETRAINING_DECISIONS.violations(decision_row(ISSUE, answer, None)) == []


class Registry(ModelRegistry):
    """Stands for MLflow: who is champion."""

    version: ClassVar[ModelVersion | None] = ModelVersion(
        "bike-traffic", "2", "run", version_tags(ISSUE - timedelta(days=60))
    )

    def by_alias(self, alias: str) -> ModelVersion | None:
        assert alias == "champion"
        return self.version

    def versions(self) -> list[ModelVersion]:
        return [self.version] if self.version else []


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def decide(
    settings: Settings, warehouse: DuckDBWarehouse, instance: dg.DagsterInstance, **order: object
) -> dict[str, object]:
    definitions = dg.Definitions(
        assets=[build_retraining_decision(settings, RetrainingPolicy(), PARTITIONS)],
        resources={
            "warehouse": warehouse,
            "registry": Registry(tracking_uri="", artifacts_dir="", ui_url="", model_name="bike-traffic"),
            "audit": AuditLog.from_settings(settings),
        },
    )
    outcome = materialize(
        definitions,
        instance,
        ["retraining_decision"],
        days=(ISSUE, ISSUE),
        config={"retraining_decision": order},
    )
    return {name: value.value for name, value in outcome.metadata["retraining_decision"].items()}


@pytest.mark.parametrize(("noise", "retrain"), [(0.0, False), (1.0, True)])
def test_a_decision_is_one_audit_row_however_often_it_is_taken(
    settings: Settings,
    warehouse: DuckDBWarehouse,
    instance: dg.DagsterInstance,
    noise: float,
    retrain: bool,
) -> None:
    scored = scored_hours()
    accuracy_table(
        warehouse, scored.with_columns(forecast=pl.col("truth") * (1 - noise) + pl.lit(60.0) * noise)
    )
    write_report(settings, ISSUE, 0.1)

    metadata = decide(settings, warehouse, instance)
    once = warehouse.read(RETRAINING_DECISIONS)
    assert decide(settings, warehouse, instance) == metadata

    assert once.height == 1
    assert_frame_equal(warehouse.read(RETRAINING_DECISIONS), once)
    assert once["retrain"].item() is retrain
    assert metadata["retrain"] is retrain, "the sensor reads this"
    assert metadata["decision"] == once["decision"].item()


def test_lost_skill_alone_asks_for_a_training(
    settings: Settings, warehouse: DuckDBWarehouse, instance: dg.DagsterInstance
) -> None:
    accuracy_table(warehouse, scored_hours().with_columns(forecast=pl.col("truth")))
    write_report(settings, ISSUE, 0.0, fell=True)

    assert decide(settings, warehouse, instance)["decision"] == "retrain_reactive"


def test_a_training_without_gain_is_remembered_while_the_champion_stays(
    settings: Settings, warehouse: DuckDBWarehouse, instance: dg.DagsterInstance
) -> None:
    accuracy_table(warehouse, scored_hours().with_columns(forecast=pl.col("truth")))
    write_report(settings, ISSUE, 0.0, fell=True)
    audit = AuditLog.from_settings(settings)

    def judged(days_ago: int, against: str, verdict: str) -> None:
        facts = {"replaced_version": against, "deployment_decision": verdict}
        day = ISSUE - timedelta(days=days_ago)
        audit.append(warehouse, audit.event("judged", actor="anna", reason="r", service_date=day, **facts))

    judged(7, "1", "no_gain")
    judged(8, "2", "promote")
    judged(-1, "2", "no_gain")
    assert decide(settings, warehouse, instance)["decision"] == "retrain_reactive", (
        "an earlier champion's rival, one that won, and one of days to come say nothing"
    )
    judged(27, "2", "no_gain")
    assert decide(settings, warehouse, instance)["decision"] == "tried"


def test_no_decision_without_a_report(
    settings: Settings, warehouse: DuckDBWarehouse, instance: dg.DagsterInstance
) -> None:
    accuracy_table(warehouse, scored_hours())

    with pytest.raises(PermanentError, match="there is no drift report of 2024-06-10"):
        decide(settings, warehouse, instance)

    assert not warehouse.exists(RETRAINING_DECISIONS)


def test_a_person_may_order_a_training_without_a_report_and_stands_in_the_log(
    settings: Settings, warehouse: DuckDBWarehouse, instance: dg.DagsterInstance
) -> None:
    accuracy_table(warehouse, scored_hours().with_columns(forecast=pl.col("truth")))

    metadata = decide(settings, warehouse, instance, force=True, actor="anna", reason="new counters")

    assert (metadata["retrain"], metadata["decision"]) == (True, "retrain_forced")
    row = warehouse.read(AUDIT_LOG).row(0, named=True)
    assert (row["actor"], row["fine_tune_triggered"]) == ("anna", True)
    assert row["reason"].endswith("ordered by a person; new counters")


def test_every_decision_is_in_the_audit_log(
    settings: Settings, warehouse: DuckDBWarehouse, instance: dg.DagsterInstance
) -> None:
    accuracy_table(warehouse, scored_hours())
    write_report(settings, ISSUE, 0.4)
    metadata = decide(settings, warehouse, instance)

    row = warehouse.read(AUDIT_LOG).row(0, named=True)
    assert (row["event"], row["actor"], row["service_date"]) == ("retraining_decided", "automation", ISSUE)
    assert (row["deployment_decision"], row["fine_tune_triggered"]) == (
        metadata["decision"],
        metadata["retrain"],
    )
    assert (row["drift_share"], row["drift_detected"]) == (0.4, True)
    assert row["rmse"] == realised(warehouse, ISSUE, DAYS, "2").rmse > 0
    assert json.loads(row["policy"])["r2_critical"] == RetrainingPolicy().r2_critical
    assert "| r2_critical | 0.65 | – |" in str(metadata["bounds"])


def test_trainings_count_whether_or_not_their_model_was_promoted() -> None:
    class Several(Registry):
        def versions(self) -> list[ModelVersion]:
            return [
                ModelVersion("bike-traffic", str(days), "run", version_tags(ISSUE - timedelta(days=days)))
                for days in (40, 3, -2, 0)
            ]

    registry = Several(tracking_uri="", artifacts_dir="", ui_url="", model_name="bike-traffic")

    assert past_trainings(registry, ISSUE) == [0, 3, 40], "those of later days did not exist yet"


def test_what_a_training_promises_and_costs_is_read_from_the_version() -> None:
    tags = {
        "holdout.day_1.r2": "0.9",
        "holdout.day_2.r2": "0.8",
        "holdout.day_1.skill": "0.1",
        "training_seconds": "7200",
    }
    version = ModelVersion("bike-traffic", "2", "run", tags)

    assert held_out_r2(version) == pytest.approx(0.85)
    assert training_hours(version) == 2.0
    bare = ModelVersion("bike-traffic", "2", "run", version_tags())
    assert (held_out_r2(bare), training_hours(bare)) == (None, None)
    assert (held_out_r2(None), training_hours(None)) == (None, None)
