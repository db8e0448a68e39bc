"""Dagster's stores in PostgreSQL with connections that stay: the same records, and no dead connection is asked."""

import os
import signal
from pathlib import Path

import dagster as dg
import psycopg2
import pytest
from dagster_postgres import PostgresRunStorage

from bike_assets.postgres_storage import PooledPostgresStorage
from bike_assets_tests.emulators.processes import PostgresServer, postgres_server

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def backends(server: PostgresServer) -> list[int]:
    """The processes by which PostgreSQL serves Dagster's database."""
    url = server.url("dagster").replace("+psycopg2", "")
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = 'dagster' AND pid <> pg_backend_pid()"
        )
        return [pid for (pid,) in cursor.fetchall()]


def test_connections_stay_are_replaced_when_dead_and_end_with_the_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres_server() as server:
        for name, value in server.instance(tmp_path).items():
            monkeypatch.setenv(name, value)
        with dg.DagsterInstance.get() as instance:
            assert type(instance.run_storage).__module__ == PooledPostgresStorage.__module__
            run = instance.create_run_for_job(dg.GraphDefinition("nothing").to_job(), tags={"user": "anna"})
            before = backends(server)
            instance.get_runs()
            assert backends(server) == before != []

            for pid in before:
                os.kill(pid, signal.SIGTERM)  # as a restart ends them
            stock = PostgresRunStorage(server.url("dagster").replace("+psycopg2", ""))
            assert [found.run_id for found in stock.get_runs()] == [run.run_id]
            assert [found.tags["user"] for found in instance.get_runs()] == ["anna"]
        assert backends(server) == []
