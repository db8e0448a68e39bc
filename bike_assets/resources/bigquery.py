"""The warehouse in BigQuery, over dagster-gcp's connection: the same tables, written and read as Arrow.

Belongs here: BigQuery's client, types, layout and the statements that keep a write atomic. Does not belong here: what
every warehouse can do (`bike_assets.resources.warehouse`), and SQL that transforms (`dbt_project/`).

A table of counters and days is partitioned by month and clustered by counter: the whole city is under 200 MB, and
partitions of a day would be a thousand times smaller than what BigQuery recommends. So a day is no partition that a
load job could overwrite. Rows are loaded into a staging table of their own, as Parquet, and one `MERGE` then takes
the old rows out and puts the new ones in: readers see all of it or nothing, and a process that dies leaves the old.
"""

import io
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import polars as pl
import pyarrow as pa
from dagster_gcp import BigQueryResource
from google.api_core.exceptions import BadRequest, Conflict, GoogleAPICallError, NotFound
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.cloud import bigquery
from google.cloud.bigquery_storage import BigQueryReadClient

from bike_assets.core.contracts import AUDIT_LOG, Column, TableContract
from bike_assets.core.errors import PermanentError, TransientError
from bike_assets.resources.warehouse import EVERY_DAY, TableReader, Warehouse
from bike_assets.settings import Settings

PARTITION_COLUMN: Final = "service_date"
CLUSTER_COLUMN: Final = "counter_id"

_STAGING_LIFE: Final = timedelta(hours=6)
"""After which BigQuery removes a staging table whose writer died."""

_ATTEMPTS: Final = 6
"""How often a statement is tried that ran into another writer of the same table, with longer and longer pauses."""

_SQL_TYPES: Final[dict[Any, str]] = {
    pl.Boolean: "BOOL",
    pl.Date: "DATE",
    # BigQuery knows one width of numbers. What was 32 bits wide comes back as it was.
    pl.Float32: "FLOAT64",
    pl.Float64: "FLOAT64",
    pl.Int32: "INT64",
    pl.Int64: "INT64",
    pl.String: "STRING",
    pl.Datetime: "TIMESTAMP",
}
_PARAMETER_TYPES: Final[dict[type, str]] = {
    bool: "BOOL",
    datetime: "TIMESTAMP",
    date: "DATE",
    int: "INT64",
    float: "FLOAT64",
    str: "STRING",
}


class BigQueryConnection(BigQueryResource):
    """dagster-gcp's connection, which can also be told another address than Google's.

    With an address it speaks to an emulator, and shows it no credentials.
    """

    endpoint: str = ""
    storage_endpoint: str = ""

    @contextmanager
    def get_client(self) -> Iterator[bigquery.Client]:
        """The client of the machine's or the workload's own identity.

        Raises:
            PermanentError: there are no credentials.
        """
        if self.endpoint:
            with bigquery.Client(
                project=self.project,
                location=self.location,
                credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
                client_options={"api_endpoint": self.endpoint},
            ) as client:
                yield client
            return
        try:
            with super().get_client() as client:
                yield client
        except GoogleAuthError as error:
            raise PermanentError(
                f"BigQuery cannot be asked without credentials: {_first_line(error).partition('. ')[0]}; run gcloud "
                "auth application-default login, or give the workload an identity"
            ) from error

    def reader(self, client: bigquery.Client) -> BigQueryReadClient | None:
        """The client that reads results as Arrow streams; None where BigQuery must send them as pages of JSON."""
        if not self.storage_endpoint:
            return client._ensure_bqstorage_client()
        import grpc
        from google.cloud.bigquery_storage_v1.services.big_query_read.transports import (
            BigQueryReadGrpcTransport,
        )

        # Without a bound, as the client makes its own channels: a block of wide rows is larger than gRPC's default.
        channel = grpc.insecure_channel(self.storage_endpoint, [("grpc.max_receive_message_length", -1)])
        return BigQueryReadClient(  # type: ignore[no-untyped-call]
            transport=BigQueryReadGrpcTransport(channel=channel)
        )


class BigQueryWarehouse(Warehouse):
    """Tables in BigQuery: a dataset a schema of the contracts."""

    connection: BigQueryConnection
    maximum_bytes_billed: int

    @classmethod
    def from_settings(cls, settings: Settings) -> "BigQueryWarehouse":
        """The warehouse that the settings name."""
        return cls(
            connection=BigQueryConnection(
                project=settings.bigquery_project,
                location=settings.bigquery_location,
                endpoint=settings.bigquery_endpoint,
                storage_endpoint=settings.bigquery_storage_endpoint,
            ),
            maximum_bytes_billed=settings.bigquery_maximum_bytes_billed,
        )

    def _replace(self, contract: TableContract, rows: pl.DataFrame, first: date, last: date) -> None:
        with self.connection.get_client() as client:
            self._create(client, contract)
            with self._staged(client, contract, [rows]) as staging:
                # A condition that never holds: every old row of the range has no partner, nor has any new one.
                self._run(
                    client,
                    f"MERGE {contract.relation} AS old USING {staging} AS new ON FALSE\n"  # noqa: S608
                    f"WHEN NOT MATCHED BY SOURCE AND old.{PARTITION_COLUMN} BETWEEN ? AND ? THEN DELETE\n"
                    f"WHEN NOT MATCHED BY TARGET THEN INSERT ({_columns(contract)}) VALUES ({_columns(contract)})",
                    [first, last],
                )

    def replace_tables(self, tables: Iterable[tuple[TableContract, Iterable[pl.DataFrame]]]) -> None:
        with self.connection.get_client() as client:
            self._replace_next(client, iter(tables), ["BEGIN TRANSACTION"])

    def _replace_next(
        self,
        client: bigquery.Client,
        tables: Iterator[tuple[TableContract, Iterable[pl.DataFrame]]],
        statements: list[str],
    ) -> None:
        """Stage one table after the other, and change all of them once the last is staged."""
        entry = next(tables, None)
        if entry is None:
            self._run(client, ";\n".join([*statements, "COMMIT TRANSACTION"]))
            return
        contract, frames = entry
        self._create(client, contract)
        with self._staged(client, contract, (contract.conform(frame) for frame in frames)) as staging:
            columns = _columns(contract)
            delete = f"DELETE FROM {contract.relation} WHERE {PARTITION_COLUMN} >= DATE '{EVERY_DAY}'"  # noqa: S608
            insert = f"INSERT INTO {contract.relation} ({columns}) SELECT {columns} FROM {staging}"  # noqa: S608
            self._replace_next(client, tables, [*statements, delete, insert])

    def append(self, contract: TableContract, continue_after: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
        (key,) = contract.key
        with self.connection.get_client() as client:
            self._create(client, contract)
            last = self._read(client, contract, f"ORDER BY {key} DESC LIMIT 1", [], contract.column_names)
            rows = contract.conform(continue_after(last))
            expected = last.get_column(key).item() if last.height else 0
            with self._staged(client, contract, [rows]) as staging:
                job = self._run(
                    client,
                    f"INSERT INTO {contract.relation} ({_columns(contract)}) SELECT {_columns(contract)} "  # noqa: S608
                    f"FROM {staging} WHERE (SELECT IFNULL(MAX({key}), 0) FROM {contract.relation}) = ?",
                    [expected],
                )
        if job.num_dml_affected_rows != rows.height:
            raise TransientError(f"{contract.relation}: another process added rows meanwhile; run again")

    def read(
        self,
        contract: TableContract,
        first: date | None = None,
        last: date | None = None,
        *,
        columns: Sequence[str] | None = None,
        order: bool = True,
    ) -> pl.DataFrame:
        names = list(columns or contract.column_names)
        sorting = contract.key if order else ()
        wanted = [*names, *(name for name in sorting if name not in names)]
        with self.connection.get_client() as client:
            rows = self._read(client, contract, *_days(contract, first, last), wanted)
        # Sorted here: a sorted result comes in one stream, which is slower than all of them and sorting.
        return rows.sort(sorting).select(names) if sorting else rows

    def at_one_moment(self) -> AbstractContextManager[TableReader]:
        return self._at(datetime.now(UTC))

    @contextmanager
    def _at(self, moment: datetime) -> Iterator[TableReader]:
        with self.connection.get_client() as client:
            yield _PastReader(self, client, moment)

    def query(self, sql: str, values: Sequence[Any] = ()) -> pl.DataFrame:
        with self.connection.get_client() as client:
            return self._select(client, sql, values)

    def exists(self, contract: TableContract) -> bool:
        with self.connection.get_client() as client:
            return self._stored(client, contract) is not None

    def bring_up_to_date(self, *contracts: TableContract) -> None:
        with self.connection.get_client() as client:
            for contract in contracts:
                if table := self._stored(client, contract):
                    self._add_columns(client, contract, table)

    def prove(self) -> str:
        proof = TableContract(AUDIT_LOG.schema, "proof", (), (Column("one", pl.Int64, "1"),))
        with self.connection.get_client() as client:
            self._create_dataset(client, proof)
            with self._staged(client, proof, [pl.DataFrame({"one": [1]})]) as staging:
                self._select(client, f"SELECT one FROM {staging}", [])  # noqa: S608
            return f"BigQuery project {client.project}, {self.connection.location}"

    # --- reading -----

    def _read(
        self,
        client: bigquery.Client,
        contract: TableContract,
        clause: str,
        values: Sequence[Any],
        columns: Sequence[str],
    ) -> pl.DataFrame:
        empty = contract.empty().select(columns)
        table = self._stored(client, contract)
        if table is None:
            return empty
        lacking = {column.name for column in _lacking(contract, table, columns)}
        selected = (
            f"CAST(NULL AS {_sql_type(contract, name)}) AS {name}" if name in lacking else name
            for name in columns
        )
        sql = f"SELECT {', '.join(selected)} FROM {contract.relation} {clause}"  # noqa: S608
        return self._select(client, sql, values).cast(dict(empty.schema))  # type: ignore[arg-type]

    def _select(self, client: bigquery.Client, sql: str, values: Sequence[Any]) -> pl.DataFrame:
        rows = self._run(client, sql, values).result()
        table: pa.Table = rows.to_arrow(bqstorage_client=self.connection.reader(client))
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)  # noqa: S101  a table never comes out as a series
        return frame.with_columns(pl.col(pl.Datetime).dt.cast_time_unit("us").dt.replace_time_zone("UTC"))

    # --- writing -----

    @contextmanager
    def _staged(
        self, client: bigquery.Client, contract: TableContract, frames: Iterable[pl.DataFrame]
    ) -> Iterator[str]:
        """A table of the frames' rows that is removed on leaving, and by BigQuery itself where we die before."""
        name = f"{contract.relation}__{uuid.uuid4().hex}"
        table = bigquery.Table(f"{client.project}.{name}", schema=_schema(contract))
        table.expires = datetime.now(UTC) + _STAGING_LIFE
        try:
            client.create_table(table)
            for frame in frames:
                if frame.height:
                    self._load(client, table, frame)
            yield name
        finally:
            client.delete_table(table, not_found_ok=True)

    def _load(self, client: bigquery.Client, table: bigquery.Table, frame: pl.DataFrame) -> None:
        parquet = io.BytesIO()
        frame.write_parquet(parquet, compression="snappy")
        size = parquet.tell()
        parquet.seek(0)
        config = bigquery.LoadJobConfig(
            source_format=bigquery.SourceFormat.PARQUET,
            write_disposition=bigquery.WriteDisposition.WRITE_APPEND,
            schema=table.schema,
        )
        with _explained(table.table_id):
            client.load_table_from_file(parquet, table, size=size, job_config=config).result()

    def _run(self, client: bigquery.Client, sql: str, values: Sequence[Any] = ()) -> bigquery.QueryJob:
        """Run a statement to its end; again where another writer of the same table came first.

        Raises:
            TransientError: others wrote to the table at every attempt, or BigQuery is not there.
            PermanentError: BigQuery refuses the statement.
        """
        config = bigquery.QueryJobConfig(
            maximum_bytes_billed=self.maximum_bytes_billed,
            query_parameters=[
                bigquery.ScalarQueryParameter(None, _PARAMETER_TYPES[type(value)], value) for value in values
            ],
        )
        with _explained(sql.splitlines()[0]):
            for attempt in range(_ATTEMPTS):
                try:
                    job = client.query(sql, job_config=config)
                    job.result()
                    return job
                except (BadRequest, Conflict) as error:
                    if not _came_second(error) or attempt == _ATTEMPTS - 1:
                        raise
                    time.sleep(2.0**attempt)
        raise AssertionError("the last attempt returns or raises")

    # --- tables -----

    def _stored(self, client: bigquery.Client, contract: TableContract) -> bigquery.Table | None:
        try:
            with _explained(contract.relation):
                return client.get_table(f"{client.project}.{contract.relation}")
        except NotFound:
            return None

    def _create(self, client: bigquery.Client, contract: TableContract) -> None:
        if table := self._stored(client, contract):
            self._add_columns(client, contract, table)
            return
        self._create_dataset(client, contract)
        with _explained(contract.relation):
            client.create_table(table_layout(client.project, contract), exists_ok=True)

    def _create_dataset(self, client: bigquery.Client, contract: TableContract) -> None:
        dataset = bigquery.Dataset(f"{client.project}.{contract.schema}")
        dataset.location = self.connection.location
        with _explained(contract.schema):
            client.create_dataset(dataset, exists_ok=True)

    def _add_columns(self, client: bigquery.Client, contract: TableContract, table: bigquery.Table) -> None:
        lacking = {column.name for column in _lacking(contract, table, contract.column_names)}
        if lacking:
            table.schema = [
                *table.schema,
                *(field for field in _schema(contract) if field.name in lacking),
            ]
            client.update_table(table, ["schema"])


def table_layout(project: str, contract: TableContract) -> bigquery.Table:
    """How a table is stored: by month and counter, and refusing questions that do not say which days.

    Tables that do not grow by counter are small: partitions and a filter would only be in the way.
    """
    table = bigquery.Table(f"{project}.{contract.relation}", schema=_schema(contract))
    if {PARTITION_COLUMN, CLUSTER_COLUMN} <= set(contract.column_names):
        table.time_partitioning = bigquery.TimePartitioning(
            type_=bigquery.TimePartitioningType.MONTH, field=PARTITION_COLUMN
        )
        table.clustering_fields = [CLUSTER_COLUMN]
        table.require_partition_filter = True
    return table


@dataclass(frozen=True)
class _PastReader(TableReader):
    """Reads tables as they were at a moment, which BigQuery remembers for a week."""

    warehouse: BigQueryWarehouse
    client: bigquery.Client
    moment: datetime

    def days(self, contract: TableContract) -> list[date]:
        if not self.warehouse._stored(self.client, contract):
            return []
        found = self.warehouse._select(
            self.client,
            f"SELECT DISTINCT {PARTITION_COLUMN} FROM {contract.relation} FOR SYSTEM_TIME AS OF ? "  # noqa: S608
            f"WHERE {PARTITION_COLUMN} >= ? ORDER BY 1",
            [self.moment, EVERY_DAY],
        )
        return found.to_series().to_list()

    def read(self, contract: TableContract, first: date, last: date) -> pl.DataFrame:
        clause, values = _days(contract, first, last)
        return self.warehouse._read(
            self.client,
            contract,
            f"FOR SYSTEM_TIME AS OF ? {clause}",
            [self.moment, *values],
            contract.column_names,
        )


def _days(contract: TableContract, first: date | None, last: date | None) -> tuple[str, list[date]]:
    """The filter by days, which a partitioned table must be given, and its values."""
    if PARTITION_COLUMN not in contract.column_names:
        return "", []
    limits, values = [f"{PARTITION_COLUMN} >= ?"], [first or EVERY_DAY]
    if last is not None:
        limits.append(f"{PARTITION_COLUMN} <= ?")
        values.append(last)
    return f"WHERE {' AND '.join(limits)}", values


def _columns(contract: TableContract) -> str:
    return ", ".join(contract.column_names)


def _sql_type(contract: TableContract, name: str) -> str:
    dtype: Any = contract.polars_schema[name]
    return _SQL_TYPES[dtype.base_type() if isinstance(dtype, pl.DataType) else dtype]


def _schema(contract: TableContract) -> list[bigquery.SchemaField]:
    """Every column nullable: dbt makes them so, and the contract is checked before anything is written."""
    return [
        bigquery.SchemaField(column.name, _sql_type(contract, column.name), description=column.description)
        for column in contract.columns
    ]


def _lacking(contract: TableContract, table: bigquery.Table, wanted: Sequence[str]) -> list[Column]:
    """The wanted columns that a table of an earlier version has not, all of which may be null.

    Raises:
        PermanentError: one of them is never null, so that nothing could stand for what was not stored.
    """
    stored = {field.name for field in table.schema}
    lacking = [column for column in contract.columns if column.name in wanted and column.name not in stored]
    if needed := [column.name for column in lacking if not column.nullable]:
        raise PermanentError(
            f"{contract.relation} was written by an earlier version and has no column {', '.join(needed)}; "
            "drop the table and build it again"
        )
    return lacking


def _came_second(error: GoogleAPICallError) -> bool:
    """Whether BigQuery gave up a statement because another changed the same table."""
    return any(
        word in str(error).lower()
        for word in ("concurrent update", "due to concurrent", "aborted", "transaction conflict")
    )


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """The client's errors as ours. What is not there is left to the caller."""
    try:
        yield
    except NotFound:
        raise
    except GoogleAPICallError as error:
        transient = (error.code or 500) >= 500 or error.code == 429 or _came_second(error)
        kind = TransientError if transient else PermanentError
        raise kind(f"BigQuery, {what}: {_first_line(error)}") from error
    except OSError as error:
        raise TransientError(f"BigQuery cannot be reached: {_first_line(error)}; run again") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
