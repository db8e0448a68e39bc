"""Storing raw counts: a partition changes when its content does, and only then."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.assets.ingestion import calendar_hours, content_hashes, store
from bike_assets.core.contracts import CALENDAR_HOURS, RAW_COUNTS
from bike_assets.core.errors import ContractError, PermanentError
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets_tests.tables import batch, day_rows

FIRST = date(2024, 3, 30)
SECOND, THIRD = FIRST + timedelta(days=1), FIRST + timedelta(days=2)
MORNING = datetime(2024, 4, 2, 5, tzinfo=UTC)
LATER = MORNING + timedelta(days=1)


@pytest.fixture
def warehouse(tmp_path: Path) -> DuckDBWarehouse:
    return DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"))


def ingested(warehouse: DuckDBWarehouse) -> dict[date, set[datetime]]:
    rows = warehouse.read(RAW_COUNTS)
    days = rows.get_column("service_date").unique()
    return {day: set(rows.filter(service_date=day).get_column("ingested_at")) for day in days}


def test_rows_are_stored_as_the_source_gave_them(warehouse: DuckDBWarehouse) -> None:
    given = batch(day_rows(FIRST), day_rows(SECOND))

    rows, changed = store(warehouse, given, FIRST, SECOND, now=MORNING)

    assert changed == [FIRST, SECOND]
    assert rows.height == 24 + 23
    stored = warehouse.read(RAW_COUNTS).sort("ts_utc")
    assert_frame_equal(stored.select(given.counts.columns), given.counts.sort("ts_utc"))
    assert ingested(warehouse) == {FIRST: {MORNING}, SECOND: {MORNING}}
    assert stored.get_column("content_hash").str.len_chars().unique().to_list() == [64]


def test_repeated_rows_are_kept_because_nothing_is_dropped_silently(warehouse: DuckDBWarehouse) -> None:
    rows, _ = store(warehouse, batch(day_rows(FIRST), day_rows(FIRST)), FIRST, FIRST, now=MORNING)

    assert rows.height == warehouse.read(RAW_COUNTS).height == 48


def test_storing_the_same_again_writes_nothing(
    warehouse: DuckDBWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = batch(day_rows(FIRST), day_rows(SECOND))
    store(warehouse, given, FIRST, SECOND, now=MORNING)
    before = warehouse.read(RAW_COUNTS).sort("ts_utc")
    written = []
    replace = DuckDBWarehouse.replace
    monkeypatch.setattr(
        DuckDBWarehouse,
        "replace",
        lambda self, contract, *rest: (written.append(contract.name), replace(self, contract, *rest)),
    )

    _, changed = store(warehouse, given, FIRST, SECOND, now=LATER)

    assert changed == []
    assert "raw_counts" not in written
    assert_frame_equal(warehouse.read(RAW_COUNTS).sort("ts_utc"), before)


def test_a_late_correction_replaces_its_day_and_dates_no_other(warehouse: DuckDBWarehouse) -> None:
    store(warehouse, batch(day_rows(FIRST), day_rows(SECOND)), FIRST, SECOND, now=MORNING)
    corrected = batch(day_rows(FIRST, count=lambda n: 100.0 + n), day_rows(SECOND))

    _, changed = store(warehouse, corrected, FIRST, SECOND, now=LATER)

    assert changed == [FIRST]
    assert ingested(warehouse) == {FIRST: {LATER}, SECOND: {MORNING}}
    assert warehouse.read(RAW_COUNTS, FIRST, FIRST).get_column("hourly_count").min() == 100
    assert warehouse.read(RAW_COUNTS, SECOND, SECOND).get_column("hourly_count").max() == 22


def test_a_day_the_source_withdraws_is_gone_and_days_outside_the_range_stay(
    warehouse: DuckDBWarehouse,
) -> None:
    store(warehouse, batch(day_rows(FIRST), day_rows(SECOND), day_rows(THIRD)), FIRST, THIRD, now=MORNING)

    _, changed = store(warehouse, batch(day_rows(FIRST)), FIRST, SECOND, now=LATER)

    assert changed == [SECOND]
    assert ingested(warehouse) == {FIRST: {MORNING}, THIRD: {MORNING}}


def test_a_day_without_rows_is_stored_as_one(warehouse: DuckDBWarehouse) -> None:
    rows, changed = store(warehouse, batch(), FIRST, FIRST, now=MORNING)

    assert (rows.height, changed) == (0, [])
    assert warehouse.read(CALENDAR_HOURS).height == 24


def test_rows_that_break_the_contract_are_not_written(warehouse: DuckDBWarehouse) -> None:
    store(warehouse, batch(day_rows(FIRST)), FIRST, FIRST, now=MORNING)
    broken = batch(day_rows(FIRST).with_columns(latitude=pl.lit(91.0)))

    with pytest.raises(ContractError, match="latitude is above 90"):
        store(warehouse, broken, FIRST, FIRST, now=LATER)

    assert ingested(warehouse) == {FIRST: {MORNING}}


def test_the_hash_of_a_day_depends_on_that_day_alone() -> None:
    alone = dict(content_hashes(day_rows(SECOND)).iter_rows())
    among = dict(content_hashes(pl.concat([day_rows(FIRST), day_rows(SECOND), day_rows(THIRD)])).iter_rows())

    assert alone[SECOND] == among[SECOND]
    assert len(set(among.values())) == 3


@pytest.mark.parametrize(
    "change",
    [
        pl.col("hourly_count") + (pl.int_range(pl.len()) == 7),
        pl.lit("other.csv").alias("source_file"),
        pl.lit("Renamed").alias("counter_name"),
        pl.col("ts_utc").dt.offset_by("1h"),
        pl.lit(None, pl.Float64).alias("hourly_count"),
    ],
)
def test_the_hash_sees_every_change(change: pl.Expr) -> None:
    rows = day_rows(FIRST)

    before = content_hashes(rows).get_column("content_hash").item()
    assert content_hashes(rows.with_columns(change)).get_column("content_hash").item() != before


@pytest.mark.parametrize(
    ("day", "hours"),
    [(FIRST, 24), (date(2024, 3, 31), 23), (date(2024, 10, 27), 25), (date(2024, 10, 28), 24)],
)
def test_the_calendar_has_the_hours_the_local_day_has(day: date, hours: int) -> None:
    frame = calendar_hours(day, day)

    assert CALENDAR_HOURS.conform(frame).height == hours
    assert frame.get_column("service_date").unique().to_list() == [day]
    assert frame.get_column("ts_utc").diff().drop_nulls().unique().to_list() == [timedelta(hours=1)]


def test_only_the_hour_the_clock_shows_twice_is_repeated() -> None:
    frame = calendar_hours(date(2024, 10, 26), date(2024, 10, 28))

    repeated = frame.filter("is_repeated")
    assert repeated.get_column("ts_utc").to_list() == [
        datetime(2024, 10, 27, 0, tzinfo=UTC),
        datetime(2024, 10, 27, 1, tzinfo=UTC),
    ]
    assert repeated.get_column("local_hour").to_list() == [2, 2]
    assert not calendar_hours(date(2024, 3, 30), date(2024, 4, 1)).get_column("is_repeated").any()


def test_a_range_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(PermanentError, match="give the earlier day first"):
        calendar_hours(SECOND, FIRST)
