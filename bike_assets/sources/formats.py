"""The portal's export formats: CSV, JSON and Parquet taken apart into records with their positions.

Belongs here: encodings, separators, quoting, JSON containers, and the portal's two sets of column names. Does
not belong here: whether a value makes sense (see `export_rows`).

Every reader yields frames with `line` (Int64, from 1: the line of the unpacked text, or the record of a
Parquet file) and those of `FIELDS` that the export has, as text or as the file typed them. Frames are small,
so that a file of any size needs little memory.
"""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bike_assets.sources.containers import DamagedError, Export
from bike_assets.sources.export_log import ExportLog

FIELDS: Mapping[str, tuple[str, ...]] = {
    "counter_id": ("Identifiant du compteur", "id_compteur"),
    "counter_name": ("Nom du compteur", "nom_compteur"),
    "site_id": ("Identifiant du site de comptage", "id"),
    "site_name": ("Nom du site de comptage", "name"),
    "hourly_count": ("Comptage horaire", "sum_counts"),
    "timestamp": ("Date et heure de comptage", "date"),
    "installation_date": ("Date d'installation du site de comptage", "installation_date"),
    "coordinates": ("Coordonnées géographiques", "coordinates"),
}
"""Our name of each field, and what the CSV exports and the API call it."""

REQUIRED = ("counter_id", "hourly_count", "timestamp")

BLOCK_BYTES = 16 << 20
_BLOCK_RECORDS = 50_000
_CONTAINERS = ("results", "records", "features")
_EXPORT_AGAIN = "download or export it again"


def _plain_label(label: str) -> str:
    """A column label without accents, case, kind of apostrophe and surplus spaces."""
    decomposed = unicodedata.normalize("NFKD", label.replace("’", "'"))
    return " ".join("".join(c for c in decomposed if not unicodedata.combining(c)).casefold().split())


_FIELD_OF = {_plain_label(label): field for field, labels in FIELDS.items() for label in labels}


@dataclass(frozen=True)
class Records:
    """Some records of an export: the frame described above, and the label each field has in the file."""

    frame: pl.DataFrame
    labels: Mapping[str, str]


def read_records(export: Export, log: ExportLog) -> Iterator[Records]:
    """The records of an export. What cannot be read is noted in the log; nothing is raised for it."""
    match export.kind:
        case "csv":
            yield from _read_csv(export.chunks, log)
        case "json":
            yield from _read_json(export.chunks, log)
        case _:
            yield from _read_parquet(export.chunks, log)


def _labels(columns: Iterable[str], log: ExportLog) -> dict[str, str] | None:
    """Field to label, the first column winning; None, with a fault, where a required field has no column."""
    columns = list(columns)
    labels: dict[str, str] = {}
    for label in columns:
        if field := _FIELD_OF.get(_plain_label(label)):
            labels.setdefault(field, label)
    missing = [field for field in REQUIRED if field not in labels]
    if not missing:
        return labels
    found = ", ".join(columns[:12]) + (", …" if len(columns) > 12 else "")
    found = "".join(char if char.isprintable() else "�" for char in found)[:300]
    if len(missing) >= len(REQUIRED) - 1:
        log.fault(
            f"is a file of another data set (its columns are {found})", "give exports of the bicycle counts"
        )
    else:
        names = " and ".join(f"{FIELDS[field][0]} ({FIELDS[field][1]})" for field in missing)
        log.fault(f"column {names} is missing (found: {found})", "export again with all columns")
    return None


# ---- CSV


@dataclass(frozen=True)
class _Layout:
    """How the rows of one CSV file are written."""

    encoding: str | None  # None: nothing in the header tells, each block is tried as UTF-8 first
    separator: str
    columns: int
    positions: Mapping[str, int]
    labels: Mapping[str, str]


def _line_blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, some megabytes at a time, the last one ended; then the damage, if there is any."""
    pending = bytearray()
    damage = None
    try:
        for chunk in chunks:
            pending += chunk
            if len(pending) >= BLOCK_BYTES and (end := pending.rfind(b"\n") + 1):
                yield bytes(pending[:end])
                del pending[:end]
    except DamagedError as error:
        damage = error
        del pending[pending.rfind(b"\n") + 1 :]
    if pending:
        yield bytes(pending) if pending.endswith(b"\n") else bytes(pending + b"\n")
    if damage:
        raise damage


def _read_csv(chunks: Iterable[bytes], log: ExportLog) -> Iterator[Records]:
    layout: _Layout | None = None
    line = 1
    try:
        for block in _line_blocks(chunks):
            lines = block.count(b"\n")
            if layout is None:
                layout = _layout(block, log)
                if layout is None:
                    return
                header_end = block.index(b"\n") + 1
                block, line, lines = block[header_end:], line + 1, lines - 1
            frame = _csv_block(block, line, layout, log)
            line += lines
            if frame.height:
                yield Records(frame, layout.labels)
    except DamagedError as error:
        kept = "; the lines before it are kept" if line > 2 else ""
        log.fault(str(error), _EXPORT_AGAIN + kept, where=f"line {line}")
    else:
        if line == 1:
            log.fault("the file is empty", "export it again")
        elif line == 2:
            log.fault("has a header and no rows", "export it again")


def _layout(block: bytes, log: ExportLog) -> _Layout | None:
    """How a file is written, from its first line; None, with a fault, where that is not a header."""
    if block.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in block[:4096]:
        kind = "UTF-16" if block.startswith((b"\xff\xfe", b"\xfe\xff")) else "no text"
        log.fault(f"is {kind}, not UTF-8 or Latin-1", "export it again as UTF-8", where="line 1")
        return None
    header = block[: block.index(b"\n")].rstrip(b"\r")
    encoding: str | None = "utf-8" if header.startswith(b"\xef\xbb\xbf") else None
    header = header.removeprefix(b"\xef\xbb\xbf")
    try:
        text = header.decode("utf-8")
        encoding = encoding or (None if text.isascii() else "utf-8")
    except UnicodeDecodeError:
        encoding = encoding or "cp1252"
        text = header.decode(encoding, "replace")
    separator = max(";,\t", key=text.count)
    columns = [label.strip() for label in _fields(text, separator) or text.split(separator)]
    labels = _labels(columns, log)
    if labels is None:
        return None
    positions = {field: columns.index(label) for field, label in labels.items()}
    return _Layout(encoding, separator, len(columns), positions, labels)


def _csv_block(block: bytes, first_line: int, layout: _Layout, log: ExportLog) -> pl.DataFrame:
    """The records of some lines. Lines that are not records of this file are set aside."""
    block = block.replace(b"\r\n", b"\n")
    numbers = np.arange(first_line, first_line + block.count(b"\n"))
    block, numbers = _decoded(block, numbers, layout.encoding, log)
    block, numbers = _regular(block, numbers, layout, log)
    schema = {"line": pl.Int64} | dict.fromkeys(layout.positions, pl.String)
    if not block:
        return pl.DataFrame(schema=schema)
    names = [f"column {position}" for position in range(layout.columns)]
    for field, position in layout.positions.items():
        names[position] = field
    try:
        frame = (
            pl.scan_csv(
                io.BytesIO(block),
                has_header=False,
                separator=layout.separator,
                schema=dict.fromkeys(names, pl.String),
                truncate_ragged_lines=True,
            )
            .select(list(layout.positions))
            .collect()
        )
    except pl.exceptions.ComputeError:
        frame = pl.DataFrame()
    if frame.height != len(numbers):  # Quotes inside a field: see what is right line by line.
        return _line_by_line(block, numbers, layout, log).select(list(schema))
    return frame.with_columns(line=pl.Series(numbers, dtype=pl.Int64)).select(list(schema))


def _fields(text: str, separator: str) -> list[str] | None:
    """The fields of one line; None where its quoting makes no sense."""
    try:
        return next(csv.reader([text], delimiter=separator, strict=True), None)
    except csv.Error:
        return None


def _line_by_line(block: bytes, numbers: NDArray[np.int64], layout: _Layout, log: ExportLog) -> pl.DataFrame:
    """The records of a block of which some lines are quoted in a way the fast reader refuses."""
    texts = block.decode().removesuffix("\n").split("\n")
    rows = [_fields(text, layout.separator) for text in texts]
    good = [row is not None and len(row) == layout.columns for row in rows]
    bad = [i for i, is_good in enumerate(good) if not is_good]
    log.reject([int(numbers[i]) for i in bad], "", [texts[i] for i in bad], "is not quoted as CSV is")
    kept = [row for row, is_good in zip(rows, good, strict=True) if row is not None and is_good]
    columns = {field: [row[at] for row in kept] for field, at in layout.positions.items()}
    frame = pl.DataFrame(columns, schema=dict.fromkeys(layout.positions, pl.String))
    return frame.with_columns(line=pl.Series(numbers[np.array(good)], dtype=pl.Int64))


def _decoded(
    block: bytes, numbers: NDArray[np.int64], encoding: str | None, log: ExportLog
) -> tuple[bytes, NDArray[np.int64]]:
    """The block in UTF-8, without the lines that are not in the file's encoding."""
    if encoding != "cp1252":
        try:
            block.decode("utf-8")
        except UnicodeDecodeError:
            encoding = encoding or "cp1252"
        else:
            return block, numbers
    try:
        return block.decode(encoding).encode(), numbers
    except UnicodeDecodeError:
        pass
    good, kept, bad = [], [], []
    for number, line in zip(numbers.tolist(), block.split(b"\n"), strict=False):
        try:
            good.append(line.decode(encoding))
            kept.append(number)
        except UnicodeDecodeError:
            bad.append((number, line.decode(encoding, "replace")))
    name = "UTF-8" if encoding == "utf-8" else "Latin-1"
    log.reject([number for number, _ in bad], "", [text for _, text in bad], f"is not {name} as the file is")
    return "".join(f"{line}\n" for line in good).encode(), np.array(kept, dtype=np.int64)


def _regular(
    block: bytes, numbers: NDArray[np.int64], layout: _Layout, log: ExportLog
) -> tuple[bytes, NDArray[np.int64]]:
    """The lines with as many fields as the header has. A record is one line: the portal breaks none."""
    block, numbers = _without(
        block,
        numbers,
        lambda data, ends: _per_line(data == ord('"'), ends) % 2 == 1,
        "opens a quotation and does not close it",
        log,
    )

    def ragged(data: NDArray[np.uint8], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
        separators = data == ord(layout.separator)
        quotes = data == ord('"')
        if quotes.any():
            separators &= ~np.bitwise_xor.accumulate(quotes)
        wrong: NDArray[np.bool_] = _per_line(separators, ends) != layout.columns - 1
        return wrong

    return _without(block, numbers, ragged, f"does not have the {layout.columns} columns of the header", log)


def _per_line(marks: NDArray[np.bool_], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many marks each line has."""
    return np.diff(np.searchsorted(np.flatnonzero(marks), ends), prepend=0)


def _without(
    block: bytes,
    numbers: NDArray[np.int64],
    is_bad: Any,
    reason: str,
    log: ExportLog,
) -> tuple[bytes, NDArray[np.int64]]:
    """The block without its bad lines, which are set aside; blank ones go silently."""
    data = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    bad = is_bad(data, ends)
    if not bad.any():
        return block, numbers
    starts = np.concatenate(([0], ends[:-1] + 1))
    texts = [block[starts[i] : ends[i]].decode() for i in np.flatnonzero(bad)]
    told = [
        (int(numbers[i]), text) for i, text in zip(np.flatnonzero(bad), texts, strict=True) if text.strip()
    ]
    log.reject([number for number, _ in told], "", [text for _, text in told], reason)
    keep = np.repeat(~bad, ends - starts + 1)
    return data[keep].tobytes(), numbers[~bad]


# ---- JSON


def _read_json(chunks: Iterable[bytes], log: ExportLog) -> Iterator[Records]:
    data, damage = _gathered(chunks)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if not damage or error.end < len(data) - 4:
            line = data.count(b"\n", 0, error.start) + 1
            log.fault("is not UTF-8, as JSON is", "export it again as UTF-8", where=f"line {line}")
            return
        text = data[: error.start].decode("utf-8-sig")
    if not text.strip():
        log.fault("the file is empty", "export it again")
        return
    if text.lstrip()[0] not in "[{":
        log.fault("is not JSON", _EXPORT_AGAIN, where="line 1")
        return
    labels: dict[str, str] | None = None
    batch: list[tuple[int, dict[str, Any]]] = []
    some = False
    for item in _json_records(text, bool(damage), log):
        some = True
        batch.append(item)
        if len(batch) == _BLOCK_RECORDS:
            labels = labels or _labels(dict.fromkeys(key for _, record in batch for key in record), log)
            if labels is None:
                return
            yield _json_block(batch, labels)
            batch = []
    if batch:
        labels = labels or _labels(dict.fromkeys(key for _, record in batch for key in record), log)
        if labels is None:
            return
        yield _json_block(batch, labels)
    if damage:
        line = text.count("\n") + 1
        log.fault(str(damage), f"{_EXPORT_AGAIN}; the records before it are kept", where=f"line {line}")
    elif not some and not log.faults:
        log.fault("has no records", "export it again")


def _gathered(chunks: Iterable[bytes]) -> tuple[bytes, DamagedError | None]:
    data = bytearray()
    try:
        for chunk in chunks:
            data += chunk
    except DamagedError as error:
        return bytes(data), error
    return bytes(data), None


_BLANK = re.compile(r"[\s,]*")
_NEXT_RECORD = re.compile(r"\}\s*,?\s*(?=\{)")


def _json_records(text: str, cut_off: bool, log: ExportLog) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and fields of each record, decoded one by one so that a cut or a slip costs one record only."""
    decoder = json.JSONDecoder()
    start = _container_start(text, decoder)
    in_array = start is not None
    position, line, counted = start or 0, 1, 0
    while True:
        blank = _BLANK.match(text, position)
        position = blank.end() if blank else position
        line, counted = line + text.count("\n", counted, position), position
        if position >= len(text):
            if in_array and not cut_off:
                log.fault("the list of records does not end", _EXPORT_AGAIN, where=f"line {line}")
            return
        if in_array and text[position] == "]":
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            following = _NEXT_RECORD.search(text, position)
            if cut_off and following is None:
                return
            end = text.find("\n", position)
            log.reject([line], "", [text[position : end if end > 0 else None]], "is not valid JSON")
            if following is None:
                return
            position = following.end()
            continue
        for record in _unwrapped(value):
            if isinstance(record, dict):
                yield line, record
            else:
                log.reject([line], "", [json.dumps(record, ensure_ascii=False)], "is not a record")


def _container_start(text: str, decoder: json.JSONDecoder) -> int | None:
    """Where the first record of a list of records begins; None where records simply follow one another."""
    position = len(text) - len(text.lstrip())
    if text[position] == "[":
        return position + 1
    position += 1
    blank = re.compile(r"\s*")
    try:
        while True:
            position = _after(blank, text, position)
            key, position = decoder.raw_decode(text, position)
            position = _after(blank, text, position) + 1
            position = _after(blank, text, position)
            if key in _CONTAINERS and text[position] == "[":
                return position + 1
            _, position = decoder.raw_decode(text, position)
            position = _after(blank, text, position)
            if text[position] != ",":
                return None
            position += 1
    except (json.JSONDecodeError, IndexError):
        return None


def _after(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position


def _unwrapped(value: Any) -> list[Any]:
    """The records in one JSON value: pages, API v1 records and GeoJSON features give what they hold."""
    if not isinstance(value, dict):
        return [value]
    for container in _CONTAINERS:
        if isinstance(value.get(container), list):
            return [record for item in value[container] for record in _unwrapped(item)]
    for holder in ("fields", "properties"):
        if isinstance(value.get(holder), dict):
            fields = value[holder]
            return [fields if "coordinates" in fields else fields | {"coordinates": value.get("geometry")}]
    return [value]


def _json_block(batch: list[tuple[int, dict[str, Any]]], labels: Mapping[str, str]) -> Records:
    columns: dict[str, list[Any]] = {"line": [line for line, _ in batch]}
    for field, label in labels.items():
        values = (record.get(label) for _, record in batch)
        if field == "coordinates":
            columns[field] = [_place_text(value) for value in values]
        else:
            columns[field] = [None if value is None else str(value) for value in values]
    schema = {"line": pl.Int64} | dict.fromkeys(labels, pl.String)
    return Records(pl.DataFrame(columns, schema=schema), labels)


def _place_text(value: Any) -> str | None:
    """A position as the CSV exports write it, "latitude,longitude"."""
    match value:
        case None:
            return None
        case {"lon": lon, "lat": lat}:
            return f"{lat},{lon}"
        case {"coordinates": [lon, lat, *_]}:  # GeoJSON has the longitude first
            return f"{lat},{lon}"
        case [lat, lon]:
            return f"{lat},{lon}"
    return str(value)


# ---- Parquet


def _read_parquet(chunks: Iterable[bytes], log: ExportLog) -> Iterator[Records]:
    log.unit = "record"
    data, damage = _gathered(chunks)
    if damage:
        log.fault(str(damage), _EXPORT_AGAIN)
        return
    try:
        labels = _labels(pl.read_parquet_schema(io.BytesIO(data)), log)
        if labels is None:
            return
        frame = pl.read_parquet(io.BytesIO(data), columns=list(labels.values()))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = str(error).splitlines()[0]
        log.fault(f"is not a whole Parquet file ({reason})", _EXPORT_AGAIN)
        return
    if not frame.height:
        log.fault("has a header and no rows", "export it again")
        return
    frame = frame.rename({label: field for field, label in labels.items()})
    yield Records(frame.with_row_index("line", offset=1).with_columns(pl.col("line").cast(pl.Int64)), labels)
