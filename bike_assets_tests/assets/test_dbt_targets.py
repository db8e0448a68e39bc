"""The dbt project itself: unit tests on DuckDB, its SQL for BigQuery, and that everything is described and tested."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from bike_assets.core.contracts import CALENDAR_HOURS, PREDICTIONS, RAW_COUNTS
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.settings import REPOSITORY
from bike_assets_tests.dbt_runs import PROJECT, dbt

DAY = date(2024, 1, 1)
OFFLINE = {
    "BIKE_BIGQUERY_METHOD": "oauth-secrets",
    "BIKE_BIGQUERY_TOKEN": "none",
    "BIKE_BIGQUERY_PROJECT": "city",
}
"""BigQuery without an account: nothing is asked of it while SQL is compiled."""


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse whose raw tables exist, as dbt looks up their columns."""
    path = tmp_path_factory.mktemp("targets") / "warehouse.duckdb"
    tables = DuckDBWarehouse(path=str(path))
    for contract in (RAW_COUNTS, CALENDAR_HOURS, PREDICTIONS):
        tables.replace(contract, contract.empty(), DAY, DAY)
    return path


@pytest.mark.slow
def test_unit_tests_of_the_models_pass_on_duckdb(warehouse: Path) -> None:
    artifacts = dbt("test", "--select", "test_type:unit", warehouse=warehouse)
    results = json.loads((artifacts / "run_results.json").read_text())["results"]
    assert len(results) == len(_unit_tests()) >= 3
    assert {result["status"] for result in results} == {"pass"}


def _unit_tests() -> list[Any]:
    return list(
        yaml.safe_load((PROJECT / "models" / "unit_tests.yml").read_text(encoding="utf-8"))["unit_tests"]
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_model_compiles_to_sql_that_bigquery_reads(warehouse: Path) -> None:
    """Without an account; that BigQuery also computes the same is for a BigQuery to show."""
    import sqlglot

    artifacts = dbt(
        *("compile", "--select", "resource_type:model", "--no-introspect", "--no-populate-cache"),
        warehouse=warehouse,
        target="prod",
        **OFFLINE,
    )
    folder = artifacts / "compiled" / "bike" / "models"
    # Tests that are written into schema files are compiled below folders of their names.
    compiled = [path for path in sorted(folder.rglob("*.sql")) if path.parent.suffix != ".yml"]
    assert {path.stem for path in compiled} == {path.stem for path in (PROJECT / "models").rglob("*.sql")}
    for path in compiled:
        sql = path.read_text(encoding="utf-8")
        (statement,) = sqlglot.parse(sql, dialect="bigquery")
        assert statement is not None
        assert statement.sql(dialect="bigquery"), path.stem
        for foreign in ("date_diff('day'", "interval '", " integer)", "::"):
            assert foreign not in sql, f"{path.stem} has DuckDB's {foreign}"
    manifest = json.loads((artifacts / "manifest.json").read_text())
    config = manifest["nodes"]["model.bike.cleaned_counts"]["config"]
    assert config["partition_by"] == {"field": "service_date", "data_type": "date", "granularity": "month"}
    assert (config["cluster_by"], config["incremental_strategy"]) == (["counter_id"], "merge")


def schemas() -> dict[str, dict[str, Any]]:
    """What the schema files say of each model."""
    models: dict[str, dict[str, Any]] = {}
    for path in (PROJECT / "models").rglob("_*.yml"):
        for model in yaml.safe_load(path.read_text(encoding="utf-8")).get("models", []):
            models[model["name"]] = model
    return models


@pytest.mark.parametrize("name", sorted(path.stem for path in (PROJECT / "models").rglob("*.sql")))
def test_every_model_and_column_is_described_and_every_table_is_tested(name: str) -> None:
    model = schemas()[name]
    assert model["description"]
    assert model["columns"]
    for column in model["columns"]:
        assert column["description"], f"{name}.{column['name']}"
    if (PROJECT / "models" / "marts" / f"{name}.sql").exists():
        assert model["data_tests"] == [{"columns_hold": {"name": f"columns_of_{name}_hold"}}]
        for column in model["columns"]:
            said = column.get("config", {}).get("meta", {})
            assert said.keys() <= {"nullable", "holds"}, column["name"]
            assert said.get("holds") or not said.get("nullable"), f"no rule is about {name}.{column['name']}"


@pytest.mark.slow
def test_a_column_that_breaks_what_is_said_of_it_is_found(tmp_path: Path) -> None:
    """One value of one column is wrong, once null and once out of its range: the rows are counted."""
    path = tmp_path / "warehouse.duckdb"
    with DuckDBWarehouse(path=str(path)).connect() as connection:
        connection.execute("create schema bike_traffic_analytics")
        connection.execute(
            "create table bike_traffic_analytics.network_totals as select * from (values "
            "(date '2024-01-01', 3, 2, 90, 40.0), (date '2024-01-02', 3, 4, 90, 40.0), "
            "(date '2024-01-03', null, 0, 90, null)) "
            "as t(service_date, counters, complete_counters, total_count, mean_daily_count)"
        )
    with pytest.raises(AssertionError, match="Got 2 results"):
        dbt("test", "--select", "columns_of_network_totals_hold", warehouse=path)


def test_sources_are_described_like_their_contracts() -> None:
    (path,) = (PROJECT / "models").rglob("_sources.yml")
    sources = yaml.safe_load(path.read_text(encoding="utf-8"))["sources"]
    tables = {
        f"{source['schema']}.{table['name']}": table for source in sources for table in source["tables"]
    }
    assert set(tables) == {contract.relation for contract in (RAW_COUNTS, CALENDAR_HOURS, PREDICTIONS)}
    for contract in (RAW_COUNTS, CALENDAR_HOURS, PREDICTIONS):
        said = {column["name"]: column["description"] for column in tables[contract.relation]["columns"]}
        assert said == {column.name: column.description for column in contract.columns}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.BetaWarning")
def test_descriptions_of_columns_come_up_in_the_catalogue(tmp_path: Path) -> None:
    from bike_assets.build import build_defs
    from bike_assets.settings import Settings

    graph = build_defs(Settings(home=tmp_path)).get_repository_def().asset_graph
    shown = {key.to_user_string(): graph.get(key).metadata for key in graph.materializable_asset_keys}
    for name in (path.stem for path in (REPOSITORY / "dbt_project" / "models" / "marts").glob("*.sql")):
        columns = shown[name]["dagster/column_schema"].columns
        assert {column.name: column.description for column in columns} == {
            column["name"]: column["description"] for column in schemas()[name]["columns"]
        }
