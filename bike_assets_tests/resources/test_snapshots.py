"""Snapshots: the same content is the same bytes, unchanged months are stored once, nothing altered is put back."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from bike_assets.assets.ingestion import store as store_counts
from bike_assets.core.calendar import days_between
from bike_assets.core.contracts import CALENDAR_HOURS, CLEANED_COUNTS, RAW_COUNTS
from bike_assets.core.errors import PermanentError
from bike_assets.resources.snapshots import (
    SNAPSHOT_TABLES,
    Snapshot,
    SnapshotStore,
    Taken,
    Taking,
    compare,
    in_order,
    split_days,
)
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets_tests.core.synthetic import city
from bike_assets_tests.homes import environment
from bike_assets_tests.tables import batch, cleaned, day_rows

FIRST, LAST = date(2024, 1, 30), date(2024, 3, 2)
TABLES = (RAW_COUNTS, CALENDAR_HOURS, CLEANED_COUNTS)
TAKING = Taking(datetime(2024, 4, 1, 12, tzinfo=UTC), "someone", "why")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse with raw and cleaned counts over four months. Only to be copied."""
    path = tmp_path_factory.mktemp("template") / "warehouse.duckdb"
    warehouse = DuckDBWarehouse(path=str(path))
    given = batch(
        *(day_rows(day, counter) for day in days_between(FIRST, LAST) for counter in ("c00", "c01"))
    )
    store_counts(warehouse, given, FIRST, LAST, now=datetime(2024, 4, 1, tzinfo=UTC))
    warehouse.replace(CLEANED_COUNTS, cleaned(city(FIRST, LAST, counters=2, seed=3)), FIRST, LAST)
    return path


@pytest.fixture
def warehouse(template: Path, tmp_path: Path) -> DuckDBWarehouse:
    return DuckDBWarehouse(path=str(shutil.copy(template, tmp_path / "warehouse.duckdb")))


@pytest.fixture
def snapshots(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(folder=str(tmp_path / "snapshots"), baseline_ratio=0.8)


def take(snapshots: SnapshotStore, warehouse: DuckDBWarehouse) -> Snapshot:
    return snapshots.take(warehouse, TAKING).snapshot


def correct(warehouse: DuckDBWarehouse, day: date, more: int = 1) -> None:
    """The counts of `c00` on a day, corrected."""
    rows = warehouse.read(CLEANED_COUNTS, day, day)
    more_of_one = pl.when(pl.col("counter_id") == "c00").then(more).otherwise(0)
    warehouse.replace(
        CLEANED_COUNTS, rows.with_columns(hourly_count=pl.col("hourly_count") + more_of_one), day, day
    )


def contents(warehouse: DuckDBWarehouse) -> dict[str, pl.DataFrame]:
    return {table.name: in_order(table, warehouse.read(table)) for table in TABLES}


def assert_same(one: dict[str, pl.DataFrame], other: dict[str, pl.DataFrame]) -> None:
    for name, frame in one.items():
        assert frame.height, name
        assert_frame_equal(frame, other[name])


def objects(snapshots: SnapshotStore) -> dict[str, bytes]:
    root = Path(snapshots.folder, ".dvc", "cache", "files", "md5")
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_what_is_restored_is_what_was_kept_and_has_the_same_id(
    warehouse: DuckDBWarehouse, snapshots: SnapshotStore
) -> None:
    before = contents(warehouse)
    first = take(snapshots, warehouse)
    correct(warehouse, LAST)
    warehouse.replace(RAW_COUNTS, RAW_COUNTS.empty(), FIRST, FIRST + timedelta(days=3))
    second = take(snapshots, warehouse)
    assert second.id != first.id

    snapshots.restore(warehouse, first)

    assert_same(contents(warehouse), before)
    again = snapshots.take(warehouse, TAKING)
    assert again.snapshot.id == first.id
    assert again.known
    assert again.new_files == 0


def test_a_snapshot_fills_a_warehouse_that_is_not_there_yet(
    warehouse: DuckDBWarehouse, snapshots: SnapshotStore, tmp_path: Path
) -> None:
    snapshot = take(snapshots, warehouse)
    other = DuckDBWarehouse(path=str(tmp_path / "other.duckdb"))

    snapshots.restore(other, snapshot)

    assert_same(contents(other), contents(warehouse))


def test_the_same_rows_written_in_another_order_are_the_same_bytes(
    warehouse: DuckDBWarehouse, snapshots: SnapshotStore, tmp_path: Path
) -> None:
    kept = take(snapshots, warehouse)
    shuffled = DuckDBWarehouse(path=str(tmp_path / "shuffled.duckdb"))
    for table in TABLES:
        rows = warehouse.read(table).sample(fraction=1, shuffle=True, seed=1)
        for first, last in ((date(2024, 2, 15), LAST), (FIRST, date(2024, 2, 14))):
            part = rows.filter(pl.col("service_date").is_between(first, last))
            shuffled.replace(table, part, first, last)
    elsewhere = SnapshotStore(folder=str(tmp_path / "elsewhere"), baseline_ratio=0.8)

    assert take(elsewhere, shuffled).id == kept.id
    assert objects(elsewhere) == objects(snapshots)


def test_only_the_month_that_changed_is_stored_again(
    warehouse: DuckDBWarehouse, snapshots: SnapshotStore
) -> None:
    first = take(snapshots, warehouse)
    assert len({file.md5 for file in first.files}) == len(first.files)
    correct(warehouse, date(2024, 2, 10))

    taken = snapshots.take(warehouse, TAKING)

    changed = {file.path for file in taken.snapshot.files} - {
        file.path for file in first.files if file.sha256 in {new.sha256 for new in taken.snapshot.files}
    }
    assert changed == {"cleaned_counts/train_baseline/2024-02.parquet"}
    assert taken.new_files == 3, "the month, the manifest and the list of files"


def test_files_are_named_by_their_content_and_can_be_read_by_anything(
    warehouse: DuckDBWarehouse, snapshots: SnapshotStore
) -> None:
    import hashlib

    snapshot = take(snapshots, warehouse)
    found = objects(snapshots)
    for name, content in found.items():
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == name.replace("/", "").removesuffix(
            ".dir"
        )
    assert snapshot.id in {hashlib.sha256(content).hexdigest() for content in found.values()}
    files = [file for file in snapshot.files if file.path.startswith("cleaned_counts")]
    rows = pl.concat(pl.read_parquet(io.BytesIO(found[f"{file.md5[:2]}/{file.md5[2:]}"])) for file in files)
    assert rows.schema == CLEANED_COUNTS.polars_schema
    assert_frame_equal(in_order(CLEANED_COUNTS, rows), contents(warehouse)["cleaned_counts"])


def test_the_days_after_the_last_one_do_not_matter(
    warehouse: DuckDBWarehouse, snapshots: SnapshotStore
) -> None:
    def until(day: date) -> str:
        return snapshots.take(warehouse, TAKING, tables=[CLEANED_COUNTS], last=day).snapshot.id

    before = until(date(2024, 2, 20))
    correct(warehouse, date(2024, 2, 21))
    assert until(date(2024, 2, 20)) == before
    assert until(date(2024, 2, 21)) != before
    correct(warehouse, date(2024, 2, 20))
    assert until(date(2024, 2, 20)) != before


def test_the_baseline_split_is_by_time_and_in_the_folders(
    warehouse: DuckDBWarehouse, snapshots: SnapshotStore
) -> None:
    snapshot = take(snapshots, warehouse)

    split = snapshot.split
    assert split is not None
    assert split.train_baseline == (FIRST, FIRST + timedelta(days=25))
    assert split.test_baseline == (FIRST + timedelta(days=26), LAST)
    for side, (first, last) in (("train", split.train_baseline), ("test", split.test_baseline)):
        files = [file for file in snapshot.files if file.path.startswith(f"cleaned_counts/{side}_baseline/")]
        assert (min(file.first for file in files), max(file.last for file in files)) == (first, last)
        assert sum(file.rows for file in files) == warehouse.read(CLEANED_COUNTS, first, last).height
    other = SnapshotStore(folder=snapshots.folder, baseline_ratio=0.5)
    assert take(other, warehouse).id != snapshot.id, "another split is another snapshot"


@given(
    st.sets(st.dates(date(2016, 1, 1), date(2025, 1, 1)), max_size=60),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
)
def test_every_split_has_two_sides_that_share_no_day(days: set[date], ratio: float) -> None:
    ordered = sorted(days)
    split = split_days(ordered, ratio)
    if len(days) < 2:
        assert split is None
        return
    assert split is not None
    assert (split.train_baseline[0], split.test_baseline[1]) == (ordered[0], ordered[-1])
    cut = ordered.index(split.test_baseline[0])
    assert ordered[cut - 1] == split.train_baseline[1]
    assert abs(cut - len(days) * ratio) <= 1


def test_who_when_and_why_are_told_of_every_taking(
    warehouse: DuckDBWarehouse, snapshots: SnapshotStore
) -> None:
    first = take(snapshots, warehouse)
    later = Taking(TAKING.at + timedelta(days=1), "another: ü", 'why "not"\n- 1')
    snapshots.take(warehouse, later)
    correct(warehouse, LAST)
    second = snapshots.take(warehouse, Taking(TAKING.at + timedelta(hours=1), "x", "")).snapshot

    entries = snapshots.entries()

    assert [entry.id for entry in entries] == [second.id, first.id], "the newest last"
    assert entries[1].taken == (TAKING, later)
    assert entries[1].snapshot is not None
    assert entries[1].snapshot.tables == first.tables
    assert entries[1].snapshot.split == first.split


def test_ids_may_be_shortened_and_wrong_ones_are_told_the_nearest(
    warehouse: DuckDBWarehouse, snapshots: SnapshotStore
) -> None:
    with pytest.raises(PermanentError, match="no snapshot yet; run: bike-assets data snapshot"):
        snapshots.find("ab")
    snapshot = take(snapshots, warehouse)
    assert snapshots.find(snapshot.id) == snapshots.find(snapshot.id[:4].upper()) == snapshot
    typo = snapshot.id[:7] + ("0" if snapshot.id[7] != "0" else "1")
    with pytest.raises(PermanentError, match=f"the nearest: {snapshot.short_id}"):
        snapshots.find(typo)
    with pytest.raises(PermanentError, match=f"the newest: {snapshot.short_id}"):
        snapshots.find("zzzz")
    correct(warehouse, LAST)
    other = take(snapshots, warehouse)
    with pytest.raises(PermanentError, match="give more digits") as error:
        snapshots.find("")
    assert other.short_id in str(error.value)


def _alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [_alter, Path.unlink], ids=["altered", "missing"])
@pytest.mark.parametrize("what", ["a month", "manifest"])
def test_a_file_that_is_not_what_it_was_is_named_and_nothing_is_touched(
    warehouse: DuckDBWarehouse, snapshots: SnapshotStore, harm: Callable[[Path], None], what: str
) -> None:
    snapshot = take(snapshots, warehouse)
    root = Path(snapshots.folder, ".dvc", "cache", "files", "md5")
    if what == "manifest":
        name = next(name for name, text in objects(snapshots).items() if text.startswith(b'{\n "format"'))
    else:
        md5 = snapshot.files[-1].md5
        name = f"{md5[:2]}/{md5[2:]}"
    harm(root / name)
    correct(warehouse, LAST)
    before = contents(warehouse)

    with pytest.raises(PermanentError, match=r"dvc fetch") as error:
        snapshots.restore(warehouse, snapshots.find(snapshot.id))

    assert name in str(error.value)
    assert ("manifest.json" if what == "manifest" else snapshot.files[-1].path) in str(error.value)
    assert_same(contents(warehouse), before)
    (entry,) = snapshots.entries()
    assert (entry.snapshot is None) == (what == "manifest"), "the list stands although one cannot be read"
    correct(warehouse, LAST, more=-1)
    assert snapshots.take(warehouse, TAKING).snapshot.id == snapshot.id
    snapshots.verify(snapshots.find(snapshot.id))  # taking it again has put the file right


def test_a_pointer_that_is_damaged_is_named(warehouse: DuckDBWarehouse, snapshots: SnapshotStore) -> None:
    snapshot = take(snapshots, warehouse)
    path = Path(snapshots.folder, f"{snapshot.short_id}.dvc")
    path.write_text("outs: []\n")
    with pytest.raises(PermanentError, match=path.name):
        snapshots.find(snapshot.id)


def test_nothing_to_keep_is_said(snapshots: SnapshotStore, tmp_path: Path) -> None:
    empty = DuckDBWarehouse(path=str(tmp_path / "empty.duckdb"))
    assert not snapshots.has_rows(empty)
    with pytest.raises(PermanentError, match=r"no rows.*bike-assets ingest"):
        take(snapshots, empty)
    assert snapshots.entries() == []


def test_diff_counts_rows_columns_counters_and_days(
    warehouse: DuckDBWarehouse, snapshots: SnapshotStore
) -> None:
    first = take(snapshots, warehouse)
    gone, corrected = date(2024, 2, 1), date(2024, 3, 1)
    hours = warehouse.read(CLEANED_COUNTS, gone, gone).height
    warehouse.replace(CLEANED_COUNTS, CLEANED_COUNTS.empty(), gone, gone)
    correct(warehouse, corrected)
    second = take(snapshots, warehouse)

    forth = {diff.relation: diff for diff in snapshots.diff(first, second)}
    back = {diff.relation: diff for diff in snapshots.diff(second, first)}

    found = forth[CLEANED_COUNTS.relation]
    assert (found.added, found.removed, found.changed) == (0, hours, 24)
    assert found.changed_columns == {"hourly_count": 24}
    assert found.days == (gone, corrected)
    assert found.counters == ("c00", "c01")
    assert back[CLEANED_COUNTS.relation].added == hours
    for relation in (RAW_COUNTS.relation, CALENDAR_HOURS.relation):
        assert (forth[relation].added, forth[relation].removed, forth[relation].changed) == (0, 0, 0)


def test_an_hour_published_again_is_an_added_row_of_the_raw_counts() -> None:
    day = date(2024, 3, 31)

    def raw(*frames: pl.DataFrame) -> pl.DataFrame:
        return RAW_COUNTS.conform(
            pl.concat(frames).with_columns(ingested_at=pl.lit(TAKING.at), content_hash=pl.lit("h"))
        )

    once = day_rows(day)
    later = day_rows(
        day,
        count=lambda n: n + 1.0,
        source_file="later.csv",
        published_until=datetime(2024, 5, 1, tzinfo=UTC),
    )
    assert once.height == 23, "the clock goes forward"

    both = compare(RAW_COUNTS, raw(once), raw(later, once))
    assert (both.added, both.removed, both.changed) == (23, 0, 0)
    instead = compare(RAW_COUNTS, raw(once), raw(later))
    assert (instead.added, instead.removed, instead.changed) == (0, 0, 23)
    assert set(instead.changed_columns) == {"hourly_count", "source_file", "published_until"}
    twice = compare(RAW_COUNTS, raw(once, once), raw(once))
    assert (twice.added, twice.removed, twice.changed) == (0, 23, 0)


def test_a_column_that_came_later_is_null_in_what_was_kept_before(
    warehouse: DuckDBWarehouse, snapshots: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from bike_assets.core.contracts import Column
    from bike_assets.resources import snapshots as module

    snapshot = take(snapshots, warehouse)
    wider = replace(
        CLEANED_COUNTS, columns=(*CLEANED_COUNTS.columns, Column("new", pl.Int64, "", nullable=True))
    )
    monkeypatch.setattr(module, "SNAPSHOT_TABLES", (RAW_COUNTS, CALENDAR_HOURS, wider))
    fresh = DuckDBWarehouse(path=str(Path(warehouse.path).with_name("fresh.duckdb")))

    snapshots.restore(fresh, snapshot)

    rows = fresh.read(wider)
    assert rows["new"].null_count() == rows.height > 0


def test_a_full_disk_is_said_and_leaves_no_snapshot(
    warehouse: DuckDBWarehouse, snapshots: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    take(snapshots, warehouse)
    known = set(objects(snapshots))
    correct(warehouse, LAST)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(PermanentError, match=r"No space left on device.*no snapshot was taken"):
            take(snapshots, warehouse)
    assert set(objects(snapshots)) == known
    assert len(snapshots.entries()) == 1


def test_two_at_once_take_the_same_snapshot(warehouse: DuckDBWarehouse, snapshots: SnapshotStore) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: snapshots.take(warehouse, TAKING), range(2))

    assert isinstance(one, Taken)
    assert one.snapshot.id == other.snapshot.id
    assert {one.known, other.known} == {False, True}
    (entry,) = snapshots.entries()
    assert len(entry.taken) == 2
    snapshots.verify(snapshots.find(entry.id))


KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from bike_assets.resources.snapshots import SnapshotStore, Taking
from bike_assets.resources.warehouse import DuckDBWarehouse

folder, path, snapshot, what, at = sys.argv[1:]
store, warehouse = SnapshotStore(folder=folder, baseline_ratio=0.8), DuckDBWarehouse(path=path)

def progress(text, done, of):
    if text.startswith(what) and done == int(at):
        os.kill(os.getpid(), signal.SIGKILL)

if what == "keeping":
    store.take(warehouse, Taking(datetime.now(UTC), "killed", ""), progress=progress)
else:
    store.restore(warehouse, store.find(snapshot), progress)
"""


def kill_in(
    what: str, at: int, snapshots: SnapshotStore, warehouse: DuckDBWarehouse, snapshot: Snapshot
) -> None:
    """Take or restore a snapshot in a process that is killed before its `at`-th file."""
    arguments = (snapshots.folder, warehouse.path, snapshot.id, what, str(at))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *arguments],
        env=environment(),
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "at", [pytest.param(0, marks=pytest.mark.slow), 4, pytest.param(7, marks=pytest.mark.slow)]
)
def test_killed_while_restoring_the_tables_are_the_old_ones(
    warehouse: DuckDBWarehouse, snapshots: SnapshotStore, at: int
) -> None:
    before = contents(warehouse)
    snapshot = take(snapshots, warehouse)
    correct(warehouse, LAST)
    warehouse.replace(RAW_COUNTS, RAW_COUNTS.empty(), FIRST, FIRST)
    corrected = contents(warehouse)

    kill_in("restoring", at, snapshots, warehouse, snapshot)

    assert_same(contents(warehouse), corrected)
    snapshots.restore(warehouse, snapshot)
    assert_same(contents(warehouse), before)


@pytest.mark.parametrize("at", [pytest.param(0, marks=pytest.mark.slow), 8])
def test_killed_while_keeping_there_is_no_snapshot_and_the_next_one_is_whole(
    warehouse: DuckDBWarehouse, snapshots: SnapshotStore, at: int
) -> None:
    first = take(snapshots, warehouse)
    for month in (1, 2, 3):
        correct(warehouse, date(2024, month, 1) if month > 1 else FIRST)

    kill_in("keeping", at, snapshots, warehouse, first)

    assert [entry.id for entry in snapshots.entries()] == [first.id]
    second = take(snapshots, warehouse)
    snapshots.verify(snapshots.find(second.id))
    assert not Path(snapshots.folder, ".partial").exists()


def test_every_table_that_cannot_be_made_again_is_kept() -> None:
    """The calendar goes with the raw counts: cleaning joins them."""
    assert {table.name for table in SNAPSHOT_TABLES} == {
        "raw_counts",
        "calendar_hours",
        "raw_weather",
        "cleaned_counts",
    }
