"""Snapshots of the warehouse's tables: taken, listed, compared, put back.

Belongs here: the store of snapshots and what a snapshot holds. Does not belong here: which command or asset takes
one, and what has to be materialised after one was put back.

A snapshot is a folder of Parquet files, a file a table and month, and a `manifest.json` that names them. Its id is
the SHA-256 of the manifest, which holds nothing but content: the same tables give the same id whoever takes it,
whenever. The store is laid out as DVC lays out its cache (https://dvc.org/doc/user-guide/project-structure), so that
`dvc push` and `dvc pull` move snapshots although nothing here needs DVC:

    .dvc/cache/files/md5/ab/cdef…   every file once, named by its MD5 as DVC names it
    <first 12 digits of the id>.dvc  one snapshot: the hash of its list of files; who took it, when, why

MD5 only names files. Whether they are what they were is judged by the SHA-256 in the manifest, whenever one is read.
"""

import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime
from difflib import get_close_matches
from itertools import count, groupby
from pathlib import Path
from typing import Any, Final

import dagster as dg
import polars as pl
import yaml

from bike_assets.core.contracts import CALENDAR_HOURS, CLEANED_COUNTS, RAW_COUNTS, RAW_WEATHER, TableContract
from bike_assets.core.errors import PermanentError
from bike_assets.resources.warehouse import Warehouse
from bike_assets.settings import Settings

SNAPSHOT_TABLES: Final = (RAW_COUNTS, CALENDAR_HOURS, RAW_WEATHER, CLEANED_COUNTS)
"""What cannot be made again from anything else, and the cleaned counts that models were trained on. Features,
forecasts and reports follow from these and from the code."""

TRAIN_BASELINE: Final = "train_baseline"
TEST_BASELINE: Final = "test_baseline"

SHORT: Final = 12
"""Digits of an id that name its file, and that people type."""

_FORMAT: Final = 1
_MANIFEST: Final = "manifest.json"
_ABOUT_A_ROW: Final = {RAW_COUNTS.relation: ("counter_id", "ts_utc")}
"""What a row is about where the contract has no key; several rows may be about the same."""

_DVC_CONFIG: Final = "[core]\n    no_scm = True\n"
_GITIGNORE: Final = "/.partial\n/.lock\n/.dvc/cache\n/.dvc/tmp\n/.dvc/config.local\n/*/\n!/.dvc/\n"

Progress = Callable[[str, int, int], None]
"""Is told what is done now, how many files are done, and of how many."""


def _unwatched(_what: str, _done: int, _of: int) -> None:
    pass


@dataclass(frozen=True)
class MonthFile:
    """One Parquet file: where it lies in the snapshot, its hashes, size in bytes, rows and days."""

    path: str
    md5: str
    sha256: str
    size: int
    rows: int
    first: date
    last: date

    @property
    def month(self) -> str:
        """As `2024-06`."""
        return self.first.strftime("%Y-%m")


@dataclass(frozen=True)
class TableVersion:
    """One table as a snapshot holds it."""

    relation: str
    columns: Mapping[str, str]
    files: tuple[MonthFile, ...]

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    @property
    def days(self) -> tuple[date, date]:
        """First and last `service_date`."""
        return min(file.first for file in self.files), max(file.last for file in self.files)


@dataclass(frozen=True)
class Split:
    """The days of the cleaned counts in two, by time: what a baseline learns from, and what it is tested on."""

    ratio: float
    train_baseline: tuple[date, date]
    test_baseline: tuple[date, date]


@dataclass(frozen=True)
class Taking:
    """Who took a snapshot, when, and why. Taking the same content again adds one of these and nothing else."""

    at: datetime
    by: str
    message: str


@dataclass(frozen=True)
class Snapshot:
    """A snapshot: what its manifest says, and who took it."""

    id: str
    tables: tuple[TableVersion, ...]
    split: Split | None
    taken: tuple[Taking, ...]

    @property
    def short_id(self) -> str:
        """The digits people type."""
        return self.id[:SHORT]

    @property
    def files(self) -> list[MonthFile]:
        """The files of all tables."""
        return [file for table in self.tables for file in table.files]

    def table(self, relation: str) -> TableVersion | None:
        """A table, where the snapshot holds it."""
        return next((table for table in self.tables if table.relation == relation), None)


@dataclass(frozen=True)
class Taken:
    """The outcome of taking a snapshot: what was new on disk, in files and bytes."""

    snapshot: Snapshot
    known: bool
    new_files: int
    new_bytes: int


@dataclass(frozen=True)
class Entry:
    """A snapshot that the store knows. `snapshot` is None where its files are not here or damaged: `fault` says it."""

    id: str
    taken: tuple[Taking, ...]
    snapshot: Snapshot | None
    fault: str


@dataclass(frozen=True)
class TableDiff:
    """Rows that one snapshot's table has and the other's has not, or has otherwise.

    `changed_columns` counts the changed rows by column; `days` and `counters` are those with any difference.
    """

    relation: str
    added: int
    removed: int
    changed: int
    changed_columns: Mapping[str, int]
    counters: tuple[str, ...]
    days: tuple[date, ...]


class SnapshotStore(dg.ConfigurableResource):  # type: ignore[type-arg]
    """A folder of snapshots."""

    folder: str
    baseline_ratio: float

    @classmethod
    def from_settings(cls, settings: Settings) -> "SnapshotStore":
        """The store of a home."""
        return cls(folder=str(settings.snapshots_dir), baseline_ratio=settings.baseline_ratio)

    def take(
        self,
        warehouse: Warehouse,
        taking: Taking,
        *,
        tables: Sequence[TableContract] = SNAPSHOT_TABLES,
        last: date | None = None,
        progress: Progress = _unwatched,
    ) -> Taken:
        """Keep tables as they are now. Months that any snapshot holds already are not stored again.

        Args:
            warehouse: whose tables.
            taking: who, when, why.
            tables: the tables; those that do not exist or have no rows are left out.
            last: last `service_date` kept; all by default.
            progress: is told which file is being kept.

        Raises:
            PermanentError: there are no rows, or the folder cannot be written.
        """
        with self._writing(), warehouse.at_one_moment() as reader:
            days = {
                table.relation: [day for day in reader.days(table) if last is None or day <= last]
                for table in tables
            }
            if not any(days.values()):
                raise PermanentError(
                    f"there are no rows{f' up to {last}' if last else ''} to take a snapshot of; "
                    "run bike-assets ingest first"
                )
            split = split_days(days.get(CLEANED_COUNTS.relation, ()), self.baseline_ratio)
            pieces = [
                (table, *piece) for table in tables for piece in _pieces(table, days[table.relation], split)
            ]
            new: dict[str, int] = {}
            kept: dict[TableContract, list[MonthFile]] = {}
            for done, (table, path, start, end) in enumerate(pieces):
                progress(f"keeping {path}", done, len(pieces))
                rows = reader.read(table, start, end)
                kept.setdefault(table, []).append(self._keep_rows(table, path, rows, (start, end), new))
            versions = [
                TableVersion(
                    table.relation, {column.name: str(column.dtype) for column in table.columns}, tuple(files)
                )
                for table, files in kept.items()
            ]
            manifest = _manifest(versions, split)
            files = [file for version in versions for file in version.files]
            listed = {file.path: file.md5 for file in files} | {_MANIFEST: self._keep(manifest, new)}
            folder_md5 = self._keep(_dvc_list(listed), new, suffix=".dir")
            snapshot_id = hashlib.sha256(manifest).hexdigest()
            pointer = self._pointer(snapshot_id)
            earlier = _read_pointer(pointer).taken if pointer.exists() else ()
            snapshot = Snapshot(snapshot_id, tuple(versions), split, (*earlier, taking))
            size = sum(file.size for file in files) + len(manifest)
            self._write(pointer, _dvc_pointer(snapshot, folder_md5, size, len(listed)), mode=0o644)
        return Taken(snapshot, known=bool(earlier), new_files=len(new), new_bytes=sum(new.values()))

    def entries(self) -> list["Entry"]:
        """Every snapshot, in the order in which they were taken last, also those whose files are not here."""
        entries = []
        for pointer in sorted(self._pointers(), key=lambda pointer: pointer.taken[-1].at):
            try:
                entries.append(Entry(pointer.id, pointer.taken, self._load(pointer), ""))
            except PermanentError as error:
                entries.append(Entry(pointer.id, pointer.taken, None, str(error)))
        return entries

    def find(self, prefix: str) -> Snapshot:
        """The snapshot whose id begins like this.

        Raises:
            PermanentError: there is none, or several; the message names the nearest.
        """
        known = {pointer.id: pointer for pointer in self._pointers()}
        found = [name for name in known if name.startswith(prefix.lower())]
        if len(found) == 1:
            return self._load(known[found[0]])
        if not known:
            raise PermanentError(f"{self.folder} holds no snapshot yet; run: bike-assets data snapshot")
        if found:
            raise PermanentError(
                f"several snapshots begin with {prefix}: {_short(found)}; give more digits of the id"
            )
        digits = {name[: len(prefix)]: name for name in known}
        near = [digits[match] for match in get_close_matches(prefix.lower(), digits, n=3, cutoff=0.5)]
        newest = sorted(known, key=lambda name: known[name].taken[-1].at, reverse=True)[:3]
        raise PermanentError(
            f"no snapshot is called {prefix}; "
            f"{'the nearest: ' + _short(near) if near else 'the newest: ' + _short(newest)}; "
            "bike-assets data list shows all"
        )

    def has_rows(self, warehouse: Warehouse) -> bool:
        """Whether there is anything to take a snapshot of."""
        with warehouse.at_one_moment() as reader:
            return any(reader.days(table) for table in SNAPSHOT_TABLES)

    def verify(self, snapshot: Snapshot, progress: Progress = _unwatched) -> None:
        """Prove that every file of a snapshot is here and is what it was.

        Raises:
            PermanentError: naming the first file that is not.
        """
        for done, file in enumerate(snapshot.files):
            progress(f"verifying {file.path}", done, len(snapshot.files))
            self._bytes(file, snapshot)

    def restore(self, warehouse: Warehouse, snapshot: Snapshot, progress: Progress = _unwatched) -> None:
        """Put the tables of a snapshot back, all in one transaction. Tables it does not hold stay as they are.

        A column that the table has got since is null, where it may be; one that it has no longer is left out.

        Raises:
            PermanentError: a file is damaged or missing; nothing was touched.
            ContractError: the rows no longer keep the contract; nothing was changed.
        """
        contracts = {contract.relation: contract for contract in SNAPSHOT_TABLES}
        self.verify(snapshot, progress)
        unknown = [table.relation for table in snapshot.tables if table.relation not in contracts]
        if unknown:
            raise PermanentError(
                f"snapshot {snapshot.short_id} holds {', '.join(unknown)}, which this code does not know; upgrade"
            )
        done = count()
        warehouse.replace_tables(
            (contract := contracts[table.relation], self._frames(table, contract, snapshot, done, progress))
            for table in snapshot.tables
        )

    def diff(self, before: Snapshot, after: Snapshot, progress: Progress = _unwatched) -> list[TableDiff]:
        """What differs from one snapshot to the other, by table. Months with the same files are not read.

        A table that only one of them holds counts as empty in the other.
        """
        relations = [
            contract.relation
            for contract in SNAPSHOT_TABLES
            if before.table(contract.relation) or after.table(contract.relation)
        ]
        return [self._diff_table(relation, before, after, progress) for relation in relations]

    def _diff_table(self, relation: str, before: Snapshot, after: Snapshot, progress: Progress) -> TableDiff:
        months: dict[str, tuple[list[MonthFile], list[MonthFile]]] = {}
        for side, snapshot in enumerate((before, after)):
            table = snapshot.table(relation)
            for file in table.files if table else ():
                months.setdefault(file.month, ([], []))[side].append(file)
        contract = next(contract for contract in SNAPSHOT_TABLES if contract.relation == relation)
        differences = []
        for done, (month, (old, new)) in enumerate(sorted(months.items())):
            if {file.sha256 for file in old} != {file.sha256 for file in new}:
                progress(f"comparing {relation} {month}", done, len(months))
                differences.append(
                    compare(
                        contract,
                        self._concat(old, before, contract),
                        self._concat(new, after, contract),
                    )
                )
        return _sum(relation, differences)

    def _concat(
        self, files: Sequence[MonthFile], snapshot: Snapshot, contract: TableContract
    ) -> pl.DataFrame:
        frames = [pl.read_parquet(io.BytesIO(self._bytes(file, snapshot))) for file in files]
        return pl.concat(frames) if frames else contract.empty()

    def _frames(
        self,
        table: TableVersion,
        contract: TableContract,
        snapshot: Snapshot,
        done: Iterator[int],
        progress: Progress,
    ) -> Iterator[pl.DataFrame]:
        for file in table.files:
            progress(f"restoring {file.path}", next(done), len(snapshot.files))
            frame = pl.read_parquet(io.BytesIO(self._bytes(file, snapshot)))
            yield frame.with_columns(
                pl.lit(None, dtype=column.dtype).alias(column.name)
                for column in contract.columns
                if column.nullable and column.name not in frame.columns
            )

    def _keep_rows(
        self,
        contract: TableContract,
        path: str,
        rows: pl.DataFrame,
        days: tuple[date, date],
        new: dict[str, int],
    ) -> MonthFile:
        buffer = io.BytesIO()
        in_order(contract, rows).write_parquet(buffer, compression="zstd")
        content = buffer.getvalue()
        return MonthFile(
            path=path,
            md5=self._keep(content, new),
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
            rows=rows.height,
            first=days[0],
            last=days[1],
        )

    def _load(self, pointer: "_Pointer") -> Snapshot:
        """What the manifest of a pointer says.

        Raises:
            PermanentError: the manifest is not here, or is not the one with this id.
        """
        listing = self._object(pointer.folder_md5)
        try:
            listed = {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_bytes())}
            path = self._object(listed[_MANIFEST])
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise PermanentError(_not_here(error.filename, pointer.id, self.folder)) from None
        except (ValueError, KeyError, TypeError):
            raise PermanentError(_damaged(listing, pointer.id, self.folder)) from None
        if hashlib.sha256(content).hexdigest() != pointer.id:
            raise PermanentError(_damaged(path, pointer.id, self.folder))
        return _parse(pointer, json.loads(content))

    def _bytes(self, file: MonthFile, snapshot: Snapshot) -> bytes:
        path = self._object(file.md5)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise PermanentError(_not_here(path, snapshot.id, self.folder, file.path)) from None
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise PermanentError(_damaged(path, snapshot.id, self.folder, file.path))
        return content

    def _object(self, md5: str) -> Path:
        return Path(self.folder, ".dvc", "cache", "files", "md5", md5[:2], md5[2:])

    def _pointers(self) -> "Iterator[_Pointer]":
        return map(_read_pointer, sorted(Path(self.folder).glob("[!.]*.dvc")))

    def _pointer(self, snapshot_id: str) -> Path:
        return Path(self.folder, f"{snapshot_id[:SHORT]}.dvc")

    def _keep(self, content: bytes, new: dict[str, int], suffix: str = "") -> str:
        """Store a file unless it is there already; one that is there but was altered is put right."""
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest() + suffix
        path = self._object(md5)
        if not (path.exists() and path.read_bytes() == content):
            # Read-only, as DVC makes its own: it links them into working folders.
            self._write(path, content, mode=0o444)
            new[md5] = len(content)
        return md5

    def _write(self, path: Path, content: bytes, *, mode: int) -> None:
        """Write a file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._partial)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)

    @property
    def _partial(self) -> Path:
        return Path(self.folder, ".partial")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The store, made ready and kept to oneself; what a killed process left half written is removed."""
        folder = Path(self.folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / ".lock").open("a") as lock:
                fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
                shutil.rmtree(self._partial, ignore_errors=True)
                self._partial.mkdir()
                for name, text in ((".dvc/config", _DVC_CONFIG), (".gitignore", _GITIGNORE)):
                    if not (folder / name).exists():
                        self._write(folder / name, text.encode(), mode=0o644)
                yield
                shutil.rmtree(self._partial)
        except OSError as error:
            raise PermanentError(
                f"{self.folder} cannot be written: {error.strerror or error}; no snapshot was taken, free some "
                "space or mend the folder and run again"
            ) from error


def _pieces(
    contract: TableContract, days: Sequence[date], split: Split | None
) -> Iterator[tuple[str, date, date]]:
    """The files of a table: path, first and last day. Cleaned counts lie in a folder for each side of the split."""

    def path(day: date) -> str:
        part = contract.name
        if contract is CLEANED_COUNTS and split:
            part += f"/{TRAIN_BASELINE if day <= split.train_baseline[1] else TEST_BASELINE}"
        return f"{part}/{day:%Y-%m}.parquet"

    for name, group in groupby(days, key=path):
        inside = list(group)
        yield name, inside[0], inside[-1]


def split_days(days: Sequence[date], ratio: float) -> Split | None:
    """Cut days in two by time: the first `ratio` of them, at least one, and the rest, at least one.

    Days without counts are no days here: a few stray rows of another year move the cut by a few days only.

    Args:
        days: the days with counts, in order.
        ratio: above 0, below 1.

    Returns:
        None where there are fewer than two days.
    """
    if len(days) < 2:
        return None
    cut = min(max(round(len(days) * ratio), 1), len(days) - 1)
    return Split(ratio, (days[0], days[cut - 1]), (days[cut], days[-1]))


def in_order(contract: TableContract, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows in the one order in which they are written, so that the same rows give the same bytes.

    Publications of the same counter and hour stand in the order in which they were published.
    """
    first = contract.key or (*_ABOUT_A_ROW[contract.relation], "published_until", "source_file")
    # A key is unique: nothing else can decide.
    rest = [] if contract.key else [name for name in contract.column_names if name not in first]
    return rows.sort(*first, *rest, nulls_last=True)


def compare(contract: TableContract, before: pl.DataFrame, after: pl.DataFrame) -> TableDiff:
    """What differs between two versions of a table's rows.

    Rows are the same row where they have the same key. In a table without key, which holds every publication of
    an hour, the n-th publication before is compared with the n-th after.
    """
    about = contract.key or _ABOUT_A_ROW[contract.relation]
    keys = [*about, "_nth"]

    def numbered(rows: pl.DataFrame) -> pl.DataFrame:
        return in_order(contract, rows).with_columns(_nth=pl.int_range(pl.len()).over(about))

    old, new = numbered(before), numbered(after)
    columns = [name for name in new.columns if name in old.columns and name not in keys]
    both = old.join(new, on=keys, how="inner", suffix="_after", nulls_equal=True)
    differs = both.select(
        *keys,
        *(pl.col(name).ne_missing(pl.col(f"{name}_after")).alias(f"{name}_differs") for name in columns),
    )
    changed = both.filter(differs.select(pl.any_horizontal(pl.col("^.*_differs$"))).to_series())
    removed = old.join(new, on=keys, how="anti", nulls_equal=True)
    added = new.join(old, on=keys, how="anti", nulls_equal=True)
    counts = {name: int(differs.get_column(f"{name}_differs").sum()) for name in columns}
    concerned = [frame for frame in (added, removed, changed) if frame.height]
    return TableDiff(
        relation=contract.relation,
        added=added.height,
        removed=removed.height,
        changed=changed.height,
        changed_columns={name: count for name, count in counts.items() if count},
        counters=_distinct(concerned, "counter_id") if "counter_id" in contract.column_names else (),
        days=_distinct(concerned, "service_date"),
    )


def _distinct(frames: Sequence[pl.DataFrame], column: str) -> tuple[Any, ...]:
    return tuple(sorted({value for frame in frames for value in frame.get_column(column).unique()}))


def _sum(relation: str, parts: Sequence[TableDiff]) -> TableDiff:
    columns: dict[str, int] = {}
    for part in parts:
        for name, rows in part.changed_columns.items():
            columns[name] = columns.get(name, 0) + rows
    return TableDiff(
        relation=relation,
        added=sum(part.added for part in parts),
        removed=sum(part.removed for part in parts),
        changed=sum(part.changed for part in parts),
        changed_columns=columns,
        counters=tuple(sorted({counter for part in parts for counter in part.counters})),
        days=tuple(sorted({day for part in parts for day in part.days})),
    )


@dataclass(frozen=True)
class _Pointer:
    """A `.dvc` file: which snapshot, the hash of its list of files, and who took it."""

    id: str
    folder_md5: str
    taken: tuple[Taking, ...]


def _manifest(versions: Sequence[TableVersion], split: Split | None) -> bytes:
    content = {
        "format": _FORMAT,
        "tables": [
            {
                "table": version.relation,
                "rows": version.rows,
                "days": version.days,
                "columns": dict(version.columns),
                "files": [asdict(file) for file in version.files],
            }
            for version in versions
        ],
        "baseline": asdict(split) if split else None,
    }
    return (json.dumps(content, indent=1, default=date.isoformat, ensure_ascii=False) + "\n").encode()


def _parse(pointer: _Pointer, manifest: Mapping[str, Any]) -> Snapshot:
    if manifest["format"] != _FORMAT:
        raise PermanentError(
            f"snapshot {pointer.id[:SHORT]} has format {manifest['format']}, this code reads {_FORMAT}; upgrade"
        )

    def days(value: Sequence[str]) -> tuple[date, date]:
        return date.fromisoformat(value[0]), date.fromisoformat(value[1])

    tables = tuple(
        TableVersion(
            relation=table["table"],
            columns=table["columns"],
            files=tuple(
                MonthFile(
                    **{
                        **file,
                        "first": date.fromisoformat(file["first"]),
                        "last": date.fromisoformat(file["last"]),
                    }
                )
                for file in table["files"]
            ),
        )
        for table in manifest["tables"]
    )
    cut = manifest["baseline"]
    split = Split(cut["ratio"], days(cut[TRAIN_BASELINE]), days(cut[TEST_BASELINE])) if cut else None
    return Snapshot(pointer.id, tables, split, pointer.taken)


def _dvc_list(listed: Mapping[str, str]) -> bytes:
    """The list of a folder's files, byte for byte as DVC writes its `.dir` objects."""
    return json.dumps([{"md5": listed[path], "relpath": path} for path in sorted(listed)]).encode()


def _dvc_pointer(snapshot: Snapshot, folder_md5: str, size: int, files: int) -> bytes:
    content = {
        "desc": snapshot.taken[-1].message,
        "meta": {
            "snapshot": snapshot.id,
            "taken": [{**asdict(taking), "at": taking.at.isoformat()} for taking in snapshot.taken],
        },
        "outs": [
            {"md5": folder_md5, "size": size, "nfiles": files, "hash": "md5", "path": snapshot.short_id}
        ],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()


def _read_pointer(path: Path) -> _Pointer:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _Pointer(
            id=content["meta"]["snapshot"],
            folder_md5=content["outs"][0]["md5"],
            taken=tuple(
                Taking(datetime.fromisoformat(taking["at"]), taking["by"], taking["message"])
                for taking in content["meta"]["taken"]
            ),
        )
    except (yaml.YAMLError, ValueError, KeyError, TypeError, IndexError) as error:
        raise PermanentError(
            f"{path} is no snapshot or is damaged; fetch it again from where it is kept, or delete it"
        ) from error


def _short(ids: Sequence[str]) -> str:
    return ", ".join(name[:SHORT] for name in ids)


def _not_here(path: str | Path, snapshot_id: str, folder: str, file: str = _MANIFEST) -> str:
    return (
        f"{file} of snapshot {snapshot_id[:SHORT]} is not here: {path} is missing; "
        f"in {folder} run: dvc fetch {snapshot_id[:SHORT]}.dvc"
    )


def _damaged(path: Path, snapshot_id: str, folder: str, file: str = _MANIFEST) -> str:
    return (
        f"{file} of snapshot {snapshot_id[:SHORT]} is damaged: {path} is not what it was; nothing was touched. "
        f"Delete that file, then in {folder} run: dvc fetch {snapshot_id[:SHORT]}.dvc"
    )
