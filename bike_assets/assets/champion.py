"""`champion`: who serves, decided by comparing the challenger with the model that does."""

import json
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import dagster as dg

from bike_assets import tags
from bike_assets.assets.forecasting import FEATURES, newest_day
from bike_assets.core.intervals import target_day
from bike_assets.core.promotion import (
    PromotionDecision,
    PromotionPolicy,
    WindowScores,
    decide_promotion,
    window_score,
)
from bike_assets.resources.audit import AUTOMATION, AuditLog
from bike_assets.resources.bundles import BUNDLE_TAG, BundleStore
from bike_assets.resources.championship import ChampionStore, Request
from bike_assets.resources.registry import CHALLENGER, ModelRegistry, ModelVersion
from bike_assets.resources.warehouse import DuckDBWarehouse


def build_champion(policy: PromotionPolicy) -> dg.AssetsDefinition:
    """The asset `champion`, deciding by the given policy."""

    @dg.asset(
        deps=["trained_model"],
        group_name=tags.FORECASTING,
        owners=[tags.ML_TEAM],
        kinds={"mlflow"},
        pool=tags.WAREHOUSE_POOL,
        code_version="1",
    )
    def champion(
        context: dg.AssetExecutionContext,
        warehouse: DuckDBWarehouse,
        registry: ModelRegistry,
        bundles: BundleStore,
        audit: AuditLog,
        championship: ChampionStore,
    ) -> dg.MaterializeResult[None]:
        """Who serves: the registry's alias moves to the challenger, or it does not, with reasons."""
        challenger = registry.by_alias(CHALLENGER)
        if challenger is None:
            raise dg.Failure("there is no challenger; materialise trained_model first", allow_retries=False)
        title = championship.open(registry, bundles, warehouse, audit)
        state = title.state()
        incumbent = registry.version(state.champion) if state.champion else None
        decision: str
        reasons: tuple[str, ...]
        promoted = False
        if state.champion == challenger.version:
            decision, reasons = "unchanged", ("the challenger already serves",)
        elif challenger.version in state.barred:
            decision, reasons = "barred", (f"a person took version {challenger.version} out",)
        else:
            answer = judge(challenger, incumbent, registry, warehouse, policy)
            decision, reasons, promoted = answer.decision, answer.reasons, answer.promote
            request = Request(
                AUTOMATION,
                "; ".join(reasons),
                operation_id=context.run.run_id,
                dagster_run_id=context.run.run_id,
                service_date=newest_day(warehouse) + timedelta(days=1),
            )
            facts = {**verdict_facts(answer), "policy": json.dumps(asdict(policy), sort_keys=True)}
            title.record_verdict(challenger, request, replaced_version=state.champion, **facts)
            if promoted:
                title.promote(challenger, request, against=state.champion, facts=facts)
        if promoted:
            serving = registry.version(challenger.version)
            bundle_id = serving.tags[BUNDLE_TAG]
        elif incumbent is None:
            raise dg.Failure(
                f"version {challenger.version} was not promoted and nothing serves yet: {'; '.join(reasons)}",
                allow_retries=False,
            )
        else:
            serving = incumbent
            bundle_id = bundles.publish(serving, registry.load_forecaster(serving), warehouse, registry)
        for reason in reasons:
            context.log.info(reason)
        return dg.MaterializeResult(
            metadata={
                "champion": f"{serving.name} version {serving.version}",
                "challenger": f"{challenger.name} version {challenger.version}",
                "decision": decision,
                "reasons": dg.MetadataValue.md("\n".join(f"- {reason}" for reason in reasons)),
                "bundle_id": bundle_id,
                "mlflow_run": dg.MetadataValue.url(registry.run_url(serving.run_id)),
            }
        )

    return champion


def verdict_facts(answer: PromotionDecision) -> dict[str, Any]:
    """What the audit log says of a comparison, by column."""
    return {
        "deployment_decision": answer.decision,
        "double_evaluation_enabled": answer.baseline_r2 is not None and answer.champion_r2 is not None,
        "baseline_regression": answer.decision == "below_floor",
        "r2_baseline": answer.baseline_r2,
        "r2_current": answer.challenger_r2,
        "champion_r2_current": answer.champion_r2,
        "model_improvement": answer.gain_r2,
        "p_value": answer.p_value,
        "days_compared": answer.n_days,
    }


def judge(
    challenger: ModelVersion,
    incumbent: ModelVersion | None,
    registry: ModelRegistry,
    warehouse: DuckDBWarehouse,
    policy: PromotionPolicy,
) -> PromotionDecision:
    """Score both models on the challenger's held-out rows that neither was trained on, and decide.

    Rows the incumbent was trained on are left out for both, so a young incumbent is judged on fewer days.
    """
    holdout = registry.load_holdout(challenger)
    ours = holdout.select(day=target_day(), truth="hourly_count", forecast="forecast")
    if incumbent is None:
        score = window_score(ours)
        return decide_promotion(WindowScores(score, score), None, policy)
    both = holdout.filter(target_day() > incumbent.trained_until)
    keys = ["service_date", "counter_id", "target_ts"]
    if both.is_empty():
        empty = window_score(ours.head(0))
        return decide_promotion(
            WindowScores(window_score(ours), empty), WindowScores(window_score(ours), empty), policy
        )
    first, last = both["service_date"].min(), both["service_date"].max()
    inputs = warehouse.read(FEATURES, first, last).join(both.select(keys), on=keys, how="semi")  # type: ignore[arg-type]
    theirs = registry.load_forecaster(incumbent).predict(inputs).select(*keys, theirs="forecast")
    joined = both.join(theirs, on=keys, how="inner").with_columns(day=target_day())
    new = window_score(joined.select("day", truth="hourly_count", forecast="forecast"))
    old = window_score(joined.select("day", truth="hourly_count", forecast="theirs"))
    return decide_promotion(WindowScores(new, new), WindowScores(old, old), policy)
