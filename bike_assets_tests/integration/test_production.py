"""The whole graph with `BIKE_ENV=prod`: BigQuery emulated, MLflow's server and Dagster's state in a real PostgreSQL.

`uv run pytest -m soak bike_assets_tests/integration/test_production.py` starts all of it.
"""

from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from sqlalchemy import create_engine, text

from bike_assets.resources.bigquery import BigQueryConnection, BigQueryWarehouse
from bike_assets_tests.emulators.processes import (
    BigQueryEmulator,
    mlflow_server,
    postgres_server,
)
from bike_assets_tests.homes import (
    MAY_BE_EMPTY,
    SMALL_CITY,
    DemoHome,
    bike_assets,
    one_json,
    tables,
    without_runs,
)

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.integration, pytest.mark.timeout(3_600)]

PROJECT = "city"
SUMMED = "bike_traffic_analytics."
"""Tables of dbt's, where sums of fractions may be added in another order."""


def stored(warehouse: BigQueryWarehouse, like: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """Every table of a project but the audit log, in the types and the order of another warehouse's."""
    found = {}
    with warehouse.connection.get_client() as client:
        names = [
            f"{dataset.dataset_id}.{table.table_id}"
            for dataset in client.list_datasets()
            for table in client.list_tables(dataset.dataset_id)
        ]
    for name in names:
        if name in like:
            rows = warehouse.query(f"SELECT * FROM {name}" + _every_day(warehouse, name))  # noqa: S608
            found[name] = rows.with_columns(pl.col(pl.Datetime).dt.replace_time_zone(None)).select(
                pl.col(column).cast(dtype) for column, dtype in like[name].schema.items()
            )
        else:
            assert name == "monitoring_audit.logs", f"{name} is nowhere in the local warehouse"
    return found


def _every_day(warehouse: BigQueryWarehouse, name: str) -> str:
    with warehouse.connection.get_client() as client:
        asked_by_days = client.get_table(f"{PROJECT}.{name}").require_partition_filter
    return " WHERE service_date >= DATE '2000-01-01'" if asked_by_days else ""


def test_the_whole_graph_gives_what_it_gives_on_a_laptop(
    demo_home: DemoHome, emulated_bigquery: BigQueryEmulator, tmp_path: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    with (
        postgres_server() as postgres,
        mlflow_server(postgres.url("mlflow"), artifacts) as mlflow,
    ):
        variables = {
            **SMALL_CITY,
            **emulated_bigquery.environment(PROJECT),
            **mlflow.environment("platform"),
            "BIKE_MLFLOW_TRACKING_URI": mlflow.url,
            **postgres.instance(tmp_path),
        }
        home = tmp_path / "home"
        done = bike_assets("demo", "--home", home, "--json", env=variables, timeout=3_400)
        assert done.returncode == 0, done.stderr[-4000:]
        result = one_json(done.stdout)
        # What Dagster and MLflow know is in PostgreSQL, and the home holds neither.
        assert not (home / "warehouse.duckdb").exists()
        assert not (home / "dagster").exists()
        assert not (home / "mlflow.db").exists()
        with create_engine(postgres.url("dagster")).connect() as connection:
            assert (
                connection.execute(text("SELECT count(*) FROM runs WHERE status = 'SUCCESS'")).scalar_one()
                > 1
            )
        with create_engine(postgres.url("mlflow")).connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM model_versions")).scalar_one() == 1

    assert result["accuracy"] == demo_home.result["accuracy"]
    warehouse = BigQueryWarehouse(
        connection=BigQueryConnection(
            project=PROJECT, location="US", endpoint=emulated_bigquery.endpoint,
            storage_endpoint=emulated_bigquery.storage_endpoint,
        ),
        maximum_bytes_billed=10_485_760,
    )  # fmt: skip
    local = tables(demo_home.path)
    expected, found = without_runs(local), without_runs(stored(warehouse, local))
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        assert rows.height or name in MAY_BE_EMPTY, f"{name} is empty"
        assert_frame_equal(
            found[name], rows, check_row_order=False, check_exact=not name.startswith(SUMMED), rel_tol=1e-12
        )
