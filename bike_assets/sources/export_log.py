"""What is wrong with one export, gathered while it is read and told in a few lines at the end.

Belongs here: turning many rejected rows into few faults. Does not belong here: deciding what is wrong.
"""

from collections.abc import Sequence

import polars as pl

from bike_assets.sources.base import REJECTED_SCHEMA, SourceFault

CORRECT_OR_EXPORT_AGAIN = "correct the line or export again"
_SHOWN = 60
_STORED = 500


class ExportLog:
    """Faults and rejected rows of one export. Mutable, and private to the reading of one file."""

    def __init__(self, file: str, unit: str = "line") -> None:
        """An empty log; `unit` is what positions count: lines of text or records."""
        self.file = file
        self.unit = unit
        self._faults: list[SourceFault] = []
        self._rejected: list[pl.DataFrame] = []

    def fault(
        self, problem: str, remedy: str, *, where: str = "", rows: int = 0, set_aside: bool = True
    ) -> None:
        """Note something that is not about single rows."""
        self._faults.append(SourceFault(self.file, where, problem, remedy, rows, set_aside))

    def reject(
        self, lines: Sequence[int] | pl.Series, column: str, values: Sequence[str] | pl.Series, reason: str
    ) -> None:
        """Set rows aside; the reason completes a sentence that begins with the value."""
        if len(lines):
            self._rejected.append(
                pl.DataFrame({"line": lines, "value": values}, schema={"line": pl.Int64, "value": pl.String})
                .with_columns(
                    pl.col("value").fill_null("").str.slice(0, _STORED),
                    source_file=pl.lit(self.file),
                    column=pl.lit(column),
                    reason=pl.lit(reason),
                )
                .select(REJECTED_SCHEMA.names())
            )

    @property
    def rejected(self) -> pl.DataFrame:
        """Every row set aside so far, by line."""
        return pl.concat([pl.DataFrame(schema=REJECTED_SCHEMA), *self._rejected]).sort("line", "column")

    @property
    def faults(self) -> list[SourceFault]:
        """Faults in words: those noted, then one for each column and reason with its first example."""
        groups = (
            self.rejected.group_by("column", "reason", maintain_order=True)
            .agg(pl.first("line"), pl.first("value"), pl.len().alias("rows"))
            .iter_rows(named=True)
        )
        return self._faults + [
            SourceFault(
                self.file,
                f"{self.unit} {group['line']}"
                + (f" and {group['rows'] - 1:,} more" if group["rows"] > 1 else "")
                + (f", column {group['column']}" if group["column"] else ""),
                f"{_shown(group['value'])} {group['reason']}",
                CORRECT_OR_EXPORT_AGAIN,
                group["rows"],
            )
            for group in groups
        ]


def _shown(value: str) -> str:
    """A value as it may stand in one line of a terminal."""
    text = "".join(char if char.isprintable() else "�" for char in value)
    return f"'{text}'" if len(text) <= _SHOWN else f"'{text[:_SHOWN]}…'"
