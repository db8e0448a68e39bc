"""BigQuery's own promises, against an emulator: layout, cost bound, atomic writes, writers that meet."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import polars as pl
import pytest
from google.api_core.exceptions import BadRequest
from google.cloud import bigquery
from polars.testing import assert_frame_equal

from bike_assets.core.contracts import UTC_TIMESTAMP, Column, TableContract
from bike_assets.core.errors import PermanentError, TransientError
from bike_assets.resources.bigquery import BigQueryConnection, BigQueryWarehouse, table_layout
from bike_assets.resources.warehouse import EVERY_DAY
from bike_assets_tests.resources.test_warehouse import DAY, NEXT, TABLE, rows

pytestmark = [pytest.mark.slow, pytest.mark.integration]

SERVICE_DATE = Column("service_date", pl.Date, "Day")
COUNTED = TableContract(
    "bike_test", "counted", ("counter_id", "service_date"),
    (SERVICE_DATE, Column("counter_id", pl.String, "Counter"), Column("n", pl.Int64, "Count")),
)  # fmt: skip
LOG = TableContract(
    "bike_test", "log", ("sequence",),
    (SERVICE_DATE, Column("sequence", pl.Int64, "Number"), Column("at", UTC_TIMESTAMP, "When")),
)  # fmt: skip


def counted(day: Any = DAY, n: int = 1) -> pl.DataFrame:
    return pl.DataFrame({"service_date": [day], "counter_id": ["c"], "n": [n]}, schema=COUNTED.polars_schema)


def test_a_table_of_counters_is_kept_by_month_and_counter_and_asked_by_days(
    bigquery_warehouse: BigQueryWarehouse,
) -> None:
    bigquery_warehouse.replace(COUNTED, counted(), DAY, DAY)

    with bigquery_warehouse.connection.get_client() as client:
        table = client.get_table(f"{client.project}.{COUNTED.relation}")
        assert (table.time_partitioning.type_, table.time_partitioning.field) == ("MONTH", "service_date")
        assert table.clustering_fields == ["counter_id"]
    with pytest.raises(PermanentError, match="without a filter over column") as caught:
        bigquery_warehouse.query(f"SELECT max(n) FROM {COUNTED.relation}")  # noqa: S608
    assert "\n" not in str(caught.value)
    assert bigquery_warehouse.newest_day(COUNTED) == DAY
    assert table_layout("city", TABLE).time_partitioning is None, "small tables are one piece"


def test_every_statement_has_the_bound_of_bytes(
    bigquery_warehouse: BigQueryWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds, whole = [], bigquery.Client.query

    def watched(self: Any, sql: str, job_config: bigquery.QueryJobConfig, **more: Any) -> Any:
        bounds.append(job_config.maximum_bytes_billed)
        return whole(self, sql, job_config=job_config, **more)

    monkeypatch.setattr(bigquery.Client, "query", watched)
    bigquery_warehouse.replace(COUNTED, counted(), DAY, DAY)
    bigquery_warehouse.read(COUNTED)

    assert len(bounds) == 2
    assert set(bounds) == {10_000_000_000}


class _FailsAt:
    """A client that dies at the first statement that begins like this."""

    def __init__(self, client: bigquery.Client, word: str) -> None:
        self._client, self._word = client, word

    def query(self, sql: str, **more: Any) -> Any:
        if sql.startswith(self._word):
            raise KeyboardInterrupt
        return self._client.query(sql, **more)

    def load_table_from_file(self, *arguments: Any, **more: Any) -> Any:
        if self._word == "load":
            raise KeyboardInterrupt
        return self._client.load_table_from_file(*arguments, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@pytest.mark.parametrize("word", ["load", "MERGE"])
def test_an_interruption_leaves_the_old_rows_and_no_staging_table(
    bigquery_warehouse: BigQueryWarehouse, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    bigquery_warehouse.replace(TABLE, rows(), DAY, DAY)
    whole = BigQueryConnection.get_client

    @contextmanager
    def faulty(self: BigQueryConnection) -> Iterator[Any]:
        with whole(self) as client:
            yield _FailsAt(client, word)

    with monkeypatch.context() as patch:
        patch.setattr(BigQueryConnection, "get_client", faulty)
        with pytest.raises(KeyboardInterrupt):
            bigquery_warehouse.replace(TABLE, rows(long=7), DAY, DAY)

    assert_frame_equal(bigquery_warehouse.read(TABLE), rows())
    with bigquery_warehouse.connection.get_client() as client:
        assert [table.table_id for table in client.list_tables("bike_test")] == ["things"]


def test_a_reader_sees_the_old_rows_or_the_new_ones(bigquery_warehouse: BigQueryWarehouse) -> None:
    bigquery_warehouse.replace(TABLE, rows(long=1), DAY, DAY)
    done, seen = threading.Event(), set()

    def look() -> None:
        while not done.is_set():
            found = bigquery_warehouse.read(TABLE, DAY, DAY, columns=["long"])["long"]
            seen.add((found.len(), *found.unique()))

    with ThreadPoolExecutor() as pool:
        looking = pool.submit(look)
        try:
            for long in range(2, 8):
                bigquery_warehouse.replace(TABLE, rows(long=long), DAY, DAY)
        finally:
            done.set()
        looking.result()
    assert seen <= {(3, long) for long in range(1, 8)}
    assert len(seen) > 1


def test_days_written_at_the_same_time_all_stand(bigquery_warehouse: BigQueryWarehouse) -> None:
    days = [DAY + timedelta(days=offset) for offset in range(6)]
    bigquery_warehouse.replace(TABLE, rows(days[0], long=9), days[0], days[0])
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda day: bigquery_warehouse.replace(TABLE, rows(day), day, day), days))

    expected = pl.concat([rows(day) for day in days]).sort(TABLE.key)
    assert_frame_equal(bigquery_warehouse.read(TABLE), expected)


def test_a_log_grows_only_behind_its_last_row(bigquery_warehouse: BigQueryWarehouse) -> None:
    def one_more(last: pl.DataFrame) -> pl.DataFrame:
        number = last["sequence"].item() + 1 if last.height else 1
        return pl.DataFrame({"service_date": [DAY], "sequence": [number], "at": [None]}).with_columns(
            at=pl.lit("2024-03-30").str.to_datetime(time_unit="us", time_zone="UTC")
        )

    def one_more_of_two(last: pl.DataFrame) -> pl.DataFrame:
        bigquery_warehouse.append(LOG, one_more)  # another process is faster
        return one_more(last)

    bigquery_warehouse.append(LOG, one_more)
    with pytest.raises(TransientError, match="another process added rows"):
        bigquery_warehouse.append(LOG, one_more_of_two)

    assert bigquery_warehouse.read(LOG)["sequence"].to_list() == [1, 2]


def test_tables_are_replaced_together_and_read_as_they_were(bigquery_warehouse: BigQueryWarehouse) -> None:
    bigquery_warehouse.replace(TABLE, pl.concat([rows(), rows(NEXT)]), DAY, NEXT)
    bigquery_warehouse.replace(COUNTED, counted(n=1), DAY, DAY)

    with bigquery_warehouse.at_one_moment() as tables:
        bigquery_warehouse.replace_tables(
            [(TABLE, [rows(long=5), rows(name="b", long=5)]), (COUNTED, [counted(n=2)])]
        )
        assert tables.days(TABLE) == [DAY, NEXT]
        assert tables.read(COUNTED, EVERY_DAY, NEXT)["n"].to_list() == [1]

    assert bigquery_warehouse.read(TABLE)["long"].to_list() == [5] * 6
    assert bigquery_warehouse.read(COUNTED)["n"].to_list() == [2]


def test_a_statement_that_came_second_is_tried_again(
    bigquery_warehouse: BigQueryWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, failures = bigquery.Client.query, iter([True, True, False])
    monkeypatch.setattr("bike_assets.resources.bigquery.time.sleep", lambda _: None)

    def busy(self: Any, sql: str, **more: Any) -> Any:
        if sql.startswith("MERGE") and next(failures, False):
            raise BadRequest("Could not serialize access to table bike_test.things due to concurrent update")
        return whole(self, sql, **more)

    monkeypatch.setattr(bigquery.Client, "query", busy)
    bigquery_warehouse.replace(TABLE, rows(), DAY, DAY)

    assert_frame_equal(bigquery_warehouse.read(TABLE), rows())
