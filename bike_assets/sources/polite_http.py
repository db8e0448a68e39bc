"""An HTTP client that asks again when that can help, waits as long as it is told to, and gives up in one line.

Belongs here: timeouts, retries, rate limits and quotas of any API. Does not belong here: what an API is asked and
what it answers.

Asked again, with exponential backoff and jitter: connections that fail or break, 408, 425, 429 and 5xx, and answers
that the caller finds incomplete. Everything else is permanent. `Retry-After` and `X-RateLimit-*` are obeyed: a wait
within `Patience.longest_wait` is waited, a longer one ends the attempt with the time at which to come back.
"""

import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Final, TypeVar

import httpx
import tenacity

from bike_assets.core.errors import PermanentError, TransientError

_Result = TypeVar("_Result")

_ASK_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_SHOWN: Final = 200

_REMEDIES: Final = {
    400: "the request is not one this API knows; check address and data set in the settings",
    401: "check the API key in the settings",
    403: "check the API key and what it may read",
    404: "check address and data set in the settings",
}


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Attributes:
        attempts: how often a thing is tried in all.
        first_wait: seconds of the longest first backoff; it doubles with each attempt, and chance shortens it.
        longest_wait: seconds of the longest single wait, also of one the server asks for.
        connect_seconds: to connect.
        read_seconds: between two pieces of an answer.
        answer_seconds: of a whole answer, however busily it trickles.
    """

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    connect_seconds: float = 10.0
    read_seconds: float = 60.0
    answer_seconds: float = 600.0


class TryAgainError(TransientError):
    """This attempt failed and the next may not; the server may have said when (`wait`, seconds)."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        """What went wrong, and how long the server wants to be left alone."""
        super().__init__(message)
        self.wait = wait


class PoliteClient:
    """A client of one API. Sleeping and the clock can be replaced, so that tests need not wait."""

    def __init__(
        self,
        *,
        headers: Mapping[str, str] | None = None,
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """A client that connects when it is first asked; headers may hold a key and are never shown."""
        self.patience = patience or Patience()
        self._sleep = sleep
        self._now = now
        self._spent_until: datetime | None = None
        self._client = httpx.Client(
            headers={"User-Agent": "bike-assets", **(headers or {})},
            timeout=httpx.Timeout(self.patience.read_seconds, connect=self.patience.connect_seconds),
            # Calls are few and minutes may pass between them: no connection is kept open.
            limits=httpx.Limits(max_keepalive_connections=0),
            follow_redirects=True,
            verify=_certificates(),
        )

    def persistently(self, work: Callable[[], _Result]) -> _Result:
        """Do the work, again and again while it raises `TryAgainError` and patience lasts.

        Raises:
            TransientError: the last attempt's error.
        """
        backoff = tenacity.wait_random_exponential(
            multiplier=self.patience.first_wait, max=self.patience.longest_wait
        )

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.wait if isinstance(error, TryAgainError) else None
            return backoff(state) if asked is None else asked

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TryAgainError),
            stop=tenacity.stop_after_attempt(self.patience.attempts),
            wait=wait,
            sleep=self._sleep,
            reraise=True,
        )(work)

    @contextmanager
    def answer(self, url: str, params: Mapping[str, str | int]) -> Iterator[Iterator[bytes]]:
        """The pieces of one good answer, asked for once: wrap what uses them in `persistently`.

        Raises:
            TryAgainError: the connection, or a status that may pass.
            TransientError: the quota is spent for longer than is waited.
            PermanentError: any other status, or an address that is none.
        """
        self._wait_for_quota(url)
        try:
            with self._client.stream("GET", url, params=dict(params)) as response:
                self._judge(response)
                yield self._pieces(response)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
            raise PermanentError(f"{_place(url)}: {error}; check the address in the settings") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            what = str(error) or type(error).__name__
            raise TryAgainError(f"{_place(url)}: {what}; check the network, or try again later") from error

    def json(self, url: str, params: Mapping[str, str | int]) -> dict[str, Any]:
        """The JSON object of one answer, asked for once.

        Raises:
            TryAgainError, TransientError, PermanentError: as `answer` does, and where the answer is no JSON.
        """
        with self.answer(url, params) as pieces:
            body = b"".join(pieces)
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if found is None and (not body or body.lstrip().startswith(b"{")):
            raise TryAgainError(f"{_place(url)}: the answer breaks off; try again later")
        if not isinstance(found, dict):
            raise PermanentError(
                f"{_place(url)}: the answer is not JSON ({_start(body)}); check the address in the settings"
            )
        return found

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        deadline = time.monotonic() + self.patience.answer_seconds
        for piece in response.iter_bytes(1 << 16):
            yield piece
            if time.monotonic() > deadline:
                raise TryAgainError(
                    f"{_place(str(response.url))}: the answer takes longer than "
                    f"{self.patience.answer_seconds:g} s; try again later"
                )

    def _wait_for_quota(self, url: str) -> None:
        if self._spent_until is None:
            return
        seconds = (self._spent_until - self._now()).total_seconds()
        if seconds > self.patience.longest_wait:
            raise _quota_spent(url, self._spent_until)
        if seconds > 0:
            self._sleep(seconds)
        self._spent_until = None

    def _judge(self, response: httpx.Response) -> None:
        """Return when the answer is good; remember a quota that it spent."""
        url, status = str(response.url), response.status_code
        reset = (
            self._reset(response)
            if response.headers.get("X-RateLimit-Remaining", "").strip() == "0"
            else None
        )
        if response.is_success:
            self._spent_until = reset
            return
        message = f"{_place(url)} answers {status} {_message(response)}".rstrip()
        if status not in _ASK_AGAIN:
            raise PermanentError(f"{message}; {_REMEDIES.get(status, 'see what the server says')}")
        asked = self._retry_after(response)
        if status == 429 and asked is None:
            asked = reset
        if asked is None:
            raise TryAgainError(f"{message}; try again later")
        seconds = max((asked - self._now()).total_seconds(), 0.0)
        if seconds > self.patience.longest_wait:
            raise _quota_spent(url, asked)
        raise TryAgainError(f"{message}; try again at {_clock(asked)}", seconds)

    def _retry_after(self, response: httpx.Response) -> datetime | None:
        text = response.headers.get("Retry-After", "").strip()
        if text.isdigit():
            return self._now() + timedelta(seconds=int(text))
        return _moment(text)

    def _reset(self, response: httpx.Response) -> datetime | None:
        text = response.headers.get("X-RateLimit-Reset", "").strip()
        if text.isdigit():
            number = int(text)
            # Some portals say when, in seconds since 1970, some in how many seconds.
            return (
                datetime.fromtimestamp(number, UTC)
                if number > 10**9
                else self._now() + timedelta(seconds=number)
            )
        return _moment(text)


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _moment(text: str) -> datetime | None:
    """An instant as headers write it: ISO 8601 or RFC 1123; None where it is neither."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            found = parse(text)
        except (ValueError, TypeError):
            continue
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return None


def _quota_spent(url: str, until: datetime) -> TransientError:
    return TransientError(
        f"{_place(url)}: the quota of calls is spent until {_clock(until)}; run again then, or use an API key of "
        "your own"
    )


def _clock(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _place(url: str) -> str:
    """Host and path: queries may hold keys."""
    return url.split("?")[0]


def _start(body: bytes) -> str:
    text = " ".join(body[:_SHOWN].decode("utf-8", "replace").split())
    return f"it begins with {text[:60]!r}" if text else "it is empty"


def _message(response: httpx.Response) -> str:
    """What the server says is wrong, in one short line."""
    try:
        response.read()
        found = response.json()
    except (httpx.HTTPError, ValueError):
        return response.reason_phrase
    if not isinstance(found, dict):
        return response.reason_phrase
    text = found.get("message") or found.get("reason") or found.get("error") or response.reason_phrase
    return " ".join(str(text).split())[:_SHOWN]
