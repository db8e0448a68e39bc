"""Malformed exports through the command line: one line a fault, and no right row lost."""

import gzip
import zlib
from collections.abc import Callable
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from bike_assets.sources.simulator import SimulatorSource
from bike_assets_tests.exports import CSV_LABELS, csv_lines, export_csv, write_lines
from bike_assets_tests.homes import TINY_CITY, bike_assets, one_json, tables

FIRST, LAST = date(2024, 5, 1), date(2024, 5, 6)
COUNT = CSV_LABELS.index("Comptage horaire")
WHEN = CSV_LABELS.index("Date et heure de comptage")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def city() -> pl.DataFrame:
    counts = SimulatorSource(counters=2, first_day=FIRST, last_day=LAST).read(FIRST, LAST).counts
    return (
        counts.sort("published_until")
        .unique(["counter_id", "ts_utc"], keep="last")
        .sort("counter_id", "ts_utc")
    )


def truncated_gzip(city: pl.DataFrame, path: Path) -> pl.DataFrame:
    data = export_csv(city, path).read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    # What a decompressor gives of it, without the last line, which is torn.
    whole = gzip.decompress(data).decode("utf-8-sig").splitlines()
    torn = _gunzip_what_is_there(path.read_bytes()).decode("utf-8-sig", "ignore").splitlines()
    assert whole[: len(torn) - 1] == torn[:-1]
    return city.head(len(torn) - 2)


def missing_column(city: pl.DataFrame, path: Path) -> pl.DataFrame:
    lines = [line.split(";") for line in csv_lines(city)]
    write_lines([";".join(fields[:COUNT] + fields[COUNT + 1 :]) for fields in lines], path)
    return city.head(0)


def text_in_counts(city: pl.DataFrame, path: Path) -> pl.DataFrame:
    write_lines(_with_field(csv_lines(city), 40, COUNT, "beaucoup"), path)
    return pl.concat([city.head(39), city.slice(40)])


def unknown_encoding(city: pl.DataFrame, path: Path) -> pl.DataFrame:
    write_lines(csv_lines(city), path, encoding="utf-16")
    return city.head(0)


def one_line_in_another_encoding(city: pl.DataFrame, path: Path) -> pl.DataFrame:
    data = [line.encode() for line in csv_lines(city)]
    data[40] = data[40].split(b";")[0] + b";Comptage \xe9\xff;" + b";".join(data[40].split(b";")[2:])
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(data) + b"\n")
    return pl.concat([city.head(39), city.slice(40)])


def duplicated_rows(city: pl.DataFrame, path: Path) -> pl.DataFrame:
    lines = csv_lines(city)
    write_lines([*lines, *lines[10:13]], path)
    return pl.concat([city, city.slice(9, 3)])


def another_data_set(city: pl.DataFrame, path: Path) -> pl.DataFrame:
    write_lines(["Station;Vélos disponibles;Places", "Louvre;12;30", "Bastille;4;18"], path)
    return city.head(0)


Spoil = Callable[[pl.DataFrame, Path], pl.DataFrame]
"""Writes a spoilt export and returns the rows of it that are right."""

CASES: dict[str, tuple[str, Spoil, str, str]] = {
    # name of the case: file, how it is spoilt, where and what the line must say, what to do
    "truncated gzip": ("cut.csv.gz", truncated_gzip, "line ", "download or export it again"),
    "text in counts": (
        "text.csv",
        text_in_counts,
        "line 41, column Comptage horaire: 'beaucoup'",
        "correct the line",
    ),
    "torn encoding": ("torn.csv", one_line_in_another_encoding, "line 41", "; "),
    "duplicated rows": ("twice.csv", duplicated_rows, "more: repeats an earlier row", "removed in cleaning"),
    "missing column": ("column.csv", missing_column, "Comptage horaire", "export"),
    "unknown encoding": ("utf16.csv", unknown_encoding, "", "; "),
    "another data set": ("velib.csv", another_data_set, "another data set", "; "),
}
NOTHING_RIGHT = ("missing column", "unknown encoding", "another data set")


def _with_field(lines: list[str], row: int, position: int, value: str) -> list[str]:
    fields = lines[row].split(";")
    fields[position] = value
    return [*lines[:row], ";".join(fields), *lines[row + 1 :]]


def _gunzip_what_is_there(data: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data)


def said_about(stderr: str, file: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.removeprefix("error: ").startswith(f"{file}: ")]


def rows_in(home: Path, file: str) -> pl.DataFrame:
    return _comparable(tables(home)["bike_traffic_raw.raw_counts"].filter(source_file=file))


def _comparable(counts: pl.DataFrame) -> pl.DataFrame:
    columns = ["counter_id", "ts_utc", "hourly_count"]
    return counts.select(columns).with_columns(pl.col("ts_utc").dt.replace_time_zone(None)).sort(columns)


@pytest.mark.parametrize(
    "case", [NOTHING_RIGHT[0], *(pytest.param(case, marks=pytest.mark.slow) for case in NOTHING_RIGHT[1:])]
)
def test_a_file_without_a_right_row_ends_in_one_line(tmp_path: Path, city: pl.DataFrame, case: str) -> None:
    file, spoil, where, remedy = CASES[case]
    spoil(city, tmp_path / file)
    home = tmp_path / "home"
    done = bike_assets(
        "ingest", "--source", "archive", "--data", tmp_path / file, "--home", home, env=TINY_CITY
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {file}: ")
    assert where in line
    assert remedy in line
    assert not (home / "warehouse.duckdb").exists()


@pytest.mark.slow
def test_a_mixture_of_good_and_bad_files_loses_no_right_row(tmp_path: Path, city: pl.DataFrame) -> None:
    """Every kind at once, with a good file between them: a line each, and exactly the right rows."""
    files = tmp_path / "exports"
    files.mkdir()
    right = {"good.csv": export_csv(city, files / "good.csv") and city}
    for file, spoil, _, _ in CASES.values():
        right[file] = spoil(city, files / file)
    home = tmp_path / "home"
    done = bike_assets(
        "ingest", "--source", "archive", "--data", files, "--home", home, "--json", env=TINY_CITY
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert one_json(done.stdout)["days"] == [FIRST.isoformat(), LAST.isoformat()]
    for file, _, where, remedy in CASES.values():
        said = said_about(done.stderr, file)
        assert len(said) == 1, f"{file}: {done.stderr}"
        assert where in said[0]
        assert remedy in said[0]
    assert said_about(done.stderr, "good.csv") == []
    for file, rows in right.items():
        assert rows_in(home, file).equals(_comparable(rows)), file
    # The same hours came six times over; cleaned they are there once, with what was counted.
    cleaned = tables(home)["bike_traffic_analytics.cleaned_counts"]
    assert _comparable(cleaned.with_columns(pl.col("hourly_count").cast(pl.Float64))).equals(
        _comparable(city)
    )


@pytest.mark.slow
def test_materialize_says_it_too(tmp_path: Path, city: pl.DataFrame) -> None:
    file, spoil, where, remedy = CASES["truncated gzip"]
    right = spoil(city, tmp_path / file)
    done = bike_assets(
        *("materialize", "raw_counts", "--from", FIRST.isoformat(), "--to", LAST.isoformat()),
        *("--source", "archive", "--data", tmp_path / file, "--home", tmp_path / "home"),
        env=TINY_CITY,
    )
    assert done.returncode == 0, done.stderr
    (line,) = said_about(done.stderr, file)
    assert where in line
    assert remedy in line
    assert rows_in(tmp_path / "home", file).equals(_comparable(right))


@pytest.mark.slow
def test_a_demo_without_enough_history_still_says_what_is_wrong_with_its_files(
    tmp_path: Path, city: pl.DataFrame
) -> None:
    file, spoil, where, _ = CASES["text in counts"]
    spoil(city, tmp_path / file)
    done = bike_assets(
        *("demo", "--source", "archive", "--data", tmp_path / file, "--home", tmp_path / "home"),
        env=TINY_CITY,
    )
    assert done.returncode == 1
    (line,) = said_about(done.stderr, file)
    assert where in line
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = bike_assets(
        *("ingest", "--source", "archive", "--data", tmp_path / "no.csv", "--home", tmp_path / "home"),
        env=TINY_CITY,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "no.csv" in line
