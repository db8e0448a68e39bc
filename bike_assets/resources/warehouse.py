"""The warehouse: the one place that opens the database, writes a partition or reads a table.

Belongs here: connections, transactions, types of the database. Does not belong here: what a table means (see
`bike_assets.core.contracts`) and SQL that transforms (see `dbt_project/`).
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Final

import dagster as dg
import duckdb
import polars as pl

from bike_assets.core.contracts import TableContract
from bike_assets.core.errors import PermanentError, TransientError

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


class DuckDBWarehouse(dg.ConfigurableResource):  # type: ignore[type-arg]
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

    def replace(self, contract: TableContract, frame: pl.DataFrame, first: date, last: date) -> None:
        """Put `frame` in the place of all rows of `first <= service_date <= last`, in one transaction.

        Args:
            contract: the table, created when it does not exist.
            frame: rows that keep the contract; may have no rows, which empties the range.
            first: first partition replaced.
            last: last partition replaced, included.

        Raises:
            ContractError: the frame breaks the contract. Nothing is written.
        """
        rows = _to_database(contract.conform(frame))
        outside = rows.filter(~pl.col("service_date").is_between(first, last)).height
        if outside:
            raise PermanentError(f"{contract.relation}: {outside:,} rows lie outside {first} to {last}")
        with self.connect() as connection:
            connection.execute("BEGIN")
            try:
                _create(connection, contract)
                connection.execute(
                    f"DELETE FROM {contract.relation} WHERE service_date BETWEEN ? AND ?",  # noqa: S608
                    [first, last],
                )
                connection.register("incoming", rows.to_arrow())
                columns = ", ".join(contract.column_names)
                connection.execute(
                    f"INSERT INTO {contract.relation} ({columns}) SELECT {columns} FROM incoming"  # noqa: S608
                )
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise

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
        names = list(columns or contract.column_names)
        empty = contract.empty().select(names)
        with self.connect() as connection:
            if not _exists(connection, contract):
                return empty
            limits, values = [], []
            for sign, day in ((">=", first), ("<=", last)):
                if day is not None:
                    limits.append(f"service_date {sign} ?")
                    values.append(day)
            where = f" WHERE {' AND '.join(limits)}" if limits else ""
            sort = f" ORDER BY {', '.join(contract.key)}" if order and contract.key else ""
            sql = f"SELECT {', '.join(names)} FROM {contract.relation}{where}{sort}"  # noqa: S608
            rows = _select(connection, sql, values)
        return _from_database(rows, empty.schema)

    def query(self, sql: str, values: Sequence[Any] = ()) -> pl.DataFrame:
        """The result of a `SELECT`, with instants in UTC."""
        with self.connect() as connection:
            rows = _select(connection, sql, list(values))
        return rows.with_columns(pl.col(pl.Datetime).dt.cast_time_unit("us").dt.replace_time_zone("UTC"))

    def exists(self, contract: TableContract) -> bool:
        """Whether the table has been created."""
        with self.connect() as connection:
            return _exists(connection, contract)


def _select(connection: duckdb.DuckDBPyConnection, sql: str, values: list[Any]) -> pl.DataFrame:
    frame = pl.from_arrow(connection.sql(sql, params=values).to_arrow_table())
    assert isinstance(frame, pl.DataFrame)  # noqa: S101  a table never comes out as a series
    return frame


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _exists(connection: duckdb.DuckDBPyConnection, contract: TableContract) -> bool:
    found = connection.execute(
        "SELECT count(*) FROM information_schema.tables WHERE table_schema = ? AND table_name = ?",
        [contract.schema, contract.name],
    ).fetchall()
    return bool(found[0][0])


def _create(connection: duckdb.DuckDBPyConnection, contract: TableContract) -> None:
    columns = ", ".join(f"{column.name} {_SQL_TYPES[_base(column.dtype)]}" for column in contract.columns)
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {contract.schema}")
    connection.execute(f"CREATE TABLE IF NOT EXISTS {contract.relation} ({columns})")


def _base(dtype: Any) -> Any:
    return dtype.base_type() if isinstance(dtype, pl.DataType) else dtype


def _to_database(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col(pl.Datetime("us", "UTC")).dt.replace_time_zone(None))


def _from_database(frame: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    instants = [name for name, dtype in schema.items() if isinstance(dtype, pl.Datetime)]
    return frame.with_columns(
        pl.col(name).dt.cast_time_unit("us").dt.replace_time_zone("UTC") for name in instants
    ).cast(dict(schema))  # type: ignore[arg-type]
