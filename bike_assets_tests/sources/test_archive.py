"""Reading the portal's formats: what was written is what is read, whatever the format, order or mixture."""

import gzip
import json
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from bike_assets.core.errors import PermanentError
from bike_assets.sources import formats, open_source
from bike_assets.sources.archive import ArchiveSource
from bike_assets.sources.base import COUNTS_SCHEMA, REJECTED_SCHEMA, SourceBatch, SourceFault
from bike_assets.sources.simulator import SimulatorSource
from bike_assets_tests.exports import (
    api_records,
    csv_lines,
    export_csv,
    export_json,
    export_parquet,
    write_bytes,
    write_lines,
)

FIRST, LAST = date(2023, 10, 23), date(2023, 11, 5)
"""Two weeks around the autumn clock change."""

CONTENT = [
    "service_date",
    "counter_id",
    "counter_name",
    "site_id",
    "site_name",
    "ts_utc",
    "hourly_count",
    "latitude",
    "longitude",
    "installation_date",
]


@pytest.fixture(scope="module")
def city() -> pl.DataFrame:
    counts = SimulatorSource(counters=6, first_day=FIRST, last_day=LAST).read(FIRST, LAST).counts
    counts = counts.sort("published_until").unique(["counter_id", "ts_utc"], keep="last")
    return counts.sort("counter_id", "ts_utc").with_columns(
        # A count the portal left empty.
        hourly_count=pl.when(pl.int_range(pl.len()) == 100).then(None).otherwise("hourly_count")
    )


def read_all(*paths: Path) -> SourceBatch:
    source = ArchiveSource(paths)
    return source.read(*source.span())


def assert_same_rows(batch: SourceBatch, city: pl.DataFrame) -> None:
    assert batch.counts.schema == COUNTS_SCHEMA
    assert batch.counts.select(CONTENT).equals(city.select(CONTENT))


@pytest.mark.parametrize("name", ["counts.csv", "counts.csv.gz", "counts.zip"])
@pytest.mark.parametrize("separator", [";", ","])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8", "cp1252"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv(
    tmp_path: Path, city: pl.DataFrame, name: str, separator: str, encoding: str, newline: str
) -> None:
    path = export_csv(city, tmp_path / name, separator=separator, encoding=encoding, newline=newline)
    batch = read_all(path)
    assert_same_rows(batch, city)
    assert batch.faults == ()
    assert batch.rejected.schema == REJECTED_SCHEMA
    assert batch.counts.get_column("source_file").unique().to_list() == [name]
    assert batch.counts.get_column("source").unique().to_list() == ["archive"]
    assert batch.counts.get_column("published_until").unique().to_list() == [city.get_column("ts_utc").max()]


@pytest.mark.parametrize("shape", ["array", "lines", "results", "v1"])
@pytest.mark.parametrize("name", ["counts.json", "counts.json.gz"])
def test_json(tmp_path: Path, city: pl.DataFrame, shape: str, name: str) -> None:
    batch = read_all(export_json(city, tmp_path / name, shape))
    assert_same_rows(batch, city)
    assert batch.faults == ()


@pytest.mark.parametrize("name", ["counts.ndjson", "counts.jsonl", "counts.geojson"])
def test_json_by_other_names(tmp_path: Path, city: pl.DataFrame, name: str) -> None:
    assert_same_rows(read_all(export_json(city, tmp_path / name, "lines")), city)


def test_parquet(tmp_path: Path, city: pl.DataFrame) -> None:
    batch = read_all(export_parquet(city, tmp_path / "counts.parquet"))
    assert_same_rows(batch, city)
    assert batch.faults == ()


@pytest.mark.parametrize(
    "change",
    [
        pl.col("date").dt.to_string("%Y-%m-%dT%H:%M:%S+00:00"),
        pl.col("sum_counts").cast(pl.Int32),
        pl.col("sum_counts").cast(pl.String),
        pl.col("installation_date").str.to_date(),
        pl.col("id").cast(pl.Int64),
        pl.col("id_compteur").cast(pl.Categorical),
        pl.concat_list(
            pl.col("coordinates").struct.field("lat"), pl.col("coordinates").struct.field("lon")
        ).alias("coordinates"),
        pl.format(
            "{}, {}", pl.col("coordinates").struct.field("lat"), pl.col("coordinates").struct.field("lon")
        ).alias("coordinates"),
    ],
)
def test_parquet_with_other_types(tmp_path: Path, city: pl.DataFrame, change: pl.Expr) -> None:
    path = export_parquet(city, tmp_path / "counts.parquet")
    pl.read_parquet(path).with_columns(change).write_parquet(path)
    batch = read_all(path)
    assert_same_rows(batch, city)
    assert batch.faults == ()


@pytest.mark.parametrize(
    "place", [{"lon": 2.33338, "lat": 48.83511}, [48.83511, 2.33338], "48.83511,2.33338", "48.83511, 2.33338"]
)
def test_positions_of_every_shape(tmp_path: Path, city: pl.DataFrame, place: object) -> None:
    records = [record | {"coordinates": place} for record in api_records(city.head(3))]
    path = write_bytes(json.dumps(records).encode(), tmp_path / "counts.json")
    counts = read_all(path).counts
    assert counts.get_column("latitude").to_list() == [48.83511] * 3
    assert counts.get_column("longitude").to_list() == [2.33338] * 3


def test_geojson_features_have_the_longitude_first(tmp_path: Path, city: pl.DataFrame) -> None:
    features = []
    for record in api_records(city.head(3)):
        place = record.pop("coordinates")
        point = {"type": "Point", "coordinates": [place["lon"], place["lat"]]}
        features.append({"type": "Feature", "geometry": point, "properties": record})
    text = json.dumps({"type": "FeatureCollection", "features": features})
    assert_same_rows(read_all(write_bytes(text.encode(), tmp_path / "counts.geojson")), city.head(3))


@pytest.mark.parametrize("count", ["12", "12.0", " 12 ", '"12.0"', "12e0"])
def test_ways_to_write_a_count(tmp_path: Path, city: pl.DataFrame, count: str) -> None:
    lines = csv_lines(city.head(2))
    lines[1] = ";".join(count if i == 4 else field for i, field in enumerate(lines[1].split(";")))
    batch = read_all(write_lines(lines, tmp_path / "counts.csv"))
    assert batch.counts.get_column("hourly_count")[0] == 12.0


@pytest.mark.parametrize("count", ["", '""', "null", "NULL", "nan"])
def test_empty_counts_are_kept_as_null(tmp_path: Path, city: pl.DataFrame, count: str) -> None:
    lines = csv_lines(city.head(2))
    lines[1] = ";".join(count if i == 4 else field for i, field in enumerate(lines[1].split(";")))
    batch = read_all(write_lines(lines, tmp_path / "counts.csv"))
    assert batch.counts.get_column("hourly_count").to_list() == [None, city.get_column("hourly_count")[1]]
    assert batch.faults == ()


def test_only_three_columns_are_needed(tmp_path: Path, city: pl.DataFrame) -> None:
    lines = [";".join(line.split(";")[i] for i in (5, 0, 4)) for line in csv_lines(city)]
    batch = read_all(write_lines(lines, tmp_path / "counts.csv"))
    needed = ["counter_id", "ts_utc", "hourly_count", "service_date"]
    assert batch.counts.select(needed).equals(city.select(needed))
    assert batch.counts.get_column("latitude").null_count() == city.height
    assert batch.faults == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_encoding_is_found_where_the_header_does_not_tell(
    tmp_path: Path, city: pl.DataFrame, encoding: str
) -> None:
    lines = csv_lines(city)
    lines[0] = (
        "id_compteur;nom_compteur;id;name;sum_counts;date;installation_date;a;coordinates;b;c;d;e;f;g;h"
    )
    batch = read_all(write_lines(lines, tmp_path / "counts.csv", encoding=encoding))
    assert_same_rows(batch, city)
    assert batch.faults == ()


def test_labels_in_other_dress(tmp_path: Path, city: pl.DataFrame) -> None:
    """Accents lost, capitals, a typographic apostrophe: still the same columns."""
    lines = csv_lines(city)
    lines[0] = lines[0].replace("é", "e").upper().replace("'", "’")
    assert_same_rows(read_all(write_lines(lines, tmp_path / "counts.csv")), city)


def test_blocks_do_not_show(tmp_path: Path, city: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is read piece by piece: the pieces must join without loss, and lines keep their numbers."""
    lines = csv_lines(city)
    lines[1500] = lines[1500].replace("T", "?")
    path = write_lines(lines, tmp_path / "counts.csv")
    whole = read_all(path)
    monkeypatch.setattr(formats, "BLOCK_BYTES", 10_000)
    monkeypatch.setattr("bike_assets.sources.containers.CHUNK", 7_001)
    pieces = read_all(path)
    assert pieces.counts.equals(whole.counts)
    assert pieces.rejected.equals(whole.rejected)
    assert pieces.rejected.get_column("line").to_list() == [1501]
    assert pieces.faults == whole.faults


def test_last_line_without_line_end(tmp_path: Path, city: pl.DataFrame) -> None:
    path = write_bytes("\n".join(csv_lines(city)).encode(), tmp_path / "counts.csv")
    assert_same_rows(read_all(path), city)


def test_blank_lines_are_passed_over(tmp_path: Path, city: pl.DataFrame) -> None:
    header, *rows = csv_lines(city)
    path = write_lines([header, "", *rows, "", "  "], tmp_path / "counts.csv")
    batch = read_all(path)
    assert_same_rows(batch, city)
    assert batch.faults == ()


def test_quoted_fields_may_hold_separators_and_quotes(tmp_path: Path, city: pl.DataFrame) -> None:
    lines = csv_lines(city.head(3))
    name = city.get_column("counter_name")[0]
    lines[1:] = [line.replace(f";{name};", ';"12; rue du ""Pont"", N-S";') for line in lines[1:]]
    batch = read_all(write_lines(lines, tmp_path / "counts.csv"))
    assert batch.counts.get_column("counter_name").to_list() == ['12; rue du "Pont", N-S'] * 3
    assert batch.faults == ()


def test_any_mixture_in_any_order(tmp_path: Path, city: pl.DataFrame) -> None:
    """Same files: same frame, to the last row, whatever the order, the folder, and how often named."""
    early = city.filter(pl.col("service_date") < date(2023, 10, 30))
    late = city.filter(pl.col("service_date") >= date(2023, 10, 28)).with_columns(pl.col("hourly_count") + 1)
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    files = [
        export_csv(early, folder / "z-early.csv.gz"),
        export_json(late.head(700), folder / "a-late.json"),
        export_parquet(late.tail(700), tmp_path / "m-late.parquet"),
    ]
    expected = read_all(*files)
    assert expected.counts.height == early.height + 1400
    assert expected.counts.get_column("source_file").n_unique() == 3
    assert expected.counts.equals(
        expected.counts.sort("counter_id", "ts_utc", "published_until", "source_file", maintain_order=True)
    )
    for paths in (
        [*reversed(files)],
        [tmp_path],
        [folder, tmp_path, *files],
        [files[2], folder],
        [folder / ".." / "..", *files],
    ):
        again = read_all(*paths)
        assert again.counts.equals(expected.counts)
        assert again.faults == expected.faults
    shutil.move(tmp_path / "a", tmp_path / "elsewhere")
    assert read_all(tmp_path).counts.equals(expected.counts)


def test_shuffled_rows_give_the_same_frame(tmp_path: Path, city: pl.DataFrame) -> None:
    straight = export_csv(city, tmp_path / "counts.csv")
    expected = read_all(straight).counts
    export_csv(city.sample(fraction=1.0, shuffle=True, seed=1), tmp_path / "counts.csv")
    assert read_all(straight).counts.equals(expected)


def test_reading_in_parts_adds_up(tmp_path: Path, city: pl.DataFrame) -> None:
    source = ArchiveSource([export_csv(city, tmp_path / "counts.csv")])
    assert source.span() == (FIRST, LAST)
    days = [FIRST + timedelta(days=i) for i in range(14)]
    parts = [source.read(day, day).counts for day in days]
    for day, part in zip(days, parts, strict=True):
        assert part.get_column("service_date").unique().to_list() == [day]
    assert pl.concat(parts).sort(CONTENT).equals(source.read(FIRST, LAST).counts.sort(CONTENT))
    assert source.read(date(2020, 1, 1), date(2020, 2, 1)).counts.schema == COUNTS_SCHEMA


def test_files_are_parsed_once(tmp_path: Path, city: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ArchiveSource([export_csv(city, tmp_path / "counts.csv")])
    first = source.read(FIRST, LAST).counts

    def no_more(*_: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("bike_assets.sources.archive.open_exports", no_more)
    assert source.read(FIRST, LAST).counts.equals(first)
    assert source.span() == (FIRST, LAST)


def test_later_export_is_published_later(tmp_path: Path, city: pl.DataFrame) -> None:
    early = city.filter(pl.col("service_date") <= date(2023, 10, 30))
    counts = read_all(export_csv(early, tmp_path / "zzz.csv"), export_csv(city, tmp_path / "aaa.csv")).counts
    newest = counts.sort("published_until").unique(["counter_id", "ts_utc"], keep="last")
    assert newest.get_column("source_file").unique().to_list() == ["aaa.csv"]


def test_a_stray_row_of_the_future_does_not_make_an_export_the_newest(
    tmp_path: Path, city: pl.DataFrame
) -> None:
    many = SimulatorSource(counters=24, first_day=FIRST, last_day=LAST).read(FIRST, LAST).counts
    stray = many.head(1).with_columns(ts_utc=pl.lit(datetime(2031, 5, 5, 10, tzinfo=UTC)))
    batch = read_all(export_csv(pl.concat([many, stray]), tmp_path / "counts.csv"))
    assert batch.counts.get_column("published_until").unique().to_list() == [many.get_column("ts_utc").max()]
    assert batch.counts.height == many.height + 1
    stray_faults = [fault for fault in batch.faults if "stray" in fault.problem]
    assert [(fault.rows, fault.set_aside) for fault in stray_faults] == [(1, False)]
    assert "2031-05-05" in stray_faults[0].line()


def test_zip_of_several_exports(tmp_path: Path, city: pl.DataFrame) -> None:
    import zipfile

    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("2023/first.csv", "\n".join(csv_lines(city.head(100))))
        archive.writestr("second.csv", "\n".join(csv_lines(city.tail(city.height - 100))))
        archive.writestr("LISEZMOI.txt", "…")
        archive.writestr("__MACOSX/._first.csv", b"\x00\x05\x16\x07")
    batch = read_all(path)
    assert_same_rows(batch, city)
    assert batch.faults == ()
    assert sorted(batch.counts.get_column("source_file").unique()) == [
        "all.zip/2023/first.csv",
        "all.zip/second.csv",
    ]


def test_gzip_of_several_parts(tmp_path: Path, city: pl.DataFrame) -> None:
    """Joined gzip files are a gzip file; some programs pad it with zeros."""
    text = "".join(f"{line}\n" for line in csv_lines(city)).encode()
    parts = [gzip.compress(text[:5_001]), gzip.compress(text[5_001:90_000]), gzip.compress(text[90_000:])]
    path = tmp_path / "counts.csv.gz"
    path.write_bytes(b"".join(parts) + b"\0" * 512)
    batch = read_all(path)
    assert_same_rows(batch, city)
    assert batch.faults == ()


def test_browsers_unpack_and_keep_the_name(tmp_path: Path, city: pl.DataFrame) -> None:
    packed = export_csv(city, tmp_path / "x.csv.gz")
    plain = export_csv(city, tmp_path / "x.csv")
    (tmp_path / "swapped").mkdir()
    assert_same_rows(read_all(Path(shutil.copy(plain, tmp_path / "swapped" / "y.csv.gz"))), city)
    assert_same_rows(read_all(Path(shutil.copy(packed, tmp_path / "swapped" / "z.csv"))), city)


def test_open_source_gives_the_archive(tmp_path: Path, city: pl.DataFrame) -> None:
    path = export_csv(city, tmp_path / "counts.csv")
    source = open_source("archive", data=[path])
    assert source.name == "archive"
    assert source.span() == (FIRST, LAST)
    with pytest.raises(PermanentError, match="--data"):
        open_source("archive").span()


def test_fault_line_reads_as_a_sentence() -> None:
    fault = SourceFault(
        "comptage-2023.csv.gz",
        "line 1043, column Comptage horaire",
        "'abc' is not a count",
        "correct the line or export again",
        1,
    )
    assert fault.line() == (
        "comptage-2023.csv.gz: line 1043, column Comptage horaire: 'abc' is not a count; "
        "correct the line or export again (1 row set aside)"
    )
