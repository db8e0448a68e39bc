"""Exports of the portal on disk as a source: any mixture of files and folders, in any order.

Belongs here: putting the rows of several exports together. Does not belong here: formats (`formats`), what a
value must look like (`export_rows`), and deduplication, which is cleaning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import polars as pl

from bike_assets.core.calendar import local_columns
from bike_assets.core.contracts import UTC_TIMESTAMP
from bike_assets.core.errors import PermanentError
from bike_assets.sources.base import (
    COUNTS_SCHEMA,
    REJECTED_SCHEMA,
    SORT_KEY,
    SourceBatch,
    SourceFault,
    busy_span,
)
from bike_assets.sources.containers import Export, find_files, open_exports
from bike_assets.sources.export_log import ExportLog
from bike_assets.sources.export_rows import ROWS_SCHEMA, typed_rows
from bike_assets.sources.formats import read_records


@dataclass(frozen=True)
class ArchiveSource:
    """Exports as a `CountsSource`; read once, on first use.

    `published_until` of a row is the newest hour of its file on a day when at least a tenth of the file's
    counters reported, so that one stray row in the future does not make an old export the newest.
    `source_file` is the file's name without its folder (`export.zip/member.csv` in a zip of several).
    Rejected rows and faults are about files, not days: every `read` gives all of them.

    Attributes:
        paths: files and folders; folders are searched to their end.
    """

    name: ClassVar[str] = "archive"

    paths: Sequence[Path]

    def span(self) -> tuple[date, date]:
        """First and last local day with any row, stray ones included (see `busy_span` for the others).

        Raises:
            PermanentError: no file has a single right row.
        """
        days = self._everything.counts.get_column("service_date")
        first, last = days.min(), days.max()
        if not isinstance(first, date) or not isinstance(last, date):
            raise PermanentError("archive: there are no rows; give exports of the bicycle counts")
        return first, last

    def read(self, first: date, last: date) -> SourceBatch:
        """Rows whose `service_date` lies in [first, last], and everything that is wrong with the files.

        Raises:
            PermanentError: no file has a single right row.
        """
        everything = self._everything
        counts = everything.counts.filter(pl.col("service_date").is_between(first, last))
        return SourceBatch(
            counts.cast(dict(COUNTS_SCHEMA.items())), everything.rejected, everything.faults, everything.files
        )

    @cached_property
    def _everything(self) -> SourceBatch:
        if not self.paths:
            raise PermanentError("archive: no files are given; name files or folders of exports (--data)")
        files, faults = find_files([Path(path) for path in self.paths])
        frames: list[pl.DataFrame] = []
        rejected = [pl.DataFrame(schema=REJECTED_SCHEMA)]
        for path in files:
            for export in open_exports(path):
                if isinstance(export, SourceFault):
                    faults.append(export)
                    continue
                log = ExportLog(export.file)
                rows = _export_rows(export, log)
                if rows is not None:
                    frames.append(rows)
                rejected.append(log.rejected)
                faults.extend(log.faults)
        if not frames:
            more = f" (and {len(faults) - 1:,} more problems)" if len(faults) > 1 else ""
            raise PermanentError(f"{faults[0].line()}{more}" if faults else "archive: there are no exports")
        counts = pl.concat(frames)
        frames.clear()
        counts = counts.sort(SORT_KEY, nulls_last=True)
        return SourceBatch(
            counts,
            pl.concat(rejected).sort("source_file", "line", "column"),
            tuple(faults),
            frozenset(counts.get_column("source_file").cast(pl.String).unique()),
        )


def _export_rows(export: Export, log: ExportLog) -> pl.DataFrame | None:
    """The rows of one export in the order of `COUNTS_SCHEMA`, names as categories; None where it has none."""
    parts = [typed_rows(records, log) for records in read_records(export, log)]
    rows = pl.concat(parts) if parts else pl.DataFrame(schema=ROWS_SCHEMA)
    if not rows.height:
        if not log.faults:
            log.fault("has no rows", "export it again")
        return None
    _note_repetitions(rows, log)
    rows = local_columns(rows)
    first, last = busy_span(rows)
    _note_strays(rows, first, last, log)
    published_until = rows.filter(pl.col("service_date") <= last).get_column("ts_utc").max()
    if not isinstance(published_until, datetime):
        raise AssertionError("a file with rows has a newest hour")
    return rows.with_columns(
        source=pl.lit(ArchiveSource.name, dtype=pl.Categorical),
        source_file=pl.lit(export.file, dtype=pl.Categorical),
        published_until=pl.lit(published_until, dtype=UTC_TIMESTAMP),
        is_stray=~pl.col("service_date").is_between(first, last),
    ).select(COUNTS_SCHEMA.names())


def _note_repetitions(rows: pl.DataFrame, log: ExportLog) -> None:
    if rows.select("counter_id", "ts_utc").n_unique() == rows.height:
        return
    content = [name for name in rows.columns if name != "line"]
    if repeated := rows.height - rows.select(content).n_unique():
        line = rows.filter(~pl.struct(content).is_first_distinct()).get_column("line").sort()[0]
        log.fault(
            "repeats an earlier row",
            "nothing to do: repetitions are removed in cleaning",
            where=f"{log.unit} {line}" + (f" and {repeated - 1:,} more" if repeated > 1 else ""),
            rows=repeated,
            set_aside=False,
        )
    values = rows.select("counter_id", "ts_utc", "hourly_count").unique()
    if conflicts := values.height - values.select("counter_id", "ts_utc").n_unique():
        log.fault(
            f"has different counts for the same counter and hour, {conflicts:,} times",
            "check the export; cleaning keeps one of them",
        )


def _note_strays(rows: pl.DataFrame, first: date, last: date, log: ExportLog) -> None:
    strays = rows.filter(~pl.col("service_date").is_between(first, last))
    if strays.height:
        days = strays.get_column("service_date").sort()
        log.fault(
            f"stray rows on days when hardly any counter reported ({days[0]} to {days[-1]}; "
            f"the others are from {first} to {last})",
            "nothing to do, unless the dates are wrong: cleaning puts them into quarantine",
            rows=strays.height,
            set_aside=False,
        )
