"""The warehouse: the one place that opens the database, writes a partition or reads a table.

Belongs here: what every warehouse can do, and DuckDB's connections, transactions and types; BigQuery's are in
`bike_assets.resources.bigquery`. Does not belong here: what a table means (see `bike_assets.core.contracts`) and SQL
that transforms (see `dbt_project/`).
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import dagster as dg
import duckdb
import polars as pl

from bike_assets.core.contracts import Column, TableContract
from bike_assets.core.errors import PermanentError, TransientError
from bike_assets.settings import Settings

EVERY_DAY: Final = date(1900, 1, 1)
"""The day from which on a statement reads that means a whole table of many days."""

LOCK_WAIT_SECONDS: Final = 60.0
"""How long to wait for another process to close the file. DuckDB lets one process at a time write."""

MEMORY_LIMIT: Final = "512MB"
"""Memory of a connection, which only reads and writes partitions; dbt's profile allows its joins more."""

_SQL_TYPES: Final[dict[Any, str]] = {
    pl.Boolean: "BOOLEAN",
    pl.Date: "DATE",
    pl.Float32: "FLOAT",
    pl.Float64: "DOUBLE",
    pl.Int32: "INTEGER",
    pl.Int64: "BIGINT",
    pl.String: "VARCHAR",
    # Without a zone: every instant is UTC by contract, and zoned types need an extension that is downloaded.
    pl.Datetime: "TIMESTAMP",
}


class TableReader(ABC):
    """Reads several tables as they were at one moment."""

    @abstractmethod
    def days(self, contract: TableContract) -> list[date]:
        """The days that have rows, in order; none where the table does not exist yet."""

    @abstractmethod
    def read(self, contract: TableContract, first: date, last: date) -> pl.DataFrame:
        """The rows of some days, both ends included, in the contract's types and in no order."""


class Warehouse(dg.ConfigurableResource, ABC):  # type: ignore[type-arg]
    """What assets, checks and commands ask of a warehouse, whatever database it is."""

    @staticmethod
    def from_settings(settings: Settings) -> "Warehouse":
        """The warehouse of an environment."""
        if settings.env == "prod":
            # Its client takes seconds to import, which nobody on a laptop should wait for.
            from bike_assets.resources.bigquery import BigQueryWarehouse

            return BigQueryWarehouse.from_settings(settings)
        return DuckDBWarehouse(path=str(settings.warehouse_path))

    def replace(self, contract: TableContract, frame: pl.DataFrame, first: date, last: date) -> None:
        """Put `frame` in the place of all rows of `first <= service_date <= last`: readers see all of it or nothing.

        Args:
            contract: the table, created when it does not exist.
            frame: rows that keep the contract; may have no rows, which empties the range.
            first: first partition replaced.
            last: last partition replaced, included.

        Raises:
            ContractError: the frame breaks the contract. Nothing is written.
            PermanentError: a row lies outside of the range. Nothing is written.
        """
        rows = contract.conform(frame)
        outside = rows.filter(~pl.col("service_date").is_between(first, last)).height
        if outside:
            raise PermanentError(f"{contract.relation}: {outside:,} rows lie outside {first} to {last}")
        self._replace(contract, rows, first, last)

    @abstractmethod
    def _replace(self, contract: TableContract, rows: pl.DataFrame, first: date, last: date) -> None:
        """What `replace` does with rows that keep the contract and lie in the range."""

    @abstractmethod
    def replace_tables(self, tables: Iterable[tuple[TableContract, Iterable[pl.DataFrame]]]) -> None:
        """Put whole tables in the place of what they hold, all of them in one transaction.

        Args:
            tables: each table with its rows in any number of frames, which are taken one after the other, so that
                no table need be in memory whole.

        Raises:
            ContractError: a frame breaks the contract. Nothing is written.
        """

    @abstractmethod
    def append(self, contract: TableContract, continue_after: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
        """Add rows behind the last one, and only if it still is the last when they are written.

        Args:
            contract: the table, created when it does not exist; its key is one rising number.
            continue_after: given the row of the highest key, or no row, answers with the rows to add.

        Raises:
            ContractError: the rows break the contract. Nothing is written.
        """

    @abstractmethod
    def read(
        self,
        contract: TableContract,
        first: date | None = None,
        last: date | None = None,
        *,
        columns: Sequence[str] | None = None,
        order: bool = True,
    ) -> pl.DataFrame:
        """Rows of a table, ordered by its key so that the same data always comes in the same order.

        Args:
            contract: the table.
            first: first `service_date` wanted; all before it are left out.
            last: last `service_date` wanted, included.
            columns: the columns wanted, all by default.
            order: whether to sort by the key.

        Returns:
            The rows, in the contract's types; none where the table does not exist yet.
        """

    @abstractmethod
    def at_one_moment(self) -> AbstractContextManager[TableReader]:
        """A reader to which every table stays as it is now, whoever writes meanwhile."""

    @abstractmethod
    def query(self, sql: str, values: Sequence[Any] = ()) -> pl.DataFrame:
        """The result of a `SELECT` that DuckDB and BigQuery both understand, with instants in UTC.

        Args:
            sql: the statement. Where it reads a table of many days it says which: BigQuery refuses it otherwise.
            values: what stands for each `?` of it.
        """

    @abstractmethod
    def exists(self, contract: TableContract) -> bool:
        """Whether the table has been created."""

    @abstractmethod
    def bring_up_to_date(self, *contracts: TableContract) -> None:
        """Give tables that an earlier version wrote the columns they lack; those that do not exist stay so.

        Everything here does so by itself; it is for those who open the database without us.

        Raises:
            PermanentError: a column is lacking that is never null.
        """

    @abstractmethod
    def prove(self) -> str:
        """Write something, read it and take it away again.

        Returns:
            What answered, in words.
        """

    def newest_day(self, contract: TableContract) -> date | None:
        """The newest `service_date` that has rows; None where there are none or no table yet."""
        if not self.exists(contract):
            return None
        newest = self.query(
            f"SELECT max(service_date) FROM {contract.relation} WHERE service_date >= ?",  # noqa: S608
            [EVERY_DAY],
        ).item()
        return newest if isinstance(newest, date) else None


class DuckDBWarehouse(Warehouse):
    """A DuckDB file. Connections are short, because while one is open no other process can write."""

    path: str

    @contextmanager
    def connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """An open connection, closed on leaving.

        Raises:
            TransientError: another process kept the file open for longer than `LOCK_WAIT_SECONDS`.
        """
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        while True:
            try:
                connection = duckdb.connect(self.path)
                break
            except duckdb.IOException as error:
                if "lock" not in str(error).lower():
                    raise PermanentError(f"{self.path} cannot be opened: {_first_line(error)}") from error
                if time.monotonic() > deadline:
                    raise TransientError(
                        f"{self.path} is open in another process: {_first_line(error)}; close it and run again"
                    ) from error
                time.sleep(0.2)
        try:
            # The rest of the memory is for the frames that are read and written; DuckDB spills to disk instead.
            connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
            # Inserts keep their memory small when the order of rows inside a batch need not be remembered.
            connection.execute("SET preserve_insertion_order = false")
            yield connection
        finally:
            connection.close()

    def _replace(self, contract: TableContract, rows: pl.DataFrame, first: date, last: date) -> None:
        with self.connect() as connection, _transaction(connection):
            self._create(connection, contract)
            connection.execute(
                f"DELETE FROM {contract.relation} WHERE service_date BETWEEN ? AND ?",  # noqa: S608
                [first, last],
            )
            _insert(connection, contract, rows)

    def replace_tables(self, tables: Iterable[tuple[TableContract, Iterable[pl.DataFrame]]]) -> None:
        with self.connect() as connection, _transaction(connection):
            for contract, frames in tables:
                self._create(connection, contract)
                connection.execute(f"DELETE FROM {contract.relation}")  # noqa: S608
                for frame in frames:
                    _insert(connection, contract, contract.conform(frame))

    def append(self, contract: TableContract, continue_after: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
        (key,) = contract.key
        with self.connect() as connection, _transaction(connection):
            self._create(connection, contract)
            sql = f"SELECT * FROM {contract.relation} ORDER BY {key} DESC LIMIT 1"  # noqa: S608
            last = _from_database(_select(connection, sql, []), contract.polars_schema)
            _insert(connection, contract, contract.conform(continue_after(last)))

    def read(
        self,
        contract: TableContract,
        first: date | None = None,
        last: date | None = None,
        *,
        columns: Sequence[str] | None = None,
        order: bool = True,
    ) -> pl.DataFrame:
        with self.connect() as connection:
            return self._read(connection, contract, first, last, columns or contract.column_names, order)

    @contextmanager
    def at_one_moment(self) -> Iterator[TableReader]:
        with self.connect() as connection, _transaction(connection):
            yield _DuckDBReader(self, connection)

    def query(self, sql: str, values: Sequence[Any] = ()) -> pl.DataFrame:
        with self.connect() as connection:
            rows = _select(connection, sql, list(values))
        return rows.with_columns(pl.col(pl.Datetime).dt.cast_time_unit("us").dt.replace_time_zone("UTC"))

    def exists(self, contract: TableContract) -> bool:
        with self.connect() as connection:
            return self._exists(connection, contract)

    def bring_up_to_date(self, *contracts: TableContract) -> None:
        with self.connect() as connection:
            for contract in contracts:
                if self._exists(connection, contract):
                    self._add_columns(connection, contract)

    def prove(self) -> str:
        with self.connect() as connection:
            connection.execute("BEGIN")
            connection.execute("CREATE SCHEMA proof; CREATE TABLE proof.proof AS SELECT 1 AS one")
            connection.execute("ROLLBACK")
        return f"DuckDB {duckdb.__version__}, {self.path}"

    def _read(
        self,
        connection: duckdb.DuckDBPyConnection,
        contract: TableContract,
        first: date | None,
        last: date | None,
        columns: Sequence[str],
        order: bool,
    ) -> pl.DataFrame:
        empty = contract.empty().select(columns)
        stored = self._stored_columns(connection, contract)
        if not stored:
            return empty
        limits, values = [], []
        for sign, day in ((">=", first), ("<=", last)):
            if day is not None:
                limits.append(f"service_date {sign} ?")
                values.append(day)
        where = f" WHERE {' AND '.join(limits)}" if limits else ""
        sort = f" ORDER BY {', '.join(contract.key)}" if order and contract.key else ""
        lacking = {column.name for column in _lacking(contract, stored, columns)}
        selected = (
            f"NULL::{_sql_type(contract, name)} AS {name}" if name in lacking else name for name in columns
        )
        sql = f"SELECT {', '.join(selected)} FROM {contract.relation}{where}{sort}"  # noqa: S608
        return _from_database(_select(connection, sql, values), empty.schema)

    def _create(self, connection: duckdb.DuckDBPyConnection, contract: TableContract) -> None:
        columns = ", ".join(f"{name} {_sql_type(contract, name)}" for name in contract.column_names)
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {contract.schema}")
        connection.execute(f"CREATE TABLE IF NOT EXISTS {contract.relation} ({columns})")
        self._add_columns(connection, contract)

    def _exists(self, connection: duckdb.DuckDBPyConnection, contract: TableContract) -> bool:
        return bool(self._stored_columns(connection, contract))

    def _stored_columns(self, connection: duckdb.DuckDBPyConnection, contract: TableContract) -> set[str]:
        """Names of the columns the table has; none where it does not exist."""
        # information_schema goes through every column of the database each time; and asking pragma_table_info for a
        # table that does not exist ends the transaction.
        known = connection.execute(
            "SELECT 1 FROM duckdb_tables() WHERE schema_name = ? AND table_name = ?",
            [contract.schema, contract.name],
        ).fetchone()
        if not known:
            return set()
        found = connection.execute("SELECT name FROM pragma_table_info(?)", [contract.relation]).fetchall()
        return {name for (name,) in found}

    def _add_columns(self, connection: duckdb.DuckDBPyConnection, contract: TableContract) -> None:
        for column in _lacking(contract, self._stored_columns(connection, contract), contract.column_names):
            connection.execute(
                f"ALTER TABLE {contract.relation} ADD COLUMN {column.name} {_sql_type(contract, column.name)}"
            )


@dataclass(frozen=True)
class _DuckDBReader(TableReader):
    """Reads inside of one transaction."""

    warehouse: DuckDBWarehouse
    connection: duckdb.DuckDBPyConnection

    def days(self, contract: TableContract) -> list[date]:
        if not self.warehouse._exists(self.connection, contract):
            return []
        found = self.connection.execute(
            f"SELECT DISTINCT service_date FROM {contract.relation} ORDER BY service_date"  # noqa: S608
        ).fetchall()
        return [day for (day,) in found]

    def read(self, contract: TableContract, first: date, last: date) -> pl.DataFrame:
        return self.warehouse._read(
            self.connection, contract, first, last, contract.column_names, order=False
        )


@contextmanager
def _transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _insert(connection: duckdb.DuckDBPyConnection, contract: TableContract, rows: pl.DataFrame) -> None:
    connection.register("incoming", _to_database(rows).to_arrow())
    columns = ", ".join(contract.column_names)
    connection.execute(f"INSERT INTO {contract.relation} ({columns}) SELECT {columns} FROM incoming")  # noqa: S608


def _select(connection: duckdb.DuckDBPyConnection, sql: str, values: list[Any]) -> pl.DataFrame:
    frame = pl.from_arrow(connection.sql(sql, params=values).to_arrow_table())
    assert isinstance(frame, pl.DataFrame)  # noqa: S101  a table never comes out as a series
    return frame


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _lacking(contract: TableContract, stored: set[str], wanted: Sequence[str]) -> list[Column]:
    """The wanted columns that a table of an earlier version has not, all of which may be null.

    Raises:
        PermanentError: one of them is never null, so that nothing could stand for what was not stored.
    """
    lacking = [column for column in contract.columns if column.name in wanted and column.name not in stored]
    if needed := [column.name for column in lacking if not column.nullable]:
        raise PermanentError(
            f"{contract.relation} was written by an earlier version and has no column {', '.join(needed)}; "
            "move the home away and build it again"
        )
    return lacking


def _sql_type(contract: TableContract, name: str) -> str:
    return _SQL_TYPES[_base(contract.polars_schema[name])]


def _base(dtype: Any) -> Any:
    return dtype.base_type() if isinstance(dtype, pl.DataType) else dtype


def _to_database(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col(pl.Datetime("us", "UTC")).dt.replace_time_zone(None))


def _from_database(frame: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    instants = [name for name, dtype in schema.items() if isinstance(dtype, pl.Datetime)]
    return frame.with_columns(
        pl.col(name).dt.cast_time_unit("us").dt.replace_time_zone("UTC") for name in instants
    ).cast(dict(schema))  # type: ignore[arg-type]
