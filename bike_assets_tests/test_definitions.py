"""What Dagster loads: every asset, what it depends on, and what people are told about it."""

import json
import os
import pkgutil
import shutil
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bike_assets import core
from bike_assets.settings import REPOSITORY
from bike_assets_tests.homes import environment

DAILY = {
    "raw_counts",
    "raw_weather",
    "cleaned_counts",
    "quarantined_counts",
    "counter_health",
    "filled_counts",
    "features",
    "predictions",
    "shadow_predictions",
    "experiment_report",
    "drift_report",
    "retraining_decision",
}

PARENTS = {
    "raw_counts": [],
    "raw_weather": [],
    "cleaned_counts": ["raw_counts"],
    "counter_health": ["cleaned_counts"],
    "quarantined_counts": ["raw_counts"],
    "filled_counts": ["cleaned_counts"],
    "counters": ["cleaned_counts", "raw_counts"],
    "features": ["cleaned_counts", "counters", "raw_weather"],
    "trained_model": ["counter_health", "features"],
    "champion": ["trained_model"],
    "predictions": ["champion", "features"],
    "counter_history": ["raw_counts"],
    "counter_months": ["counters", "daily_traffic", "raw_counts"],
    "daily_traffic": ["cleaned_counts", "raw_counts"],
    "export_differences": ["raw_counts"],
    "network_totals": ["daily_traffic"],
    "outages": ["cleaned_counts", "counters"],
    "forecast_accuracy": ["cleaned_counts", "predictions"],
    "model_history": ["forecast_accuracy", "predictions"],
    "drift_report": ["cleaned_counts", "counter_health", "predictions"],
    "retraining_decision": ["counter_health", "drift_report", "forecast_accuracy"],
    "shadow_predictions": ["features", "trained_model"],
    "experiment_report": ["cleaned_counts", "counter_health", "predictions", "shadow_predictions"],
}
"""The graph as the design draws it."""

SLOW_TO_IMPORT = ("mlflow", "evidently", "great_expectations", "catboost", "sklearn", "matplotlib")

LOAD = """
    import json, sys
    from bike_assets.definitions import defs

    loaded = [name for name in sys.argv[1].split(",") if name in sys.modules]
    repository = defs.get_repository_def()
    graph = repository.asset_graph
    assets = {}
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        partitions = node.partitions_def
        assets[key.to_user_string()] = {
            "parents": sorted(parent.to_user_string() for parent in node.parent_keys),
            "description": node.description,
            "owners": list(node.owners),
            "group": node.group_name,
            "kinds": sorted(node.kinds),
            "code_version": node.code_version,
            "pools": sorted(node.pools or []),
            "partitions": partitions
            and [type(partitions).__name__, str(partitions.timezone), partitions.cron_schedule],
            "single_run": bool(
                node.backfill_policy and node.backfill_policy.policy_type.name == "SINGLE_RUN"
            ),
        }
    print(json.dumps({
        "loaded": loaded,
        "assets": assets,
        "checks": sorted(key.to_user_string() for key in graph.asset_check_keys),
        "jobs": sorted(job.name for job in repository.get_all_jobs() if not job.name.startswith("__")),
        "schedules": {schedule.name: schedule.default_status.value for schedule in repository.schedule_defs},
        "sensors": {sensor.name: sensor.default_status.value for sensor in repository.sensor_defs},
        "resources": sorted(repository.get_top_level_resources()),
    }))
"""


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, with none of this one's settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BIKE_")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *arguments],
        env=inherited | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module", params=["local", "compose"])
def env(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def definitions(env: str, home: Path) -> dict[str, Any]:
    """What a fresh interpreter loads in an environment."""
    return _load(env, home)


@cache
def _load(env: str, home: Path) -> dict[str, Any]:
    done = python(LOAD, ",".join(SLOW_TO_IMPORT), BIKE_ENV=env, BIKE_HOME=str(home))
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_graph_is_the_designs(definitions: dict[str, Any]) -> None:
    assert {name: asset["parents"] for name, asset in definitions["assets"].items()} == PARENTS


def test_every_asset_says_what_it_is_whose_it_is_and_what_it_is_made_with(
    definitions: dict[str, Any],
) -> None:
    for name, asset in definitions["assets"].items():
        assert asset["description"], f"{name} has no description"
        assert asset["owners"], f"{name} has no owner"
        assert asset["group"] in {"ingestion", "cleaning", "forecasting", "monitoring"}, name
        assert asset["kinds"], f"{name} has no kind"
        assert asset["code_version"], f"{name} has no code version"


def test_assets_about_days_have_a_partition_a_local_day_and_no_other_has(definitions: dict[str, Any]) -> None:
    for name, asset in definitions["assets"].items():
        expected = ["DailyPartitionsDefinition", "Europe/Paris", "0 0 * * *"] if name in DAILY else None
        assert asset["partitions"] == expected, name


def test_long_histories_are_filled_in_one_run(definitions: dict[str, Any]) -> None:
    """Reports and decisions of a day are one run a day; tables take a range at once."""
    ranges = {name for name, asset in definitions["assets"].items() if asset["single_run"]}

    assert ranges == {
        "raw_counts",
        "raw_weather",
        "cleaned_counts",
        "quarantined_counts",
        "counter_health",
        "filled_counts",
        "features",
        "predictions",
        "shadow_predictions",
    }


def test_what_knows_the_future_feeds_nothing(definitions: dict[str, Any]) -> None:
    """Filled counts rest on the weeks after a gap: no asset may read them, or its score would be a fiction."""
    readers = [name for name, asset in definitions["assets"].items() if "filled_counts" in asset["parents"]]

    assert readers == []


def test_one_process_at_a_time_opens_the_warehouse(definitions: dict[str, Any]) -> None:
    assert {name: asset["pools"] for name, asset in definitions["assets"].items()} == {
        name: ["duckdb"] for name in PARENTS
    }


def test_every_table_has_checks(definitions: dict[str, Any]) -> None:
    checks = set(definitions["checks"])

    for table in ("raw_counts", "cleaned_counts", "features", "predictions"):
        assert f"{table}:expectations" in checks
    assert "raw_counts:freshness" in checks
    assert "counter_health:incidents" in checks
    assert "forecast_accuracy:beats_mean_of_four_weeks" in checks
    # dbt's own tests stand beside them.
    assert {"cleaned_counts:cleaned_counts_key_is_unique", "counters:unique_counters_counter_id"} <= checks


def test_nothing_starts_by_itself_on_a_laptop_and_everything_elsewhere(
    definitions: dict[str, Any], env: str
) -> None:
    status = "STOPPED" if env == "local" else "RUNNING"

    assert definitions["schedules"] == dict.fromkeys(
        [
            "daily_describe",
            "daily_experiment",
            "daily_forecast",
            "daily_ingest",
            "daily_weather",
            "weekly_monitoring",
        ],
        status,
    )
    assert definitions["sensors"] == dict.fromkeys(
        ["champion_alerts", "changed_counts", "retraining", "run_alerts"], status
    )
    assert definitions["jobs"] == [
        "approve", "clean", "describe", "experiment", "ingest", "monitor", "predict", "promote", "reject",
        "retrain", "rollback", "weather",
    ]  # fmt: skip


def test_loading_imports_nothing_that_takes_seconds(definitions: dict[str, Any]) -> None:
    assert definitions["loaded"] == []


def test_prod_has_bigquery_in_the_place_of_duckdb(home: Path) -> None:
    code = """
        import os
        from bike_assets.build import build_defs
        from bike_assets.settings import load_settings
        resources = build_defs(load_settings()).resources
        warehouse = resources["warehouse"]
        print(type(warehouse).__name__, warehouse.connection.project, warehouse.maximum_bytes_billed)
        print(os.environ["BIKE_DBT_TARGET"], os.environ["BIKE_BIGQUERY_METHOD"])
    """
    done = python(code, BIKE_ENV="prod", BIKE_HOME=str(home), BIKE_BIGQUERY_PROJECT="city")

    assert done.stdout.split() == ["BigQueryWarehouse", "city", "10000000000", "prod", "oauth"]


def test_the_core_and_each_of_its_modules_import_no_orchestrator_registry_or_web_framework() -> None:
    """The service installs what the core needs and nothing more."""
    modules = ["bike_assets.core"] + [
        f"bike_assets.core.{module.name}" for module in pkgutil.iter_modules(core.__path__)
    ]
    assert len(modules) > 10
    heavy = ("dagster", "mlflow", "dbt", "fastapi", "duckdb", "evidently", "great_expectations", "pandas")
    code = """
        import importlib, sys
        for module in sys.argv[1].split(","):
            importlib.import_module(module)
            found = [name for name in sys.argv[2].split(",") if name in sys.modules]
            assert not found, f"{module} imports {found}"
    """
    done = python(code, ",".join(modules), ",".join(heavy))

    assert done.returncode == 0, done.stderr[-2000:]


def test_resources_can_be_replaced(home: Path) -> None:
    code = """
        from bike_assets.build import build_defs
        from bike_assets.resources.warehouse import DuckDBWarehouse
        from bike_assets.settings import load_settings
        other = DuckDBWarehouse(path="/elsewhere.duckdb")
        defs = build_defs(load_settings(), {"warehouse": other})
        assert defs.resources["warehouse"] is other
        assert set(defs.resources) == {
            "warehouse", "source", "weather", "registry", "bundles", "audit", "championship", "snapshots", "alerts",
            "dbt"
        }
    """
    done = python(code, BIKE_HOME=str(home))

    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_make_check_finds_a_definition_that_cannot_be(tmp_path: Path) -> None:
    """`dg check defs`, as `make check` runs it: a job of an asset that nobody makes."""
    for name in ("bike_assets", "dbt_project"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    jobs = tmp_path / "bike_assets" / "jobs.py"
    right = jobs.read_text(encoding="utf-8")

    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).parent / "dg"), "check", "defs"],
            env=environment(PYTHONPATH=str(tmp_path)),
            cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip

    assert '("drift_report", ' in right
    jobs.write_text(right.replace('("drift_report", ', '("drift_rapport", '), encoding="utf-8")
    wrong = check()
    assert wrong.returncode == 1
    assert "AssetKey(s) ['drift_rapport'] were selected" in wrong.stdout + wrong.stderr

    jobs.write_text(right, encoding="utf-8")
    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
