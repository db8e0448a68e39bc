"""The network's level day by day, what was to be expected of it, and whether it has left that.

Belongs here: one number a day for the whole city and its expectation from calendar, season and weather. Does not
belong here: single counters (`health`), columns and reports (`drift`).

The level of a day is the median over counters of log(count / the counter's own usual day of that kind), so that no
counter's outage, opening or loss moves it. It is expected by a linear regression with prior knowledge of cities (a
Bayesian one, Gelman et al. 2013, ch. 14), because half a year of history cannot tell a summer from a trend: what the
data do not know stays uncertain, and widens the test instead of raising an alarm. Days after one another resemble each
other, so errors have a part that lasts, AR(1), and one of the day alone; holidays differ more than other days; days far
off (strikes, storms) are weighed down (Huber 1964) and do not teach the
regression.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bike_assets.core.calendar import calendar_table, local_columns
from bike_assets.core.health import State

HISTORY_DAYS: Final = 400
"""Days before a window that its expectation is learned from, if there are so many."""

MIN_HISTORY_DAYS: Final = 84
"""With fewer days nothing is expected."""

RECENT_DAYS: Final = 91
"""Days before a window whose level may differ from that of the year: a city that has changed for good is not news."""

SCANNED_DAYS: Final = 14
"""Days in which a step is looked for."""

ENDS: Final = 7
"""A step is looked for up to each of this many last days: what was over by the weekend is found on Monday too."""

SHORTEST_SHIFT: Final = 3
"""Days that a step lasts at least: a day of snow is none."""

_DAYS_BEFORE: Final = 7

SLOW_DAYS: Final = 28
"""Last days of a shift that grows, which say how far it has come."""

GROWING_DAYS: Final[dict[Literal["slow", "trend"], int]] = {"slow": 56, "trend": 112}
"""Days over which a shift has grown that is slow or a trend; nothing is learned from them. Half a percent a day drowns
in a city's own two months and has added up in four."""

_MIN_COUNTERS: Final = 3
_MIN_KNOWN_HOURS: Final = 20
_DAYTIME: Final = (7, 20)
_HUBER: Final = 1.5
_ROUNDS: Final = 4
# A day's error in a city whose weather is known, and the days that is worth.
_SPREAD_PRIOR: Final = (0.15, 20.0)
# Memory of the errors, share of a day alone, and how sure that is.
_MEMORY_PRIOR: Final = (0.7, 0.15, 60.0)
_MEMORIES: Final = np.arange(0.4, 0.91, 0.05)
_OWN_SHARES: Final = np.array([0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5])
_SPECIAL_SPREAD: Final = 0.15  # by which holidays differ from one another

_FEASTS: Final = ((12, 24), (12, 25), (12, 26), (12, 31), (1, 1))

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

_PRIORS: Final[dict[str, tuple[float, float]]] = {
    # effect on the logarithm of the level: prior mean and standard deviation
    "level": (0.0, 1.0),
    "recent": (0.0, 0.10),
    "trend": (0.03, 0.08),
    "season_cos": (-0.18, 0.08),
    "season_sin": (0.0, 0.08),
    "season_cos2": (0.0, 0.05),
    "season_sin2": (0.0, 0.05),
    "tuesday": (0.0, 0.2),
    "wednesday": (0.0, 0.2),
    "thursday": (0.0, 0.2),
    "friday": (0.0, 0.2),
    "saturday": (0.0, 0.4),
    "sunday": (0.0, 0.4),
    "public_holiday": (-0.4, 0.3),
    "bridge": (-0.15, 0.15),
    "school_holiday": (-0.1, 0.1),
    "august": (-0.30, 0.15),
    "before_august": (0.0, 0.10),  # cities differ in when they leave
    "late_august": (0.0, 0.10),  # and return
    "september": (0.10, 0.08),
    "christmas": (-0.45, 0.25),
    "feast": (-0.5, 0.3),
    "warmth": (0.02, 0.015),
    "rain": (-0.10, 0.06),
}


@dataclass(frozen=True)
class Network:
    """The network's level on consecutive days; NaN where fewer than three counters tell of it.

    `inputs` is [day, effect] in the order of `_PRIORS`; its columns of weather are 0 where nothing is known.
    """

    days: tuple[date, ...]
    level: Floats
    inputs: Floats


@dataclass(frozen=True)
class Shift:
    """How far the level was from what was expected, over the days from `first` to `last`.

    `change` is the ratio to what was expected (0.6: two fifths fewer), `z` its logarithm in standard deviations of
    what chance and ignorance explain. `kind` is `sudden` (a step on the first day), `slow` (two months that moved away)
    or `trend` (four).
    """

    kind: Literal["sudden", "slow", "trend"]
    first: date
    last: date
    change: float
    z: float


def network(daily: pl.DataFrame, days: Sequence[date], weather: pl.DataFrame | None = None) -> Network:
    """The level of the days, and what is known of them.

    Args:
        daily: `counter_id`, `service_date`, `daily_count` of counters on days they were to be believed.
        days: consecutive local days.
        weather: observed hours: `ts_utc`, `temperature_c`, `rain_mm`; None where unknown.
    """
    return Network(tuple(days), network_level(daily, days), _inputs(days, weather))


def believable_days(health: pl.DataFrame) -> pl.DataFrame:
    """The counters and days of COUNTER_HEALTH that tell of the network: alive or drifting, counted all but whole."""
    return health.filter(
        pl.col("state").is_in([State.ALIVE, State.DRIFTING]) & (pl.col("known_hours") >= _MIN_KNOWN_HOURS)
    )


def network_level(daily: pl.DataFrame, days: Sequence[date]) -> Floats:
    """The level of each day: rows and counters polished by medians in turn (Tukey 1977), so that it does not matter
    which counters were there.

    Args:
        daily: `counter_id`, `service_date`, `daily_count`.
        days: consecutive local days; rows of others are left out.

    Returns:
        [day], logarithmic, around 0; NaN where fewer than three counters tell of the day.
    """
    rows = daily.drop_nulls("daily_count").filter(pl.col("service_date").is_between(days[0], days[-1]))
    names = rows["counter_id"].unique().sort()
    if not names.len():
        return np.full(len(days), np.nan)
    counter = rows["counter_id"].cast(pl.Enum(names)).to_physical().to_numpy()
    day = (rows["service_date"] - days[0]).dt.total_days().to_numpy()
    logs = np.full((names.len(), len(days)), np.nan)
    logs[counter, day] = np.log(rows["daily_count"].to_numpy().astype(np.float64) + 2.0)
    kind = np.array([max(each.weekday() - 4, 0) for each in days])  # working day, Saturday, Sunday
    level = np.zeros(len(days))
    for _ in range(3):
        usual = np.full(logs.shape, np.nan)
        for each in range(3):
            there = kind == each
            usual[:, there] = _median(logs[:, there] - level[there], axis=1)[:, None]
        level = np.nan_to_num(_median(logs - usual, axis=0))
    few = (~np.isnan(logs)).sum(axis=0) < _MIN_COUNTERS
    return np.where(few, np.nan, level)


def sudden_shifts(history: Network, last: date) -> list[Shift]:
    """Steps of the level in the last two weeks: from any day to any of the last seven, three days long at least.

    The generalised likelihood ratio of a step (Willsky and Jones 1976), by generalised least squares over the two weeks
    and the one before them: a jump against the days before, and the way back, say more than a level against the year.
    Nothing is learned from the three weeks. Strikes are steps of working days alone. A step away from what was expected
    counts, a return to it does not.

    Args:
        history: the network up to `last` at least.
        last: the newest day to look at.
    """
    after = history.days.index(last) + 1
    start = after - SCANNED_DAYS - _DAYS_BEFORE
    seen = _Seen.of(history, start, after, learned_before=start)
    if seen is None:
        return []
    shifts = []
    working = np.array([day.weekday() < 5 for day in history.days[start:after]])
    newest = after - start - 1
    for first in range(_DAYS_BEFORE, newest - SHORTEST_SHIFT + 2):
        for end in range(max(first + SHORTEST_SHIFT - 1, newest - ENDS + 1), newest + 1):
            within = (seen.places >= first) & (seen.places <= end)
            days = history.days[start + first], history.days[start + end]
            for shape in (within, within & working[seen.places]):
                if shape.sum() < SHORTEST_SHIFT:
                    continue
                gap, z = seen.shift(shape)
                if gap * z > 0:
                    shifts.append(Shift("sudden", *days, float(np.exp(gap)), z))
    return shifts


def growing_shifts(history: Network, last: date) -> list[Shift]:
    """How far the last four weeks are from what the time up to eight, and up to sixteen, weeks before leads to expect.

    A shift that grows is looked for, evenly over the weeks: what moves a city slowly does not stop.

    Args:
        history: the network up to `last` at least.
        last: last day of the four weeks.

    Returns:
        One for each of `GROWING_DAYS` that has enough history before it, and days on which something was counted.
    """
    after = history.days.index(last) + 1
    shifts = []
    for kind, days in GROWING_DAYS.items():
        seen = _Seen.of(history, after - days, after, learned_before=after - days)
        if seen is None or (late := seen.places >= days - SLOW_DAYS).sum() < SLOW_DAYS // 2:
            continue
        _, z = seen.shift((seen.places + 1.0) / days)
        change = float(np.exp(seen.gap[late].mean()))
        shifts.append(Shift(kind, history.days[after - SLOW_DAYS], last, change, z))
    return shifts


def expected_level(history: Network, first: date, last: date) -> Floats:
    """[day] what the days before `first` lead to expect of the days from first to last; NaN with too little history."""
    start, after = history.days.index(first), history.days.index(last) + 1
    learned = _learned_before(history, start)
    if learned is None:
        return np.full(after - start, np.nan)
    return np.asarray(_as_recent(history.inputs[start:after]) @ learned.mean)


def _learned_before(history: Network, start: int) -> "_Learned | None":
    past = slice(max(0, start - HISTORY_DAYS), max(0, start))
    inputs = history.inputs[past].copy()
    inputs[-RECENT_DAYS:, _RECENT] = 1.0
    return _learn(history.level[past], inputs)


def _as_recent(inputs: Floats) -> Floats:
    marked = inputs.copy()
    marked[:, _RECENT] = 1.0
    return marked


@dataclass(frozen=True)
class _Noise:
    """Errors of days: their standard deviation, the memory from day to day, and the share of the variance that is of a
    day alone."""

    spread: float
    memory: float
    own: float

    def covariance(self, places: Places, more: Floats) -> Floats:
        """Of the days at the places, with more variance of each."""
        apart = np.abs(np.subtract.outer(places, places))
        lasting = (1 - self.own) * self.memory**apart
        return np.asarray(self.spread**2 * (lasting + self.own * np.eye(len(places))) + np.diag(more))

    def solve(self, columns: Floats, weight: Floats, more: Floats) -> Floats:
        """The inverse of the covariance of consecutive days times some columns, in time linear in the days.

        The inverse of an AR(1) covariance has three diagonals (Rue and Held 2005, ch. 1), so Woodbury's identity leaves
        one such system to solve.

        Args:
            columns: [day, column].
            weight: [day] 1 for a day like others, less for one far off, which has more variance of its own, and 0 for
                one of which nothing is known.
            more: [day] variance of its own beside that.
        """
        with np.errstate(divide="ignore"):
            alone = 1 / (self.spread**2 * (self.own + 1 / weight - 1) + more)
        step = (1 - self.own) * self.spread**2 * (1 - self.memory**2)
        diagonal = np.full(len(weight), (1 + self.memory**2) / step)
        diagonal[[0, -1]] = 1 / step
        beside = -self.memory / step
        right = alone[:, None] * columns
        inner = _three_diagonals(diagonal + alone, beside, right)
        return np.asarray(right - alone[:, None] * inner)


@dataclass(frozen=True)
class _Learned:
    """Posterior of the effects, and the errors of days around them."""

    mean: Floats
    covariance: Floats
    noise: _Noise


@dataclass(frozen=True)
class _Seen:
    """Days of a window that something is known of: their places in it, how far they are from what was expected, and the
    precision (inverse covariance) of that, what is not known of the effects included."""

    places: Places
    gap: Floats
    precision: Floats

    @classmethod
    def of(cls, history: Network, start: int, after: int, *, learned_before: int) -> "_Seen | None":
        """The days from `start` to before `after`, as the days before another lead to expect them."""
        learned = _learned_before(history, learned_before)
        if learned is None:
            return None
        inputs = _as_recent(history.inputs[start:after])
        gap = history.level[start:after] - inputs @ learned.mean
        places = np.flatnonzero(~np.isnan(gap))
        known = inputs[places]
        covariance = learned.noise.covariance(places, _own_ways(known)) + known @ learned.covariance @ known.T
        return cls(places, gap[places], np.asarray(np.linalg.inv(covariance), dtype=np.float64))

    def shift(self, shape: Floats | NDArray[np.bool_]) -> tuple[float, float]:
        """The mean gap over a shape, and the z of a shift of that shape and nothing else."""
        weights = self.precision @ shape
        return float(self.gap @ shape / shape.sum()), float(weights @ self.gap / np.sqrt(weights @ shape))


def _three_diagonals(diagonal: Floats, beside: float, right: Floats) -> Floats:
    """Solve a symmetric system with one number beside the diagonal, by elimination (Thomas)."""
    pivot, result = diagonal.copy(), right.copy()
    for day in range(1, len(pivot)):
        factor = beside / pivot[day - 1]
        pivot[day] -= factor * beside
        result[day] -= factor * result[day - 1]
    result[-1] /= pivot[-1]
    for day in range(len(pivot) - 2, -1, -1):
        result[day] = (result[day] - beside * result[day + 1]) / pivot[day]
    return result


def _own_ways(inputs: Floats) -> Floats:
    """[day] variance of the days that go their own way, each holiday another."""
    special = (inputs[:, _SPECIAL] != 0).any(axis=1)
    return np.where(special, _SPECIAL_SPREAD**2, 0.0)


_NAMES: Final = tuple(_PRIORS)
_RECENT: Final = _NAMES.index("recent")
_SPECIAL: Final = [_NAMES.index(name) for name in ("public_holiday", "bridge", "feast")]


def _learn(level: Floats, inputs: Floats) -> _Learned | None:
    known = ~np.isnan(level)
    if known.sum() < MIN_HISTORY_DAYS:
        return None
    prior_mean, prior_spread = np.array(list(_PRIORS.values())).T
    precision = np.diag(prior_spread**-2.0)
    found = np.where(known, level, 0.0)
    more = _own_ways(inputs)
    noise = _Noise(_SPREAD_PRIOR[0], *_MEMORY_PRIOR[:2])
    weight = np.where(known, 1.0, 0.0)
    for _ in range(_ROUNDS):
        solved = noise.solve(np.column_stack([inputs, found]), weight, more)
        gram = inputs.T @ solved[:, :-1] + precision
        mean = np.linalg.solve(gram, inputs.T @ solved[:, -1] + precision @ prior_mean)
        residual = found - inputs @ mean
        noise = _fitted(residual, np.where(more > 0, 0.0, weight))
        far = np.abs(residual) / (_HUBER * np.sqrt(noise.spread**2 + more))
        weight = np.where(known, 1 / np.maximum(far, 1.0), 0.0)
    return _Learned(mean, np.asarray(np.linalg.inv(gram), dtype=np.float64), noise)


def _fitted(residual: Floats, weight: Floats) -> _Noise:
    """Spread, memory and the share of a day alone that fit the residuals: the last two by their correlation over one to
    four days (least squares on a grid), drawn to what is known of cities."""
    usual, worth = _SPREAD_PRIOR
    spread = float(np.sqrt((worth * usual**2 + weight @ residual**2) / (worth + weight.sum())))
    memory, own = np.meshgrid(_MEMORIES, _OWN_SHARES, indexing="ij")
    usual_memory, usual_own, sureness = _MEMORY_PRIOR
    misfit = sureness * ((memory - usual_memory) ** 2 + (own - usual_own) ** 2)
    for lag in range(1, 5):
        pairs = weight[lag:] * weight[:-lag]
        correlation = pairs @ (residual[lag:] * residual[:-lag]) / max(pairs.sum(), 1.0) / spread**2
        misfit += pairs.sum() * (correlation - (1 - own) * memory**lag) ** 2
    best = np.unravel_index(misfit.argmin(), misfit.shape)
    return _Noise(spread, float(memory[best]), float(own[best]))


def _inputs(days: Sequence[date], weather: pl.DataFrame | None) -> Floats:
    """[day, effect], the columns of `_PRIORS`."""
    calendar = calendar_table(days)
    weekday = calendar["weekday"].to_numpy()
    number = np.array([day.toordinal() for day in days], dtype=np.float64)
    angle = 2 * np.pi * (np.array([day.timetuple().tm_yday for day in days]) - 20) / 365.25
    working = weekday < 5
    public = calendar["is_public_holiday"].to_numpy()
    august = np.array([_august(day) for day in days])
    month, day_of_month = (np.array([getattr(day, part) for day in days]) for part in ("month", "day"))
    columns: dict[str, Floats | NDArray[np.bool_]] = {
        "level": np.ones(len(days)),
        "recent": np.zeros(len(days)),
        "trend": (number - number[-1]) / 365.25,
        "season_cos": np.cos(angle),
        "season_sin": np.sin(angle),
        "season_cos2": np.cos(2 * angle),
        "season_sin2": np.sin(2 * angle),
        **{
            name: weekday == each
            for each, name in enumerate(
                ("tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"), 1
            )
        },
        "public_holiday": public & working,
        "bridge": calendar["is_bridge_day"].to_numpy(),
        "school_holiday": calendar["is_school_holiday"].to_numpy() & working & ~public,
        "august": august,
        "before_august": np.where(month == 7, august, 0.0),
        "late_august": np.where((month == 8) & (day_of_month > 15), 1 - august, 0.0),
        "september": np.array([day.month == 9 for day in days]),
        "christmas": np.array(
            [(day.month, day.day) >= (12, 23) or (day.month, day.day) <= (1, 2) for day in days]
        ),
        "feast": np.array([(day.month, day.day) in _FEASTS for day in days]),
        **_weather_effects(days, angle, weather),
    }
    return np.column_stack([np.asarray(columns[name], dtype=np.float64) for name in _NAMES])


def _august(day: date) -> float:
    """1 in the heart of August, less in the weeks in which a city leaves and returns."""
    offset = (day - date(day.year, 8, 1)).days
    return float(np.clip(min((offset + 17) / 14, (34 - offset) / 14), 0.0, 1.0))


def _weather_effects(days: Sequence[date], angle: Floats, weather: pl.DataFrame | None) -> dict[str, Floats]:
    """Degrees by which the daytime is warmer than the season, and the root of its rain (mm); 0 where unknown."""
    nothing = np.zeros(len(days))
    if weather is None or weather.is_empty():
        return {"warmth": nothing, "rain": nothing.copy()}
    daily = (
        local_columns(weather.select("ts_utc", "temperature_c", "rain_mm"))
        .filter(pl.col("local_hour").is_between(*_DAYTIME))
        .group_by("service_date")
        .agg(pl.col("temperature_c").mean(), pl.col("rain_mm").sum())
    )
    table = pl.DataFrame({"service_date": list(days)}).join(
        daily, on="service_date", how="left", maintain_order="left"
    )
    warm, rain = (table[name].to_numpy().astype(np.float64) for name in ("temperature_c", "rain_mm"))
    usual = 14.5 - 8.0 * np.cos(
        angle
    )  # the middle of a temperate city's year; the regression's season takes the rest
    return {"warmth": np.nan_to_num(warm - usual), "rain": np.nan_to_num(np.sqrt(rain))}


def _median(values: Floats, axis: int) -> Floats:
    """`numpy.nanmedian`, but quiet and quick: NaN where nothing is known."""
    ordered = np.sort(values, axis=axis)
    known = np.expand_dims((~np.isnan(values)).sum(axis=axis), axis)
    low = np.take_along_axis(ordered, np.maximum(known - 1, 0) // 2, axis)
    high = np.take_along_axis(ordered, np.minimum(known // 2, values.shape[axis] - 1), axis)
    return np.asarray(np.where(known > 0, 0.5 * (low + high), np.nan).squeeze(axis))
