"""`champion`: who serves, decided by comparing the challenger with the model that does."""

import json
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any, Final

import dagster as dg
import polars as pl

from bike_assets import tags
from bike_assets.assets.forecasting import FEATURES, believable_truth, chunks, newest_day
from bike_assets.core.features import MAX_HORIZON, sample_rows
from bike_assets.core.intervals import target_day
from bike_assets.core.promotion import (
    PromotionDecision,
    PromotionPolicy,
    WindowScore,
    WindowScores,
    decide_promotion,
    window_score,
)
from bike_assets.core.windows import BaselineWindow
from bike_assets.resources.audit import AUTOMATION, AuditLog
from bike_assets.resources.bundles import BUNDLE_TAG, BundleStore
from bike_assets.resources.championship import ChampionStore, Request
from bike_assets.resources.registry import BASELINE_TAG, CHALLENGER, ModelRegistry, ModelVersion
from bike_assets.resources.warehouse import Warehouse

JUDGED_ROWS: Final = 100_000
"""Rows of a window on which models are compared: R² of more differs in the third digit, and takes longer."""

_KEYS: Final = ["service_date", "counter_id", "target_ts"]


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
        warehouse: Warehouse,
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
        "champion_r2_baseline": answer.champion_baseline_r2,
        "champion_r2_current": answer.champion_r2,
        "model_improvement": answer.gain_r2,
        "p_value": answer.p_value,
        "days_compared": answer.n_days,
    }


def judge(
    challenger: ModelVersion,
    incumbent: ModelVersion | None,
    registry: ModelRegistry,
    warehouse: Warehouse,
    policy: PromotionPolicy,
) -> PromotionDecision:
    """Score both models on the same rows that neither learned from, window by window, and decide.

    The baseline window is the one that the challenger's training left out. The current window are the days after the
    incumbent's training: those that the challenger's own training held out, forecast by the model that was fitted
    without them, and those counted since, forecast by the challenger itself.
    """
    models = Models(registry, warehouse, challenger, incumbent)
    baseline = BaselineWindow.parse(challenger.tags.get(BASELINE_TAG))
    current = models.current()
    if baseline is None:
        # Too little history yet for a window of its own: the held-out days are all that is blind.
        held_out = registry.load_holdout(challenger).select(
            day=target_day(), truth="hourly_count", forecast="forecast"
        )
        ours = Compared(window_score(held_out), None)
    else:
        ours = models.baseline(baseline)
    theirs = None if current.theirs is None else WindowScores(ours.theirs, current.theirs)
    return decide_promotion(WindowScores(ours.ours, current.ours), theirs, policy)


@dataclass(frozen=True)
class Compared:
    """Challenger and incumbent on the same rows of a window; None where the incumbent cannot be held to it."""

    ours: WindowScore
    theirs: WindowScore | None


@dataclass(frozen=True)
class Models:
    """Two versions and the tables they are scored on."""

    registry: ModelRegistry
    warehouse: Warehouse
    challenger: ModelVersion
    incumbent: ModelVersion | None

    def baseline(self, window: BaselineWindow) -> Compared:
        """Both models on the baseline window; the incumbent only where its training left out the same window."""
        blind = self.incumbent is not None and self.incumbent.tags.get(BASELINE_TAG) == str(window)
        rows = self._counted(window.first - timedelta(days=MAX_HORIZON - 1), window.last)
        return self._both(rows.filter(window.holds()), theirs=blind)

    def current(self) -> Compared:
        """Both models on the days after the incumbent's training."""
        held_out = self.registry.load_holdout(self.challenger)
        since = self._counted(self.challenger.trained_until + timedelta(days=1), newest_day(self.warehouse))
        parts = [held_out.select(*_KEYS, "horizon", "hourly_count", ours="forecast")]
        if since.height:
            forecast = self.registry.load_forecaster(self.challenger).predict(since)["forecast"]
            parts.append(since.select(*_KEYS, "horizon", "hourly_count", ours=forecast))
        rows = pl.concat(parts, how="vertical_relaxed")
        if self.incumbent is None:
            return Compared(_score(rows, "ours"), None)
        blind = rows.filter(target_day() > self.incumbent.trained_until)
        if blind.is_empty():
            return Compared(_score(blind, "ours"), _score(blind, "ours"))
        first, last = blind["service_date"].min(), blind["service_date"].max()
        inputs = self.warehouse.read(FEATURES, first, last).join(blind.select(_KEYS), on=_KEYS, how="semi")  # type: ignore[arg-type]
        theirs = self.registry.load_forecaster(self.incumbent).predict(inputs)
        both = blind.join(theirs.select(*_KEYS, theirs="forecast"), on=_KEYS, how="inner")
        return Compared(_score(both, "ours"), _score(both, "theirs"))

    def _counted(self, first: date, last: date) -> pl.DataFrame:
        """A sample of the features issued from `first` to `last` whose hour was counted by then, with the count."""
        if first > last:
            return FEATURES.empty().with_columns(hourly_count=pl.lit(None, pl.Float64))
        truth = believable_truth(self.warehouse, last, first)
        parts = [
            self.warehouse.read(FEATURES, start, end, order=False).join(
                truth.rename({"ts_utc": "target_ts"}), on=["counter_id", "target_ts"], how="inner"
            )
            for start, end in chunks(first, last)
        ]
        rows = pl.concat(parts).drop_nulls("hourly_count")
        return sample_rows(rows, min(1.0, JUDGED_ROWS / max(rows.height, 1))).sort(_KEYS)

    def _both(self, rows: pl.DataFrame, *, theirs: bool) -> Compared:
        ours = self.registry.load_forecaster(self.challenger).predict(rows)["forecast"]
        scored = rows.select(*_KEYS, "horizon", "hourly_count", ours=ours)
        if self.incumbent is None or not theirs:
            return Compared(_score(scored, "ours"), None)
        forecast = self.registry.load_forecaster(self.incumbent).predict(rows)["forecast"]
        return Compared(_score(scored, "ours"), _score(scored.with_columns(theirs=forecast), "theirs"))


def _score(rows: pl.DataFrame, forecast: str) -> WindowScore:
    return window_score(rows.select(day=target_day(), truth="hourly_count", forecast=forecast))
