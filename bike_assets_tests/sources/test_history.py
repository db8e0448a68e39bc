"""Yearly archives and the live window meet in one table: made from a simulated city, in the portal's formats."""

from datetime import UTC, date, datetime, timedelta
from itertools import permutations
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.assets.ingestion import newer_days, store
from bike_assets.core.contracts import CLEANED_COUNTS, EXPORT_DIFFERENCES, QUARANTINED_COUNTS, RAW_COUNTS
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.sources.archive import ArchiveSource
from bike_assets.sources.simulator import SimulatorSource
from bike_assets_tests.dbt_runs import dbt
from bike_assets_tests.exports import export_csv, export_parquet

FIRST, LAST = date(2023, 12, 18), date(2024, 1, 10)
LIVE_FROM = date(2023, 12, 28)
NOW = datetime(2024, 1, 16, tzinfo=UTC)
YEAR_2023, YEAR_2024, LIVE = "2023.csv.gz", "2024.csv.gz", "live.parquet"
MODELS = ("cleaned_counts", "quarantined_counts", "export_differences")


@pytest.fixture(scope="module")
def truth() -> pl.DataFrame:
    """What passed, an hour and counter once."""
    counts = SimulatorSource(seed=5, counters=12, first_day=FIRST, last_day=LAST).read(FIRST, LAST).counts
    return (
        counts.sort("published_until")
        .unique(["counter_id", "ts_utc"], keep="last")
        .sort("counter_id", "ts_utc")
    )


@pytest.fixture(scope="module")
def corrected(truth: pl.DataFrame) -> pl.DataFrame:
    """The hours that the early exports have as zeros: two days of one counter."""
    days = pl.col("service_date").is_between(date(2024, 1, 5), date(2024, 1, 6))
    return truth.filter(days & (pl.col("counter_id") == names(truth)[1]) & (pl.col("hourly_count") > 0))


def names(truth: pl.DataFrame) -> list[str]:
    return truth["counter_id"].unique().sort().to_list()


@pytest.fixture(scope="module")
def folder(truth: pl.DataFrame, corrected: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive a year, and a later live window without one counter, with stray rows of years ago."""
    place = tmp_path_factory.mktemp("exports")
    keys = ["counter_id", "ts_utc"]
    early = truth.join(corrected.select(*keys, late=True), on=keys, how="left").with_columns(
        hourly_count=pl.when("late").then(0.0).otherwise("hourly_count")
    )
    early = early.filter(pl.col("service_date") < LAST)  # published a day before the live window
    # An archive of a year ends with the year on the wall clock.
    export_csv(early.filter(pl.col("service_date").dt.year() == 2023), place / YEAR_2023)
    export_csv(early.filter(pl.col("service_date").dt.year() == 2024), place / YEAR_2024)
    live = truth.filter((pl.col("service_date") >= LIVE_FROM) & (pl.col("counter_id") != names(truth)[0]))
    strays = live.filter(pl.col("counter_id") == names(truth)[2]).head(2)
    export_parquet(
        pl.concat([live, strays.with_columns(pl.col("ts_utc") - timedelta(days=700))]), place / LIVE
    )
    return place


def loaded(folder: Path, place: Path, loads: list[list[str]]) -> DuckDBWarehouse:
    """A warehouse after loading those files, one list of them after the other."""
    warehouse = DuckDBWarehouse(path=str(place / "warehouse.duckdb"))
    for files in loads:
        source = ArchiveSource([folder / name for name in files])
        first, last = source.span()
        store(warehouse, source.read(first, last), first, last, now=NOW)
    return warehouse


def content(warehouse: DuckDBWarehouse) -> pl.DataFrame:
    rows = warehouse.read(RAW_COUNTS, order=False).drop("ingested_at")
    return rows.sort("counter_id", "ts_utc", "source_file")


@pytest.fixture(scope="module")
def together(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DuckDBWarehouse:
    return loaded(folder, tmp_path_factory.mktemp("together"), [[YEAR_2023, YEAR_2024, LIVE]])


@pytest.fixture(scope="module")
def built(together: DuckDBWarehouse) -> DuckDBWarehouse:
    dbt("run", "--select", *MODELS, warehouse=Path(together.path))
    return together


def test_files_loaded_one_after_the_other_in_any_order_and_again_are_the_same_table(
    folder: Path, together: DuckDBWarehouse, tmp_path: Path
) -> None:
    expected = content(together)
    for number, order in enumerate(permutations([YEAR_2023, YEAR_2024, LIVE])):
        place = tmp_path / str(number)
        warehouse = loaded(folder, place, [[name] for name in order])
        assert_frame_equal(content(warehouse), expected)
        if number == 0:
            assert_frame_equal(content(loaded(folder, place, [[name] for name in order])), expected)


def test_days_after_those_just_loaded_are_cleaned_again_as_far_as_flags_look_back(
    together: DuckDBWarehouse,
) -> None:
    assert newer_days(together, date(2023, 12, 10)) == (date(2023, 12, 11), date(2024, 1, 7))
    assert newer_days(together, date(2024, 1, 5)) == (date(2024, 1, 6), LAST)
    assert newer_days(together, LAST) is None


def test_archive_and_live_window_meet_without_a_seam(built: DuckDBWarehouse, truth: pl.DataFrame) -> None:
    """Every hour once, at the turn of the year and at both ends of the overlap; of two values the later one."""
    columns = ["counter_id", "ts_utc", "hourly_count"]
    gone = truth.filter((pl.col("counter_id") == names(truth)[0]) & (pl.col("service_date") == LAST))
    expected = truth.join(gone, on=["counter_id", "ts_utc"], how="anti").select(
        *columns[:2], pl.col("hourly_count").cast(pl.Int64)
    )
    assert_frame_equal(built.read(CLEANED_COUNTS).select(columns), expected)


def test_the_report_names_corrections_the_vanished_counter_and_the_stray_rows(
    built: DuckDBWarehouse, truth: pl.DataFrame, corrected: pl.DataFrame
) -> None:
    report = built.read(EXPORT_DIFFERENCES)
    assert EXPORT_DIFFERENCES.violations(report) == []
    told = {
        (row["difference"], row["earlier_file"], row["counter_id"]): row
        for row in report.iter_rows(named=True)
    }
    first, second, third = names(truth)[:3]
    assert set(told) == {
        ("corrected", YEAR_2024, second),
        ("vanished counter", YEAR_2023, first),
        ("vanished counter", YEAR_2024, first),
        ("stray rows", None, third),
    }
    correction = told["corrected", YEAR_2024, second]
    assert (correction["hours"], correction["later_file"]) == (corrected.height, LIVE)
    assert (correction["count_before"], correction["count_after"]) == (0, corrected["hourly_count"].sum())
    assert correction["first_hour"] == corrected["ts_utc"].min()
    vanished = truth.filter(
        (pl.col("counter_id") == first) & (pl.col("service_date").is_between(LIVE_FROM, LAST))
    )
    hours = sum(told["vanished counter", year, first]["hours"] for year in (YEAR_2023, YEAR_2024))
    assert hours == vanished.filter(pl.col("service_date") < LAST).height
    assert told["stray rows", None, third]["hours"] == 2


def test_stray_rows_are_in_quarantine(built: DuckDBWarehouse) -> None:
    quarantined = built.read(QUARANTINED_COUNTS, order=False)
    assert quarantined["source_file"].to_list() == [LIVE] * 2
    assert quarantined["reason"].str.starts_with("stray").all()
    assert built.read(CLEANED_COUNTS)["service_date"].min() == FIRST


@pytest.mark.slow
def test_the_simulators_own_corrections_are_told_and_no_counter_has_vanished(tmp_path: Path) -> None:
    """Corrections come as a few rows on their own, which says nothing about the other counters."""
    first, last = date(2024, 5, 1), date(2024, 6, 10)
    source = SimulatorSource(counters=4, first_day=first, last_day=last)
    warehouse = DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"))
    counts = source.read(first, last).counts
    store(warehouse, source.read(first, last), first, last, now=NOW)
    dbt("run", "--select", "export_differences", warehouse=Path(warehouse.path))
    report = warehouse.read(EXPORT_DIFFERENCES)
    twice = counts.group_by("counter_id", "ts_utc").agg(values=pl.col("hourly_count").n_unique())
    assert report["difference"].unique().to_list() == ["corrected"]
    assert report["hours"].sum() == twice.filter(pl.col("values") > 1).height > 0
