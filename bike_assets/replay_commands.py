"""The command `replay`: options, and how its result is printed. The work is in `bike_assets.replay`."""

import json
from datetime import datetime
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
    quiet,
    read_settings,
    report,
)
from bike_assets.core.errors import PermanentError

MOST_POLICIES = 2


def add_to(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(replay)


def replay(
    first: Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="First local day.")],
    last: Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], help="Last local day.")],
    more: MoreData = None,
    policy: Annotated[
        list[Path] | None,
        typer.Option("--policy", help="TOML or YAML file of thresholds; given twice, both run side by side."),
    ] = None,
    source: SourceOption = None,
    data: DataOption = None,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Live through past days as if the platform had run then: drift, decisions, retraining and promotion included.

    Works in a home of its own under <home>/replays, which `bike-assets up --home` opens, and never touches the home's
    own tables. Killed and run again, it goes on where it stopped.

    bike-assets replay --from 2024-10-01 --to 2024-12-31 --policy strict.toml --policy patient.toml
    """
    settings = read_settings(home, source, [*(data or []), *(more or [])])
    with quiet(settings, debug):
        from bike_assets.policies import Policies
        from bike_assets.replay import plan_replay, read_history, run_replay
        from bike_assets.replay_report import REPORT_HTML, REPORT_JSON_FILE, replay_result, report_html
    policies = [Policies.of(settings).read(path) for path in policy or []] or [Policies.of(settings)]
    if len(policies) > MOST_POLICIES:
        raise PermanentError(f"{len(policies)} policies are given; compare {MOST_POLICIES} at a time")
    if len({each.name for each in policies}) < len(policies):
        raise PermanentError("both policy files have one name; rename one, reports call policies by it")
    history = read_history(settings)
    replays = [plan_replay(settings, history, first.date(), last.date(), each) for each in policies]
    for each in replays:
        with bar() as show:
            run_replay(each, history, progress=show, debug=debug)
    results = [replay_result(each) for each in replays]
    folder = replays[0].settings.home if len(replays) == 1 else settings.home / "replays"
    folder.mkdir(parents=True, exist_ok=True)
    stem = "" if len(replays) == 1 else f"{'_against_'.join(each.name for each in policies)}_"
    page, numbers = folder / f"{stem}{REPORT_HTML}", folder / f"{stem}{REPORT_JSON_FILE}"
    page.write_text(report_html(results), encoding="utf-8")
    numbers.write_text(json.dumps(results, indent=1), encoding="utf-8")
    report({"report": str(page), "json": str(numbers), "policies": results}, as_json, _print)


def _print(result: dict[str, Any]) -> None:
    console = Console()
    table = Table(title="Replay", title_justify="left")
    for name in (
        "policy",
        "R²",
        "skill",
        "alarmed weeks",
        "trainings",
        "models",
        "champion",
        "failed",
        "seconds",
    ):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for each in result["policies"]:
        accuracy = each["accuracy"] or {"r2": float("nan"), "skill": float("nan")}
        alarmed = {
            alarm["day"] for alarm in each["alarms"] if alarm["about"] in ("network", "skill", "counter")
        }
        table.add_row(
            each["policy"],
            f"{accuracy['r2']:.4f}",
            f"{accuracy['skill']:.1%}",
            f"{len(alarmed)} of {len(each['drift_share'])}",
            f"{len(each['trainings'])}",
            f"{len(each['models'])}",
            f"{each['champion']}",
            f"{len(each['failures'])}",
            f"{each['seconds']:,.0f}",
        )
    console.print(table)
    console.print(f"report: {result['report']}", soft_wrap=True)
    for each in result["policies"]:
        console.print(f"open it: bike-assets up --home {each['home']}", soft_wrap=True)
