"""A look at the REST service from outside: whether it answers, and how many of its answers were errors.

Belongs here: asking `/ready` and `/metrics` once, and what two looks mean together. Does not belong here: sending
alerts. For a proper history there is Prometheus; this needs no other service to run.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

import httpx

from bike_assets.core import alerts
from bike_assets.core.alerts import Alert, Kind

SERVICE: Final = "REST service"
TIMEOUT_SECONDS: Final = 5.0

MISSES: Final = 2
"""Looks in a row that must fail before the service is called down: a restart takes one."""

MIN_REQUESTS: Final = 20
"""Fewer requests since the last judgement say nothing of a rate; they count into the next one."""

_REQUESTS: Final = re.compile(
    r"^bike_serving_requests_total\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE
)
_OF_HEALTH: Final = re.compile(r'route="/(health|ready|metrics)"')
_FAILED: Final = re.compile(r'status="5\d\d"')


@dataclass(frozen=True)
class Watch:
    """What is watched: the address, the share of failed requests that is still in order, and a key to ask with."""

    url: str
    error_share: float
    key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Seen:
    """What earlier looks saw: failures in a row, and the counters of requests when they were last judged."""

    misses: int = 0
    requests: float | None = None
    failed: float = 0.0

    @classmethod
    def from_position(cls, position: Mapping[str, Any]) -> Self:
        """From a ledger; nothing seen where it holds something else."""
        try:
            requests = position["requests"]
            return cls(
                int(position["misses"]),
                None if requests is None else float(requests),
                float(position["failed"]),
            )
        except (KeyError, TypeError, ValueError):
            return cls()

    def to_position(self) -> dict[str, Any]:
        """For a ledger."""
        return asdict(self)


def look_at_service(watch: Watch, seen: Seen) -> tuple[Seen, list[Alert]]:
    """One look: what is known now, and what there is to tell.

    Without a key that the service takes, it is watched whether it answers, and not how.
    """
    url = watch.url.rstrip("/")
    try:
        ready = httpx.get(f"{url}/ready", timeout=TIMEOUT_SECONDS)
        metrics = httpx.get(f"{url}/metrics", headers={"X-API-Key": watch.key}, timeout=TIMEOUT_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return _missed(seen, f"{url} cannot be reached ({type(error).__name__})")
    if ready.is_server_error:
        return _missed(seen, f"{url}/ready answers with status {ready.status_code}")
    found = [alerts.over(Kind.SERVICE_DOWN, f"service:{SERVICE}", f"Service is back: {SERVICE}")]
    if not metrics.is_success:
        return Seen(0, seen.requests, seen.failed), found
    requests, failed = _requests(metrics.text)
    if seen.requests is None or requests < seen.requests or failed < seen.failed:
        return Seen(0, requests, failed), found  # The first look, or the service was started again.
    more, more_failed = int(requests - seen.requests), int(failed - seen.failed)
    if more < MIN_REQUESTS:
        return Seen(0, seen.requests, seen.failed), found
    if more_failed > watch.error_share * more:
        found.append(alerts.api_errors(SERVICE, more_failed, more, watch.error_share))
    else:
        found.append(
            alerts.over(Kind.API_ERRORS, f"api_errors:{SERVICE}", "API error rate is back to normal")
        )
    return Seen(0, requests, failed), found


def _missed(seen: Seen, why: str) -> tuple[Seen, list[Alert]]:
    misses = seen.misses + 1
    found = [alerts.service_down(SERVICE, why)] if misses >= MISSES else []
    return Seen(misses, seen.requests, seen.failed), found


def _requests(text: str) -> tuple[float, float]:
    """Requests answered and those answered with a server error, but for questions of health.

    503 of `/ready` while a service starts is an answer about the service, which the other look judges.
    """
    total = failed = 0.0
    for sample in _REQUESTS.finditer(text):
        if not _OF_HEALTH.search(sample["labels"]):
            value = float(sample["value"])
            total += value
            failed += value if _FAILED.search(sample["labels"]) else 0.0
    return total, failed
