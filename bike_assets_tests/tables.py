"""Small tables, a small model and small stores, made by hand, for tests of the shell around the core.

Belongs here: rows that keep the contracts, and stores in a temporary folder. Does not belong here: fixtures, and
anything that runs the graph.
"""

import atexit
import importlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path

import polars as pl
import pytest

from bike_assets.core.calendar import days_between, hours_of_day, local_columns
from bike_assets.core.contracts import CLEANED_COUNTS, COUNTERS
from bike_assets.core.features import LOOKBACK_DAYS, build_features
from bike_assets.core.model import Forecaster, TrainConfig
from bike_assets.resources.registry import ModelRegistry
from bike_assets.sources.base import COUNTS_SCHEMA, REJECTED_SCHEMA, SourceBatch
from bike_assets_tests.core.synthetic import city

TRAINED_UNTIL = date(2024, 5, 31)
"""Last local day of counts that `small_forecaster` saw."""

_TRAINING_DAYS = 24

BETA_BACKFILL_POLICY = pytest.mark.filterwarnings(
    # Dagster calls the option beta with which a range of partitions is one run.
    "ignore:Parameter `backfill_policy` of:dagster_shared.utils.warnings.BetaWarning"
)
"""Mark of tests that build assets themselves."""


def day_rows(
    day: date,
    counter: str = "c1",
    count: Callable[[int], float | None] = float,
    *,
    hours: Sequence[datetime] | None = None,
    published_until: datetime | None = None,
    source_file: str = "export.csv",
) -> pl.DataFrame:
    """One counter's day as a source gives it: `COUNTS_SCHEMA`, with `count(n)` bicycles in its n-th hour."""
    hours = hours_of_day(day) if hours is None else hours
    frame = pl.DataFrame(
        {
            "counter_id": [counter] * len(hours),
            "ts_utc": hours,
            "hourly_count": [count(n) for n in range(len(hours))],
        },
        schema={"counter_id": pl.String, "ts_utc": COUNTS_SCHEMA["ts_utc"], "hourly_count": pl.Float64},
    )
    return local_columns(frame).select(
        "service_date",
        "counter_id",
        counter_name=pl.lit(f"Counter {counter}"),
        site_id=pl.lit("s1"),
        site_name=pl.lit("Site"),
        ts_utc="ts_utc",
        hourly_count="hourly_count",
        latitude=pl.lit(48.85),
        longitude=pl.lit(2.35),
        installation_date=pl.lit(date(2020, 1, 1)),
        source=pl.lit("archive"),
        source_file=pl.lit(source_file),
        published_until=pl.lit(published_until or hours_of_day(day)[-1]).cast(COUNTS_SCHEMA["published_until"]),
        is_stray=pl.lit(False),
    )  # fmt: skip


def batch(*frames: pl.DataFrame) -> SourceBatch:
    """The frames as one batch without faults."""
    counts = pl.concat(frames) if frames else pl.DataFrame(schema=COUNTS_SCHEMA)
    return SourceBatch(counts=counts, rejected=REJECTED_SCHEMA.to_frame())


def cleaned(counts: pl.DataFrame) -> pl.DataFrame:
    """The synthetic city's counts with ordinary flags, as CLEANED_COUNTS."""
    return CLEANED_COUNTS.conform(
        counts.with_columns(
            published_count=pl.col("hourly_count"),
            is_outage=pl.lit(False),
            is_spike=pl.lit(False),
            is_stuck=pl.lit(False),
            revisions=pl.lit(1),
            published_until=pl.col("ts_utc").max(),
        )
    )


def counters(counts: pl.DataFrame) -> pl.DataFrame:
    """What is known of the counters of some cleaned counts, as COUNTERS."""
    return COUNTERS.conform(
        counts.group_by("counter_id")
        .agg(
            first_seen=pl.col("ts_utc").min(),
            last_seen=pl.col("ts_utc").max(),
            hours=pl.len(),
            mean_hourly_count=pl.col("hourly_count").mean(),
        )
        .with_columns(
            counter_name=pl.col("counter_id"),
            site_id=pl.lit("s1"),
            site_name=pl.lit("Site"),
            latitude=pl.lit(48.85),
            longitude=pl.lit(2.35),
            site_key=pl.lit("s"),
            counters_at_site=pl.lit(2),
            last_counted=pl.lit(None),
            status=pl.lit("active"),
            coverage=pl.lit(1.0),
            replaced_by=pl.lit(None),
        )
        .sort("counter_id")
    )


@cache
def small_city() -> pl.DataFrame:
    """Cleaned counts of two counters, from what the first training day looks back on to a week after the training."""
    first = TRAINED_UNTIL - timedelta(days=_TRAINING_DAYS + LOOKBACK_DAYS)
    return cleaned(city(first, TRAINED_UNTIL + timedelta(days=7), counters=2, seed=3))


@cache
def small_features(first: date, last: date) -> pl.DataFrame:
    """Features of the small city for a range of issue dates."""
    return build_features(small_city(), days_between(first, last))


@cache
def small_forecaster(seed: int = 1) -> Forecaster:
    """A model of a few trees, trained on the small city in a second, with a held-out week."""
    features = small_features(TRAINED_UNTIL - timedelta(days=_TRAINING_DAYS - 1), TRAINED_UNTIL)
    truth = small_city().filter(pl.col("service_date") <= TRAINED_UNTIL)
    return Forecaster().fit(
        features,
        truth.select("counter_id", "ts_utc", "hourly_count"),
        TrainConfig(iterations=5, members=2, depth=3, calibration_days=10, seed=seed, thread_count=1),
    )


def version_tags(trained_until: date = TRAINED_UNTIL) -> dict[str, str]:
    """The provenance that every model version carries."""
    return {
        "trained_until": trained_until.isoformat(),
        "trained_at": datetime(2024, 6, 1, 8, tzinfo=UTC).isoformat(),
        "data_hash": "d" * 64,
        "git_commit": "c" * 40,
    }


def registry_in(folder: Path) -> ModelRegistry:
    """A real MLflow registry on SQLite in a folder. The tables are made once a process and copied."""
    shutil.copy(_mlflow_database(), folder / "mlflow.db")
    return registry_of(folder)


def registry_of(folder: Path) -> ModelRegistry:
    """The registry that is in a folder already."""
    return ModelRegistry(
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
        artifacts_dir=str(folder / "artifacts"),
        ui_url="http://mlflow.test",
        model_name="bike-traffic",
    )


@cache
def _mlflow_database() -> Path:
    with warnings.catch_warnings():
        # MLflow warns about type hints of its own while it is imported.
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        importlib.import_module("mlflow.pyfunc")
    folder = Path(tempfile.mkdtemp(prefix="mlflow-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    registry_of(folder).client().search_experiments()
    return folder / "mlflow.db"
