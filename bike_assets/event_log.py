"""Dagster's SQLite event log, keeping its connections open.

Dagster opens, compiles for and closes a connection for every event, asks again which tables and columns there are, and
makes the tables of every run's file one by one, which makes a backfill of a year of daily partitions wait for its own
bookkeeping (see benchmarks/event_log.py for the ratio). Tables, files and meaning are Dagster's own: a home can be
opened with the stock class at any time.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import sqlalchemy as db
from dagster import _check as check
from dagster._core.events import ASSET_EVENTS
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME, SqliteEventLogStorage
from dagster._serdes import ConfigurableClassData

from bike_assets.pool_wait import WaitsForAPlace


class PooledSqliteEventLogStorage(WaitsForAPlace, SqliteEventLogStorage):
    """`SqliteEventLogStorage` with one engine a database instead of one an event and files of runs that begin as a copy
    of the first one's empty tables."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engines: dict[str, db.Engine] = {}
        self._engines_lock = threading.Lock()
        self._empty: bytes | None = None
        self._known: set[str] = set()
        super().__init__(base_dir, inst_data)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        """Called by Dagster with the `config` block of dagster.yaml."""
        return cls(inst_data=inst_data, **config_value)

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store the events of a range of partitions in two transactions, where each of them would need two.

        What Dagster keeps of an asset's newest event is written once, from the last of them: the same as it would be
        after all of them.
        """
        (run_id, *others) = {event.run_id for event in events}
        if others or not all(event.dagster_event_type in ASSET_EVENTS for event in events):
            super().store_event_batch(events)
            return
        rows = [self._event_to_row(event) for event in events]
        insert = SqlEventLogStorageTable.insert()
        with self.run_connection(run_id) as connection:
            connection.execute(insert, rows)
        with self.index_transaction() as connection:
            numbers = [
                check.not_none(connection.execute(insert, row).inserted_primary_key)[0] for row in rows
            ]
            self._store_asset_event_tags(connection, events, numbers)
            newest = {
                (event.dagster_event_type, event.get_dagster_event().asset_key): (event, number)
                for event, number in zip(events, numbers, strict=True)
            }
            for event, number in newest.values():
                self._store_asset_event(connection, event, number)

    def has_table(self, table_name: str) -> bool:
        """As Dagster's, which asks the file each time; a table that is there stays there."""
        if table_name not in self._known and super().has_table(table_name):
            self._known.add(table_name)
        return table_name in self._known

    def _has_asset_key_col_on_connection(self, conn: db.Connection, column_name: str) -> bool:
        name = f"asset_keys.{column_name}"
        if name not in self._known and super()._has_asset_key_col_on_connection(conn, column_name):
            self._known.add(name)
        return name in self._known

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
