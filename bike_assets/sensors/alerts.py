"""The sensors that send alerts: of runs that ended, of the champion, of the clock, of the REST service.

Belongs here: when to look, how far each sensor has read, and sending. Does not belong here: reading a run
(`bike_assets.sensors.run_alerts`), words (`bike_assets.core.alerts`), sinks (`bike_assets.resources.alerts`).

None opens the warehouse. Each keeps a ledger as its cursor: how far it has read, which incidents are open, what could
not be sent yet. A tick that dies has moved no cursor, so its alerts may be told twice but are not lost; a cursor that
cannot be read is an empty ledger, and the sensor starts anew at the present.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import dagster as dg

from bike_assets.core import alerts as words
from bike_assets.core.alerts import Alert, Kind, Ledger
from bike_assets.core.freshness import evaluate_freshness
from bike_assets.core.retraining import RetrainingPolicy
from bike_assets.resources.alert_sinks import MAX_EMBEDS
from bike_assets.resources.alerts import Alerts
from bike_assets.resources.registry import CHAMPION, ModelRegistry
from bike_assets.sensors.run_alerts import alerts_of, endings, newest_ending
from bike_assets.sensors.service_health import Seen, Watch, look_at_service
from bike_assets.settings import Settings

LOOKING_SECONDS: Final = 20.0
"""A tick stops looking after this and goes on where it stopped the next time; Dagster ends one after 60."""

SENDING_SECONDS: Final = 20.0
"""And stops sending after this; what is left waits in the ledger."""

RUNS_A_TICK: Final = 50

Step = tuple[dict[str, Any], Sequence[Alert]]
"""How far a sensor has read after a piece of work, and what it found in it."""


@dataclass
class Reading:
    """A tick under way: the ledger as it stands, which what is found next may depend on."""

    ledger: Ledger


def build_alert_sensors(settings: Settings, policy: RetrainingPolicy) -> list[dg.SensorDefinition]:
    """The sensors of an environment: the clock is watched where counts go on, the service where there is an address.

    They run by themselves in compose and the cloud, and on a laptop where a webhook is set.
    """
    status = dg.DefaultSensorStatus.RUNNING if settings.alerts_on else dg.DefaultSensorStatus.STOPPED
    by_clock = settings.source == "paris"

    @dg.sensor(name="run_alerts", minimum_interval_seconds=30, default_status=status)
    def run_alerts(context: dg.SensorEvaluationContext, alerts: Alerts) -> dg.SkipReason:
        """Tells of runs that failed, of checks that did not pass, and of what runs made."""

        def look(reading: Reading) -> Iterator[Step]:
            after = reading.ledger.position.get("after")
            ended = endings(context.instance, after, RUNS_A_TICK) if isinstance(after, int) else []
            if not ended:
                # Where the log is shorter than what was read, it was put back from a backup: go on from its end.
                newest = newest_ending(context.instance)
                yield {"after": min(after, newest) if isinstance(after, int) else newest}, ()
            for ending, run_id in ended:
                yield (
                    {"after": ending},
                    alerts_of(
                        context.instance,
                        run_id,
                        reading.ledger.open,
                        ui_url=settings.dagster_ui_url,
                        policy=policy,
                        freshness=not by_clock,
                    ),
                )

        return tick(context, alerts, look)

    @dg.sensor(name="champion_alerts", minimum_interval_seconds=60, default_status=status)
    def champion_alerts(
        context: dg.SensorEvaluationContext, alerts: Alerts, registry: ModelRegistry
    ) -> dg.SkipReason:
        """Tells of another champion, whoever moved the alias: a run, a command, or a person in MLflow."""

        def look(reading: Reading) -> Iterator[Step]:
            now = registry.by_alias(CHAMPION)
            version = now.version if now else None
            position = reading.ledger.position
            known = "version" in position  # A sensor that starts anew does not tell of what already serves.
            before = position.get("version")
            found = []
            if known and now is not None and before != version:
                facts = [
                    ("Model", now.name),
                    ("Run", now.run_id[:12]),
                    *(
                        (name, f"{float(now.tags[key]):.3f}")
                        for name, key in _SHOWN_SCORES
                        if key in now.tags
                    ),
                ]
                found.append(words.champion_changed(before, now.version, facts, registry.run_url(now.run_id)))
            yield {"version": version}, found

        return tick(context, alerts, look)

    @dg.sensor(name="data_alerts", minimum_interval_seconds=600, default_status=status)
    def data_alerts(context: dg.SensorEvaluationContext, alerts: Alerts) -> dg.SkipReason:
        """Tells when counts stop, also where ingestion itself has stopped: judged by the clock."""

        def look(reading: Reading) -> Iterator[Step]:
            newest = newest_count(context.instance)
            if newest is not None:
                most = settings.freshness_max_days
                answer = evaluate_freshness(newest, now=datetime.now(UTC), max_days=most)
                if answer.age_days is not None and not answer.is_fresh:
                    found = words.no_new_data(str(newest), answer.age_days, most)
                else:
                    found = words.over(
                        Kind.NO_NEW_DATA, "data", "New data again", f"The newest count is of {newest}."
                    )
                yield dict(reading.ledger.position), [found]

        return tick(context, alerts, look)

    @dg.sensor(name="service_alerts", minimum_interval_seconds=30, default_status=status)
    def service_alerts(context: dg.SensorEvaluationContext, alerts: Alerts) -> dg.SkipReason:
        """Tells when the REST service does not answer, or answers too many requests with errors."""
        watch = Watch(settings.serving_url, settings.alert_error_share, _serving_key(settings))

        def look(reading: Reading) -> Iterator[Step]:
            seen, found = look_at_service(watch, Seen.from_position(reading.ledger.position))
            yield seen.to_position(), found

        return tick(context, alerts, look)

    return [
        run_alerts,
        champion_alerts,
        *([data_alerts] if by_clock else []),
        *([service_alerts] if settings.serving_url else []),
    ]


def _serving_key(settings: Settings) -> str:
    """The key to ask the service with: the one that is set, or what a service over this home has made."""
    if settings.serving_api_key and (key := settings.serving_api_key.get_secret_value().strip()):
        return key
    file = settings.serving_key_file
    return file.read_text().strip() if file.exists() else ""


_SHOWN_SCORES: Final = (
    ("R² day 1, held out", "holdout.day_1.r2"),
    ("R² day 7, held out", "holdout.day_7.r2"),
    ("Skill day 1, held out", "holdout.day_1.skill"),
)


def tick(
    context: dg.SensorEvaluationContext,
    alerts: Alerts,
    look: Callable[[Reading], Iterator[Step]],
    clock: Callable[[], float] = time.monotonic,
) -> dg.SkipReason:
    """One tick: look until the time is over, note what is to be told, send what waits, keep the ledger.

    Args:
        context: the sensor's; its cursor is the ledger.
        alerts: the resource.
        look: gives, piece by piece, how far was read and what was found.
        clock: seconds that never go back.
    """
    reading = Reading(Ledger.from_cursor(context.cursor))
    sinks = alerts.sinks()
    deadline = clock() + LOOKING_SECONDS
    for position, found in look(reading):
        waiting = reading.ledger.waiting
        reading.ledger = reading.ledger.at(position).noting(found, alerts.minimum, sinks)
        for entry in reading.ledger.waiting:
            if entry not in waiting:
                context.log.info(f"{entry.alert.kind}: {entry.alert.title}")
        if clock() > deadline:
            break
    ledger, said = deliver(reading.ledger, alerts, clock() + SENDING_SECONDS)
    context.update_cursor(ledger.to_cursor())
    return dg.SkipReason(said)


def deliver(ledger: Ledger, alerts: Alerts, until: float) -> tuple[Ledger, str]:
    """Send what waits, sink by sink, the oldest first; the ledger without what was sent, and what to say of it.

    Args:
        ledger: what waits.
        alerts: the resource.
        until: reading of `time.monotonic` at which sending stops for now.
    """
    said = []
    for name, sink in alerts.sinks().items():
        while batch := [entry.alert for entry in ledger.waiting if name in entry.sinks][:MAX_EMBEDS]:
            delivery = alerts.send(ledger.with_loss(batch), sink, until)
            said.append(f"{name}: {len(batch)} {delivery.outcome} ({delivery.detail})")
            if delivery.outcome == "later":
                break
            ledger = ledger.without(batch, name)
    # A sink that is set no longer is waited for no longer.
    ledger = ledger.for_sinks(alerts.sinks())
    return ledger, "; ".join(said) or "nothing to tell"


def newest_count(instance: dg.DagsterInstance) -> datetime | None:
    """The newest counted hour, as the check `freshness` of `raw_counts` last saw it; None where it never ran."""
    key = dg.AssetCheckKey(dg.AssetKey("raw_counts"), "freshness")
    for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=5):
        event = record.event.dagster_event if record.event else None
        if event and event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            found = event.asset_check_evaluation_data.metadata.get("newest_hour")
            try:
                return datetime.fromisoformat(str(found.value)) if found else None
            except ValueError:
                return None
    return None
