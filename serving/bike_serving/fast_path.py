"""The short way of the commonest request, `POST /predict` for the newest issue date: no framework, one look-up.

Belongs here: recognising that request and answering it. The short way gives right answers only. Whatever it does not
recognise (another form of the body, an older issue date, a mistake, no champion) goes on to the route with the body
it came with, so every error is the route's, and both ways write their answer with `Champion.answer`. Does not belong
here: rules of its own. It judges an hour with the route's own validator and remembers the verdict.

It stands innermost of the middleware: who may ask, how often, how large, counting and logging are as for any route.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Annotated, NamedTuple

import msgspec
from pydantic import TypeAdapter, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bike_assets.core.errors import PermanentError
from bike_serving.champion import ChampionHolder
from bike_serving.metrics import Metrics
from bike_serving.schemas import (
    MAX_BODY_BYTES,
    MAX_COUNTER_ID,
    MAX_COUNTERS,
    MAX_HOURS,
    TargetHour,
)

_PATHS = frozenset({"/predict", "/v1/predict"})
_NEGOTIATED = frozenset({b"accept", b"content-encoding", b"transfer-encoding"})

CounterId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_COUNTER_ID)]


class _Wanted(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """`PredictRequest` as the short way reads it; what is no such body is left to the route."""

    counter_ids: Annotated[list[CounterId], msgspec.Meta(min_length=1, max_length=MAX_COUNTERS)]
    target_hours: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_HOURS)]
    issue_date: str | None = None


class _Route(NamedTuple):
    """What metrics and logs ask a route for."""

    path: str


_ROUTES = {path: _Route(path) for path in _PATHS}
_decode = msgspec.json.Decoder(_Wanted).decode
_validate_hour = TypeAdapter(TargetHour).validate_python


@lru_cache(maxsize=8192)
def _hour(text: str) -> datetime | None:
    """The hour a client wrote, or None if the route would refuse it. A week is asked for in few spellings."""
    try:
        hour: datetime = _validate_hour(text)
    except ValidationError:
        return None
    return hour


class FastPredict:
    """ASGI middleware that answers what it recognises and hands on everything else."""

    def __init__(self, app: ASGIApp, holder: ChampionHolder, metrics: Metrics) -> None:
        self._app, self._holder, self._metrics = app, holder, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if not _recognised(scope):
            await self._app(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1].get("more_body", False):
            messages.append(await receive())
        answer = self._answer(scope, b"".join(message.get("body", b"") for message in messages))
        if answer is None:
            await self._app(scope, _again(messages, receive), send)
            return
        length = str(len(answer)).encode()
        headers = [(b"content-length", length), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def _answer(self, scope: Scope, body: bytes) -> bytes | None:
        champion = scope.get("arm") or self._holder.current
        if champion is None:
            return None
        try:
            wanted = _decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        table = champion.newest
        if wanted.issue_date not in (None, table.issue_date_text):
            return None
        hours = [_hour(text) for text in wanted.target_hours]
        if None in hours:
            return None
        try:
            answer = champion.answer(table, wanted.counter_ids, hours)  # type: ignore[arg-type]
        except PermanentError:
            return None
        scope["champion"] = champion
        scope["route"] = _ROUTES[scope["path"]]
        self._metrics.count_forecasts(champion.model_type, champion.ref.version, answer.forecasts)
        return answer.body


def _recognised(scope: Scope) -> bool:
    """A plain JSON post to /predict whose size is known and allowed, and whose sender takes JSON."""
    if scope["type"] != "http" or scope["path"] not in _PATHS or scope["method"] != "POST":
        return False
    if scope["query_string"]:
        return False
    content_type = length = None
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value
        elif name == b"content-length":
            length = value
        elif name in _NEGOTIATED and value not in (b"*/*", b"application/json"):
            return False
    return content_type == b"application/json" and _allowed(length)


def _allowed(length: bytes | None) -> bool:
    return length is not None and len(length) <= 7 and length.isdigit() and int(length) <= MAX_BODY_BYTES


def _again(messages: Sequence[Message], receive: Receive) -> Receive:
    """A `receive` that gives what was read already, then what comes after it."""
    read = iter(messages)

    async def replayed() -> Message:
        for message in read:
            return message
        return await receive()

    return replayed
