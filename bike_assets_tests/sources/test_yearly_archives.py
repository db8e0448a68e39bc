"""The portal's yearly archive files, as they were published year after year, beside the thirteen live months.

One zip a year, each written as that year's was: the separators, encodings, labels and packings changed, the counts
did not. What a single file may look like is in `test_archive.py`, what is wrong in one in `test_archive_faults.py`.
"""

import io
import zipfile
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.core.calendar import hours_of_day, local_columns
from bike_assets.core.contracts import UTC_TIMESTAMP
from bike_assets.sources.archive import ArchiveSource
from bike_assets_tests.exports import CSV_LABELS, csv_lines, export_parquet

COUNTER, OLD_FORM = "100047545-104047545", "100003096-SC"
"""Ids of the two forms that the portal has used: two numbers, and the letters of a direction."""

KEY = ["counter_id", "ts_utc"]


def counted(*days: date) -> pl.DataFrame:
    """What two counters counted in every hour of some days; in autumn the row of the first repeated hour is absent."""
    rows = [
        (counter, hour, float((hour.hour * 7 + day.day + len(counter)) % 90))
        for day in days
        for hour in hours_of_day(day)
        for counter in (COUNTER, OLD_FORM)
        if not (day.month == 10 and len(hours_of_day(day)) == 25 and hour == hours_of_day(day)[2])
    ]
    schema = {"counter_id": pl.String, "ts_utc": UTC_TIMESTAMP, "hourly_count": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        counter_name=pl.lit("67 boulevard Voltaire SE-NO"), site_id=pl.lit("100047545"),
        site_name=pl.lit("67 boulevard Voltaire"), latitude=pl.lit(48.857), longitude=pl.lit(2.379),
        installation_date=pl.lit(date(2015, 7, 1)),
    )  # fmt: skip


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def text(lines: list[str], *, encoding: str = "utf-8", newline: str = "\n") -> bytes:
    return "".join(line + newline for line in lines).encode(encoding)


def plain(counts: pl.DataFrame) -> dict[str, bytes]:
    return {"comptage-velo.csv": text(csv_lines(counts), encoding="utf-8-sig")}


def windows(counts: pl.DataFrame) -> dict[str, bytes]:
    """Saved by a spreadsheet: Latin-1 and its line ends."""
    return {"2016_comptage-velo.csv": text(csv_lines(counts), encoding="cp1252", newline="\r\n")}


def mac(counts: pl.DataFrame) -> dict[str, bytes]:
    """Packed on a Mac: a folder, the file in it, its resource fork of the same ending, and a note beside it."""
    return {
        "2018/": b"",
        "2018/comptage-velo.csv": text(csv_lines(counts), encoding="utf-8-sig"),
        "__MACOSX/2018/._comptage-velo.csv": b"\0\5\26\7\0\2\0\0Mac OS X",
        "2018/lisez-moi.pdf": b"%PDF-1.4",
    }


def commas(counts: pl.DataFrame) -> dict[str, bytes]:
    """Commas, positions quoted, and counts without a decimal point, as in the exports of 2022."""
    lines = [line.replace(".0,20", ",20") for line in csv_lines(counts, ",")]
    return {"comptage-velo.csv": text(lines)}


def few_columns(counts: pl.DataFrame) -> dict[str, bytes]:
    """The first years have none of the columns about photographs, and labels without accents."""
    keep = [CSV_LABELS.index(label) for label in CSV_LABELS[:7]]
    lines = [";".join(line.split(";")[i] for i in keep) for line in csv_lines(counts)]
    return {"comptage.csv": text(lines)}


def two_halves(counts: pl.DataFrame) -> dict[str, bytes]:
    """A year in two files that share a day."""
    days = counts.with_columns(day=pl.col("ts_utc").dt.convert_time_zone("Europe/Paris").dt.date())
    middle = days["day"].unique().sort().to_list()[1]
    return {
        "S1.csv": text(csv_lines(days.filter(pl.col("day") <= middle))),
        "S2.csv": text(csv_lines(days.filter(pl.col("day") >= middle))),
    }


def shuffled(counts: pl.DataFrame) -> dict[str, bytes]:
    return plain(counts.sample(fraction=1.0, shuffle=True, seed=1))


def utc_hours(counts: pl.DataFrame) -> dict[str, bytes]:
    """API names and UTC, of a year exported from the API."""
    lines = [";".join(("id_compteur", "sum_counts", "date"))]
    for row in counts.iter_rows(named=True):
        lines.append(f"{row['counter_id']};{row['hourly_count']:.0f};{row['ts_utc']:%Y-%m-%dT%H:%M:%SZ}")
    return {"export.csv": text(lines)}


YEARS: dict[int, Callable[[pl.DataFrame], dict[str, bytes]]] = {
    2016: windows,
    2017: few_columns,
    2018: mac,
    2019: two_halves,
    2020: plain,
    2021: commas,
    2022: shuffled,
    2023: utc_hours,
}
CLOCK_CHANGES = {
    2016: ("03-27", "10-30"),
    2017: ("03-26", "10-29"),
    2018: ("03-25", "10-28"),
    2019: ("03-31", "10-27"),
    2020: ("03-29", "10-25"),
    2021: ("03-28", "10-31"),
    2022: ("03-27", "10-30"),
    2023: ("03-26", "10-29"),
}


def days_of(year: int) -> list[date]:
    """The days of a year on which something goes wrong, and an ordinary one."""
    changes = [date.fromisoformat(f"{year}-{day}") for day in CLOCK_CHANGES[year]]
    leap = [date(year, 2, 29)] if year % 4 == 0 else []
    around = [day + timedelta(days=offset) for day in changes for offset in (-1, 0, 1)]
    return sorted({date(year, 1, 1), *leap, *around, date(year, 12, 31)})


def content(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(*KEY, "hourly_count").unique().sort(KEY)


def read(*paths: Path) -> pl.DataFrame:
    source = ArchiveSource(list(paths))
    batch = source.read(*source.span())
    assert batch.rejected.is_empty(), batch.rejected
    told = [fault.line() for fault in batch.faults if "repeat" not in fault.problem]
    assert not told, told
    return batch.counts


@pytest.mark.parametrize("year", YEARS)
def test_a_year_is_read_as_it_was_written(tmp_path: Path, year: int) -> None:
    """Both offsets of the year in one file, both weeks in which the clock changes, leap day, New Year on the wall."""
    counts = counted(*days_of(year))
    path = zipped(tmp_path / f"{year}-comptage-velo-donnees-compteurs.zip", YEARS[year](counts))

    found = read(path)

    assert_frame_equal(content(found), content(counts))
    clock = local_columns(found.select("ts_utc", day="service_date"))
    assert (clock["day"] == clock["service_date"]).all()
    assert clock["day"].dt.year().unique().to_list() == [year]


def test_all_years_and_the_live_window_are_one_table_in_any_order(tmp_path: Path) -> None:
    """From 2016 to the live months, whose first days the archive of 2023 has too: every hour once, none added."""
    everything = []
    paths = []
    for year, written in YEARS.items():
        counts = counted(*days_of(year))
        everything.append(counts)
        paths.append(zipped(tmp_path / f"{year}-comptage-velo.zip", written(counts)))
    live = counted(*days_of(2023)[-4:], date(2024, 1, 1), date(2024, 2, 29))
    paths.append(tmp_path / "live.parquet")
    export_parquet(live, paths[-1])
    expected = content(pl.concat([*everything, live]))

    assert_frame_equal(content(read(*paths)), expected)
    assert_frame_equal(content(read(*reversed(paths))), expected)
    ends = read(*paths).group_by("source_file").agg(pl.col("published_until").unique())
    newest = dict(ends.explode("published_until").iter_rows())
    assert newest["live.parquet"] == max(newest.values()), "the later export corrects the archive"


def test_the_offset_decides_and_not_the_wall_clock(tmp_path: Path) -> None:
    """02:00 is there twice in autumn, with +02:00 and +01:00: two hours; and one instant in two offsets is one."""
    lines = csv_lines(counted(date(2022, 10, 31)).head(0))
    for stamp, count in (
        ("2022-10-30T02:00:00+02:00", 1),
        ("2022-10-30T02:00:00+01:00", 2),
        ("2022-10-30T01:00:00+00:00", 2),
        ("2022-03-27T03:00:00+02:00", 4),
    ):
        fields: list[Any] = [COUNTER, "", "", "", count, stamp, *[""] * 10]
        lines.append(";".join(map(str, fields)))
    path = zipped(tmp_path / "2022.zip", {"2022.csv": text(lines)})

    found = content(read(path))

    assert found.rows() == [
        (COUNTER, datetime(2022, 3, 27, 1, tzinfo=UTC), 4.0),
        (COUNTER, datetime(2022, 10, 30, 0, tzinfo=UTC), 1.0),
        (COUNTER, datetime(2022, 10, 30, 1, tzinfo=UTC), 2.0),
    ]


def test_a_zip_in_a_zip_is_told_and_costs_nothing_else(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("2017.csv", b"")
    counts = counted(date(2017, 1, 1))
    path = zipped(tmp_path / "years.zip", {"2016.zip": inner.getvalue(), **few_columns(counts)})

    source = ArchiveSource([path])
    batch = source.read(*source.span())

    assert_frame_equal(content(batch.counts), content(counts))
    assert [fault.line() for fault in batch.faults] == [
        "years.zip/2016.zip: is a zip inside a zip; unpack the outer one and give that"
    ]
