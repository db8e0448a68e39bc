"""The live counts of the city's portal as a source.

Belongs here: which days are asked for, what is kept of them, and noticing that the data set changed its shape. Does
not belong here: the API (`opendatasoft`), and what a value must look like (`export_rows`).

The portal publishes the day before, and about thirteen months: each day the oldest one goes. A range is fetched a
local month at a time. A month that can no longer change, since the portal was `refetch_days` past its end when it was
fetched, is kept on disk and not fetched again; that is also what makes a killed run go on where it was.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import ClassVar, Final
from zoneinfo import ZoneInfo

import polars as pl

from bike_assets.core.calendar import LOCAL_TZ, hours_of_day, local_columns
from bike_assets.core.contracts import UTC_TIMESTAMP
from bike_assets.core.errors import PermanentError
from bike_assets.sources.base import COUNTS_SCHEMA, REJECTED_SCHEMA, SORT_KEY, SourceBatch, SourceFault
from bike_assets.sources.containers import Export
from bike_assets.sources.export_log import ExportLog
from bike_assets.sources.export_rows import typed_rows
from bike_assets.sources.formats import FIELDS, REQUIRED, read_records
from bike_assets.sources.opendatasoft import Dataset

PORTAL: Final = "https://opendata.paris.fr"
DATASET: Final = "comptage-velo-donnees-compteurs"

FIELD_NAMES: Final[Mapping[str, str]] = {field: labels[-1] for field, labels in FIELDS.items()}
"""Our name of each field, and the API's."""

PASSED_OVER: Final = frozenset(
    {
        "counter",
        "id_photo_1",
        "mois_annee_comptage",
        "photos",
        "test_lien_vers_photos_du_site_de_comptage_",
        "type_dimage",
        "url_photos",
        "url_photos_n1",
        "url_sites",
    }
)
"""Fields that the data set has and we have no use for."""

_UNTIL: Final = "%Y%m%dT%H"
_RECENT: Final = "recent.parquet"


@dataclass(frozen=True)
class _Chunk:
    """Local days of one month that are fetched together."""

    first: date
    last: date

    def file_name(self, until: datetime) -> str:
        """The file of the chunk, with the newest hour that the portal had when it was fetched."""
        return f"{self.first}_{self.last}_until_{until.astimezone(UTC):{_UNTIL}}.parquet"

    @classmethod
    def of(cls, path: Path) -> "tuple[_Chunk, datetime]":
        """The chunk and the newest hour that a file name tells."""
        first, last, _, until = path.stem.split("_")
        return (
            cls(date.fromisoformat(first), date.fromisoformat(last)),
            datetime.strptime(until, _UNTIL).replace(tzinfo=UTC),
        )

    def covers(self, other: "_Chunk") -> bool:
        return self.first <= other.first and other.last <= self.last


@dataclass(frozen=True)
class ParisSource:
    """The portal as a `CountsSource`.

    `published_until` is the newest hour the portal had when the row was fetched; `source_file` names data set and
    month. Neither depends on how a range is divided.

    Attributes:
        dataset: where from.
        cache: folder of what was fetched and is final. Delete it to fetch all over again.
        refetch_days: for how many days after it was counted a day may still be corrected.
    """

    name: ClassVar[str] = "paris"

    dataset: Dataset
    cache: Path
    refetch_days: int

    def span(self) -> tuple[date, date]:
        """First whole local day and last local day that the portal has.

        Raises:
            PermanentError: the data set is empty, or there is none.
            TransientError: the portal cannot be reached just now, or the quota is spent.
        """
        oldest, newest = self._instants()
        return _first_whole_day(oldest), _local_day(newest)

    def read(self, first: date, last: date) -> SourceBatch:
        """Rows whose `service_date` lies in [first, last], fetched again unless they are final.

        Raises:
            PermanentError: days that the portal no longer has and that were not kept: an empty answer would wipe out
                what is known of them. Or a required field is missing.
            TransientError: the portal cannot be reached just now, or the quota is spent.
        """
        self.cache.mkdir(parents=True, exist_ok=True)
        oldest, newest = self._instants()
        since = _first_whole_day(oldest)
        frames = [pl.DataFrame(schema=COUNTS_SCHEMA)]
        rejected = [pl.DataFrame(schema=REJECTED_SCHEMA)]
        faults: list[SourceFault] = []
        for chunk in _chunks(first, last):
            found = self._kept(chunk)
            if found is None and chunk.first < since:
                raise PermanentError(
                    f"{self._file}: has counts from {since} to {_local_day(newest)}, not of {chunk.first}; choose days "
                    "from then on: older ones are in the portal's yearly archive files (--source archive)"
                )
            found = found or self._fetched(chunk, newest)
            if found is None:
                continue
            log = ExportLog(f"{self._file} {chunk.first:%Y-%m}", unit="record")
            rows = self._rows(found, log, faults)
            frames.append(rows.filter(pl.col("service_date").is_between(chunk.first, chunk.last)))
            rejected.append(log.rejected)
            faults.extend(log.faults)
        counts = pl.concat(frames).sort(SORT_KEY, nulls_last=True)
        # Days without an answer say nothing of what is known of them from elsewhere.
        files = frozenset(f"{self._file}/{chunk.first:%Y-%m}" for chunk in _chunks(first, last))
        return SourceBatch(counts, pl.concat(rejected), tuple(dict.fromkeys(faults)), files)

    def _instants(self) -> tuple[datetime, datetime]:
        span = self.dataset.span()
        if span is None:
            raise PermanentError(f"{self._file}: has no records; check the data set in the settings")
        return span

    @property
    def _file(self) -> str:
        return self.dataset.dataset

    def _is_final(self, chunk: _Chunk, until: datetime) -> bool:
        """Whether the chunk, fetched when the portal had counts until then, stays as it is, and ends a month."""
        ends_month = (chunk.last + timedelta(days=1)).day == 1
        return ends_month and chunk.last + timedelta(days=self.refetch_days) < _local_day(until)

    def _kept(self, chunk: _Chunk) -> "_Download | None":
        """What an earlier run fetched, where it holds the chunk in its final form."""
        for path in sorted(self.cache.glob(f"{chunk.first:%Y-%m}-*.parquet")):
            kept, until = _Chunk.of(path)
            if kept.covers(chunk):
                return _Download(path, until)
        return None

    def _fetched(self, chunk: _Chunk, newest: datetime) -> "_Download | None":
        """The chunk, fetched now; None where the portal has no records of its days."""
        path = self.cache / (chunk.file_name(newest) if self._is_final(chunk, newest) else _RECENT)
        start = hours_of_day(chunk.first)[0]
        end = hours_of_day(chunk.last)[-1] + timedelta(hours=1)
        if not self.dataset.export(self.dataset.between(start, end), path):
            return None
        return _Download(path, newest)

    def _rows(self, download: "_Download", log: ExportLog, faults: list[SourceFault]) -> pl.DataFrame:
        """The rows of a download, as `COUNTS_SCHEMA`; what changed about its fields goes to the faults.

        Raises:
            PermanentError: a required field is missing, or a file that was kept was damaged since.
        """
        try:
            found = set(pl.read_parquet_schema(download.path))
        except (pl.exceptions.PolarsError, OSError) as error:
            download.path.unlink(missing_ok=True)
            raise PermanentError(
                f"{download.path}: is damaged and was removed; run again to fetch it anew"
            ) from error
        faults.extend(self._changed_fields(found))
        export = Export(log.file, "parquet", iter([download.path.read_bytes()]))
        parts = [typed_rows(records, log) for records in read_records(export, log)]
        return (
            local_columns(pl.concat(parts))
            .with_columns(
                source=pl.lit(self.name),
                source_file=pl.format(
                    "{}/{}", pl.lit(self._file), pl.col("service_date").dt.to_string("%Y-%m")
                ),
                # The data set is a window of days: no row lies far from the others.
                is_stray=pl.lit(False),
                published_until=pl.lit(download.until, dtype=UTC_TIMESTAMP),
            )
            .select(pl.col(name).cast(dtype) for name, dtype in COUNTS_SCHEMA.items())
        )

    def _changed_fields(self, found: set[str]) -> Iterator[SourceFault]:
        """Fields that came and went since this was written.

        Raises:
            PermanentError: a required one went.
        """
        for field, name in FIELD_NAMES.items():
            if name in found:
                continue
            if field in REQUIRED:
                raise PermanentError(
                    f"{self._file}: the field {name} is missing (found: {', '.join(sorted(found))}); the data set "
                    "changed its shape: name the new field in bike_assets/sources/formats.py"
                )
            yield SourceFault(
                self._file, f"field {name}", "is missing", "its values stay empty", set_aside=False
            )
        for name in sorted(found - set(FIELD_NAMES.values()) - PASSED_OVER):
            yield SourceFault(
                self._file,
                f"field {name}",
                "is new",
                "it is passed over; see whether it is of use",
                set_aside=False,
            )


@dataclass(frozen=True)
class _Download:
    """A file, and the newest hour the portal had when it was fetched."""

    path: Path
    until: datetime


def _chunks(first: date, last: date) -> Iterator[_Chunk]:
    """The range divided where months begin."""
    while first <= last:
        next_month = (first.replace(day=1) + timedelta(days=32)).replace(day=1)
        end = min(last, next_month - timedelta(days=1))
        yield _Chunk(first, end)
        first = end + timedelta(days=1)


def _local_day(instant: datetime) -> date:
    return instant.astimezone(ZoneInfo(LOCAL_TZ)).date()


def _first_whole_day(oldest: datetime) -> date:
    """The first local day that lies wholly behind an instant: the portal drops hours, not days."""
    day = _local_day(oldest)
    return day if hours_of_day(day)[0] >= oldest else day + timedelta(days=1)
