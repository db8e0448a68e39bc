"""Publishing: a signed bundle of the newest counts, whole on disk before the registry names it."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.core.bundle import load_bundle, load_public_key
from bike_assets.core.contracts import CLEANED_COUNTS, COUNTERS, PREDICTIONS
from bike_assets.core.errors import PermanentError
from bike_assets.resources.bundles import BUNDLE_TAG, BundleStore
from bike_assets.resources.registry import ModelVersion
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets_tests.tables import (
    TRAINED_UNTIL,
    counters,
    small_city,
    small_features,
    small_forecaster,
    version_tags,
)

VERSION = ModelVersion(
    "bike-traffic", "4", "run", {**version_tags(), "holdout.day_1.r2": "0.9", "holdout.day_1.skill": "0.2"}
)


class Registry:
    """Stands for MLflow: remembers tags and whether the bundle was there when it was named."""

    def __init__(self, bundles: Path) -> None:
        self.bundles = bundles
        self.tags: list[tuple[str, str, str]] = []

    def tag_version(self, version: ModelVersion, key: str, value: str) -> None:
        assert (self.bundles / value / "manifest.sig").exists(), "named before it was written"
        self.tags.append((version.version, key, value))


@pytest.fixture
def registry(tmp_path: Path) -> Any:
    return Registry(tmp_path / "bundles")


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(bundles_dir=str(tmp_path / "bundles"), keys_dir=str(tmp_path / "keys"))


@pytest.fixture
def warehouse(tmp_path: Path) -> DuckDBWarehouse:
    found = DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"))
    fill(found, small_city().filter(pl.col("service_date") <= TRAINED_UNTIL))
    return found


def fill(warehouse: DuckDBWarehouse, counts: pl.DataFrame) -> None:
    days = counts["service_date"]
    warehouse.replace(CLEANED_COUNTS, counts, days.min(), days.max())  # type: ignore[arg-type]
    with warehouse.connect() as connection:
        connection.execute(f"DROP TABLE IF EXISTS {COUNTERS.relation}")
        connection.register("incoming", counters(counts).to_arrow())
        connection.execute(f"CREATE TABLE {COUNTERS.relation} AS SELECT * FROM incoming")  # noqa: S608


def test_a_published_bundle_answers_what_the_platform_computes(
    store: BundleStore, warehouse: DuckDBWarehouse, registry: Any, tmp_path: Path
) -> None:
    bundle_id = store.publish(VERSION, small_forecaster(), warehouse, registry)

    bundle = load_bundle(tmp_path / "bundles" / bundle_id, load_public_key(tmp_path / "keys" / "bundle.pub"))
    issue_date = TRAINED_UNTIL + timedelta(days=1)
    assert bundle.issue_date == issue_date
    offline = PREDICTIONS.conform(
        small_forecaster()
        .predict(small_features(issue_date, issue_date))
        .with_columns(model_name=pl.lit("bike-traffic"), model_version=pl.lit("4"), run_id=pl.lit("run"))
    ).sort("counter_id", "target_ts")
    assert_frame_equal(bundle.forecast(), offline, check_exact=True)
    assert bundle.counters["counter_name"].to_list() == ["c00", "c01"]


def test_it_says_where_the_model_comes_from(
    store: BundleStore, warehouse: DuckDBWarehouse, registry: Any, tmp_path: Path
) -> None:
    bundle_id = store.publish(VERSION, small_forecaster(), warehouse, registry)

    info = load_bundle(
        tmp_path / "bundles" / bundle_id, load_public_key(tmp_path / "keys" / "bundle.pub")
    ).info
    assert (info.model_name, info.model_version, info.run_id) == ("bike-traffic", "4", "run")
    assert info.trained_until == TRAINED_UNTIL
    assert info.git_commit == "c" * 40
    assert info.metrics == {"day_1.r2": 0.9, "day_1.skill": 0.2}


def test_the_version_is_tagged_once_the_bundle_is_whole(
    store: BundleStore, warehouse: DuckDBWarehouse, registry: Any
) -> None:
    bundle_id = store.publish(VERSION, small_forecaster(), warehouse, registry)

    assert registry.tags == [("4", BUNDLE_TAG, bundle_id)]


def test_publishing_twice_is_the_same_bundle_and_newer_counts_are_another(
    store: BundleStore, warehouse: DuckDBWarehouse, registry: Any, tmp_path: Path
) -> None:
    first = store.publish(VERSION, small_forecaster(), warehouse, registry)
    assert store.publish(VERSION, small_forecaster(), warehouse, registry) == first

    fill(warehouse, small_city())
    later = store.publish(VERSION, small_forecaster(), warehouse, registry)

    assert later != first
    assert {path.name for path in (tmp_path / "bundles").iterdir() if path.is_dir()} >= {first, later}
    assert load_bundle(
        tmp_path / "bundles" / later, load_public_key(tmp_path / "keys" / "bundle.pub")
    ).issue_date == TRAINED_UNTIL + timedelta(days=8)


def test_without_counts_it_says_what_to_do(store: BundleStore, registry: Any, tmp_path: Path) -> None:
    bare = DuckDBWarehouse(path=str(tmp_path / "bare.duckdb"))

    with pytest.raises(PermanentError, match="materialise cleaned_counts first"):
        store.publish(VERSION, small_forecaster(), bare, registry)

    bare.replace(CLEANED_COUNTS, CLEANED_COUNTS.empty(), TRAINED_UNTIL, TRAINED_UNTIL)
    with pytest.raises(PermanentError, match="materialise cleaned_counts first"):
        store.publish(VERSION, small_forecaster(), bare, registry)
    assert not registry.tags
