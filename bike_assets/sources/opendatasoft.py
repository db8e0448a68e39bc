"""A data set of an Opendatasoft portal, over its Explore API v2.1.

Belongs here: the API's addresses, limits and answers. Does not belong here: what the records mean (`paris`), and
retries (`polite_http`).

Records come in pages of at most 100 and no further than the 10,000th, so everything larger is an export, which has
no limit as long as it has no offset. Exports of a whole data set break off in the middle: ask for a month at a time.

Reference: https://help.opendatasoft.com/apis/ods-explore-v2/
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from bike_assets.core.errors import PermanentError
from bike_assets.sources.polite_http import PoliteClient, TryAgainError

_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Attributes:
        client: who asks.
        portal: address of the portal, without a path.
        dataset: its identifier.
        instant_field: the field that says when.
    """

    client: PoliteClient
    portal: str
    dataset: str
    instant_field: str = "date"

    def span(self) -> tuple[datetime, datetime] | None:
        """The oldest and the newest instant, in UTC; None where there are no records.

        Raises:
            TransientError: the portal cannot be reached just now, or the quota is spent.
            PermanentError: it has no such data set, or does not answer as this API does.
        """
        select = f"min({self.instant_field}) as oldest, max({self.instant_field}) as newest"
        answer = self.client.persistently(lambda: self._records(select=select, limit=1))
        try:
            (found,) = answer["results"]
            if found["oldest"] is None or found["newest"] is None:
                return None
            oldest, newest = (datetime.fromisoformat(found[name]) for name in ("oldest", "newest"))
        except (KeyError, ValueError, TypeError) as error:
            raise self._strange("the first and the last instant") from error
        return oldest.astimezone(UTC), newest.astimezone(UTC)

    def between(self, start: datetime, end: datetime) -> str:
        """The condition `start <= instant < end`, as ODSQL."""
        first, beyond = (f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%S+00:00}" for instant in (start, end))
        return f"{self.instant_field} >= date'{first}' AND {self.instant_field} < date'{beyond}'"

    def export(self, where: str, target: Path) -> int:
        """Write all records that meet a condition into a Parquet file, and prove that it has all of them.

        The file appears whole or not at all: it is loaded into `target` with `.part` added, its rows are counted and
        compared with what the API counts, and then it is renamed. Without any record there is no file.

        Returns:
            How many records there are.

        Raises:
            TransientError: every attempt failed, broke off or gave another number of rows than there are records.
            PermanentError: the portal refuses, or what it sends is no Parquet.
        """
        return self.client.persistently(lambda: self._export_once(where, target))

    def _export_once(self, where: str, target: Path) -> int:
        answer = self._records(where=where, limit=1)
        expected = answer.get("total_count")
        if not isinstance(expected, int):
            raise self._strange("the number of records")
        if expected == 0:
            return 0
        part = target.with_name(f"{target.name}.part")
        with (
            self.client.answer(
                f"{self._address}/exports/parquet", {"where": where, "timezone": "UTC"}
            ) as pieces,
            part.open("wb") as file,
        ):
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        found = self._rows(part)
        if found != expected:
            raise TryAgainError(
                f"{self._name}: the export has {found:,} rows and there are {expected:,} records; try again later"
            )
        part.replace(target)
        return expected

    def _rows(self, part: Path) -> int:
        """Rows of a file that has just been loaded."""
        with part.open("rb") as file:
            start = file.read(len(_MAGIC))
        if start and not _MAGIC.startswith(start):
            raise PermanentError(
                f"{self._name}: the export is not Parquet; check address and data set in the settings"
            )
        try:
            return int(pl.scan_parquet(part).select(pl.len()).collect().item())
        except (pl.exceptions.PolarsError, OSError) as error:
            raise TryAgainError(f"{self._name}: the export breaks off; try again later") from error

    def _records(self, **params: str | int) -> dict[str, Any]:
        return self.client.json(f"{self._address}/records", {**params, "timezone": "UTC"})

    @property
    def _address(self) -> str:
        return f"{self.portal.rstrip('/')}/api/explore/v2.1/catalog/datasets/{self.dataset}"

    @property
    def _name(self) -> str:
        return f"{self.portal.rstrip('/').split('//')[-1]}/{self.dataset}"

    def _strange(self, what: str) -> PermanentError:
        return PermanentError(
            f"{self._name}: the answer does not say {what}; check that the address is that of an Explore API v2.1"
        )
