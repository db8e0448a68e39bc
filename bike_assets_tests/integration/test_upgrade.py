"""Databases that older versions of Dagster and MLflow have filled, after the commands of docs/production.md.

`uv run pytest -m slow bike_assets_tests/integration/test_upgrade.py`: a real PostgreSQL, and the old versions in
environments of their own.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sqlalchemy import create_engine, text

from bike_assets.settings import REPOSITORY
from bike_assets_tests.emulators.processes import (
    PostgresServer,
    in_own_environment,
    mlflow_server,
    postgres_server,
)
from bike_assets_tests.homes import environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

OLD_DAGSTER = ("dagster==1.9.13", "dagster-postgres==0.25.13")
OLD_MLFLOW = ("mlflow-skinny==2.22.1", "sqlalchemy<2.1", "alembic", "psycopg2-binary", "numpy", "pandas<3")

A_RUN_OF_DAGSTER = """
import dagster as dg

@dg.op
def count():
    return 7

@dg.job
def old_job():
    count()

with dg.DagsterInstance.get() as instance:
    print(old_job.execute_in_process(instance=instance).run_id)
"""

A_MODEL_OF_MLFLOW = """
import mlflow

client = mlflow.MlflowClient()
run = client.create_run(client.create_experiment("old"))
client.log_metric(run.info.run_id, "wape", 0.21)
client.set_terminated(run.info.run_id)
client.create_registered_model("old-model")
client.create_model_version("old-model", "mlflow-artifacts:/old", run.info.run_id)
client.set_registered_model_alias("old-model", "champion", "1")
print(run.info.run_id)
"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


def by_an_old_version(packages: tuple[str, ...], probe: str, script: str, **variables: str) -> str:
    """The last line that a script says in an environment with those packages."""
    done = subprocess.run(
        [*in_own_environment(packages, sys.executable, probe), "python", "-c", script],
        env=environment(**variables), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def migrate(program: str, **variables: str) -> None:
    """Run the command of docs/production.md that migrates a program's database."""
    page = (REPOSITORY / "docs" / "production.md").read_text(encoding="utf-8")
    upgrade = page.partition("### Upgrade")[2].partition("\n## ")[0]
    (command,) = re.findall(rf"\b{program} (?:instance|db) [^'\n]+", upgrade)
    done = subprocess.run(
        ["sh", "-c", command],
        env={**environment(**variables), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def schema(postgres: PostgresServer, database: str) -> str:
    with create_engine(postgres.url(database)).connect() as connection:
        return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


def test_what_an_old_dagster_ran_is_there_after_the_migration(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    variables = postgres.instance(tmp_path)
    run_id = by_an_old_version(OLD_DAGSTER, "import dagster, dagster_postgres", A_RUN_OF_DAGSTER, **variables)
    before = schema(postgres, "dagster")

    migrate("dagster", **variables)

    assert schema(postgres, "dagster") != before, "the old version was not old enough"
    import dagster as dg

    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with dg.DagsterInstance.get() as instance:
            run = instance.get_run_by_id(run_id)
            assert run is not None
            assert run.status is dg.DagsterRunStatus.SUCCESS
            assert len(instance.all_logs(run_id)) > 3
            # And ours writes where the old one wrote.
            instance.event_log_storage.set_concurrency_slots("duckdb", 1)
            assert instance.event_log_storage.get_pool_limits()[0].limit == 1


def test_what_an_old_mlflow_kept_is_served_after_the_migration(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    url = postgres.url("mlflow")
    run_id = by_an_old_version(
        OLD_MLFLOW, "import mlflow, sqlalchemy, psycopg2", A_MODEL_OF_MLFLOW,
        MLFLOW_TRACKING_URI=url, MLFLOW_REGISTRY_URI=url,
    )  # fmt: skip
    before = schema(postgres, "mlflow")

    migrate("mlflow", MLFLOW_BACKEND_STORE_URI=url)

    assert schema(postgres, "mlflow") != before, "the old version was not old enough"
    with mlflow_server(url, tmp_path) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment("admin").items():
            patch.setenv(name, value)
        client = MlflowClient(server.url)
        assert client.get_model_version_by_alias("old-model", "champion").run_id == run_id
        assert client.get_run(run_id).data.metrics == {"wape": 0.21}
