"""Dagster's SQLite store of runs, keeping its connections open.

Dagster makes an engine for every question to it, some forty a run, which opens a connection and compiles its SQL each
time (`benchmarks/event_log.py` has the ratio). Tables, file and meaning are its own: a home can be opened with the
stock class at any time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import sqlalchemy as db
from dagster._core.storage.runs import SqliteRunStorage
from dagster._serdes import ConfigurableClassData

from bike_assets.event_log import open_engine


class PooledSqliteRunStorage(SqliteRunStorage):
    """`SqliteRunStorage` with one engine instead of one a question."""

    def __init__(self, conn_string: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engine = open_engine(conn_string)
        super().__init__(conn_string, inst_data)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        """Called by Dagster with the `config` block of dagster.yaml."""
        return cls.from_local(inst_data=inst_data, **config_value)

    @contextmanager
    def connect(self) -> Iterator[db.Connection]:
        """A connection in a transaction that is committed on leaving."""
        with self._engine.begin() as connection:
            yield connection

    def dispose(self) -> None:
        """Close every connection; Dagster calls it when the instance is done."""
        self._engine.dispose()
