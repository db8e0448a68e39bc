"""`counter_health`: the state of every counter and day, and the incidents they add up to."""

from datetime import date, timedelta
from typing import Final

import dagster as dg
import polars as pl

from bike_assets import tags
from bike_assets.assets import plots
from bike_assets.assets.metadata import sample_table, table_metadata
from bike_assets.core.contracts import CLEANED_COUNTS, COUNTER_HEALTH, COUNTER_INCIDENTS
from bike_assets.core.health import HEALTH_COLUMNS, LOOKBACK_DAYS, State, counter_health, incidents
from bike_assets.partitions import window
from bike_assets.resources.warehouse import Warehouse

CHUNK_DAYS: Final = 180
"""Days judged at a time: with the days they look back on, 300 days of a city are under 200 MB."""

PLOT_DAYS: Final = 90

OPEN_INCIDENTS: Final = "incidents_now"
"""Metadata of `counter_health`: every incident that is open, however many, for the sensor that tells of them."""

LOOKS_BACK: Final = dg.TimeWindowPartitionMapping(
    start_offset=-LOOKBACK_DAYS, end_offset=0, allow_nonexistent_upstream_partitions=True
)


def build_counter_health(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """The asset `counter_health` on the given local days."""

    @dg.asset(
        name="counter_health",
        deps=[dg.AssetDep("cleaned_counts", partition_mapping=LOOKS_BACK)],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=tags.CLEANING,
        owners=[tags.DATA_TEAM],
        kinds={"polars", "duckdb"},
        pool=tags.WAREHOUSE_POOL,
        code_version="1",
    )
    def counter_health_asset(
        context: dg.AssetExecutionContext, warehouse: Warehouse
    ) -> dg.MaterializeResult[None]:
        """Alive, silent, dead, stuck or drifting: every counter and day, by what was known that evening.

        An incident is opened once and closed when the counter returns: table `monitoring_audit.counter_incidents`.
        """
        first, last = window(context)
        store_health(warehouse, first, last)
        before, now = store_incidents(warehouse)
        for line in news(before, now):
            context.log.warning(line)
        health = warehouse.read(COUNTER_HEALTH, last - timedelta(days=PLOT_DAYS - 1), last)
        today = health.filter(pl.col("service_date") == last)
        unhealthy = today.filter(pl.col("state") != State.ALIVE).sort("state", "counter_id")
        # The newest day of a range alone: metadata is stored once a partition.
        context.add_asset_metadata(
            {
                "not_alive": sample_table(
                    unhealthy.select("counter_id", "state", "reason", "change", "known_hours"), 50
                ),
                "states": dg.MetadataValue.md(plots.counter_states(health)),
                "open_incidents": sample_table(now.filter(pl.col("status") == "open"), 50),
            },
            partition_key=last.isoformat(),
        )
        return dg.MaterializeResult(
            metadata={
                **table_metadata(COUNTER_HEALTH, today.head(0)),
                "dagster/row_count": today.height,
                "incidents": now.height,
                OPEN_INCIDENTS: dg.MetadataValue.json(open_incidents(now)),
            }
        )

    return counter_health_asset


def store_health(warehouse: Warehouse, first: date, last: date) -> None:
    """Judge the days from first to last and put them in the place of what was said of them before."""
    start = first
    while start <= last:
        end = min(start + timedelta(days=CHUNK_DAYS - 1), last)
        counts = warehouse.read(
            CLEANED_COUNTS, start - timedelta(days=LOOKBACK_DAYS), end, columns=HEALTH_COLUMNS, order=False
        )
        warehouse.replace(COUNTER_HEALTH, counter_health(counts, start, end), start, end)
        start = end + timedelta(days=1)


def store_incidents(warehouse: Warehouse) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Derive the incidents of all days anew; those known before and those known now.

    An incident may be bridged or ended by a day that was corrected, so all of them are replaced.
    """
    before = warehouse.read(COUNTER_INCIDENTS)
    health = warehouse.read(COUNTER_HEALTH, columns=["service_date", "counter_id", "state", "reason"])
    now = incidents(health)
    days = pl.concat([before["service_date"], health["service_date"]])
    if days.len():
        oldest, newest = days.min(), days.max()
        assert isinstance(oldest, date)  # noqa: S101  for the type checker: the column is of days
        assert isinstance(newest, date)  # noqa: S101
        warehouse.replace(COUNTER_INCIDENTS, now, oldest, newest)
    return before, now


def open_incidents(now: pl.DataFrame) -> list[dict[str, str]]:
    """The incidents that are open, as JSON values."""
    lasting = now.filter(pl.col("status") == "open").sort("service_date", "counter_id")
    return lasting.select(
        "counter_id", "state", "reason", since=pl.col("service_date").cast(pl.String)
    ).to_dicts()


def news(before: pl.DataFrame, now: pl.DataFrame) -> list[str]:
    """A line for each incident that was opened or closed since: each is told once.

    Args:
        before: incidents as they were known.
        now: incidents as they are known.
    """
    key = ["service_date", "counter_id"]
    opened = now.join(before, on=key, how="anti").filter(pl.col("status") == "open")
    ended = now.filter(pl.col("status") != "open").join(
        before.filter(pl.col("status") == "open"), on=key, how="semi"
    )
    return [
        *(
            f"counter {row['counter_id']} is {row['state']} since {row['service_date']}: {row['reason']}"
            for row in opened.iter_rows(named=True)
        ),
        *(
            f"counter {row['counter_id']}: {row['state']} since {row['service_date']}, "
            + (f"alive again on {row['closed_on']}" if row["closed_on"] else "taken for removed")
            for row in ended.iter_rows(named=True)
        ),
    ]
