"""`raw_weather`: what the weather was, and what it was expected to be."""

from datetime import date, datetime

import dagster as dg
import polars as pl

from bike_assets import clock, tags
from bike_assets.assets.ingestion import content_hashes, replace_changed
from bike_assets.assets.metadata import fault_list, table_metadata
from bike_assets.core.contracts import RAW_WEATHER
from bike_assets.partitions import window
from bike_assets.resources.source import WeatherSourceResource
from bike_assets.resources.warehouse import Warehouse
from bike_assets.sources.weather import WeatherBatch


def build_raw_weather(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """The asset on the given days."""

    @dg.asset(
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=tags.INGESTION,
        owners=[tags.DATA_TEAM],
        kinds={"polars", "duckdb"},
        pool=tags.WAREHOUSE_POOL,
        code_version="1",
    )
    def raw_weather(
        context: dg.AssetExecutionContext, weather: WeatherSourceResource, warehouse: Warehouse
    ) -> dg.MaterializeResult[None]:
        """Hourly weather: of a day, what was observed, and what that morning's forecast expected of its week.

        The forecast is the one known at 07:00 local of its day and is kept for good, so that training sees what a
        forecast of counts could have known. Observations come when they are published. Where there is no weather,
        the partition is empty and nothing fails.
        """
        first, last = window(context)
        batch = weather.read(first, last)
        for fault in batch.faults:
            context.log.warning(fault.line())
        rows, changed = store_weather(warehouse, batch, first, last, now=clock.now())
        return dg.MaterializeResult(
            metadata={
                **table_metadata(RAW_WEATHER, rows),
                "observed_hours": rows.filter(kind="observed").height,
                "forecasts": rows.filter(kind="forecast").get_column("service_date").n_unique(),
                "changed_partitions": len(changed),
                "faults": dg.MetadataValue.md(fault_list(fault.line() for fault in batch.faults)),
            }
        )

    return raw_weather


def store_weather(
    warehouse: Warehouse, batch: WeatherBatch, first: date, last: date, *, now: datetime
) -> tuple[pl.DataFrame, list[date]]:
    """Write a batch to `raw_weather`; nothing that is known is lost for the source not giving it again.

    Of two forecasts of one issue date the one issued last stays: what a source puts together afterwards does not
    replace what was fetched that morning. Observations are replaced by newer ones, day by day.

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
    known = warehouse.read(RAW_WEATHER, first, last)
    version = pl.col("issued_at").max().over("service_date", "kind")
    given = batch.rows.with_columns(version=version, is_given=pl.lit(True))
    kept = known.select(batch.rows.columns).with_columns(version=version, is_given=pl.lit(False))
    both = pl.concat([given, kept])
    newest = (
        # Observations given now are the newest ones, whatever they are dated.
        both.with_columns(rank=pl.when(kind="forecast").then("version").otherwise(None))
        .sort("rank", "is_given")
        .group_by("service_date", "kind")
        .agg(pl.col("is_given").last())
    )
    chosen = both.join(newest, on=["service_date", "kind", "is_given"]).select(batch.rows.columns)
    rows = chosen.sort("service_date", "kind", "ts_utc")
    hashes = content_hashes(rows)
    return replace_changed(warehouse, RAW_WEATHER, rows, hashes, first, last, now=now)
