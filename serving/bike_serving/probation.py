"""Whether a new champion answers worse than the one before it, told from requests it answered.

Belongs here: what is kept of the answers of two champions and the comparison of them. It is about answering (failed or
slow), not about forecasts that turn out wrong: truth comes days later, and drift and promotion see to it. Does not
belong here: what follows from the verdict.
"""

from collections import deque
from dataclasses import dataclass, field

_KEPT = 2000
"""Latest answers of a champion that are remembered: enough for a 95th percentile, little to keep."""


@dataclass(frozen=True)
class ProbationRules:
    """When a champion is worse than the one before.

    Attributes:
        probation_seconds: how long a new champion is compared.
        min_requests: answers needed before anything is said, of the new one, and of both about latency.
        error_margin: failed share of answers by which it may exceed the one before.
        slow_factor: multiple of the one before's 95th percentile of seconds that is too slow …
        slow_seconds: … if it is more than this, too: a look-up of 0.3 ms that takes 1 ms harms nobody.
    """

    probation_seconds: float = 600.0
    min_requests: int = 100
    error_margin: float = 0.05
    slow_factor: float = 3.0
    slow_seconds: float = 0.05


@dataclass
class Record:
    """How a champion's latest requests went. One thread adds, others may read."""

    failed: deque[bool] = field(default_factory=lambda: deque(maxlen=_KEPT))
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def add(self, failed: bool, seconds: float | None) -> None:
        """Take note of a request; without seconds when it computed what others look up."""
        self.failed.append(failed)
        if seconds is not None:
            self.seconds.append(seconds)

    @property
    def error_rate(self) -> float:
        """Failed share of the requests; 0 without any."""
        failed = list(self.failed)
        return sum(failed) / len(failed) if failed else 0.0

    @property
    def p95(self) -> float:
        """95th percentile of the seconds; at least one is needed."""
        seconds = sorted(self.seconds)
        return seconds[int(0.95 * (len(seconds) - 1))]


def worse(new: Record, before: Record, rules: ProbationRules) -> str | None:
    """Why the new champion is worse than the one before, or None while nothing says so."""
    if len(new.failed) < rules.min_requests:
        return None
    if new.error_rate > before.error_rate + rules.error_margin:
        return (
            f"{new.error_rate:.0%} of its {len(new.failed)} latest answers failed, "
            f"{before.error_rate:.0%} of the champion's before it"
        )
    if min(len(new.seconds), len(before.seconds)) < rules.min_requests:
        return None
    if new.p95 > max(rules.slow_factor * before.p95, rules.slow_seconds):
        return (
            f"95 % of its answers take up to {new.p95 * 1000:.0f} ms, those of the champion before it "
            f"{before.p95 * 1000:.0f} ms"
        )
    return None
