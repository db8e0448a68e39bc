"""Counter health: is a counter alive, stuck, drifting, dead or silent on a day, as far as was known that evening?

Belongs here: the state of a counter and day, and the incidents that states add up to. Does not belong here: single
hours (`quality` for forecasts, the flags of `cleaned_counts` for people), drift of the network (`drift`).

A day is judged by itself and the `LOOKBACK_DAYS` before it, never by what came after. Expected counts are the
counter's own: the median of the same hour of the week in the eight weeks before, so that every season is judged by
itself; the city's move of the day (the median counter's) is taken off, so that rain and strikes alarm nobody, and so
is what the day did to counters of leisure against those of commuters, so that holidays do not either. A level that
has held for more than four of the eight weeks is the counter's new level, and healthy.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bike_assets.core.calendar import days_between
from bike_assets.core.contracts import COUNTER_HEALTH, COUNTER_INCIDENTS
from bike_assets.core.cube import Cube, count_cube, shift_days
from bike_assets.core.errors import PermanentError
from bike_assets.core.quality import (
    MASK_LOOKBACK_DAYS,
    SURELY_NONZERO,
    dead_days,
    untrusted,
    weekly_median,
)

WINDOW_DAYS: Final = 7
"""Days a change of level is measured over."""

PROFILE_WEEKS: Final = 8
_PROFILE_AT_LEAST: Final = 3
_SPREAD_DAYS: Final = 28

# A level's spread looks back on days whose counters are of a kind by the week before them.
_LEVEL_DAYS: Final = WINDOW_DAYS + _SPREAD_DAYS + WINDOW_DAYS - 1
LOOKBACK_DAYS: Final = _LEVEL_DAYS + 7 * PROFILE_WEEKS + MASK_LOOKBACK_DAYS
"""The state of day D depends on rows with D - LOOKBACK_DAYS <= service_date <= D and on nothing else."""

HEALTH_COLUMNS: Final = ("service_date", "counter_id", "local_hour", "hourly_count")
"""The columns of cleaned counts that are read."""

_MIN_HOURS = 12  # fewer comparable hours say nothing about a day
_MIN_COUNTERS = 3  # with fewer there is no city to compare with
_MIN_LEANING = 8  # with fewer counters one that is broken is taken for the way of a kind
_LEAST_LEANING = 0.1  # where counters are hardly of different kinds, nothing is to be told of kinds
_USUAL_SPREAD = 0.08  # daily spread of a counter without a past of its own: Paris has 0.07 (median counter)
_AR_FACTOR = 0.6  # spread of a week's level over that of a day's: days of a week move together

Days = NDArray[np.float64]
Flags = NDArray[np.bool_]


class State(StrEnum):
    """What a counter is on a day, worst first."""

    SILENT = "silent"
    """Nothing was published, though the counter was heard of not long ago."""
    DEAD = "dead"
    """All zeros, or zeros in at least half of what should have passed."""
    STUCK = "stuck"
    """The same count again and again, longer than chance allows."""
    DRIFTING = "drifting"
    """Alive, but for days far from its own weeks and from its city: halved, doubled."""
    ALIVE = "alive"
    """None of these."""


UNHEALTHY: Final = (State.SILENT, State.DEAD, State.STUCK, State.DRIFTING)

NOT_LEARNED: Final = (State.STUCK, State.DRIFTING)
"""States whose counts no model is trained on or judged by.

Dead days stay: that a dead counter stays dead is worth learning. On the counts of Paris, leaving them out took the
skill of the first day from 0.28 to 0.22 over all hours, and added nothing over the hours of healthy counters.
"""


@dataclass(frozen=True)
class HealthPolicy:
    """Bounds of the states.

    A counter drifts when its level over seven days, relative to its own profile and to the city, is below
    1 - `fall` or above 1 + `rise`, by more than `deviations` robust standard deviations of that counter, and at
    least `persistent_days` of the seven lie more than half as far (on a logarithmic scale) on the same side.

    `stuck_evidence` is the negative natural logarithm of the chance of a run of equal counts. `silent_days` after
    its last count a counter is taken for removed.

    Measured on simulated faults by `benchmarks/counter_health.py`.
    """

    fall: float = 0.3
    rise: float = 0.6
    deviations: float = 3.0
    persistent_days: int = 5
    stuck_evidence: float = 25.0
    silent_days: int = 60

    def __post_init__(self) -> None:
        if not (0 < self.fall < 1 and self.rise > 0 and 1 <= self.persistent_days <= WINDOW_DAYS):
            raise PermanentError(f"counter health: {self} makes no sense; see HealthPolicy for the ranges")
        if not 0 < self.silent_days <= LOOKBACK_DAYS:
            raise PermanentError(f"counter health: silent_days must lie within 1..{LOOKBACK_DAYS}")


DEFAULT_POLICY: Final = HealthPolicy()


def counter_health(
    counts: pl.DataFrame, first: date, last: date, policy: HealthPolicy = DEFAULT_POLICY
) -> pl.DataFrame:
    """The state of every counter on every day from first to last.

    Args:
        counts: cleaned counts with `HEALTH_COLUMNS`, best from `LOOKBACK_DAYS` before `first` on. Later rows than
            a day's are not used for it.
        first: first local day wanted.
        last: last local day wanted, included.
        policy: bounds of the states.

    Returns:
        Rows that keep `COUNTER_HEALTH`, sorted by day and counter: every counter that was heard of on the day or
        in the `silent_days` before it.

    Raises:
        PermanentError: a column is missing.
    """
    if missing := set(HEALTH_COLUMNS) - set(counts.columns):
        raise PermanentError(
            f"counter health needs the column {', '.join(sorted(missing))} of cleaned counts"
        )
    days = days_between(first - timedelta(days=LOOKBACK_DAYS), last)
    names, cube, _ = count_cube(counts, days)
    if not names:
        return COUNTER_HEALTH.empty()
    bad = untrusted(cube, MASK_LOOKBACK_DAYS)
    usual = weekly_median(
        np.where(bad, np.nan, cube[:, MASK_LOOKBACK_DAYS:]),
        PROFILE_WEEKS,
        _PROFILE_AT_LEAST,
        first=7 * PROFILE_WEEKS,
    )
    # From here on only the days that a level looks back on, besides those wanted: none of the others is told of.
    lately = slice(-usual.shape[1], None)
    hours = (~np.isnan(cube)).sum(axis=2)
    silent_for = _days_since(hours > 0)[:, lately]
    evidence, stuck_at = (found[:, lately] for found in _stuck_evidence(cube, usual))
    days, cube, hours, bad = days[lately], cube[:, lately], hours[:, lately], bad[:, lately]
    expected_all, lost = _expected(cube, bad, usual)
    level = _levels(np.where(bad, np.nan, cube), usual, _leaning(usual, days), policy)
    with np.errstate(invalid="ignore"):
        dead = (dead_days(cube) & ~(expected_all < SURELY_NONZERO)) | (lost >= 0.5)
    silent = hours == 0
    stuck = evidence >= policy.stuck_evidence
    state = np.select(
        [silent, dead, stuck, level.drifting],
        [State.SILENT.value, State.DEAD.value, State.STUCK.value, State.DRIFTING.value],
        default=State.ALIVE.value,
    )
    wanted = silent_for <= policy.silent_days
    wanted[:, : days.index(first)] = False
    counter, day = np.nonzero(wanted)
    frame = pl.DataFrame(
        {
            "service_date": pl.Series(days, dtype=pl.Date).gather(day),
            "counter_id": pl.Series(names, dtype=pl.String).gather(counter),
            "state": state[wanted].astype(str).tolist(),
            "known_hours": hours[wanted].astype(np.int32),
            "silent_days": silent_for[wanted].astype(np.int32),
            "daily_count": np.where(silent, np.nan, np.nansum(cube, axis=2))[wanted],
            "expected_count": (expected_all * level.city)[wanted],
            "change": level.change[wanted],
            "deviation": level.deviation[wanted],
            "stuck_hours": stuck_at[wanted].astype(np.int32),
        },
        nan_to_null=True,
    )
    return COUNTER_HEALTH.conform(frame.with_columns(reason=_reason())).sort("service_date", "counter_id")


@dataclass(frozen=True)
class _Levels:
    """[counter, day]: level over the window relative to profile and city, its z, whether it drifts, and what the city
    (its median, and counters of its kind) did to it that day."""

    change: Days
    deviation: Days
    drifting: Flags
    city: Days


def _expected(cube: Cube, bad: NDArray[np.bool_], usual: Cube) -> tuple[Days, Days]:
    """[counter, day]: the usual counts of the known hours added up, NaN where too few; share lost.

    Lost is the share of what was expected that fell into hours of 0 that are surely an outage.
    """
    comparable = ~np.isnan(cube) & ~np.isnan(usual)
    total = np.where(comparable, usual, 0.0).sum(axis=2)
    gone = np.where(comparable & bad & (cube == 0), usual, 0.0).sum(axis=2)
    enough = comparable.sum(axis=2) >= _MIN_HOURS
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(enough, total, np.nan), np.where(enough & (total > 0), gone / total, 0.0)


def _leaning(usual: Cube, days: Sequence[date]) -> Days:
    """[counter, day]: how much a counter is one of leisure: log of its usual weekend day over its usual working day."""
    total = np.where(np.isnan(usual).any(axis=2), np.nan, usual.sum(axis=2)) + 2.0
    weekend = np.array([day.weekday() >= 5 for day in days])
    with np.errstate(invalid="ignore", divide="ignore"):
        free, working = (
            _over_window(np.where(which, total, 0.0))
            / _over_window((which & ~np.isnan(total)).astype(np.float64))
            for which in (weekend, ~weekend)
        )
        return np.asarray(np.log(free / working))


def _of_kind(residual: Days, leaning: Days) -> Days:
    """[counter, day]: what the day did to counters as far as they lean to leisure, a straight line through the median.

    The slope is that of least absolute deviations through the origin, the weighted median of residual / leaning: half
    of the counters may be broken. 0 where it is not known.
    """
    lean = np.full(leaning.shape, np.nan)
    known = ~np.isnan(leaning).all(axis=0)
    lean[:, known] = leaning[:, known] - np.nanmedian(leaning[:, known], axis=0)
    usable = ~np.isnan(residual) & ~np.isnan(lean) & (lean != 0)
    weight = np.where(usable, np.abs(lean), 0.0)
    slopes = np.where(usable, residual / np.where(usable, lean, 1.0), np.inf)
    order = np.argsort(slopes, axis=0)
    reached = np.cumsum(np.take_along_axis(weight, order, axis=0), axis=0) >= weight.sum(axis=0) / 2
    middle = np.take_along_axis(order, reached.argmax(axis=0)[None], axis=0)
    slope = np.take_along_axis(slopes, middle, axis=0)[0]
    counters = usable.sum(axis=0)
    told = (counters >= _MIN_LEANING) & (weight.sum(axis=0) >= _LEAST_LEANING * np.maximum(counters, 1))
    return np.asarray(np.nan_to_num(np.where(told, slope, 0.0) * lean))


def _levels(trusted: Cube, usual: Cube, leaning: Days, policy: HealthPolicy) -> _Levels:
    comparable = ~np.isnan(trusted) & ~np.isnan(usual)
    enough = comparable.sum(axis=2) >= _MIN_HOURS
    actual = np.where(enough, np.where(comparable, trusted, 0.0).sum(axis=2), 0.0)
    expected = np.where(enough, np.where(comparable, usual, 0.0).sum(axis=2), 0.0)
    # A few bicycles on either side keep quiet counters finite and calm.
    move = np.where(enough, np.log((actual + 2) / (expected + 2)), np.nan)
    several = (~np.isnan(move)).sum(axis=0) >= _MIN_COUNTERS
    city = np.ones(move.shape[1])
    city[several] = np.exp(np.nanmedian(move[:, several], axis=0))
    own = np.where(enough, np.log((actual + 2) / (expected * city + 2)), np.nan)
    moved = city * np.exp(_of_kind(own, leaning))
    expected = expected * moved
    residual = np.where(enough, np.log((actual + 2) / (expected + 2)), np.nan)

    seen, due, days = (_over_window(values) for values in (actual, expected, enough.astype(np.float64)))
    change = np.where(days >= policy.persistent_days, (seen + 5) / (due + 5), np.nan)
    spread = np.sqrt((_AR_FACTOR * _spread(residual)) ** 2 + 2.0 / np.maximum(due, 1.0))
    with np.errstate(invalid="ignore"):
        drifting = np.zeros(change.shape, dtype=bool)
        for side, bound in ((-1.0, -np.log(1 - policy.fall)), (1.0, np.log(1 + policy.rise))):
            limit = np.maximum(bound, policy.deviations * spread)
            far = side * residual > limit / 2
            # Two good days in a row: it has returned.
            returned = ~far & ~_before(far) & enough
            drifting |= (
                (side * np.log(change) > limit)
                & (_over_window(far.astype(np.float64)) >= policy.persistent_days)
                & ~returned
            )
        return _Levels(change, np.log(change) / spread, drifting, moved)


def _spread(residual: Days) -> Days:
    """Robust standard deviation (1.4826 · MAD around 0) of the days of four weeks that end before the window."""
    past = np.stack([_shift(residual, k) for k in range(WINDOW_DAYS, WINDOW_DAYS + _SPREAD_DAYS)])
    known = (~np.isnan(past)).sum(axis=0)
    middle = np.sort(np.abs(past), axis=0)
    median = np.take_along_axis(middle, np.maximum(known - 1, 0)[None] // 2, axis=0)[0]
    return np.where(known >= 10, 1.4826 * median, _USUAL_SPREAD)


def _stuck_evidence(cube: Cube, usual: Cube) -> tuple[Days, Days]:
    """[counter, day]: the most improbable run of equal counts that reached into the day, and its length in hours.

    The chance that an hour repeats the last one is at most that of the most probable value of a negative
    binomial with the usual mean and a dispersion of 10; zeros are no evidence (they are `dead`'s). What is usual is
    known of the last days only: a run that began before them is long enough without.
    """
    counters, n_days, _ = cube.shape
    hours = cube.reshape(counters, -1)
    mean = hours.copy()
    profiled = mean[:, -24 * usual.shape[1] :]
    np.fmax(profiled, usual.reshape(counters, -1), out=profiled)
    surprise = 0.5 * np.log(1 + 2 * np.pi * (mean + 0.1 * mean**2))
    equal = np.zeros(hours.shape, dtype=bool)
    equal[:, 1:] = (hours[:, 1:] == hours[:, :-1]) & (hours[:, 1:] > 0)
    evidence, length = np.zeros(hours.shape), np.zeros(hours.shape)
    for hour in range(1, hours.shape[1]):
        again = equal[:, hour]
        evidence[:, hour] = np.where(again, evidence[:, hour - 1] + surprise[:, hour], 0.0)
        length[:, hour] = np.where(again, length[:, hour - 1] + 1, 0.0)
    by_day = evidence.reshape(counters, n_days, 24)
    return by_day.max(axis=2), length.reshape(counters, n_days, 24).max(axis=2) + 1


def _days_since(flag: Flags) -> Days:
    """[counter, day]: days since the flag last held, 0 where it holds; infinite where it never has."""
    day = np.arange(flag.shape[1], dtype=np.float64)
    return np.asarray(day - np.maximum.accumulate(np.where(flag, day, -np.inf), axis=1))


def _over_window(values: Days) -> Days:
    """Sum over the day and the six before it, one after the other so that the start of the array changes nothing."""
    total = np.zeros(values.shape)
    for k in range(WINDOW_DAYS - 1, -1, -1):
        total = total + np.nan_to_num(_shift(values, k))
    return total


def _shift(values: Days, days: int) -> Days:
    return shift_days(values[:, :, None], days)[:, :, 0]


def _before(flag: Flags) -> Flags:
    return np.asarray(_shift(flag.astype(np.float64), 1) == 1)


def _reason() -> pl.Expr:
    """Why the state is what it is, in words."""
    expected = pl.col("expected_count").round(0).cast(pl.Int64)
    counted = pl.col("daily_count").round(0).cast(pl.Int64)
    percent = (100 * pl.col("change")).round(0).cast(pl.Int64)
    dead = pl.col("state") == State.DEAD
    return (
        pl.when(pl.col("state") == State.SILENT)
        .then(
            pl.when(pl.col("silent_days") == 1)
            .then(pl.lit("nothing published that day"))
            .otherwise(pl.format("nothing published for {} days", "silent_days"))
        )
        .when(dead & expected.is_null())
        .then(pl.format("{} hours of zero", "known_hours"))
        .when(dead & (counted == 0))
        .then(pl.format("{} hours of zero where {} bicycles were expected", "known_hours", expected))
        .when(dead)
        .then(pl.format("zeros in most of the day: {} of {} bicycles expected", counted, expected))
        .when(pl.col("state") == State.STUCK)
        .then(pl.format("the same count {} hours in a row", "stuck_hours"))
        .when((pl.col("state") == State.DRIFTING) & (pl.col("change") >= 10))
        .then(pl.lit("more than ten times its usual level over seven days"))
        .when(pl.col("state") == State.DRIFTING)
        .then(pl.format("{} % of its usual level over seven days, the city taken off", percent))
        .otherwise(pl.lit("as usual"))
    )


def without(counts: pl.DataFrame, health: pl.DataFrame, states: Collection[State]) -> pl.DataFrame:
    """The counts but those of counters on days when they were in one of the states; all where nothing is known.

    Args:
        counts: has counter_id and service_date.
        health: `counter_id`, `service_date` and `state` of `counter_health`.
        states: states to leave out.
    """
    faulty = health.filter(pl.col("state").is_in([state.value for state in states]))
    return counts.join(faulty, on=["counter_id", "service_date"], how="anti")


def of_healthy_days(
    rows: pl.DataFrame, health: pl.DataFrame, issue_date: str = "service_date"
) -> pl.DataFrame:
    """The rows of days on which their counter was alive and had been the day before the forecast was issued; all where
    nothing is known.

    What a model is judged by: that a dead counter comes back is in nobody's forecast.

    Args:
        rows: has counter_id, service_date (the day that was forecast) and `issue_date`.
        health: `counter_id`, `service_date` and `state` of `counter_health`.
        issue_date: the column of the day on which the forecast was issued; by default the forecast day itself.
    """
    alive = without(rows, health, UNHEALTHY)
    known = health.select("counter_id", "state", pl.col("service_date").dt.offset_by("1d").alias(issue_date))
    broken = known.filter(pl.col("state").is_in([state.value for state in UNHEALTHY]))
    return alive.join(broken, on=["counter_id", issue_date], how="anti")


def incidents(health: pl.DataFrame, bridge_days: int = 2) -> pl.DataFrame:
    """What was wrong with which counter from when to when: one row an incident, opened once.

    Days that are not alive and lie at most `bridge_days` days apart are one incident, so that a counter that
    flickers alarms once. It closes with the first day after it when the counter is alive for longer than that.

    Args:
        health: rows of `counter_health`.
        bridge_days: healthy days that do not yet end an incident.

    Returns:
        Rows that keep `COUNTER_INCIDENTS`, sorted by opening day and counter.
    """
    rows = health.sort("counter_id", "service_date").with_columns(bad=pl.col("state") != State.ALIVE)
    bad = rows.filter("bad").with_columns(
        incident=(pl.col("service_date").diff().dt.total_days().over("counter_id") > bridge_days + 1)
        .fill_null(True)
        .cum_sum()
    )
    lasted = bad.group_by("counter_id", "incident").agg(
        service_date=pl.col("service_date").min(),
        last_bad_day=pl.col("service_date").max(),
        days=pl.len(),
        state=pl.col("state").mode().sort().first(),
        # The newest words about the state that it is called by.
        reason=pl.col("reason").filter(pl.col("state") == pl.col("state").mode().sort().first()).last(),
    )
    healthy = (
        lasted.join(rows.filter(~pl.col("bad")).select("counter_id", day="service_date"), on="counter_id")
        .filter(pl.col("day") > pl.col("last_bad_day"))
        .group_by("counter_id", "incident")
        .agg(closed_on=pl.col("day").min(), healthy_days=pl.len())
        .filter(pl.col("healthy_days") > bridge_days)
        .drop("healthy_days")
    )
    heard = rows.group_by("counter_id").agg(heard_until=pl.col("service_date").max())
    table = (
        lasted.join(healthy, on=["counter_id", "incident"], how="left")
        .join(heard, on="counter_id")
        .with_columns(
            status=pl.when(pl.col("closed_on").is_not_null())
            .then(pl.lit("closed"))
            # Nothing is said any more of a counter that has been silent for long.
            .when(pl.col("heard_until") < pl.lit(health.get_column("service_date").max()))
            .then(pl.lit("removed"))
            .otherwise(pl.lit("open"))
        )
    )
    return COUNTER_INCIDENTS.conform(table).sort("service_date", "counter_id")
