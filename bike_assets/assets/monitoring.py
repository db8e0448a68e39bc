"""`drift_report` and `retraining_decision`: is the world still the one the champion learned, and what follows."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import dagster as dg
import polars as pl

from bike_assets import tags
from bike_assets.assets import plots
from bike_assets.assets.evidently_report import drift_report as evidently_report
from bike_assets.assets.evidently_report import summary_json, write_atomically
from bike_assets.assets.forecasting import believable_truth
from bike_assets.assets.metadata import sample_table, table_metadata
from bike_assets.core.calendar import days_between
from bike_assets.core.contracts import (
    CLEANED_COUNTS,
    COUNTER_HEALTH,
    PREDICTIONS,
    RAW_WEATHER,
    RETRAINING_DECISIONS,
)
from bike_assets.core.drift import (
    YEAR_DAYS,
    Alarm,
    DriftPolicy,
    DriftSummary,
    alarms,
    counter_drift,
    network_drift,
    reference_days,
    skill_fell,
)
from bike_assets.core.features import MAX_HORIZON
from bike_assets.core.health import UNHEALTHY, of_healthy_days, without
from bike_assets.core.metrics import join_truth
from bike_assets.core.network import GROWING_DAYS, HISTORY_DAYS, Shift, believable_days, network
from bike_assets.core.profile import PROFILE_COLUMNS, daily_profile
from bike_assets.core.promotion import NO_GAIN
from bike_assets.core.retraining import RetrainingDecision, RetrainingPolicy, decide_retraining, expected_gain
from bike_assets.core.skill import BASELINE_WEEKS, MIN_DAYS, SkillChange, fairly_based, skill_change
from bike_assets.core.thresholds import LearnedBounds, learn_bounds
from bike_assets.resources.audit import AUTOMATION, AuditLog, os_user, version_facts
from bike_assets.resources.registry import CHAMPION, TRAINING_SECONDS_TAG, ModelRegistry, ModelVersion
from bike_assets.resources.warehouse import Warehouse
from bike_assets.settings import Settings

REPORT_HTML = "drift.html"
REPORT_JSON = "drift.json"

RATIO_COLUMNS: Final = ("forecast_to_usual", "count_to_usual")
"""Drift of predictions and of the target, season taken off: see `with_ratios`."""


class DecisionConfig(dg.Config):
    """What a person may order."""

    force: bool = False
    """Retrain whatever the numbers say, cooldown and budget included; a drift report is not needed then."""

    actor: str = ""
    """Who orders it. Default: the user of the operating system."""

    reason: str = ""
    """Why; stands in the audit log."""


def build_drift_report(
    settings: Settings, policy: DriftPolicy, partitions: dg.PartitionsDefinition[str]
) -> dg.AssetsDefinition:
    """The asset `drift_report` on the given issue dates."""
    days = settings.drift_days
    looks_at = dg.TimeWindowPartitionMapping(
        start_offset=-days, end_offset=-1, allow_nonexistent_upstream_partitions=True
    )

    @dg.asset(
        deps=[
            dg.AssetDep("cleaned_counts", partition_mapping=looks_at),
            dg.AssetDep("counter_health", partition_mapping=looks_at),
            "predictions",
        ],
        partitions_def=partitions,
        group_name=tags.MONITORING,
        owners=[tags.ML_TEAM],
        kinds={"evidently"},
        pool=tags.WAREHOUSE_POOL,
        code_version="1",
    )
    def drift_report(
        context: dg.AssetExecutionContext, warehouse: Warehouse, registry: ModelRegistry
    ) -> dg.MaterializeResult[None]:
        """The last weeks against what they should have been: columns, network, counters and the champion's skill.

        Columns are tested against the same season (Evidently), the network's level against calendar, season and
        weather, counters against their own weeks and the city, the skill against that of the champion's held-out days.
        A report that cannot be made fails: no report is never taken for no drift.
        """
        issue_date = date.fromisoformat(context.partition_key)
        last = issue_date - timedelta(days=1)
        current, reference, kind = drift_windows(warehouse, issue_date, days)
        folder = report_folder(settings, issue_date)
        health = health_until(warehouse, last)
        lately, held_out = champion_errors(warehouse, registry, issue_date, days, health)
        # A broken counter is an incident of its own (counter_health) and no drift of the network.
        summary = evidently_report(
            current=with_ratios(daily_profile(without(current, health, UNHEALTHY)), lately),
            reference=with_ratios(daily_profile(without(reference, health, UNHEALTHY)), held_out),
            columns=(*PROFILE_COLUMNS, *RATIO_COLUMNS),
            html_path=folder / REPORT_HTML,
            json_path=folder / REPORT_JSON,
            threshold=policy.column_distance,
        )
        city = network(
            believable_days(health),
            days_between(health["service_date"].min(), last),  # type: ignore[arg-type]
            warehouse.read(
                RAW_WEATHER, last=last, columns=("ts_utc", "kind", "temperature_c", "rain_mm"), order=False
            ).filter(kind="observed"),
        )
        shift = network_drift(city, last, policy)
        counters = counter_drift(health, last, policy)
        skill = skill_change(day_errors(held_out), day_errors(lately))
        told = alarms(shift, counters, health, last, skill=skill if skill_fell(skill, policy) else None)
        write_atomically(
            folder / REPORT_JSON, findings_json(summary, shift, skill, skill_fell(skill, policy), told)
        )
        url = registry.log_report("drift report", issue_date, [folder / REPORT_HTML, folder / REPORT_JSON])
        return dg.MaterializeResult(
            metadata={
                "report": dg.MetadataValue.url(url),
                "report_html": dg.MetadataValue.path(folder / REPORT_HTML),
                "report_json": dg.MetadataValue.path(folder / REPORT_JSON),
                "alarms": sample_table(pl.DataFrame([asdict(alarm) for alarm in told]), 50)
                if told
                else "none",
                "network": dg.MetadataValue.md(plots.network_level(city, last)),
                "skill": skill_text(skill),
                "drift_share": summary.share if summary.share is not None else "nothing testable",
                "drifted": ", ".join(summary.drifted) or "none",
                "drifted_columns": dg.MetadataValue.md(plots.drifted_columns(summary)),
                "reference": f"{kind}: {reference['service_date'].min()!s} to {reference['service_date'].max()!s}",
                "dagster/row_count": summary.n_current,
                "counters": sample_table(counters),
                "drifted_counters": int(counters.get_column("drifted").sum()),
            }
        )

    return drift_report


def build_retraining_decision(
    settings: Settings, policy: RetrainingPolicy, partitions: dg.PartitionsDefinition[str]
) -> dg.AssetsDefinition:
    """The asset `retraining_decision` on the given issue dates, by the given policy."""
    looks_at = dg.TimeWindowPartitionMapping(
        start_offset=-settings.drift_days - MAX_HORIZON,
        end_offset=-1,
        allow_nonexistent_upstream_partitions=True,
    )

    @dg.asset(
        deps=[
            "drift_report",
            "forecast_accuracy",
            dg.AssetDep("counter_health", partition_mapping=looks_at),
        ],
        partitions_def=partitions,
        group_name=tags.MONITORING,
        owners=[tags.ML_TEAM],
        kinds={"duckdb"},
        pool=tags.WAREHOUSE_POOL,
        code_version="1",
    )
    def retraining_decision(
        context: dg.AssetExecutionContext,
        config: DecisionConfig,
        warehouse: Warehouse,
        registry: ModelRegistry,
        audit: AuditLog,
    ) -> dg.MaterializeResult[None]:
        """The decision matrix applied to the champion's realised accuracy and the drift; one audit row a day."""
        issue_date = date.fromisoformat(context.partition_key)
        champion = registry.by_alias(CHAMPION)
        found = reported_drift(settings, issue_date, needed=not config.force)
        share = found["share"]
        truth = realised(warehouse, issue_date, settings.drift_days, champion.version if champion else None)
        learned = learned_bounds(warehouse, issue_date, policy)
        applied = learned.policy if policy.adaptive and learned.policy else policy
        trainings = past_trainings(registry, issue_date)
        answer = decide_retraining(
            truth.r2,
            share,
            n_truth_rows=truth.rows,
            n_truth_days=truth.days,
            skill_fell=found["skill"]["fell"],
            days_since_training=trainings[0] if trainings else None,
            days_since_no_gain=days_since_no_gain(audit.read(warehouse), champion, issue_date),
            trainings_in_period=sum(days < policy.budget_days for days in trainings),
            expected_gain=expected_gain(held_out_r2(champion), truth.r2),
            training_hours=training_hours(champion),
            force=config.force,
            policy=applied,
        )
        row = decision_row(issue_date, answer, champion.version if champion else None)
        warehouse.replace(RETRAINING_DECISIONS, row, issue_date, issue_date)
        audit.append(
            warehouse,
            audit.event(
                "retraining_decided",
                actor=(config.actor or os_user()) if config.force else AUTOMATION,
                reason="; ".join(
                    (*answer.reasons, *([config.reason] if config.force and config.reason else []))
                ),
                service_date=issue_date,
                dagster_run_id=context.run.run_id,
                policy=json.dumps(asdict(applied), sort_keys=True),
                deployment_decision=answer.decision,
                fine_tune_triggered=answer.retrain,
                drift_detected=None if share is None else share >= applied.drift_warning,
                drift_share=share,
                r2=truth.r2,
                rmse=truth.rmse,
                **(version_facts(champion) if champion else {}),
            ),
        )
        return dg.MaterializeResult(
            metadata={
                **table_metadata(RETRAINING_DECISIONS, row),
                "retrain": answer.retrain,
                "decision": answer.decision,
                "reasons": "; ".join(answer.reasons),
                "bounds": dg.MetadataValue.md(bounds_table(policy, learned)),
                **({"r2": answer.r2} if answer.r2 is not None else {}),
            }
        )

    return retraining_decision


def learned_bounds(warehouse: Warehouse, issue_date: date, policy: RetrainingPolicy) -> LearnedBounds:
    """Bounds learned from the decisions before an issue date."""
    past = warehouse.read(
        RETRAINING_DECISIONS, last=issue_date - timedelta(days=1), columns=("r2", "drift_share")
    )
    return learn_bounds(past["r2"].drop_nulls().to_list(), past["drift_share"].drop_nulls().to_list(), policy)


def bounds_table(policy: RetrainingPolicy, learned: LearnedBounds) -> str:
    """The fixed bounds of the matrix and the learned ones side by side, in Markdown."""
    names = ("r2_critical", "r2_warning", "drift_warning", "drift_critical")
    rows = [
        f"| {name} | {getattr(policy, name):g} | {getattr(learned.policy, name):g} |"
        if learned.policy
        else f"| {name} | {getattr(policy, name):g} | – |"
        for name in names
    ]
    applied = "learned" if policy.adaptive and learned.policy else "fixed"
    return "\n".join(
        ["| bound | fixed | learned |", "|---|---|---|", *rows, "", f"Applied: {applied}; {learned.reason}."]
    )


def past_trainings(registry: ModelRegistry, issue_date: date) -> list[int]:
    """Days from each training to an issue date, the newest first, whether or not its model was promoted."""
    days = ((issue_date - version.trained_until).days for version in registry.versions())
    return sorted(day for day in days if day >= 0)


def days_since_no_gain(log: pl.DataFrame, champion: ModelVersion | None, issue_date: date) -> int | None:
    """Days from the last training whose model was judged no better than the champion to an issue date; None for none.

    Args:
        log: rows of AUDIT_LOG.
        champion: who serves; judgements against an earlier one say nothing about it.
        issue_date: the day of the decision.
    """
    if champion is None:
        return None
    judged = log.filter(
        pl.col("event") == "judged",
        pl.col("replaced_version") == champion.version,
        pl.col("deployment_decision").is_in(NO_GAIN),
        pl.col("service_date") <= issue_date,
    )
    newest: date | None = judged["service_date"].max()  # type: ignore[assignment]
    return None if newest is None else (issue_date - newest).days


def held_out_r2(version: ModelVersion | None) -> float | None:
    """R² of a version on the days its training held out, mean of the horizon days; None where it has none."""
    found = [
        float(value)
        for key, value in (version.tags.items() if version else ())
        if key.startswith("holdout.") and key.endswith(".r2")
    ]
    return sum(found) / len(found) if found else None


def training_hours(version: ModelVersion | None) -> float | None:
    """Hours that the training of a version took; None where it does not say."""
    text = version.tags.get(TRAINING_SECONDS_TAG) if version else None
    return float(text) / 3600 if text else None


def champion_errors(
    warehouse: Warehouse, registry: ModelRegistry, issue_date: date, days: int, health: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The champion's day-ahead forecasts with their truth: of the days before an issue date, and of its held-out days.

    The truth is the one that training learns from: a broken counter's impossible counts are no fault of the model.
    Counters that were not alive are left out of both, the day they came back, days on which nothing is known, and those
    whose baseline is made of impossible counts.
    Columns: `service_date`, `counter_id`, `forecast`, `mean4`, `hourly_count`; no rows where there is no champion.
    """
    columns = ("service_date", "counter_id", "target_ts", "horizon", "forecast", "mean4")
    champion = registry.by_alias(CHAMPION)
    first = issue_date - timedelta(days=days)
    issued = warehouse.read(PREDICTIONS, first, issue_date - timedelta(days=1), columns=(*columns, "run_id"))
    counts = believable_truth(warehouse, issue_date - timedelta(days=1), first)
    run = champion.run_id if champion else None
    lately = join_truth(
        issued.filter((pl.col("run_id") == run) & (pl.col("horizon") == 1)).drop("run_id"), counts
    )
    held_out = registry.load_holdout(champion).filter(horizon=1) if champion else lately.head(0)
    wanted = ("service_date", "counter_id", "forecast", "mean4", "hourly_count")
    fair = [
        fairly_based(of_healthy_days(each, health), impossible_counts(warehouse, each))
        .drop_nulls("mean4")
        .select(wanted)
        for each in (lately, held_out)
    ]
    return fair[0], fair[1].cast(fair[0].schema)


def impossible_counts(warehouse: Warehouse, scored: pl.DataFrame) -> pl.DataFrame:
    """Day and counter of the impossible counts that the baseline of scored rows may have been made of."""
    days: list[date] = scored["service_date"].unique().to_list()
    columns = ("service_date", "counter_id", "is_spike")
    if not days:
        return CLEANED_COUNTS.empty().select(columns)
    first = min(days) - timedelta(weeks=BASELINE_WEEKS)
    return warehouse.read(CLEANED_COUNTS, first, max(days), columns=columns, order=False).filter("is_spike")


def day_errors(scored: pl.DataFrame) -> pl.DataFrame:
    """Errors of `champion_errors` by day, as `skill_change` takes them."""
    return (
        scored.group_by("service_date")
        .agg(
            squared_error=((pl.col("forecast") - pl.col("hourly_count")) ** 2).sum(),
            baseline_squared_error=((pl.col("mean4") - pl.col("hourly_count")) ** 2).sum(),
            hours=pl.len(),
            count_sum=pl.col("hourly_count").sum(),
            count_square_sum=(pl.col("hourly_count") ** 2).sum(),
        )
        .sort("service_date")
    )


def with_ratios(profile: pl.DataFrame, scored: pl.DataFrame) -> pl.DataFrame:
    """Rows of a daily profile, and below them a counter's and day's forecast and count over the mean of four weeks.

    Both ratios are free of the season, so that what was forecast and counted lately can be held against the days that
    the champion's training left out.
    """
    usual = pl.col("mean4").sum()
    ratios = scored.group_by("service_date", "counter_id").agg(
        forecast_to_usual=pl.when(usual > 0).then(pl.col("forecast").sum() / usual),
        count_to_usual=pl.when(usual > 0).then(pl.col("hourly_count").sum() / usual),
    )
    return pl.concat([profile, ratios.sort("service_date", "counter_id")], how="diagonal_relaxed")


def skill_text(skill: SkillChange) -> str:
    """A change of skill in words."""
    if skill.lately is None or skill.held_out is None:
        return f"not known: {skill.days} days of truth of this champion, {MIN_DAYS} are needed"
    error = (
        "" if skill.error_rise is None else f", error over the spread of the counts {skill.error_rise:+.0%}"
    )
    return (
        f"{skill.lately:.1%} on {skill.days} days, {skill.held_out:.1%} when it was trained "
        f"(p {skill.p_value:.3f}){error}"
    )


def findings_json(
    summary: DriftSummary, shift: Shift | None, skill: SkillChange, fell: bool, told: Sequence[Alarm]
) -> str:
    """Everything a drift report found, as one JSON object; `share` and `drifted` are those of the columns."""
    return json.dumps(
        {
            **json.loads(summary_json(summary)),
            "network": asdict(shift) if shift else None,
            "skill": {**asdict(skill), "fell": fell},
            "alarms": [asdict(alarm) for alarm in told],
        },
        ensure_ascii=False,
        allow_nan=False,
        default=str,
    )


@dataclass(frozen=True)
class Realised:
    """How good the forecasts were whose truth has arrived: R² and RMSE over all hours, hours and days of truth."""

    r2: float | None
    rows: int
    days: int
    rmse: float | None = None


def drift_windows(
    warehouse: Warehouse, issue_date: date, days: int
) -> tuple[pl.DataFrame, pl.DataFrame, str]:
    """Cleaned counts of the window before an issue date and of its same-season reference, and the reference's kind.

    Raises:
        Failure: one of the two has no counts.
    """
    first, last = issue_date - timedelta(days=days), issue_date - timedelta(days=1)
    history = warehouse.read(CLEANED_COUNTS, first - timedelta(days=YEAR_DAYS + 14), last)
    current = history.filter(pl.col("service_date") >= first)
    if current.is_empty():
        raise dg.Failure(
            f"no counts from {first} to {last}; materialise cleaned_counts of those days first",
            allow_retries=False,
        )
    reference = reference_days(
        current_days=current["service_date"].unique().to_list(),
        available_days=history["service_date"].unique().to_list(),
    )
    if reference.kind == "none":
        raise dg.Failure(
            f"no counts of the same season before {first} to compare with; materialise earlier cleaned_counts first",
            allow_retries=False,
        )
    return current, history.filter(pl.col("service_date").is_in(reference.days)), reference.kind


def health_until(warehouse: Warehouse, last: date) -> pl.DataFrame:
    """COUNTER_HEALTH of the days that an expectation of the last one is learned from.

    Raises:
        Failure: there is none.
    """
    health = warehouse.read(COUNTER_HEALTH, last - timedelta(days=HISTORY_DAYS + GROWING_DAYS["trend"]), last)
    if health.is_empty():
        raise dg.Failure(
            f"counter health up to {last} is not known; materialise counter_health of these days first",
            allow_retries=False,
        )
    return health


def report_folder(settings: Settings, issue_date: date) -> Path:
    """Where the reports of an issue date stand."""
    return settings.reports_dir / issue_date.isoformat()


def reported_drift(settings: Settings, issue_date: date, *, needed: bool = True) -> dict[str, Any]:
    """What the drift report of an issue date found: at least `share` (None: not known) and `skill`.

    Raises:
        Failure: there is no report of that day, and one is needed.
    """
    path = report_folder(settings, issue_date) / REPORT_JSON
    if not path.exists():
        if not needed:
            return {"share": None, "skill": {"fell": False}}
        raise dg.Failure(
            f"there is no drift report of {issue_date}; materialise drift_report first", allow_retries=False
        )
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def realised(warehouse: Warehouse, issue_date: date, days: int, model_version: str | None) -> Realised:
    """The champion's realised accuracy on the days before an issue date, all horizons together.

    Counters that were not alive on the day, or when it was forecast, are left out: they are incidents of their own
    (`counter_health`), and a new model would not have done better.
    """
    first, last = issue_date - timedelta(days=days), issue_date - timedelta(days=1)
    scored = warehouse.query(
        """
        SELECT service_date, issue_date, counter_id, hours, truth_sum, truth_square_sum, squared_error_sum
        FROM bike_traffic_analytics.forecast_accuracy
        WHERE model_version = ? AND service_date BETWEEN ? AND ?
        """,
        [model_version, first, last],
    )
    health = warehouse.read(
        COUNTER_HEALTH,
        first - timedelta(days=MAX_HORIZON),
        last,
        columns=("service_date", "counter_id", "state"),
        order=False,
    )
    fair = of_healthy_days(scored, health, "issue_date")
    if fair.is_empty():
        return Realised(None, 0, 0)
    hours, total, squares, errors = (
        float(fair[name].sum()) for name in ("hours", "truth_sum", "truth_square_sum", "squared_error_sum")
    )
    spread = squares - total**2 / hours
    # Databases give rows in any order; the digits that come of adding them would tell one place's decisions from
    # another's.
    r2 = round(1 - errors / spread, 9) if spread > 0 else None
    return Realised(r2, int(hours), fair["service_date"].n_unique(), math.sqrt(errors / hours))


def decision_row(issue_date: date, answer: RetrainingDecision, version: str | None) -> pl.DataFrame:
    """The audit row of a decision, as RETRAINING_DECISIONS."""
    return pl.DataFrame(
        {
            "service_date": [issue_date],
            "retrain": [answer.retrain],
            "decision": [answer.decision],
            "reasons": ["; ".join(answer.reasons)],
            "r2": [answer.r2],
            "drift_share": [answer.drift_share],
            "truth_rows": [answer.n_truth_rows],
            "model_version": [version],
        },
        schema=RETRAINING_DECISIONS.polars_schema,
    )
