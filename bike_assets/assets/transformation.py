"""The dbt models as assets: cleaning a partition a day, everything else whole."""

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import dagster as dg
import polars as pl
from dagster_dbt import (
    DagsterDbtTranslator,
    DagsterDbtTranslatorSettings,
    DbtProject,
    dbt_assets,
)

from bike_assets import tags
from bike_assets.assets import plots
from bike_assets.assets.dbt_models import ACCURACY_MODELS, CLEANING_MODELS, DESCRIBING_MODELS
from bike_assets.assets.metadata import sample_table, table_schema
from bike_assets.core.contracts import (
    CLEANED_COUNTS,
    COUNTERS,
    EXPORT_DIFFERENCES,
    PREDICTIONS,
    QUARANTINED_COUNTS,
    RAW_COUNTS,
    TableContract,
)
from bike_assets.core.errors import ContractError
from bike_assets.partitions import window
from bike_assets.resources.dbt import DbtResource
from bike_assets.resources.warehouse import Warehouse


class BikeTranslator(DagsterDbtTranslator):
    """Keys are the model's name alone; groups and owners are those of the platform."""

    def get_asset_spec(
        self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None
    ) -> dg.AssetSpec:
        """The spec dagster-dbt makes, with our key, group, owner and kinds."""
        spec = super().get_asset_spec(manifest, unique_id, project)
        if unique_id not in manifest["nodes"]:
            return spec  # a source: an asset made elsewhere
        name = spec.key.path[-1]
        monitoring = name in ACCURACY_MODELS
        return spec.replace_attributes(
            key=dg.AssetKey(name),
            group_name=tags.MONITORING if monitoring else tags.CLEANING,
            owners=[tags.ML_TEAM if monitoring else tags.DATA_TEAM],
            kinds={"dbt", "duckdb"},
            description=manifest["nodes"][unique_id]["description"],
            code_version=manifest["nodes"][unique_id]["checksum"]["checksum"][:12],
        )


def build_dbt_assets(
    project: DbtProject, partitions: dg.PartitionsDefinition[str]
) -> list[dg.AssetsDefinition]:
    """The dbt models: one partitioned group, and those that are built whole."""
    # raw_counts writes two tables: the counts and the calendar of their hours.
    translator = BikeTranslator(DagsterDbtTranslatorSettings(enable_duplicate_source_asset_keys=True))

    @dbt_assets(
        manifest=project.manifest_path,
        select=" ".join(CLEANING_MODELS),
        name="dbt_cleaned_counts",
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        dagster_dbt_translator=translator,
        project=project,
        pool=tags.WAREHOUSE_POOL,
    )
    def dbt_cleaned_counts(
        context: dg.AssetExecutionContext, dbt: DbtResource, warehouse: Warehouse
    ) -> Iterator[Any]:
        first, last = window(context)
        warehouse.bring_up_to_date(RAW_COUNTS, CLEANED_COUNTS, QUARANTINED_COUNTS)
        yield from _described(
            dbt.build(context, (first, last)).stream(),
            warehouse,
            {"cleaned_counts": CLEANED_COUNTS, "quarantined_counts": QUARANTINED_COUNTS},
            first,
            last,
        )

    @dbt_assets(
        manifest=project.manifest_path,
        select=" ".join(DESCRIBING_MODELS),
        name="dbt_counters",
        dagster_dbt_translator=translator,
        project=project,
        pool=tags.WAREHOUSE_POOL,
    )
    def dbt_counters(
        context: dg.AssetExecutionContext, dbt: DbtResource, warehouse: Warehouse
    ) -> Iterator[Any]:
        contracts = {"counters": COUNTERS, "export_differences": EXPORT_DIFFERENCES}
        warehouse.bring_up_to_date(RAW_COUNTS, CLEANED_COUNTS)
        yield from _described(dbt.build(context).stream(), warehouse, contracts, None, None)

    @dbt_assets(
        manifest=project.manifest_path,
        select=" ".join(ACCURACY_MODELS),
        name="dbt_forecast_accuracy",
        dagster_dbt_translator=translator,
        project=project,
        pool=tags.WAREHOUSE_POOL,
    )
    def dbt_forecast_accuracy(
        context: dg.AssetExecutionContext, dbt: DbtResource, warehouse: Warehouse
    ) -> Iterator[Any]:
        if not warehouse.exists(PREDICTIONS):
            # On the first morning nothing has been forecast, and there is no error yet.
            warehouse.replace(PREDICTIONS, PREDICTIONS.empty(), date.min, date.min)
        warehouse.bring_up_to_date(PREDICTIONS, CLEANED_COUNTS)
        yield from dbt.build(context).stream()

    return [dbt_cleaned_counts, dbt_counters, dbt_forecast_accuracy]


def _described(
    events: Iterator[Any],
    warehouse: Warehouse,
    contracts: Mapping[str, TableContract],
    first: date | None,
    last: date | None,
) -> Iterator[Any]:
    """dbt's events, with row count and sample added; a table that breaks its contract fails before it counts.

    The events are collected first, because dbt holds the warehouse open while it streams.
    """
    for event in list(events):
        # Inside an asset dbt's models come as outputs, which carry the asset's name and not its key.
        contract = contracts.get(event.output_name) if isinstance(event, dg.Output) else None
        if contract is None:
            yield event
            continue
        rows = warehouse.read(contract, first, last) if first else warehouse.read(contract)
        try:
            contract.check(rows)
        except ContractError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        yield event.with_metadata(
            {
                **dict(event.metadata),
                "dagster/row_count": dg.MetadataValue.int(rows.height),
                "dagster/column_schema": dg.MetadataValue.table_schema(table_schema(contract)),
                "sample": sample_table(rows),
                **_flagged(rows),
                **(difference_report(rows) if contract is EXPORT_DIFFERENCES else {}),
            }
        )


def _flagged(rows: pl.DataFrame) -> dict[str, dg.MetadataValue]:
    """How many rows carry each flag of a table, and how many were published again with another value."""
    flags = {name: pl.col(name).sum() for name, dtype in rows.schema.items() if dtype == pl.Boolean}
    if "revisions" in rows.columns:
        flags["revised"] = (pl.col("revisions") > 1).sum()
    return {
        f"rows/{name.removeprefix('is_')}": dg.MetadataValue.int(number)
        for name, number in (rows.select(**flags).row(0, named=True) if flags else {}).items()
    }


def difference_report(differences: pl.DataFrame) -> dict[str, dg.MetadataValue]:
    """What the exports do not agree on, in a table, a picture and the numbers people ask for first."""
    by_hours = differences.sort("hours", "counter_id", descending=[True, False])
    corrected = by_hours.filter(difference="corrected")
    vanished = by_hours.filter(difference="vanished counter")["counter_name"].unique(maintain_order=True)
    return {
        "corrected_rows": dg.MetadataValue.int(int(corrected["hours"].sum())),
        "corrected_counters": dg.MetadataValue.int(corrected["counter_id"].n_unique()),
        "vanished_counters": dg.MetadataValue.text(", ".join(str(name) for name in vanished) or "none"),
        "stray_rows": dg.MetadataValue.int(int(by_hours.filter(difference="stray rows")["hours"].sum())),
        "differences": sample_table(by_hours, 50),
        "hours_by_counter": dg.MetadataValue.md(plots.export_differences(by_hours)),
    }
