"""From the portal's fields to typed rows: what a value of each field must look like.

Belongs here: the rules for one field of one record. Does not belong here: how records are found in a file
(`formats`), and what a value means beside others (outages and spikes are flagged downstream).

Rules for what is strictly required, everything else of a row being kept as null where it is unreadable:

- the counter's id is not empty;
- the hour is ISO 8601 with an offset from UTC, and the start of an hour between 2000 and 2100. A time without
  offset is refused rather than guessed: on the wall clock one hour of autumn means two;
- the count is a whole number ≥ 0, or nothing (`null` and `nan` too), which stays null.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import polars as pl

from bike_assets.core.contracts import UTC_TIMESTAMP
from bike_assets.sources.export_log import CORRECT_OR_EXPORT_AGAIN, ExportLog
from bike_assets.sources.formats import Records

ROWS_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "line": pl.Int64,
    "counter_id": pl.Categorical(),
    "counter_name": pl.Categorical(),
    "site_id": pl.Categorical(),
    "site_name": pl.Categorical(),
    "ts_utc": UTC_TIMESTAMP,
    "hourly_count": pl.Float64,
    "latitude": pl.Float64,
    "longitude": pl.Float64,
    "installation_date": pl.Date,
}
"""Columns and types of `typed_rows`. Names repeat a million times: categories keep them small."""

_EARLIEST, _LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
_OUTSIDE = "lies outside the years 2000 to 2099"
_EXTENDED_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]|$)")
_NOTHING = ("", "null", "none", "nan", "na")
_PLACE = pl.Struct({"latitude": pl.Float64, "longitude": pl.Float64})


def typed_rows(records: Records, log: ExportLog) -> pl.DataFrame:
    """The records that keep the rules above, columns of `ROWS_SCHEMA`; the others go to the log."""
    raw, labels = records.frame, records.labels
    text = {field: _text(raw, field) for field in ("counter_id", "counter_name", "site_id", "site_name")}
    hours, hour_faults = _hours(raw.get_column("timestamp"))
    counts, count_faults = _counts(raw.get_column("hourly_count"))
    id_faults = (
        text["counter_id"]
        .is_null()
        .replace_strict([True, False], ["is not the id of a counter", None], return_dtype=pl.String)
    )
    good = pl.Series([True]).new_from_index(0, raw.height)
    for field, faults in (
        ("counter_id", id_faults),
        ("timestamp", hour_faults),
        ("hourly_count", count_faults),
    ):
        if faults.null_count() == raw.height:
            continue
        _reject(raw.filter(good), faults.filter(good), field, labels, log)
        good &= faults.is_null()
    places = _optional(raw, "coordinates", _PLACE, _place, good, labels, log)
    rows = pl.DataFrame(
        {
            "line": raw.get_column("line"),
            **text,
            "ts_utc": hours,
            "hourly_count": counts,
            "latitude": places.struct.field("latitude"),
            "longitude": places.struct.field("longitude"),
            "installation_date": _optional(raw, "installation_date", pl.Date(), _day, good, labels, log),
        }
    )
    return rows.filter(good).select(pl.col(name).cast(dtype) for name, dtype in ROWS_SCHEMA.items())


def _reject(
    raw: pl.DataFrame, faults: pl.Series, field: str, labels: Mapping[str, str], log: ExportLog
) -> None:
    values = _shown(raw.get_column(field))
    for reason in faults.unique(maintain_order=True).drop_nulls():
        bad = (faults == reason).fill_null(False)
        log.reject(raw.get_column("line").filter(bad), labels[field], values.filter(bad), reason)


def _text(raw: pl.DataFrame, field: str) -> pl.Series:
    """A text field, stripped, null where it is absent or empty."""
    if field not in raw.columns:
        return pl.Series(field, [None], dtype=pl.String).new_from_index(0, raw.height)
    text = raw.get_column(field).cast(pl.String, strict=False).str.strip_chars()
    return text.set(text == "", None)


def _mapped(text: pl.Series, parse: Callable[[str], Any], dtype: pl.DataType) -> pl.Series:
    """Each text parsed; few texts repeat a million times, so each is parsed once."""
    keys = text.unique().drop_nulls()
    if keys.is_empty():
        return pl.Series(text.name, [None], dtype=dtype).new_from_index(0, len(text))
    values = pl.Series([parse(key) for key in keys], dtype=dtype)
    return text.replace_strict(keys, values, default=None, return_dtype=dtype)


def _hours(raw: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Hours in UTC, and what is wrong with each value (null: nothing)."""
    if isinstance(raw.dtype, pl.Datetime) and raw.dtype.time_zone is not None:
        outside = raw.is_not_null() & ~_in_range(raw)
        instants = raw.set(outside, None).dt.convert_time_zone("UTC").cast(UTC_TIMESTAMP)
        keys = instants.unique()
        key_faults = pl.Series([_hour_fault(instant) for instant in keys], dtype=pl.String)
        faults = instants.replace_strict(keys, key_faults, return_dtype=pl.String)
        return instants, faults.set(outside, _OUTSIDE)
    if isinstance(raw.dtype, pl.Datetime):
        raw = _shown(raw)
    text = raw.cast(pl.String, strict=False).str.strip_chars().fill_null("")
    keys = text.unique()
    moments = [_moment(key) for key in keys]
    told = [_hour_fault(moment) for moment in moments]
    hours = [
        moment.astimezone(UTC) if moment and fault is None else None
        for moment, fault in zip(moments, told, strict=True)
    ]
    return (
        text.replace_strict(keys, pl.Series(hours, dtype=UTC_TIMESTAMP), return_dtype=UTC_TIMESTAMP),
        text.replace_strict(keys, pl.Series(told, dtype=pl.String), return_dtype=pl.String),
    )


def _in_range(instants: pl.Series) -> pl.Series:
    """Whether each instant lies in the years we take; checked on the numbers, as others have no date at all."""
    per_second = {"ms": 10**3, "us": 10**6, "ns": 10**9}[instants.dtype.time_unit]  # type: ignore[attr-defined]
    first, end = (int(edge.timestamp()) * per_second for edge in (_EARLIEST, _LATEST))
    return instants.to_physical().is_between(first, end - 1)


def _shown(values: pl.Series) -> pl.Series:
    """Values as text; instants no calendar has are shown as numbers."""
    if isinstance(values.dtype, pl.Datetime):
        inside = _in_range(values).fill_null(False)
        numbers = values.to_physical().cast(pl.String)
        return values.set(~inside, None).dt.to_string("iso:strict").fill_null(numbers)
    return values.cast(pl.String, strict=False)


def _moment(text: str) -> datetime | None:
    if not _EXTENDED_ISO.match(text):  # Python also takes any other character between day and hour.
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _hour_fault(moment: datetime | None) -> str | None:
    if moment is None:
        return "is not a date with time"
    if moment.tzinfo is None:
        return "has no offset from UTC, and local time alone is ambiguous"
    if not _EARLIEST <= moment < _LATEST:
        return _OUTSIDE
    if moment.minute or moment.second or moment.microsecond:
        return "is not the start of an hour"
    return None


def _counts(raw: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Counts, and what is wrong with each value (null: nothing)."""
    if raw.dtype.is_numeric():
        counts = raw.cast(pl.Float64).fill_nan(None)
        unreadable = pl.Series([False]).new_from_index(0, len(raw))
    else:
        text = raw.cast(pl.String, strict=False).str.strip_chars()
        counts = text.cast(pl.Float64, strict=False).fill_nan(None)
        absent = text.is_null() | text.str.to_lowercase().is_in(_NOTHING)
        unreadable = counts.is_null() & ~absent
    faults = pl.DataFrame({"count": counts, "unreadable": unreadable}).select(
        pl.when("unreadable")
        .then(pl.lit("is not a count"))
        .when(pl.col("count") < 0)
        .then(pl.lit("is negative"))
        .when(pl.col("count").is_infinite())
        .then(pl.lit("is not a count"))
        .when(pl.col("count") != pl.col("count").floor())
        .then(pl.lit("is not a whole number"))
    )
    return counts, faults.to_series()


def _optional(
    raw: pl.DataFrame,
    field: str,
    dtype: pl.DataType,
    parse: Callable[[str], Any],
    good: pl.Series,
    labels: Mapping[str, str],
    log: ExportLog,
) -> pl.Series:
    """A field a row can do without: null where it is absent, and where it is unreadable, which is told."""
    if field not in raw.columns:
        return pl.Series(field, [None], dtype=dtype).new_from_index(0, raw.height)
    values = raw.get_column(field)
    if values.dtype == pl.Date:
        return values.set(~values.is_between(date(1900, 1, 1), date(2099, 12, 31)), None)
    text = _optional_text(values)
    text = text.set(text.str.to_lowercase().is_in(_NOTHING).fill_null(False), None)
    parsed = _mapped(text, parse, dtype)
    bad = text.is_not_null() & parsed.is_null() & good
    if bad.any():
        first = raw.filter(bad).row(0, named=True)
        log.fault(
            f"'{text.filter(bad)[0]}' cannot be read and is left empty",
            CORRECT_OR_EXPORT_AGAIN,
            where=f"{log.unit} {first['line']}, column {labels[field]}",
            rows=int(bad.sum()),
            set_aside=False,
        )
    return parsed


def _optional_text(values: pl.Series) -> pl.Series:
    """The text of a value; of a position of any shape, "latitude,longitude"."""
    dtype = values.dtype
    if isinstance(dtype, pl.Struct) and {"lon", "lat"} <= {field.name for field in dtype.fields}:
        frame = values.struct.unnest()
        return frame.select(pl.concat_str(pl.col("lat", "lon").cast(pl.String), separator=",")).to_series()
    if isinstance(dtype, pl.List | pl.Array):
        return values.cast(pl.List(pl.String)).list.join(",")
    if isinstance(dtype, pl.Struct | pl.Binary):
        return pl.Series(values.name, [str(dtype)]).new_from_index(0, len(values))
    return values.cast(pl.String, strict=False).str.strip_chars()


def _place(text: str) -> dict[str, float] | None:
    try:
        latitude, longitude = (float(part) for part in text.strip("[]() ").split(","))
    except ValueError:
        return None
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        return None
    return {"latitude": latitude, "longitude": longitude}


def _day(text: str) -> date | None:
    try:
        return datetime.fromisoformat(text).date()
    except ValueError:
        return None
