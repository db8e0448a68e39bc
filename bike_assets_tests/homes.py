"""Runs the command line as users do, in processes of its own, and looks into the homes it fills.

Belongs here: starting, killing and copying. Does not belong here: what a result must be; tests say that.
"""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from bike_assets.settings import QUIET, REPOSITORY, Settings

SMALL_CITY: Mapping[str, str] = {
    "BIKE_SIMULATOR_COUNTERS": "4",
    "BIKE_SIMULATOR_FIRST_DAY": "2024-06-01",
    "BIKE_SIMULATOR_LAST_DAY": "2024-12-31",
    "BIKE_ITERATIONS": "20",
    "BIKE_TRAINING_ROWS": "20000",
}
"""The smallest simulated city whose forecasts still beat the mean of four weeks, as environment variables."""

TINY_CITY: Mapping[str, str] = {
    **SMALL_CITY,
    "BIKE_SIMULATOR_COUNTERS": "2",
    "BIKE_SIMULATOR_FIRST_DAY": "2024-10-20",
    "BIKE_SIMULATOR_LAST_DAY": "2024-11-10",
}
"""Three weeks with the autumn clock change: enough to ingest, too little to train on."""

RUN_SECONDS = 900
"""How long any command may take on a machine that does other things too."""

ABOUT_THE_RUN: Mapping[str, Sequence[str]] = {
    "bike_traffic_raw.raw_counts": ("ingested_at",),
    "bike_traffic_raw.raw_weather": ("ingested_at",),
    "bike_traffic_predictions.calibrations": ("run_id",),
    "bike_traffic_predictions.predictions": ("run_id", "model_version"),
    "bike_traffic_analytics.forecast_accuracy": ("model_version",),
    "bike_traffic_analytics.model_history": ("run_id", "model_version"),
    "monitoring_audit.retraining_decisions": ("model_version",),
}
"""Columns that say when or by which training a row was made. A killed training leaves its version behind in the
registry, which numbers versions and never uses a number or a run id twice; what was counted, computed and forecast
must not differ in a digit."""


@dataclass(frozen=True)
class DemoHome:
    """A home that `bike-assets demo` has filled: its folder, the JSON it printed, and what it said meanwhile."""

    path: Path
    result: dict[str, Any]
    stderr: str
    settings: Settings


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: nothing of the platform's but what is given, no library calling home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BIKE_", "DAGSTER_"))}
    return {**kept, **QUIET, "COLUMNS": "200", **more}


def command(*arguments: str | Path) -> list[str]:
    """The command line `bike-assets …`, run by this interpreter."""
    return [sys.executable, "-m", "bike_assets.cli", *(str(argument) for argument in arguments)]


def bike_assets(
    *arguments: str | Path, env: Mapping[str, str] = SMALL_CITY, timeout: float = RUN_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run `bike-assets` to its end."""
    return subprocess.run(
        command(*arguments),
        env=environment(**env),
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextlib.contextmanager
def started(*arguments: str | Path, env: Mapping[str, str] = SMALL_CITY) -> Iterator[subprocess.Popen[str]]:
    """A running `bike-assets` in a process group of its own; whatever is left of it ends on leaving."""
    with subprocess.Popen(
        command(*arguments),
        env=environment(**env),
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def one_json(stdout: str) -> dict[str, Any]:
    """The JSON object that is all of stdout."""
    lines = stdout.splitlines()
    assert len(lines) == 1, f"stdout has {len(lines)} lines: {stdout[:500]!r}"
    found = json.loads(lines[0])
    assert isinstance(found, dict)
    return found


def settings_of(home: Path, env: Mapping[str, str] = SMALL_CITY) -> Settings:
    """The settings a command with this home and environment has."""
    values = {name.removeprefix("BIKE_").lower(): value for name, value in env.items()}
    return Settings(_env_file=None, home=home, **values)  # type: ignore[call-arg, arg-type]


def copy_home(home: Path, target: Path) -> Path:
    """A copy that can be changed: MLflow keeps absolute paths, which are made to point into the copy."""
    shutil.copytree(home, target)
    with contextlib.closing(sqlite3.connect(target / "mlflow.db")) as database, database:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
            ("model_versions", "storage_location"),
        ):
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)",  # noqa: S608  names stand above
                (str(home), str(target)),
            )
    return target


def forget_models(home: Path) -> None:
    """Take a home back to before its first training."""
    (home / "mlflow.db").unlink()
    for folder in ("mlartifacts", "bundles", "reports"):
        shutil.rmtree(home / folder)


def tables(home: Path) -> dict[str, pl.DataFrame]:
    """Every table of the warehouse, in an order that does not hang on how it was written.

    Without the audit log: it tells of every attempt, so what was done twice is in it twice.
    """
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as connection:
        names = connection.execute(
            "SELECT table_schema || '.' || table_name FROM information_schema.tables "
            "WHERE table_type = 'BASE TABLE' AND NOT (table_schema = 'monitoring_audit' AND table_name = 'logs') "
            "ORDER BY 1"
        ).fetchall()
        return {
            name: connection.sql(f"SELECT * FROM {name} ORDER BY ALL").pl()  # noqa: S608  names of the catalogue
            for (name,) in names
        }


def without_runs(found: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """The tables without `ABOUT_THE_RUN`."""
    return {
        name: frame.drop(dropped := ABOUT_THE_RUN.get(name, ())).sort(
            [column for column in frame.columns if column not in dropped], nulls_last=True
        )
        for name, frame in found.items()
    }


MAY_BE_EMPTY = {
    "bike_traffic_analytics.export_differences",  # the simulated city's exports agree
    "bike_traffic_analytics.outages",  # a small one may have none
    "bike_traffic_analytics.quarantined_counts",  # and it has no stray rows
    "monitoring_audit.counter_incidents",
}


def assert_same_tables(one: Mapping[str, pl.DataFrame], other: Mapping[str, pl.DataFrame]) -> None:
    """The same tables with the same rows, to the last digit."""
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].height > 0 or name in MAY_BE_EMPTY, f"{name} is empty"
        assert one[name].equals(other[name]), f"{name} differs"


def run_logs(home: Path) -> set[Path]:
    """The event logs of all runs of a home."""
    return {path for path in (home / "dagster/history/runs").glob("*.db") if path.stem != "index"}


def wait_for_step(
    home: Path, step: str, before: set[Path], process: subprocess.Popen[str], seconds: float = RUN_SECONDS
) -> None:
    """Wait until a run that is not among `before` has begun a step.

    Raises:
        AssertionError: the process ended first, or the time did.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for path in run_logs(home) - before:
            with (
                contextlib.suppress(sqlite3.OperationalError),  # its tables are being made
                contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as log,
            ):
                if log.execute(
                    "SELECT 1 FROM event_logs WHERE step_key = ? AND dagster_event_type = 'STEP_START' LIMIT 1",
                    (step,),
                ).fetchone():
                    return
        assert process.poll() is None, f"ended before {step} began"
        time.sleep(0.02)
    raise AssertionError(f"{step} did not begin within {seconds} s")


def kill(process: subprocess.Popen[str], *, group: bool = True) -> None:
    """End a process at once, as a power cut does; alone, or with all that it started."""
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait(30)
