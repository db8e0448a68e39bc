"""A fake of Discord's "Execute Webhook": it keeps the limits of the real one and shows nothing to anyone.

Belongs here: what Discord's documentation says of a webhook's address, rate, embeds and answers. Does not belong
here: what a message ought to say.
"""

import json
import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from bike_assets_tests.fakes.service import Answer, FakeService, Faults

TOKEN: Final = "s3cr3t-T0ken_of-the.webhook"  # noqa: S105  of the fake
PATH: Final = f"/api/webhooks/123456789012345678/{TOKEN}"

_EMBED_KEYS: Final = {
    "title", "type", "description", "url", "timestamp", "color", "footer", "image", "thumbnail", "author", "fields",
}  # fmt: skip


class FakeDiscord(FakeService):
    """A webhook with a rate: so many messages in so many seconds, and 429 with `retry_after` beyond.

    Attributes:
        messages: bodies that were accepted, in order.
        refusals: status of each that was not.
    """

    def __init__(self, faults: Faults | None = None, *, rate: int = 5, seconds: float = 2.0) -> None:
        """A server that does not listen yet."""
        super().__init__(faults)
        self.messages: list[dict[str, Any]] = []
        self.refusals: list[int] = []
        self._rate, self._seconds = rate, seconds
        self._times: deque[float] = deque()

    @property
    def webhook(self) -> str:
        """The secret address."""
        return f"{self.url}{PATH}"

    @property
    def embeds(self) -> list[dict[str, Any]]:
        """Every embed that was accepted."""
        return [embed for message in self.messages for embed in message["embeds"]]

    @property
    def titles(self) -> list[str]:
        """Their titles."""
        return [embed["title"] for embed in self.embeds]

    def receive(self, path: str, query: dict[str, str], headers: Mapping[str, str], body: bytes) -> Answer:
        """Accept a message, or refuse it as Discord does."""
        del query
        answer = self._judge(path, headers, body)
        if answer.status != 204:
            self.refusals.append(answer.status)
        return answer

    def _judge(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if path != PATH:
            return Answer.json({"message": "Unknown Webhook", "code": 10015}, 404)
        now = time.monotonic()
        while self._times and now - self._times[0] > self._seconds:
            self._times.popleft()
        if len(self._times) >= self._rate:
            wait = round(self._seconds - (now - self._times[0]) + 0.01, 3)
            return Answer.json(
                {"message": "You are being rate limited.", "retry_after": wait, "global": False},
                429,
                **{"Retry-After": str(int(wait) + 1), "X-RateLimit-Reset-After": str(wait)},
            )
        self._times.append(now)
        if headers.get("Content-Type") != "application/json":
            return _invalid({"_misc": 'Expected "Content-Type" header to be application/json'})
        message = json.loads(body)
        if faults := problems(message):
            return _invalid(faults)
        self.messages.append(message)
        return Answer(204, "application/json", b"")


def problems(message: dict[str, Any]) -> dict[str, str]:
    """What Discord would refuse in a message, by place."""
    faults: dict[str, str] = {}

    def text(place: str, value: Any, longest: int, shortest: int = 1) -> int:
        if not isinstance(value, str) or not shortest <= len(value) <= longest:
            faults[place] = f"Must be between {shortest} and {longest} in length."
        return len(value) if isinstance(value, str) else 0

    if not message.get("content") and not message.get("embeds"):
        faults["_misc"] = "Cannot send an empty message"
    if "content" in message:
        text("content", message["content"], 2000, 0)
    if "username" in message:
        text("username", message["username"], 80)
        if "discord" in message["username"].lower():
            faults["username"] = 'Username cannot contain "discord"'
    if len(message.get("embeds", ())) > 10:
        faults["embeds"] = "Must be 10 or fewer in length."
    total = 0
    for number, embed in enumerate(message.get("embeds", ())):
        place = f"embeds.{number}"
        if unknown := embed.keys() - _EMBED_KEYS:
            faults[place] = f"unknown keys {unknown}"
        total += text(f"{place}.title", embed.get("title", ""), 256, 0)
        total += text(f"{place}.description", embed.get("description", ""), 4096, 0)
        total += text(f"{place}.footer.text", embed.get("footer", {}).get("text", ""), 2048, 0)
        if len(embed.get("fields", ())) > 25:
            faults[f"{place}.fields"] = "Must be 25 or fewer in length."
        for index, field in enumerate(embed.get("fields", ())):
            total += text(f"{place}.fields.{index}.name", field.get("name"), 256)
            total += text(f"{place}.fields.{index}.value", field.get("value"), 1024)
        if not isinstance(embed.get("color", 0), int) or not 0 <= embed.get("color", 0) <= 0xFFFFFF:
            faults[f"{place}.color"] = "int value should be between 0 and 16777215."
        if not embed.get("url", "https://").startswith(("http://", "https://")):
            faults[f"{place}.url"] = "Scheme must be one of ('http', 'https')."
        if "timestamp" in embed and datetime.fromisoformat(embed["timestamp"]).tzinfo is None:
            faults[f"{place}.timestamp"] = "Not an ISO8601 timestamp with its zone"
    if total > 6000:
        faults["embeds"] = "Embed size exceeds maximum size of 6000"
    return faults


def _invalid(faults: dict[str, str]) -> Answer:
    return Answer.json({"message": "Invalid Form Body", "code": 50035, "errors": faults}, 400)
