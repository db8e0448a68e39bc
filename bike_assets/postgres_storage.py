"""Dagster's stores in PostgreSQL, keeping their connections open.

Dagster opens a connection for every question to them, some five an event, and PostgreSQL starts a process and checks a
password each time (`benchmarks/event_log.py` has the ratio). Tables and meaning are its own: a database can be opened
with the stock class at any time.
"""

from typing import Any, Final, Self

from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage, PostgresRunStorage
from dagster_postgres.schedule_storage import PostgresScheduleStorage
from dagster_postgres.utils import create_pg_engine, get_token_provider_from_config, pg_url_from_config
from sqlalchemy import Engine

from bike_assets.pool_wait import WaitsForAPlace

_RECYCLED_SECONDS: Final = 3_600
_MOST_AT_ONCE: Final = 20
"""Connections of one process and store beside the one that stays, as Dagster's web server has them."""


class _KeepsConnections:
    """One of Dagster's stores whose connections stay until it is disposed of.

    A connection is tried before it is used, so that one which a restart of PostgreSQL has ended is replaced.
    """

    _engine: Engine

    def __init__(self, postgres_url: str, should_autocreate_tables: bool, token_provider: Any) -> None:
        super().__init__(postgres_url, should_autocreate_tables, token_provider=token_provider)  # type: ignore[call-arg]
        self._engine = create_pg_engine(
            postgres_url,
            token_provider,
            isolation_level="AUTOCOMMIT",
            pool_size=1,
            max_overflow=_MOST_AT_ONCE,
            pool_recycle=_RECYCLED_SECONDS,
            pool_pre_ping=True,
        )

    def dispose(self) -> None:
        super().dispose()  # type: ignore[misc]
        self._engine.dispose()


class _Runs(_KeepsConnections, PostgresRunStorage):
    pass


class _Events(WaitsForAPlace, _KeepsConnections, PostgresEventLogStorage):
    pass


class _Schedules(_KeepsConnections, PostgresScheduleStorage):
    pass


class PooledPostgresStorage(DagsterPostgresStorage):
    """`DagsterPostgresStorage` whose three stores keep their connections."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: Any = None,
    ) -> None:
        """Take what `DagsterPostgresStorage` takes; its own stores only make the tables."""
        super().__init__(postgres_url, should_autocreate_tables, inst_data, token_provider)
        self._run_storage = _Runs(postgres_url, should_autocreate_tables, token_provider)
        self._event_log_storage = _Events(postgres_url, should_autocreate_tables, token_provider)
        self._schedule_storage = _Schedules(postgres_url, should_autocreate_tables, token_provider)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        """Called by Dagster with the `config` block of dagster.yaml."""
        return cls(
            postgres_url=pg_url_from_config(config_value),
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
            inst_data=inst_data,
            token_provider=get_token_provider_from_config(config_value),
        )
