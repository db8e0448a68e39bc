"""`bike-assets`: the commands people type. Progress goes to stderr, results to stdout, errors are one line."""

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bike_assets.core.errors import BikeError, PermanentError
from bike_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    import dagster as dg

app = typer.Typer(
    name="bike-assets",
    help="Forecasts hourly bicycle traffic at every counter of a city.\n\nStart with: bike-assets demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
champion_app = typer.Typer(help="The model that serves.", no_args_is_help=True)
app.add_typer(champion_app, name="champion")


class Source(StrEnum):
    """Where counts come from."""

    simulator = "simulator"
    archive = "archive"


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
Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"])]

DEFAULT_HOME = Path(".bike")


@app.command()
def demo(
    more: MoreData = None,
    source: SourceOption = None,
    data: DataOption = None,
    home: Home = DEFAULT_HOME,
    test_days: Annotated[int, typer.Option(min=1, help="Complete days at the end that are tested.")] = 28,
    train_until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last local day whose counts training sees.")
    ] = None,
    test_until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last local day that is tested.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Everything from nothing: counts, cleaning, features, champion, forecasts, drift report.

    Without options it simulates a city and needs no network. With real exports:

    bike-assets demo --source archive --data comptage-velo-2023.csv.gz comptage-velo-2024.csv.gz
    """
    settings = _settings(home, source, [*(data or []), *(more or [])])
    from bike_assets.demo import run_demo
    from bike_assets.home import remember_source

    remember_source(settings)
    with _session(settings, debug) as (definitions, instance), _progress() as say:
        result = run_demo(
            settings,
            definitions,
            instance,
            test_days=test_days,
            train_until=_day(train_until),
            test_until=_day(test_until),
            progress=say,
        )
    _report(result, as_json, _print_demo)


@app.command()
def ingest(
    more: MoreData = None,
    first: Annotated[
        datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First local day.")
    ] = None,
    last: Annotated[
        datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last local day.")
    ] = None,
    source: SourceOption = None,
    data: DataOption = None,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Fetch and clean counts; all days that the source has, or those from --from to --to."""
    settings = _settings(home, source, [*(data or []), *(more or [])])
    from bike_assets.home import remember_source
    from bike_assets.resources.source import CountsSourceResource
    from bike_assets.runner import materialize

    remember_source(settings)
    with _session(settings, debug) as (definitions, instance), _progress() as say:
        span = CountsSourceResource.from_settings(settings).open().span()
        days = (_day(first) or span[0], _day(last) or span[1])
        say(f"raw_counts, cleaned_counts: {days[0]} to {days[1]}")
        outcome = materialize(definitions, instance, ["raw_counts", "cleaned_counts"], days=days)
        for fault in outcome.faults:
            say(fault)
        materialize(definitions, instance, ["counters"], outcome=outcome)
    _report(_outcome(outcome, days), as_json, _print_mapping)


@app.command()
def materialize(
    assets: Annotated[
        list[str], typer.Argument(help="Assets, as the UI names them: raw_counts, features, …")
    ],
    partition: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="One day.")] = None,
    first: Annotated[
        datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First day of a range.")
    ] = None,
    last: Annotated[
        datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day of a range.")
    ] = None,
    source: SourceOption = None,
    data: DataOption = None,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Materialise assets with their checks, for a day (--partition) or a range of days (--from, --to).

    Running a partition again changes nothing unless its input changed.
    """
    settings = _settings(home, source, data or [])
    start, end = _day(first or partition), _day(last or partition)
    if (start is None) != (end is None):
        raise PermanentError("a range needs both --from and --to; for one day give --partition")
    days = (start, end) if start and end else None
    from bike_assets import runner

    with _session(settings, debug) as (definitions, instance), _progress() as say:
        say(f"{', '.join(assets)}{f': {start} to {end}' if days else ''}")
        outcome = runner.materialize(definitions, instance, assets, days=days)
        for fault in outcome.faults:
            say(fault)
    _report(_outcome(outcome, days), as_json, _print_mapping)


@app.command()
def status(home: Home = DEFAULT_HOME, as_json: AsJson = False, debug: Debug = False) -> None:
    """What the home holds: tables and their newest days, the champion, assets and their last runs."""
    settings = _settings(home)
    _existing(settings)
    from bike_assets.status import read_status

    with _quiet(settings, debug):
        result = read_status(settings)
    _report(result, as_json, _print_status)


@champion_app.command("show")
def champion_show(home: Home = DEFAULT_HOME, as_json: AsJson = False, debug: Debug = False) -> None:
    """The champion: version, training, held-out accuracy and the bundle the service reads."""
    settings = _settings(home)
    _existing(settings)
    from bike_assets.status import describe_champion

    with _quiet(settings, debug):
        result = describe_champion(settings)
    _report(result, as_json, _print_mapping)


@app.command()
def up(
    more: MoreData = None,
    source: SourceOption = None,
    data: DataOption = None,
    home: Home = DEFAULT_HOME,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    dagster_port: Annotated[int, typer.Option(help="Dagster UI.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="MLflow.")] = 5000,
    serving_port: Annotated[int, typer.Option(help="REST service.")] = 8000,
    debug: Debug = False,
) -> None:
    """Start the Dagster UI, MLflow and the REST service over one home; Ctrl-C ends all of them.

    An empty home is filled with the demo first.
    """
    from bike_assets.up import Ports, reachable, serve

    ports = Ports(dagster=dagster_port, mlflow=mlflow_port, serving=serving_port)
    ports.require_free(host)
    settings = _settings(
        home, source, [*(data or []), *(more or [])], mlflow_ui_url=f"http://{reachable(host)}:{mlflow_port}"
    )
    from bike_assets.home import prepare, remember_source
    from bike_assets.recovery import recover

    remember_source(settings)
    if not (settings.bundles_dir.is_dir() and any(settings.bundles_dir.iterdir())):
        from bike_assets.demo import run_demo

        with _session(settings, debug) as (definitions, instance), _progress() as say:
            run_demo(settings, definitions, instance, progress=say)
    prepare(settings)
    recover(settings)
    serve(settings, host, ports, say=_say)


def main() -> None:
    """Run the command line; every error a user can make ends in one line on stderr."""
    debug = "--debug" in sys.argv
    try:
        app()
    except BikeError as error:
        if debug:
            raise
        _say(f"error: {error}")
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        _say(f"error: {type(error).__name__}: {text}; run again with --debug to see where")
        sys.exit(1)


def _settings(
    home: Path, source: Source | None = None, data: list[Path] | None = None, **more: Any
) -> Settings:
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


def _existing(settings: Settings) -> None:
    if not settings.warehouse_path.exists():
        raise PermanentError(
            f"{settings.home} holds no platform yet; run: bike-assets demo --home {settings.home}"
        )


@contextlib.contextmanager
def _session(settings: Settings, debug: bool) -> Iterator[tuple["dg.Definitions", "dg.DagsterInstance"]]:
    """Definitions and instance of a home, with the libraries' chatter kept out of the terminal."""
    from bike_assets.home import open_instance, prepare

    prepare(settings)
    with _quiet(settings, debug):
        from bike_assets.build import build_defs
        from bike_assets.recovery import end_dead_runs, only_command

        with only_command(settings, _say), open_instance(settings) as instance:
            end_dead_runs(settings, instance)
            yield build_defs(settings), instance


@contextlib.contextmanager
def _quiet(settings: Settings, debug: bool) -> Iterator[None]:
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
def _progress() -> Iterator[Any]:
    """A function that says what comes next: a spinner on a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _say
        return
    with console.status("starting") as spinner:

        def say(text: str) -> None:
            # What is said may hold brackets of a file's own.
            console.print(f"[dim]{datetime.now().astimezone():%H:%M:%S}[/dim] {escape(text)}", soft_wrap=True)
            spinner.update(escape(text))

        yield say


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  the terminal is what a command line talks to


def _day(value: datetime | None) -> date | None:
    return value.date() if value else None


def _outcome(outcome: Any, days: tuple[date, date] | None) -> dict[str, Any]:
    return {
        "days": [day.isoformat() for day in days] if days else None,
        "checks": {"passed": outcome.passed, "warned": outcome.warned, "failed": outcome.failed},
        "seconds": {name: round(seconds, 2) for name, seconds in outcome.seconds.items()},
    }


def _report(result: dict[str, Any], as_json: bool, show: Any) -> None:
    if as_json:
        print(json.dumps(result, ensure_ascii=False, default=str))  # noqa: T201
    else:
        show(result)


def _print_mapping(result: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None)
    for name, value in result.items():
        table.add_row(name, json.dumps(value, default=str) if isinstance(value, dict | list) else str(value))
    Console().print(table)


def _print_status(result: dict[str, Any]) -> None:
    console = Console()
    for title in ("tables", "assets"):
        rows = result[title]
        if not rows:
            continue
        table = Table(title=title, title_justify="left")
        for name in rows[0]:
            table.add_column(name)
        for row in rows:
            table.add_row(*("" if value is None else str(value) for value in row.values()))
        console.print(table)
    _print_mapping(result["champion"] or {"champion": "none yet"})


def _print_demo(result: dict[str, Any]) -> None:
    console = Console()
    table = Table(title="Accuracy by horizon, every counted hour of the test days", title_justify="left")
    for name in ("day", "hours", "R²", "RMSE", "MAE", "WAPE", "GEH < 5", "skill"):
        table.add_column(name, justify="right")
    for horizon, scores in result["accuracy"].items():
        table.add_row(
            horizon,
            f"{scores['n']:,}",
            f"{scores['r2']:.3f}",
            f"{scores['rmse']:.1f}",
            f"{scores['mae']:.1f}",
            f"{scores['wape']:.1%}",
            f"{scores['geh5_share']:.1%}",
            f"{scores['skill']:.1%}",
        )
    console.print(table)
    _print_mapping({name: value for name, value in result.items() if name != "accuracy"})
    console.print(f"Next: bike-assets up --home {result['home']}")


if __name__ == "__main__":
    main()
