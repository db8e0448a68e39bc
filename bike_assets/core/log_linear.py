"""A log-linear regression of the factor between count and expectation: few parameters for what few days teach.

Belongs here: its terms, its fit, and what each input adds. Does not belong here: how it stands among families
(`bike_assets.core.families`).

What a day is like is common to all counters: of the squared error that trees leave, more than half goes if every day
is scaled by one factor. Days are few, rain has few shades, and trees cut them into steps; a regression with an effect
of rain for each part of the day, and of yesterday's surplus that fades with the days ahead, says the same with two
hundred numbers. It errs in other ways than trees, so their mean is better than either.

Poisson quasi-likelihood with a ridge penalty, by iteratively reweighted least squares (McCullagh and Nelder 1989).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bike_assets.core.correction import GREATEST_FACTOR, Array, column, corrected, expected
from bike_assets.core.features import COUNT_FEATURES, FEATURE_COLUMNS, sample_rows
from bike_assets.core.training import TrainConfig, row_weights

LOG_LINEAR_FILE = "log_linear.npz"

STEPS: Final = 5
"""Reweighted least squares: after as many nothing moves that a forecast would show."""

MAX_ROWS: Final = 60_000
"""Rows that are fitted; more are thinned by a hash: two hundred numbers need no more hours of the same days."""

LOWEST, HIGHEST = -2.5, 1.5
"""Ends of a correction on the logarithmic scale: a line would go on for ever."""

_COUNTS: Final = tuple(n for n in COUNT_FEATURES if n not in ("mean4", "seasonal_naive", "max_56d"))
_RATIOS: Final = (
    "own_ratio_1d",
    "own_ratio_2d",
    "own_ratio_3d",
    "own_ratio_7d",
    "own_ratio_evening",
    "network_ratio_1d",
    "network_ratio_7d",
    "level_ratio_7_28",
    "level_ratio_28_56",
    "weekend_ratio",
    "morning_share",
    "night_share",
)
_WEATHER: Final[Mapping[str, float]] = {
    "rain_near_excess": 1.0,
    "rain_day_excess": 1.0,
    "rain_hour": 1.0,
    "rain_before": 1.0,
    "temperature_excess": 5.0,
    "temperature_day_excess": 5.0,
    "wind_excess": 10.0,
}
"""Weather of the target, by what it is divided by."""
_YESTERDAY: Final[Mapping[str, float]] = {
    "yesterday_temperature_excess": 5.0,
    "yesterday_rain_day_excess": 1.0,
    "yesterday_rain_day": 1.0,
}
_PLAIN: Final = ("zero_share_1d", "zero_share_7d", "missing_share_7d")
_BAND_STARTS: Final = (6, 9, 12, 16, 20, 23)
_BANDS: Final = len(_BAND_STARTS)
"""Parts of the day; the last hour belongs to the night before six."""
_FADE_DAYS: Final = 2.5
_EXTREME: Final = 4.0
_BLOCK: Final = 1024


def terms(rows: pl.DataFrame) -> Iterator[tuple[str, Array]]:
    """Every term of the regression with the input it is made of; 0 where that is unknown.

    Always as many, in one order. Each value follows from its own row alone.
    """
    ahead, level, usual = column(rows, "horizon_days"), column(rows, "level_28d"), expected(rows)
    tomorrow, fading = (ahead == 1).astype(np.float64), np.exp((1 - ahead) / _FADE_DAYS)
    workday = (column(rows, "day_type") == 0).astype(np.float64)
    band = np.digitize(column(rows, "hour"), _BAND_STARTS) % _BANDS
    parts = [(band == i).astype(np.float64) for i in range(_BANDS)]

    for name in _COUNTS:
        yield name, _known(np.log((column(rows, name) + 0.02 * level + 0.3) / usual), 2.5)
    for name in _RATIOS:
        with np.errstate(invalid="ignore"):
            ratio = _known(np.log(np.clip(column(rows, name), 0.05, 10.0)), 1.5)
        yield name, ratio
        if name.startswith(("own", "network")):
            yield name, ratio * fading
            yield name, ratio * tomorrow

    for name, value in _weather(rows):
        yield name, value
        yield name, value * workday
        for part in parts:
            yield name, value * part
    for name, unit in _YESTERDAY.items():
        value = _known(column(rows, name) / unit)
        yield name, value
        yield name, value * workday
        yield name, value * fading

    school = column(rows, "is_school_holiday") - np.nan_to_num(column(rows, "school_lags_4")) / 4
    holidays = [
        (name, column(rows, name))
        for name in ("is_public_holiday", "is_bridge_day", "holiday_lag_1", "holiday_lags_4")
    ]
    for part in parts:
        yield "hour", part
        yield "hour", part * workday
        yield "is_school_holiday", school * part
        yield "is_school_holiday", school * part * workday
        for name, holiday in holidays:
            yield name, _known(holiday * part)
    weekday = column(rows, "weekday")
    for day in range(7):
        yield "weekday", (weekday == day).astype(np.float64)
    yield "horizon_days", ahead / 7
    for name in _PLAIN:
        yield name, _known(column(rows, name))
    dead = np.minimum(np.nan_to_num(column(rows, "dead_days")), 7.0) / 7.0
    yield "dead_days", dead
    yield "dead_days", dead * tomorrow


def _weather(rows: pl.DataFrame) -> Iterator[tuple[str, Array]]:
    """Weather of the target: how it differs from usual, and what only extremes do."""
    known = {name: _known(column(rows, name) / unit) for name, unit in _WEATHER.items()}
    yield from known.items()
    temperature = np.nan_to_num(column(rows, "temperature"), nan=12.0)
    rain = np.minimum(np.nan_to_num(column(rows, "rain_day")), 2.0)
    yield "temperature", np.maximum(temperature - 25.0, 0.0) / 5.0
    yield "temperature", np.maximum(3.0 - temperature, 0.0) / 5.0
    # Wet and near freezing: ice and snow, of which nothing else tells.
    yield "temperature", rain * np.clip(4.0 - temperature, 0.0, 6.0) / 6.0
    yield "temperature_excess", known["temperature_excess"] * (temperature > 22.0)
    yield "temperature_excess", known["temperature_excess"] * (temperature < 8.0)


def _table(values: list[Array]) -> Array:
    """A column of ones, then the values [row, 1 + term], written some rows at a time so that they stay in the cache."""
    table = np.ones((len(values[0]), 1 + len(values)))
    for start in range(0, len(table), _BLOCK):
        end = start + _BLOCK
        np.stack([value[start:end] for value in values], axis=1, out=table[start:end, 1:])
    return table


def _known(values: Array, most: float = _EXTREME) -> Array:
    return np.nan_to_num(np.clip(values, -most, most))


class LogLinearFamily:
    """The regression as a family of its own, and as the part that the default averages with its trees."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = dict(arrays)

    @classmethod
    def train(cls, rows: pl.DataFrame, config: TrainConfig) -> Self:
        """Fit the factor between count and expectation."""
        if rows.height > MAX_ROWS:
            rows = sample_rows(rows, MAX_ROWS / rows.height, config.seed)
        inputs = _table([value for _, value in terms(rows)])
        values = inputs[:, 1:]
        centre, deviation = values.mean(axis=0), values.std(axis=0)
        spread = np.where(deviation > 1e-9, deviation, 1.0)
        values -= centre
        values /= spread
        usual = expected(rows)
        target = np.clip(column(rows, "hourly_count") / usual, 0.0, GREATEST_FACTOR)
        # Weights hold the expectation: a factor counts for as much as the bicycles it is about.
        weight = usual / column(rows, "level_28d") * row_weights(rows, config)
        weight /= weight.mean()
        penalty = np.diag([0.0, *np.full(inputs.shape[1] - 1, config.linear_ridge)])
        coefficients, weighted = np.zeros(inputs.shape[1]), np.empty_like(inputs)
        for _ in range(STEPS):
            logs = np.clip(inputs @ coefficients, -3.0, 2.0)
            factor = np.exp(logs)
            root = np.sqrt(weight * factor)
            np.multiply(inputs, root[:, None], out=weighted)
            # A matrix by itself: half of the work.
            normal = weighted.T @ weighted + penalty
            pulled = weighted.T @ (root * (logs + (target - factor) / factor))
            coefficients = np.asarray(np.linalg.solve(normal, pulled), dtype=np.float64)
        return cls({"centre": centre, "spread": spread, "coefficients": coefficients})

    def correction(self, rows: pl.DataFrame) -> Array:
        """The logarithm of the factor, within its ends."""
        total = np.full(rows.height, self._arrays["coefficients"][0])
        # Term by term, so that a row's sum is the same whatever rows stand beside it.
        for _, added in self._added(rows):
            total += added
        return np.asarray(np.clip(total, LOWEST, HIGHEST))

    def contributions(self, rows: pl.DataFrame) -> Array:
        """What every input adds to the correction [row, feature of FEATURE_COLUMNS and the constant last].

        Where the correction ends at `LOWEST` or `HIGHEST`, all parts are scaled so that they sum to it.
        """
        parts = np.zeros((rows.height, len(FEATURE_COLUMNS) + 1))
        parts[:, -1] = self._arrays["coefficients"][0]
        for name, added in self._added(rows):
            parts[:, _PLACE[name]] += added
        total = parts.sum(axis=1)
        within = np.clip(total, LOWEST, HIGHEST)
        return np.asarray(
            parts * np.where(total == within, 1.0, within / np.where(total == 0, 1.0, total))[:, None]
        )

    def _added(self, rows: pl.DataFrame) -> Iterator[tuple[str, Array]]:
        scaled = zip(
            terms(rows),
            self._arrays["centre"],
            self._arrays["spread"],
            self._arrays["coefficients"][1:],
            strict=True,
        )
        for (name, value), centre, spread, coefficient in scaled:
            yield name, (value - centre) / spread * coefficient

    def forecast(self, rows: pl.DataFrame, config: TrainConfig) -> Array:
        """Expected count of every row."""
        return corrected(rows, self.correction(rows), config)

    def save(self, folder: Path) -> None:
        """Write `log_linear.npz`."""
        np.savez(folder / LOG_LINEAR_FILE, **self._arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `log_linear.npz`."""
        with np.load(folder / LOG_LINEAR_FILE, allow_pickle=False) as stored:
            return cls({name: stored[name] for name in ("centre", "spread", "coefficients")})

    def importance(self) -> Mapping[str, float]:
        """Share of the sum of coefficients (of standardised terms, without sign) that an input's terms have."""
        weights = np.zeros(len(FEATURE_COLUMNS))
        for (name, _), coefficient in zip(terms(_NO_ROWS), self._arrays["coefficients"][1:], strict=True):
            weights[_PLACE[name]] += abs(coefficient)
        return dict(zip(FEATURE_COLUMNS, (weights / max(weights.sum(), 1e-12)).tolist(), strict=True))


_PLACE: Final = {name: i for i, name in enumerate(FEATURE_COLUMNS)}
_NO_ROWS: Final = pl.DataFrame(schema=dict.fromkeys(FEATURE_COLUMNS, pl.Float32))
