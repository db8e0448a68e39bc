"""The alerts resource: what sensors hand their alerts to, whatever sinks are set."""

from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg
from pydantic import SecretStr

from bike_assets.core.alerts import Alert, Level
from bike_assets.resources.alert_sinks import Delivery, DiscordSink, LogSink, Sink, WebhookSink
from bike_assets.settings import Settings, load_settings


class Alerts(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Sends alerts to every sink that is set; without one it is silent.

    The addresses are not configuration of the resource, which Dagster shows to everyone: they are read from the
    environment by the process that sends.
    """

    level: str
    """Alerts below this are not sent: info, notice, warning or critical."""

    to_log: bool = False

    @classmethod
    def from_settings(cls, settings: Settings) -> "Alerts":
        """The resource that the settings describe."""
        return cls(level=settings.alert_level, to_log=settings.alert_log)

    @property
    def minimum(self) -> Level:
        """The lowest level that is sent."""
        return Level[self.level.upper()]

    def sinks(self) -> dict[str, Sink]:
        """Every sink that is set, by name."""
        settings = load_settings()
        found: list[Sink] = []
        if url := _revealed(settings.alert_discord_webhook):
            found.append(DiscordSink(url))
        if url := _revealed(settings.alert_webhook):
            found.append(WebhookSink(url))
        if self.to_log:
            found.append(LogSink())
        return {sink.name: sink for sink in found}

    def send(self, alerts: Sequence[Alert], sink: Sink, until: float) -> Delivery:
        """Send some alerts to one sink. Never raises.

        Args:
            alerts: at most `MAX_EMBEDS` of them.
            sink: one of `sinks()`.
            until: reading of `time.monotonic` at which to give up for now.
        """
        try:
            return sink.send(alerts, datetime.now(UTC), until)
        except Exception as error:  # an alert that cannot be sent must not fail what it tells of
            return Delivery(sink.name, "refused", f"unexpected {type(error).__name__}")


def _revealed(secret: SecretStr | None) -> str:
    return secret.get_secret_value().strip() if secret else ""
