"""Dagster's and MLflow's databases after the commands of docs/production.md: migrated from old versions, and restored.

`uv run pytest -m slow bike_assets_tests/integration/test_databases.py`: a real PostgreSQL, and the old versions in
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


def section(heading: str) -> str:
    page = (REPOSITORY / "docs" / "production.md").read_text(encoding="utf-8")
    return page.partition(f"### {heading}\n")[2].partition("\n#")[0]


def shell(command: str, folder: Path, **variables: str) -> None:
    done = subprocess.run(
        ["sh", "-c", command], env=environment(**variables), cwd=folder,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def migrate(program: str, **variables: str) -> None:
    (command,) = re.findall(rf"\b{program} (?:instance|db) [^'\n]+", section("Upgrade"))
    shell(command, REPOSITORY, **variables, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def in_the_server(program: str, postgres: PostgresServer, folder: Path) -> None:
    """Every line of the page that starts a program in PostgreSQL's container, with the server of this test instead."""
    prefix = "docker compose exec -T postgres "
    commands = re.findall(rf"^{prefix}({program} .+)$", section("Backup and restore"), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        shell(
            command, folder,
            PATH=f"{postgres.programs}:{os.environ['PATH']}", PGHOST="127.0.0.1",
            PGPORT=f"{postgres.port}", PGPASSWORD=postgres.passwords["postgres"],
        )  # fmt: skip


def schema(postgres: PostgresServer, database: str) -> str:
    with create_engine(postgres.url(database)).connect() as connection:
        return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


def test_what_an_old_dagster_ran_is_there_after_the_migration(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    # The old version knows its own stores only.
    old_home = tmp_path / "old"
    old_home.mkdir()
    url = postgres.url("dagster").replace("+psycopg2", "")
    (old_home / "dagster.yaml").write_text(
        f'storage: {{postgres: {{postgres_url: "{url}"}}}}\ntelemetry: {{enabled: false}}\n', encoding="utf-8"
    )
    run_id = by_an_old_version(
        OLD_DAGSTER, "import dagster, dagster_postgres", A_RUN_OF_DAGSTER, DAGSTER_HOME=str(old_home)
    )
    variables = postgres.instance(tmp_path)
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


def test_a_backup_brings_back_what_was_lost(tmp_path: Path) -> None:
    with postgres_server() as postgres, pytest.MonkeyPatch.context() as patch:
        import dagster as dg

        for name, value in postgres.instance(tmp_path).items():
            patch.setenv(name, value)
        with dg.DagsterInstance.get() as instance:
            run_id = instance.create_run_for_job(dg.GraphDefinition("nothing").to_job()).run_id
        patch.setenv("MLFLOW_TRACKING_URI", postgres.url("mlflow"))
        client = MlflowClient(postgres.url("mlflow"), postgres.url("mlflow"))
        client.create_registered_model("kept")
        client.create_model_version("kept", "mlflow-artifacts:/kept")
        client.set_registered_model_alias("kept", "champion", "1")

        in_the_server("pg_dump", postgres, tmp_path)
        for database, loss in (
            ("dagster", "DELETE FROM runs"),
            ("mlflow", "DROP TABLE registered_model_aliases"),
        ):
            with create_engine(postgres.url(database)).begin() as connection:
                connection.execute(text(loss))
        in_the_server("pg_restore", postgres, tmp_path)

        with dg.DagsterInstance.get() as instance:
            assert instance.get_run_by_id(run_id) is not None
        assert int(client.get_model_version_by_alias("kept", "champion").version) == 1
        # And both may still write: what was restored is theirs.
        client.set_registered_model_alias("kept", "previous", "1")
