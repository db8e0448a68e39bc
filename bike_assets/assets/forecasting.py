"""`features`, `trained_model` and `predictions`: from cleaned counts to forecasts. `champion.py` decides who serves."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import dagster as dg
import polars as pl

from bike_assets import clock, tags
from bike_assets.assets import plots
from bike_assets.assets.metadata import sample_table, table_metadata
from bike_assets.assets.provenance import git_commit
from bike_assets.core.bundle import WEATHER_CONTEXT_COLUMNS
from bike_assets.core.contracts import (
    CALIBRATIONS,
    CLEANED_COUNTS,
    COUNTER_HEALTH,
    COUNTERS,
    PREDICTIONS,
    RAW_WEATHER,
    TableContract,
    features_contract,
)
from bike_assets.core.errors import PermanentError
from bike_assets.core.features import FEATURE_COLUMNS, LOOKBACK_DAYS, MAX_HORIZON, build_features, sample_rows
from bike_assets.core.health import NOT_LEARNED, without
from bike_assets.core.intervals import ERROR_COLUMNS, WINDOW_DAYS, Calibration
from bike_assets.core.metrics import accuracy_by_horizon, join_truth
from bike_assets.core.model import Forecaster
from bike_assets.core.model_card import CardFacts, holdout_table, model_card, worst_counters
from bike_assets.core.training import TrainConfig, day_shares, parse_options, rows_wanted
from bike_assets.core.windows import BaselineWindow, choose_baseline, learnable
from bike_assets.partitions import KNOWN_AT_ISSUE, WEATHER_AT_ISSUE, window
from bike_assets.resources.audit import AuditLog, os_user, version_facts
from bike_assets.resources.bundles import BundleStore
from bike_assets.resources.registry import BASELINE_TAG, TRAINING_SECONDS_TAG, ModelRegistry, ModelVersion
from bike_assets.resources.snapshots import SnapshotStore, Taking
from bike_assets.resources.warehouse import Warehouse
from bike_assets.settings import Settings

FEATURES: Final = features_contract(FEATURE_COLUMNS)

CHUNK_DAYS: Final = 14
"""Issue dates computed and written at a time: about a quarter of a million rows of a whole city."""

TRAINING_TABLES: Final = (RAW_WEATHER, CLEANED_COUNTS)
"""What features and truth of a training are made of, and what its snapshot holds."""

_COUNT_COLUMNS: Final = (
    "service_date",
    "counter_id",
    "ts_utc",
    "local_hour",
    "hourly_count",
)


class TrainingConfig(dg.Config):
    """What a training may be told."""

    train_until: str = ""
    """Last local day of counts that training sees, as 2024-01-28. Default: the newest complete day."""


def build_features_asset(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """The asset `features` on the given issue dates."""

    @dg.asset(
        deps=[
            dg.AssetDep("cleaned_counts", partition_mapping=KNOWN_AT_ISSUE),
            dg.AssetDep("raw_weather", partition_mapping=WEATHER_AT_ISSUE),
            "counters",
        ],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=tags.FORECASTING,
        owners=[tags.ML_TEAM],
        kinds={"polars", "duckdb"},
        pool=tags.WAREHOUSE_POOL,
        code_version="3",
    )
    def features(context: dg.AssetExecutionContext, warehouse: Warehouse) -> dg.MaterializeResult[None]:
        """What is known about every counter and coming hour when a forecast is issued.

        A row a counter, target hour and horizon day; a partition is an issue date and looks at counts of the
        days before it only, and at the weather forecast of its morning. Without weather its columns are null.
        """
        first, last = window(context)
        counts = warehouse.read(
            CLEANED_COUNTS,
            first - timedelta(days=LOOKBACK_DAYS),
            last - timedelta(days=1),
            columns=_COUNT_COLUMNS,
        )
        weather = warehouse.read(
            RAW_WEATHER, first - timedelta(days=LOOKBACK_DAYS), last, columns=WEATHER_CONTEXT_COLUMNS
        )
        positions = warehouse.read(COUNTERS, columns=("counter_id", "latitude", "longitude"))
        rows = 0
        newest = FEATURES.empty()
        for start, end in chunks(first, last):
            newest = build_features(counts, _days(start, end), weather=weather, positions=positions)
            warehouse.replace(FEATURES, newest, start, end)
            rows += newest.height
            context.log.info(f"features of issue dates {start} to {end}: {newest.height:,} rows")
        return dg.MaterializeResult(
            metadata={
                **table_metadata(FEATURES, newest.head(0)),
                "dagster/row_count": rows,
                "sample": sample_table(
                    newest.select("service_date", "counter_id", "target_ts", "horizon", "mean4", "level_28d"),
                    5,
                ),
                "inputs": len(FEATURE_COLUMNS),
                "weather_hours": weather.filter(kind="forecast").height,
            }
        )

    return features


def build_trained_model(settings: Settings) -> dg.AssetsDefinition:
    """The asset `trained_model`, with the settings' sizes."""

    @dg.asset(
        deps=[
            dg.AssetDep("features", partition_mapping=dg.LastPartitionMapping()),
            dg.AssetDep("counter_health", partition_mapping=dg.LastPartitionMapping()),
        ],
        group_name=tags.FORECASTING,
        owners=[tags.ML_TEAM],
        kinds={"catboost", "mlflow"},
        pool=tags.WAREHOUSE_POOL,
        code_version="1",
        tags={"dagster/max_runtime": "3600"},
    )
    def trained_model(
        context: dg.AssetExecutionContext,
        config: TrainingConfig,
        warehouse: Warehouse,
        registry: ModelRegistry,
        snapshots: SnapshotStore,
        audit: AuditLog,
    ) -> dg.MaterializeResult[None]:
        """The challenger: trained, measured on days it did not see, and registered in MLflow."""
        until = date.fromisoformat(config.train_until) if config.train_until else newest_day(warehouse)
        train_config = training_config(settings)
        rows = training_rows(warehouse, until, settings.training_days, train_config)
        truth = believable_truth(warehouse, until)
        snapshot = snapshots.take(
            warehouse,
            Taking(
                clock.now(),
                f"trained_model, run {context.run.run_id[:8]}",
                f"trained on counts up to {until}",
            ),
            tables=TRAINING_TABLES,
            last=until,
        ).snapshot
        window = baseline_window(settings, registry, rows, until, train_config)
        rows = learnable(rows, window)
        context.log.info(f"training on {rows.height:,} rows of features, counts up to {until}")
        began = time.monotonic()
        forecaster = Forecaster().fit(rows, truth, train_config)
        seconds = time.monotonic() - began
        accuracy = accuracy_by_horizon(
            forecaster.holdout.drop("hourly_count"),
            forecaster.holdout.select("counter_id", "hourly_count", ts_utc="target_ts").unique(),
        )
        metrics = {
            f"holdout.day_{horizon}.{name}": value
            for horizon, scores in accuracy.items()
            for name, value in (
                ("r2", scores.r2),
                ("rmse", scores.rmse),
                ("wape", scores.wape),
                ("skill", scores.skill),
            )
            if value is not None
        }
        version = registry.log_training(
            forecaster,
            dagster_run_id=context.run.run_id,
            params=train_config.__dict__,
            metrics={**metrics, "training_rows": float(rows.height)},
            tags={
                "trained_until": until.isoformat(),
                "trained_from": str(rows.get_column("service_date").min()),
                "trained_at": clock.now().isoformat(timespec="seconds"),
                "trained_by": context.run.tags.get("user", os_user()),
                "trained_because": context.run.tags.get("bike.decision", "asked for by a person"),
                TRAINING_SECONDS_TAG: f"{seconds:.1f}",
                **({BASELINE_TAG: str(window)} if window else {}),
                "data_hash": snapshot.id,
                "git_commit": git_commit(),
                **{key: repr(value) for key, value in metrics.items() if key.endswith(("r2", "skill"))},
            },
            example=rows.head(100),
        )
        audit.append(
            warehouse,
            audit.event(
                "trained",
                actor=version.tags["trained_by"],
                reason=version.tags["trained_because"],
                service_date=until + timedelta(days=1),
                dagster_run_id=context.run.run_id,
                fine_tune_success=True,
                r2_train=metrics.get("holdout.day_1.r2"),
                **version_facts(version),
            ),
        )
        importance = forecaster.feature_importance()
        failures: dict[str, dg.MetadataValue] = {}
        if forecaster.holdout.height:
            table = holdout_table(forecaster.holdout, forecaster.affluence)
            card = model_card(card_facts(version, forecaster), table)
            registry.describe(
                version, card, {"model_card.md": card, "held_out_accuracy.csv": table.write_csv()}
            )
            failures = {
                "worst_counters": sample_table(worst_counters(table)),
                "error_by_hour": dg.MetadataValue.md(plots.error_by_hour(table)),
                "model_card": dg.MetadataValue.md(card),
            }
        return dg.MaterializeResult(
            metadata={
                "model": f"{version.name} version {version.version}",
                "mlflow_run": dg.MetadataValue.url(registry.run_url(version.run_id)),
                "trained_until": until.isoformat(),
                "training_rows": rows.height,
                "data_hash": version.tags["data_hash"],
                "git_commit": version.tags["git_commit"],
                "holdout_accuracy": _accuracy_table(accuracy),
                "error_by_horizon": dg.MetadataValue.md(plots.error_by_horizon(accuracy)),
                "feature_importance": dg.MetadataValue.md(
                    plots.feature_importance(list(importance.items())[:20])
                ),
                **failures,
            }
        )

    return trained_model


def card_facts(version: ModelVersion, forecaster: Forecaster) -> CardFacts:
    """What a registered version says of itself."""
    return CardFacts(
        name=version.name,
        version=version.version,
        family=forecaster.config.family,
        trained_from=version.tags["trained_from"],
        trained_until=version.trained_until,
        held_out_days=forecaster.config.calibration_days,
        data_hash=version.tags["data_hash"],
        git_commit=version.tags["git_commit"],
        counters=len(forecaster.affluence.thresholds),
    )


def training_config(settings: Settings) -> TrainConfig:
    """How the settings train a model: what a variable says comes before the file of options, as that does before the
    defaults.

    Raises:
        PermanentError: the file cannot be read, or an option in it is unknown or not allowed.
    """
    options: dict[str, object] = {
        "family": settings.model_family,
        "max_rows": settings.training_rows,
        "seed": settings.seed,
    }
    if settings.training_options is not None:
        options |= read_options(settings.training_options)
    named = settings.model_fields_set
    options |= {
        option: getattr(settings, variable)
        for option, variable in (("family", "model_family"), ("max_rows", "training_rows"), ("seed", "seed"))
        if variable in named
    }
    if settings.iterations:
        options["iterations"] = settings.iterations
    return TrainConfig(**options)  # type: ignore[arg-type]


def read_options(path: Path) -> dict[str, object]:
    """Training options of a JSON file, as `bike-assets tune` writes it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PermanentError(
            f"training options {path}: {error}; run bike-assets tune, or name another file"
        ) from None
    if not isinstance(found, dict):
        raise PermanentError(f"training options {path}: give one JSON object of options and values")
    return parse_options(found, str(path))


def baseline_window(
    settings: Settings, registry: ModelRegistry, rows: pl.DataFrame, until: date, config: TrainConfig
) -> BaselineWindow | None:
    """The days that no training learns from: those the settings name, else those fixed at the first training.

    None where there is too little history yet to leave some out.
    """
    if settings.baseline_first is not None and settings.baseline_days:
        last = settings.baseline_first + timedelta(days=settings.baseline_days - 1)
        return BaselineWindow(settings.baseline_first, last)
    if settings.baseline_days == 0:
        return None
    if known := registry.baseline_window():
        return BaselineWindow.parse(known)
    first = rows["service_date"].min()
    assert isinstance(first, date)  # noqa: S101  rows are never none
    chosen = choose_baseline(
        first,
        until,
        ratio=settings.baseline_ratio,
        days=settings.baseline_days,
        held_out_days=config.calibration_days,
    )
    if chosen is not None:
        registry.fix_baseline_window(str(chosen))
    return chosen


def believable_truth(warehouse: Warehouse, until: date, first: date | None = None) -> pl.DataFrame:
    """Counts up to a day, or from `first` to it, that a model may learn from and be judged by.

    Columns: `counter_id`, `ts_utc`, `hourly_count`. Impossible counts are left out, and the
    days on which a counter was stuck or drifting.
    """
    counts = warehouse.read(
        CLEANED_COUNTS,
        first,
        until,
        columns=("service_date", "counter_id", "ts_utc", "hourly_count", "is_spike"),
    )
    health = warehouse.read(
        COUNTER_HEALTH, first, until, columns=("service_date", "counter_id", "state"), order=False
    )
    kept = without(counts.filter(~pl.col("is_spike")), health, NOT_LEARNED)
    return kept.sort("counter_id", "ts_utc").select("counter_id", "ts_utc", "hourly_count")


def build_predictions(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """The asset `predictions` on the given issue dates."""

    @dg.asset(
        deps=["features", "champion"],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=tags.FORECASTING,
        owners=[tags.ML_TEAM],
        kinds={"catboost", "duckdb"},
        pool=tags.WAREHOUSE_POOL,
        code_version="2",
    )
    def predictions(
        context: dg.AssetExecutionContext,
        warehouse: Warehouse,
        registry: ModelRegistry,
        bundles: BundleStore,
    ) -> dg.MaterializeResult[None]:
        """Forecast vintages: the next seven days of every counter as the champion forecast them that morning."""
        first, last = window(context)
        version = registry.champion()
        forecaster = registry.load_forecaster(version)
        rows, issued = issue_vintages(warehouse, registry, version, forecaster, (first, last))
        newest = issued.filter(pl.col("service_date") == pl.col("service_date").max())
        metadata = {
            **table_metadata(PREDICTIONS, newest),
            "dagster/row_count": dg.MetadataValue.int(rows),
            "model": dg.MetadataValue.text(f"{version.name} version {version.version}"),
            "mlflow_run": dg.MetadataValue.url(registry.run_url(version.run_id)),
        }
        counted = newest_day(warehouse)
        if last == counted + timedelta(days=1):
            metadata["bundle_id"] = dg.MetadataValue.text(
                bundles.publish(version, forecaster, warehouse, registry)
            )
        truth = warehouse.read(
            CLEANED_COUNTS,
            first,
            last + timedelta(days=6),
            columns=("service_date", "counter_id", "ts_utc", "hourly_count"),
        )
        shown = _to_show(issued, truth)
        if shown is not None:
            metadata["forecast_and_truth"] = dg.MetadataValue.md(plots.forecast_vs_truth(*shown))
        return dg.MaterializeResult(metadata=metadata)

    return predictions


@dataclass(frozen=True)
class VintageTables:
    """Where vintages are kept, and the calibration of each issue date."""

    forecasts: TableContract
    calibrations: TableContract


SERVED: Final = VintageTables(PREDICTIONS, CALIBRATIONS)


def issue_vintages(
    warehouse: Warehouse,
    registry: ModelRegistry,
    version: ModelVersion,
    forecaster: Forecaster,
    days: tuple[date, date],
    tables: VintageTables = SERVED,
) -> tuple[int, pl.DataFrame]:
    """Forecast every issue date of a range with one version, from what was known on each, and keep it.

    Args:
        warehouse: holds features and counts.
        registry: holds the errors of the version's held-out days.
        version: whose forecasts these are.
        forecaster: its fitted model.
        days: first and last issue date.
        tables: where the vintages go, and where those of earlier days are.

    Returns:
        Rows written, and the vintages of the newest issue dates, at most `CHUNK_DAYS` of them.

    Raises:
        Failure: the version was trained on counts of these days.
    """
    first, last = days
    if first <= version.trained_until:
        raise dg.Failure(
            f"version {version.version} was trained on counts up to {version.trained_until}: a forecast issued on "
            f"{first} would be scored on its own training; choose issue dates after that day",
            allow_retries=False,
        )
    holdout = registry.load_holdout(version).select(ERROR_COLUMNS)
    rows = 0
    forecast = tables.forecasts.empty()
    for start, end in chunks(first, last):
        counts = warehouse.read(
            CLEANED_COUNTS,
            start - timedelta(days=WINDOW_DAYS),
            end - timedelta(days=1),
            columns=("counter_id", "ts_utc", "hourly_count"),
            order=False,
        )
        errors = pl.concat([holdout, _issued_errors(warehouse, version, start, counts, tables)])
        forecast, calibrations = forecaster.issue(warehouse.read(FEATURES, start, end), counts, errors)
        forecast = forecast.with_columns(
            model_name=pl.lit(version.name),
            model_version=pl.lit(version.version),
            run_id=pl.lit(version.run_id),
        )
        warehouse.replace(tables.forecasts, forecast, start, end)
        warehouse.replace(tables.calibrations, _calibration_rows(version, calibrations), start, end)
        rows += forecast.height
    return rows, forecast


def _issued_errors(
    warehouse: Warehouse,
    version: ModelVersion,
    before: date,
    counts: pl.DataFrame,
    tables: VintageTables,
) -> pl.DataFrame:
    """Errors of the forecasts that this version issued before a day, of the hours counted since."""
    issued = warehouse.read(
        tables.forecasts,
        before - timedelta(days=WINDOW_DAYS + MAX_HORIZON),
        before - timedelta(days=1),
        columns=("service_date", "counter_id", "target_ts", "horizon", "forecast", "run_id"),
        order=False,  # a calibration sorts what it keeps of them
    ).filter(run_id=version.run_id)
    return join_truth(issued, counts).select(ERROR_COLUMNS)


def _calibration_rows(version: ModelVersion, calibrations: Mapping[date, Calibration]) -> pl.DataFrame:
    return CALIBRATIONS.conform(
        pl.DataFrame(
            [
                (day, version.run_id, calibration.rows, calibration.to_json())
                for day, calibration in calibrations.items()
            ],
            schema=CALIBRATIONS.polars_schema,
            orient="row",
        )
    )


def chunks(first: date, last: date) -> Iterator[tuple[date, date]]:
    """The range in pieces of `CHUNK_DAYS`, each with both ends included."""
    start = first
    while start <= last:
        end = min(start + timedelta(days=CHUNK_DAYS - 1), last)
        yield start, end
        start = end + timedelta(days=1)


def _days(first: date, last: date) -> list[date]:
    return [first + timedelta(days=offset) for offset in range((last - first).days + 1)]


def newest_day(warehouse: Warehouse) -> date:
    """The newest local day with cleaned counts.

    Raises:
        PermanentError: there are none yet.
    """
    if newest := warehouse.newest_day(CLEANED_COUNTS):
        return newest
    raise PermanentError("there are no cleaned counts yet; materialise raw_counts and cleaned_counts first")


def training_rows(warehouse: Warehouse, until: date, days: int, config: TrainConfig) -> pl.DataFrame:
    """A sample of the features issued in the `days` up to `until`, as many as the config wants.

    Rows are chosen by a hash of what they are about, so the same data gives the same sample in any order.
    """
    first = until - timedelta(days=days - 1)
    total, counters, dates = 0, 0, pl.Series([], dtype=pl.Date)
    if warehouse.exists(FEATURES):
        within = f"FROM {FEATURES.relation} WHERE service_date BETWEEN ? AND ?"
        total, counters = warehouse.query(
            f"SELECT count(*), count(DISTINCT counter_id) {within}", [first, until]
        ).row(0)
        dates = warehouse.query(
            f"SELECT DISTINCT service_date {within} ORDER BY 1", [first, until]
        ).to_series()
    if not total:
        raise PermanentError(
            f"there are no features of issue dates up to {until}; materialise features first"
        )
    shares = day_shares(dates.to_list(), total / len(dates), rows_wanted(counters, config), config)
    parts = [
        sample_rows(warehouse.read(FEATURES, start, end, order=False), shares, config.seed)
        for start, end in chunks(first, until)
    ]
    return pl.concat(parts).sort("service_date", "counter_id", "target_ts")


def _accuracy_table(accuracy: object) -> dg.MetadataValue:
    assert isinstance(accuracy, dict)  # noqa: S101
    return sample_table(
        pl.DataFrame([{"horizon": horizon, **vars(scores)} for horizon, scores in accuracy.items()])
    )


def _to_show(forecast: pl.DataFrame, truth: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, str] | None:
    """The busiest counter's forecast for the plot, with what truth there is."""
    if forecast.is_empty():
        return None
    busiest = (
        forecast.group_by("counter_id")
        .agg(pl.col("forecast").sum())
        .sort("forecast", "counter_id")["counter_id"][-1]
    )
    days = sorted(forecast["service_date"].unique())
    complete = [day for day in days if day + timedelta(days=6) <= (truth["service_date"].max() or day)]
    day = (complete or days)[-1]
    return forecast.filter(service_date=day), truth, busiest
