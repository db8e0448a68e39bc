"""Putting a snapshot back into a home: the tables, what Dagster records of them, and what is to be made again.

Belongs here: the order of these steps and what happens when one is killed. Does not belong here: what a snapshot
is (see `bike_assets.resources.snapshots`).
"""

import json
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import dagster as dg

from bike_assets.core import health
from bike_assets.core.contracts import CLEANED_COUNTS, RAW_COUNTS, RAW_WEATHER, features_contract
from bike_assets.core.errors import PermanentError
from bike_assets.core.features import FEATURE_COLUMNS, LOOKBACK_DAYS
from bike_assets.recovery import WORKING
from bike_assets.resources.snapshots import Progress, Snapshot, SnapshotStore, TableDiff, Taking
from bike_assets.resources.warehouse import Warehouse
from bike_assets.settings import Settings

_ASSETS: Final = {table.relation: table.name for table in (RAW_COUNTS, RAW_WEATHER, CLEANED_COUNTS)}
"""Tables whose partitions Dagster records. The calendar of the hours has no asset of its own."""

_NOTE: Final = "restoring.json"
"""Days whose new content Dagster has not been told of yet."""


def restore_snapshot(
    settings: Settings,
    instance: dg.DagsterInstance,
    prefix: str,
    *,
    now: datetime,
    by: str,
    tell: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    """Put the tables of a snapshot back, after taking one of what they hold now.

    The tables change in one transaction. Dagster is then told of every partition that has other rows than before,
    so that it shows what was made from the former ones as out of date; a kill in between leaves a note, and the
    next restore catches up.

    Returns:
        What `bike-assets data restore --json` prints.

    Raises:
        PermanentError: no such snapshot, a damaged or missing file, or a run is at work; nothing was touched.
    """
    store = SnapshotStore.from_settings(settings)
    warehouse = Warehouse.from_settings(settings)
    target = store.find(prefix)
    working = instance.get_runs(dg.RunsFilter(statuses=list(WORKING)))
    if working:
        raise PermanentError(
            f"run {working[0].run_id[:8]} is at work on {settings.home}; wait for it, or end it in the UI"
        )
    store.verify(target, progress)
    former = Snapshot("", (), None, ())
    if store.has_rows(warehouse):
        former = store.take(
            warehouse, Taking(now, by, f"before {target.short_id} was restored"), progress=progress
        ).snapshot
    relations = {table.relation for table in target.tables}
    diffs = [diff for diff in store.diff(former, target, progress) if diff.relation in relations]
    note = Path(store.folder, _NOTE)
    changed = _merge(_read_note(note), diffs)
    note.write_text(json.dumps({name: [day.isoformat() for day in days] for name, days in changed.items()}))
    store.restore(warehouse, target, progress)
    tell("recording the restored partitions in Dagster")
    _record(instance, warehouse, target, changed)
    note.unlink()
    return {
        "restored": target.id,
        "undo": former.id or None,
        "tables": [
            {"table": table.relation, "rows": table.rows, "first": table.days[0], "last": table.days[1]}
            for table in target.tables
        ],
        "changed_partitions": {name: len(days) for name, days in changed.items()},
        "rematerialize": what_to_make_again(warehouse, changed),
    }


def what_to_make_again(warehouse: Warehouse, changed: dict[str, list[date]]) -> list[list[str]]:
    """What was made from rows that are no longer there, as arguments of `bike-assets materialize`, in order.

    Forecasts already issued stay as they were issued, and so do the reports about them.
    """
    commands: list[list[str]] = []
    cleaned = changed.get(CLEANED_COUNTS.name, [])
    raw = changed.get(RAW_COUNTS.name, [])
    if raw and CLEANED_COUNTS.name not in changed:
        cleaned = raw
        commands.append([CLEANED_COUNTS.name, "--from", f"{raw[0]}", "--to", f"{raw[-1]}"])
    if not cleaned:
        return commands
    commands.append(["counters", "forecast_accuracy"])
    newest = warehouse.newest_day(CLEANED_COUNTS)
    until = min(cleaned[-1] + timedelta(days=health.LOOKBACK_DAYS), newest or cleaned[-1])
    if cleaned[0] <= until:
        commands.append(["counter_health", "filled_counts", "--from", f"{cleaned[0]}", "--to", f"{until}"])
    features = features_contract(FEATURE_COLUMNS)
    if newest := warehouse.newest_day(features):
        first, last = cleaned[0] + timedelta(days=1), cleaned[-1] + timedelta(days=LOOKBACK_DAYS)
        if first <= newest:
            commands.append(["features", "--from", f"{first}", "--to", f"{min(last, newest)}"])
    commands.append(["trained_model", "champion"])
    return commands


def _merge(pending: dict[str, list[date]], diffs: list[TableDiff]) -> dict[str, list[date]]:
    """Changed days by asset, in order; an asset whose table was restored without a change has none."""
    days = {_ASSETS[diff.relation]: set(diff.days) for diff in diffs if diff.relation in _ASSETS}
    for name, more in pending.items():
        days.setdefault(name, set()).update(more)
    return {name: sorted(found) for name, found in days.items()}


def _read_note(note: Path) -> dict[str, list[date]]:
    if not note.exists():
        return {}
    try:
        found = json.loads(note.read_text())
    except ValueError:
        return {}  # killed while it was written: nothing had been changed yet
    return {name: [date.fromisoformat(day) for day in days] for name, days in found.items()}


def _record(
    instance: dg.DagsterInstance, warehouse: Warehouse, target: Snapshot, changed: dict[str, list[date]]
) -> None:
    relations = {name: relation for relation, name in _ASSETS.items()}
    for name, days in changed.items():
        if not days:
            continue
        counted = (
            f"SELECT service_date, count(*) FROM {relations[name]} "  # noqa: S608
            "WHERE service_date BETWEEN ? AND ? GROUP BY service_date"
        )
        rows = dict(warehouse.query(counted, [days[0], days[-1]]).iter_rows())
        for day in days:
            instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    name,
                    partition=day.isoformat(),
                    description=f"Restored from snapshot {target.short_id}",
                    metadata={"snapshot": target.id, "dagster/row_count": rows.get(day, 0)},
                )
            )
