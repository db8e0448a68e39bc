"""How the benchmark reckons what a statement reads: never less than BigQuery would bill."""

from collections.abc import Iterator
from datetime import date
from types import ModuleType, SimpleNamespace
from typing import Any

import duckdb
import pytest

from bike_assets.settings import REPOSITORY

MONTHS = (date(2024, 1, 1), date(2024, 2, 1), date(2024, 3, 1))
LARGE = 100 * 2**20
"""Bytes of a column in a month."""


@pytest.fixture(scope="module")
def day() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        import bigquery_day  # type: ignore[import-not-found]

        yield bigquery_day


def reads(day: ModuleType, sql: str, first: date = date.min, times: float = 1) -> int:
    months = {month: {"service_date": LARGE, "n": LARGE, "text": LARGE} for month in MONTHS}
    tables = {
        "bike_test.counted": day.Stored(months, in_months=True),
        "bike_test.daily": day.Stored(months, in_months=False),
        "bike_test.whole": day.Stored({None: {"n": LARGE}}, in_months=False),
        "bike_test.small": day.Stored({}, in_months=False),
    }
    return int(day.Statement(sql, first, None).reads(tables, times))


@pytest.mark.parametrize(
    ("sql", "first", "columns"),
    [
        ("SELECT n FROM bike_test.counted", date.min, 3),
        ("SELECT n FROM `city`.`bike_test`.`counted` WHERE service_date >= ?", date(2024, 2, 17), 4),
        ("SELECT * FROM bike_test.counted", date(2024, 3, 31), 3),
        ("SELECT c.* FROM bike_test.counted AS c", date(2024, 3, 31), 3),
        ("SELECT count(*) FROM bike_test.counted WHERE text = 'n'", date(2024, 3, 31), 2),
        ("SELECT n FROM bike_test.whole", date(2024, 3, 31), 1),
        ("SELECT n FROM bike_test.daily", date(2024, 3, 31), 3),
        ("SELECT n FROM bike_test.counted JOIN bike_test.counted USING (n)", date(2024, 3, 1), 2),
        ("INSERT INTO bike_test.whole (n) SELECT n FROM bike_test.whole__3f2a", date.min, 2),
        ("BEGIN TRANSACTION", date.min, 0),
    ],
)
def test_columns_that_are_named_in_months_that_are_not_ruled_out(
    day: ModuleType, sql: str, first: date, columns: int
) -> None:
    assert reads(day, sql, first) == columns * LARGE


def test_ten_megabytes_a_table_at_least_and_as_many_times_as_the_city_is_larger(day: ModuleType) -> None:
    assert reads(day, "SELECT n FROM bike_test.small, bike_test.small") == 2 * 10 * 2**20
    assert reads(day, "SELECT n FROM bike_test.whole", times=52) == 52 * LARGE


def test_the_earliest_day_is_that_of_text_or_values_with_what_is_looked_back(day: ModuleType) -> None:
    def sent(query: str, *values: Any) -> Any:
        parameters = [
            day.bigquery.ScalarQueryParameter(None, "DATE" if isinstance(value, date) else "INT64", value)
            for value in values
        ]
        return day.statement(
            SimpleNamespace(query=query, query_parameters=parameters, maximum_bytes_billed=7)
        )

    looked_back = "date_sub(cast('2024-03-05' as date), interval 28 day) and cast('2024-03-09' as date)"
    assert sent(f"service_date between {looked_back}").first == date(2024, 2, 6)
    assert sent("service_date >= ? and n = ?", date(2024, 3, 5), 3).first == date(2024, 3, 5)
    assert sent("SELECT n FROM bike_test.counted").first == date.min
    assert sent("SELECT 1").bound == 7


def test_a_table_is_as_large_as_bigquery_says_its_types_are(day: ModuleType, tmp_path: Any) -> None:
    with duckdb.connect(str(tmp_path / "warehouse.duckdb")) as connection:
        connection.execute("CREATE SCHEMA bike_test")
        connection.execute(
            "CREATE TABLE bike_test.counted AS SELECT * FROM (VALUES "
            "(DATE '2024-01-31', 'é', 1, TRUE), (DATE '2024-02-01', NULL, 2, FALSE), (DATE '2024-02-29', 'ab', 3, NULL)"
            ") AS t(service_date, counter_id, n, ok)"
        )
    sizes = day.stored(tmp_path)["bike_test.counted"]

    assert sizes == {
        date(2024, 1, 1): {"service_date": 8, "counter_id": 4, "n": 8, "ok": 1},
        date(2024, 2, 1): {"service_date": 16, "counter_id": 6, "n": 16, "ok": 2},
    }
