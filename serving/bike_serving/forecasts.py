"""Forecasts ready to be sent: each forecast's JSON is made once, so that a request is a look-up.

Belongs here: looking forecasts up by counter and hour, and their exact text. Does not belong here: computing
them (`bike_assets.core.bundle`) and HTTP.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
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
    """One issue date's forecasts of every counter, as JSON by counter and hour."""

    issue_date: date
    window: tuple[datetime, datetime]
    rows: dict[str, dict[datetime, bytes]]

    @cached_property
    def issue_date_text(self) -> str:
        """The issue date as clients write it."""
        return self.issue_date.isoformat()

    @classmethod
    def of(cls, issue_date: date, forecast: pl.DataFrame) -> "ForecastTable":
        """Make the table from rows of the PREDICTIONS contract; at least one.

        Polars writes the JSON of all rows at once, without the interpreter's lock: a table that is made while
        another one serves must not hold up requests. It writes a float in the fewest digits that give it back.
        """
        forecast = forecast.sort("counter_id", "target_ts")
        # One object an hour for all counters, with a time zone that costs nothing to hash.
        hour_of = {
            second: datetime.fromtimestamp(second, UTC)
            for second in forecast.get_column("target_ts").unique().dt.epoch("s").to_list()
        }
        hours = [hour_of[second] for second in forecast.get_column("target_ts").dt.epoch("s").to_list()]
        text = forecast.select(
            pl.struct(
                "counter_id",
                pl.col("target_ts").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "horizon",
                *_VALUES,
                "basis",
            ).struct.json_encode()
        )
        encoded = text.to_series().cast(pl.Binary).to_list()
        counters = forecast.group_by("counter_id", maintain_order=True).len()
        rows: dict[str, dict[datetime, bytes]] = {}
        start = 0
        for counter_id, count in counters.iter_rows():
            rows[counter_id] = dict(
                zip(hours[start : start + count], encoded[start : start + count], strict=True)
            )
            start += count
        return cls(issue_date, (min(hour_of.values()), max(hour_of.values())), rows)

    def look_up(self, counter_ids: Sequence[str], hours: Sequence[datetime]) -> list[bytes]:
        """The JSON of each forecast, counter by counter and hour by hour, in the order given.

        Raises:
            UnknownCountersError, OutsideWindowError: naming everything that has no forecast.
        """
        if unknown := [counter_id for counter_id in counter_ids if counter_id not in self.rows]:
            raise UnknownCountersError(unknown)
        first, last = self.window
        if outside := [hour for hour in hours if not first <= hour <= last]:
            raise OutsideWindowError(outside, self.window)
        if len(hours) == 1:
            hour = hours[0]
            return [self.rows[counter_id][hour] for counter_id in counter_ids]
        return [row[hour] for row in (self.rows[counter_id] for counter_id in counter_ids) for hour in hours]
