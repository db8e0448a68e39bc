"""The short way of the commonest request, `POST /predict` for the newest issue date: no framework, one look-up.

Belongs here: recognising that request and answering it. The short way gives right answers only. Whatever it does not
recognise (another form of the body, an older issue date, a mistake, no champion) or may not answer (no key, a limit
used up) is the route's and its middleware's, as if the short way were not there; nothing was counted for it by then.
So every refusal and every error has one place. Does not belong here: rules of its own. Who may ask, how often and what
is written down are the guard's own functions, forecasts are written by `Champion.answer`, and an hour is judged by the
route's validator, whose verdict is remembered.
"""

import logging
import time
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Final, NamedTuple

import msgspec
from pydantic import TypeAdapter, ValidationError

from bike_assets.core.errors import PermanentError
from bike_serving.champion import Answer, Champion, ChampionHolder
from bike_serving.experiment import Experiment
from bike_serving.metrics import Metrics
from bike_serving.schemas import (
    MAX_BODY_BYTES,
    MAX_COUNTER_ID,
    MAX_COUNTERS,
    MAX_HOURS,
    TargetHour,
)
from bike_serving.security.access import Rule, rule_of
from bike_serving.security.guard import (
    SECURITY_HEADERS,
    Access,
    Credentials,
    RawHeaders,
    credentials,
)

log = logging.getLogger("bike_serving")

_METHOD: Final = "POST"
_PATHS: Final = {path.encode(): path for path in ("/predict", "/v1/predict")}
_RULES: Final[Mapping[str, Rule]] = {path: rule_of(path) for path in _PATHS.values()}
_NEGOTIATED: Final = frozenset({b"accept", b"content-encoding", b"transfer-encoding", b"origin"})
"""Headers that ask for an answer of another kind, unless they ask for JSON."""

CounterId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_COUNTER_ID)]


class _Wanted(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """`PredictRequest` as the short way reads it; what is no such body is left to the route."""

    counter_ids: Annotated[list[CounterId], msgspec.Meta(min_length=1, max_length=MAX_COUNTERS)]
    target_hours: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_HOURS)]
    issue_date: str | None = None


class Question(NamedTuple):
    """A request that the short way recognises by its head: a plain JSON post to /predict of a size that is allowed."""

    path: str
    shown: Credentials


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


class ShortWay:
    """Answers a request in one call, from its headers to the bytes that are sent."""

    def __init__(
        self, access: Access, holder: ChampionHolder, metrics: Metrics, experiment: Experiment | None = None
    ) -> None:
        self._access, self._holder, self._metrics, self._experiment = access, holder, metrics, experiment

    def question(self, method: bytes, target: bytes, headers: RawHeaders) -> Question | None:
        """The question that a request's head may be; None where it is none.

        Args:
            method: as it was sent.
            target: path and query, as they were sent.
            headers: their names in small letters.
        """
        path = _PATHS.get(target)
        if path is None or method != _METHOD.encode():
            return None
        content_type = length = None
        for name, value in headers:
            if name == b"content-type":
                content_type = value
            elif name == b"content-length":
                length = value
            elif name in _NEGOTIATED and value not in (b"*/*", b"application/json"):
                return None
        if content_type != b"application/json" or not _allowed(length):
            return None
        return Question(path, credentials(headers))

    def answer(self, question: Question, body: bytes, client: str | None) -> bytes | None:
        """Headers and body of the answer, after a status line 200; None where it is not for the short way to give.

        Args:
            question: what the head was recognised as.
            body: all of it.
            client: the address that asks.
        """
        try:
            return self._answer(question, body, client)
        except Exception:
            log.exception("the short way failed; the route answers")
            return None

    def _answer(self, question: Question, body: bytes, client: str | None) -> bytes | None:
        began = time.perf_counter()
        access, path, rule = self._access, question.path, _RULES[question.path]
        caller = access.known(question.shown)
        if caller is None or not rule.allows(caller.role):
            return None
        arm = self._experiment.arm(caller.id) if self._experiment else None
        champion = arm or self._holder.current
        if champion is None or (answer := _look_up(champion, body)) is None:
            return None
        limit = b""
        if rule.meter is not None and (counted := access.count(caller, rule.meter)):
            verdict, told = counted
            if not verdict.allowed:
                return None  # and nothing was taken
            limit = b"".join([b"%b: %b\r\n" % header for header in told])
        request_id = question.shown.request_id or access.new_request_id()
        self._metrics.count_forecasts(champion.model_type, champion.ref.version, answer.forecasts)
        if self._experiment:
            self._experiment.answered(arm, answer.body)
        seconds = time.perf_counter() - began
        self._metrics.count_request(path, _METHOD, 200, seconds)
        champion.record.add(False, seconds)
        if access.audit_reads:
            access.note(request_id, caller, client, _METHOD, path, 200, seconds)
        return b"content-length: %d\r\ncontent-type: application/json\r\nx-request-id: %b\r\n%b%b\r\n%b" % (
            len(answer.body),
            request_id.encode(),
            limit,
            SECURITY_HEADERS,
            answer.body,
        )


def _look_up(champion: Champion, body: bytes) -> Answer | None:
    """What the champion says to a body; None where the body is not the common one, or asks for what is not there."""
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
        return champion.answer(table, wanted.counter_ids, hours)  # type: ignore[arg-type]
    except PermanentError:
        return None


def _allowed(length: bytes | None) -> bool:
    return length is not None and len(length) <= 7 and length.isdigit() and int(length) <= MAX_BODY_BYTES
