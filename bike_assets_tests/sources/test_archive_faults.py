"""Malformed exports: one line that names the file, the place and the remedy, and no right row lost."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from bike_assets.core.errors import PermanentError
from bike_assets.sources.archive import ArchiveSource
from bike_assets.sources.base import REJECTED_SCHEMA, SourceBatch
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

FIRST, LAST = date(2023, 5, 1), date(2023, 5, 10)
COUNT, WHEN = 4, 5
"""Positions of the count and the date in the portal's CSV."""


@pytest.fixture(scope="module")
def city() -> pl.DataFrame:
    counts = SimulatorSource(counters=4, first_day=FIRST, last_day=LAST).read(FIRST, LAST).counts
    return (
        counts.sort("published_until")
        .unique(["counter_id", "ts_utc"], keep="last")
        .sort("counter_id", "ts_utc")
    )


def read_all(*paths: Path) -> SourceBatch:
    source = ArchiveSource(paths)
    return source.read(*source.span())


def with_field(line: str, position: int, value: str) -> str:
    fields = line.split(";")
    fields[position] = value
    return ";".join(fields)


@dataclass(frozen=True)
class BadLine:
    """One way to spoil a line, and what must be said about it."""

    spoil: Callable[[str], str]
    column: str
    says: str


BAD_LINES = {
    "text in counts": BadLine(
        lambda s: with_field(s, COUNT, "abc"), "Comptage horaire", "'abc' is not a count"
    ),
    "infinite count": BadLine(
        lambda s: with_field(s, COUNT, "inf"), "Comptage horaire", "'inf' is not a count"
    ),
    "negative count": BadLine(
        lambda s: with_field(s, COUNT, "-3.0"), "Comptage horaire", "'-3.0' is negative"
    ),
    "half a bicycle": BadLine(
        lambda s: with_field(s, COUNT, "2.5"), "Comptage horaire", "'2.5' is not a whole number"
    ),
    "unparsable date": BadLine(
        lambda s: with_field(s, WHEN, "hier soir"),
        "Date et heure de comptage",
        "'hier soir' is not a date with time",
    ),
    "date without offset": BadLine(
        lambda s: with_field(s, WHEN, "2023-05-02T10:00:00"),
        "Date et heure de comptage",
        "'2023-05-02T10:00:00' has no offset from UTC",
    ),
    "day without hour": BadLine(
        lambda s: with_field(s, WHEN, "2023-05-02"), "Date et heure de comptage", "has no offset from UTC"
    ),
    "half an hour": BadLine(
        lambda s: with_field(s, WHEN, "2023-05-02T10:30:00+02:00"),
        "Date et heure de comptage",
        "is not the start of an hour",
    ),
    "before bicycles were counted": BadLine(
        lambda s: with_field(s, WHEN, "1970-01-01T00:00:00+00:00"),
        "Date et heure de comptage",
        "lies outside the years 2000 to 2099",
    ),
    "no counter": BadLine(
        lambda s: with_field(s, 0, ""), "Identifiant du compteur", "is not the id of a counter"
    ),
    "too few columns": BadLine(
        lambda s: s.rsplit(";", 3)[0], "", "does not have the 16 columns of the header"
    ),
    "too many columns": BadLine(lambda s: s + ";x", "", "does not have the 16 columns of the header"),
    "open quotation": BadLine(
        lambda s: with_field(s, 1, '"8 boulevard'), "", "opens a quotation and does not close it"
    ),
}


@pytest.mark.parametrize("name", ["counts.csv", "counts.csv.gz", "counts.zip"])
@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_costs_that_line_only(tmp_path: Path, city: pl.DataFrame, case: str, name: str) -> None:
    bad = BAD_LINES[case]
    lines = csv_lines(city)
    lines[437] = bad.spoil(lines[437])
    batch = read_all(write_lines(lines, tmp_path / name))
    (fault,) = batch.faults
    place = f"{name}: line 438" + (f", column {bad.column}" if bad.column else "") + ": "
    assert fault.line().startswith(place)
    assert bad.says in fault.line()
    assert fault.line().endswith("; correct the line or export again (1 row set aside)")
    assert batch.rejected.schema == REJECTED_SCHEMA
    (rejected,) = batch.rejected.iter_rows(named=True)
    assert rejected["source_file"] == name
    assert rejected["line"] == 438
    assert rejected["column"] == bad.column
    assert rejected["reason"] in fault.line()
    kept = city.with_row_index().filter(pl.col("index") != 436)
    columns = ["counter_id", "ts_utc", "hourly_count", "counter_name"]
    assert batch.counts.select(columns).equals(kept.select(columns))


def test_many_bad_lines_make_few_faults(tmp_path: Path, city: pl.DataFrame) -> None:
    lines = csv_lines(city)
    for i in range(100, 400):
        lines[i] = with_field(lines[i], COUNT, f"x{i}")
    for i in range(500, 520):
        lines[i] = with_field(with_field(lines[i], COUNT, "-1"), WHEN, "")
    batch = read_all(write_lines(lines, tmp_path / "counts.csv"))
    assert [fault.line() for fault in batch.faults] == [
        "counts.csv: line 101 and 299 more, column Comptage horaire: 'x100' is not a count; "
        "correct the line or export again (300 rows set aside)",
        "counts.csv: line 501 and 19 more, column Date et heure de comptage: '' is not a date with time; "
        "correct the line or export again (20 rows set aside)",
    ]
    assert batch.rejected.height == 320
    assert batch.counts.height == city.height - 320


def test_line_numbers_count_blank_and_broken_lines(tmp_path: Path, city: pl.DataFrame) -> None:
    lines = csv_lines(city)
    lines[300] = with_field(lines[300], COUNT, "abc")
    lines[200] = "torn"
    lines.insert(100, "")
    batch = read_all(write_lines(lines, tmp_path / "counts.csv", newline="\r\n"))
    assert batch.rejected.select("line", "value").rows() == [(202, "torn"), (302, "abc")]


def test_long_values_do_not_flood_the_terminal(tmp_path: Path, city: pl.DataFrame) -> None:
    lines = csv_lines(city)
    lines[5] = with_field(lines[5], COUNT, "\x1b[31m" + "z" * 5000)
    (fault,) = read_all(write_lines(lines, tmp_path / "counts.csv")).faults
    assert len(fault.line()) < 250
    assert fault.line().isprintable()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_truncated_gzip_keeps_every_complete_line(tmp_path: Path, city: pl.DataFrame, share: float) -> None:
    path = export_csv(city, tmp_path / "counts.csv.gz")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    batch = read_all(path)
    (fault,) = batch.faults
    assert "the gzip data ends here before its end" in fault.line()
    assert "download or export it again" in fault.line()
    assert fault.where == f"line {batch.counts.height + 2}"
    columns = ["counter_id", "ts_utc", "hourly_count"]
    assert batch.counts.select(columns).equals(city.head(batch.counts.height).select(columns))
    assert batch.counts.height > 0.5 * share * city.height


def test_gzip_damaged_in_the_middle(tmp_path: Path, city: pl.DataFrame) -> None:
    path = export_csv(city, tmp_path / "counts.csv.gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = b"\xff" * 50
    path.write_bytes(data)
    batch = read_all(path)
    assert any("gzip data is damaged" in fault.line() for fault in batch.faults)
    assert batch.counts.height > 100


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_truncated_zip_keeps_every_complete_line(tmp_path: Path, city: pl.DataFrame, share: float) -> None:
    path = export_csv(city, tmp_path / "counts.zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    batch = read_all(path)
    (fault,) = batch.faults
    assert fault.line().startswith(
        f"counts.zip: line {batch.counts.height + 2}: the zip file is cut off here; "
    )
    assert batch.counts.height > 0.5 * share * city.height


def test_truncated_json_keeps_every_complete_record(tmp_path: Path, city: pl.DataFrame) -> None:
    text = json.dumps(api_records(city), ensure_ascii=False)
    packed = gzip.compress(text.encode(), mtime=0)
    (tmp_path / "a.json.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.json").write_text(text[: len(text) // 2])
    for name in ("a.json.gz", "b.json"):
        batch = read_all(tmp_path / name)
        assert batch.counts.height > 200
        assert batch.counts.get_column("counter_id").to_list() == (
            city.get_column("counter_id").head(batch.counts.height).to_list()
        )
        assert len(batch.faults) == 1
        assert batch.faults[0].line().startswith(f"{name}: line 1: ")


def test_a_slip_in_json_costs_one_record(tmp_path: Path, city: pl.DataFrame) -> None:
    for name, text in {
        "a.ndjson": "\n".join(json.dumps(record) for record in api_records(city)),
        "b.json": json.dumps(api_records(city), indent=1),
    }.items():
        first = text.index('"sum_counts"')
        broken = text[:first] + text[first:].replace('"sum_counts":', '"sum_counts" =', 1)
        batch = read_all(write_bytes(broken.encode(), tmp_path / name))
        (fault,) = batch.faults
        assert "is not valid JSON" in fault.line()
        assert batch.counts.height == city.height - 1


def test_bad_values_in_json_and_parquet_are_found_too(tmp_path: Path, city: pl.DataFrame) -> None:
    records = api_records(city)
    records[10]["sum_counts"] = "abc"
    records[11]["date"] = "2023-05-02T10:00:00"
    records[12] = []  # type: ignore[call-overload]
    text = "\n".join(json.dumps(record) for record in records)
    batch = read_all(write_bytes(text.encode(), tmp_path / "counts.ndjson"))
    assert sorted(batch.rejected.get_column("line")) == [11, 12, 13]
    assert batch.counts.height == city.height - 3
    assert any(
        fault.line().startswith("counts.ndjson: line 11, column sum_counts: 'abc' is not a count")
        for fault in batch.faults
    )
    path = export_parquet(city, tmp_path / "counts.parquet")
    at = pl.int_range(pl.len())
    pl.read_parquet(path).with_columns(
        sum_counts=pl.when(at == 20).then(-1.0).otherwise("sum_counts"),
        date=pl.when(at == 30).then(None).otherwise("date"),
    ).write_parquet(path)
    batch = read_all(path)
    assert batch.rejected.get_column("line").to_list() == [21, 31]
    assert (
        batch.faults[0].line().startswith("counts.parquet: record 21, column sum_counts: '-1.0' is negative")
    )
    assert batch.counts.height == city.height - 2


@dataclass(frozen=True)
class Hopeless:
    """A file without a single right row, and what must be said about it."""

    name: str
    data: Callable[[pl.DataFrame], bytes]
    says: str


def _csv(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _without_column(city: pl.DataFrame, position: int) -> bytes:
    rows = [line.split(";") for line in csv_lines(city.head(5))]
    return _csv(*(";".join(row[:position] + row[position + 1 :]) for row in rows))


def _random_bytes(_: pl.DataFrame) -> bytes:
    return random.Random(5).randbytes(50_000)


HOPELESS = {
    "empty": Hopeless("x.csv", lambda _: b"", "x.csv: the file is empty; export it again"),
    "empty gzip": Hopeless("x.csv.gz", lambda _: gzip.compress(b""), "x.csv.gz: the file is empty"),
    "empty zip": Hopeless("x.zip", lambda _: b"PK\x05\x06" + b"\0" * 18, "x.zip: is not a zip file"),
    "empty json": Hopeless("x.json", lambda _: b"  ", "x.json: the file is empty"),
    "no records": Hopeless("x.json", lambda _: b"[]", "x.json: has no records"),
    "header only": Hopeless(
        "x.csv", lambda city: _csv(csv_lines(city)[0]), "x.csv: has a header and no rows; export it again"
    ),
    "parquet without rows": Hopeless(
        "x.parquet", lambda _: b"", "x.parquet: the file is empty; export it again"
    ),
    "count column missing": Hopeless(
        "x.csv",
        lambda city: _without_column(city, COUNT),
        "x.csv: column Comptage horaire (sum_counts) is missing (found: Identifiant du compteur, Nom du",
    ),
    "date column missing": Hopeless(
        "x.csv",
        lambda city: _without_column(city, WHEN),
        "x.csv: column Date et heure de comptage (date) is missing",
    ),
    "counter column missing": Hopeless(
        "x.csv",
        lambda city: _without_column(city, 0),
        "x.csv: column Identifiant du compteur (id_compteur) is missing",
    ),
    "json without counts": Hopeless(
        "x.json",
        lambda _: json.dumps([{"id_compteur": "1", "date": "2023-05-01T00:00:00Z"}]).encode(),
        "x.json: column Comptage horaire (sum_counts) is missing (found: id_compteur, date)",
    ),
    "another data set": Hopeless(
        "x.csv",
        lambda _: _csv("date,vacances,zone", "2023-05-01,Noël,C"),
        "x.csv: is a file of another data set (its columns are date, vacances, zone); give exports of the",
    ),
    "json of another data set": Hopeless(
        "x.json",
        lambda city: json.dumps({"note": "shapes", "inner": {"results": api_records(city)}}).encode(),
        "x.json: is a file of another data set (its columns are note, inner)",
    ),
    "UTF-16": Hopeless(
        "x.csv",
        lambda city: "\n".join(csv_lines(city)).encode("utf-16"),
        "x.csv: line 1: is UTF-16, not UTF-8 or Latin-1; export it again as UTF-8",
    ),
    "UTF-16 without mark": Hopeless(
        "x.csv",
        lambda city: "\n".join(csv_lines(city)).encode("utf-16-le"),
        "x.csv: line 1: is no text, not UTF-8 or Latin-1; export it again as UTF-8",
    ),
    "random bytes": Hopeless("x.csv", _random_bytes, "x.csv: line 1: is no text"),
    "random bytes as gzip": Hopeless(
        "x.csv.gz",
        lambda city: b"\x1f\x8b" + _random_bytes(city),
        "x.csv.gz: line 1: the gzip data is damaged",
    ),
    "random bytes as zip": Hopeless(
        "x.zip", lambda city: b"PK\x03\x04" + _random_bytes(city), "x.zip: the zip file is damaged"
    ),
    "random bytes as json": Hopeless("x.json", _random_bytes, "x.json: line 1: is not UTF-8, as JSON is"),
    "csv called json": Hopeless("x.json", lambda city: _csv(*csv_lines(city)), "x.json: line 1: is not JSON"),
    "random bytes as parquet": Hopeless(
        "x.parquet", _random_bytes, "x.parquet: is not a whole Parquet file ("
    ),
    "unknown kind": Hopeless(
        "x.xlsx", lambda _: b"PK", "x.xlsx: is of no known kind; give files ending in .csv"
    ),
    "every line bad": Hopeless(
        "x.csv",
        lambda city: _csv(csv_lines(city)[0], *(with_field(s, COUNT, "?") for s in csv_lines(city)[1:4])),
        "x.csv: line 2 and 2 more, column Comptage horaire: '?' is not a count",
    ),
}


@pytest.mark.parametrize("case", HOPELESS)
def test_nothing_right_is_one_line(tmp_path: Path, city: pl.DataFrame, case: str) -> None:
    hopeless = HOPELESS[case]
    path = tmp_path / hopeless.name
    path.write_bytes(hopeless.data(city))
    with pytest.raises(PermanentError) as caught:
        ArchiveSource([path]).span()
    message = str(caught.value)
    assert message.startswith(hopeless.says)
    assert message.isprintable()
    assert ";" in message
    assert len(message) < 600


@pytest.mark.parametrize("case", HOPELESS)
def test_a_hopeless_file_does_not_hurt_the_others(tmp_path: Path, city: pl.DataFrame, case: str) -> None:
    hopeless = HOPELESS[case]
    (tmp_path / hopeless.name).write_bytes(hopeless.data(city))
    good = export_csv(city, tmp_path / "good.csv.gz")
    batch = read_all(tmp_path / hopeless.name, good)
    assert batch.counts.height == city.height
    assert batch.faults[0].line().startswith(hopeless.says)


def test_corrupt_parquet(tmp_path: Path, city: pl.DataFrame) -> None:
    path = export_parquet(city, tmp_path / "counts.parquet")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(PermanentError, match=r"^counts\.parquet: is not a whole Parquet file .*again$"):
        ArchiveSource([path]).span()


def test_parquet_without_time_zone(tmp_path: Path, city: pl.DataFrame) -> None:
    path = export_parquet(city, tmp_path / "counts.parquet")
    pl.read_parquet(path).with_columns(pl.col("date").dt.replace_time_zone(None)).write_parquet(path)
    with pytest.raises(PermanentError, match=r"record 1 and .* column date: .* has no offset from UTC"):
        ArchiveSource([path]).span()


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.md").write_text("nothing")
    with pytest.raises(PermanentError, match=r"^gone.csv: there is no such file or folder; check the path$"):
        ArchiveSource([tmp_path / "gone.csv"]).span()
    with pytest.raises(PermanentError, match=r"^folder: the folder holds no exports; put files .* into it$"):
        ArchiveSource([tmp_path / "folder"]).span()
    with pytest.raises(PermanentError, match=r"and 1 more problems?\)$"):
        ArchiveSource([tmp_path / "gone.csv", tmp_path / "folder"]).span()


def test_repeated_rows_are_kept_and_told(tmp_path: Path, city: pl.DataFrame) -> None:
    lines = csv_lines(city)
    path = write_lines([*lines, *lines[1:31]], tmp_path / "counts.csv")
    batch = read_all(path)
    assert batch.counts.height == city.height + 30
    assert batch.rejected.is_empty()
    assert [fault.line() for fault in batch.faults] == [
        f"counts.csv: line {len(lines) + 1} and 29 more: repeats an earlier row; "
        "nothing to do: repetitions are removed in cleaning (30 rows kept)"
    ]


def test_contradicting_rows_are_kept_and_told(tmp_path: Path, city: pl.DataFrame) -> None:
    lines = csv_lines(city)
    batch = read_all(write_lines([*lines, with_field(lines[1], COUNT, "7777")], tmp_path / "counts.csv"))
    assert batch.counts.height == city.height + 1
    (fault,) = batch.faults
    assert "different counts for the same counter and hour, 1 times" in fault.line()


def test_unreadable_extras_do_not_cost_the_row(tmp_path: Path, city: pl.DataFrame) -> None:
    lines = csv_lines(city)
    lines[7] = with_field(with_field(lines[7], 8, "north"), 6, "long ago")
    lines[8] = with_field(lines[8], 8, "248.8,2.3")
    batch = read_all(write_lines(lines, tmp_path / "counts.csv"))
    assert batch.counts.height == city.height
    assert batch.counts.get_column("latitude").null_count() == 2
    assert batch.counts.get_column("installation_date").null_count() == 1
    assert batch.rejected.is_empty()
    assert sorted(fault.line() for fault in batch.faults) == [
        "counts.csv: line 8, column Coordonnées géographiques: 'north' cannot be read and is left empty; "
        "correct the line or export again (2 rows kept)",
        "counts.csv: line 8, column Date d'installation du site de comptage: 'long ago' cannot be read "
        "and is left empty; correct the line or export again (1 row kept)",
    ]


def test_a_line_in_another_encoding(tmp_path: Path, city: pl.DataFrame) -> None:
    """UTF-8 by its header, one line pasted from Latin-1: that line goes, the accents of the others stay."""
    lines = [line.encode() for line in csv_lines(city)]
    lines[50] = with_field(lines[50].decode(), 1, "Hôtel de Ville").encode("latin-1")
    batch = read_all(write_bytes(b"\n".join(lines), tmp_path / "counts.csv"))
    assert batch.rejected.get_column("line").to_list() == [51]
    assert batch.faults[0].line().startswith("counts.csv: line 51: ")
    assert "is not UTF-8 as the file is" in batch.faults[0].line()
    names = set(batch.counts.get_column("counter_name"))
    assert names <= set(city.get_column("counter_name"))


def test_password_in_a_zip_is_a_fault(tmp_path: Path, city: pl.DataFrame) -> None:
    path = export_csv(city, tmp_path / "counts.zip")
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1  # the bit that says "encrypted"
    path.write_bytes(data)
    with pytest.raises(PermanentError, match=r"^counts\.zip: .*cannot be unpacked"):
        ArchiveSource([path]).span()


def test_quotes_in_odd_places(tmp_path: Path, city: pl.DataFrame) -> None:
    """Quotes that the fast reader refuses: the lines that make sense are kept, the other is named."""
    lines = csv_lines(city)
    lines[20] = with_field(lines[20], 1, '"8 bou"levard')
    lines[21] = with_field(lines[21], 1, 'a "quoted" name')
    batch = read_all(write_lines(lines, tmp_path / "counts.csv"))
    assert batch.rejected.get_column("line").to_list() == [21]
    assert batch.counts.height == city.height - 1
    assert "is not quoted as CSV is" in batch.faults[0].line()


def test_instants_that_no_calendar_has(tmp_path: Path, city: pl.DataFrame) -> None:
    path = export_parquet(city, tmp_path / "counts.parquet")
    at = pl.int_range(pl.len())
    numbers = pl.when(at == 5).then(2**62).otherwise(pl.col("date").to_physical())
    pl.read_parquet(path).with_columns(date=numbers.cast(pl.Datetime("ms", "UTC"))).write_parquet(path)
    batch = read_all(path)
    assert batch.rejected.row(0, named=True)["value"] == str(2**62)
    assert (
        batch.faults[0].line().startswith("counts.parquet: record 6, column date: '4611686018427387904' lies")
    )
    assert batch.counts.height == city.height - 1


WRITERS: dict[str, Callable[[pl.DataFrame, Path], Path]] = {
    "a.csv": export_csv,
    "b.csv": lambda city, path: export_csv(city, path, separator=",", encoding="cp1252"),
    "c.csv.gz": export_csv,
    "d.zip": export_csv,
    "e.json": export_json,
    "f.ndjson": lambda city, path: export_json(city, path, "lines"),
    "g.json.gz": lambda city, path: export_json(city, path, "v1"),
    "h.parquet": export_parquet,
}
SHARDS = (b'"', b";", b",", b"\n", b"\r", b"\0", b"{", b"}", b"]", b"\xff", b"null", b"1e999", b"9" * 400)


def broken(data: bytes, chance: random.Random) -> bytes:
    """The bytes with one to eight random injuries."""
    wounded = bytearray(data)
    for _ in range(chance.choice((1, 1, 3, 8))):
        at = chance.randrange(len(wounded) + 1)
        match chance.randrange(5):
            case 0:
                wounded[at : at + 1] = chance.randbytes(1)
            case 1:
                del wounded[at:]
            case 2:
                del wounded[at : at + chance.randrange(40)]
            case 3:
                wounded[at:at] = chance.choice(SHARDS)
            case 4:
                wounded[at : at + 8] = chance.randbytes(8)
    return bytes(wounded)


@pytest.mark.parametrize("name", WRITERS)
def test_random_injuries_never_end_in_a_traceback(tmp_path: Path, city: pl.DataFrame, name: str) -> None:
    path = WRITERS[name](city.head(100), tmp_path / name)
    whole = path.read_bytes()
    for seed in range(30):
        path.write_bytes(broken(whole, random.Random(seed)))
        try:
            batch = read_all(path)
            said = [fault.line() for fault in batch.faults]
        except PermanentError as error:
            said = [str(error)]
        assert all(line.isprintable() and len(line) < 700 for line in said)
