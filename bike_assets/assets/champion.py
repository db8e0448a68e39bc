"""`champion`: who serves, decided by comparing the challenger with the model that does."""

import dagster as dg

from bike_assets import tags
from bike_assets.assets.forecasting import FEATURES
from bike_assets.core.intervals import target_day
from bike_assets.core.promotion import (
    PromotionDecision,
    PromotionPolicy,
    WindowScores,
    decide_promotion,
    window_score,
)
from bike_assets.resources.bundles import BundleStore
from bike_assets.resources.registry import CHALLENGER, CHAMPION, PREVIOUS, ModelRegistry, ModelVersion
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
    ) -> dg.MaterializeResult[None]:
        """Who serves: the registry's alias moves to the challenger, or it does not, with reasons."""
        challenger = registry.by_alias(CHALLENGER)
        if challenger is None:
            raise dg.Failure("there is no challenger; materialise trained_model first", allow_retries=False)
        incumbent = registry.by_alias(CHAMPION)
        if incumbent is not None and incumbent.version == challenger.version:
            serving, decision = incumbent, "unchanged"
            reasons: tuple[str, ...] = ("the challenger already serves",)
        else:
            answer = judge(challenger, incumbent, registry, warehouse, policy)
            decision, reasons = answer.decision, answer.reasons
            promoted = challenger if answer.promote else incumbent
            if promoted is None:
                raise dg.Failure(
                    f"version {challenger.version} was not promoted and nothing serves yet: {'; '.join(reasons)}",
                    allow_retries=False,
                )
            serving = promoted
        bundle_id = bundles.publish(serving, registry.load_forecaster(serving), warehouse, registry)
        if incumbent is None or serving.version != incumbent.version:
            if incumbent is not None:
                registry.set_alias(PREVIOUS, incumbent)
            registry.set_alias(CHAMPION, serving)
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
