"""Whether counts have stopped coming, as a pure function of the clock.

Belongs here: how many days without counts are too many. Does not belong here: reading the newest count.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from bike_assets.core.calendar import LOCAL_TZ, days_between, is_public_holiday

_SATURDAY = 5


@dataclass(frozen=True)
class Freshness:
    """Age of the newest count in days and the working days that ended since, None where there is no count at all."""

    age_days: float | None
    silent_days: int | None
    is_fresh: bool


def evaluate_freshness(newest: datetime | None, *, now: datetime, max_days: int) -> Freshness:
    """Judge the newest counted hour.

    The city publishes day by day, so a day is missed when it has ended, whether it had 23, 24 or 25 hours. Weekends
    and public holidays do not count: a portal that fails on the Saturday before Easter is looked after on Tuesday,
    and a warning before that calls nobody.

    Args:
        newest: start of the newest counted hour, None where there is no count at all.
        now: the present instant.
        max_days: so many working days without a count are too many.
    """
    if newest is None:
        return Freshness(None, None, is_fresh=False)
    ended = days_between(_local_day(newest) + timedelta(days=1), _local_day(now) - timedelta(days=1))
    silent = sum(day.weekday() < _SATURDAY and not is_public_holiday(day) for day in ended)
    # Within one zone Python subtracts wall clocks, which lose or gain the hour of a clock change.
    age = (now.astimezone(UTC) - newest.astimezone(UTC)) / timedelta(days=1)
    return Freshness(age, silent, is_fresh=silent < max_days)


def _local_day(instant: datetime) -> date:
    return instant.astimezone(ZoneInfo(LOCAL_TZ)).date()
