"""The challenger's forecasts beside the champion's, and what their comparison says, on a small city."""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, ClassVar

import dagster as dg
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.assets.experiment import NOTHING, build_experiment_report, build_shadow_predictions
from bike_assets.assets.forecasting import FEATURES, build_predictions
from bike_assets.core.contracts import (
    CALIBRATIONS,
    CLEANED_COUNTS,
    EXPERIMENT_RESULTS,
    PREDICTIONS,
    SHADOW_CALIBRATIONS,
    SHADOW_PREDICTIONS,
    TableContract,
)
from bike_assets.core.errors import PermanentError
from bike_assets.core.experiment import ExperimentPolicy, compare, pair_days
from bike_assets.core.model import Forecaster
from bike_assets.partitions import service_days
from bike_assets.resources.audit import AuditLog
from bike_assets.resources.bundles import BundleStore
from bike_assets.resources.registry import CHALLENGER, CHAMPION, ModelRegistry, ModelVersion
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.runner import materialize
from bike_assets_tests.tables import (
    BETA_BACKFILL_POLICY,
    TRAINED_UNTIL,
    small_city,
    small_features,
    small_forecaster,
    version_tags,
)

pytestmark = BETA_BACKFILL_POLICY

PARTITIONS = service_days(date(2024, 1, 1))
POLICY = ExperimentPolicy(min_days=3, max_days=6)
FIRST, LAST = TRAINED_UNTIL + timedelta(days=1), TRAINED_UNTIL + timedelta(days=7)
NEWEST_ISSUE = LAST + timedelta(days=1)


def version(number: str, trained_until: date = TRAINED_UNTIL) -> ModelVersion:
    return ModelVersion("bike-traffic", number, f"run-{number}", version_tags(trained_until))


class Registry(ModelRegistry):
    """Stands for MLflow: two aliases, and a forecaster that sees half as many bicycles for version 2."""

    aliases: ClassVar[dict[str, ModelVersion]] = {}

    def by_alias(self, alias: str) -> ModelVersion | None:
        return self.aliases.get(alias)

    def load_forecaster(self, version: ModelVersion) -> Forecaster:
        return small_forecaster(1 if version.version == "1" else 9)

    def load_holdout(self, version: ModelVersion) -> pl.DataFrame:
        return self.load_forecaster(version).holdout

    def run_url(self, run_id: str) -> str:
        return f"http://mlflow.test/{run_id}"


class Bundles(BundleStore):
    """Stands for the bundle folder."""

    published: ClassVar[list[tuple[str, TableContract]]] = []

    def publish(
        self,
        version: ModelVersion,
        forecaster: Forecaster,
        warehouse: DuckDBWarehouse,
        registry: ModelRegistry,
        calibrations: TableContract = CALIBRATIONS,
    ) -> str:
        del forecaster, warehouse, registry
        self.published.append((version.version, calibrations))
        return "b" * 32


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@pytest.fixture
def warehouse(tmp_path: Path) -> DuckDBWarehouse:
    found = DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"))
    days = small_city()["service_date"]
    found.replace(CLEANED_COUNTS, small_city(), days.min(), days.max())  # type: ignore[arg-type]
    found.replace(FEATURES, small_features(FIRST, NEWEST_ISSUE), FIRST, NEWEST_ISSUE)
    return found


class Platform:
    """The assets of an experiment over one warehouse."""

    def __init__(self, instance: dg.DagsterInstance, warehouse: DuckDBWarehouse) -> None:
        self.instance, self.warehouse = instance, warehouse
        folder = Path(warehouse.path).parent
        self.audit = AuditLog(folder=str(folder / "audit"), keys_dir=str(folder / "keys"), env="local")
        Registry.aliases = {CHAMPION: version("1"), CHALLENGER: version("2")}
        Bundles.published.clear()

    def make(self, asset: dg.AssetsDefinition, first: date, last: date) -> dict[str, Any]:
        resources = {
            "warehouse": self.warehouse,
            "registry": Registry(tracking_uri="", artifacts_dir="", ui_url="", model_name="bike-traffic"),
            "bundles": Bundles(bundles_dir="", keys_dir=""),
            "audit": self.audit,
        }
        materialize(
            dg.Definitions(assets=[asset], resources=resources),
            self.instance,
            [asset.key.to_user_string()],
            days=(first, last),
        )
        event = self.instance.get_latest_materialization_event(asset.key)
        assert event
        assert event.asset_materialization
        return {name: found.value for name, found in event.asset_materialization.metadata.items()}

    def forecast(self, first: date = FIRST, last: date = NEWEST_ISSUE) -> None:
        self.make(build_predictions(PARTITIONS), first, last)
        self.make(build_shadow_predictions(PARTITIONS), first, last)

    def judge(self, day: date = NEWEST_ISSUE) -> dict[str, Any]:
        return self.make(build_experiment_report(POLICY, PARTITIONS), day, day)


@pytest.fixture
def platform(instance: dg.DagsterInstance, warehouse: DuckDBWarehouse) -> Platform:
    return Platform(instance, warehouse)


def test_the_challenger_forecasts_what_it_would_as_champion(platform: Platform) -> None:
    """The same code, digit by digit, intervals too: only the tables differ."""
    platform.forecast()
    shadow = platform.warehouse.read(SHADOW_PREDICTIONS)
    calibrations = platform.warehouse.read(SHADOW_CALIBRATIONS)
    champion = platform.warehouse.read(PREDICTIONS)
    assert set(shadow["model_version"]) == {"2"}
    assert set(champion["model_version"]) == {"1"}
    assert Bundles.published == [("1", CALIBRATIONS), ("2", SHADOW_CALIBRATIONS)]

    Registry.aliases[CHAMPION] = version("2")
    platform.make(build_predictions(PARTITIONS), FIRST, NEWEST_ISSUE)

    assert_frame_equal(platform.warehouse.read(PREDICTIONS), shadow, check_exact=True)
    assert_frame_equal(platform.warehouse.read(CALIBRATIONS), calibrations, check_exact=True)


def test_an_old_vintage_of_the_challenger_is_not_published(platform: Platform) -> None:
    platform.make(build_shadow_predictions(PARTITIONS), FIRST, FIRST)

    assert Bundles.published == []


def test_a_challenger_is_not_scored_on_its_own_training(platform: Platform) -> None:
    Registry.aliases[CHALLENGER] = version("2", trained_until=FIRST)

    with pytest.raises(PermanentError, match="choose issue dates after that day"):
        platform.make(build_shadow_predictions(PARTITIONS), FIRST, LAST)


@pytest.mark.parametrize("rival", [None, "1"])
def test_where_there_is_no_rival_nothing_is_compared(platform: Platform, rival: str | None) -> None:
    platform.forecast()
    del Registry.aliases[CHALLENGER]
    if rival:
        Registry.aliases[CHALLENGER] = version(rival)

    assert platform.make(build_shadow_predictions(PARTITIONS), FIRST, NEWEST_ISSUE)["challenger"] == NOTHING
    assert platform.judge()["verdict"] == NOTHING
    assert platform.warehouse.read(SHADOW_PREDICTIONS).is_empty()
    assert platform.warehouse.read(EXPERIMENT_RESULTS).is_empty()


def test_the_report_says_what_the_hours_say(platform: Platform) -> None:
    platform.forecast()

    shown = platform.judge()

    truth = small_city().select("counter_id", "ts_utc", "hourly_count")
    expected = compare(
        pair_days(
            platform.warehouse.read(PREDICTIONS).filter(pl.col("service_date") < NEWEST_ISSUE),
            platform.warehouse.read(SHADOW_PREDICTIONS).filter(pl.col("service_date") < NEWEST_ISSUE),
            truth.filter(
                pl.col("ts_utc") < pl.lit(f"{LAST}T23:00:00+00:00").str.to_datetime(time_zone="UTC")
            ),
        )[: POLICY.max_days],
        POLICY,
    )
    (row,) = platform.warehouse.read(EXPERIMENT_RESULTS).to_dicts()
    assert row["verdict"] == shown["verdict"] == expected.verdict
    assert row["effect"] == pytest.approx(expected.looks[-1].effect)
    assert row["champion_wape"] == pytest.approx(expected.champion_wape)
    assert (row["champion_version"], row["challenger_version"]) == ("1", "2")
    assert row["reasons"] == "; ".join(expected.reasons)
    assert str(shown["looks"]).startswith("![Gain of the challenger")


def test_an_answer_is_in_the_audit_log_once(platform: Platform) -> None:
    platform.forecast()
    for _ in range(2):
        verdict = platform.judge()["verdict"]
    assert verdict != "continue"

    (event,) = platform.audit.read(platform.warehouse).to_dicts()
    assert event["event"] == "compared"
    assert event["deployment_decision"] == verdict
    assert (event["replaced_version"], event["model_version"]) == ("1", "2")
    assert platform.audit.verify(platform.warehouse) == []


def test_a_day_sees_no_truth_of_its_own_or_later(platform: Platform) -> None:
    """Judged for the fourth day, three days have truth, whatever is known by now."""
    platform.forecast()
    platform.judge(FIRST + timedelta(days=3))

    (row,) = platform.warehouse.read(EXPERIMENT_RESULTS).to_dicts()
    assert row["days"] == 3
    assert row["service_date"] == FIRST + timedelta(days=3)


def test_forecasts_of_an_earlier_champion_are_not_compared(platform: Platform) -> None:
    platform.forecast()
    Registry.aliases[CHAMPION] = version("3")

    shown = platform.judge()

    assert (shown["verdict"], shown["days"]) == ("continue", 0)


def test_before_any_forecast_there_is_too_little(platform: Platform) -> None:
    shown = platform.judge()

    assert shown["verdict"] == "continue"
    assert "0 days of truth, 3 are needed" in str(shown["reasons"])
