"""The city's real exports through the command line. They lie outside the repository; skipped where absent."""

import os
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from bike_assets.settings import REPOSITORY
from bike_assets_tests.homes import bike_assets, one_json, tables

FOLDER = Path(os.environ.get("BIKE_REAL_DATA") or REPOSITORY.parent / "shared" / "data")
EARLY = ("comptage-velo-2023.csv.gz", "comptage-velo-2024.csv.gz")
LATE = "comptage-velo-donnees-compteurs_2023-08_2024-02.parquet"
FILES = (*EARLY, LATE)
ARCHIVE = {"BIKE_SOURCE": "archive"}

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        not all((FOLDER / name).exists() for name in FILES),
        reason=f"no real exports in {FOLDER} (set BIKE_REAL_DATA to their folder)",
    ),
]


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home with the two days that matter most, and all that was said: the files are read whole in any case."""
    home = tmp_path_factory.mktemp("archive") / "home"
    said = ""
    for first, last in (("2023-10-28", "2023-10-30"), ("2024-02-01", "2024-02-25")):
        done = bike_assets(
            *("materialize", "raw_counts", "cleaned_counts", "--from", first, "--to", last),
            *(part for name in FILES for part in ("--data", FOLDER / name)),
            *("--home", home),
            env=ARCHIVE,
        )
        assert done.returncode == 0, done.stderr
        said += done.stderr
    return home, said


def counts(home: Path, table: str) -> pl.DataFrame:
    return tables(home)[table]


def test_the_corrected_rows_take_the_later_value(ingested: tuple[Path, str]) -> None:
    home, _ = ingested
    raw = counts(home, "bike_traffic_raw.raw_counts")
    keys = ["counter_id", "ts_utc"]
    late = raw.filter(pl.col("source_file") == LATE)
    early = raw.filter(pl.col("source_file") != LATE)
    corrected = early.join(late, on=keys, suffix="_late").filter(
        pl.col("hourly_count") != pl.col("hourly_count_late")
    )
    assert corrected.height == 172
    assert corrected["counter_id"].n_unique() == 1
    cleaned = counts(home, "bike_traffic_analytics.cleaned_counts")
    taken = corrected.join(cleaned.select(*keys, cleaned="hourly_count", revisions="revisions"), on=keys)
    assert taken.height == 172
    assert (taken["cleaned"] == taken["hourly_count_late"]).all()
    assert (taken["revisions"] == 2).all()
    assert (cleaned["revisions"] > 1).sum() == 172


def test_the_autumn_hour_is_marked_as_merged(ingested: tuple[Path, str]) -> None:
    home, _ = ingested
    cleaned = counts(home, "bike_traffic_analytics.cleaned_counts")
    merged = cleaned.filter("is_merged_hour")
    assert merged["service_date"].unique().to_list() == [date(2023, 10, 29)]
    assert merged["ts_utc"].unique().sort().dt.hour().to_list() == [0, 1]
    night = cleaned.filter(service_date=date(2023, 10, 29), local_hour=2)
    assert merged.height == night.height > 160
    assert merged["hourly_count"].sum() == merged["published_count"].sum() / 2


def test_the_stray_rows_are_told_once_a_run(ingested: tuple[Path, str]) -> None:
    _, said = ingested
    about = [line for line in said.splitlines() if line.startswith(f"{LATE}: ")]
    assert len(about) == 2
    assert about[0] == about[1]
    assert "6 rows kept" in about[0]


@pytest.mark.timeout(3600)
def test_the_demo_over_all_exports_keeps_its_promises(tmp_path: Path) -> None:
    done = bike_assets(
        *("demo", "--source", "archive", "--data", *(FOLDER / name for name in FILES)),
        *("--home", tmp_path / "home", "--json"),
        env={},
        timeout=3500,
    )
    assert done.returncode == 0, done.stderr
    result = one_json(done.stdout)
    assert result["rows_raw"] == 1_477_107
    assert result["issue_dates"]["n"] == 28
    assert result["accuracy"]["1"]["r2"] >= 0.93
    assert result["accuracy"]["1"]["skill"] >= 0.22
    assert result["peak_memory_mb"] < 4096
    assert result["checks"]["failed"] == 0
    assert counts(tmp_path / "home", "bike_traffic_raw.raw_counts").height == 1_477_107
