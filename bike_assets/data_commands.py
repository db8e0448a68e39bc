"""`bike-assets data`: snapshots of the tables, taken, listed, compared and put back."""

import contextlib
import getpass
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from bike_assets.console import (
    DEFAULT_HOME,
    AsJson,
    Debug,
    Home,
    quiet,
    read_settings,
    report,
    require_platform,
    tell,
)

if TYPE_CHECKING:
    from bike_assets.resources.snapshots import Entry, Snapshot, TableDiff

data_app = typer.Typer(
    help="Versions of the data: snapshots of the tables, to compare and to go back to.\n\n"
    "A snapshot is addressed by its content: the same rows have the same id, and a month that did not change is "
    "stored once. Every training takes one of the counts it learns from.",
    no_args_is_help=True,
)

SnapshotId = Annotated[str, typer.Argument(metavar="ID", help="A snapshot: its id, or how it begins.")]


@data_app.command("snapshot")
def data_snapshot(
    message: Annotated[str, typer.Option("--message", "-m", help="Why: shown by `data list`.")] = "",
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last local day to keep; by default all.")
    ] = None,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Keep the tables as they are now: raw counts and weather, calendar, cleaned counts.

    Features, models and reports are not in it: they follow from these tables and from the code.

    bike-assets data snapshot -m "before the new cleaning rules"
    """
    settings = read_settings(home)
    require_platform(settings)
    from bike_assets.recovery import only_command
    from bike_assets.resources.snapshots import SnapshotStore, Taking
    from bike_assets.resources.warehouse import Warehouse

    with quiet(settings, debug), only_command(settings, tell), _bar() as progress:
        taken = SnapshotStore.from_settings(settings).take(
            Warehouse.from_settings(settings),
            Taking(datetime.now(UTC), _who(), message),
            last=until.date() if until else None,
            progress=progress,
        )
    result = {
        **_described(taken.snapshot),
        "known_before": taken.known,
        "new_files": taken.new_files,
        "new_bytes": taken.new_bytes,
    }
    report(result, as_json, _print_snapshot)


@data_app.command("list")
def data_list(home: Home = DEFAULT_HOME, as_json: AsJson = False, debug: Debug = False) -> None:
    """Every snapshot of the home, the newest last: who took it, when, why, and what it holds."""
    settings = read_settings(home)
    from bike_assets.resources.snapshots import SnapshotStore

    with quiet(settings, debug):
        entries = SnapshotStore.from_settings(settings).entries()
    result = {
        "folder": str(settings.snapshots_dir),
        "snapshots": [
            _described(entry.snapshot)
            if entry.snapshot
            else {"id": entry.id, "taken": _takings(entry), "fault": entry.fault}
            for entry in entries
        ],
    }
    report(result, as_json, _print_list)


@data_app.command("diff")
def data_diff(
    before: SnapshotId,
    after: SnapshotId,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """What changed from one snapshot to another: rows added, removed and changed, whose, and when.

    A row changed where any of its columns did; changed_columns says how often each. An hour that was published again
    is an added row of raw_counts and, where its value is another, a changed row of cleaned_counts.

    bike-assets data diff 3f2a 91bc
    """
    settings = read_settings(home)
    from bike_assets.resources.snapshots import SnapshotStore

    store = SnapshotStore.from_settings(settings)
    with quiet(settings, debug), _bar() as progress:
        one, other = store.find(before), store.find(after)
        tables = [_difference(diff) for diff in store.diff(one, other, progress)]
    report({"before": one.id, "after": other.id, "tables": tables}, as_json, _print_diff)


@data_app.command("restore")
def data_restore(
    snapshot: SnapshotId, home: Home = DEFAULT_HOME, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Put the tables of a snapshot back; the other tables stay as they are.

    Every file is verified first. What the tables hold now is kept as a snapshot, so that nothing is lost, and all
    tables change in one transaction. Then it says what has to be materialised again.

    bike-assets data restore 3f2a
    """
    settings = read_settings(home)
    from bike_assets.home import open_instance, prepare
    from bike_assets.recovery import end_dead_runs, only_command
    from bike_assets.restore import restore_snapshot

    prepare(settings)
    with quiet(settings, debug), only_command(settings, tell), open_instance(settings) as instance:
        end_dead_runs(settings, instance)
        with _bar() as progress:
            result = restore_snapshot(
                settings, instance, snapshot, now=datetime.now(UTC), by=_who(), tell=tell, progress=progress
            )
    report({**result, "home": str(settings.home)}, as_json, _print_restored)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user need not have a name
        user = "unknown"
    return f"{user}@{platform.node()}"


@contextlib.contextmanager
def _bar() -> Iterator[Any]:
    """A progress bar over files on a terminal; elsewhere a line whenever another kind of work begins."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        begun: set[str] = set()

        def progress(what: str, done: int, of: int) -> None:
            bar.update(task, description=what, completed=done, total=of)
            kind = what.split(" ", 1)[0]
            if not console.is_terminal and kind not in begun:
                begun.add(kind)
                tell(f"{kind} {of} files")

        yield progress


def _takings(snapshot: "Snapshot | Entry") -> list[dict[str, Any]]:
    return [
        {"at": taking.at.isoformat(timespec="seconds"), "by": taking.by, "message": taking.message}
        for taking in snapshot.taken
    ]


def _described(snapshot: "Snapshot") -> dict[str, Any]:
    split = snapshot.split
    return {
        "id": snapshot.id,
        "taken": _takings(snapshot),
        "tables": [
            {
                "table": table.relation,
                "rows": table.rows,
                "first": table.days[0],
                "last": table.days[1],
                "files": len(table.files),
            }
            for table in snapshot.tables
        ],
        "bytes": sum(file.size for file in snapshot.files),
        "baseline": {
            "ratio": split.ratio,
            "train_baseline": {"first": split.train_baseline[0], "last": split.train_baseline[1]},
            "test_baseline": {"first": split.test_baseline[0], "last": split.test_baseline[1]},
        }
        if split
        else None,
    }


def _difference(diff: "TableDiff") -> dict[str, Any]:
    return {
        "table": diff.relation,
        "added": diff.added,
        "removed": diff.removed,
        "changed": diff.changed,
        "changed_columns": dict(diff.changed_columns),
        "counters": list(diff.counters),
        "first": diff.days[0] if diff.days else None,
        "last": diff.days[-1] if diff.days else None,
        "days": len(diff.days),
    }


def _columns(*names: str, right: Sequence[str] = (), folded: Sequence[str] = ()) -> Table:
    """A table whose columns keep their width, but for those that may fold."""
    table = Table(box=None)
    for name in names:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name not in folded)
    return table


def _short(relation: str) -> str:
    return relation.rsplit(".", 1)[-1]


def _days(tables: Sequence[dict[str, Any]]) -> tuple[date, date]:
    return min(table["first"] for table in tables), max(table["last"] for table in tables)


def _print_snapshot(result: dict[str, Any]) -> None:
    console = Console()
    _print_tables(console, result)
    new = f"{result['new_files']} new files, {result['new_bytes'] / 1e6:.1f} MB"
    console.print(
        f"{'Known already' if result['known_before'] else 'Snapshot'}: {result['id']} ({new})", soft_wrap=True
    )


def _print_tables(console: Console, result: dict[str, Any]) -> None:
    table = _columns("table", "rows", "first", "last", right=("rows",))
    for row in result["tables"]:
        table.add_row(_short(row["table"]), f"{row['rows']:,}", str(row["first"]), str(row["last"]))
    console.print(table)
    if split := result.get("baseline"):
        for name in ("train_baseline", "test_baseline"):
            console.print(f"{name}: {split[name]['first']} to {split[name]['last']}")


def _print_list(result: dict[str, Any]) -> None:
    console = Console()
    if not result["snapshots"]:
        console.print("There is no snapshot yet; take one with: bike-assets data snapshot -m WHY")
        return
    table = _columns(
        "id", "taken", "rows", "days", "MB", "by", "why", right=("rows", "MB"), folded=("by", "why")
    )
    for row in result["snapshots"]:
        last = row["taken"][-1]
        name, when = row["id"][:12], last["at"][:16].replace("T", " ")
        if fault := row.get("fault"):
            table.add_row(name, when, "–", "–", "–", escape(last["by"]), escape(fault))
            continue
        first, newest = _days(row["tables"])
        table.add_row(
            name,
            when,
            f"{sum(table['rows'] for table in row['tables']):,}",
            f"{first}…{newest}",
            f"{row['bytes'] / 1e6:.1f}",
            escape(last["by"]),
            escape(last["message"]),
        )
    console.print(table)


def _print_diff(result: dict[str, Any]) -> None:
    console = Console()
    numbers = ("added", "removed", "changed", "counters")
    table = _columns("table", *numbers, "days", right=numbers)
    for row in result["tables"]:
        table.add_row(
            _short(row["table"]),
            f"{row['added']:,}",
            f"{row['removed']:,}",
            f"{row['changed']:,}",
            f"{len(row['counters']):,}",
            f"{row['first']}…{row['last']}" if row["first"] else "–",
        )
    console.print(table)
    for row in result["tables"]:
        if row["changed_columns"]:
            columns = ", ".join(f"{name} {count:,}" for name, count in row["changed_columns"].items())
            console.print(f"Changed in {_short(row['table'])}: {columns}", soft_wrap=True, markup=False)
    counters = sorted({counter for row in result["tables"] for counter in row["counters"]})
    if 0 < len(counters) <= 10:
        console.print(f"Counters: {', '.join(counters)}", soft_wrap=True, markup=False)


def _print_restored(result: dict[str, Any]) -> None:
    console = Console()
    _print_tables(console, result)
    console.print(f"Restored {result['restored'][:12]}.")
    if result["undo"]:
        console.print(
            f"Undo with: bike-assets data restore {result['undo'][:12]} --home {result['home']}",
            soft_wrap=True,
        )
    if not result["rematerialize"]:
        console.print("The rows were the same before: nothing has to be materialised again.")
        return
    console.print("Made from the former rows, and to be materialised again:")
    for arguments in result["rematerialize"]:
        console.print(
            f"  bike-assets materialize {' '.join(arguments)} --home {result['home']}",
            soft_wrap=True,
            markup=False,
        )
