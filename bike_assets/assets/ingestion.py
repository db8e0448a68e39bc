"""`raw_counts`: the rows of the source, as it gave them."""

import hashlib
from datetime import date, datetime, timedelta
from itertools import groupby
from typing import Final

import dagster as dg
import polars as pl

from bike_assets import clock, tags
from bike_assets.assets.dbt_models import FLAG_LOOKBACK_DAYS
from bike_assets.assets.metadata import fault_list, sample_table, table_metadata
from bike_assets.core.calendar import hours_of_day, local_columns
from bike_assets.core.contracts import CALENDAR_HOURS, RAW_COUNTS, TableContract
from bike_assets.core.errors import PermanentError
from bike_assets.partitions import window
from bike_assets.resources.source import CountsSourceResource
from bike_assets.resources.warehouse import Warehouse
from bike_assets.sources.base import COUNTS_SCHEMA, SORT_KEY, SourceBatch

CHANGED_FROM: Final = "changed_from"
"""Metadata of `raw_counts`: the first day whose content changed; absent where none did."""


def build_raw_counts(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """The asset on the given service days."""

    @dg.asset(
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=tags.INGESTION,
        owners=[tags.DATA_TEAM],
        kinds={"polars", "duckdb"},
        pool=tags.WAREHOUSE_POOL,
        code_version="1",
    )
    def raw_counts(
        context: dg.AssetExecutionContext, source: CountsSourceResource, warehouse: Warehouse
    ) -> dg.MaterializeResult[None]:
        """Hourly counts as the source published them, a partition a local day.

        Late corrections replace their partition; one whose content did not change is left as it was. What
        could not be read is set aside and shown, never dropped silently.
        """
        first, last = window(context)
        batch = source.read(first, last)
        for fault in batch.faults:
            context.log.warning(fault.line())
        rows, changed = store(warehouse, batch, first, last, now=clock.now())
        per_day = rows.height / ((last - first).days + 1)
        return dg.MaterializeResult(
            metadata={
                **table_metadata(RAW_COUNTS, rows),
                "rows_per_day": per_day,
                "counters": rows.get_column("counter_id").n_unique(),
                "changed_partitions": len(changed),
                **({CHANGED_FROM: min(changed).isoformat()} if changed else {}),
                "rows_set_aside": batch.rejected.height,
                "set_aside": sample_table(batch.rejected),
                "faults": dg.MetadataValue.md(fault_list(fault.line() for fault in batch.faults)),
            }
        )

    return raw_counts


def store(
    warehouse: Warehouse, batch: SourceBatch, first: date, last: date, *, now: datetime
) -> tuple[pl.DataFrame, list[date]]:
    """Write a batch to `raw_counts`, with the local calendar of its days beside it.

    What other exports and the other real source said of these days stays: the yearly archive and the live window
    meet here, in whatever order they come, and cleaning lets the later one stand.

    Args:
        warehouse: where to.
        batch: the source's rows of the days from `first` to `last`.
        first: first partition.
        last: last partition, included.
        now: what `ingested_at` says of partitions that are new or changed.

    Returns:
        The rows of the range as they stand now, and the days that changed.

    Raises:
        ContractError: the rows break the contract. Nothing is written.
    """
    warehouse.replace(CALENDAR_HOURS, calendar_hours(first, last), first, last)
    others = _of_others(warehouse, batch, first, last)
    counts = batch.counts
    if others.height:
        counts = pl.concat([others, counts]).sort(SORT_KEY, nulls_last=True)
    return replace_changed(warehouse, RAW_COUNTS, counts, content_hashes(counts), first, last, now=now)


def newer_days(warehouse: Warehouse, last: date) -> tuple[date, date] | None:
    """Days after `last` that hold counts and whose flags look back on it; None where there are none."""
    newest = warehouse.newest_day(RAW_COUNTS)
    if newest is None or newest <= last:
        return None
    return last + timedelta(days=1), min(newest, last + timedelta(days=FLAG_LOOKBACK_DAYS))


def _of_others(warehouse: Warehouse, batch: SourceBatch, first: date, last: date) -> pl.DataFrame:
    """Stored rows of the range that the batch says nothing about: of files it was not read from, of another source.

    A simulated city and a real one never stand beside each other.
    """
    none = pl.DataFrame(schema=COUNTS_SCHEMA)
    ours = batch.counts.get_column("source").unique().to_list()
    if "simulator" in ours or (not ours and batch.files is None) or not warehouse.exists(RAW_COUNTS):
        return none
    said = pl.col("source").is_in(ours)
    if batch.files is not None:
        said &= pl.col("source_file").is_in(list(batch.files))
    unsaid = ~said & (pl.col("source") != "simulator")
    stored = warehouse.query(
        f"SELECT DISTINCT source, source_file FROM {RAW_COUNTS.relation} WHERE service_date BETWEEN ? AND ?",  # noqa: S608
        [first, last],
    )
    if stored.filter(unsaid).is_empty():
        return none
    return warehouse.read(RAW_COUNTS, first, last, columns=COUNTS_SCHEMA.names(), order=False).filter(unsaid)


def replace_changed(
    warehouse: Warehouse,
    contract: TableContract,
    rows: pl.DataFrame,
    hashes: pl.DataFrame,
    first: date,
    last: date,
    *,
    now: datetime,
) -> tuple[pl.DataFrame, list[date]]:
    """Write the partitions of a range whose content is not what the table holds; the others are left as they are.

    Args:
        warehouse: where to.
        contract: the table; has `ingested_at` and `content_hash`.
        rows: all rows of the range, without these two columns.
        hashes: as `content_hashes` gives them.
        first: first partition.
        last: last partition, included.
        now: what `ingested_at` says of the partitions that are written.

    Returns:
        The rows of the range as they stand now, and the days that changed.

    Raises:
        ContractError: the rows break the contract. Nothing is written.
    """
    stamps = ["service_date", "content_hash", "ingested_at"]
    known = warehouse.read(contract, first, last, columns=stamps, order=False).unique()
    stamped = (
        rows.join(hashes, on="service_date", how="left")
        .join(known, on=["service_date", "content_hash"], how="left")
        .with_columns(pl.col("ingested_at").fill_null(pl.lit(now)))
    )
    before = dict(known.select("service_date", "content_hash").iter_rows())
    after = dict(hashes.iter_rows())
    runs = [
        list(run)
        for is_changed, run in groupby(
            sorted(before.keys() | after.keys()), key=lambda day: before.get(day) != after.get(day)
        )
        if is_changed
    ]
    if len(runs) > 1:  # A single run is checked when it is written; of several, none may be written in vain.
        contract.conform(stamped)
    for run in runs:
        written = stamped.filter(pl.col("service_date").is_between(run[0], run[-1]))
        warehouse.replace(contract, written, run[0], run[-1])
    return stamped, [day for run in runs for day in run]


def content_hashes(counts: pl.DataFrame) -> pl.DataFrame:
    """SHA-256 of each day's rows: columns `service_date`, `content_hash`. Row order is the source's own.

    `published_until` is left out: a live source dates every fetch anew, and what it says stays the same.
    """
    days = counts.drop("published_until", strict=False).partition_by(
        "service_date", as_dict=True, maintain_order=True
    )
    digests = {day: hashlib.sha256(rows.write_csv().encode()).hexdigest() for (day,), rows in days.items()}
    return pl.DataFrame(
        {"service_date": list(digests), "content_hash": list(digests.values())},
        schema={"service_date": pl.Date, "content_hash": pl.String},
    )


def calendar_hours(first: date, last: date) -> pl.DataFrame:
    """Every hour of the local days from `first` to `last`: 23, 24 or 25 rows a day, as CALENDAR_HOURS."""
    if last < first:
        raise PermanentError(f"{last} lies before {first}; give the earlier day first")
    days = [first + timedelta(days=offset) for offset in range((last - first).days + 1)]
    hours = [(day, hour) for day in days for hour in hours_of_day(day)]
    frame = pl.DataFrame(
        hours, schema={"service_date": pl.Date, "ts_utc": pl.Datetime("us", "UTC")}, orient="row"
    )
    return local_columns(frame).with_columns(is_repeated=pl.len().over("service_date", "local_hour") > 1)
