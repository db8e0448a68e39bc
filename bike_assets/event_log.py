"""Dagster's SQLite event log, keeping its connections open.

Dagster opens, compiles for and closes a connection for every event, which makes a backfill of a year of daily
partitions wait for its own bookkeeping (see benchmarks/event_log.py for the ratio). Tables, files and meaning
are Dagster's own: a home can be opened with the stock class at any time.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import sqlalchemy as db
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._serdes import ConfigurableClassData


class PooledSqliteEventLogStorage(SqliteEventLogStorage):
    """`SqliteEventLogStorage` with one engine a database instead of one an event."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engines: dict[str, db.Engine] = {}
        self._engines_lock = threading.Lock()
        super().__init__(base_dir, inst_data)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        """Called by Dagster with the `config` block of dagster.yaml."""
        return cls(inst_data=inst_data, **config_value)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[db.Connection]:
        with self._db_lock:
            engine = self._engine(shard)
            if shard not in self._initialized_dbs:
                self._initdb(engine)
                self._initialized_dbs.add(shard)
            with engine.begin() as connection:
                yield connection

    def _engine(self, shard: str) -> db.Engine:
        with self._engines_lock:
            if shard not in self._engines:
                engine = db.create_engine(self.conn_string_for_shard(shard), connect_args={"timeout": 60})
                # In WAL mode NORMAL loses no consistency, only the last events of a machine that lost power.
                db.event.listen(engine, "connect", _relax_sync)
                self._engines[shard] = engine
            return self._engines[shard]

    def dispose(self) -> None:
        """Close every connection; Dagster calls it when the instance is done."""
        with self._engines_lock:
            for engine in self._engines.values():
                engine.dispose()
            self._engines.clear()
        super().dispose()


def _relax_sync(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")
