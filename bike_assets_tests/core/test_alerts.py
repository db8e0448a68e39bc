"""What is told and what is not: one message an incident, one when it is over, and a ledger that survives anything."""

import json
from typing import Any

import pytest

from bike_assets.core import alerts
from bike_assets.core.alerts import MAX_WAITING, Alert, Kind, Ledger, Level

NEWS = alerts.run_completed("describe", 3.0)
SILENT = alerts.counter_incident("100-E", "dead", "2024-02-26", "24 hours of zero")
ALIVE = alerts.over(Kind.COUNTER_INCIDENT, "counter:100-E", "Counter 100-E is no longer alarmed")


def told(*found: Alert, minimum: Level = Level.INFO, ledger: Ledger | None = None) -> list[str]:
    """Titles of what waits to be sent after some alerts."""
    after = (ledger or Ledger()).noting(found, minimum, ["discord"])
    return [entry.alert.title for entry in after.waiting]


def test_an_incident_is_told_once_and_its_end_once() -> None:
    assert told(SILENT, SILENT, SILENT) == [SILENT.title]
    assert told(SILENT, ALIVE, ALIVE) == [SILENT.title, ALIVE.title]
    assert told(SILENT, ALIVE, SILENT) == [SILENT.title, ALIVE.title, SILENT.title]


def test_the_end_of_what_was_never_told_is_not_told() -> None:
    assert told(ALIVE) == []
    assert told(SILENT, ALIVE, minimum=Level.CRITICAL) == []


def test_news_is_always_told() -> None:
    assert told(NEWS, NEWS) == [NEWS.title] * 2


def test_an_incident_that_gets_worse_is_told_again_and_one_that_gets_better_is_not() -> None:
    warned = alerts.performance_degraded("2024-02-26", "wait", "R² 0.68", 0.68, critical=False)
    critical = alerts.performance_degraded("2024-03-04", "retrain_reactive", "R² 0.60", 0.60, critical=True)

    assert told(warned, critical, critical) == [warned.title] * 2
    assert told(critical, warned) == [critical.title]


@pytest.mark.parametrize("minimum", list(Level))
def test_the_level_decides_what_is_told(minimum: Level) -> None:
    some = [Alert(Kind.TEST, level, level.name, "") for level in Level]

    assert told(*some, minimum=minimum) == [level.name for level in Level if level >= minimum]


def test_without_a_sink_nothing_waits_but_incidents_are_known() -> None:
    ledger = Ledger().noting([SILENT], Level.INFO, [])

    assert ledger.waiting == ()
    assert told(SILENT, ledger=ledger) == [], "a webhook that is set later would be told of old incidents"


def test_a_ledger_survives_its_cursor() -> None:
    ledger = (
        Ledger({"after": 17})
        .noting([SILENT, NEWS], Level.INFO, ["discord", "webhook"])
        .without([NEWS], "discord")
    )

    assert Ledger.from_cursor(ledger.to_cursor()) == ledger


@pytest.mark.parametrize(
    "cursor",
    [
        None,
        "",
        "17",
        "null",
        "[]",
        "{}",
        '{"position": 3}',
        "not json at all",
        '{"position":{},"open":[],"waiting":[]}',
    ],
)
def test_a_cursor_that_cannot_be_read_is_an_empty_ledger(cursor: str | None) -> None:
    assert Ledger.from_cursor(cursor) == Ledger()


@pytest.mark.parametrize(
    "broken", [{"kind": "unheard_of"}, {"level": "loud"}, {"fields": [["alone"]]}, {"more": 1}]
)
def test_a_cursor_with_an_alert_of_another_release_is_an_empty_ledger(broken: dict[str, Any]) -> None:
    values = json.loads(Ledger().noting([SILENT], Level.INFO, ["discord"]).to_cursor())
    values["waiting"][0][0] |= broken

    assert Ledger.from_cursor(json.dumps(values)) == Ledger()


def test_a_sink_that_never_answers_costs_a_bounded_ledger_and_the_loss_is_told() -> None:
    many = [Alert(Kind.TEST, Level.INFO, str(number), "") for number in range(MAX_WAITING + 30)]
    ledger = Ledger().noting(many, Level.INFO, ["discord"])

    assert [entry.alert.title for entry in ledger.waiting] == [
        str(number) for number in range(30, MAX_WAITING + 30)
    ]
    first, *_ = ledger.with_loss([entry.alert for entry in ledger.waiting])
    assert ("Not sent", "30 older alerts, too many waited") in first.fields


def test_what_one_sink_has_waits_for_the_other_only() -> None:
    ledger = Ledger().noting([NEWS], Level.INFO, ["discord", "webhook"]).without([NEWS], "discord")

    assert [entry.sinks for entry in ledger.waiting] == [frozenset({"webhook"})]
    assert ledger.without([NEWS], "webhook").waiting == ()
    assert ledger.for_sinks(["discord"]).waiting == ()


@pytest.mark.parametrize(
    ("assets", "kind"),
    [
        (["raw_counts"], Kind.INGESTION_FAILED),
        (["features", "predictions"], Kind.PREDICTIONS_FAILED),
        (["trained_model", "champion"], Kind.TRAINING_FAILED),
        (["counters"], Kind.RUN_FAILED),
        ([], Kind.RUN_FAILED),
    ],
)
def test_a_failure_is_called_by_what_is_missing_now(assets: list[str], kind: Kind) -> None:
    alert = alerts.run_failed("job", assets, "ValueError: no", "2024-02-26")

    assert alert.kind == kind
    assert alert.level == Level.CRITICAL
    assert "ValueError: no" in alert.text


def test_colours_say_how_bad_it_is() -> None:
    assert SILENT.colour == alerts.ORANGE
    assert ALIVE.colour == alerts.GREEN
    assert alerts.service_down("REST service", "no answer").colour == alerts.RED
    assert alerts.champion_changed(None, "1", []).colour == alerts.BLUE
