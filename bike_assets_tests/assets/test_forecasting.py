"""From cleaned counts to the forecast that serves: samples, hashes, and whose forecast it is."""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, ClassVar

import dagster as dg
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from bike_assets.assets.forecasting import (
    CHUNK_DAYS,
    FEATURES,
    baseline_window,
    believable_truth,
    build_features_asset,
    build_predictions,
    build_trained_model,
    chunks,
    newest_day,
    training_rows,
)
from bike_assets.core.contracts import CALIBRATIONS, CLEANED_COUNTS, COUNTER_HEALTH, PREDICTIONS
from bike_assets.core.errors import PermanentError
from bike_assets.core.model import Forecaster
from bike_assets.core.training import TrainConfig
from bike_assets.core.windows import BaselineWindow
from bike_assets.partitions import service_days
from bike_assets.resources.audit import AuditLog
from bike_assets.resources.registry import CHAMPION
from bike_assets.resources.snapshots import SnapshotStore
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.runner import Outcome, materialize
from bike_assets.settings import Settings
from bike_assets_tests.stores import Bundles, Registry, fresh_registry, version
from bike_assets_tests.tables import (
    BETA_BACKFILL_POLICY,
    TRAINED_UNTIL,
    small_city,
    small_features,
    small_forecaster,
)

pytestmark = BETA_BACKFILL_POLICY

PARTITIONS = service_days(date(2024, 1, 1))
KEYS = ["service_date", "counter_id", "target_ts"]
FIRST_FEATURES = TRAINED_UNTIL - timedelta(days=23)
NEXT = TRAINED_UNTIL + timedelta(days=1)


@pytest.fixture
def warehouse(tmp_path: Path) -> DuckDBWarehouse:
    return DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> DuckDBWarehouse:
    """Cleaned counts of the small city, a week beyond the training, and the features of the training. Read only."""
    found = DuckDBWarehouse(path=str(tmp_path_factory.mktemp("filled") / "warehouse.duckdb"))
    days = small_city()["service_date"]
    found.replace(CLEANED_COUNTS, small_city(), days.min(), days.max())  # type: ignore[arg-type]
    found.replace(FEATURES, small_features(FIRST_FEATURES, TRAINED_UNTIL), FIRST_FEATURES, TRAINED_UNTIL)
    return found


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@given(st.dates(date(2016, 1, 1), date(2025, 1, 1)), st.integers(0, 400))
@settings(max_examples=50, deadline=None)
def test_chunks_are_the_range_in_order_without_gap_or_overlap(first: date, length: int) -> None:
    last = first + timedelta(days=length)

    days = [
        start + timedelta(days=offset)
        for start, end in chunks(first, last)
        for offset in range((end - start).days + 1)
    ]

    assert days == [first + timedelta(days=offset) for offset in range(length + 1)]
    assert all((end - start).days < CHUNK_DAYS for start, end in chunks(first, last))


def test_the_training_sample_is_bounded_and_of_the_days_asked_for(filled: DuckDBWarehouse) -> None:
    sample = training_rows(filled, TRAINED_UNTIL - timedelta(days=2), 10, TrainConfig(max_rows=1000, seed=1))

    assert 850 < sample.height < 1150
    days = sample["service_date"]
    assert days.max() == TRAINED_UNTIL - timedelta(days=2)
    assert days.min() == TRAINED_UNTIL - timedelta(days=11)
    assert sample.select(KEYS).is_duplicated().sum() == 0


def test_no_model_learns_from_a_stuck_or_drifting_counter_or_an_impossible_count(
    warehouse: DuckDBWarehouse,
) -> None:
    city = small_city()
    days, counters = (city[name].unique().sort().to_list() for name in ("service_date", "counter_id"))
    spike = (pl.col("service_date") == days[3]) & (pl.col("local_hour") == 8)
    warehouse.replace(CLEANED_COUNTS, city.with_columns(is_spike=spike), days[0], days[-1])
    health = COUNTER_HEALTH.conform(
        pl.DataFrame(
            {
                "service_date": days[:4],
                "counter_id": [counters[0]] * 4,
                "state": ["stuck", "drifting", "dead", "alive"],
                "reason": ["said"] * 4,
            }
        ).with_columns(
            known_hours=24, silent_days=0, daily_count=1.0, expected_count=1.0, change=1.0, deviation=0.0,
            stuck_hours=1,
        )
    )  # fmt: skip
    warehouse.replace(COUNTER_HEALTH, health, days[0], days[-1])

    truth = believable_truth(warehouse, days[9])

    assert truth.columns == ["counter_id", "ts_utc", "hourly_count"]
    known = city.filter(pl.col("service_date") <= days[9])
    left_out = known.join(truth, on=["counter_id", "ts_utc"], how="anti")
    faulty = known.filter(pl.col("counter_id") == counters[0], pl.col("service_date").is_in(days[:2]))
    assert left_out.height == faulty.height + 2 == known.height - truth.height


def test_the_training_sample_is_everything_where_there_is_little(filled: DuckDBWarehouse) -> None:
    everything = filled.read(FEATURES).sort(KEYS)

    assert_frame_equal(
        training_rows(filled, TRAINED_UNTIL, 400, TrainConfig(max_rows=10**6, seed=1)), everything
    )


def test_the_training_sample_follows_from_data_and_seed_alone(
    filled: DuckDBWarehouse, warehouse: DuckDBWarehouse
) -> None:
    rows = filled.read(FEATURES)
    for half in (1, 0):
        part = rows.filter(pl.col("service_date").dt.day() % 2 == half)
        for day in part["service_date"].unique():
            shuffled = part.filter(service_date=day).sample(fraction=1, shuffle=True, seed=half)
            warehouse.replace(FEATURES, shuffled, day, day)

    sample = training_rows(filled, TRAINED_UNTIL, 24, TrainConfig(max_rows=1000, seed=1))

    assert_frame_equal(
        training_rows(warehouse, TRAINED_UNTIL, 24, TrainConfig(max_rows=1000, seed=1)), sample
    )
    assert not training_rows(filled, TRAINED_UNTIL, 24, TrainConfig(max_rows=1000, seed=2)).equals(sample)


class Windows(Registry):
    """A registry that remembers the baseline window."""

    fixed: ClassVar[list[str]] = []

    def baseline_window(self) -> str | None:
        return self.fixed[-1] if self.fixed else None

    def fix_baseline_window(self, window: str) -> None:
        self.fixed.append(window)


@pytest.fixture
def windows() -> Windows:
    Windows.fixed.clear()
    return Windows(tracking_uri="", artifacts_dir="", ui_url="", model_name="bike-traffic")


def test_the_first_training_with_enough_history_fixes_the_window_for_all_that_follow(
    windows: Windows,
) -> None:
    first, config = date(2023, 1, 1), TrainConfig()
    rows = pl.DataFrame({"service_date": [first, date(2023, 9, 1)]})

    def chosen(until: date, **more: Any) -> str:
        return str(baseline_window(Settings(**more), windows, rows, until, config))

    assert chosen(first + timedelta(days=100)) == "None"
    assert windows.fixed == []
    fixed = chosen(first + timedelta(days=399))
    assert fixed == "2023-11-17/2023-12-14"
    assert chosen(first + timedelta(days=700)) == fixed
    assert windows.fixed == [fixed]
    assert chosen(first + timedelta(days=700), baseline_days=0) == "None"
    named = chosen(first + timedelta(days=700), baseline_first=date(2023, 5, 1), baseline_days=7)
    assert named == "2023-05-01/2023-05-07"


def test_a_training_is_given_no_row_about_the_baseline_window(
    filled: DuckDBWarehouse, windows: Windows, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = BaselineWindow(TRAINED_UNTIL - timedelta(days=12), TRAINED_UNTIL - timedelta(days=10))
    windows.fix_baseline_window(str(window))
    given: list[pl.DataFrame] = []

    def fit(_self: Forecaster, rows: pl.DataFrame, *_: object) -> Forecaster:
        given.append(rows)
        raise PermanentError("seen enough")

    monkeypatch.setattr(Forecaster, "fit", fit)
    definitions = dg.Definitions(
        assets=[build_trained_model(Settings(training_rows=10**6))],
        resources={
            "warehouse": filled,
            "registry": windows,
            "snapshots": SnapshotStore(
                folder=str(Path(filled.path).parent / "snapshots"), baseline_ratio=0.8
            ),
            "audit": AuditLog(folder="", keys_dir="", env="local"),
        },
    )
    with pytest.raises(PermanentError, match="seen enough"):
        materialize(
            definitions,
            instance,
            ["trained_model"],
            config={"trained_model": {"train_until": TRAINED_UNTIL.isoformat()}},
        )

    (rows,) = given
    everything = filled.read(FEATURES)
    assert rows.filter(window.holds()).is_empty()
    assert rows.height == everything.filter(~window.holds()).height < everything.height


def test_no_features_are_said_to_be_missing(warehouse: DuckDBWarehouse) -> None:
    with pytest.raises(PermanentError, match="materialise features first"):
        training_rows(warehouse, TRAINED_UNTIL, 24, TrainConfig(max_rows=1000, seed=1))


def test_no_counts_are_said_to_be_missing(warehouse: DuckDBWarehouse, filled: DuckDBWarehouse) -> None:
    with pytest.raises(PermanentError, match="materialise raw_counts and cleaned_counts first"):
        newest_day(warehouse)

    assert newest_day(filled) == TRAINED_UNTIL + timedelta(days=7)


@pytest.fixture
def registry() -> Registry:
    return fresh_registry()


def run(
    asset: dg.AssetsDefinition,
    instance: dg.DagsterInstance,
    warehouse: DuckDBWarehouse,
    registry: Registry | None = None,
    days: tuple[date, date] | None = None,
) -> Outcome:
    resources = {
        "warehouse": warehouse,
        "registry": registry,
        "bundles": Bundles(bundles_dir="", keys_dir=""),
    }
    definitions = dg.Definitions(assets=[asset], resources=resources)
    return materialize(definitions, instance, [asset.key.to_user_string()], days=days)


@pytest.mark.parametrize("first", [TRAINED_UNTIL - timedelta(days=3), TRAINED_UNTIL])
def test_a_forecast_that_would_be_scored_on_its_own_training_is_refused(
    filled: DuckDBWarehouse, registry: Registry, instance: dg.DagsterInstance, first: date
) -> None:
    registry.aliases[CHAMPION] = version("1")

    with pytest.raises(PermanentError, match="choose issue dates after that day"):
        run(build_predictions(PARTITIONS), instance, filled, registry, (first, NEXT))

    assert not filled.exists(PREDICTIONS)


def test_without_a_champion_no_forecast(
    filled: DuckDBWarehouse, registry: Registry, instance: dg.DagsterInstance
) -> None:
    with pytest.raises(PermanentError, match="has no champion yet"):
        run(build_predictions(PARTITIONS), instance, filled, registry, (NEXT, NEXT))


@pytest.fixture
def copy(warehouse: DuckDBWarehouse) -> DuckDBWarehouse:
    """A warehouse of its own with the small city's counts."""
    days = small_city()["service_date"]
    warehouse.replace(CLEANED_COUNTS, small_city(), days.min(), days.max())  # type: ignore[arg-type]
    return warehouse


def test_features_of_a_partition_are_the_same_alone_and_in_a_range(
    copy: DuckDBWarehouse, instance: dg.DagsterInstance
) -> None:
    asset = build_features_asset(PARTITIONS)
    last = NEXT + timedelta(days=1)
    run(asset, instance, copy, days=(TRAINED_UNTIL, last))
    whole = copy.read(FEATURES)
    assert sorted(whole["service_date"].unique()) == [TRAINED_UNTIL, NEXT, last]

    run(asset, instance, copy, days=(NEXT, NEXT))

    assert_frame_equal(copy.read(FEATURES), whole, check_exact=True)
    assert_frame_equal(
        whole.filter(service_date=NEXT), small_features(NEXT, NEXT).sort("counter_id", "target_ts")
    )


def test_vintages_are_what_the_champion_says_and_the_newest_is_published(
    copy: DuckDBWarehouse, registry: Registry, instance: dg.DagsterInstance
) -> None:
    registry.aliases[CHAMPION] = version("1")
    newest = TRAINED_UNTIL + timedelta(days=8)
    run(build_features_asset(PARTITIONS), instance, copy, days=(NEXT, newest))
    asset = build_predictions(PARTITIONS)

    run(asset, instance, copy, registry, (NEXT, NEXT))
    assert registry.done == [], "an old vintage is nothing to serve"
    run(asset, instance, copy, registry, (NEXT, newest))
    assert registry.done == ["bundle of 1"]

    rows = copy.read(PREDICTIONS)
    expected = small_forecaster().predict(copy.read(FEATURES))
    ends = ["lower_80", "upper_80", "lower_90", "upper_90"]
    points = expected.drop(ends).sort(KEYS)
    assert_frame_equal(rows.select(points.columns), points, check_exact=True)
    assert set(rows["model_version"]) == {"1"}
    days = (newest - NEXT).days + 1
    assert copy.read(CALIBRATIONS).get_column("service_date").n_unique() == days

    # The intervals of a day follow from what was issued and counted before it, in the same run or another.
    run(asset, instance, copy, registry, (newest, newest))
    assert_frame_equal(copy.read(PREDICTIONS), rows, check_exact=True)
    assert np.isfinite(rows["forecast"].to_numpy()).all()
