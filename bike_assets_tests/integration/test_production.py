"""The whole graph with `BIKE_ENV=prod`: BigQuery emulated, MLflow's server and Dagster's state in a real PostgreSQL.

`uv run pytest -m soak -rP bike_assets_tests/integration/test_production.py` starts all of it, and says what a day's
queries could read at most.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import polars.selectors as cs
import pytest
from polars.testing import assert_frame_equal
from sqlalchemy import create_engine, text

from bike_assets.assets.dbt_models import ACCURACY_MODELS, DESCRIBING_MODELS
from bike_assets.jobs import CLEANED
from bike_assets.resources.bigquery import BigQueryConnection, BigQueryWarehouse
from bike_assets.settings import Settings
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
PARIS = 52
"""Rows of thirteen months of Paris' export (1.06 million) for one of the smallest city's counts."""
A_DAY_OF_PARIS = 50_000_000_000
"""Bytes a day that docs/production.md promises to stay under."""
LEAST_BILLED = 10_485_760
"""For each table that a query reads."""
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


def the_jobs_of_a_monday(home: Path, variables: Mapping[str, str]) -> None:
    """What the schedules start on one day: two weeks fetched again, described, forecast, and watched."""
    last = date.fromisoformat(SMALL_CITY["BIKE_SIMULATOR_LAST_DAY"])
    fetched = ("--from", f"{last - timedelta(days=14)}", "--to", f"{last}")
    for assets, days in (
        (("raw_counts",), fetched),
        (CLEANED, fetched),
        (("raw_weather",), fetched),
        ((*DESCRIBING_MODELS, *ACCURACY_MODELS), ()),
        (("features", "predictions"), ("--partition", f"{last}")),
        (("drift_report", "retraining_decision"), ("--partition", f"{last}")),
    ):
        done = bike_assets("materialize", *assets, *days, "--home", home, env=variables)
        assert done.returncode == 0, f"{assets}: {done.stderr[-2000:]}"


def at_most_billed(warehouse: BigQueryWarehouse, since: datetime, rows: dict[str, pl.DataFrame]) -> list[int]:
    """Bytes of each query since a moment, if it read every column of every month of the tables that it names.

    As for Paris, which has `PARIS` times the rows. A table that is gone again was one of those for some days.
    """
    sizes = {name: PARIS * logical_bytes(frame) for name, frame in rows.items()}
    largest = max(sizes.values())
    with warehouse.connection.get_client() as client:
        queries = [job for job in client.list_jobs(min_creation_time=since) if job.job_type == "query"]
        return [
            sum(
                max(LEAST_BILLED, sizes.get(f"{table.dataset_id}.{table.table_id}", largest))
                for table in job.referenced_tables
            )
            for job in queries
        ]


def logical_bytes(frame: pl.DataFrame) -> int:
    """The size of a table by BigQuery's rules: 8 bytes a number or moment, 2 and its bytes a string."""
    strings = sum(
        int(column.str.len_bytes().sum()) + 2 * len(column)
        for column in frame.select(pl.col(pl.String)).get_columns()
    )
    return strings + 8 * frame.height * frame.select(~cs.string()).width


def test_the_whole_graph_gives_what_it_gives_on_a_laptop(
    demo_home: DemoHome, emulated_bigquery: BigQueryEmulator, tmp_path: Path
) -> None:
    warehouse = BigQueryWarehouse(
        connection=BigQueryConnection(
            project=PROJECT, location="US", endpoint=emulated_bigquery.endpoint,
            storage_endpoint=emulated_bigquery.storage_endpoint,
        ),
        maximum_bytes_billed=10_485_760,
    )  # fmt: skip
    local = tables(demo_home.path)
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
        filled = stored(warehouse, local)
        since = datetime.now(UTC)
        the_jobs_of_a_monday(home, variables)

    assert result["accuracy"] == demo_home.result["accuracy"]
    expected, found = without_runs(local), without_runs(filled)
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        assert rows.height or name in MAY_BE_EMPTY, f"{name} is empty"
        assert_frame_equal(
            found[name], rows, check_row_order=False, check_exact=not name.startswith(SUMMED), rel_tol=1e-12
        )

    billed = at_most_billed(warehouse, since, filled)
    print(f"{len(billed)} queries, {sum(billed) / 1e9:.1f} GB, {max(billed) / 1e9:.2f} the largest")  # noqa: T201
    assert len(billed) > 20
    assert max(billed) < Settings.model_fields["bigquery_maximum_bytes_billed"].default
    assert sum(billed) < A_DAY_OF_PARIS
