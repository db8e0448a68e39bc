"""Local time and the calendar of people: days, hours, time zones, public and school holidays.

Belongs here: every step between UTC and the local wall clock, and what kind of day a date is. Does not belong
here: counts, and the clock itself (dates come from the caller).

Holidays are those of France, school zone C (Paris), from the libraries `holidays` and
`vacances_scolaires_france`; both answer offline.
"""

from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import polars as pl

LOCAL_TZ = "Europe/Paris"
"""Time zone of the counters."""

SCHOOL_ZONE = "C"
"""School-holiday zone of Paris."""

ISSUE_HOUR = 7
"""Local hour at which a day's forecast is issued."""

_UTC = ZoneInfo("UTC")
_DAY = timedelta(days=1)
_HOUR = timedelta(hours=1)


def _midnight(day: date, tz: str) -> datetime:
    """First instant of a local day, in UTC."""
    return datetime.combine(day, time(), tzinfo=ZoneInfo(tz)).astimezone(_UTC)


def hours_of_day(day: date, tz: str = LOCAL_TZ) -> list[datetime]:
    """Starts of the hours of a local day, in UTC: 24 of them, 23 or 25 where the clock changes."""
    start = _midnight(day, tz)
    return [start + i * _HOUR for i in range((_midnight(day + _DAY, tz) - start) // _HOUR)]


def issue_time(issue_date: date, tz: str = LOCAL_TZ) -> datetime:
    """When the forecast of an issue date is made, 07:00 local, in UTC; the day before is complete by then."""
    return datetime.combine(issue_date, time(ISSUE_HOUR), tzinfo=ZoneInfo(tz)).astimezone(_UTC)


def target_date(issue_date: date, horizon: int) -> date:
    """Local day that a horizon means: horizon 1 is the issue date itself, 7 is six days later."""
    return issue_date + (horizon - 1) * _DAY


def local_columns(frame: pl.DataFrame, ts: str = "ts_utc", tz: str = LOCAL_TZ) -> pl.DataFrame:
    """The frame with `service_date` (Date) and `local_hour` (Int32) of a timestamp, on the wall clock.

    Args:
        frame: has a column of type `Datetime` with time zone UTC.
        ts: name of that column.
        tz: IANA name of the local time zone.
    """
    local = pl.col(ts).dt.convert_time_zone(tz)
    return frame.with_columns(
        service_date=local.dt.date(),
        local_hour=local.dt.hour().cast(pl.Int32),
    )


@lru_cache(maxsize=64)
def _public_holidays(year: int) -> frozenset[date]:
    import holidays

    return frozenset(holidays.country_holidays("FR", years=year).keys())


@lru_cache(maxsize=64)
def _school_holidays(year: int) -> frozenset[date]:
    from vacances_scolaires_france import SchoolHolidayDates, UnsupportedYearException

    try:
        return frozenset(SchoolHolidayDates().holidays_for_year_and_zone(year, SCHOOL_ZONE))
    except UnsupportedYearException:
        return frozenset()


def is_public_holiday(day: date) -> bool:
    """Whether the day is a public holiday in metropolitan France."""
    return day in _public_holidays(day.year)


def is_school_holiday(day: date) -> bool:
    """Whether schools of zone C are closed. False in years whose school calendar is not published."""
    return day in _school_holidays(day.year)


def is_bridge_day(day: date) -> bool:
    """Whether the day is a lone working day between a public holiday and a weekend (French: *pont*)."""
    if day.weekday() >= 5 or is_public_holiday(day):
        return False
    return (day.weekday() == 4 and is_public_holiday(day - _DAY)) or (
        day.weekday() == 0 and is_public_holiday(day + _DAY)
    )


def days_to_public_holiday(day: date, limit: int = 7) -> int:
    """Days to the nearest public holiday before or after, at most `limit`; 0 on the holiday."""
    for distance in range(limit):
        if is_public_holiday(day - distance * _DAY) or is_public_holiday(day + distance * _DAY):
            return distance
    return limit


def days_between(first: date, last: date) -> list[date]:
    """Every day from first to last, both included."""
    return [first + i * _DAY for i in range((last - first).days + 1)]


def calendar_table(days: Iterable[date]) -> pl.DataFrame:
    """What kind of day each day is.

    Returns:
        One row a day: service_date (Date), weekday (Int32, Monday is 0), is_public_holiday, is_bridge_day,
        is_school_holiday (Boolean).
    """
    days = list(days)
    return pl.DataFrame(
        {
            "service_date": days,
            "weekday": [day.weekday() for day in days],
            "is_public_holiday": [is_public_holiday(day) for day in days],
            "is_bridge_day": [is_bridge_day(day) for day in days],
            "is_school_holiday": [is_school_holiday(day) for day in days],
        },
        schema={
            "service_date": pl.Date,
            "weekday": pl.Int32,
            "is_public_holiday": pl.Boolean,
            "is_bridge_day": pl.Boolean,
            "is_school_holiday": pl.Boolean,
        },
    )
