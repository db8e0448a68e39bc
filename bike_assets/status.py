"""What a home holds, as the CLI reports it."""

from pathlib import Path
from typing import Any

import polars as pl

from bike_assets.core.audit import Head
from bike_assets.core.contracts import CLEANED_COUNTS, PREDICTIONS, RAW_COUNTS
from bike_assets.core.errors import PermanentError
from bike_assets.core.succession import Succession
from bike_assets.home import open_instance
from bike_assets.resources.audit import AuditLog
from bike_assets.resources.bundles import BUNDLE_TAG, BundleStore
from bike_assets.resources.championship import Championship, ChampionStore
from bike_assets.resources.registry import CHALLENGER, CHAMPION, PREVIOUS, ModelRegistry, ModelVersion
from bike_assets.resources.warehouse import EVERY_DAY, Warehouse
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
    warehouse = Warehouse.from_settings(settings)
    tables = []
    for contract in (RAW_COUNTS, CLEANED_COUNTS, PREDICTIONS):
        if not warehouse.exists(contract):
            continue
        row = warehouse.query(
            f"SELECT count(*) AS rows, min(service_date) AS first, max(service_date) AS last FROM {contract.relation} "  # noqa: S608
            "WHERE service_date >= ?",
            [EVERY_DAY],
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


def championship(settings: Settings) -> Championship:
    """The championship of a home, outside of Dagster."""
    return ChampionStore.from_settings(settings).open(
        ModelRegistry.from_settings(settings),
        BundleStore.from_settings(settings),
        Warehouse.from_settings(settings),
        AuditLog.from_settings(settings),
    )


def settle(settings: Settings) -> Succession:
    """Finish or abandon the change that a dead process left, if there is one, and say who serves."""
    return championship(settings).state()


def verify_audit(settings: Settings, copy: Path | None) -> dict[str, Any]:
    """Rows, faults of the chain, and where the registry does not say what the log does.

    Args:
        settings: the home.
        copy: a file with a head that was kept elsewhere.
    """
    log = AuditLog.from_settings(settings)
    warehouse = Warehouse.from_settings(settings)
    copies = [Head.from_json(copy.read_text(encoding="utf-8"))] if copy else []
    found = log.verify(warehouse, copies)
    if not found:
        # Of a log that was tampered with nothing follows, and it is not added to.
        before = log.read(warehouse).height
        settle(settings)
        adopted = log.read(warehouse)[before:].filter(pl.col("event") == "adopted")
        found = adopted["reason"].to_list() if before else []
    head = log.head()
    return {
        "rows": log.read(warehouse).height,
        "head": head.to_json() if head else None,
        "faults": found,
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
        "semantic_version": version.tags.get("semantic_version"),
        "previous": _number(registry.by_alias(PREVIOUS)),
        "challenger": _number(registry.by_alias(CHALLENGER)),
        "promoted_by": version.tags.get("promoted_by"),
        "promoted_because": version.tags.get("promoted_because"),
        "bundle_id": version.tags.get(BUNDLE_TAG),
        "bundle": str(settings.bundles_dir / version.tags.get(BUNDLE_TAG, "")),
        "holdout": {
            name.removeprefix("holdout."): float(value)
            for name, value in sorted(version.tags.items())
            if name.startswith("holdout.")
        },
        "mlflow": registry.run_url(version.run_id),
    }


def _number(version: ModelVersion | None) -> str | None:
    return version.version if version else None
