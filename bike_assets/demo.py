"""The whole graph over a city's history, as a user sees it first: `bike-assets demo`.

Trains on what precedes the test days, then forecasts each of those days as it would have been issued that
morning, and measures against what was counted. Everything goes through Dagster, so the UI shows it afterwards.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from importlib import import_module
from typing import Any

import dagster as dg
import polars as pl

from bike_assets.assets.dbt_models import ACCURACY_MODELS, DESCRIBING_MODELS
from bike_assets.assets.monitoring import REPORT_HTML, report_folder, reported_drift
from bike_assets.core.contracts import CLEANED_COUNTS, PREDICTIONS, RAW_COUNTS
from bike_assets.core.errors import PermanentError
from bike_assets.core.features import WARM_UP_DAYS
from bike_assets.core.metrics import accuracy_by_horizon
from bike_assets.jobs import CLEANED
from bike_assets.peak_memory import PeakMemory
from bike_assets.resources.registry import ModelRegistry
from bike_assets.resources.source import CountsSourceResource, forget_sources
from bike_assets.resources.warehouse import EVERY_DAY, Warehouse
from bike_assets.runner import Outcome, materialize, materialize_weather
from bike_assets.settings import Settings
from bike_assets.sources.base import busy_span

MIN_HISTORY_DAYS = 120
"""Days of history before the test days: eight weeks for features to look back on, four to calibrate, some to learn."""


@dataclass(frozen=True)
class Windows:
    """The days of a demo: counts from `first` to `last`, training up to `train_until`, tests up to `test_until`."""

    first: date
    last: date
    train_until: date
    test_until: date

    @property
    def issue_dates(self) -> tuple[date, date]:
        """First and last day a tested forecast is issued on."""
        return self.train_until + timedelta(days=1), self.test_until


def plan_windows(
    counts: pl.DataFrame,
    *,
    test_days: int,
    train_until: date | None = None,
    test_until: date | None = None,
) -> Windows:
    """Where training ends and which days are tested.

    Args:
        counts: the source's rows: `service_date`, `counter_id`, `ts_utc`.
        test_days: complete days at the end that are tested, when no dates are given.
        train_until: last local day whose counts training may see.
        test_until: last local day whose hours are tested.

    Raises:
        PermanentError: too little history, or dates outside it.
    """
    first, newest = busy_span(counts)
    last = test_until or last_complete_day(counts, newest)
    until = train_until or last - timedelta(days=test_days)
    if not first <= until < last:
        raise PermanentError(
            f"training up to {until} and testing up to {last} does not fit counts of {first} to {newest}; "
            "choose --train-until and --test-until within them"
        )
    if (until - first).days < MIN_HISTORY_DAYS:
        raise PermanentError(
            f"counts from {first} to {until} are {(until - first).days + 1} days of history; training needs "
            f"{MIN_HISTORY_DAYS}: give older exports or fewer --test-days"
        )
    return Windows(first=first, last=newest, train_until=until, test_until=last)


def last_complete_day(counts: pl.DataFrame, newest: date) -> date:
    """The newest local day whose last hour most counters have published.

    The portal publishes day by day, but an export may be cut anywhere.
    """
    day = newest
    while True:
        rows = counts.filter(service_date=day)
        reporting = rows.get_column("counter_id").n_unique()
        at_the_end = rows.filter(pl.col("ts_utc").dt.convert_time_zone("Europe/Paris").dt.hour() == 23).height
        if reporting == 0 or at_the_end >= reporting / 2:
            return day
        day -= timedelta(days=1)


def run_demo(
    settings: Settings,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    *,
    test_days: int = 28,
    train_until: date | None = None,
    test_until: date | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run the whole graph and measure it.

    Args:
        settings: the home and the source.
        definitions: what `build_defs` made of the settings.
        instance: where runs are recorded.
        test_days: see `plan_windows`.
        train_until: see `plan_windows`.
        test_until: see `plan_windows`.
        progress: is told what comes next, a short line a stage.

    Returns:
        The result as `bike-assets demo --json` prints it.

    Raises:
        PermanentError: the source cannot be read, or a stage failed.
    """
    started = time.monotonic()
    with PeakMemory() as memory:
        outcome, windows = _materialize_all(
            settings,
            definitions,
            instance,
            test_days=test_days,
            train_until=train_until,
            test_until=test_until,
            progress=progress,
        )
        progress("measuring")
        return {
            **_measure(settings, windows),
            "checks": {"passed": outcome.passed, "warned": outcome.warned, "failed": outcome.failed},
            "seconds": {
                **{name: round(seconds, 2) for name, seconds in outcome.seconds.items()},
                "total": round(time.monotonic() - started, 2),
            },
            "peak_memory_mb": memory.megabytes,
            "home": str(settings.home),
        }


def _materialize_all(
    settings: Settings,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    *,
    test_days: int,
    train_until: date | None,
    test_until: date | None,
    progress: Callable[[str], None],
) -> tuple[Outcome, Windows]:
    """Every stage in its order; what the runs did, and on which days."""
    progress("reading the source")
    source = CountsSourceResource.from_settings(settings).open()
    span = source.span()
    batch = source.read(*span)
    for fault in batch.faults:
        progress(fault.line())
    windows = plan_windows(batch.counts, test_days=test_days, train_until=train_until, test_until=test_until)
    del batch
    newest_issue = windows.last + timedelta(days=1)
    outcome = Outcome()

    def stage(text: str, assets: list[str], **arguments: Any) -> None:
        progress(text)
        materialize(definitions, instance, assets, outcome=outcome, **arguments)

    stage(f"raw_counts: {span[0]} to {span[1]}", ["raw_counts"], days=span)
    del source
    forget_sources()
    _import_while_dbt_runs()
    stage(f"{', '.join(CLEANED)}: {span[0]} to {span[1]}", [*CLEANED], days=span)
    stage("counters and traffic", [*DESCRIBING_MODELS])
    materialize_weather(settings, definitions, instance, span, outcome=outcome, progress=progress)
    first_issue = max(
        windows.first + timedelta(days=WARM_UP_DAYS),
        windows.train_until - timedelta(days=settings.training_days - 1),
    )
    stage(
        f"features: issue dates {first_issue} to {newest_issue}",
        ["features"],
        days=(first_issue, newest_issue),
    )
    stage(
        f"trained_model, champion: counts up to {windows.train_until}",
        ["trained_model", "champion"],
        config={"trained_model": {"train_until": windows.train_until.isoformat()}},
    )
    first_test, _ = windows.issue_dates
    stage(
        f"predictions: issue dates {first_test} to {newest_issue}",
        ["predictions"],
        days=(first_test, newest_issue),
    )
    stage(", ".join(ACCURACY_MODELS), [*ACCURACY_MODELS])
    monitored = (newest_issue, newest_issue)
    stage("drift_report, retraining_decision", ["drift_report", "retraining_decision"], days=monitored)
    return outcome, windows


def _import_while_dbt_runs() -> None:
    """Load what later steps need while this process waits for dbt, which runs in one of its own."""

    def load() -> None:
        for library in ("mlflow", "catboost", "matplotlib", "evidently"):
            import_module(library)

    # Two seconds on, dbt has been started; before, importing would hold up the start of the run.
    ahead = threading.Timer(2, load)
    ahead.daemon = True
    ahead.start()


def _measure(settings: Settings, windows: Windows) -> dict[str, Any]:
    """What the home holds now: sizes, champion, accuracy on the test days, drift."""
    first_test, last_test = windows.issue_dates
    newest_issue = windows.last + timedelta(days=1)
    warehouse = Warehouse.from_settings(settings)
    champion = ModelRegistry.from_settings(settings).champion()
    truth = warehouse.read(
        CLEANED_COUNTS, first_test, windows.test_until, columns=("counter_id", "ts_utc", "hourly_count")
    )
    accuracy = accuracy_by_horizon(warehouse.read(PREDICTIONS, first_test, last_test), truth)
    drift = reported_drift(settings, newest_issue)
    return {
        "source": settings.source,
        "rows_raw": _count(warehouse, RAW_COUNTS.relation),
        "rows_clean": _count(warehouse, CLEANED_COUNTS.relation),
        "counters": warehouse.query(
            f"SELECT count(DISTINCT counter_id) FROM {CLEANED_COUNTS.relation} WHERE service_date >= ?",  # noqa: S608
            [EVERY_DAY],
        ).item(),
        "issue_dates": {
            "first": first_test.isoformat(),
            "last": last_test.isoformat(),
            "n": (last_test - first_test).days + 1,
        },
        "champion": {"name": champion.name, "version": champion.version, "run_id": champion.run_id},
        "accuracy": {str(horizon): _finite(asdict(scores)) for horizon, scores in accuracy.items()},
        "drift": {
            "share": drift["share"],
            "drifted": drift["drifted"],
            "report": str(report_folder(settings, newest_issue) / REPORT_HTML),
        },
    }


def _finite(scores: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: what is not defined (R² of a constant truth, say) is null."""
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


def _count(warehouse: Warehouse, relation: str) -> int:
    sql = f"SELECT count(*) FROM {relation} WHERE service_date >= ?"  # noqa: S608
    return int(warehouse.query(sql, [EVERY_DAY]).item())
