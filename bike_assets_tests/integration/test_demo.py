"""The whole product once: what the demo prints, writes, records and forecasts."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from bike_assets.assets.forecasting import TRAINING_TABLES, believable_truth, training_config
from bike_assets.core.bundle import WEATHER_CONTEXT_COLUMNS, load_bundle, load_public_key
from bike_assets.core.contracts import CLEANED_COUNTS, COUNTERS, PREDICTIONS, RAW_WEATHER, features_contract
from bike_assets.core.features import FEATURE_COLUMNS, WARM_UP_DAYS, build_features, sample_rows
from bike_assets.core.intervals import ERROR_COLUMNS
from bike_assets.core.model import Forecaster
from bike_assets.home import open_instance
from bike_assets.resources.registry import ModelRegistry
from bike_assets.resources.snapshots import SnapshotStore, Taking
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.status import describe_champion
from bike_assets_tests.homes import (
    DemoHome,
    assert_same_tables,
    bike_assets,
    copy_home,
    one_json,
    tables,
    without_runs,
)

FEATURES = features_contract(FEATURE_COLUMNS)
FIRST, LAST = date(2024, 6, 1), date(2024, 12, 31)
TRAIN_UNTIL = LAST - timedelta(days=28)
NEWEST_ISSUE = LAST + timedelta(days=1)
VALUES = ["forecast", "lower_80", "upper_80", "lower_90", "upper_90", "mean4", "seasonal_naive"]

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def warehouse(demo_home: DemoHome) -> DuckDBWarehouse:
    return DuckDBWarehouse(path=str(demo_home.settings.warehouse_path))


@pytest.fixture(scope="module")
def instance(demo_home: DemoHome) -> Iterator[dg.DagsterInstance]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(demo_home.settings.dagster_home))
        patch.setenv("BIKE_HOME", str(demo_home.path))
        with open_instance(demo_home.settings) as found:
            yield found


def days(first: date, last: date) -> list[date]:
    return [first + timedelta(days=offset) for offset in range((last - first).days + 1)]


def test_the_json_has_exactly_the_promised_keys(demo_home: DemoHome) -> None:
    result = demo_home.result
    assert list(result) == [
        *("source", "rows_raw", "rows_clean", "counters", "issue_dates", "champion", "accuracy", "drift"),
        *("checks", "seconds", "peak_memory_mb", "home"),
    ]
    assert set(result["issue_dates"]) == {"first", "last", "n"}
    assert set(result["champion"]) == {"name", "version", "run_id"}
    assert list(result["accuracy"]) == ["1", "2", "3", "4", "5", "6", "7"]
    for scores in result["accuracy"].values():
        assert set(scores) == {"n", "r2", "rmse", "mae", "wape", "geh5_share", "rmse_mean4", "skill"}
    assert set(result["drift"]) == {"share", "drifted", "report"}
    assert set(result["checks"]) == {"passed", "warned", "failed"}


def test_the_json_says_what_is_in_the_home(demo_home: DemoHome, warehouse: DuckDBWarehouse) -> None:
    result = demo_home.result
    assert result["source"] == "simulator"
    assert result["home"] == str(demo_home.path)
    assert result["counters"] == 4
    found = tables(demo_home.path)
    assert result["rows_raw"] == found["bike_traffic_raw.raw_counts"].height
    assert result["rows_clean"] == found["bike_traffic_analytics.cleaned_counts"].height
    assert result["issue_dates"] == {
        "first": (TRAIN_UNTIL + timedelta(days=1)).isoformat(),
        "last": LAST.isoformat(),
        "n": 28,
    }
    champion = describe_champion(demo_home.settings)
    assert result["champion"] == {name: champion[name] for name in ("name", "version", "run_id")}
    assert result["peak_memory_mb"] < 4096
    assert {"raw_counts", "cleaned_counts", "features", "trained_model", "champion", "predictions"} < set(
        result["seconds"]
    )
    assert result["seconds"]["total"] >= sum(
        value for name, value in result["seconds"].items() if name != "total"
    )


def test_accuracy_is_that_of_the_tables(demo_home: DemoHome) -> None:
    """Computed again with SQL of our own: every hour of truth counts, and only targets up to the last day."""
    found = tables(demo_home.path)
    joined = found["bike_traffic_predictions.predictions"].join(
        found["bike_traffic_analytics.cleaned_counts"].select(
            "counter_id", "hourly_count", target_ts="ts_utc", target_day="service_date"
        ),
        on=["counter_id", "target_ts"],
    )
    for horizon, scores in demo_home.result["accuracy"].items():
        rows = joined.filter(
            pl.col("horizon") == int(horizon), pl.col("service_date") <= LAST, pl.col("target_day") <= LAST
        )
        error = rows["forecast"] - rows["hourly_count"]
        naive = rows["mean4"] - rows["hourly_count"]
        truth = rows["hourly_count"].cast(pl.Float64)
        rmse, rmse_mean4 = (float((e**2).mean() ** 0.5) for e in (error, naive))  # type: ignore[operator]
        assert scores["n"] == rows.height
        assert scores["rmse"] == pytest.approx(rmse)
        assert scores["rmse_mean4"] == pytest.approx(rmse_mean4)
        assert scores["skill"] == pytest.approx(1 - rmse / rmse_mean4)
        assert scores["mae"] == pytest.approx(error.abs().mean())
        assert scores["wape"] == pytest.approx(error.abs().sum() / truth.sum())
        assert scores["r2"] == pytest.approx(1 - (error**2).sum() / ((truth - truth.mean()) ** 2).sum())
    # The target day follows from issue date and horizon: nothing is shifted by an hour or a day.
    offset = (joined["target_day"] - joined["service_date"]).dt.total_days() + 1
    assert (offset == joined["horizon"]).all()


def test_forecasts_beat_the_mean_of_four_weeks(demo_home: DemoHome) -> None:
    for horizon, scores in demo_home.result["accuracy"].items():
        assert scores["skill"] > 0.05, f"horizon {horizon}"
        assert scores["r2"] > 0.7, f"horizon {horizon}"


def test_the_drift_report_is_there(demo_home: DemoHome) -> None:
    drift = demo_home.result["drift"]
    html = Path(drift["report"])
    assert html.read_text(encoding="utf-8").lstrip().lower().startswith(("<!doctype html", "<html", "<head"))
    found = json.loads(html.with_suffix(".json").read_text(encoding="utf-8"))
    assert found["share"] == drift["share"]
    assert found["drifted"] == drift["drifted"]


PARTITIONS = {
    "raw_counts": (FIRST, LAST),
    "cleaned_counts": (FIRST, LAST),
    "features": (FIRST + timedelta(days=WARM_UP_DAYS), NEWEST_ISSUE),
    "predictions": (TRAIN_UNTIL + timedelta(days=1), NEWEST_ISSUE),
    "drift_report": (NEWEST_ISSUE, NEWEST_ISSUE),
    "retraining_decision": (NEWEST_ISSUE, NEWEST_ISSUE),
}


@pytest.mark.parametrize("asset", PARTITIONS)
def test_exactly_the_right_partitions_are_materialised(instance: dg.DagsterInstance, asset: str) -> None:
    expected = {day.isoformat() for day in days(*PARTITIONS[asset])}
    assert instance.get_materialized_partitions(dg.AssetKey(asset)) == expected


@pytest.mark.parametrize("asset", ["counters", "trained_model", "champion", "forecast_accuracy"])
def test_assets_without_partitions_are_materialised(instance: dg.DagsterInstance, asset: str) -> None:
    assert instance.get_latest_materialization_event(dg.AssetKey(asset)) is not None


SHOWN = {
    "raw_counts": {"dagster/row_count", "sample", "faults", "rows_set_aside", "dagster/column_schema"},
    "cleaned_counts": {"dagster/row_count", "sample", "dagster/column_schema"},
    "counters": {"dagster/row_count", "sample", "dagster/column_schema"},
    "features": {"dagster/row_count", "sample", "dagster/column_schema"},
    "trained_model": {"mlflow_run", "data_hash", "git_commit", "error_by_horizon", "holdout_accuracy"},
    "champion": {"mlflow_run", "decision", "reasons", "bundle_id"},
    "predictions": {"dagster/row_count", "sample", "mlflow_run", "forecast_and_truth"},
    "drift_report": {"report", "report_html", "drifted_columns", "drift_share", "counters"},
    "retraining_decision": {"dagster/row_count", "decision", "reasons", "retrain"},
}
PLOTS = {
    "trained_model": "error_by_horizon",
    "predictions": "forecast_and_truth",
    "drift_report": "drifted_columns",
}
LINKS = {"trained_model": "mlflow_run", "predictions": "mlflow_run", "drift_report": "report"}


@pytest.mark.parametrize("asset", SHOWN)
def test_a_person_sees_what_an_asset_did(
    demo_home: DemoHome, instance: dg.DagsterInstance, asset: str
) -> None:
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None
    assert event.asset_materialization is not None
    shown = event.asset_materialization.metadata
    assert SHOWN[asset] <= set(shown)
    if "dagster/row_count" in shown:
        assert int(str(shown["dagster/row_count"].value)) > 0
    if "sample" in shown:
        assert 1 <= len(shown["sample"].records) <= 10  # type: ignore[attr-defined]
    if asset in PLOTS:
        assert re.match(r"!\[.*\]\(data:image/(png|svg)", str(shown[PLOTS[asset]].value))
    if asset in LINKS:
        assert str(shown[LINKS[asset]].value).startswith("http://127.0.0.1:5000/#/experiments/")
    if asset == "champion":
        assert (demo_home.settings.bundles_dir / str(shown["bundle_id"].value)).is_dir()
    if asset == "drift_report":
        assert Path(str(shown["report_html"].value)).is_file()


def test_every_check_has_a_result(demo_home: DemoHome, instance: dg.DagsterInstance) -> None:
    expected = {
        ("raw_counts", "expectations"),
        ("raw_counts", "freshness"),
        ("cleaned_counts", "expectations"),
        ("features", "expectations"),
        ("predictions", "expectations"),
        ("forecast_accuracy", "beats_mean_of_four_weeks"),
    }
    found = [
        log.dagster_event.asset_check_evaluation_data
        for run in instance.get_runs()
        for log in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        if log.dagster_event
    ]
    names = {(one.asset_key.to_user_string(), one.check_name) for one in found}
    assert expected <= names
    assert any(asset == "cleaned_counts" and name not in {"expectations"} for asset, name in names), (
        "dbt tests"
    )
    checks = demo_home.result["checks"]
    assert len(found) == checks["passed"] + checks["warned"] + checks["failed"]
    assert [one.check_name for one in found if not one.passed] == []
    assert checks["failed"] == 0


@pytest.fixture(scope="module")
def champion(demo_home: DemoHome) -> Forecaster:
    """The served model, from its signed bundle."""
    folder = Path(describe_champion(demo_home.settings)["bundle"])
    load_bundle(folder, load_public_key(demo_home.settings.keys_dir / "bundle.pub"))
    return Forecaster.load(folder)


def _features_known(warehouse: DuckDBWarehouse, last: date, issue_dates: list[date]) -> pl.DataFrame:
    """Features from what was known on the morning after a day, with nothing later in reach."""
    weather = warehouse.read(RAW_WEATHER, last=last + timedelta(days=1), columns=WEATHER_CONTEXT_COLUMNS)
    return build_features(
        warehouse.read(CLEANED_COUNTS, last=last),
        issue_dates,
        weather=weather.filter((pl.col("kind") == "forecast") | (pl.col("service_date") <= last)),
        positions=warehouse.read(COUNTERS, columns=("counter_id", "latitude", "longitude")),
    )


@pytest.mark.parametrize("issue_date", [date(2024, 12, 4), date(2024, 12, 25), NEWEST_ISSUE])
def test_a_vintage_knows_nothing_of_its_issue_date_or_later(
    demo_home: DemoHome, warehouse: DuckDBWarehouse, champion: Forecaster, issue_date: date
) -> None:
    """From counts that end the evening before, the very same forecast comes out, intervals included."""
    evening = issue_date - timedelta(days=1)
    known = warehouse.read(CLEANED_COUNTS, last=evening)
    assert known["service_date"].max() == evening
    registry = ModelRegistry.from_settings(demo_home.settings)
    held_out = registry.load_holdout(registry.champion()).select(ERROR_COLUMNS)
    features = _features_known(warehouse, evening, days(TRAIN_UNTIL + timedelta(days=1), issue_date))
    again = champion.issue(features, known, held_out)[0].filter(service_date=issue_date)
    kept = warehouse.read(PREDICTIONS, issue_date, issue_date)
    keys = ["counter_id", "target_ts", "horizon"]
    assert kept.select(*keys, *VALUES).sort(keys).equals(again.select(*keys, *VALUES).sort(keys))
    assert kept["horizon"].unique().sort().to_list() == [1, 2, 3, 4, 5, 6, 7]


def test_training_saw_nothing_after_its_end(
    demo_home: DemoHome, warehouse: DuckDBWarehouse, champion: Forecaster
) -> None:
    """Trained again from counts that end on that day, the model forecasts the same to the last digit."""
    settings = demo_home.settings
    features = _features_known(
        warehouse, TRAIN_UNTIL, days(FIRST + timedelta(days=WARM_UP_DAYS), TRAIN_UNTIL)
    )
    rows = sample_rows(features, min(1.0, settings.training_rows / features.height), settings.seed)
    again = Forecaster().fit(
        rows.sort("service_date", "counter_id", "target_ts"),
        believable_truth(warehouse, TRAIN_UNTIL),
        training_config(settings),
    )
    later = warehouse.read(FEATURES, TRAIN_UNTIL + timedelta(days=1), NEWEST_ISSUE)
    assert again.predict(later).equals(champion.predict(later))


def test_the_champion_says_what_it_was_trained_on(
    demo_home: DemoHome, warehouse: DuckDBWarehouse, tmp_path: Path
) -> None:
    """Its data hash is the id of a snapshot: there to be restored, and the same wherever it is taken."""
    shown = describe_champion(demo_home.settings)
    assert shown["trained_until"] == TRAIN_UNTIL.isoformat()
    store = SnapshotStore.from_settings(demo_home.settings)
    snapshot = store.find(shown["data_hash"])
    store.verify(snapshot)
    assert [table.relation for table in snapshot.tables] == [table.relation for table in TRAINING_TABLES]
    assert snapshot.tables[-1].days == (FIRST, TRAIN_UNTIL)
    assert all(table.days[1] <= TRAIN_UNTIL for table in snapshot.tables), (
        "nothing later than the training knew"
    )
    elsewhere = SnapshotStore(folder=str(tmp_path), baseline_ratio=demo_home.settings.baseline_ratio)
    taking = Taking(datetime.now(UTC), "test", "")

    def again(last: date) -> str:
        return elsewhere.take(warehouse, taking, tables=TRAINING_TABLES, last=last).snapshot.id

    assert again(TRAIN_UNTIL) == shown["data_hash"]
    assert again(LAST) != shown["data_hash"]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", shown["git_commit"])
    assert (Path(shown["bundle"]) / "manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_another_home_gives_the_same_numbers(demo_home: DemoHome, tmp_path: Path) -> None:
    done = bike_assets("demo", "--home", tmp_path / "home", "--json")
    assert done.returncode == 0, done.stderr
    again = one_json(done.stdout)
    for name in ("rows_raw", "rows_clean", "counters", "issue_dates", "accuracy", "checks"):
        assert again[name] == demo_home.result[name]
    assert again["drift"]["share"] == demo_home.result["drift"]["share"]
    assert_same_tables(without_runs(tables(tmp_path / "home")), without_runs(tables(demo_home.path)))


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_demo_again_on_its_home_changes_nothing(demo_home: DemoHome, tmp_path: Path) -> None:
    """A second training is a second version, which is no better than the first and does not serve."""
    home = copy_home(demo_home.path, tmp_path / "home")
    before = tables(home)
    done = bike_assets("demo", "--home", home, "--json")
    assert done.returncode == 0, done.stderr
    assert one_json(done.stdout)["champion"] == demo_home.result["champion"]
    assert_same_tables(tables(home), before)
