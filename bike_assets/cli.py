"""`bike-assets`: the commands people type. Progress goes to stderr, results to stdout, errors are one line."""

import atexit
import logging
import os
import sys
from datetime import date, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bike_assets import model_commands, replay_commands
from bike_assets.alert_commands import alerts_app
from bike_assets.champion_commands import audit_app, champion_app
from bike_assets.console import (
    DEFAULT_HOME,
    AsJson,
    DataOption,
    Debug,
    Home,
    MoreData,
    SourceOption,
    print_mapping,
    progress,
    quiet,
    read_settings,
    report,
    require_platform,
    session,
    tell,
)
from bike_assets.core.errors import BikeError, PermanentError
from bike_assets.data_commands import data_app

app = typer.Typer(
    name="bike-assets",
    help="Forecasts hourly bicycle traffic at every counter of a city.\n\nStart with: bike-assets demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(champion_app, name="champion")
model_commands.add_to(app)
replay_commands.add_to(app)
app.add_typer(data_app, name="data")
app.add_typer(alerts_app, name="alerts")
app.add_typer(audit_app, name="audit")

Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"])]


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
    settings = read_settings(home, source, [*(data or []), *(more or [])])
    from bike_assets.home import remember_source

    remember_source(settings)
    with session(settings, debug) as (definitions, instance), progress() as say:
        from bike_assets.demo import run_demo

        result = run_demo(
            settings,
            definitions,
            instance,
            test_days=test_days,
            train_until=_day(train_until),
            test_until=_day(test_until),
            progress=say,
        )
    report(result, as_json, _print_demo)


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
    settings = read_settings(home, source, [*(data or []), *(more or [])])
    from bike_assets.home import remember_source
    from bike_assets.resources.source import CountsSourceResource

    remember_source(settings)
    with session(settings, debug) as (definitions, instance), progress() as say:
        # Libraries warn while it loads, which a session keeps from the terminal.
        from bike_assets import runner

        span = CountsSourceResource.from_settings(settings).open().span()
        days = (_day(first) or span[0], _day(last) or span[1])
        outcome = runner.ingest(settings, definitions, instance, days, say)
    report(_outcome(outcome, days), as_json, print_mapping)


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
    settings = read_settings(home, source, data or [])
    start, end = _day(first or partition), _day(last or partition)
    if (start is None) != (end is None):
        raise PermanentError("a range needs both --from and --to; for one day give --partition")
    days = (start, end) if start and end else None
    with session(settings, debug) as (definitions, instance), progress() as say:
        # Libraries warn while it loads, which a session keeps from the terminal.
        from bike_assets import runner

        say(f"{', '.join(assets)}{f': {start} to {end}' if days else ''}")
        outcome = runner.materialize(definitions, instance, assets, days=days)
        for fault in outcome.faults:
            say(fault)
    report(_outcome(outcome, days), as_json, print_mapping)


@app.command()
def status(home: Home = DEFAULT_HOME, as_json: AsJson = False, debug: Debug = False) -> None:
    """What the home holds: tables and their newest days, the champion, assets and their last runs."""
    settings = read_settings(home)
    require_platform(settings)
    from bike_assets.status import read_status

    with quiet(settings, debug):
        result = read_status(settings)
    report(result, as_json, _print_status)


@app.command()
def doctor(home: Home = DEFAULT_HOME, as_json: AsJson = False, debug: Debug = False) -> None:
    """Try every connection, permission and version that the settings need, and say what to do where one fails.

    Asked are the packages, the home, warehouse, MLflow, Dagster's storage, the bucket of bundles, the signing key, the
    sources of counts and weather, the REST service, and who is alerted. A warning keeps nothing from running; where one
    fails, the command ends with 1.
    """
    settings = read_settings(home)
    from bike_assets.doctor import are_waiting, as_result, diagnose

    if not debug:  # Clients tell of every attempt; what came of them is in the findings.
        logging.disable(logging.WARNING)
    with progress() as say, quiet(settings, debug):
        findings = diagnose(settings, say=lambda check: say(f"asking: {check}"))
    report(as_result(settings, findings), as_json, _print_findings)
    if are_waiting():
        # Libraries that are taken down under a thread of theirs fill the terminal with complaints.
        atexit.register(_leave)
    if ill := [each for each in findings if each.outcome == "fail"]:
        raise PermanentError(f"{ill[0].check}: {ill[0].found}; {ill[0].remedy}")


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
    settings = read_settings(
        home, source, [*(data or []), *(more or [])], mlflow_ui_url=f"http://{reachable(host)}:{mlflow_port}"
    )
    from bike_assets.home import prepare, remember_source
    from bike_assets.recovery import recover

    remember_source(settings)
    if not (settings.bundles_dir.is_dir() and any(settings.bundles_dir.iterdir())):
        with session(settings, debug) as (definitions, instance), progress() as say:
            from bike_assets.demo import run_demo

            run_demo(settings, definitions, instance, progress=say)
    prepare(settings)
    recover(settings)
    serve(settings, host, ports, say=tell)


def main() -> None:
    """Run the command line; every error a user can make ends in one line on stderr."""
    debug = "--debug" in sys.argv
    try:
        app()
    except BikeError as error:
        if debug:
            raise
        tell(f"error: {error}")
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        tell(f"error: {type(error).__name__}: {text}; run again with --debug to see where")
        sys.exit(1)


def _leave() -> None:
    """End the process where it stands; only a check that failed is waited for in vain."""
    sys.stdout.flush()
    os._exit(1)


def _day(value: datetime | None) -> date | None:
    return value.date() if value else None


def _outcome(outcome: Any, days: tuple[date, date] | None) -> dict[str, Any]:
    return {
        "days": [day.isoformat() for day in days] if days else None,
        "checks": {"passed": outcome.passed, "warned": outcome.warned, "failed": outcome.failed},
        "seconds": {name: round(seconds, 2) for name, seconds in outcome.seconds.items()},
    }


def _print_findings(result: dict[str, Any]) -> None:
    table = Table("check", "", "found", "what to do")
    for each in result["checks"]:
        table.add_row(each["check"], each["outcome"], escape(each["found"]), escape(each["remedy"]))
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
    print_mapping(result["champion"] or {"champion": "none yet"})


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
    print_mapping({name: value for name, value in result.items() if name != "accuracy"})
    console.print(f"Next: bike-assets up --home {result['home']}")


if __name__ == "__main__":
    main()
