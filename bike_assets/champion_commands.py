"""`bike-assets champion` and `bike-assets audit`: who serves, changes of it, and the log of them.

Belongs here: options, and how results are printed. Does not belong here: the work. A change is a run of a job of
`champion_jobs`, so that Dagster shows it whoever asked for it, and where.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bike_assets.console import (
    DEFAULT_HOME,
    AsJson,
    Debug,
    Home,
    print_mapping,
    progress,
    quiet,
    read_settings,
    report,
    require_platform,
    session,
    tell,
)
from bike_assets.core.errors import PermanentError

champion_app = typer.Typer(help="The model that serves.", no_args_is_help=True)
audit_app = typer.Typer(
    help="The log of every decision about models: signed, and only ever added to.", no_args_is_help=True
)

Version = Annotated[str, typer.Argument(help="Number of a version in the registry.")]
Reason = Annotated[str, typer.Option("--reason", "-m", help="Why: stands in the audit log.")]
Actor = Annotated[str, typer.Option(help="Who asks; by default the user of the operating system.")]


@champion_app.command("show")
def champion_show(home: Home = DEFAULT_HOME, as_json: AsJson = False, debug: Debug = False) -> None:
    """The champion: version, training, held-out accuracy and the bundle the service reads."""
    settings = read_settings(home)
    require_platform(settings)
    from bike_assets.status import describe_champion, settle

    with quiet(settings, debug):
        settle(settings)
        result = describe_champion(settings)
    report(result, as_json, print_mapping)


@champion_app.command("promote")
def champion_promote(
    version: Version = "",
    reason: Reason = "",
    actor: Actor = "",
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make a version champion, whatever the policy says of it; by default the challenger.

    bike-assets champion promote 3 -m "the new counters matter more"
    """
    _change("promote", version, reason, actor, home, as_json, debug)


@champion_app.command("rollback")
def champion_rollback(
    version: Version = "",
    reason: Reason = "",
    actor: Actor = "",
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Take the champion back and let the one before it serve.

    Name the version to take back and two people who do it at once take it back once. It is not promoted again unless a
    person promotes it.

    bike-assets champion rollback 3 -m "wrong since Monday"
    """
    _change("rollback", version, reason, actor, home, as_json, debug)


@champion_app.command("approve")
def champion_approve(
    version: Version = "",
    reason: Reason = "",
    actor: Actor = "",
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Promote the challenger that won and waits for a person (BIKE_PROMOTION_REQUIRE_APPROVAL)."""
    _change("approve", version, reason, actor, home, as_json, debug)


@champion_app.command("reject")
def champion_reject(
    version: Version = "",
    reason: Reason = "",
    actor: Actor = "",
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say no to the challenger that waits for a person; it is not judged again."""
    _change("reject", version, reason, actor, home, as_json, debug)


@champion_app.command("retrain")
def champion_retrain(
    force: Annotated[
        bool, typer.Option("--force", help="Train whatever the numbers say, cooldown and budget included.")
    ] = False,
    reason: Reason = "",
    actor: Actor = "",
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Decide today whether to retrain, and do what was decided: a challenger, and the comparison with the champion.

    bike-assets champion retrain --force -m "the new counters matter more"
    """
    settings = read_settings(home)
    require_platform(settings)
    with session(settings, debug) as (definitions, instance), progress() as say:
        from bike_assets.runner import decide_and_retrain

        order = {"force": force, "actor": actor, "reason": reason}
        result = decide_and_retrain(settings, definitions, instance, order, say)
    report(result, as_json, print_mapping)


@champion_app.command("summary")
def champion_summary(
    output: Annotated[
        Path | None, typer.Option("--output", help="File to write; by default the list is printed.")
    ] = None,
    home: Home = DEFAULT_HOME,
    debug: Debug = False,
) -> None:
    """Every version as `summary.json`, a list that tools of other systems read."""
    settings = read_settings(home)
    require_platform(settings)
    from bike_assets.status import settle
    from bike_assets.summary import model_summary

    with quiet(settings, debug):
        settle(settings)
        text = json.dumps(model_summary(settings), indent=2, ensure_ascii=False)
    if output is None:
        print(text)  # noqa: T201
    else:
        temporary = output.with_name(f"{output.name}.tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(output)
        tell(f"wrote {output}")


@audit_app.command("show")
def audit_show(
    last: Annotated[int, typer.Option(min=1, help="How many rows, the newest.")] = 20,
    version: Annotated[str, typer.Option(help="Only rows about this version.")] = "",
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """The newest rows of the log: what was decided, by whom, why."""
    settings = read_settings(home)
    require_platform(settings)
    from bike_assets.resources.audit import AuditLog
    from bike_assets.resources.warehouse import Warehouse
    from bike_assets.status import settle

    with quiet(settings, debug):
        settle(settings)
        rows = AuditLog.from_settings(settings).read(Warehouse.from_settings(settings))
        if version:
            rows = rows.filter((rows["model_version"] == version) | (rows["replaced_version"] == version))
        result = {"rows": rows.tail(last).to_dicts()}
    report(result, as_json, _print_log)


@audit_app.command("verify")
def audit_verify(
    head: Annotated[
        Path | None,
        typer.Option(help="A copy of head.json that was kept elsewhere: the log must still contain its row."),
    ] = None,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Whether any row was edited, removed, added or moved since it was written, and whether MLflow agrees.

    Ends with status 1 where something is wrong. Keep a copy of <home>/audit/head.json elsewhere and give it with
    --head: then even a log that was put back together with its head is found.
    """
    settings = read_settings(home)
    require_platform(settings)
    from bike_assets.status import verify_audit

    with quiet(settings, debug):
        result = verify_audit(settings, head)
    report(result, as_json, print_mapping)
    if result["faults"]:
        raise PermanentError(f"the audit log is not what was written: {result['faults'][0]}")


def _change(job: str, version: str, reason: str, actor: str, home: Path, as_json: bool, debug: bool) -> None:
    settings = read_settings(home)
    require_platform(settings)
    with session(settings, debug) as (definitions, instance):
        from bike_assets import runner

        config = {"version": version, "actor": actor, "reason": reason}
        found = runner.run_job(definitions, instance, job, {f"{job}_champion": config})
        result: Mapping[str, Any] = {name: value.value for name, value in found.items()}
    report(dict(result), as_json, lambda _: Console().print(f"{result['text']}", highlight=False))


def _print_log(result: dict[str, Any]) -> None:
    table = Table(box=None)
    for name in ("#", "when (UTC)", "event", "version", "who", "why"):
        table.add_column(name, no_wrap=name not in ("why",))
    for row in result["rows"]:
        table.add_row(
            str(row["sequence"]),
            f"{row['timestamp']:%Y-%m-%d %H:%M:%S}",
            row["event"],
            row["model_version"] or "",
            row["actor"],
            row["reason"],
        )
    Console().print(table, markup=False) if result["rows"] else tell("the log has no row yet")
