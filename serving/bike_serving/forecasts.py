"""Forecasts ready to be sent: each forecast's JSON is made once, so that a request is a look-up.

Belongs here: looking forecasts up by counter and hour, and their exact text. Does not belong here: computing
them (`bike_assets.core.bundle`) and HTTP.
"""

import io
import json
from array import array
from collections.abc import KeysView, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec
import numpy as np
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


class Row(NamedTuple):
    """One counter's forecasts as JSON, joined by commas, and the byte at which each begins; one more after the last."""

    text: bytes
    starts: Sequence[int]

    def of(self, place: int) -> bytes:
        """The forecast of an hour."""
        return self.text[self.starts[place] : self.starts[place + 1] - 1]

    def ending(self, end: bytes) -> "Row":
        """The row with the closing brace of every forecast replaced."""
        parts = [self.of(place)[:-1] + end for place in range(len(self.starts) - 1)]
        return Row(b",".join(parts), [0, *accumulate(len(part) + 1 for part in parts)])


class Computed(msgspec.Struct):
    """What is computed of a bundle: the look-up table of its newest vintage, and the vintage as an Arrow stream.

    Attributes:
        issue_date: of the vintage.
        hours: seconds since 1970 of each hour.
        rows: JSON of each counter's forecasts, and where each hour's begins (4 bytes each), as `Row` has them.
        newest: the PREDICTIONS of the vintage.
    """

    issue_date: date
    hours: list[int]
    rows: dict[str, tuple[bytes, bytes]]
    newest: bytes

    def vintage(self) -> pl.DataFrame:
        """The vintage as a table."""
        return pl.read_ipc_stream(io.BytesIO(self.newest))


@dataclass(frozen=True)
class ForecastTable:
    """One issue date's forecasts of every counter, as JSON by counter and hour.

    Few and large objects: a champion is loaded beside requests, and what Python makes one by one they wait for.
    """

    issue_date: date
    places: dict[datetime, int]
    rows: dict[str, Row]

    @cached_property
    def issue_date_text(self) -> str:
        """The issue date as clients write it."""
        return self.issue_date.isoformat()

    @cached_property
    def window(self) -> tuple[datetime, datetime]:
        """First and last hour."""
        return min(self.places), max(self.places)

    @property
    def counters(self) -> KeysView[str]:
        """The counters that have forecasts."""
        return self.rows.keys()

    @classmethod
    def of(cls, issue_date: date, forecast: pl.DataFrame) -> "ForecastTable":
        """Make the table from rows of the PREDICTIONS contract, every counter with the same hours; at least one.

        Polars writes and joins the JSON of all rows, without the interpreter's lock: a table that is made while
        another one serves must not hold up requests. It writes a float in the fewest digits that give it back.

        Raises:
            ValueError: a counter lacks an hour that another has.
        """
        text = pl.struct(
            "counter_id",
            pl.col("target_ts").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "horizon",
            *_VALUES,
            "basis",
        ).struct.json_encode()
        rows = (
            forecast.sort("counter_id", "target_ts")
            .select("counter_id", "target_ts", text.alias("text"))
            .group_by("counter_id", maintain_order=True)
            .agg(
                pl.col("text").str.join(",").cast(pl.Binary),
                (pl.col("text").str.len_bytes() + 1).cum_sum().alias("ends"),
                pl.col("target_ts").hash().sum().alias("hours"),
            )
        )
        hours = forecast.get_column("target_ts").unique().sort().dt.epoch("s").to_list()
        if rows.get_column("hours").n_unique() != 1 or len(hours) * rows.height != forecast.height:
            raise ValueError("counters have forecasts of different hours")
        # A time zone that costs nothing to hash.
        places = {datetime.fromtimestamp(second, UTC): place for place, second in enumerate(hours)}
        ends = rows.get_column("ends").explode().to_numpy().reshape(rows.height, len(hours))
        starts = np.zeros((rows.height, len(hours) + 1), dtype=np.uint32)
        starts[:, 1:] = ends
        texts = rows.get_column("text").to_list()
        return cls(
            issue_date,
            places,
            {
                counter_id: Row(texts[i], array("I", starts[i].tobytes()))
                for i, counter_id in enumerate(rows.get_column("counter_id").to_list())
            },
        )

    def packed(self, newest: bytes) -> Computed:
        """The table as it goes to another process, with the vintage that it was made of."""
        return Computed(
            self.issue_date,
            [int(hour.timestamp()) for hour in self.places],
            {
                counter_id: (row.text, array("I", row.starts).tobytes())
                for counter_id, row in self.rows.items()
            },
            newest,
        )

    @classmethod
    def unpacked(cls, computed: Computed) -> "ForecastTable":
        """The table that another process made."""
        return cls(
            computed.issue_date,
            {datetime.fromtimestamp(second, UTC): place for place, second in enumerate(computed.hours)},
            {name: Row(text, array("I", starts)) for name, (text, starts) in computed.rows.items()},
        )

    def text(self, counter_id: str, hour: datetime) -> bytes | None:
        """The JSON of a forecast; None where there is none."""
        row, place = self.rows.get(counter_id), self.places.get(hour)
        return None if row is None or place is None else row.of(place)

    def look_up(self, counter_ids: Sequence[str], hours: Sequence[datetime]) -> list[bytes]:
        """The JSON of each forecast, counter by counter and hour by hour, in the order given.

        Raises:
            UnknownCountersError, OutsideWindowError: naming everything that has no forecast.
        """
        rows, places = self.rows, self.places
        if unknown := [counter_id for counter_id in counter_ids if counter_id not in rows]:
            raise UnknownCountersError(unknown)
        if outside := [hour for hour in hours if hour not in places]:
            raise OutsideWindowError(outside, self.window)
        wanted = [places[hour] for hour in hours]
        return [
            text[starts[place] : starts[place + 1] - 1]
            for text, starts in (rows[counter_id] for counter_id in counter_ids)
            for place in wanted
        ]
