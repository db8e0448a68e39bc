"""How old the newest count is, as a pure function of the clock."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Freshness:
    """Age of the newest count in days, None where there is none, and whether that is recent enough."""

    age_days: float | None
    is_fresh: bool


def evaluate_freshness(newest: datetime | None, *, now: datetime, max_days: int) -> Freshness:
    """Judge the newest counted hour.

    Args:
        newest: start of the newest counted hour, None where there is no count at all.
        now: the present instant.
        max_days: the city publishes day by day, so a day of age is ordinary; more than this is not.
    """
    if newest is None:
        return Freshness(None, is_fresh=False)
    age = (now - newest).total_seconds() / 86_400
    return Freshness(age, is_fresh=age <= max_days)
