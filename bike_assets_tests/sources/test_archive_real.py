"""The city's real exports, which lie outside the repository. Skipped where they are absent."""

import os
from datetime import UTC, date, datetime
from itertools import permutations
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.assets.ingestion import store
from bike_assets.core.contracts import CLEANED_COUNTS, EXPORT_DIFFERENCES, QUARANTINED_COUNTS, RAW_COUNTS
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.sources.archive import ArchiveSource
from bike_assets.sources.base import SourceBatch, busy_span
from bike_assets_tests.dbt_runs import dbt

FOLDER = Path(os.environ.get("BIKE_REAL_DATA") or Path(__file__).parents[3] / "shared" / "data")
ROWS = {
    "comptage-velo-2023.csv.gz": 860_190,
    "comptage-velo-2024.csv.gz": 132_586,
    "comptage-velo-donnees-compteurs_2023-08_2024-02.parquet": 484_331,
}

pytestmark = pytest.mark.skipif(
    not all((FOLDER / name).exists() for name in ROWS),
    reason=f"no real exports in {FOLDER} (set BIKE_REAL_DATA to their folder)",
)


@pytest.fixture(scope="module")
def batch() -> SourceBatch:
    source = ArchiveSource([FOLDER / name for name in ROWS])
    assert source.span() == (date(2022, 3, 27), date(2024, 2, 25))
    return source.read(*source.span())


def test_every_row_is_read(batch: SourceBatch) -> None:
    rows = batch.counts.group_by("source_file").agg(pl.len())
    assert dict(rows.iter_rows()) == ROWS
    assert batch.counts.height == 1_477_107
    assert batch.rejected.is_empty()
    for name in ("counter_name", "site_id", "site_name", "hourly_count", "latitude", "longitude"):
        assert batch.counts.get_column(name).null_count() == 0


def test_the_only_fault_is_six_stray_rows(batch: SourceBatch) -> None:
    (fault,) = batch.faults
    assert (fault.file, fault.rows, fault.set_aside) == (list(ROWS)[2], 6, False)
    assert "2022-03-27" in fault.line()
    assert busy_span(batch.counts) == (date(2023, 1, 1), date(2024, 2, 25))


def test_both_formats_agree_where_they_overlap(batch: SourceBatch) -> None:
    """Local time with offset and UTC, text and numbers: the same hours with the same counts, but 172."""
    early = batch.counts.filter(pl.col("source_file") != list(ROWS)[2])
    late = batch.counts.filter(pl.col("source_file") == list(ROWS)[2])
    both = early.join(late, on=["counter_id", "ts_utc"], suffix="_late")
    differing = both.filter(pl.col("hourly_count") != pl.col("hourly_count_late"))
    assert both.height > 450_000
    assert differing.height == 172
    assert differing.get_column("counter_id").n_unique() == 1
    assert (differing.get_column("hourly_count") == 0).all()
    assert (both.get_column("latitude") - both.get_column("latitude_late")).abs().median() < 1e-4


def test_the_autumn_hour(batch: SourceBatch) -> None:
    night = batch.counts.filter(pl.col("service_date") == date(2023, 10, 29))
    hours = night.get_column("ts_utc").unique()
    assert datetime.fromisoformat("2023-10-29T00:00:00+00:00") not in hours
    assert datetime.fromisoformat("2023-10-29T01:00:00+00:00") in hours


def test_small_raw_exports() -> None:
    samples = sorted(FOLDER.glob("raw_*.csv"))
    if not samples:
        pytest.skip("no raw samples there")
    source = ArchiveSource(samples)
    batch = source.read(*source.span())
    assert batch.counts.height == 26
    assert batch.faults == ()
    assert batch.counts.get_column("installation_date").unique().to_list() == [date(2012, 2, 22)]
    assert batch.counts.get_column("counter_name").unique().to_list() == ["97 avenue Denfert Rochereau SO-NE"]


def test_other_data_sets_in_the_same_folder_are_told_apart() -> None:
    others = [FOLDER / name for name in ("vacances-scolaires.csv", "weather_2023-01_2024-02.parquet")]
    if not all(path.exists() for path in others):
        pytest.skip("no other data sets there")
    source = ArchiveSource([FOLDER / list(ROWS)[1], *others])
    batch = source.read(*source.span())
    assert batch.counts.height == ROWS["comptage-velo-2024.csv.gz"]
    assert [fault.file for fault in batch.faults] == [path.name for path in others]
    assert all("another data set" in fault.line() for fault in batch.faults)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_exports_in_any_order_and_twice_are_one_table_and_the_report_names_what_differs(
    tmp_path: Path,
) -> None:
    """Together; the last winter also one by one in every order, and again; then all of it cleaned."""
    files = list(ROWS)
    keys = ["counter_id", "ts_utc", "source_file"]
    winter = date(2023, 12, 1)  # all of it in every order would take minutes

    def load(warehouse: DuckDBWarehouse, sources: list[ArchiveSource], since: date) -> pl.DataFrame:
        for source in sources:
            first, last = source.span()
            first = max(first, since)
            store(warehouse, source.read(first, last), first, last, now=datetime(2024, 3, 1, tzinfo=UTC))
        columns = [*keys, "service_date", "hourly_count", "published_until", "is_stray", "content_hash"]
        return warehouse.read(RAW_COUNTS, winter, columns=columns, order=False).sort(keys)

    warehouse = DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb"))
    expected = load(warehouse, [ArchiveSource([FOLDER / name for name in files])], date.min)
    sources = {name: ArchiveSource([FOLDER / name]) for name in files}
    for number, order in enumerate(permutations(files)):
        single = DuckDBWarehouse(path=str(tmp_path / f"{number}.duckdb"))
        assert_frame_equal(load(single, [sources[name] for name in order], winter), expected)
        assert_frame_equal(load(single, [sources[name] for name in order], winter), expected)

    models = ("cleaned_counts", "quarantined_counts", "export_differences")
    dbt("run", "--select", *models, warehouse=Path(warehouse.path))
    cleaned = warehouse.read(CLEANED_COUNTS)
    assert (cleaned["revisions"] > 1).sum() == 172
    assert warehouse.read(QUARANTINED_COUNTS, order=False).height == 6
    report = warehouse.read(EXPORT_DIFFERENCES)
    (corrected,) = report.filter(difference="corrected").rows(named=True)
    assert (corrected["counter_name"], corrected["hours"]) == ("72 boulevard Richard Lenoir S-N", 172)
    vanished = report.filter(difference="vanished counter")["counter_name"].unique().sort().to_list()
    assert vanished == ["90 Rue De Sèvres NE-SO", "90 Rue De Sèvres SO-NE"]
    assert report.filter(difference="stray rows")["hours"].sum() == 6
    # The impossible values that are known: one 8190, two 5349, and a counter stuck at 512.
    assert set(cleaned.filter(pl.col("hourly_count").is_in([5349, 8190]))["is_spike"]) == {True}
    assert set(cleaned.filter("is_stuck")["hourly_count"]) == {512}
    assert cleaned.filter("is_spike").height < 100
