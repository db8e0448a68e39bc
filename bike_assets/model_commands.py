"""Commands about models and their forecasts: `backtest`, `tune`, `explain` and `model-card`.

Belongs here: options, and how results are printed. Does not belong here: the work, which is in the module of the
command's name.
"""

import math
import shlex
import sys
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bike_assets.console import (
    DEFAULT_HOME,
    AsJson,
    DataOption,
    Debug,
    Home,
    MoreData,
    SourceOption,
    bar,
    progress,
    quiet,
    read_settings,
    report,
    require_platform,
    session,
    tell,
)

SHOWN_PARTS = 12


class RetrainOption(StrEnum):
    """When a backtest trains again."""

    none = "none"
    monthly = "monthly"


class WeatherOption(StrEnum):
    """What models are told of the weather."""

    none = "none"
    known = "known"
    observed = "observed"


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(backtest)
    app.command()(tune)
    app.command()(explain)
    app.command("model-card")(card)


def backtest(
    more: MoreData = None,
    first: Annotated[
        datetime | None,
        typer.Option(
            "--from", formats=["%Y-%m-%d"], help="First issue date; by default four weeks before --to."
        ),
    ] = None,
    last: Annotated[
        datetime | None,
        typer.Option(
            "--to", formats=["%Y-%m-%d"], help="Last issue date, and last day scored; by default the newest."
        ),
    ] = None,
    train_until: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            help="Last day whose counts the first training sees; by default the day before --from.",
        ),
    ] = None,
    retrain: Annotated[RetrainOption, typer.Option(help="When to train again.")] = RetrainOption.none,
    window: Annotated[
        int | None,
        typer.Option(
            min=0, help="Issue dates before a training that it uses; 0 for all. Default: BIKE_TRAINING_DAYS."
        ),
    ] = None,
    families: Annotated[
        str | None,
        typer.Option(
            help="Families of models, with commas between; by default BIKE_MODEL_FAMILY. Baselines run too."
        ),
    ] = None,
    weather: Annotated[
        WeatherOption,
        typer.Option(
            help="none; known: each issue date's own forecast, as the home holds it; observed: as if every forecast "
            "had been perfect."
        ),
    ] = WeatherOption.known,
    source: SourceOption = None,
    data: DataOption = None,
    home: Home = DEFAULT_HOME,
    mlflow: Annotated[bool, typer.Option(help="Log a run to MLflow.")] = True,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """How good forecasts of a past period would have been, had they been issued then.

    Each model sees counts up to the day before its first forecast and nothing later. Uses the home's counts; --source
    or --data fills the home first, as ingest does. Killed and run again, it goes on where it stopped.

    bike-assets backtest --from 2024-10-01 --to 2024-12-31 --retrain monthly
    """
    settings = read_settings(home, source, [*(data or []), *(more or [])])
    with quiet(settings, debug):
        from bike_assets.assets.forecasting import training_config
        from bike_assets.backtest import fill, needs_filling, newest_day, run_backtest
        from bike_assets.core.backtest import BacktestConfig
    if needs_filling(settings, named=bool(source or data or more)):
        with session(settings, debug) as (definitions, instance), progress() as say:
            fill(settings, definitions, instance, say)
    with quiet(settings, debug):
        end = last.date() if last else newest_day(settings)
        config = BacktestConfig(
            first=first.date() if first else end - timedelta(days=27),
            last=end,
            train_until=train_until.date() if train_until else None,
            retrain=retrain.value,
            window_days=(settings.training_days if window is None else window) or None,
            families=tuple(
                name.strip() for name in (families or settings.model_family).split(",") if name.strip()
            ),
            weather=weather.value,
            training=training_config(settings),
        )
        with bar() as show:
            result = run_backtest(
                settings,
                config,
                command=shlex.join(["bike-assets", *sys.argv[1:]]),
                mlflow=mlflow,
                progress=show,
            )
    report(result, as_json, _print_backtest)


def tune(
    budget: Annotated[float, typer.Option(min=1, help="Seconds for the trials.")] = 600.0,
    rows: Annotated[
        int, typer.Option(min=1_000, help="Rows each trial takes at most; fewer give more trials.")
    ] = 60_000,
    until: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="Last day of counts that is looked at; default: the newest."),
    ] = None,
    weather: Annotated[WeatherOption, typer.Option(help="As in backtest.")] = WeatherOption.known,
    output: Annotated[
        Path | None,
        typer.Option(help="File of the best options; default: training_options.json in the home."),
    ] = None,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Search better training options within a time budget, judged on the last eight weeks, trained on the days before.

    Writes a file of options when some beat those in force. Trainings and backtests take it from BIKE_TRAINING_OPTIONS.

    bike-assets tune --budget 900
    BIKE_TRAINING_OPTIONS=.bike/training_options.json bike-assets backtest
    """
    settings = read_settings(home)
    require_platform(settings)
    with progress() as say, quiet(settings, debug):
        from bike_assets.tune import tune_home

        result = tune_home(
            settings,
            budget,
            rows=rows,
            until=until.date() if until else None,
            weather=weather.value,
            output=output,
            say=say,
        )
    report(result, as_json, _print_tuning)


def explain(
    counter: Annotated[str, typer.Option(help="Id of a counter, or a part of its name.")],
    hour: Annotated[
        datetime,
        typer.Option(formats=["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M%z"], help="Start of the hour, local time."),
    ],
    issue_date: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="When it is forecast; by default as late as counts allow."),
    ] = None,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Why the champion forecasts what it does: the parts of one forecast, in bicycles that sum to it.

    bike-assets explain --counter 900000000-950000001 --hour 2024-12-20T08:00
    """
    settings = read_settings(home)
    require_platform(settings)
    with quiet(settings, debug):
        from bike_assets.explain import explain_hour

        result = explain_hour(settings, counter, hour, issue_date.date() if issue_date else None)
    report(result, as_json, _print_explanation)


def card(
    output: Annotated[
        Path | None, typer.Option("--output", help="File to write; by default the card is printed.")
    ] = None,
    home: Home = DEFAULT_HOME,
    debug: Debug = False,
) -> None:
    """The champion's model card: use, data, accuracy by group on days it was not trained on, limits."""
    settings = read_settings(home)
    require_platform(settings)
    with quiet(settings, debug):
        from bike_assets.model_card import champion_card

        text = champion_card(settings)
    if output is None:
        print(text)  # noqa: T201
    else:
        output.write_text(text, encoding="utf-8")
        tell(f"wrote {output}")


def _print_backtest(result: dict[str, Any]) -> None:
    from bike_assets.core.backtest import BASELINES

    console = Console()
    table = Table(
        title="Every counted hour; trusted: without outages, spikes and stuck counts",
        title_justify="left",
        box=None,
    )
    names = ("family", "day", "R²", "RMSE", "WAPE", "GEH<5", "mean4", "naive", "80 %", "90 %")
    for name in names:
        table.add_column(name, justify="left" if name == "family" else "right", no_wrap=True)
    for family, found in result["families"].items():
        days = found["horizon"]
        shown = [(day, days[day]) for day in ("1", "2", "7") if day in days]
        for day, row in [*shown, ("all", found["all"]), ("trusted", found["trusted"])]:
            shares = ("geh5_share", "skill_mean4", "skill_seasonal_naive", "coverage_80", "coverage_90")
            table.add_row(
                family if day == shown[0][0] else "",
                day,
                _number(row["r2"], ".4f"),
                _number(row["rmse"], ".2f"),
                _number(row["wape"], ".2%"),
                *(_number(row[name], ".1%") for name in shares),
            )
    console.print(table)
    for family, found in result["families"].items():
        if family not in BASELINES:
            _print_verdict(console, family, found["verdict"])
    console.print(f"report: {result['report']}", soft_wrap=True)


def _print_tuning(result: dict[str, Any]) -> None:
    console = Console()
    table = Table(box=None)
    for name in ("RMSE", "newest split", "before", "seconds", "options"):
        table.add_column(name, justify="left" if name == "options" else "right")
    for trial in sorted(result["trials"], key=lambda trial: trial["rmse"]):
        options = ", ".join(f"{name} {value}" for name, value in trial["options"].items())
        numbers = (trial["rmse"], *trial["fold_rmse"])
        table.add_row(
            *(f"{number:.3f}" for number in numbers), f"{trial['seconds']:.1f}", options or "those in force"
        )
    console.print(table)
    if result["options_file"]:
        console.print(f"RMSE {result['gain']:.2%} smaller: {result['options_file']}", soft_wrap=True)
    else:
        console.print("nothing beat the options in force")


def _print_explanation(result: dict[str, Any]) -> None:
    console = Console()
    counted = "not counted yet" if result["counted"] is None else f"counted {result['counted']}"
    console.print(
        f"{result['counter_name'] or result['counter_id']}, {result['hour']}, issued {result['issue_date']} by "
        f"{result['model']}: {result['forecast']:.1f} bicycles (80 %: {result['lower_80']:.0f} to "
        f"{result['upper_80']:.0f}; {counted})",
        highlight=False,
        markup=False,
    )
    table = Table(box=None)
    for name in ("part", "value", "factor", "bicycles"):
        table.add_column(name, justify="left" if name == "part" else "right")
    parts = result["parts"]
    for part in parts[:SHOWN_PARTS]:
        table.add_row(
            part["part"],
            "" if part["value"] is None else f"{part['value']:.2f}",
            f"× {part['factor']:.3f}",
            f"{part['bicycles']:+.1f}",
        )
    if rest := parts[SHOWN_PARTS:]:
        factor = math.prod(part["factor"] for part in rest)
        bicycles = sum(part["bicycles"] for part in rest)
        table.add_row(f"{len(rest)} others", "", f"× {factor:.3f}", f"{bicycles:+.1f}")
    table.add_row("forecast", "", "", f"{result['forecast']:.1f}")
    console.print(table)


def _print_verdict(console: Console, family: str, found: dict[str, Any]) -> None:
    console.print(
        f"{family}: the seasonal naive is better in {len(found['months_lost'])} months, at "
        f"{len(found['horizons_lost'])} horizons, at {1 - found['counters_won']:.1%} of counters; coverage is within "
        f"5 points at {found['counters_covered_80']:.1%} (80 %) and {found['counters_covered_90']:.1%} (90 %) of "
        "counters"
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
