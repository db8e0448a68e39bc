"""Forecasts ready to be sent: each forecast's JSON is made once, so that a request is a look-up.

Belongs here: looking forecasts up by counter and hour, and their exact text. Does not belong here: computing
them (`bike_assets.core.bundle`) and HTTP.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import polars as pl

from bike_assets.core.errors import PermanentError

_VALUES = ("forecast", "lower_80", "upper_80", "lower_90", "upper_90")


class UnknownCountersError(PermanentError):
    """There is no forecast for these counters."""

    def __init__(self, counter_ids: Sequence[str]) -> None:
        super().__init__(", ".join(counter_ids))
        self.counter_ids = tuple(counter_ids)


class OutsideWindowError(PermanentError):
    """There is no forecast for these hours."""

    def __init__(self, hours: Sequence[datetime], window: tuple[datetime, datetime]) -> None:
        super().__init__(", ".join(iso(hour) for hour in hours))
        self.hours = tuple(hours)
        self.window = window


def iso(moment: datetime) -> str:
    """A moment as the service writes it: UTC, with `Z`."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def dumps(value: Any) -> str:
    """JSON without blanks. Floats keep their shortest exact form, so nothing is lost on the way."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True)
class ForecastTable:
    """One issue date's forecasts of every counter, as JSON text by counter and hour."""

    issue_date: date
    window: tuple[datetime, datetime]
    rows: dict[str, dict[datetime, str]]

    @classmethod
    def of(cls, issue_date: date, forecast: pl.DataFrame) -> "ForecastTable":
        """Make the table from rows of the PREDICTIONS contract; at least one."""
        rows: dict[str, dict[datetime, str]] = {}
        hours: dict[datetime, str] = {}
        for counter_id, target_ts, horizon, basis, *values in forecast.select(
            "counter_id", "target_ts", "horizon", "basis", *_VALUES
        ).iter_rows():
            # One object an hour for all counters, with a time zone that costs nothing to hash.
            hour = datetime.fromtimestamp(target_ts.timestamp(), UTC)
            numbers = "".join(f',"{name}":{value!r}' for name, value in zip(_VALUES, values, strict=True))
            text = hours.setdefault(hour, dumps(iso(hour)))
            rows.setdefault(counter_id, {})[hour] = (
                f'{{"counter_id":{dumps(counter_id)},"target_ts":{text},"horizon":{horizon}{numbers},"basis":"{basis}"}}'
            )
        return cls(issue_date, (min(hours), max(hours)), rows)

    def look_up(self, counter_ids: Sequence[str], hours: Sequence[datetime]) -> list[str]:
        """The JSON of each forecast, counter by counter and hour by hour, in the order given.

        Raises:
            UnknownCountersError, OutsideWindowError: naming everything that has no forecast.
        """
        if unknown := [counter_id for counter_id in counter_ids if counter_id not in self.rows]:
            raise UnknownCountersError(unknown)
        first, last = self.window
        if outside := [hour for hour in hours if not first <= hour <= last]:
            raise OutsideWindowError(outside, self.window)
        return [row[hour] for row in (self.rows[counter_id] for counter_id in counter_ids) for hour in hours]
