"""A source as it stood on a morning of the past, for replays: what was published later is not there yet.

Belongs here: which rows were known when. Does not belong here: the clock, which a replay sets (`bike_assets.replay`).

A city publishes a day the morning after. An export says only when it was written, often months later, so the earliest
version of an hour counts as published with its day; a version that differs, of a later export or correction, counts
from the morning after it was published. Two exports written at the same hour cannot be told apart: both are early.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Final

import polars as pl

from bike_assets.core.calendar import LOCAL_TZ
from bike_assets.sources.base import COUNTS_SCHEMA, REJECTED_SCHEMA, SORT_KEY, SourceBatch
from bike_assets.sources.weather import WeatherBatch

_KNOWN_FROM: Final = "known_from"


@dataclass(frozen=True)
class History:
    """Everything a source ever gave, asked as of a morning.

    Attributes:
        rows: columns of `COUNTS_SCHEMA` and `known_from`, the days one after the other.
        places: first row and number of rows of each local day.
        files: see `SourceBatch.files`.
    """

    rows: pl.DataFrame
    places: Mapping[date, tuple[int, int]]
    files: frozenset[str] | None = None

    @classmethod
    def of(cls, batch: SourceBatch) -> "History":
        """The history in a batch of a source."""
        rows = with_mornings(batch.counts).sort("service_date", *SORT_KEY, nulls_last=True)
        spans = (
            rows.with_row_index("row")
            .group_by("service_date", maintain_order=True)
            .agg(start=pl.col("row").first(), rows=pl.len())
        )
        return cls(rows, {day: (start, length) for day, start, length in spans.iter_rows()}, batch.files)

    def span(self) -> tuple[date, date]:
        """First and last local day with a row."""
        return min(self.places), max(self.places)

    def read(self, first: date, last: date, *, morning: date) -> SourceBatch:
        """Rows of the local days from `first` to `last` that were known on a morning, in the source's order."""
        parts = [self.rows.slice(*place) for day, place in self.places.items() if first <= day <= last]
        rows = pl.concat([self.rows.head(0), *parts]).filter(pl.col(_KNOWN_FROM) <= morning)
        counts = rows.select(COUNTS_SCHEMA.names()).sort(SORT_KEY, nulls_last=True)
        nothing = pl.DataFrame(schema=REJECTED_SCHEMA)
        return SourceBatch(counts.cast(dict(COUNTS_SCHEMA.items())), nothing, files=self.files)


def with_mornings(counts: pl.DataFrame) -> pl.DataFrame:
    """Counts with the morning from which each row was known, and no `published_until` later than that.

    Args:
        counts: columns of `COUNTS_SCHEMA`.

    Returns:
        The same rows with `known_from` (Date). Of an hour's earliest version, `published_until` is the last hour of
        its own local day at most, as if the portal's daily publication had brought it.
    """
    published = pl.col("published_until")
    day_end = (
        pl.col("service_date").dt.offset_by("1d").cast(pl.Datetime("us")).dt.replace_time_zone(LOCAL_TZ)
    ).dt.convert_time_zone("UTC") - timedelta(hours=1)
    earliest = published.min().over("counter_id", "ts_utc")
    return counts.with_columns(
        published_until=pl.when(published == earliest)
        .then(pl.min_horizontal(published, day_end))
        .otherwise(published),
        known_from=pl.when(published == earliest)
        .then(pl.col("service_date"))
        .otherwise(published.dt.convert_time_zone(LOCAL_TZ).dt.date())
        .dt.offset_by("1d"),
    )


def weather_on(batch: WeatherBatch, morning: date) -> WeatherBatch:
    """The weather of a batch as known on a morning: nothing observed that day or later, no later forecast."""
    day = pl.col("service_date")
    known = pl.when(pl.col("kind") == "observed").then(day < morning).otherwise(day <= morning)
    return replace(batch, rows=batch.rows.filter(known))
