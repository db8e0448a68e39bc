"""The jobs people and schedules start. A job is a selection of assets; their checks come with them."""

from typing import Final

import dagster as dg

from bike_assets.assets.dbt_models import ACCURACY_MODELS, CLEANING_MODELS, DESCRIBING_MODELS

CLEANED: Final = (*CLEANING_MODELS, "counter_health", "filled_counts")
"""What follows from the counts of some days, made for a range of them in one run."""

INGEST: Final = dg.define_asset_job(
    "ingest",
    selection=dg.AssetSelection.assets("raw_counts"),
    description="Fetch the counts of some days; run it again for late corrections",
)
CLEAN: Final = dg.define_asset_job(
    "clean",
    selection=dg.AssetSelection.assets(*CLEANED),
    description="Clean, judge and fill the counts of some days",
)
WEATHER: Final = dg.define_asset_job(
    "weather",
    selection=dg.AssetSelection.assets("raw_weather"),
    description="Fetch the weather of some days as observed, and what was expected of their weeks",
)
PREDICT: Final = dg.define_asset_job(
    "predict",
    selection=dg.AssetSelection.assets("features", "predictions"),
    description="Compute features and forecast the seven days from an issue date",
)
DESCRIBE: Final = dg.define_asset_job(
    "describe",
    selection=dg.AssetSelection.assets(*DESCRIBING_MODELS, *ACCURACY_MODELS),
    description="Rebuild the tables about counters, traffic and realised errors",
)
RETRAIN: Final = dg.define_asset_job(
    "retrain",
    selection=dg.AssetSelection.assets("trained_model", "champion"),
    description="Train a challenger and decide whether it becomes champion",
)
MONITOR: Final = dg.define_asset_job(
    "monitor",
    selection=dg.AssetSelection.assets("drift_report", "retraining_decision"),
    description="Report drift and decide whether to retrain",
)
EXPERIMENT: Final = dg.define_asset_job(
    "experiment",
    selection=dg.AssetSelection.assets("shadow_predictions", "experiment_report"),
    description="Forecast with the challenger beside the champion, and compare them where truth has arrived",
)

JOBS: Final = (INGEST, CLEAN, WEATHER, DESCRIBE, PREDICT, EXPERIMENT, RETRAIN, MONITOR)
