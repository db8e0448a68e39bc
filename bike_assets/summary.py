"""The registry as `summary.json`: a list with an entry a version, as tools that grew up beside other systems read it.

Belongs here: the form of that list. Does not belong here: anything that decides by it. It is made from MLflow
whenever it is asked for and never read back.
"""

from typing import Any, Final

from bike_assets.resources.registry import CHAMPION, ModelRegistry
from bike_assets.settings import Settings

METRICS: Final = ("r2", "rmse", "accuracy", "precision", "recall", "f1_score")
"""What an entry says of a model where its run has it, measured on days that its training held out."""


def model_summary(settings: Settings) -> list[dict[str, Any]]:
    """Every version, the oldest first; exactly one is champion, or none before the first promotion.

    `r2` and `rmse` are of horizon day 1 on held-out days: never of rows that were trained on.
    """
    registry = ModelRegistry.from_settings(settings)
    champion = registry.by_alias(CHAMPION)
    client = registry.client()
    entries = []
    for version in registry.versions():
        run = client.get_run(version.run_id)
        measured = {name: run.data.metrics.get(f"holdout.day_1.{name}") for name in METRICS}
        entries.append(
            {
                "timestamp": version.tags["trained_at"],
                "model_type": run.data.params.get("family", "catboost"),
                "env": settings.env,
                "test_mode": False,
                "run_id": version.run_id,
                "model_uri": f"models:/{version.name}/{version.version}",
                "is_champion": champion is not None and champion.version == version.version,
                **{name: value for name, value in measured.items() if value is not None},
            }
        )
    return entries
