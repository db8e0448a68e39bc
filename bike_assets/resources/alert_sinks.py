"""Where alerts go: Discord, any address that takes JSON, the log.

Belongs here: how a message looks and travels, and what an answer means. Does not belong here: what is told and when.

Nothing here raises: an alert that cannot be sent must not fail what it tells of. An address is a secret, for whoever
knows it can write to the channel; it is in no message, no log line and no representation.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal, Protocol
from urllib.parse import urlsplit

import httpx

from bike_assets.core.alerts import Alert

# At INFO httpx writes the whole address of every request, and ours are secrets.
logging.getLogger("httpx").setLevel(logging.WARNING)

log = logging.getLogger("bike_assets.alerts")

FOOTER: Final = "bike-assets"

MAX_EMBEDS: Final = 10
_MAX_TITLE, _MAX_TEXT, _MAX_FIELDS, _MAX_NAME, _MAX_VALUE = 256, 4096, 25, 256, 1024
_MAX_CHARACTERS: Final = 6000
"""Of all embeds of a Discord message: title, description, names and values of fields, footer."""

ATTEMPTS: Final = 3
TIMEOUT_SECONDS: Final = 5.0
_FIRST_WAIT_SECONDS: Final = 0.5

_MESSAGE_REFUSED: Final = frozenset({400, 413, 422})
"""The message is at fault, and would be again."""

Outcome = Literal["sent", "later", "refused"]


@dataclass(frozen=True)
class Delivery:
    """What became of some alerts: `sent`, to be tried again `later`, or `refused` for good; with the reason."""

    sink: str
    outcome: Outcome
    detail: str


class Sink(Protocol):
    """Somewhere alerts go. Sending never raises."""

    name: str

    def send(self, alerts: Sequence[Alert], moment: datetime, until: float) -> Delivery:
        """Send at most `MAX_EMBEDS` alerts, within the time until a reading of `time.monotonic`."""


class DiscordSink:
    """A Discord webhook: a message holds up to ten alerts, an embed each."""

    name = "discord"

    def __init__(self, url: str, sleep: Callable[[float], None] = time.sleep) -> None:
        """A sink that connects when it has something to say."""
        self._post = _Post(self.name, url, sleep)

    def send(self, alerts: Sequence[Alert], moment: datetime, until: float) -> Delivery:
        """Send some alerts as one message, or several where one would be too long."""
        delivery = Delivery(self.name, "sent", "nothing to send")
        for message in discord_messages(alerts, moment):
            delivery = self._post(message, until)
            if delivery.outcome != "sent":
                break
        return delivery


class WebhookSink:
    """Any address that takes a POST of JSON: `{"alerts": [...]}`, each with kind, level, title, text, fields."""

    name = "webhook"

    def __init__(self, url: str, sleep: Callable[[float], None] = time.sleep) -> None:
        """A sink that connects when it has something to say."""
        self._post = _Post(self.name, url, sleep)

    def send(self, alerts: Sequence[Alert], moment: datetime, until: float) -> Delivery:
        """Send some alerts in one request."""
        sent_at = moment.isoformat(timespec="seconds")
        return self._post({"alerts": [{**alert.to_dict(), "sent_at": sent_at} for alert in alerts]}, until)


class LogSink:
    """The log of the process: a line of JSON an alert, under the name `bike_assets.alerts`."""

    name = "log"

    def send(self, alerts: Sequence[Alert], moment: datetime, until: float) -> Delivery:
        """Write some alerts."""
        del until
        for alert in alerts:
            values = {**alert.to_dict(), "sent_at": moment.isoformat(timespec="seconds")}
            log.warning("%s", json.dumps(values, ensure_ascii=False))
        return Delivery(self.name, "sent", f"{len(alerts)} written to the log bike_assets.alerts")


def discord_messages(alerts: Sequence[Alert], moment: datetime) -> list[dict[str, Any]]:
    """Alerts as messages of Discord's "Execute Webhook", within its limits: ten embeds and 6,000 characters each.

    Texts that are too long end with an ellipsis. Nobody is mentioned, whatever a text says.
    """
    messages: list[dict[str, Any]] = []
    characters = 0
    for alert in alerts:
        embed, size = _embed(alert, moment)
        if not messages or len(messages[-1]["embeds"]) == MAX_EMBEDS or characters + size > _MAX_CHARACTERS:
            messages.append({"username": FOOTER, "allowed_mentions": {"parse": []}, "embeds": []})
            characters = 0
        messages[-1]["embeds"].append(embed)
        characters += size
    return messages


def _embed(alert: Alert, moment: datetime) -> tuple[dict[str, Any], int]:
    """An embed, and the characters that Discord counts of it."""
    footer = f"{FOOTER} · {alert.kind.value}"
    left = _MAX_CHARACTERS - len(footer)
    title = _cut(alert.title, _MAX_TITLE)
    left -= len(title)
    fields = []
    for name, value in alert.fields[:_MAX_FIELDS]:
        # Discord refuses empty names and values.
        shown, said = _cut(name, _MAX_NAME) or "–", _cut(value, _MAX_VALUE) or "–"
        if len(shown) + len(said) > left:
            break
        left -= len(shown) + len(said)
        fields.append({"name": shown, "value": said, "inline": len(said) <= 40})
    text = _cut(alert.text, min(_MAX_TEXT, left))
    embed: dict[str, Any] = {
        "title": title,
        "color": alert.colour,
        "fields": fields,
        "footer": {"text": footer},
        "timestamp": moment.isoformat(timespec="seconds"),
    }
    if text:
        embed["description"] = text
    if alert.url.startswith(("http://", "https://")):
        embed["url"] = alert.url
    return embed, _MAX_CHARACTERS - left + len(text)


def _cut(text: str, length: int) -> str:
    text = text.strip()
    return text if len(text) <= length else text[: max(0, length - 1)] + "…"


class _Post:
    """One POST of JSON, tried again while that can help and time is left."""

    def __init__(self, sink: str, url: str, sleep: Callable[[float], None]) -> None:
        self._sink, self._url, self._sleep = sink, url, sleep

    def __call__(self, message: dict[str, Any], until: float) -> Delivery:
        place = _host(self._url)
        outcome, detail = self._unsent("there was no time left")
        for attempt in range(ATTEMPTS):
            left = until - time.monotonic()
            if left <= 0:
                break
            wait = _FIRST_WAIT_SECONDS * 2**attempt
            try:
                answer = httpx.post(self._url, json=message, timeout=min(TIMEOUT_SECONDS, left))
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError, UnicodeError) as error:
                outcome, detail = self._unsent(f"the address is none ({type(error).__name__})")
                break
            except httpx.TransportError as error:
                outcome, detail = self._unsent(f"{place} cannot be reached ({type(error).__name__})")
            else:
                said = f"{place} answers with status {answer.status_code}"
                if answer.is_success:
                    return Delivery(self._sink, "sent", said)
                if answer.status_code in _MESSAGE_REFUSED:
                    return Delivery(self._sink, "refused", f"{said}{_why(answer)}")
                outcome, detail = self._unsent(f"{said}{_why(answer)}")
                if answer.status_code != httpx.codes.TOO_MANY_REQUESTS and not answer.is_server_error:
                    break  # The address is wrong: the alerts wait until it is mended.
                asked = _asked_to_wait(answer)
                wait = wait if asked is None else asked
            if attempt + 1 == ATTEMPTS or wait >= until - time.monotonic():
                break
            self._sleep(wait)
        return Delivery(self._sink, outcome, detail)

    @staticmethod
    def _unsent(detail: str) -> tuple[Outcome, str]:
        return "later", detail


def _host(url: str) -> str:
    """What may be shown of an address."""
    try:
        return urlsplit(url).hostname or "the address"
    except ValueError:
        return "the address"


def _asked_to_wait(answer: httpx.Response) -> float | None:
    """Seconds the server wants to be left alone: Discord says it in the body, others in a header."""
    try:
        return max(0.0, float(answer.json()["retry_after"]))
    except (ValueError, KeyError, TypeError):
        pass
    header = answer.headers.get("Retry-After", "")
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        moment: datetime = parsedate_to_datetime(header)
        return max(0.0, moment.timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _why(answer: httpx.Response) -> str:
    """What Discord says of a message it refuses; it never repeats the address."""
    try:
        return f": {answer.json()['message']}"[:200]
    except (ValueError, KeyError, TypeError):
        return ""
