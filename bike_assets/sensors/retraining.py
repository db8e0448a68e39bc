"""Closes the loop: a decision to retrain starts the `retrain` job.

`trained_model` cannot depend on `drift_report` without a cycle, so a sensor on `retraining_decision` stands
between them. It reads the decision from the event log and opens no warehouse.
"""

import dagster as dg

from bike_assets.jobs import RETRAIN
from bike_assets.settings import Settings


def build_retraining_sensor(settings: Settings) -> dg.SensorDefinition:
    """The sensor of an environment: running in compose and the cloud, stopped on a laptop."""

    @dg.asset_sensor(
        asset_key=dg.AssetKey("retraining_decision"),
        name="retraining",
        job=RETRAIN,
        minimum_interval_seconds=60,
        default_status=(
            dg.DefaultSensorStatus.RUNNING if settings.automation_on else dg.DefaultSensorStatus.STOPPED
        ),
    )
    def retraining(
        _context: dg.SensorEvaluationContext, event: dg.EventLogEntry
    ) -> dg.RunRequest | dg.SkipReason:
        """Starts a training when the newest decision asks for one; once a decision, however often it is seen."""
        materialization = event.asset_materialization
        if materialization is None:
            return dg.SkipReason("the event carries no materialisation")
        decision = materialization.metadata.get("decision")
        retrain = materialization.metadata.get("retrain")
        text = decision.value if decision else "no decision"
        if retrain is None or not retrain.value:
            return dg.SkipReason(f"{materialization.partition}: {text}")
        return dg.RunRequest(
            run_key=f"retrain-{materialization.partition}", tags={"bike.decision": str(text)}
        )

    return retraining
