"""What every command of `bike-assets` does alike: options, settings, one session on a home, progress, results.

Belongs here: what two commands share. Does not belong here: a command.
"""

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from bike_assets.core.errors import PermanentError
from bike_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    import dagster as dg


class Source(StrEnum):
    """Where counts come from."""

    simulator = "simulator"
    archive = "archive"
    paris = "paris"


Home = Annotated[
    Path, typer.Option("--home", help="Folder of everything the platform writes.", envvar="BIKE_HOME")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and every log line.")]
SourceOption = Annotated[
    Source | None,
    typer.Option(
        "--source",
        help="Where counts come from; by default what the home was filled from, else the simulator.",
        envvar="BIKE_SOURCE",
    ),
]
DataOption = Annotated[
    list[Path] | None,
    typer.Option("--data", help="Files or folders of --source archive; several may follow."),
]
MoreData = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More files for --data.")]
DEFAULT_HOME = Path(".bike")


def read_settings(
    home: Path, source: Source | None = None, data: list[Path] | None = None, **more: Any
) -> Settings:
    """The settings of a command: its options, then the environment, then what the home was filled from."""
    from bike_assets.home import recall_source

    remembered = recall_source(home)
    if source is not None and source.value != remembered.get("source"):
        remembered = {}
    if remembered:
        # What the environment or .env names outranks what the home remembers.
        for name in load_settings().model_fields_set:
            remembered.pop(name, None)
    arguments: dict[str, Any] = {**remembered, "home": home, **more}
    if source is not None:
        arguments["source"] = source.value
    if data:
        # Runs started later from the UI have other working directories.
        arguments["data"] = tuple(path.expanduser().resolve() for path in data)
        os.environ["BIKE_DATA"] = os.pathsep.join(str(path) for path in arguments["data"])
    return load_settings(**arguments)


def require_platform(settings: Settings) -> None:
    """Refuse a home that was never filled.

    Raises:
        PermanentError: it holds no warehouse.
    """
    if not settings.has_warehouse:
        raise PermanentError(
            f"{settings.home} holds no platform yet; run: bike-assets demo --home {settings.home}"
        )


@contextlib.contextmanager
def session(settings: Settings, debug: bool) -> Iterator[tuple["dg.Definitions", "dg.DagsterInstance"]]:
    """Definitions and instance of a home, with the libraries' chatter kept out of the terminal."""
    from bike_assets.home import open_instance, prepare

    prepare(settings)
    with quiet(settings, debug):
        from bike_assets.build import build_defs
        from bike_assets.recovery import end_dead_runs, only_command

        with only_command(settings, tell), open_instance(settings) as instance:
            end_dead_runs(settings, instance)
            yield build_defs(settings), instance


@contextlib.contextmanager
def quiet(settings: Settings, debug: bool) -> Iterator[None]:
    """Send what libraries print to a log file of the home, so that stdout holds the result alone."""
    if debug:
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    logs = settings.home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    with (logs / "cli.log").open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        yield


@contextlib.contextmanager
def progress() -> Iterator[Any]:
    """A function that says what comes next: a spinner on a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield tell
        return
    with console.status("starting") as spinner:

        def say(text: str) -> None:
            # What is said may hold brackets of a file's own.
            console.print(f"[dim]{datetime.now().astimezone():%H:%M:%S}[/dim] {escape(text)}", soft_wrap=True)
            spinner.update(escape(text))

        yield say


def tell(text: str) -> None:
    """One line on stderr, where everything goes that is not the result."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201  the terminal is what a command line talks to


@contextlib.contextmanager
def bar() -> Iterator[Any]:
    """A function that says what comes next and how far it is: a bar on a terminal, a line for every step elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        told = []

        def line(text: str, share: float) -> None:
            if text not in told:
                told.append(text)
                tell(f"{share:4.0%} {text}")

        yield line
        return
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as shown:
        task = shown.add_task("starting", total=1.0)
        yield lambda text, share: shown.update(task, description=text, completed=share)


def report(result: dict[str, Any], as_json: bool, show: Any) -> None:
    """The result on stdout: one JSON object, or as `show` prints it."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False, default=str))  # noqa: T201
    else:
        show(result)


def print_mapping(result: dict[str, Any]) -> None:
    """Names and values, a line each."""
    table = Table(show_header=False, box=None)
    for name, value in result.items():
        table.add_row(name, json.dumps(value, default=str) if isinstance(value, dict | list) else str(value))
    Console().print(table)
