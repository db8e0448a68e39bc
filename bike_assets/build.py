"""The one assembly function: every asset, check, job, schedule, sensor and resource, put together from settings."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DbtProject

from bike_assets.assets.champion import build_champion
from bike_assets.assets.counter_health import build_counter_health
from bike_assets.assets.experiment import build_experiment_report, build_shadow_predictions
from bike_assets.assets.filled_counts import build_filled_counts
from bike_assets.assets.forecasting import (
    build_features_asset,
    build_predictions,
    build_trained_model,
)
from bike_assets.assets.ingestion import build_raw_counts
from bike_assets.assets.monitoring import build_drift_report, build_retraining_decision
from bike_assets.assets.transformation import build_dbt_assets
from bike_assets.assets.weather import build_raw_weather
from bike_assets.champion_jobs import CHAMPION_JOBS
from bike_assets.checks.asset_checks import build_asset_checks
from bike_assets.jobs import JOBS
from bike_assets.partitions import counted_and_issue_days, weather_days
from bike_assets.resources.alerts import Alerts
from bike_assets.resources.audit import AuditLog
from bike_assets.resources.bundles import BundleStore
from bike_assets.resources.championship import ChampionStore
from bike_assets.resources.dbt import DbtResource
from bike_assets.resources.registry import ModelRegistry
from bike_assets.resources.snapshots import SnapshotStore
from bike_assets.resources.source import CountsSourceResource, WeatherSourceResource
from bike_assets.resources.warehouse import Warehouse
from bike_assets.schedules import build_schedules
from bike_assets.sensors.alerts import build_alert_sensors
from bike_assets.sensors.changed_counts import build_changed_counts_sensor
from bike_assets.sensors.retraining import build_retraining_sensor
from bike_assets.settings import Settings


def build_defs(settings: Settings, resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Everything Dagster loads.

    Args:
        settings: where things are and how they decide.
        resource_overrides: resources to use in the place of those the settings name, by their key.
    """
    counted, issued = counted_and_issue_days(settings)
    project = dbt_project(settings)
    return dg.Definitions(
        assets=[
            build_raw_counts(counted),
            build_raw_weather(weather_days(settings)),
            *build_dbt_assets(project, counted),
            build_counter_health(counted),
            build_filled_counts(counted),
            build_features_asset(issued),
            build_trained_model(settings),
            build_champion(settings.promotion),
            build_predictions(issued),
            build_shadow_predictions(issued),
            build_experiment_report(settings.experiment, issued),
            build_drift_report(settings, settings.monitoring, issued),
            build_retraining_decision(settings, settings.retraining, issued),
        ],
        asset_checks=build_asset_checks(settings),
        jobs=(*JOBS, *CHAMPION_JOBS),
        schedules=build_schedules(settings, issued),
        sensors=[
            build_changed_counts_sensor(settings),
            build_retraining_sensor(settings),
            *build_alert_sensors(settings, settings.retraining),
        ],
        resources={**build_resources(settings, project), **(resource_overrides or {})},
        # Every step is in the pool of the warehouse, so none could run beside another; a process of its own would
        # only add the seconds of its start to each asset and check.
        executor=dg.in_process_executor,
    )


def build_resources(settings: Settings, project: DbtProject) -> dict[str, Any]:
    """The resources of an environment, by the key under which assets ask for them."""
    return {
        "warehouse": Warehouse.from_settings(settings),
        "source": CountsSourceResource.from_settings(settings),
        "weather": WeatherSourceResource.from_settings(settings),
        "registry": ModelRegistry.from_settings(settings),
        "bundles": BundleStore.from_settings(settings),
        "audit": AuditLog.from_settings(settings),
        "championship": ChampionStore.from_settings(settings),
        "snapshots": SnapshotStore.from_settings(settings),
        "alerts": Alerts.from_settings(settings),
        "dbt": DbtResource(
            project_dir=str(project.project_dir),
            profiles_dir=str(settings.dbt_project_dir),
            artifacts_dir=str(settings.dbt_artifacts_dir),
        ),
    }


def dbt_project(settings: Settings) -> DbtProject:
    """The dbt project with its manifest, made on a laptop when a model is newer; images carry it ready.

    dbt reads the warehouse's place from the environment, so that its profile holds no path. It is looked for on
    PATH, where it need not be when this interpreter's environment is not activated.
    """
    beside_python = str(Path(sys.executable).parent)
    if beside_python not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([beside_python, os.environ.get("PATH", "")])
    os.environ.update(settings.dbt_environment)
    project = DbtProject(project_dir=settings.dbt_project_dir, profiles_dir=settings.dbt_project_dir)
    if (
        not project.manifest_path.exists()
        or _newest_change(settings.dbt_project_dir) > project.manifest_path.stat().st_mtime
    ):
        project.preparer.prepare(project)
    return project


def _newest_change(folder: Path) -> float:
    sources = [
        path for pattern in ("*.sql", "*.yml") for path in folder.rglob(pattern) if "target" not in path.parts
    ]
    return max(path.stat().st_mtime for path in sources)
