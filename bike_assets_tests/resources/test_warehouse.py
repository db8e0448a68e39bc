"""The warehouse: a partition is replaced whole or not at all, and comes back as it was written."""

import math
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.core.contracts import UTC_TIMESTAMP, Column, TableContract
from bike_assets.core.errors import ContractError, PermanentError, TransientError
from bike_assets.resources import warehouse as module
from bike_assets.resources.warehouse import EVERY_DAY, DuckDBWarehouse, Warehouse

DAY = date(2024, 3, 30)
NEXT = DAY + timedelta(days=1)

TABLE = TableContract(
    schema="bike_test",
    name="things",
    key=("name", "ts"),
    columns=(
        Column("service_date", pl.Date, "Day"),
        Column("name", pl.String, "Name"),
        Column("ts", UTC_TIMESTAMP, "Instant"),
        Column("wide", pl.Float64, "64 bits", nullable=True),
        Column("narrow", pl.Float32, "32 bits", nullable=True),
        Column("long", pl.Int64, "64 bits", nullable=True, minimum=0),
        Column("short", pl.Int32, "32 bits", nullable=True),
        Column("flag", pl.Boolean, "Yes or no", nullable=True),
        Column("seen", UTC_TIMESTAMP, "Another instant", nullable=True),
    ),
)


def rows(day: date = DAY, name: str = "a", long: int = 1, n: int = 3) -> pl.DataFrame:
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return pl.DataFrame(
        {
            "service_date": [day] * n,
            "name": [name] * n,
            "ts": [start + timedelta(hours=hour, microseconds=1) for hour in range(n)],
            "wide": [0.1] * n,
            "narrow": [0.1] * n,
            "long": [long] * n,
            "short": [2] * n,
            "flag": [True] * n,
            "seen": [None] * n,
        },
        schema=TABLE.polars_schema,
    )


both = pytest.mark.parametrize(
    "warehouse", ["duckdb", pytest.param("bigquery", marks=pytest.mark.slow)], indirect=True
)
"""What every warehouse can do; BigQuery is an emulator's (`bike_assets_tests.emulators`)."""


@pytest.fixture
def warehouse(request: pytest.FixtureRequest, tmp_path: Path) -> Warehouse:
    if getattr(request, "param", "duckdb") == "duckdb":
        return DuckDBWarehouse(path=str(tmp_path / "new" / "warehouse.duckdb"))
    return request.getfixturevalue("bigquery_warehouse")


@both
def test_rows_come_back_as_they_were_written(warehouse: Warehouse) -> None:
    written = pl.concat(
        [
            rows(n=1),
            pl.DataFrame(
                {
                    "service_date": [DAY],
                    "name": ["é; ' 日"],
                    # The hour that Paris does not have on this day exists in UTC.
                    "ts": [datetime(2024, 3, 31, 1, 30, 0, 123456, tzinfo=UTC)],
                    "wide": [math.pi * 1e300],
                    "narrow": [1 / 3],
                    "long": [2**62],
                    "short": [-(2**31)],
                    "flag": [False],
                    "seen": [datetime(1970, 1, 1, tzinfo=UTC)],
                },
                schema=TABLE.polars_schema,
            ),
            rows(name="nothing", n=1).with_columns(
                pl.lit(None).cast(dtype).alias(name)
                for name, dtype in TABLE.polars_schema.items()
                if name in ("wide", "narrow", "long", "short", "flag", "seen")
            ),
        ]
    )

    warehouse.replace(TABLE, written, DAY, DAY)

    read = warehouse.read(TABLE)
    assert read.schema == TABLE.polars_schema
    assert_frame_equal(read, written.sort("name", "ts"), check_exact=True)


@both
def test_a_table_that_is_not_there_is_empty_and_typed(warehouse: Warehouse) -> None:
    assert not warehouse.exists(TABLE)
    assert warehouse.read(TABLE).schema == TABLE.polars_schema
    assert warehouse.read(TABLE, DAY, NEXT, columns=["ts", "narrow"]).schema == {
        "ts": UTC_TIMESTAMP,
        "narrow": pl.Float32,
    }


@both
def test_asking_for_a_table_that_is_not_there_ends_no_transaction(warehouse: Warehouse) -> None:
    missing = replace(TABLE, name="missing")
    warehouse.replace(TABLE, rows(), DAY, DAY)
    with warehouse.at_one_moment() as tables:
        assert tables.days(missing) == []
        assert tables.days(TABLE) == [DAY]


@both
def test_only_the_range_is_replaced(warehouse: Warehouse) -> None:
    days = [DAY + timedelta(days=offset) for offset in range(4)]
    warehouse.replace(TABLE, pl.concat([rows(day) for day in days]), days[0], days[-1])

    warehouse.replace(TABLE, rows(days[1], long=9), days[1], days[2])

    found = warehouse.read(TABLE).group_by("service_date").agg(pl.col("long").max(), n=pl.len())
    assert found.sort("service_date").rows() == [(days[0], 1, 3), (days[1], 9, 3), (days[3], 1, 3)]


@both
def test_writing_twice_changes_nothing(warehouse: Warehouse) -> None:
    warehouse.replace(TABLE, rows(), DAY, DAY)
    once = warehouse.read(TABLE)
    warehouse.replace(TABLE, rows(), DAY, DAY)

    assert_frame_equal(warehouse.read(TABLE), once)


@both
def test_no_rows_empty_the_range(warehouse: Warehouse) -> None:
    warehouse.replace(TABLE, pl.concat([rows(), rows(NEXT)]), DAY, NEXT)

    warehouse.replace(TABLE, TABLE.empty(), DAY, DAY)

    assert warehouse.read(TABLE).get_column("service_date").unique().to_list() == [NEXT]


@both
@pytest.mark.parametrize("day", [DAY - timedelta(days=1), NEXT])
def test_a_row_outside_the_range_is_refused_and_nothing_is_written(warehouse: Warehouse, day: date) -> None:
    warehouse.replace(TABLE, rows(), DAY, DAY)

    with pytest.raises(PermanentError, match=r"bike_test\.things: 3 rows lie outside"):
        warehouse.replace(TABLE, pl.concat([rows(long=5), rows(day)]), DAY, DAY)

    assert_frame_equal(warehouse.read(TABLE), rows())


@both
def test_a_broken_contract_is_refused_and_nothing_is_written(warehouse: Warehouse) -> None:
    warehouse.replace(TABLE, rows(), DAY, DAY)

    with pytest.raises(ContractError, match="long is below 0"):
        warehouse.replace(TABLE, rows(long=-1), DAY, DAY)

    assert_frame_equal(warehouse.read(TABLE), rows())


@both
def test_reading_is_limited_selected_and_ordered_by_the_key(warehouse: Warehouse) -> None:
    days = [DAY + timedelta(days=offset) for offset in range(3)]
    mixed = pl.concat([rows(day, name) for name in ("b", "a") for day in days]).sample(
        fraction=1, shuffle=True, seed=2
    )
    warehouse.replace(TABLE, mixed, days[0], days[-1])

    read = warehouse.read(TABLE, days[1], days[1])
    assert read.get_column("service_date").unique().to_list() == [days[1]]
    assert_frame_equal(read, read.sort("name", "ts"))
    assert warehouse.read(TABLE, days[1]).height == 12
    assert warehouse.read(TABLE, None, days[1]).height == 12
    assert warehouse.read(TABLE, columns=["long", "name"]).columns == ["long", "name"]


@both
def test_a_query_gives_instants_in_utc(warehouse: Warehouse) -> None:
    warehouse.replace(TABLE, rows(n=1), DAY, DAY)

    found = warehouse.query(
        "SELECT max(ts) AS ts, max(service_date) AS day FROM bike_test.things "
        "WHERE long = ? AND service_date >= ?",
        [1, EVERY_DAY],
    )

    assert found.schema == {"ts": UTC_TIMESTAMP, "day": pl.Date}
    assert found.row(0) == (datetime(2024, 3, 30, 0, 0, 0, 1, tzinfo=UTC), DAY)


class _Faulty:
    """A connection that fails at one kind of statement."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, word: str) -> None:
        self._connection = connection
        self._word = word

    def execute(self, sql: str, *args: Any) -> Any:
        if sql.startswith(self._word):
            raise KeyboardInterrupt
        return self._connection.execute(sql, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.mark.parametrize("word", ["DELETE", "INSERT", "COMMIT"])
def test_an_interruption_at_any_statement_leaves_the_old_rows(
    warehouse: DuckDBWarehouse, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    warehouse.replace(TABLE, rows(), DAY, DAY)
    whole = DuckDBWarehouse.connect

    @contextmanager
    def faulty(self: DuckDBWarehouse) -> Iterator[Any]:
        with whole(self) as connection:
            yield _Faulty(connection, word)

    with monkeypatch.context() as patch:
        patch.setattr(DuckDBWarehouse, "connect", faulty)
        with pytest.raises(KeyboardInterrupt):
            warehouse.replace(TABLE, rows(long=7), DAY, DAY)

    assert_frame_equal(warehouse.read(TABLE), rows())


def _process(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that has said `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


KILLED_BEFORE_COMMIT = """
    import sys, time
    import duckdb
    from bike_assets_tests.resources.test_warehouse import DAY, TABLE, rows
    from bike_assets.resources import warehouse

    class Stuck:
        def __init__(self, connection):
            self.connection = connection
        def execute(self, sql, *args):
            if sql == "COMMIT":
                self.connection.execute("SELECT 1")
                print("ready", flush=True)
                time.sleep(300)
            return self.connection.execute(sql, *args)
        def __getattr__(self, name):
            return getattr(self.connection, name)

    class Connector:
        IOException = duckdb.IOException
        @staticmethod
        def connect(path):
            return Stuck(duckdb.connect(path))

    warehouse.duckdb = Connector
    warehouse.DuckDBWarehouse(path=sys.argv[1]).replace(TABLE, rows(long=7, n=50_000), DAY, DAY)
"""


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_rows_and_an_open_door(
    warehouse: DuckDBWarehouse,
) -> None:
    warehouse.replace(TABLE, rows(), DAY, DAY)
    process = _process(KILLED_BEFORE_COMMIT, warehouse.path)
    process.kill()
    process.communicate()

    assert_frame_equal(warehouse.read(TABLE), rows())
    warehouse.replace(TABLE, rows(long=7), DAY, DAY)
    assert_frame_equal(warehouse.read(TABLE), rows(long=7))


HOLDER = """
    import sys, time
    import duckdb
    connection = duckdb.connect(sys.argv[1])
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_another_process_is_waited_for_and_then_named(
    warehouse: DuckDBWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse.replace(TABLE, rows(), DAY, DAY)
    monkeypatch.setattr(module, "LOCK_WAIT_SECONDS", 0.5)
    process = _process(HOLDER, warehouse.path, "300")
    try:
        started = time.monotonic()
        with pytest.raises(TransientError) as caught:
            warehouse.read(TABLE)
        waited = time.monotonic() - started
    finally:
        process.kill()
        process.communicate()

    assert waited >= 0.5
    assert warehouse.path in str(caught.value)
    assert "close it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_process_that_closes_the_file_in_time_is_no_error(warehouse: DuckDBWarehouse) -> None:
    warehouse.replace(TABLE, rows(), DAY, DAY)
    process = _process(HOLDER, warehouse.path, "1")
    try:
        assert warehouse.read(TABLE).height == 3
    finally:
        process.kill()
        process.communicate()


def test_a_file_that_is_no_warehouse_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "warehouse.duckdb"
    path.write_text("counter_id;count\n" * 500)

    with pytest.raises(PermanentError) as caught:
        DuckDBWarehouse(path=str(path)).read(TABLE)

    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def without_columns(warehouse: Warehouse, *names: str) -> TableContract:
    """The table as an earlier version wrote it, which did not know these columns; its contract then."""
    earlier = TableContract(
        TABLE.schema, TABLE.name, (), tuple(c for c in TABLE.columns if c.name not in names)
    )
    warehouse.replace(earlier, rows(), DAY, DAY)
    return earlier


@both
def test_a_table_of_an_earlier_version_reads_as_if_its_new_columns_were_empty(
    warehouse: Warehouse,
) -> None:
    without_columns(warehouse, "wide", "seen")

    assert_frame_equal(warehouse.read(TABLE), rows().with_columns(wide=pl.lit(None, pl.Float64)))
    with warehouse.at_one_moment() as tables:
        assert tables.read(TABLE, DAY, DAY)["wide"].null_count() == 3


@both
def test_a_table_of_an_earlier_version_gets_its_new_columns_when_it_is_written(
    warehouse: Warehouse,
) -> None:
    without_columns(warehouse, "wide", "seen")

    warehouse.replace(TABLE, rows(NEXT), NEXT, NEXT)

    expected = pl.concat([rows().with_columns(wide=pl.lit(None, pl.Float64)), rows(NEXT)])
    assert_frame_equal(warehouse.read(TABLE), expected.sort(TABLE.key))


def test_others_who_open_the_database_find_the_new_columns_and_no_new_table(
    warehouse: DuckDBWarehouse,
) -> None:
    without_columns(warehouse, "wide")
    absent = TableContract(TABLE.schema, "nothing", TABLE.key, TABLE.columns)

    warehouse.bring_up_to_date(TABLE, absent)

    assert warehouse.query("SELECT count(*) FROM bike_test.things WHERE wide IS NULL").item() == 3
    assert not warehouse.exists(absent)


@pytest.mark.parametrize("use", ["read", "replace", "bring_up_to_date"])
def test_a_column_that_nothing_can_stand_for_is_one_line_with_the_remedy(
    warehouse: DuckDBWarehouse, use: str
) -> None:
    earlier = without_columns(warehouse, "ts", "wide")
    calls: dict[str, Any] = {
        "read": lambda: warehouse.read(TABLE),
        "replace": lambda: warehouse.replace(TABLE, rows(NEXT), NEXT, NEXT),
        "bring_up_to_date": lambda: warehouse.bring_up_to_date(TABLE),
    }

    with pytest.raises(
        PermanentError, match=r"^bike_test\.things was .* has no column ts; move the home away"
    ):
        calls[use]()

    assert warehouse.read(earlier).height == 3
    assert warehouse.read(TABLE, columns=["name"], order=False).height == 3
