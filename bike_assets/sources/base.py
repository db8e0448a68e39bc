"""What every source of counts gives: rows of `RAW_COUNTS`, the rows it set aside, and its faults in words.

Belongs here: the types that sources and their readers share, and small questions any batch can answer. Does
not belong here: any source's format, and writing to the warehouse.
"""

from dataclasses import dataclass
from datetime import date
from typing import Protocol

import polars as pl

from bike_assets.core.contracts import RAW_COUNTS

ADDED_ON_WRITING = ("ingested_at", "content_hash")
"""Columns of `RAW_COUNTS` that a source cannot know."""

COUNTS_SCHEMA = pl.Schema(
    {name: dtype for name, dtype in RAW_COUNTS.polars_schema.items() if name not in ADDED_ON_WRITING}
)
"""Columns and types of `SourceBatch.counts`: `RAW_COUNTS` without what is added on writing."""

REJECTED_SCHEMA = pl.Schema(
    {"source_file": pl.String, "line": pl.Int64, "column": pl.String, "value": pl.String, "reason": pl.String}
)
"""Columns and types of `SourceBatch.rejected`. `line` is the line (text) or the record (Parquet), from 1."""

SORT_KEY = ("counter_id", "ts_utc", "published_until", "source_file", "hourly_count", "counter_name")
"""Row order of `SourceBatch.counts`; its last columns only matter where files repeat themselves."""

BUSY_SHARE = 0.1
"""A day on which fewer than this share of the counters reported is a stray day, not one of service."""


@dataclass(frozen=True)
class SourceFault:
    """Something wrong with the input, said so that a person can put it right.

    Attributes:
        file: name of the file or request.
        where: place in it ("line 1043, column Comptage horaire"); empty where the whole file is meant.
        problem: what is wrong.
        remedy: what to do about it.
        rows: how many rows it concerns; 0 where that is unknown or none.
        set_aside: whether these rows were left out of the counts; False where they were kept.
    """

    file: str
    where: str
    problem: str
    remedy: str
    rows: int = 0
    set_aside: bool = True

    def line(self) -> str:
        """The fault as one line of text."""
        place = f"{self.file}: {self.where}: " if self.where else f"{self.file}: "
        text = f"{place}{self.problem}; {self.remedy}"
        if self.rows:
            fate = "set aside" if self.set_aside else "kept"
            text += f" ({self.rows:,} {'row' if self.rows == 1 else 'rows'} {fate})"
        return " ".join(text.split())


@dataclass(frozen=True)
class SourceBatch:
    """What a source gave for a range of days.

    Attributes:
        counts: columns of `COUNTS_SCHEMA`, sorted by `SORT_KEY`. Nothing is deduplicated here.
        rejected: columns of `REJECTED_SCHEMA`, one row for each row that could not be read.
        faults: in words, a few lines even for many rejected rows.
        files: what `source_file` may say, where the source is a choice of files and others may have been read before;
            None where the batch is all that the source has of these days.
    """

    counts: pl.DataFrame
    rejected: pl.DataFrame
    faults: tuple[SourceFault, ...] = ()
    files: frozenset[str] | None = None


class CountsSource(Protocol):
    """Where counts come from. The same range always gives the same rows, however it is divided into reads."""

    @property
    def name(self) -> str:
        """What the column `source` says and users type after `--source`."""
        ...

    def span(self) -> tuple[date, date]:
        """First and last local day the source can give.

        Raises:
            PermanentError: the source has nothing readable.
        """
        ...

    def read(self, first: date, last: date) -> SourceBatch:
        """Rows whose `service_date` lies in [first, last].

        Raises:
            PermanentError: the source has nothing readable.
            TransientError: the source cannot be reached just now.
        """
        ...


def busy_span(counts: pl.DataFrame) -> tuple[date, date]:
    """First and last local day on which at least a tenth of the counters reported.

    Exports carry stray rows years from the rest; a window that is counted back from the newest day must not
    hang on one of them.

    Args:
        counts: at least one row; has `service_date` and `counter_id`.
    """
    threshold = BUSY_SHARE * counts.get_column("counter_id").n_unique()
    days = (
        counts.group_by("service_date")
        .agg(pl.col("counter_id").n_unique().alias("reporting"))
        .filter(pl.col("reporting") >= threshold)
        .get_column("service_date")
    )
    first, last = days.min(), days.max()
    if not isinstance(first, date) or not isinstance(last, date):
        days = counts.get_column("service_date")  # Every day is thin: none is stray.
        first, last = days.min(), days.max()
    if not isinstance(first, date) or not isinstance(last, date):
        raise ValueError("busy_span needs at least one row")
    return first, last
