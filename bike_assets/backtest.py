"""`bike-assets backtest`: past forecasts over the home's counts, kept origin by origin, and what they were worth.

Belongs here: reading counts, keeping finished origins so that a killed backtest goes on where it stopped, writing
results. Does not belong here: what a forecast may see and how it is judged (`bike_assets.core.backtest`), and the
look of the report (`bike_assets.backtest_report`).

    <home>/backtests/<id>/forecasts/<first issue date>/<family>.parquet   scored hours of one origin, written once
    <home>/backtests/<id>/metrics.parquet, result.json, report.html       of the last command with this id

The id is a hash of everything a forecast depends on (counts, windows, training settings, the code of `core`), and not
of the families: one more family costs its own time alone.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

import bike_assets.core
from bike_assets.assets.forecasting import believable_truth
from bike_assets.backtest_report import report_html
from bike_assets.core.affluence import affluence_table, reliability
from bike_assets.core.backtest import (
    COUNT_COLUMNS,
    BacktestConfig,
    Origin,
    evaluate,
    fit,
    issue,
    plan_origins,
    told_weather,
    training_data,
    verdict,
)
from bike_assets.core.bundle import WEATHER_CONTEXT_COLUMNS
from bike_assets.core.contracts import CLEANED_COUNTS, RAW_WEATHER
from bike_assets.core.errors import PermanentError
from bike_assets.home import remember_source, source_environment
from bike_assets.peak_memory import PeakMemory
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.settings import Settings
from bike_assets.sources.base import busy_span

if TYPE_CHECKING:
    import dagster as dg

METRICS_FILE: Final = "metrics.parquet"
RESULT_FILE: Final = "result.json"
REPORT_FILE: Final = "report.html"

_FILLED_FILE: Final = "filled_from.json"

_FIT_SHARE: Final = 30.0
"""A training counts as much towards the progress as forecasts of this many issue dates."""

Progress = Callable[[str, float], None]
"""Is told what is being done, and which share of everything is done already (0 to 1)."""


@dataclass(frozen=True)
class Store:
    """The folder of one backtest."""

    folder: Path

    @property
    def id(self) -> str:
        """What the folder is called."""
        return self.folder.name

    def path(self, origin: Origin, family: str) -> Path:
        """Where the scored hours of an origin and a family are kept."""
        return self.folder / "forecasts" / origin.first.isoformat() / f"{family}.parquet"

    def has(self, origin: Origin, family: str) -> bool:
        """Whether they are there, whole."""
        return self.path(origin, family).exists()

    def write(self, origin: Origin, family: str, scored: pl.DataFrame) -> None:
        """Keep them: all or nothing, whenever the process is killed."""
        target = self.path(origin, family)
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole(target) as temporary:
            scored.write_parquet(temporary)

    def scan(self, origins: Sequence[Origin], family: str) -> pl.LazyFrame:
        """The scored hours of all origins."""
        return pl.scan_parquet([self.path(origin, family) for origin in origins])


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A temporary name beside a file, which takes its place when the block ends well."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def needs_filling(settings: Settings, *, named: bool) -> bool:
    """Whether the home lacks the counts that a command is about.

    Args:
        settings: the home and its source.
        named: whether the command named a source or files, which then must be what the home was filled from.
    """
    if not settings.warehouse_path.exists():
        return True
    filled = settings.home / _FILLED_FILE
    return named and not (filled.exists() and json.loads(filled.read_text()) == _source_state(settings))


def fill(
    settings: Settings,
    definitions: "dg.Definitions",
    instance: "dg.DagsterInstance",
    say: Callable[[str], None],
) -> None:
    """Fetch and clean all counts of the source, as `bike-assets ingest` does."""
    from bike_assets.resources.source import CountsSourceResource, forget_sources
    from bike_assets.runner import ingest, materialize

    remember_source(settings)
    days = CountsSourceResource.from_settings(settings).open().span()
    ingest(settings, definitions, instance, days, say)
    if settings.weather_source != "none":
        say("raw_weather")
        weather_days = (days[0], days[1] + timedelta(days=1))
        materialize(definitions, instance, ["raw_weather"], days=weather_days)
    forget_sources()
    _write_text(settings.home / _FILLED_FILE, json.dumps(_source_state(settings)))


def _source_state(settings: Settings) -> dict[str, Any]:
    """The source and its files, as they are now."""
    files = [
        path for given in settings.data for path in (sorted(given.rglob("*")) if given.is_dir() else [given])
    ]
    return {
        **source_environment(settings),
        "files": [
            [str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.exists()
        ],
    }


def read_counts(settings: Settings, last: date | None = None) -> pl.DataFrame:
    """The home's cleaned counts up to a day, as a backtest takes them.

    A training learns from what `trained_model` learns from: no impossible count, no stuck or drifting counter.
    """
    warehouse = DuckDBWarehouse(path=str(settings.warehouse_path))
    counts = warehouse.read(CLEANED_COUNTS, last=last, columns=COUNT_COLUMNS)
    if counts.is_empty():
        raise PermanentError(
            f"{settings.home} holds no counts{f' up to {last}' if last else ''}; run: bike-assets ingest"
        )
    believable = believable_truth(warehouse, last or date.max)
    return counts.join(
        believable.select("counter_id", "ts_utc", is_believable=True),
        on=["counter_id", "ts_utc"],
        how="left",
        maintain_order="left",
    ).with_columns(pl.col("is_believable").fill_null(value=False))


def read_weather(settings: Settings) -> pl.DataFrame:
    """The home's weather, as features take it; none where there is none."""
    warehouse = DuckDBWarehouse(path=str(settings.warehouse_path))
    return warehouse.read(RAW_WEATHER, columns=WEATHER_CONTEXT_COLUMNS).rechunk()


def newest_day(settings: Settings) -> date:
    """The newest local day with counts."""
    newest = read_counts(settings).get_column("service_date").max()
    assert isinstance(newest, date)  # noqa: S101  counts have no null days, by contract
    return newest


def run_backtest(
    settings: Settings,
    config: BacktestConfig,
    *,
    command: str = "",
    mlflow: bool = True,
    progress: Progress = lambda _text, _share: None,
) -> dict[str, Any]:
    """Forecast a past period as it would have been done, and write what the forecasts were worth.

    Args:
        settings: the home with the counts.
        config: period, training, families.
        command: how a person would run it again, for the report.
        mlflow: whether to log a run.
        progress: see `Progress`.

    Returns:
        The result as `bike-assets backtest --json` prints it.

    Raises:
        PermanentError: the home has no counts of the period, or too little history before it.
    """
    started = time.monotonic()
    with PeakMemory() as memory:
        progress("reading counts", 0.0)
        counts = read_counts(settings, config.last)
        origins = plan_origins(config, busy_span(counts)[0])
        weather = told_weather(read_weather(settings), origins, config.weather)
        if weather is None:
            config = replace(config, weather="none")
        store = Store(settings.home / "backtests" / backtest_id(counts, config, weather))
        reused = _forecast(store, counts, weather, origins, config, progress)
        del counts, weather
        progress("measuring", 1.0)
        tables = {family: evaluate(store.scan(origins, family)) for family in config.all_families}
        affluence = {family: _affluence(store.scan(origins, family)) for family in config.all_families}
    metrics = pl.concat(
        table.select(pl.lit(family).alias("family"), pl.all()) for family, table in tables.items()
    )
    with whole(store.folder / METRICS_FILE) as temporary:
        metrics.write_parquet(temporary)
    result = {
        "id": store.id,
        "command": command,
        "config": {**asdict(config), "training": asdict(config.training)},
        "origins": [asdict(origin) for origin in origins],
        "families": {
            family: {**_summary(table), "affluence": affluence[family]} for family, table in tables.items()
        },
        "folder": str(store.folder),
        "report": str(store.folder / REPORT_FILE),
        "origins_reused": reused,
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mb": memory.megabytes,
    }
    _write_text(store.folder / REPORT_FILE, report_html(result, metrics))
    if mlflow:
        progress("logging to MLflow", 1.0)
        result["mlflow_run"] = _log(settings, config, store, result)
    _write_text(store.folder / RESULT_FILE, json.dumps(result, indent=1, default=str, ensure_ascii=False))
    return result


def _log(settings: Settings, config: BacktestConfig, store: Store, result: dict[str, Any]) -> str:
    """An MLflow run of the backtest; where a person opens it."""
    from bike_assets.resources.registry import ModelRegistry

    metrics = {
        f"{family}.{group}.{name}": value
        for family, found in result["families"].items()
        for group, row in [
            ("all", found["all"]),
            ("trusted", found["trusted"]),
            *((f"day_{day}", row) for day, row in found["horizon"].items()),
        ]
        for name, value in row.items()
        if value is not None
    } | {
        f"{family}.affluence.{name}": value
        for family, found in result["families"].items()
        for name, value in found["affluence"]["all"].items()
        if value is not None
    }
    params = {**asdict(config), "families": ",".join(config.families), "backtest_id": store.id}
    training = params.pop("training")
    return ModelRegistry.from_settings(settings).log_backtest(
        f"{config.first} to {config.last}, retrain {config.retrain}",
        params={**params, **{f"training.{name}": value for name, value in training.items()}},
        metrics=metrics,
        files=[store.folder / METRICS_FILE, store.folder / REPORT_FILE],
    )


def _forecast(
    store: Store,
    counts: pl.DataFrame,
    weather: pl.DataFrame | None,
    origins: Sequence[Origin],
    config: BacktestConfig,
    progress: Progress,
) -> int:
    """Make the forecasts that are not kept yet; how many origins and families were kept already."""
    work = [(origin, family) for origin in origins for family in config.all_families]
    total = sum(_FIT_SHARE + len(origin.issue_dates) for origin, _ in work)
    done, reused, data = 0.0, 0, None
    for origin in origins:
        earlier, data = data, None
        for family in config.all_families:
            text = f"{family}: trained until {origin.train_until}, issued {origin.first} to {origin.last}"
            if store.has(origin, family):
                done, reused = done + _FIT_SHARE + len(origin.issue_dates), reused + 1
                progress(f"{text} (kept)", done / total)
                continue
            progress(text, done / total)
            data = data or training_data(counts, origin, config.training, weather, earlier)
            forecaster = fit(family, data, config.training)
            done += _FIT_SHARE
            progress(text, done / total)
            start = done

            def issued(days: int, start: float = start, text: str = text) -> None:
                progress(text, (start + days) / total)

            store.write(origin, family, issue(forecaster, counts, origin, data, weather, issued))
            done += len(origin.issue_dates)
    return reused


def backtest_id(counts: pl.DataFrame, config: BacktestConfig, weather: pl.DataFrame | None = None) -> str:
    """What the forecasts depend on, in 16 hexadecimal digits."""
    settled = {
        **asdict(replace(config, families=())),
        "counts": _sha256(counts),
        "weather": None if weather is None else _sha256(weather),
        "code": _code_hash(),
    }
    return hashlib.sha256(json.dumps(settled, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _sha256(frame: pl.DataFrame) -> str:
    buffer = BytesIO()
    frame.write_ipc(buffer)
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def _code_hash() -> str:
    """Of the modules that make forecasts: after a change of theirs, kept forecasts are of another model."""
    folder = Path(bike_assets.core.__file__).parent
    code = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        code.update(path.name.encode() + path.read_bytes())
    return code.hexdigest()


def _affluence(scored: pl.LazyFrame) -> dict[str, Any]:
    """How good the classes high and low are, overall and by horizon, and whether their probabilities hold."""
    by_horizon = affluence_table(scored, ["horizon"])
    return {
        "all": affluence_table(scored).row(0, named=True),
        "horizon": {str(row.pop("horizon")): row for row in by_horizon.to_dicts()},
        "reliability": reliability(scored).to_dicts(),
    }


def _summary(table: pl.DataFrame) -> dict[str, Any]:
    """The part of a family's table that a person asks for first."""

    def rows(grouping: str, which: str = "all") -> Iterator[tuple[str, dict[str, Any]]]:
        for row in table.filter(rows=which, grouping=grouping).iter_rows(named=True):
            yield (
                row["group"],
                {
                    name: value if value is None or math.isfinite(value) else None
                    for name, value in row.items()
                    if name not in ("rows", "grouping", "group", "subgroup")
                },
            )

    return {
        "all": dict(rows("overall"))["all"],
        "trusted": dict(rows("overall", "trusted"))["all"],
        "horizon": dict(rows("horizon")),
        "horizon_trusted": dict(rows("horizon", "trusted")),
        "month": dict(rows("month")),
        "verdict": asdict(verdict(table)),
    }


def _write_text(target: Path, text: str) -> None:
    with whole(target) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
