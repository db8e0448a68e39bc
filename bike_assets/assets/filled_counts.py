"""`filled_counts`: what likely passed in the hours that were not counted, for people and marts, never for forecasts."""

from datetime import timedelta
from typing import Final

import dagster as dg
import polars as pl

from bike_assets import tags
from bike_assets.assets.metadata import sample_table, table_metadata
from bike_assets.core.contracts import CLEANED_COUNTS, FILLED_COUNTS
from bike_assets.core.imputation import FILLING_COLUMNS, FUTURE_DAYS, PAST_DAYS, FillMethod, fill_gaps
from bike_assets.partitions import window
from bike_assets.resources.warehouse import Warehouse

CHUNK_DAYS: Final = 120
"""Days filled at a time."""

LOOKS_AROUND: Final = dg.TimeWindowPartitionMapping(
    start_offset=-PAST_DAYS, end_offset=FUTURE_DAYS, allow_nonexistent_upstream_partitions=True
)


def build_filled_counts(partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """The asset `filled_counts` on the given local days."""

    @dg.asset(
        deps=[dg.AssetDep("cleaned_counts", partition_mapping=LOOKS_AROUND)],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        group_name=tags.CLEANING,
        owners=[tags.DATA_TEAM],
        kinds={"polars", "duckdb"},
        pool=tags.WAREHOUSE_POOL,
        code_version="1",
    )
    def filled_counts(context: dg.AssetExecutionContext, warehouse: Warehouse) -> dg.MaterializeResult[None]:
        """Every hour, counted or estimated from the counter's own weeks and its neighbours, with the method named.

        An estimate gets better when the weeks after the gap are there: materialise the days again then. It knows the
        future, so nothing that forecasts, trains or scores reads this table.
        """
        first, last = window(context)
        methods: dict[str, int] = dict.fromkeys(FillMethod, 0)
        estimated = FILLED_COUNTS.empty()
        start = first
        while start <= last:
            end = min(start + timedelta(days=CHUNK_DAYS - 1), last)
            counts = warehouse.read(
                CLEANED_COUNTS,
                start - timedelta(days=PAST_DAYS),
                end + timedelta(days=FUTURE_DAYS),
                columns=FILLING_COLUMNS,
                order=False,
            )
            filled = fill_gaps(counts, start, end)
            warehouse.replace(FILLED_COUNTS, filled, start, end)
            for method, rows in filled.group_by("fill_method").len().iter_rows():
                methods[method] += rows
            estimated = filled.filter(pl.col("fill_method") != FillMethod.PUBLISHED)
            start = end + timedelta(days=1)
        return dg.MaterializeResult(
            metadata={
                **table_metadata(FILLED_COUNTS, estimated.head(0)),
                "dagster/row_count": sum(methods.values()),
                **{f"hours_{method}": rows for method, rows in methods.items()},
                "sample": sample_table(estimated),
            }
        )

    return filled_counts
