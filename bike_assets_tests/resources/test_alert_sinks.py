"""Messages that arrive whatever they hold, and sinks that never raise, never hang and never show their address."""

import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from bike_assets.core.alerts import Alert, Kind, Level
from bike_assets.resources.alert_sinks import ATTEMPTS, DiscordSink, LogSink, WebhookSink, discord_messages
from bike_assets.resources.alerts import Alerts
from bike_assets_tests.fakes.discord import TOKEN, FakeDiscord, problems
from bike_assets_tests.fakes.service import Answer, Faults

NOW = datetime(2024, 2, 26, 8, tzinfo=UTC)


def alert(title: str = "Counter 100-E is dead", **more: object) -> Alert:
    values = {"text": "24 hours of zero", "fields": (("Since", "2024-02-26"),), **more}
    return Alert(Kind.COUNTER_INCIDENT, Level.WARNING, title, **values)  # type: ignore[arg-type]


def soon() -> float:
    return time.monotonic() + 5


class Waits:
    """Sleeping, without the time."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def discord() -> Iterator[FakeDiscord]:
    with FakeDiscord() as server:
        yield server


def test_an_alert_arrives_as_an_embed(discord: FakeDiscord) -> None:
    delivery = DiscordSink(discord.webhook).send([alert(url="http://127.0.0.1:3000/runs/1")], NOW, soon())

    assert delivery.outcome == "sent"
    (embed,) = discord.embeds
    assert embed["title"] == "Counter 100-E is dead"
    assert embed["description"] == "24 hours of zero"
    assert embed["color"] == 0xFFA500
    assert embed["fields"] == [{"name": "Since", "value": "2024-02-26", "inline": True}]
    assert embed["url"] == "http://127.0.0.1:3000/runs/1"
    assert embed["timestamp"] == "2024-02-26T08:00:00+00:00"
    assert discord.messages[0]["allowed_mentions"] == {"parse": []}


@pytest.mark.parametrize(
    "wild",
    [
        alert("t" * 5000),
        alert(text="x" * 50_000),
        alert(text=""),
        alert(fields=tuple((f"name {n}", "v" * 2000) for n in range(60))),
        alert(fields=(("", ""), ("n" * 900, "  "))),
        alert(url="file:///etc/passwd"),
        alert(text="@everyone été 🚲" * 400),
        alert(text="🚲" * 5000),
    ],
    ids=["title", "text", "empty", "fields", "blank fields", "url", "mention", "emoji"],
)
def test_no_alert_is_refused_for_its_form(discord: FakeDiscord, wild: Alert) -> None:
    delivery = DiscordSink(discord.webhook).send([wild], NOW, soon())

    assert (delivery.outcome, discord.refusals) == ("sent", [])


def test_many_alerts_are_few_messages_each_within_the_limits() -> None:
    messages = discord_messages([alert(f"{n}", text="x" * 900) for n in range(25)], NOW)

    assert [problems(message) for message in messages] == [{}] * len(messages)
    assert [embed["title"] for message in messages for embed in message["embeds"]] == [
        str(n) for n in range(25)
    ]
    assert 3 <= len(messages) <= 5


def test_the_fake_refuses_what_discord_refuses() -> None:
    """Otherwise the tests above would hold nothing."""
    for fault in (
        {"embeds": []},
        {"embeds": [{"title": "t" * 257}]},
        {"embeds": [{"description": "t" * 4097}]},
        {"embeds": [{"fields": [{"name": "n", "value": "v"}] * 26}]},
        {"embeds": [{"fields": [{"name": "", "value": "v"}]}]},
        {"embeds": [{"fields": [{"name": "n", "value": "v" * 1025}]}]},
        {"embeds": [{"title": "t"}] * 11},
        {"embeds": [{"description": "t" * 3001}] * 2},
        {"embeds": [{"title": "t", "color": "#ff0000"}]},
        {"embeds": [{"title": "t", "colour": 1}]},
        {"embeds": [{"title": "t", "url": "file:///x"}]},
    ):
        assert problems(fault), fault


def test_the_rate_limit_is_obeyed(discord: FakeDiscord) -> None:
    waits = Waits()
    sink = DiscordSink(discord.webhook, waits)
    for n in range(5):
        assert sink.send([alert(str(n))], NOW, soon()).outcome == "sent"

    delivery = sink.send([alert("one too many")], NOW, soon())

    assert delivery.outcome == "later"
    assert len(waits.seconds) == ATTEMPTS - 1
    assert all(0 < seconds <= 2.1 for seconds in waits.seconds), "not what the body asked for"
    real = DiscordSink(discord.webhook).send([alert("after waiting")], NOW, soon())
    assert real.outcome == "sent"


def test_a_wait_longer_than_there_is_time_is_not_waited() -> None:
    waits = Waits()
    with FakeDiscord(rate=0, seconds=600) as server:
        server._times.append(time.monotonic())
        began = time.monotonic()
        delivery = DiscordSink(server.webhook, waits).send([alert()], NOW, soon())

    assert (delivery.outcome, waits.seconds) == ("later", [])
    assert "429" in delivery.detail
    assert time.monotonic() - began < 3


def test_what_may_pass_is_tried_again_a_few_times() -> None:
    waits = Waits()
    with FakeDiscord(Faults(1.0, kinds=("500",))) as server:
        delivery = DiscordSink(server.webhook, waits).send([alert()], NOW, soon())
        assert sum(server.requests.values()) == ATTEMPTS
        server.set_faults(Faults())
        assert DiscordSink(server.webhook, waits).send([alert()], NOW, soon()).outcome == "sent"

    assert (delivery.outcome, len(waits.seconds)) == ("later", ATTEMPTS - 1)


def test_a_server_that_hangs_is_left_in_time(discord: FakeDiscord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bike_assets.resources.alert_sinks.TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(discord, "receive", lambda *_: time.sleep(1) or Answer(204, "text/plain", b""))
    began = time.monotonic()

    delivery = DiscordSink(discord.webhook, Waits()).send([alert()], NOW, soon())

    assert delivery.outcome == "later"
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("address", "outcome"),
    [
        ("http://127.0.0.1:1/hook", "later"),
        ("nonsense", "later"),
        ("http://[::1", "later"),
        ("http://127.0.0.1:99999/", "later"),
        ("", "later"),
    ],
)
def test_a_wrong_address_raises_nothing_and_keeps_the_alert(address: str, outcome: str) -> None:
    delivery = DiscordSink(address, Waits()).send([alert()], NOW, soon())

    assert delivery.outcome == outcome
    assert address == "" or address not in delivery.detail


def test_a_webhook_that_was_deleted_is_said_and_not_hammered(discord: FakeDiscord) -> None:
    delivery = DiscordSink(f"{discord.url}/api/webhooks/1/{TOKEN}", Waits()).send([alert()], NOW, soon())

    assert delivery.outcome == "later"
    assert "404: Unknown Webhook" in delivery.detail
    assert sum(discord.requests.values()) == 1


def test_the_address_is_shown_nowhere(
    discord: FakeDiscord, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIKE_ALERT_DISCORD_WEBHOOK", discord.webhook)
    alerts = Alerts(level="info", to_log=True)
    with caplog.at_level(logging.INFO):
        shown = [
            repr(alerts),
            str(alerts.get_resource_config() if hasattr(alerts, "get_resource_config") else ""),
        ]
        for sink in alerts.sinks().values():
            shown += [repr(sink), str(alerts.send([alert()], sink, soon()))]

    assert discord.titles == ["Counter 100-E is dead"]
    for text in (*shown, caplog.text):
        assert TOKEN not in text


def test_the_webhook_gets_every_alert_as_json() -> None:
    received: list[bytes] = []
    with FakeDiscord() as server:
        server.receive = lambda _path, _query, _headers, body: (
            received.append(body) or Answer(200, "text/plain", b"")
        )  # type: ignore[method-assign,func-returns-value,assignment]
        delivery = WebhookSink(f"{server.url}/any").send([alert(), alert("second")], NOW, soon())

    assert delivery.outcome == "sent"
    import json

    found = json.loads(received[0])["alerts"]
    assert [one["title"] for one in found] == ["Counter 100-E is dead", "second"]
    assert found[0]["kind"] == "counter_incident"
    assert found[0]["level"] == "warning"
    assert found[0]["sent_at"] == "2024-02-26T08:00:00+00:00"


def test_the_log_gets_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    LogSink().send([alert(), alert("second")], NOW, soon())

    assert [record.name for record in caplog.records] == ["bike_assets.alerts"] * 2


def test_a_sink_that_raises_is_a_delivery_that_failed() -> None:
    class Broken:
        name = "broken"

        def send(self, *_: object) -> None:
            raise RuntimeError("boom")

    delivery = Alerts(level="info").send([alert()], Broken(), soon())  # type: ignore[arg-type]

    assert (delivery.sink, delivery.outcome) == ("broken", "refused")


def test_without_a_webhook_there_is_no_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIKE_ALERT_DISCORD_WEBHOOK", "")
    monkeypatch.delenv("BIKE_ALERT_WEBHOOK", raising=False)

    assert Alerts(level="info").sinks() == {}
