"""`bike-assets explain`: why the champion forecasts what it does for one counter and hour.

Belongs here: finding the hour's features, the champion and the truth. Does not belong here: how a forecast is taken
apart (`bike_assets.core.explain`).
"""

from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

from bike_assets.assets.forecasting import FEATURES, newest_day
from bike_assets.core.calendar import LOCAL_TZ
from bike_assets.core.contracts import CLEANED_COUNTS, COUNTERS
from bike_assets.core.errors import PermanentError
from bike_assets.core.explain import explain
from bike_assets.core.features import MAX_HORIZON
from bike_assets.resources.registry import ModelRegistry
from bike_assets.resources.warehouse import Warehouse
from bike_assets.settings import Settings


def explain_hour(
    settings: Settings, counter: str, hour: datetime, issue_date: date | None = None
) -> dict[str, Any]:
    """One forecast of the champion and the parts it is made of.

    Args:
        settings: the home.
        counter: its id, or a part of its name that only it has.
        hour: start of the hour; without a time zone it is local time.
        issue_date: when the forecast is issued; by default as late as counts allow.

    Returns:
        The result as `bike-assets explain --json` prints it; `parts` in bicycles sum to `forecast`.

    Raises:
        PermanentError: no such counter, no features of that issue date, no champion, or one of another family.
    """
    warehouse = Warehouse.from_settings(settings)
    counter_id, name = _find_counter(warehouse, counter)
    local = hour.astimezone(ZoneInfo(LOCAL_TZ)) if hour.tzinfo else hour.replace(tzinfo=ZoneInfo(LOCAL_TZ))
    day = local.date()
    issued = issue_date or min(day, newest_day(warehouse) + timedelta(days=1))
    if not 0 <= (day - issued).days < MAX_HORIZON:
        raise PermanentError(
            f"{local:%Y-%m-%d %H:%M} is not forecast on {issued}: a forecast reaches from its issue date to "
            f"{MAX_HORIZON - 1} days after; give another --issue-date"
        )
    row = warehouse.read(FEATURES, issued, issued).filter(
        (pl.col("counter_id") == counter_id) & (pl.col("target_ts") == local.astimezone(ZoneInfo("UTC")))
    )
    if row.is_empty():
        raise PermanentError(
            f"there are no features of {counter_id} at {local:%Y-%m-%d %H:%M} issued on {issued}; run: "
            f"bike-assets materialize features --partition {issued}"
        )
    registry = ModelRegistry.from_settings(settings)
    version = registry.champion()
    forecaster = registry.load_forecaster(version)
    forecast = forecaster.predict(row).row(0, named=True)
    truth = warehouse.read(CLEANED_COUNTS, day, day, columns=("counter_id", "ts_utc", "hourly_count")).filter(
        (pl.col("counter_id") == counter_id) & (pl.col("ts_utc") == forecast["target_ts"])
    )
    return {
        "counter_id": counter_id,
        "counter_name": name,
        "hour": local.isoformat(timespec="minutes"),
        "issue_date": issued.isoformat(),
        "horizon": forecast["horizon"],
        "model": f"{version.name} version {version.version}",
        **{key: value for key, value in forecast.items() if isinstance(value, float)},
        "counted": truth["hourly_count"].item() if truth.height else None,
        "parts": explain(forecaster, row).select("part", "value", "factor", "bicycles").to_dicts(),
    }


def _find_counter(warehouse: Warehouse, wanted: str) -> tuple[str, str | None]:
    known = warehouse.query(f"SELECT counter_id, counter_name FROM {COUNTERS.relation}").rows()  # noqa: S608
    found = [row for row in known if row[0] == wanted] or [
        row for row in known if wanted.casefold() in (row[1] or "").casefold()
    ]
    if len(found) != 1:
        some = ", ".join(f"{name} ({counter_id})" for counter_id, name in (found or known)[:5])
        raise PermanentError(
            f"{wanted!r} is {'the name of several counters' if found else 'no counter'}; give an id, as of {some}"
        )
    counter_id, name = found[0]
    return str(counter_id), name
