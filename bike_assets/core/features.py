"""What is known about a counter and an hour when a forecast is issued. The same code trains and serves.

Belongs here: the model's inputs and the baselines, computed from counts of days before the issue date and
from the calendar. Does not belong here: the target, scaling by level, the model (`bike_assets.core.model`).

Counts become a dense cube [counter, local day, hour of the wall clock]. Windows are sums over day shifts in
one fixed order, never running sums: the features of an issue date are the same to the last bit whatever
other issue dates, and however much older history, stand in the same call.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bike_assets.core.calendar import (
    LOCAL_TZ,
    calendar_table,
    days_between,
    days_to_public_holiday,
    hours_of_day,
    target_date,
)
from bike_assets.core.contracts import UTC_TIMESTAMP, features_contract
from bike_assets.core.cube import Cube, count_cube
from bike_assets.core.errors import PermanentError
from bike_assets.core.newcomers import borrow
from bike_assets.core.quality import MASK_LOOKBACK_DAYS, dead_days, untrusted
from bike_assets.core.weather import KnownWeather, feels_like, lay_out

FEATURE_LOOKBACK_DAYS = 56
"""Oldest day, before the issue date, whose count a feature looks at."""

WARM_UP_DAYS = 28
"""Days of counts before the first issue date that is worth training on: older inputs are then missing, as they are for
young counters. With all of them a short history loses a month more to no gain."""

LOOKBACK_DAYS = FEATURE_LOOKBACK_DAYS + MASK_LOOKBACK_DAYS
"""Features of issue date D use only rows with D - LOOKBACK_DAYS <= service_date <= D - 1."""

MAX_HORIZON = 7
LEVEL_FLOOR = 1.0
"""Smallest level (bicycles an hour) that counts are divided by."""

COUNT_FEATURES: tuple[str, ...] = (
    "mean4",
    "seasonal_naive",
    "week_lag_1",
    "week_lag_2",
    "week_lag_3",
    "week_lag_4",
    "week_lag_8",
    "week_mean_clean",
    "week_mean_adjusted",
    "week_mean_hour_before",
    "week_mean_hour_after",
    "day_lag_1",
    "day_lag_2",
    "day_lag_3",
    "day_lag_7",
    "type_last_1",
    "type_mean",
    "type_ewm",
    "type_ewm_short",
    "type_ewm_hour_before",
    "type_ewm_hour_after",
    "hour_mean_28d",
    "max_56d",
)
"""Features in bicycles an hour; the model divides them by `level_28d`."""

OTHER_FEATURES: tuple[str, ...] = (
    "level_28d",
    "level_ratio_7_28",
    "level_ratio_28_56",
    "own_ratio_1d",
    "own_ratio_2d",
    "own_ratio_3d",
    "own_ratio_7d",
    "own_ratio_evening",
    "raw_ratio_1d",
    "raw_ratio_evening",
    "network_ratio_1d",
    "network_ratio_2d",
    "network_ratio_3d",
    "network_ratio_7d",
    "network_ratio_evening",
    "network_ratio_hour",
    "network_lag_ratio_1",
    "network_lag_ratio_2",
    "network_lag_ratio_3",
    "network_lag_ratio_4",
    "network_profile",
    "network_level_ratio_7_28",
    "zero_share_1d",
    "zero_share_7d",
    "missing_share_7d",
    "untrusted_share_28d",
    "dead_days",
    "known_days_28d",
    "history_days",
    "weekend_ratio",
    "morning_share",
    "night_share",
    "horizon_days",
    "hour",
    "weekday",
    "day_type",
    "is_public_holiday",
    "is_bridge_day",
    "is_school_holiday",
    "days_to_public_holiday",
    "yesterday_day_type",
    "yesterday_school_holiday",
    "holiday_lag_1",
    "holiday_lags_4",
    "school_lag_1",
    "school_lags_4",
)
"""Features without a unit, and the level itself in bicycles an hour."""

WEATHER_FEATURES: tuple[str, ...] = (
    "temperature",
    "feels_like",
    "temperature_day",
    "rain_hour",
    "rain_near",
    "rain_before",
    "rain_day",
    "wind",
    "temperature_excess",
    "temperature_day_excess",
    "rain_near_excess",
    "rain_day_excess",
    "wind_excess",
    "yesterday_temperature_excess",
    "yesterday_rain_day",
    "yesterday_rain_day_excess",
)
"""Features from the weather forecast known at issue and from observations of the days before: °C, km/h, and rain as
log(1 + mm). An excess is the difference to the days of the same kind that the expected count is made of."""

FEATURE_COLUMNS: tuple[str, ...] = COUNT_FEATURES + OTHER_FEATURES + WEATHER_FEATURES
"""Inputs of the model, in the order it takes them."""

_WORKDAY, _SATURDAY, _SUNDAY = 0, 1, 2
_TYPE_WINDOW = 42
_COUNTER_AXES = ("ih", "i", "th", "kh")
_DAY = timedelta(days=1)

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class _Days:
    """The day axis: every local day from the oldest count to the last target, and what kind of day it is."""

    days: list[date]
    weekday: Array
    public: Array
    bridge: Array
    school: Array
    near_holiday: Array
    day_type: Index

    @classmethod
    def of(cls, first: date, last: date) -> "_Days":
        days = days_between(first, last)
        table = calendar_table(days)
        weekday = table["weekday"].to_numpy().astype(np.float64)
        public = table["is_public_holiday"].to_numpy().astype(np.float64)
        day_type = np.where(
            (weekday == 6) | (public > 0), _SUNDAY, np.where(weekday == 5, _SATURDAY, _WORKDAY)
        )
        return cls(
            days=days,
            weekday=weekday,
            public=public,
            bridge=table["is_bridge_day"].to_numpy().astype(np.float64),
            school=table["is_school_holiday"].to_numpy().astype(np.float64),
            near_holiday=np.array([days_to_public_holiday(day) for day in days], dtype=np.float64),
            day_type=day_type.astype(np.int64),
        )


class _Mean:
    """A mean over equally shaped arrays that skips NaN, added in the order given."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.total, self.weight = np.zeros(shape), np.zeros(shape)

    def add(self, values: Array, known: Array, weight: float = 1.0) -> None:
        """Add values and where they are known, as `_known` parts them."""
        self.total += values if weight == 1.0 else values * weight
        self.weight += known if weight == 1.0 else known * weight

    def result(self) -> Array:
        return _ratio(self.total, self.weight)


def _known(values: Array) -> tuple[Array, Array]:
    """The values with 0 where unknown, and 1 where known: parted once, as each day is added many times."""
    known = ~np.isnan(values)
    return np.where(known, values, 0.0), known.astype(np.float64)


def _ratio(above: Array, below: Array, pseudo: float = 0.0) -> Array:
    """(above + pseudo) / (below + pseudo), NaN where below is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(below > 0, (above + pseudo) / (below + pseudo), np.nan))


def _sum_hours(cube: Cube, hours: Iterable[int] = range(24)) -> Array:
    """Sum over hours, one after the other: numpy's own sum may pair terms differently for other layouts."""
    total = np.zeros(cube.shape[:-1])
    for hour in hours:
        total = total + np.nan_to_num(cube[..., hour])
    return total


def _sum_counters(cube: Cube) -> Array:
    """Sum over counters, one after the other, so that counters without data cannot change a rounding."""
    total = np.zeros(cube.shape[1:])
    for counter in cube:
        total = total + np.nan_to_num(counter)
    return total


def build_features(
    counts: pl.DataFrame,
    issue_dates: Sequence[date],
    horizons: Sequence[int] = range(1, MAX_HORIZON + 1),
    counter_ids: Sequence[str] | None = None,
    tz: str = LOCAL_TZ,
    weather: pl.DataFrame | None = None,
    positions: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Features of every counter and every hour of the target days, as known on each issue date's morning.

    Args:
        counts: cleaned counts with at least counter_id, service_date, local_hour and hourly_count. Rows on or
            after an issue date, and rows more than `LOOKBACK_DAYS` before it, are not used for it.
            Network-wide features see all counters in it.
        issue_dates: local days on which forecasts are issued; order and repetition do not matter.
        horizons: days ahead, 1 (the issue date itself) to 7.
        counter_ids: counters to give rows for, known or not; by default those with a row in the lookback.
        tz: time zone of the wall clock.
        weather: rows of `RAW_WEATHER`: forecasts by issue date, observations by local day. Of an issue date
            only its own forecast and observations of earlier days are used. None, or missing hours, leave
            `WEATHER_FEATURES` null.
        positions: counter_id, latitude, longitude of counters, as `COUNTERS` has them. A counter with little
            history borrows from its neighbours (see `bike_assets.core.newcomers`), or from the whole city.

    Returns:
        Rows that keep `features_contract(FEATURE_COLUMNS)`, one for each real hour of each target day (23, 24
        or 25), sorted by issue date, counter and hour. Features are null where nothing is known; the
        baselines `mean4` and `seasonal_naive` and `level_28d` never are.

    Raises:
        PermanentError: no issue date, a horizon outside 1..7, or a column is missing.
    """
    contract = features_contract(FEATURE_COLUMNS)
    issues, ahead = sorted(set(issue_dates)), sorted(set(horizons))
    if not issues or not ahead or ahead[0] < 1 or ahead[-1] > MAX_HORIZON:
        raise PermanentError(f"features need at least one issue date and horizons within 1..{MAX_HORIZON}")
    missing = {"counter_id", "service_date", "local_hour", "hourly_count"} - set(counts.columns)
    if missing:
        raise PermanentError(f"features need the column {', '.join(sorted(missing))} of cleaned counts")
    axis = _Days.of(issues[0] - LOOKBACK_DAYS * _DAY, issues[-1] + MAX_HORIZON * _DAY)
    known = counts.filter(pl.col("service_date") < issues[-1])
    names, cube, seen = count_cube(known, axis.days, counter_ids or ())
    if not names:
        return contract.empty()
    at = np.array([(day - axis.days[0]).days for day in issues], dtype=np.int64)
    present = np.zeros((len(names), len(issues)), dtype=bool)
    for k in range(1, LOOKBACK_DAYS + 1):
        present |= seen[:, at - k]
    values = _features(cube, axis, at, present)
    _weather_features(values, lay_out(weather, axis.days, issues, MAX_HORIZON, tz), axis, at)
    wanted = set(counter_ids or ())
    # Others lend to those asked for.
    emitted = present | np.array([[name in wanted] for name in names])
    features = _emit(values, names, issues, ahead, axis, emitted, tz)
    single = [name for name in FEATURE_COLUMNS if name in values and values[name][0] in _COUNTER_AXES]
    lent = set(single) - {"mean4", "seasonal_naive", "level_28d", "history_days", "known_days_28d"}
    features = borrow(
        features,
        [name for name in COUNT_FEATURES if name in lent],
        [name for name in OTHER_FEATURES if name in lent],
        positions,
    )
    if counter_ids is not None:
        features = features.filter(pl.col("counter_id").is_in(list(wanted)))
    return features


def _features(cube: Cube, axis: _Days, at: Index, present: NDArray[np.bool_]) -> dict[str, tuple[str, Array]]:
    """Every feature with the axes it varies over.

    Axes: `ih` [counter, issue, hour], `i` [counter, issue], `th` [counter, target day, hour], `n` [issue],
    `nh` [issue, hour], `nth` [target day, hour], `t` [target day], `kh` [counter, day type, issue, hour],
    `nlh` [issue, day ahead, hour], `nl` [issue, day ahead], `l` [day ahead], `h` [hour]. Target days count from
    the first issue date, which stands `LOOKBACK_DAYS` behind the start of the cube.
    """
    bad = untrusted(cube)
    trusted = np.where(bad, np.nan, cube)
    shape_i = (cube.shape[0], len(at))
    shape_ih = (*shape_i, 24)
    out: dict[str, tuple[str, Array]] = {}

    # Levels: the mean over hours of the day of each hour's own mean, so that missing nights do not lift it.
    hour_mean, means = _Mean(shape_ih), {}
    raw_mean, maximum = _Mean(shape_ih), np.full(shape_i, np.nan)
    known_days, history = np.zeros(shape_i), np.zeros(shape_i)
    zeros = {1: np.zeros(shape_i), 7: np.zeros(shape_i)}
    known_hours = {1: np.zeros(shape_i), 7: np.zeros(shape_i)}
    untrusted_hours = np.zeros(shape_i)
    dead, still_dead = np.zeros(shape_i), np.ones(shape_i, dtype=bool)
    value, known = _known(trusted)
    raw_value, raw_known = _known(cube)
    day_known, day_counted = np.any(known, axis=2), raw_known.sum(axis=2)
    day_zeros, day_untrusted, dead_day = (cube == 0).sum(axis=2), bad.sum(axis=2), dead_days(cube)
    with np.errstate(all="ignore"):
        day_max = np.fmax.reduce(trusted, axis=2)
    for k in range(1, FEATURE_LOOKBACK_DAYS + 1):
        back = _back(at, k)
        hour_mean.add(value[:, back], known[:, back])
        if k in (7, 28, 56):
            means[k] = hour_mean.result()
        maximum = np.fmax(maximum, day_max[:, back])
        history += day_counted[:, back] > 0
        if k <= 28:
            raw_mean.add(raw_value[:, back], raw_known[:, back])
            known_days += day_known[:, back]
            untrusted_hours += day_untrusted[:, back]
            still_dead &= dead_day[:, back]
            dead += still_dead
        for window in (1, 7):
            if k <= window:
                zeros[window] += day_zeros[:, back]
                known_hours[window] += day_counted[:, back]
    levels = {window: _mean_hours(mean) for window, mean in means.items()}
    level = levels[28]
    for fallback in (levels[56], _mean_hours(raw_mean.result())):
        level = np.where(np.isnan(level), fallback, level)
    level = np.where(np.isnan(level), _median_counters(np.where(present, level, np.nan)), level)
    level = np.maximum(level, LEVEL_FLOOR)
    out["level_28d"] = ("i", level)
    out["level_ratio_7_28"] = ("i", _ratio(levels[7], level))
    out["level_ratio_28_56"] = ("i", _ratio(level, levels[56]))
    out["hour_mean_28d"] = ("ih", means[28])
    out["max_56d"] = ("i", maximum)
    out["zero_share_1d"] = ("i", _ratio(zeros[1], known_hours[1]))
    out["zero_share_7d"] = ("i", _ratio(zeros[7], known_hours[7]))
    out["missing_share_7d"] = ("i", 1.0 - known_hours[7] / (7 * 24))
    out["untrusted_share_28d"] = ("i", untrusted_hours / (28 * 24))
    out["dead_days"] = ("i", dead)
    out["known_days_28d"] = ("i", known_days)
    out["history_days"] = ("i", history)
    _week_features(out, cube, trusted, axis)
    _ratio_features(out, cube, trusted, at)
    _type_features(out, trusted, axis, at)
    for k in (1, 2, 3, 7):
        out[f"day_lag_{k}"] = ("ih", trusted[:, at - k])
    network = _Mean((len(at), 24))
    for counter in means[28] / level[:, :, None]:
        network.add(*_known(counter))
    profile = network.result()
    out["network_profile"] = ("nh", profile)
    _calendar_features(out, axis, at)
    return out


def _back(at: Index, days: int) -> Index | slice:
    """Where the days before the issue dates stand on the day axis: where they follow each other, a view of it."""
    if at[-1] - at[0] == len(at) - 1:
        return slice(int(at[0]) - days, int(at[-1]) - days + 1)
    return at - days


def _weeks_before(days: int, weeks: int) -> slice:
    """Where the same weekdays before the target days stand on a day axis of so many days."""
    return slice(LOOKBACK_DAYS - 7 * weeks, days - 7 * weeks)


def _mean_hours(cube: Cube, hours: Iterable[int] = range(24)) -> Array:
    known = np.sum(~np.isnan(cube), axis=-1).astype(np.float64)
    return _ratio(_sum_hours(cube, hours), known)


def _median_counters(values: Array) -> Array:
    """[counter, issue] → [1, issue] median over counters, 0 where no counter is known."""
    ordered = np.sort(values, axis=0)
    known = np.sum(~np.isnan(ordered), axis=0)
    middle = np.take_along_axis(ordered, np.maximum(known - 1, 0)[None] // 2, axis=0)
    return np.asarray(np.nan_to_num(middle))


def _week_features(out: dict[str, tuple[str, Array]], cube: Cube, trusted: Cube, axis: _Days) -> None:
    """Same hour of the week before the target day. A week back is at most the day before the issue date."""
    days = cube.shape[1]
    shape = (cube.shape[0], days - LOOKBACK_DAYS, 24)
    raw = _Mean(shape)
    naive = np.full(shape, np.nan)
    for k in range(1, 5):
        lag = cube[:, _weeks_before(days, k)]
        raw.add(*_known(lag))
        naive = np.where(np.isnan(naive), lag, naive)
    out["mean4"] = ("th", np.nan_to_num(raw.result()))
    out["seasonal_naive"] = ("th", np.nan_to_num(naive))
    for k in (1, 2, 3, 4, 8):
        out[f"week_lag_{k}"] = ("th", trusted[:, _weeks_before(days, k)])
    ordinary, known = _known(np.where(axis.public[None, :, None] > 0, np.nan, trusted))
    clean = _Mean(shape)
    for k in range(1, 7):
        lag_days = _weeks_before(days, k)
        clean.add(ordinary[:, lag_days], known[:, lag_days], 0.8**k)
    mean = clean.result()
    out["week_mean_clean"] = ("th", mean)
    out["week_mean_hour_before"] = ("th", _hour_shift(mean, 1))
    out["week_mean_hour_after"] = ("th", _hour_shift(mean, -1))


def _hour_shift(cube: Cube, hours: int) -> Cube:
    """The hour before (1) or after (-1) on the wall clock of the same day, around the clock."""
    return np.roll(cube, hours, axis=-1)


def _ratio_features(out: dict[str, tuple[str, Array]], cube: Cube, trusted: Cube, at: Index) -> None:
    """How recent days compared with the same weekday of the four weeks before: one counter, the city."""
    days, value, known = cube.shape[1], *_known(trusted)
    first = LOOKBACK_DAYS - 28  # the oldest day that is compared
    mean = _Mean((cube.shape[0], days - first, 24))
    for k in range(1, 5):
        mean.add(value[:, first - 7 * k : days - 7 * k], known[:, first - 7 * k : days - 7 * k])
    expected = np.full(cube.shape, np.nan)
    expected[:, first:] = mean.result()
    both = ~np.isnan(trusted) & ~np.isnan(expected)
    seen, usual = np.where(both, trusted, 0.0), np.where(both, expected, 0.0)
    seen_day, usual_day = _sum_hours(seen), _sum_hours(usual)
    evening = range(17, 24)
    for k in (1, 2, 3):
        out[f"own_ratio_{k}d"] = ("i", _ratio(seen_day[:, at - k], usual_day[:, at - k], pseudo=20.0))
    week_seen, week_usual = np.zeros((cube.shape[0], len(at))), np.zeros((cube.shape[0], len(at)))
    for k in range(1, 8):
        week_seen, week_usual = week_seen + seen_day[:, at - k], week_usual + usual_day[:, at - k]
    out["own_ratio_7d"] = ("i", _ratio(week_seen, week_usual, pseudo=20.0))
    out["own_ratio_evening"] = (
        "i",
        _ratio(_sum_hours(seen, evening)[:, at - 1], _sum_hours(usual, evening)[:, at - 1], pseudo=10.0),
    )
    raw_both = ~np.isnan(cube) & ~np.isnan(expected)
    raw_seen, raw_usual = np.where(raw_both, cube, 0.0), np.where(raw_both, expected, 0.0)
    out["raw_ratio_1d"] = ("i", _ratio(_sum_hours(raw_seen)[:, at - 1], _sum_hours(raw_usual)[:, at - 1]))
    out["raw_ratio_evening"] = (
        "i",
        _ratio(_sum_hours(raw_seen, evening)[:, at - 1], _sum_hours(raw_usual, evening)[:, at - 1]),
    )

    city_seen, city_usual = _sum_counters(seen), _sum_counters(usual)
    city_day = _ratio(_sum_hours(city_seen), _sum_hours(city_usual))
    for k in (1, 2, 3):
        out[f"network_ratio_{k}d"] = ("n", city_day[at - k])
    city_week_seen, city_week_usual = np.zeros(len(at)), np.zeros(len(at))
    for k in range(1, 8):
        city_week_seen = city_week_seen + _sum_hours(city_seen)[at - k]
        city_week_usual = city_week_usual + _sum_hours(city_usual)[at - k]
    out["network_ratio_7d"] = ("n", _ratio(city_week_seen, city_week_usual))
    out["network_ratio_evening"] = (
        "n",
        _ratio(_sum_hours(city_seen, evening)[at - 1], _sum_hours(city_usual, evening)[at - 1]),
    )
    # Neighbouring hours steady the ratio at night, when the city counts few.
    near_seen = city_seen + np.roll(city_seen, 1, axis=-1) + np.roll(city_seen, -1, axis=-1)
    near_usual = city_usual + np.roll(city_usual, 1, axis=-1) + np.roll(city_usual, -1, axis=-1)
    city_hour = _ratio(near_seen, near_usual)
    out["network_ratio_hour"] = ("nh", city_hour[at - 1])
    adjusted_mean = _Mean((cube.shape[0], days - LOOKBACK_DAYS, 24))
    adjusted, known = _known(trusted / np.clip(np.where(np.isnan(city_hour), 1.0, city_hour), 0.3, 3.0))
    for k in range(1, 5):
        lag_days = _weeks_before(days, k)
        out[f"network_lag_ratio_{k}"] = ("nth", city_hour[lag_days])
        adjusted_mean.add(adjusted[:, lag_days], known[:, lag_days])
    out["week_mean_adjusted"] = ("th", adjusted_mean.result())
    short, long = np.zeros(len(at)), np.zeros(len(at))
    total = _sum_hours(_sum_counters(trusted))
    for k in range(1, 29):
        long = long + total[at - k]
        if k <= 7:
            short = short + total[at - k]
    out["network_level_ratio_7_28"] = ("n", 4.0 * _ratio(short, long))


def _type_features(out: dict[str, tuple[str, Array]], trusted: Cube, axis: _Days, at: Index) -> None:
    """Recent days of the target's type (working day, Saturday, Sunday or public holiday), newest first."""
    by_day = np.ascontiguousarray(trusted.transpose(1, 0, 2))
    value, known = _known(by_day)
    shape = (3, len(at), trusted.shape[0], 24)  # day type and issue first: each step touches whole blocks
    mean, ewm, short = _Mean(shape), _Mean(shape), _Mean(shape)
    last = np.full(shape, np.nan)
    for issue, issue_day in enumerate(at):
        for k in range(1, _TYPE_WINDOW + 1):
            day = issue_day - k
            block = axis.day_type[day], issue
            for target, weight in ((mean, float(k <= 28)), (ewm, 0.5 ** (k / 10)), (short, 0.5 ** (k / 3))):
                if weight:
                    target.total[block] += value[day] * weight
                    target.weight[block] += known[day] * weight
            np.copyto(last[block], by_day[day], where=np.isnan(last[block]))
    average = ewm.result()
    for name, found in (
        ("type_mean", mean.result()),
        ("type_ewm", average),
        ("type_ewm_short", short.result()),
        ("type_ewm_hour_before", _hour_shift(average, 1)),
        ("type_ewm_hour_after", _hour_shift(average, -1)),
        ("type_last_1", last),
    ):
        out[name] = ("kh", found.transpose(2, 0, 1, 3))
    workday, sunday = average[_WORKDAY].transpose(1, 0, 2), average[_SUNDAY].transpose(1, 0, 2)
    work = _sum_hours(workday)
    out["weekend_ratio"] = ("i", _ratio(_sum_hours(sunday), work, pseudo=20.0))
    out["morning_share"] = ("i", _ratio(_sum_hours(workday, range(7, 10)), work))
    out["night_share"] = ("i", _ratio(_sum_hours(workday, (21, 22, 23, 0, 1, 2, 3, 4)), work))


def _calendar_features(out: dict[str, tuple[str, Array]], axis: _Days, at: Index) -> None:
    """What kind of day the target, yesterday and the lag days are."""
    days, targets = len(axis.days), slice(LOOKBACK_DAYS, None)
    out["hour"] = ("h", np.arange(24.0))
    out["horizon_days"] = ("l", np.arange(1.0, MAX_HORIZON + 1))
    out["weekday"] = ("t", axis.weekday[targets])
    out["day_type"] = ("t", axis.day_type[targets].astype(np.float64))
    out["is_public_holiday"] = ("t", axis.public[targets])
    out["is_bridge_day"] = ("t", axis.bridge[targets])
    out["is_school_holiday"] = ("t", axis.school[targets])
    out["days_to_public_holiday"] = ("t", axis.near_holiday[targets])
    out["yesterday_day_type"] = ("n", axis.day_type[at - 1].astype(np.float64))
    out["yesterday_school_holiday"] = ("n", axis.school[at - 1])
    public = [axis.public[_weeks_before(days, k)] for k in range(1, 5)]
    school = [axis.school[_weeks_before(days, k)] for k in range(1, 5)]
    out["holiday_lag_1"] = ("t", public[0])
    out["holiday_lags_4"] = ("t", public[0] + public[1] + public[2] + public[3])
    out["school_lag_1"] = ("t", school[0])
    out["school_lags_4"] = ("t", school[0] + school[1] + school[2] + school[3])


def _weather_features(out: dict[str, tuple[str, Array]], known: KnownWeather, axis: _Days, at: Index) -> None:
    """The weather forecast, and how it differs from the weather of the days that the expected count is made of."""
    temperature, rain, wind = known.forecast
    seen_temperature, seen_rain, seen_wind = known.observed
    near, seen_near = _rain_near(rain), _rain_near(seen_rain)
    day_rain, seen_day_rain = _day_rain(rain), _day_rain(seen_rain)
    day_temperature, seen_day_temperature = _day_temperature(temperature), _day_temperature(seen_temperature)
    out["temperature"] = ("nlh", temperature)
    out["feels_like"] = ("nlh", feels_like(temperature, wind))
    out["temperature_day"] = ("nl", day_temperature)
    out["rain_hour"] = ("nlh", np.log1p(rain))
    out["rain_near"] = ("nlh", near)
    out["rain_day"] = ("nl", day_rain)
    out["wind"] = ("nlh", wind)
    before, so_far = np.zeros_like(rain), np.zeros(rain.shape[:-1])
    for hour in range(6, 24):
        before[..., hour] = so_far
        so_far = so_far + np.nan_to_num(rain[..., hour])
    out["rain_before"] = ("nlh", np.where(np.isnan(rain), np.nan, np.log1p(before)))
    for name, coming, seen in (
        ("temperature_excess", temperature, seen_temperature),
        ("rain_near_excess", near, seen_near),
        ("wind_excess", wind, seen_wind),
    ):
        out[name] = ("nlh", coming - _usual(seen, axis, at))
    for name, coming, seen in (
        ("temperature_day_excess", day_temperature, seen_day_temperature),
        ("rain_day_excess", day_rain, seen_day_rain),
    ):
        out[name] = ("nl", coming - _usual(seen[:, None], axis, at)[..., 0])
    month_temperature, month_rain = _Mean((len(at),)), _Mean((len(at),))
    for k in range(2, 29):
        month_temperature.add(*_known(seen_day_temperature[at - k]))
        month_rain.add(*_known(seen_day_rain[at - k]))
    out["yesterday_temperature_excess"] = ("n", seen_day_temperature[at - 1] - month_temperature.result())
    out["yesterday_rain_day"] = ("n", seen_day_rain[at - 1])
    out["yesterday_rain_day_excess"] = ("n", seen_day_rain[at - 1] - month_rain.result())


def _rain_near(rain: Array) -> Array:
    """log(1 + mm) of the hour and its neighbours of the same day."""
    total = np.nan_to_num(rain)
    around = total.copy()
    around[..., 1:] += total[..., :-1]
    around[..., :-1] += total[..., 1:]
    return np.asarray(np.where(np.isnan(rain), np.nan, np.log1p(around)))


def _day_rain(rain: Array) -> Array:
    """log(1 + mm) of the hours people ride in, 7 to 22; unknown where most of them are."""
    day = rain[..., 7:22]
    known = np.sum(~np.isnan(day), axis=-1)
    return np.asarray(np.where(known >= 8, np.log1p(_sum_hours(day, range(15))), np.nan))


def _day_temperature(temperature: Array) -> Array:
    return _mean_hours(temperature[..., 7:22], range(15))


def _usual(seen: Array, axis: _Days, at: Index) -> Array:
    """Mean of an observed quantity [day, hour] over the days that the expected count of a target rests on.

    Half of it are the same weekdays of six weeks, half recent days of the same type, weighted as in `expected`.

    Returns:
        [issue, day ahead, hour].
    """
    shape = (len(at), MAX_HORIZON, seen.shape[1])
    target = at[:, None] + np.arange(MAX_HORIZON)[None]
    weeks = _Mean(shape)
    ordinary, ordinary_known = _known(np.where(axis.public[:, None] > 0, np.nan, seen))
    for k in range(1, 7):
        weeks.add(ordinary[target - 7 * k], ordinary_known[target - 7 * k], 0.8**k)
    kinds, issue = _Mean((3, len(at), seen.shape[1])), np.arange(len(at))
    for k in range(1, _TYPE_WINDOW + 1):
        day, kind = seen[at - k], axis.day_type[at - k]
        known = ~np.isnan(day)
        kinds.total[kind, issue] += np.where(known, day, 0.0) * 0.5 ** (k / 10)
        kinds.weight[kind, issue] += known * 0.5 ** (k / 10)
    week, same = weeks.result(), kinds.result()[axis.day_type[target], issue[:, None]]
    return np.asarray(np.where(np.isnan(week), same, np.where(np.isnan(same), week, 0.5 * (week + same))))


def _emit(
    values: dict[str, tuple[str, Array]],
    names: list[str],
    issues: list[date],
    horizons: list[int],
    axis: _Days,
    present: NDArray[np.bool_],
    tz: str,
) -> pl.DataFrame:
    """The feature table: for each issue date and counter, the real hours of the target days in order.

    What an issue date knows is a grid [counter, day ahead, hour of the wall clock]; its rows are that grid, but for
    the hours that a change of the clock leaves out or shows twice.
    """
    hours = {day: pl.Series(hours_of_day(day, tz), dtype=UTC_TIMESTAMP) for day in axis.days[LOOKBACK_DAYS:]}
    walls = {day: times.dt.convert_time_zone(tz).dt.hour().to_numpy() for day, times in hours.items()}
    stamps, horizon, slots, chosen = [], [], [], []
    for i, issue in enumerate(issues):
        days = [target_date(issue, h) for h in horizons]
        stamps.append(np.concatenate([hours[day].to_physical().to_numpy() for day in days]))
        horizon.append(np.repeat(np.array(horizons, dtype=np.int32), [len(hours[day]) for day in days]))
        slots.append(np.concatenate([24 * n + walls[day].astype(np.int64) for n, day in enumerate(days)]))
        chosen.append(np.flatnonzero(present[:, i]))
    sizes = [len(counters) * len(slot) for counters, slot in zip(chosen, slots, strict=True)]
    ends = np.cumsum(sizes)
    columns = {name: np.empty(ends[-1], dtype=np.float32) for name in FEATURE_COLUMNS}
    ahead = np.array(horizons, dtype=np.int64) - 1
    for i, (counters, slot) in enumerate(zip(chosen, slots, strict=True)):
        grid = (len(counters), len(ahead), 24)
        rows = slice(ends[i] - sizes[i], ends[i])
        ordinary = np.array_equal(slot, np.arange(24 * len(ahead)))
        target = (issues[i] - issues[0]).days + ahead
        counter = slice(None)
        index: dict[str, Any] = {  # into what broadcasts to [counter, day ahead, hour]
            "ih": (counter, i, None),
            "i": (counter, i, None, None),
            "th": (counter, target),
            "kh": (counter, axis.day_type[LOOKBACK_DAYS + target], i),
            "n": i,
            "nh": i,
            "nth": target,
            "t": (target, None),
            "nlh": (i, ahead),
            "nl": (i, ahead, None),
            "l": (ahead, None),
            "h": ...,
        }
        for name, column in columns.items():
            axes, array = values[name]
            known = array[index[axes]]
            if axes in _COUNTER_AXES and len(counters) < len(names):
                known = known[counters]
            if ordinary:
                column[rows].reshape(grid)[...] = known
            else:
                column[rows] = np.broadcast_to(known, grid).reshape(len(counters), -1)[:, slot].reshape(-1)
    each = list(zip(chosen, slots, stamps, horizon, strict=True))
    keys = {
        "service_date": pl.Series(issues, dtype=pl.Date).gather(np.repeat(np.arange(len(issues)), sizes)),
        "counter_id": pl.Series(names, dtype=pl.String).gather(
            np.concatenate([np.repeat(counters, len(slot)) for counters, slot, _, _ in each])
        ),
        "target_ts": pl.Series(
            np.concatenate([np.tile(times, len(counters)) for counters, _, times, _ in each])
        ).cast(UTC_TIMESTAMP),
        "horizon": pl.Series(np.concatenate([np.tile(h, len(counters)) for counters, _, _, h in each])),
    }
    return pl.DataFrame(
        keys | {name: pl.Series(column, nan_to_null=True) for name, column in columns.items()}
    )


def sample_rows(
    features: pl.DataFrame, fraction: float | Mapping[date, float], seed: int = 0
) -> pl.DataFrame:
    """A share of the rows, chosen by a hash of counter, issue date and target hour and never by their order.

    The same rows are chosen on every machine and whichever frame they stand in.

    Args:
        features: has counter_id, service_date and target_ts.
        fraction: share of rows to keep, 0 to 1; or that of each issue date.
        seed: another seed chooses other rows.
    """
    counters = features["counter_id"].unique()
    crc = {name: zlib.crc32(name.encode()) for name in counters}
    counter = features["counter_id"].replace_strict(crc, return_dtype=pl.UInt64).to_numpy().astype(np.uint64)
    issue = features["service_date"].to_physical().to_numpy().astype(np.int64).astype(np.uint64)
    hour = (features["target_ts"].dt.epoch("s").to_numpy().astype(np.int64) // 3600).astype(np.uint64)
    mixed = _mix(counter ^ _mix(issue ^ _mix(hour ^ _mix(np.full(len(hour), seed, dtype=np.uint64)))))
    share: float | Array
    if isinstance(fraction, Mapping):
        dates = features["service_date"]
        share = dates.replace_strict(dict(fraction), return_dtype=pl.Float64).to_numpy()
    else:
        share = fraction
    keep = (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53 < share
    kept = features.filter(pl.Series(keep))
    # Filtered text keeps the text of every row in memory; written anew, a sample is as small as it looks.
    return kept.with_columns(counter_id=pl.Series(kept["counter_id"].to_list(), dtype=pl.String))


def drop_weather(features: pl.DataFrame, share: float, seed: int = 0) -> pl.DataFrame:
    """The rows with their weather unknown on a share of the issue dates, so that a model learns to do without.

    Args:
        features: has service_date and `WEATHER_FEATURES`.
        share: share of issue dates, 0 to 1, chosen by a hash of the date.
        seed: another seed chooses other dates.
    """
    if share <= 0:
        return features
    issue = features["service_date"].to_physical().to_numpy().astype(np.int64).astype(np.uint64)
    mixed = _mix(issue ^ _mix(np.full(len(issue), seed, dtype=np.uint64)))
    gone = pl.Series((mixed >> np.uint64(11)).astype(np.float64) / 2.0**53 < share)
    return features.with_columns(
        pl.when(gone).then(None).otherwise(pl.col(name)).alias(name) for name in WEATHER_FEATURES
    )


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(value ^ (value >> np.uint64(31)), dtype=np.uint64)
