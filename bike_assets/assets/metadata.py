"""What a person sees of a table in the UI: rows, a capped sample, its columns with their units."""

from collections.abc import Iterable
from typing import Final

import dagster as dg
import polars as pl

from bike_assets.core.contracts import TableContract

SAMPLE_ROWS: Final = 10
"""Rows of a sample table. Metadata is stored once a partition, so it stays small."""

_BULLET: Final = "- "


def table_metadata(contract: TableContract, frame: pl.DataFrame) -> dict[str, dg.MetadataValue]:
    """Row count, relation, columns and a sample of a table that was just written."""
    return {
        "dagster/row_count": dg.MetadataValue.int(frame.height),
        "dagster/relation_identifier": dg.MetadataValue.text(contract.relation),
        "dagster/column_schema": dg.MetadataValue.table_schema(table_schema(contract)),
        "sample": sample_table(frame),
    }


def table_schema(contract: TableContract) -> dg.TableSchema:
    """The contract in Dagster's words."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=column.name,
                type=str(column.dtype),
                description=column.description,
                constraints=dg.TableColumnConstraints(nullable=column.nullable),
            )
            for column in contract.columns
        ]
    )


def sample_table(frame: pl.DataFrame, rows: int = SAMPLE_ROWS) -> dg.MetadataValue:
    """The first rows as a table; instants and days as text, because metadata is JSON."""
    if frame.is_empty():
        return dg.MetadataValue.text("no rows")
    records = []
    for row in frame.head(rows).iter_rows(named=True):
        values = {}
        for name, value in row.items():
            if value is None or isinstance(value, str | int | float | bool):
                values[name] = value
            else:
                values[name] = str(value)
        records.append(dg.TableRecord(values))
    return dg.MetadataValue.table(records)


def fault_list(lines: Iterable[str]) -> str:
    """Faults as a Markdown list, as the UI shows them."""
    return "\n".join(f"{_BULLET}{line}" for line in lines) or "none"


def fault_lines(text: str) -> tuple[str, ...]:
    """The lines that `fault_list` was made of."""
    return tuple(line.removeprefix(_BULLET) for line in text.splitlines() if line.startswith(_BULLET))
