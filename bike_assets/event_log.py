"""Dagster's SQLite event log, keeping its connections open.

Dagster opens, compiles for and closes a connection for every event, and makes the tables of every run's file one by
one, which makes a backfill of a year of daily partitions wait for its own bookkeeping (see benchmarks/event_log.py for
the ratio). Tables, files and meaning are Dagster's own: a home can be opened with the stock class at any time.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import sqlalchemy as db
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME, SqliteEventLogStorage
from dagster._serdes import ConfigurableClassData


class PooledSqliteEventLogStorage(SqliteEventLogStorage):
    """`SqliteEventLogStorage` with one engine a database instead of one an event and files of runs that begin as a copy
    of the first one's empty tables."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engines: dict[str, db.Engine] = {}
        self._engines_lock = threading.Lock()
        self._empty: bytes | None = None
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
                self._make_tables(shard, engine)
                self._initialized_dbs.add(shard)
            with engine.begin() as connection:
                yield connection

    def _make_tables(self, shard: str, engine: db.Engine) -> None:
        """Tables in a database that may be new. Making them takes ten times as long as copying a file of them."""
        path = Path(self.path_for_shard(shard))
        new = shard != INDEX_SHARD_NAME and not path.exists()
        if not new or self._empty is None:
            self._initdb(engine)
            if new:
                with closing(sqlite3.connect(path)) as connection:
                    self._empty = connection.serialize()
            return
        copy = path.with_suffix(f".{os.getpid()}")
        copy.write_bytes(self._empty)
        # Another process may have been quicker; then its file stands.
        with suppress(FileExistsError):
            os.link(copy, path)
        copy.unlink()

    def _engine(self, shard: str) -> db.Engine:
        with self._engines_lock:
            if shard not in self._engines:
                self._engines[shard] = open_engine(self.conn_string_for_shard(shard))
            return self._engines[shard]

    def dispose(self) -> None:
        """Close every connection; Dagster calls it when the instance is done."""
        with self._engines_lock:
            for engine in self._engines.values():
                engine.dispose()
            self._engines.clear()
        super().dispose()


def open_engine(conn_string: str) -> db.Engine:
    """An engine of an SQLite database in WAL mode, which keeps its connections."""
    engine = db.create_engine(conn_string, connect_args={"timeout": 60})
    # In WAL mode NORMAL loses no consistency, only the last records of a machine that lost power.
    db.event.listen(engine, "connect", _relax_sync)
    return engine


def _relax_sync(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")
