"""`bike-assets alerts`: whether messages arrive."""

import time
from typing import Any

import typer

from bike_assets.console import DEFAULT_HOME, AsJson, Debug, Home, quiet, read_settings, report
from bike_assets.core.errors import PermanentError

alerts_app = typer.Typer(help="Messages about what happens.", no_args_is_help=True)

SECONDS = 30.0


@alerts_app.callback()
def _group() -> None:
    """Keeps `test` a command of its own; a group of one command would swallow its name."""


@alerts_app.command("test")
def alerts_test(home: Home = DEFAULT_HOME, as_json: AsJson = False, debug: Debug = False) -> None:
    """Send one test message to each sink that is set, and say what came back.

    Set BIKE_ALERT_DISCORD_WEBHOOK, BIKE_ALERT_WEBHOOK or BIKE_ALERT_LOG first; addresses are never shown.
    """
    settings = read_settings(home)
    with quiet(settings, debug):
        from bike_assets.core.alerts import Alert, Kind, Level
        from bike_assets.resources.alerts import Alerts

        alerts = Alerts.from_settings(settings)
        test = Alert(
            Kind.TEST,
            Level.NOTICE,
            "Test message",
            "Alerts of this platform arrive here.",
            (("Sent from level", settings.alert_level),),
            url=settings.dagster_ui_url,
        )
        deliveries = [
            alerts.send([test], sink, time.monotonic() + SECONDS) for sink in alerts.sinks().values()
        ]
    if not deliveries:
        raise PermanentError(
            "no sink is set; set BIKE_ALERT_DISCORD_WEBHOOK, BIKE_ALERT_WEBHOOK or BIKE_ALERT_LOG"
        )
    report({delivery.sink: vars(delivery) for delivery in deliveries}, as_json, _print)
    failed = [delivery.sink for delivery in deliveries if delivery.outcome != "sent"]
    if failed:
        raise PermanentError(f"{', '.join(failed)}: the test message did not arrive; check the address")


def _print(result: dict[str, Any]) -> None:
    for name, delivery in result.items():
        typer.echo(f"{name}: {delivery['outcome']}, {delivery['detail']}")
