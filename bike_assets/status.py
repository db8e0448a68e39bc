"""What a home holds, as the CLI reports it."""

from typing import Any

from bike_assets.core.contracts import CLEANED_COUNTS, PREDICTIONS, RAW_COUNTS
from bike_assets.core.errors import PermanentError
from bike_assets.home import open_instance
from bike_assets.resources.bundles import BUNDLE_TAG
from bike_assets.resources.registry import CHAMPION, ModelRegistry
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.settings import Settings

_ASSETS = (
    "raw_counts",
    "cleaned_counts",
    "counter_health",
    "filled_counts",
    "counters",
    "features",
    "trained_model",
    "champion",
    "predictions",
    "forecast_accuracy",
    "drift_report",
    "retraining_decision",
)


def read_status(settings: Settings) -> dict[str, Any]:
    """Tables with rows and days, assets with their last materialisation, and the champion where there is one."""
    warehouse = DuckDBWarehouse(path=str(settings.warehouse_path))
    tables = []
    for contract in (RAW_COUNTS, CLEANED_COUNTS, PREDICTIONS):
        if not warehouse.exists(contract):
            continue
        row = warehouse.query(
            f"SELECT count(*) AS rows, min(service_date) AS first, max(service_date) AS last FROM {contract.relation}"  # noqa: S608
        ).row(0, named=True)
        tables.append({"table": contract.relation, **row})
    assets = []
    with open_instance(settings) as instance:
        import dagster as dg

        for name in _ASSETS:
            event = instance.get_latest_materialization_event(dg.AssetKey(name))
            materialization = event.asset_materialization if event else None
            assets.append(
                {
                    "asset": name,
                    "partition": materialization.partition if materialization else None,
                    "run": event.run_id[:8] if event else None,
                }
            )
    registry = ModelRegistry.from_settings(settings)
    return {
        "home": str(settings.home),
        "tables": tables,
        "assets": assets,
        "champion": describe_champion(settings) if registry.by_alias(CHAMPION) else None,
    }


def describe_champion(settings: Settings) -> dict[str, Any]:
    """The champion in the registry.

    Raises:
        PermanentError: there is none.
    """
    registry = ModelRegistry.from_settings(settings)
    version = registry.by_alias(CHAMPION)
    if version is None:
        raise PermanentError(
            f"{settings.model_name} has no champion yet; run: bike-assets demo --home {settings.home}"
        )
    return {
        "name": version.name,
        "version": version.version,
        "run_id": version.run_id,
        "trained_until": version.tags["trained_until"],
        "trained_at": version.tags["trained_at"],
        "data_hash": version.tags["data_hash"],
        "git_commit": version.tags["git_commit"],
        "bundle_id": version.tags.get(BUNDLE_TAG),
        "bundle": str(settings.bundles_dir / version.tags.get(BUNDLE_TAG, "")),
        "holdout": {
            name.removeprefix("holdout."): float(value)
            for name, value in sorted(version.tags.items())
            if name.startswith("holdout.")
        },
        "mlflow": registry.run_url(version.run_id),
    }
