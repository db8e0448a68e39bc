"""The platform over past days, as if it had run then: `bike-assets replay`.

Every day of the range is lived through with the platform's own schedules, sensors, jobs and assets; only the clock is
set. The source answers as of that morning, so a late correction comes late; the forecast of a day is issued by the
champion of that day; drift, decisions, trainings and promotions follow from them. What comes out is what the same days
give one by one in Dagster, since they are the same runs.

Belongs here: the order of a day, what a replay leaves out, going on after a kill. Does not belong here: any work of an
asset, and what the result looks like (`bike_assets.replay_report`).

Left out, because nothing that is forecast or decided reads them: checks, pictures, tests of the dbt models, what steps
print, bundles of mornings that are over, tables for people (they are made once, at the end), and tables that are built
whole on days on which nobody reads them before they are built again.
"""

import gc
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import dagster as dg
import duckdb
import polars as pl
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    RUN_KEY_TAG,
)
from dagster._utils.schedules import cron_string_iterator
from pydantic import PrivateAttr

from bike_assets.assets import plots
from bike_assets.assets.dbt_models import DESCRIBING_MODELS
from bike_assets.build import build_defs, build_resources, dbt_project
from bike_assets.clock import set_to
from bike_assets.console import quiet
from bike_assets.core.calendar import LOCAL_TZ, days_between
from bike_assets.core.contracts import TableContract
from bike_assets.core.errors import PermanentError
from bike_assets.core.features import FEATURE_LOOKBACK_DAYS
from bike_assets.core.model import Forecaster
from bike_assets.demo import MIN_HISTORY_DAYS
from bike_assets.home import open_instance, prepare, remember_source
from bike_assets.jobs import CLEANED, EXPERIMENT, INGEST, MONITOR
from bike_assets.policies import Policies
from bike_assets.recovery import COMMAND_TAG, end_dead_runs, only_command
from bike_assets.resources.bundles import BUNDLE_TAG, BundleStore
from bike_assets.resources.dbt import DbtInProcess
from bike_assets.resources.registry import ModelRegistry, ModelVersion
from bike_assets.resources.source import CountsSourceResource, WeatherSourceResource
from bike_assets.resources.warehouse import DuckDBWarehouse, Warehouse
from bike_assets.runner import root_cause
from bike_assets.settings import Settings
from bike_assets.sources.as_of import History, weather_on
from bike_assets.sources.base import SourceBatch, busy_span
from bike_assets.sources.weather import WeatherBatch

DECISIVE: Final = ("predictions", "champion", "retraining_decision")
"""What a replay is about; every other asset counts only as far as these come from it."""

_SENSOR_AFTER: Final = {INGEST.name: "changed_counts", MONITOR.name: "retraining"}
"""Sensors that start runs, by the job after which they have something to say."""

_WARM_UP: Final = "before"
JOURNAL: Final = "replay.jsonl"

_NO_OUTPUT: Final = {
    "module": "dagster._core.storage.noop_compute_log_manager",
    "class": "NoOpComputeLogManager",
}
"""What steps print is not kept: capturing it starts two processes a step."""


@dataclass
class Clock:
    """The moment that a replay has arrived at."""

    moment: datetime

    @property
    def today(self) -> date:
        """Its local day."""
        return self.moment.astimezone(ZoneInfo(LOCAL_TZ)).date()


@dataclass(frozen=True)
class PublishedCounts:
    """The counts as they were published by the morning of the clock, in the place of the resource `source`."""

    history: History
    clock: Clock

    def read(self, first: date, last: date) -> SourceBatch:
        """Rows of the local days from `first` to `last`, as they were known."""
        return self.history.read(first, last, morning=self.clock.today)


@dataclass(frozen=True)
class KnownWeather:
    """The weather as it was known on the morning of the clock, in the place of the resource `weather`."""

    weather: WeatherSourceResource
    clock: Clock

    def read(self, first: date, last: date) -> WeatherBatch:
        """Forecasts issued on the days, and the hours of these days that had been observed."""
        return weather_on(self.weather.read(first, last), self.clock.today)


class RememberingRegistry(ModelRegistry):
    """The registry, reading what a version is once and not every morning, since a version never changes."""

    _forecasters: dict[str, Forecaster] = PrivateAttr(default_factory=dict)
    _holdouts: dict[str, pl.DataFrame] = PrivateAttr(default_factory=dict)

    def load_forecaster(self, version: ModelVersion) -> Forecaster:
        """As `ModelRegistry.load_forecaster`."""
        if version.run_id not in self._forecasters:
            _make_room(self._forecasters)
            self._forecasters[version.run_id] = super().load_forecaster(version)
        return self._forecasters[version.run_id]

    def load_holdout(self, version: ModelVersion) -> pl.DataFrame:
        """As `ModelRegistry.load_holdout`."""
        if version.run_id not in self._holdouts:
            _make_room(self._holdouts)
            self._holdouts[version.run_id] = super().load_holdout(version)
        return self._holdouts[version.run_id]


class WarehouseOfOneProcess(DuckDBWarehouse):
    """The warehouse of a process that has it to itself: settings are made once (`_kept_open`) and not by every
    connection, and which columns a table has is asked once."""

    _known: dict[str, set[str]] = PrivateAttr(default_factory=dict)

    @contextmanager
    def connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """As `DuckDBWarehouse.connect`."""
        try:
            with duckdb.connect(self.path) as connection:
                yield connection
        except BaseException:
            self._known.clear()  # A table that was made may have been taken back.
            raise

    def _stored_columns(self, connection: duckdb.DuckDBPyConnection, contract: TableContract) -> set[str]:
        if not self._known.get(contract.relation):
            self._known[contract.relation] = super()._stored_columns(connection, contract)
        return self._known[contract.relation]

    def _add_columns(self, connection: duckdb.DuckDBPyConnection, contract: TableContract) -> None:
        super()._add_columns(connection, contract)
        self._known[contract.relation] |= set(contract.column_names)


def _make_room(kept: dict[str, Any]) -> None:
    """Forget the oldest: champion and challenger are asked for."""
    if len(kept) >= 2:
        del kept[next(iter(kept))]


@dataclass(frozen=True)
class NewestBundle:
    """The store of bundles, in the place of the resource `bundles`: a version's first is written, and that of the last
    day. Those of the mornings between are for a service, and nobody asks one of the past."""

    store: BundleStore
    clock: Clock
    last: date

    def publish(
        self,
        version: ModelVersion,
        forecaster: Forecaster,
        warehouse: Warehouse,
        registry: ModelRegistry,
    ) -> str:
        """As `BundleStore.publish`; where nothing is written, the name of the bundle that the version has."""
        known = version.tags.get(BUNDLE_TAG)
        if known and self.clock.today < self.last:
            return known
        return self.store.publish(version, forecaster, warehouse, registry)


@dataclass(frozen=True)
class Replay:
    """What is replayed.

    Attributes:
        settings: those of the replay's own home.
        first, last: first and last local day lived through.
        policies: thresholds of its decisions.
    """

    settings: Settings
    first: date
    last: date
    policies: Policies


@dataclass
class Journal:
    """What a replay has done, a line a run, so that one that was killed goes on where it was."""

    path: Path
    runs: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """The journal of a home; a line that was cut off by a kill is left out and its run done again."""
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        journal = cls(path, [json.loads(line) for line in lines])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return journal

    def find(self, day: str, what: str) -> dict[str, Any] | None:
        """The run of a day that was made for a reason, if it was."""
        return next((run for run in self.runs if (run["day"], run["what"]) == (day, what)), None)

    def is_over(self, day: str) -> bool:
        """Whether a later day was begun."""
        return any(run["day"] > day for run in self.runs if run["day"] != _WARM_UP)

    def add(self, run: dict[str, Any]) -> None:
        """Note a run that has ended."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")
        self.runs.append(run)


def plan_replay(settings: Settings, history: History, first: date, last: date, policies: Policies) -> Replay:
    """A replay in a home of its own, in the folder `replays` of the settings' home.

    The folder's name holds what decides the outcome, so that the same replay is found again and no other is.

    Raises:
        PermanentError: there are too few days before the first, or none at the end.
    """
    oldest, newest = busy_span(history.rows)
    if last < first:
        raise PermanentError(f"{last} lies before {first}; give the earlier day to --from")
    if last > newest + timedelta(days=1):
        raise PermanentError(
            f"the counts end on {newest}: the last day that can be replayed is {newest + timedelta(days=1)}"
        )
    if (first - oldest).days < MIN_HISTORY_DAYS:
        raise PermanentError(
            f"counts begin on {oldest}; the first training needs {MIN_HISTORY_DAYS} days before --from, so "
            f"replay from {oldest + timedelta(days=MIN_HISTORY_DAYS)} on or give older exports"
        )
    decided = policies.applied(settings)
    own = decided.model_dump(mode="json", exclude={"home", "mlflow_tracking_uri", "mlflow_ui_url"})
    what = json.dumps([own, first.isoformat(), last.isoformat()], sort_keys=True)
    digest = hashlib.sha256(what.encode()).hexdigest()[:10]
    home = settings.home / "replays" / f"{first}_{last}_{policies.name}_{digest}"
    # Days before the first counts are partitions that Dagster would only count through, every day. Wherever it is
    # asked for, what a replay decides stays on this machine.
    own_home = decided.model_copy(
        update={"home": home, "env": "local", "mlflow_tracking_uri": "", "partitions_start": oldest}
    )
    return Replay(own_home, first, last, policies)


def read_history(settings: Settings) -> History:
    """All counts of the settings' source, with the morning from which each was known.

    Raises:
        PermanentError: the source cannot be read, or is asked day by day and keeps no history.
    """
    if settings.source == "paris":
        raise PermanentError(
            "the live source tells what is known now, not what was known on a day; replay exports with --source archive"
        )
    source = CountsSourceResource.from_settings(settings).open()
    return History.of(source.read(*source.span()))


def run_replay(
    replay: Replay,
    history: History,
    *,
    progress: Callable[[str, float], None] = lambda *_: None,
    debug: bool = False,
) -> Path:
    """Live through the days, from where an earlier run of the same replay was ended.

    Args:
        replay: see `plan_replay`.
        history: see `read_history`.
        progress: is told what is done, and the share of the days that is behind.
        debug: whether libraries may write to the terminal.

    Returns:
        The home of the replay, which `bike-assets up --home` opens as any other.

    Raises:
        PermanentError: the first training failed; failures of later runs are noted in the journal, as Dagster would.
    """
    settings = replay.settings
    prepare(settings)
    remember_source(settings)
    _write_without_waiting()
    clock = Clock(_midnight(replay.first))
    with (
        set_to(lambda: clock.moment.astimezone(UTC)),
        quiet(settings, debug),
        plots.left_out(),
        only_command(settings, lambda text: progress(text, 0.0)),
        _kept_open(settings.warehouse_path),
        open_instance(settings, compute_logs=_NO_OUTPUT) as instance,
    ):
        end_dead_runs(settings, instance)
        engine = Engine(
            instance, _definitions(replay, history, clock), Journal.open(settings.home / JOURNAL), clock
        )
        days = days_between(replay.first, replay.last)
        progress("counts, features and first training", 0.0)
        engine.warm_up(replay, busy_span(history.rows)[0])
        with _lasting_left_alone():
            for number, day in enumerate(days):
                progress(f"{day}", number / len(days))
                engine.live(day)
        progress("tables for people", 1.0)
        engine.finish(replay, busy_span(history.rows)[0])
    return settings.home


def _definitions(replay: Replay, history: History, clock: Clock) -> dg.Definitions:
    """The platform's definitions with sources that obey the clock and dbt within this process."""
    settings = replay.settings
    resources = build_resources(settings, dbt_project(settings))
    dbt = resources["dbt"]
    return build_defs(
        settings,
        {
            "source": dg.ResourceDefinition.hardcoded_resource(PublishedCounts(history, clock)),
            "weather": dg.ResourceDefinition.hardcoded_resource(
                KnownWeather(WeatherSourceResource.from_settings(settings), clock)
            ),
            "warehouse": dg.ResourceDefinition.hardcoded_resource(
                WarehouseOfOneProcess(path=str(settings.warehouse_path))
            ),
            "registry": dg.ResourceDefinition.hardcoded_resource(RememberingRegistry.from_settings(settings)),
            "bundles": dg.ResourceDefinition.hardcoded_resource(
                NewestBundle(resources["bundles"], clock, replay.last)
            ),
            "dbt": DbtInProcess(
                project_dir=dbt.project_dir, profiles_dir=dbt.profiles_dir, artifacts_dir=dbt.artifacts_dir
            ),
        },
    )


@dataclass
class Engine:
    """Runs jobs as schedules and sensors ask for them, on days of the past."""

    instance: dg.DagsterInstance
    definitions: dg.Definitions
    journal: Journal
    clock: Clock

    def __post_init__(self) -> None:
        self.repository = self.definitions.get_repository_def()
        self.graph = self.repository.asset_graph
        decisive = {dg.AssetKey(name) for name in DECISIVE}
        self.decisive = decisive | {
            ancestor for key in decisive for ancestor in self.graph.get_ancestor_asset_keys(key)
        }
        self.parts: dict[tuple[str, frozenset[dg.AssetKey]], dg.JobDefinition] = {}
        self.wanted: dict[tuple[str, int], set[dg.AssetKey]] = {}
        self.cursors: dict[str, str | None] = {
            run["sensor"]: run["cursor"] for run in self.journal.runs if run.get("sensor")
        }

    def warm_up(self, replay: Replay, oldest: date) -> None:
        """Everything up to the morning of the first day, and the first champion."""
        until = replay.first - timedelta(days=1)
        settings = replay.settings
        first_issue = max(
            oldest + timedelta(days=FEATURE_LOOKBACK_DAYS), until - timedelta(days=settings.training_days - 1)
        )
        stages: list[tuple[list[str], tuple[date, date] | None]] = [
            (["raw_counts", *CLEANED], (oldest, until)),
            ([*DESCRIBING_MODELS], None),
            (["raw_weather"], (oldest, until)),
            (["features"], (first_issue, until)),
            (["trained_model", "champion"], None),
        ]
        for names, days in stages:
            self._stage(names, days, decisive=True, must=True)

    def finish(self, replay: Replay, oldest: date) -> None:
        """Tables that a replay leaves out day by day: for people, of all days, as they are known at the end."""
        last = replay.last - timedelta(days=1)
        partitioned: list[str] = []
        whole: list[str] = []
        experiment = self.repository.get_job(EXPERIMENT.name).asset_layer.selected_asset_keys
        for key in self.graph.get_all_asset_keys() - experiment:
            if self.graph.get(key).is_materializable and (
                key not in self.decisive or self._built_whole_by_dbt(key)
            ):
                (partitioned if self.graph.get(key).is_partitioned else whole).append(key.to_user_string())
        for name in sorted(partitioned):
            self._stage([name], (oldest, last), decisive=False, must=False)
        self._stage(sorted(whole), None, decisive=False, must=False)

    def live(self, day: date) -> None:
        """One day: the ticks of the schedules in their order, and what the sensors make of them.

        One that was over before a kill is passed over: its sensors would hear of what happened after it.
        """
        if self.journal.is_over(f"{day}"):
            return
        for when, schedule in self.ticks(day):
            self.clock.moment = when
            run = self.journal.find(f"{day}", schedule.name)
            if run is None:
                with dg.build_schedule_context(
                    instance=self.instance, scheduled_execution_time=when, repository_def=self.repository
                ) as context:
                    # Called rather than ticked: on its own day a partition of a city that has ended is not there yet.
                    answer = schedule(context)
                if isinstance(answer, dg.RunRequest):
                    week = (schedule.name, day.weekday())  # the schedules of one week are those of the next
                    if week not in self.wanted:
                        self.wanted[week] = self._wanted(schedule, when)
                    run = self._run(f"{day}", schedule.name, schedule.job_name, answer, self.wanted[week])
            if run is not None and run["job"] in _SENSOR_AFTER:
                self._sense(f"{day}", run, self.repository.get_sensor_def(_SENSOR_AFTER[run["job"]]))

    def ticks(self, day: date) -> list[tuple[datetime, dg.ScheduleDefinition]]:
        """When which schedule fires on a local day, in order of time."""
        start = _midnight(day)
        return sorted(
            (
                (when, schedule)
                for schedule in self.repository.schedule_defs
                for when in self._times(schedule, start, start + timedelta(days=1))
            ),
            key=lambda tick: (tick[0], tick[1].name),
        )

    def _times(self, schedule: dg.ScheduleDefinition, start: datetime, end: datetime) -> Iterator[datetime]:
        cron = schedule.cron_schedule
        assert isinstance(cron, str)  # noqa: S101  for the type checker: none of ours has several
        for when in cron_string_iterator(start.timestamp(), cron, schedule.execution_timezone):
            if when.timestamp() >= end.timestamp():
                return
            yield when

    def _wanted(self, schedule: dg.ScheduleDefinition, when: datetime) -> set[dg.AssetKey]:
        """The assets of a schedule's job that a replay makes at a tick: what is decisive, and read in time."""
        selected = self.repository.get_job(schedule.job_name).asset_layer.selected_asset_keys & self.decisive
        again = next(
            time
            for time in self._times(schedule, when + timedelta(minutes=1), datetime.max.replace(tzinfo=UTC))
        )
        readers = {
            key
            for other in self.repository.schedule_defs
            if any(
                True for _ in self._times(other, when + timedelta(minutes=1), again + timedelta(minutes=1))
            )
            for key in self.repository.get_job(other.job_name).asset_layer.selected_asset_keys
        }
        return {
            key
            for key in selected
            if not self._built_whole_by_dbt(key) or self.graph.get(key).child_keys & self.decisive & readers
        }

    def _built_whole_by_dbt(self, key: dg.AssetKey) -> bool:
        node = self.graph.get(key)
        return "dbt" in node.kinds and not node.is_partitioned

    def _sense(self, day: str, run: Mapping[str, Any], sensor: dg.SensorDefinition) -> None:
        """Ask a sensor after a run, and start what it asks for."""
        if self.journal.find(day, sensor.name) or not run["success"]:
            return
        cursor = None
        if isinstance(sensor, dg.RunStatusSensorDefinition):
            record = self.instance.get_run_record_by_id(run["run"])
            assert record is not None  # noqa: S101  it is in the journal because it ended
            success = self.instance.all_logs(run["run"], of_type=dg.DagsterEventType.RUN_SUCCESS)[
                -1
            ].dagster_event
            assert success is not None  # noqa: S101
            answer = sensor(
                dg.build_run_status_sensor_context(
                    sensor_name=sensor.name,
                    dagster_event=success,
                    dagster_instance=self.instance,
                    dagster_run=record.dagster_run,
                )
            )
            requests = [answer] if isinstance(answer, dg.RunRequest) else []
        else:
            with dg.build_sensor_context(
                instance=self.instance, cursor=self.cursors.get(sensor.name), repository_def=self.repository
            ) as context:
                data = sensor.evaluate_tick(context)
            cursor, requests = data.cursor, list(data.run_requests or [])
            self.cursors[sensor.name] = cursor
        for request in requests:
            job = request.job_name or str(sensor.job_name)
            self._run(day, sensor.name, job, request, None, {"sensor": sensor.name, "cursor": cursor})

    def _stage(
        self, names: Sequence[str], days: tuple[date, date] | None, *, decisive: bool, must: bool
    ) -> None:
        """A run of some assets outside of the days; of decisive ones alone where that is asked for."""
        keys = {dg.AssetKey(name) for name in names}
        keys = keys & self.decisive if decisive else keys
        what = ",".join(sorted(key.to_user_string() for key in keys))
        if not keys or self.journal.find(_WARM_UP, what):
            return
        tags = _range_tags(*days) if days else {}
        run = self._run(
            _WARM_UP,
            what,
            self.definitions.resolve_implicit_global_asset_job_def().name,
            dg.RunRequest(tags=tags),
            keys,
        )
        if must and not run["success"]:
            raise PermanentError(run["error"])

    def _part(self, job: dg.JobDefinition, keys: frozenset[dg.AssetKey]) -> dg.JobDefinition:
        """The part of a job that makes some assets and runs none of their checks."""
        if (job.name, keys) not in self.parts:
            self.parts[job.name, keys] = job.get_subset(
                asset_selection=keys, asset_check_selection=frozenset()
            )
        return self.parts[job.name, keys]

    def _run(
        self,
        day: str,
        what: str,
        job: str,
        request: dg.RunRequest,
        assets: set[dg.AssetKey] | None,
        more: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Execute what a request asks for, or the part of it that is wanted; what came of it, noted in the journal."""
        definition = (
            self.definitions.resolve_implicit_global_asset_job_def()
            if day == _WARM_UP
            else self.repository.get_job(job)
        )
        keys = definition.asset_layer.selected_asset_keys & self.decisive if assets is None else assets
        started, cpu = time.monotonic(), time.process_time()
        result = None
        if keys:
            part = self._part(definition, frozenset(keys))
            result = part.execute_in_process(
                instance=self.instance,
                partition_key=request.partition_key,
                tags={
                    **request.tags,
                    COMMAND_TAG: "yes",
                    **({RUN_KEY_TAG: request.run_key} if request.run_key else {}),
                },
                run_config={
                    **(request.run_config or {}),
                    "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                },
                raise_on_error=False,
            )
        if result and _interrupted(result):
            raise KeyboardInterrupt  # Not a run that failed: it is done again when the replay goes on.
        run = {
            "day": day,
            "what": what,
            "job": job,
            "run": result.run_id if result else None,
            "success": result is None or result.success,
            "error": _error(result) if result else None,
            "seconds": round(time.monotonic() - started, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "steps": _steps(result) if result else {},
            **(more or {}),
        }
        self.journal.add(run)
        return run


@contextmanager
def _kept_open(warehouse: Path) -> Iterator[None]:
    """Hold the warehouse open, so that the steps' own connections need not open the file and write it out at closing.

    DuckDB shares an open file between the connections of a process. What was committed is in its log: a replay that is
    killed loses nothing. It may hold two weeks: each time that it is moved into the file, the last rows of every table
    are written anew.

    One limit of memory stands for all connections, that of dbt's profile: DuckDB forgets what it has read whenever a
    lower one is set.
    """
    warehouse.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(str(warehouse)) as connection:
        connection.execute("SET checkpoint_threshold = '128MB'; SET memory_limit = '1GB'")
        connection.execute("SET preserve_insertion_order = false")
        yield


@contextmanager
def _lasting_left_alone() -> Iterator[None]:
    """Keep Python from looking through libraries and definitions, which last, whenever a day has left some garbage."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _write_without_waiting() -> None:
    """Let SQLite leave the writing to the operating system, from now on and in this process.

    A replay that is killed loses nothing by it. When the machine itself goes down, the replay is begun again.
    """
    from sqlalchemy import Engine, event

    @event.listens_for(Engine, "connect")
    def _relax(connection: Any, _record: Any) -> None:
        if type(connection).__module__.startswith("sqlite3"):
            connection.execute("PRAGMA synchronous = OFF")


def _midnight(day: date) -> datetime:
    return datetime.combine(day, datetime.min.time(), ZoneInfo(LOCAL_TZ))


def _range_tags(first: date, last: date) -> dict[str, str]:
    return {
        ASSET_PARTITION_RANGE_START_TAG: first.isoformat(),
        ASSET_PARTITION_RANGE_END_TAG: last.isoformat(),
    }


def _interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Whether the run was ended from outside; CatBoost answers a signal of its own accord."""
    errors = (event.step_failure_data.error for event in result.all_events if event.is_step_failure)
    signals = ("DagsterExecutionInterruptedError", "KeyboardInterrupt")
    return any(error is not None and error.cls_name in signals for error in errors)


def _steps(result: dg.ExecuteInProcessResult) -> dict[str, float]:
    """Seconds of each step."""
    return {
        event.step_key: round(event.step_success_data.duration_ms / 1000, 3)
        for event in result.all_events
        if event.is_step_success and event.step_key
    }


def _error(result: dg.ExecuteInProcessResult) -> str | None:
    """Why a run failed, in one line."""
    if result.success:
        return None
    for event in result.all_events:
        if event.is_step_failure:
            return f"{event.step_key}: {root_cause(event.step_failure_data.error)}"
    return f"run {result.run_id} failed"
