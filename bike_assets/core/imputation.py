"""Filling gaps: what likely passed a counter in the hours it did not count, in a column of its own, method named.

Belongs here: estimates for people and marts. Does not belong here: anything a forecast may see. An estimate rests on
the weeks after the gap as well as on those before it, so nothing that trains, forecasts or scores may read it.
"""

from datetime import date, timedelta
from enum import StrEnum
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bike_assets.core.calendar import LOCAL_TZ, days_between, hours_of_day
from bike_assets.core.contracts import FILLED_COUNTS, UTC_TIMESTAMP
from bike_assets.core.cube import Cube, count_cube, shift_days
from bike_assets.core.errors import PermanentError
from bike_assets.core.quality import MASK_LOOKBACK_DAYS, untrusted

PROFILE_WEEKS: Final = 4
"""Weeks on either side whose same hour makes the profile."""

WINDOW_DAYS: Final = 28
"""Days on either side over which counters are compared, and for which a silent counter is still filled."""

PAST_DAYS: Final = WINDOW_DAYS + 7 * PROFILE_WEEKS + MASK_LOOKBACK_DAYS
FUTURE_DAYS: Final = WINDOW_DAYS + 7 * PROFILE_WEEKS
"""The filling of day D looks at rows with D - PAST_DAYS <= service_date <= D + FUTURE_DAYS."""

FILLING_COLUMNS: Final = (
    "service_date",
    "counter_id",
    "ts_utc",
    "local_hour",
    "hourly_count",
    "is_outage",
    "is_spike",
    "is_stuck",
)
"""The columns of cleaned counts that are read."""

MIN_NEIGHBOURS: Final = 3
_MIN_HOURS = 12

Weights = NDArray[np.float64]


class FillMethod(StrEnum):
    """Where a filled count comes from."""

    PUBLISHED = "published"
    """As it was counted."""
    NEIGHBOURS = "neighbours"
    """Its own profile times what the counters that move like it had of theirs in that hour."""
    PROFILE = "profile"
    """Its own profile alone: the mean of the same hour of the week in the weeks around."""
    NONE = "none"
    """Nothing is known to fill it with."""


def fill_gaps(counts: pl.DataFrame, first: date, last: date, tz: str = LOCAL_TZ) -> pl.DataFrame:
    """Every hour of every counter's days from first to last, counted or estimated.

    Filled are hours without a row or a count, those flagged as outage, spike or stuck, and zeros that are surely
    an outage (`quality.untrusted`).

    Args:
        counts: cleaned counts with `FILLING_COLUMNS`, best from `PAST_DAYS` before `first` to `FUTURE_DAYS` after
            `last`.
        first: first local day wanted.
        last: last local day wanted, included.
        tz: time zone of the wall clock.

    Returns:
        Rows that keep `FILLED_COUNTS`, sorted by day, counter and hour: all hours of the days of a counter that
        counted anything in the `WINDOW_DAYS` before the day or on it.

    Raises:
        PermanentError: a column is missing.
    """
    if missing := set(FILLING_COLUMNS) - set(counts.columns):
        raise PermanentError(f"filling gaps needs the column {', '.join(sorted(missing))} of cleaned counts")
    days = days_between(first - timedelta(days=PAST_DAYS), last + timedelta(days=FUTURE_DAYS))
    names, cube, _ = count_cube(counts, days)
    if not names:
        return FILLED_COUNTS.empty()
    flags = counts.filter(pl.col("is_outage") | pl.col("is_spike") | pl.col("is_stuck")).with_columns(
        hourly_count=pl.lit(1)
    )
    flagged = ~np.isnan(count_cube(flags, days, names)[1]) if flags.height else np.zeros(cube.shape, bool)
    gap = np.isnan(cube) | flagged | (untrusted(cube) & (cube == 0))
    estimate, by_neighbours = _estimates(np.where(gap, np.nan, cube), gap, PAST_DAYS, len(days) - FUTURE_DAYS)
    heard = _heard(~np.isnan(cube))
    return FILLED_COUNTS.conform(
        _rows(counts, names, days[PAST_DAYS : len(days) - FUTURE_DAYS], tz)
        .join(
            _cells(names, days, gap, estimate, by_neighbours, heard),
            on=["counter_id", "service_date", "local_hour"],
        )
        .filter("heard")
        .with_columns(
            count_filled=pl.when(~pl.col("gap"))
            .then(pl.col("hourly_count").cast(pl.Float64))
            .otherwise("estimate"),
        )
        .with_columns(
            fill_method=pl.when(~pl.col("gap"))
            .then(pl.lit(FillMethod.PUBLISHED.value))
            .when(pl.col("count_filled").is_null())
            .then(pl.lit(FillMethod.NONE.value))
            .when("by_neighbours")
            .then(pl.lit(FillMethod.NEIGHBOURS.value))
            .otherwise(pl.lit(FillMethod.PROFILE.value))
        )
    ).sort(FILLED_COUNTS.key)


def _estimates(known: Cube, gap: NDArray[np.bool_], start: int, stop: int) -> tuple[Cube, NDArray[np.bool_]]:
    """The estimate of every hour of the days start to stop that have a gap, and whether neighbours made it."""
    profile = _profile(known)
    both = ~np.isnan(known) & ~np.isnan(profile)
    actual, usual = np.where(both, known, 0.0), np.where(both, profile, 0.0)
    estimate, by_neighbours = np.full(known.shape, np.nan), np.zeros(known.shape, dtype=bool)
    for day in range(start, stop):
        counters = np.flatnonzero(gap[:, day].any(axis=1))
        if not len(counters):
            continue
        around = slice(day - WINDOW_DAYS, day + WINDOW_DAYS + 1)
        seen, due = actual[:, around], usual[:, around]
        hours = both[:, around].sum(axis=2)
        level = np.maximum(due.sum(axis=(1, 2)) / np.maximum(hours.sum(axis=1), 1), 1.0)
        alike = _likeness(seen.sum(axis=2), due.sum(axis=2), hours)[counters]
        # Each neighbour in units of its own level, and three hours at a time: single hours of few bicycles are noise.
        above = _three_hours(alike @ (actual[:, day] / level[:, None]))
        below = _three_hours(alike @ (usual[:, day] / level[:, None]))
        neighbours = (alike > 0).astype(np.float64) @ both[:, day].astype(np.float64)
        enough = (neighbours >= MIN_NEIGHBOURS) & (below > 0)
        ratio = np.where(enough, above / np.where(enough, below, 1.0), 1.0)
        estimate[counters, day] = profile[counters, day] * ratio
        by_neighbours[counters, day] = enough
    return estimate, by_neighbours


def _profile(known: Cube) -> Cube:
    """Mean of the same hour of the week in the weeks on either side, NaN with fewer than two of them."""
    total, weeks = np.zeros(known.shape), np.zeros(known.shape)
    for week in range(1, PROFILE_WEEKS + 1):
        for other in (shift_days(known, 7 * week), shift_days(known[:, ::-1], 7 * week)[:, ::-1]):
            total += np.nan_to_num(other)
            weeks += ~np.isnan(other)
    return np.where(weeks >= 2, total / np.maximum(weeks, 1), np.nan)


def _likeness(seen: Weights, due: Weights, hours: NDArray[np.int64]) -> Weights:
    """[counter, counter]: correlation of how their days differ from the city's, at least a tenth; 0 for oneself.

    The tenth is for small cities, where few are alike: what all counters do is still worth more than nothing.
    """
    move = np.where(hours >= _MIN_HOURS, np.log((seen + 3) / (due + 3)), np.nan)
    reporting = ~np.isnan(move).all(axis=0)
    move = move[:, reporting]
    residual = np.nan_to_num(move - np.nanmedian(move, axis=0))
    here = (~np.isnan(move)).astype(np.float64)
    shared = np.sqrt((residual**2 @ here.T) * (here @ (residual**2).T))
    alike = np.where(shared > 0, residual @ residual.T / np.where(shared > 0, shared, 1.0), 0.0)
    alike = np.maximum(alike, 0.1)
    np.fill_diagonal(alike, 0.0)
    return alike


def _three_hours(values: Weights) -> Weights:
    return np.asarray(values + np.roll(values, 1, axis=-1) + np.roll(values, -1, axis=-1))


def _heard(known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[counter, day]: anything was counted on the day or in the `WINDOW_DAYS` before it."""
    day = np.arange(known.shape[1], dtype=np.float64)
    last = np.maximum.accumulate(np.where(known.any(axis=2), day, -np.inf), axis=1)
    return np.asarray(day - last <= WINDOW_DAYS)


def _rows(counts: pl.DataFrame, names: list[str], days: list[date], tz: str) -> pl.DataFrame:
    """Every counter and real hour of the days, with what was counted in it."""
    stamps = [(day, hour) for day in days for hour in hours_of_day(day, tz)]
    hours = pl.DataFrame(
        stamps, schema={"service_date": pl.Date, "ts_utc": UTC_TIMESTAMP}, orient="row"
    ).with_columns(local_hour=pl.col("ts_utc").dt.convert_time_zone(tz).dt.hour().cast(pl.Int32))
    return (
        pl.DataFrame({"counter_id": names}, schema={"counter_id": pl.String})
        .join(hours, how="cross")
        .join(counts.select("counter_id", "ts_utc", "hourly_count"), on=["counter_id", "ts_utc"], how="left")
    )


def _cells(
    names: list[str],
    days: list[date],
    gap: NDArray[np.bool_],
    estimate: Cube,
    by_neighbours: NDArray[np.bool_],
    heard: NDArray[np.bool_],
) -> pl.DataFrame:
    """The cube's days and hours as rows."""
    inner = slice(PAST_DAYS, len(days) - FUTURE_DAYS)
    n_counters, n_days = len(names), len(days[inner])
    return pl.DataFrame(
        {
            "counter_id": pl.Series(names, dtype=pl.String).gather(
                np.repeat(np.arange(n_counters), n_days * 24)
            ),
            "service_date": pl.Series(days[inner] * n_counters, dtype=pl.Date).gather(
                np.repeat(np.arange(n_counters * n_days), 24)
            ),
            "local_hour": pl.Series(np.tile(np.arange(24, dtype=np.int32), n_counters * n_days)),
            "gap": gap[:, inner].reshape(-1),
            # Hundredths: the last digits of matrix products depend on how many counters are in the call.
            "estimate": pl.Series(estimate[:, inner].reshape(-1), nan_to_null=True).round(2),
            "by_neighbours": by_neighbours[:, inner].reshape(-1),
            "heard": np.repeat(heard[:, inner].reshape(-1), 24),
        }
    )
