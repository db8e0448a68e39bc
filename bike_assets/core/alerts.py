"""What people are told: every kind of message, and which of them are sent.

Belongs here: the words of an alert as pure functions of what happened, and the ledger that keeps an incident from
being told twice. Does not belong here: noticing what happened (`bike_assets.sensors`), and how a message travels
(`bike_assets.resources.alerts`).

An alert with an `incident` opens it, or closes it (`closes`): one message when it opens, one more when it gets
worse, one when it closes. An alert without is news and is always told.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any, Final, Self

MAX_WAITING: Final = 200
"""Alerts that are kept while a sink does not answer; of more than that the oldest are given up, and counted."""


class Level(IntEnum):
    """How much an alert matters; a setting says from which on they are sent."""

    INFO = 0
    """Something went as it should."""

    NOTICE = 1
    """Something changed that people want to know of: a new champion, an incident that is over."""

    WARNING = 2
    """Someone should look at it today."""

    CRITICAL = 3
    """Forecasts are missing, or about to be."""


class Kind(StrEnum):
    """What an alert is about."""

    INGESTION_COMPLETED = "ingestion_completed"
    INGESTION_FAILED = "ingestion_failed"
    NO_NEW_DATA = "no_new_data"
    COUNTER_INCIDENT = "counter_incident"
    PREDICTIONS_GENERATED = "predictions_generated"
    PREDICTIONS_FAILED = "predictions_failed"
    METRICS_DEGRADED = "metrics_degraded"
    DRIFT_DETECTED = "drift_detected"
    PERFORMANCE_DEGRADED = "performance_degraded"
    TRAINING_COMPLETED = "training_completed"
    TRAINING_FAILED = "training_failed"
    CHAMPION_CHANGED = "champion_changed"
    EXPERIMENT_STOPPED = "experiment_stopped"
    CHECK_FAILED = "check_failed"
    SERVICE_DOWN = "service_down"
    API_ERRORS = "api_errors"
    RUN_COMPLETED = "run_completed"
    RUN_FAILED = "run_failed"
    TEST = "test"


COUNTER: Final = "counter:"
"""Begins the incident of a counter."""

GREEN: Final = 0x2ECC71
BLUE: Final = 0x00D1FF
GREY: Final = 0x808080
ORANGE: Final = 0xFFA500
RED: Final = 0xE74C3C

_COLOURS: Final = {Level.INFO: GREEN, Level.NOTICE: BLUE, Level.WARNING: ORANGE, Level.CRITICAL: RED}


@dataclass(frozen=True)
class Alert:
    """One message: `fields` are names with short values, `url` is where to look."""

    kind: Kind
    level: Level
    title: str
    text: str
    fields: tuple[tuple[str, str], ...] = ()
    incident: str = ""
    closes: bool = False
    url: str = ""

    @property
    def colour(self) -> int:
        """RGB as a number: that of the level, green where an incident is over."""
        return GREEN if self.closes else _COLOURS[self.level]

    def to_dict(self) -> dict[str, Any]:
        """The alert as JSON values."""
        return {
            **asdict(self),
            "level": self.level.name.lower(),
            "fields": [list(pair) for pair in self.fields],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The alert that `to_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: the values are not those of an alert.
        """
        return cls(
            **{
                **values,
                "kind": Kind(values["kind"]),
                "level": Level[values["level"].upper()],
                "fields": tuple((str(name), str(value)) for name, value in values["fields"]),
            }
        )


def ingestion_completed(days: str, rows: int, changed: int, url: str = "") -> Alert:
    """Counts of some days were fetched; `changed` of them hold something new."""
    return Alert(
        Kind.INGESTION_COMPLETED,
        Level.INFO,
        "Data ingestion completed",
        f"{days}: {changed} of the days changed",
        (("Rows", f"{rows:,}"), ("Table", "bike_traffic_raw.raw_counts")),
        url=url,
    )


def no_new_data(newest: str, age_days: float, max_days: float, incident: str = "data") -> Alert:
    """The newest counted hour is too old; `newest` names it."""
    return Alert(
        Kind.NO_NEW_DATA,
        Level.WARNING,
        "No new data available",
        f"The newest count is {age_days:.1f} days old; {max_days:g} working days are too many. Compare with the "
        "portal, then run `bike-assets ingest`.",
        (("Newest hour", newest),),
        incident,
    )


def predictions_generated(issue_days: str, rows: int, model: str, url: str = "") -> Alert:
    """Forecasts were issued."""
    return Alert(
        Kind.PREDICTIONS_GENERATED,
        Level.INFO,
        "Predictions generated",
        f"Issue dates: {issue_days}",
        (("Predictions", f"{rows:,}"), ("Model", model)),
        url=url,
    )


def metrics_degraded(text: str, scores: Iterable[tuple[str, str]], url: str = "") -> Alert:
    """The forecasts of the last weeks are no better than the mean of four weeks; `scores` are the skills."""
    return Alert(
        Kind.METRICS_DEGRADED,
        Level.WARNING,
        "Prediction metrics degraded",
        text,
        tuple(scores),
        "check:forecast_accuracy.beats_mean_of_four_weeks",
        url=url,
    )


def drift_detected(day: str, share: float, drifted: str, counters: int, url: str = "") -> Alert:
    """The last weeks do not look like the same season before.

    Args:
        day: issue date of the report.
        share: share of the tested columns that drifted.
        drifted: their names.
        counters: counters that changed against the city.
        url: where the report is.
    """
    return Alert(
        Kind.DRIFT_DETECTED,
        Level.WARNING,
        "Data drift detected",
        f"Report of {day}. `retraining_decision` says what follows.",
        (("Drift share", f"{share:.0%}"), ("Drifted columns", drifted), ("Drifted counters", str(counters))),
        "drift",
        url=url,
    )


def performance_degraded(day: str, decision: str, reasons: str, r2: float | None, critical: bool) -> Alert:
    """The champion's realised accuracy fell below a bound of the retraining policy."""
    return Alert(
        Kind.PERFORMANCE_DEGRADED,
        Level.CRITICAL if critical else Level.WARNING,
        "Model performance degraded",
        reasons,
        (("Day", day), ("Decision", decision), *((("R²", f"{r2:.3f}"),) if r2 is not None else ())),
        "performance",
    )


def training_completed(
    model: str, decision: str, reasons: str, scores: Iterable[tuple[str, str]], url: str = ""
) -> Alert:
    """A challenger was trained and judged."""
    return Alert(
        Kind.TRAINING_COMPLETED,
        Level.NOTICE,
        "Training completed",
        reasons,
        (("Challenger", model), ("Decision", decision), *scores),
        url=url,
    )


def champion_changed(before: str | None, now: str, facts: Iterable[tuple[str, str]], url: str = "") -> Alert:
    """Another version serves."""
    return Alert(
        Kind.CHAMPION_CHANGED,
        Level.NOTICE,
        "🏆 Champion model promoted",
        f"Version {now} serves" + (f" in the place of version {before}" if before else ", the first one"),
        tuple(facts),
        url=url,
    )


def experiment_stopped(
    verdict: str, experiment: str, reasons: str, scores: Iterable[tuple[str, str]]
) -> Alert:
    """The comparison of challenger and champion has an answer; told once an experiment."""
    return Alert(
        Kind.EXPERIMENT_STOPPED,
        Level.NOTICE,
        f"Experiment: {verdict.replace('_', ' ')}",
        reasons,
        tuple(scores),
        f"experiment:{experiment}",
    )


def counter_incident(counter: str, state: str, since: str, reason: str) -> Alert:
    """A counter is not alive."""
    return Alert(
        Kind.COUNTER_INCIDENT,
        Level.WARNING,
        f"Counter {counter} is {state}",
        reason,
        (("Since", since),),
        f"{COUNTER}{counter}",
    )


def check_failed(asset: str, check: str, text: str, is_error: bool, url: str = "") -> Alert:
    """An asset check did not pass."""
    return Alert(
        Kind.CHECK_FAILED,
        Level.CRITICAL if is_error else Level.WARNING,
        f"Check failed: {asset}.{check}",
        text or "see the check's metadata",
        incident=f"check:{asset}.{check}",
        url=url,
    )


def service_down(service: str, why: str) -> Alert:
    """A service does not answer, or says that it cannot serve."""
    return Alert(
        Kind.SERVICE_DOWN,
        Level.CRITICAL,
        f"Service down: {service}",
        f"{why}. Look at its log, then start it again.",
        incident=f"service:{service}",
    )


def api_errors(service: str, failed: int, requests: int, share: float) -> Alert:
    """Too many requests ended with a server error since the last look."""
    return Alert(
        Kind.API_ERRORS,
        Level.CRITICAL,
        "High API error rate",
        f"{failed:,} of {requests:,} requests to the {service} failed; at most {share:.0%} may. Look at its log.",
        (("Error rate", f"{failed / requests:.1%}"),),
        f"api_errors:{service}",
    )


_FAILURES: Final = {
    "raw_counts": (
        Kind.INGESTION_FAILED,
        "Data ingestion failed",
        "Run `bike-assets ingest` when it is mended.",
    ),
    "predictions": (
        Kind.PREDICTIONS_FAILED,
        "Predictions failed",
        "The service answers from the last forecast.",
    ),
    "features": (
        Kind.PREDICTIONS_FAILED,
        "Predictions failed",
        "The service answers from the last forecast.",
    ),
    "trained_model": (Kind.TRAINING_FAILED, "Training pipeline failed", "The champion serves on."),
    "champion": (Kind.TRAINING_FAILED, "Training pipeline failed", "The champion serves on."),
}
"""Asset → what the failure of a run that was to make it is called, and what it means meanwhile."""


def run_failed(name: str, assets: Iterable[str], error: str, days: str, url: str = "") -> Alert:
    """A run failed.

    Args:
        name: of the job, or of what was materialised without one.
        assets: what the run was to make.
        error: what was raised, in one line.
        days: partitions of the run, empty where it has none.
        url: where the run is.
    """
    wanted = set(assets)
    kind, title, meanwhile = next(
        (found for asset, found in _FAILURES.items() if asset in wanted),
        (Kind.RUN_FAILED, f"Run failed: {name}", "What it was to make is as it was."),
    )
    return Alert(
        kind,
        Level.CRITICAL,
        title,
        f"{error or 'the process ended without a word'}\n{meanwhile}",
        (("Run of", name), *((("Days", days),) if days else ())),
        f"run:{name}",
        url=url,
    )


def run_completed(name: str, seconds: float, url: str = "") -> Alert:
    """A run ended well."""
    return Alert(
        Kind.RUN_COMPLETED,
        Level.INFO,
        f"Run completed: {name}",
        "",
        (("Duration", f"{seconds:.0f} s"),),
        url=url,
    )


def over(kind: Kind, incident: str, title: str, text: str = "", url: str = "") -> Alert:
    """An incident is over; told only where its beginning was."""
    return Alert(kind, Level.NOTICE, title, text, incident=incident, closes=True, url=url)


@dataclass(frozen=True)
class Waiting:
    """An alert and the sinks that do not have it yet."""

    alert: Alert
    sinks: frozenset[str]


@dataclass(frozen=True)
class Ledger:
    """What a sensor remembers from one tick to the next: how far it has read, what is open, what is not sent yet.

    Attributes:
        position: of the sensor's own making, JSON values.
        open: incident → level it was told at.
        waiting: what is still to be sent, the oldest first.
        lost: alerts given up because too many waited.
    """

    position: Mapping[str, Any] = field(default_factory=dict)
    open: Mapping[str, int] = field(default_factory=dict)
    waiting: tuple[Waiting, ...] = ()
    lost: int = 0

    def at(self, position: Mapping[str, Any]) -> Self:
        """The ledger of a sensor that has read as far as this."""
        return replace(self, position=position)

    def noting(self, alerts: Iterable[Alert], minimum: Level, sinks: Iterable[str]) -> Self:
        """The ledger after some alerts: those to be told wait for every sink, the others change nothing.

        Args:
            alerts: what happened, in order.
            minimum: alerts below this level are not told, nor is the end of what was not told.
            sinks: names of where messages go.
        """
        names = frozenset(sinks)
        known, waiting = dict(self.open), list(self.waiting)
        for alert in alerts:
            if alert.closes:
                if alert.incident not in known:
                    continue
                del known[alert.incident]
            elif alert.level < minimum:
                continue
            elif alert.incident:
                if known.get(alert.incident, -1) >= alert.level:
                    continue
                known[alert.incident] = int(alert.level)
            if names:
                waiting.append(Waiting(alert, names))
        excess = max(0, len(waiting) - MAX_WAITING)
        return replace(self, open=known, waiting=tuple(waiting[excess:]), lost=self.lost + excess)

    def without(self, alerts: Iterable[Alert], sink: str) -> Self:
        """The ledger after a sink has some alerts, the loss of others told with them."""
        sent = list(alerts)
        kept = (
            Waiting(entry.alert, entry.sinks - {sink}) if entry.alert in sent else entry
            for entry in self.waiting
        )
        return replace(
            self, waiting=tuple(entry for entry in kept if entry.sinks), lost=0 if sent else self.lost
        )

    def for_sinks(self, sinks: Iterable[str]) -> Self:
        """The ledger without what waits for sinks that are no more."""
        names = frozenset(sinks)
        kept = (Waiting(entry.alert, entry.sinks & names) for entry in self.waiting)
        return replace(self, waiting=tuple(entry for entry in kept if entry.sinks))

    def with_loss(self, alerts: list[Alert]) -> list[Alert]:
        """Some alerts about to be sent, the first of them saying how many older ones were given up."""
        if not self.lost or not alerts:
            return alerts
        fields = (*alerts[0].fields, ("Not sent", f"{self.lost} older alerts, too many waited"))
        return [replace(alerts[0], fields=fields), *alerts[1:]]

    def to_cursor(self) -> str:
        """The ledger as the text of a cursor."""
        return json.dumps(
            {
                "position": self.position,
                "open": self.open,
                "waiting": [[entry.alert.to_dict(), sorted(entry.sinks)] for entry in self.waiting],
                "lost": self.lost,
            }
        )

    @classmethod
    def from_cursor(cls, text: str | None) -> Self:
        """The ledger that `to_cursor` wrote; an empty one where the text is none, so that a sensor starts anew."""
        try:
            values = json.loads(text or "")
            return cls(
                dict(values["position"]),
                {str(name): int(level) for name, level in values["open"].items()},
                tuple(
                    Waiting(Alert.from_dict(alert), frozenset(map(str, sinks)))
                    for alert, sinks in values["waiting"]
                ),
                int(values["lost"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls()
