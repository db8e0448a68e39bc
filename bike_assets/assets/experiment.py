"""`shadow_predictions` and `experiment_report`: what the challenger would have forecast, and whether it is better.

Both can be materialised at any time; `BIKE_SHADOW` lets the schedule do it every day. Nobody is answered by a
challenger here: that is the service's `BIKE_SERVING_EXPERIMENT`, which reads the bundle that is published here.
"""

import json
from dataclasses import asdict
from datetime import date, timedelta
from math import isfinite
from typing import Final

import dagster as dg
import polars as pl

from bike_assets import tags
from bike_assets.assets import plots
from bike_assets.assets.forecasting import VintageTables, believable_truth, issue_vintages, newest_day
from bike_assets.assets.metadata import table_metadata
from bike_assets.core.contracts import (
    EXPERIMENT_RESULTS,
    PREDICTIONS,
    SHADOW_CALIBRATIONS,
    SHADOW_PREDICTIONS,
)
from bike_assets.core.experiment import Comparison, DayPair, ExperimentPolicy, compare, pair_days
from bike_assets.core.features import MAX_HORIZON
from bike_assets.partitions import window
from bike_assets.resources.audit import AUTOMATION, AuditLog, version_facts
from bike_assets.resources.bundles import BundleStore
from bike_assets.resources.registry import CHALLENGER, CHAMPION, ModelRegistry, ModelVersion
from bike_assets.resources.warehouse import Warehouse

SHADOW: Final = VintageTables(SHADOW_PREDICTIONS, SHADOW_CALIBRATIONS)

NOTHING: Final = "nothing to compare"
"""Verdict where champion and challenger are one version, or one of them is not there."""

_COMPARED: Final = ("service_date", "counter_id", "target_ts", "horizon", "forecast", "run_id")


def build_shadow_predictions(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """The asset `shadow_predictions` on the given issue dates."""

    @dg.asset(
        deps=["features", "trained_model"],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=tags.FORECASTING,
        owners=[tags.ML_TEAM],
        kinds={"catboost", "duckdb"},
        pool=tags.WAREHOUSE_POOL,
        code_version="1",
    )
    def shadow_predictions(
        context: dg.AssetExecutionContext,
        warehouse: Warehouse,
        registry: ModelRegistry,
        bundles: BundleStore,
    ) -> dg.MaterializeResult[None]:
        """Forecasts of the challenger, issued from what the champion's were issued from and by the same code.

        Where the challenger is the champion there is nothing to forecast twice, and the partitions become empty.
        """
        first, last = window(context)
        pair = rivals(registry)
        if pair is None:
            for table in (SHADOW_PREDICTIONS, SHADOW_CALIBRATIONS):
                warehouse.replace(table, table.empty(), first, last)
            return dg.MaterializeResult(
                metadata={
                    **table_metadata(SHADOW_PREDICTIONS, SHADOW_PREDICTIONS.empty()),
                    "challenger": NOTHING,
                }
            )
        _, challenger = pair
        forecaster = registry.load_forecaster(challenger)
        rows, issued = issue_vintages(warehouse, registry, challenger, forecaster, (first, last), SHADOW)
        published = {}
        if last == newest_day(warehouse) + timedelta(days=1):
            published["bundle_id"] = bundles.publish(
                challenger, forecaster, warehouse, registry, SHADOW_CALIBRATIONS
            )
        return dg.MaterializeResult(
            metadata={
                **table_metadata(SHADOW_PREDICTIONS, issued.head(0)),
                "dagster/row_count": rows,
                "challenger": f"{challenger.name} version {challenger.version}",
                **published,
            }
        )

    return shadow_predictions


def build_experiment_report(
    policy: ExperimentPolicy, partitions: dg.PartitionsDefinition[str]
) -> dg.AssetsDefinition:
    """The asset `experiment_report` on the given issue dates, by the given policy."""
    looks_at = dg.TimeWindowPartitionMapping(
        start_offset=-(policy.max_days + MAX_HORIZON),
        end_offset=-1,
        allow_nonexistent_upstream_partitions=True,
    )

    @dg.asset(
        deps=[
            dg.AssetDep("shadow_predictions", partition_mapping=looks_at),
            dg.AssetDep("predictions", partition_mapping=looks_at),
            dg.AssetDep("counter_health", partition_mapping=looks_at),
            dg.AssetDep("cleaned_counts", partition_mapping=looks_at),
        ],
        partitions_def=partitions,
        group_name=tags.MONITORING,
        owners=[tags.ML_TEAM],
        kinds={"polars", "duckdb"},
        pool=tags.WAREHOUSE_POOL,
        code_version="1",
    )
    def experiment_report(
        context: dg.AssetExecutionContext,
        warehouse: Warehouse,
        registry: ModelRegistry,
        audit: AuditLog,
    ) -> dg.MaterializeResult[None]:
        """Champion and challenger on the hours that both forecast and that were counted since; a row a day.

        The comparison may be read every day: its interval holds on all of them together, and it says when to stop.
        The answer is in the audit log too.
        """
        day = date.fromisoformat(context.partition_key)
        pair = rivals(registry)
        if pair is None:
            warehouse.replace(EXPERIMENT_RESULTS, EXPERIMENT_RESULTS.empty(), day, day)
            return dg.MaterializeResult(metadata={"verdict": NOTHING})
        champion, challenger = pair
        days = paired_days(warehouse, champion, challenger, day, policy)
        answer = compare(days, policy)
        row = result_row(day, champion, challenger, days, answer)
        warehouse.replace(EXPERIMENT_RESULTS, row, day, day)
        record_answer(audit, warehouse, pair, row, answer, policy, context.run.run_id)
        for reason in answer.reasons:
            context.log.info(reason)
        return dg.MaterializeResult(
            metadata={
                **table_metadata(EXPERIMENT_RESULTS, row),
                "verdict": answer.verdict,
                "experiment": f"{champion.name} version {champion.version} against {challenger.version}",
                "reasons": dg.MetadataValue.md("\n".join(f"- {reason}" for reason in answer.reasons)),
                "days": int(row["days"][0]),
                **_shown(answer, policy),
            }
        )

    return experiment_report


def rivals(registry: ModelRegistry) -> tuple[ModelVersion, ModelVersion] | None:
    """Champion and challenger; None where one is missing or both are the same."""
    champion, challenger = registry.by_alias(CHAMPION), registry.by_alias(CHALLENGER)
    if champion is None or challenger is None or champion.version == challenger.version:
        return None
    return champion, challenger


def paired_days(
    warehouse: Warehouse,
    champion: ModelVersion,
    challenger: ModelVersion,
    day: date,
    policy: ExperimentPolicy,
) -> tuple[DayPair, ...]:
    """Both versions' errors by day, from truth of the days before one: the first `max_days` that they share.

    An hour counts on which a counter was neither broken nor impossible, as in training and promotion.
    """
    theirs = warehouse.read(
        SHADOW_PREDICTIONS, last=day - timedelta(days=1), columns=_COMPARED, order=False
    ).filter(run_id=challenger.run_id)
    if theirs.is_empty():
        return ()
    first = theirs["service_date"].min()
    assert isinstance(first, date)  # noqa: S101  for the type checker: the column is of days
    ours = warehouse.read(PREDICTIONS, first, day - timedelta(days=1), columns=_COMPARED, order=False).filter(
        run_id=champion.run_id
    )
    truth = believable_truth(warehouse, day - timedelta(days=1))
    return pair_days(ours, theirs, truth)[: policy.max_days]


def result_row(
    day: date,
    champion: ModelVersion,
    challenger: ModelVersion,
    days: tuple[DayPair, ...],
    answer: Comparison,
) -> pl.DataFrame:
    """The audit row of a comparison, as EXPERIMENT_RESULTS."""
    look = answer.looks[-1] if answer.looks else None
    judged = tuple(pair for pair in days if look is None or pair.day <= look.day)
    return EXPERIMENT_RESULTS.conform(
        pl.DataFrame(
            {
                "service_date": [day],
                "champion_version": [champion.version],
                "challenger_version": [challenger.version],
                "verdict": [answer.verdict],
                "reasons": ["; ".join(answer.reasons)],
                "days": [len(judged)],
                "hours": [sum(pair.hours for pair in judged)],
                "effect": [look.effect if look else None],
                # An interval without ends says nothing yet.
                "lower": [look.lower if look and isfinite(look.lower) else None],
                "upper": [look.upper if look and isfinite(look.upper) else None],
                "champion_wape": [answer.champion_wape],
                "challenger_wape": [answer.challenger_wape],
            },
            schema=EXPERIMENT_RESULTS.polars_schema,
        )
    )


def record_answer(
    audit: AuditLog,
    warehouse: Warehouse,
    pair: tuple[ModelVersion, ModelVersion],
    row: pl.DataFrame,
    answer: Comparison,
    policy: ExperimentPolicy,
    dagster_run_id: str,
) -> None:
    """Write an experiment's answer to the audit log, once an experiment: later days change nothing."""
    champion, challenger = pair
    operation = f"experiment-{champion.version}-{challenger.version}"
    known = audit.read(warehouse).filter(event="compared", operation_id=operation)
    if not answer.stop or known.height:
        return
    event = audit.event(
        "compared",
        actor=AUTOMATION,
        reason="; ".join(answer.reasons),
        service_date=row["service_date"][0],
        operation_id=operation,
        dagster_run_id=dagster_run_id,
        deployment_decision=answer.verdict,
        replaced_version=champion.version,
        days_compared=row["days"][0],
        policy=json.dumps(asdict(policy), sort_keys=True),
        **version_facts(challenger),
    )
    audit.append(warehouse, event)


def _shown(answer: Comparison, policy: ExperimentPolicy) -> dict[str, dg.MetadataValue]:
    if not answer.looks:
        return {}
    look = answer.looks[-1]
    return {
        "effect": dg.MetadataValue.text(f"{look.effect:+.2%} of the champion's error"),
        "interval": dg.MetadataValue.text(f"{look.lower:+.2%} to {look.upper:+.2%}"),
        "champion_wape": dg.MetadataValue.text(f"{answer.champion_wape:.2%}"),
        "challenger_wape": dg.MetadataValue.text(f"{answer.challenger_wape:.2%}"),
        "looks": dg.MetadataValue.md(plots.experiment(answer.looks, policy.worth)),
    }
