"""Has a model lost the skill it had when it was trained? The drift that counts, because people see it.

Belongs here: comparing the skill of two sets of days, and which rows it is fair to compare. Does not belong here:
measuring errors (`metrics`), what follows (`retraining`).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

DAY_ERRORS: Final = (
    "service_date",
    "squared_error",
    "baseline_squared_error",
    "hours",
    "count_sum",
    "count_square_sum",
)
"""Columns of a model's errors on local days: the day forecast; the sums of squared errors of the model and of the
mean of four weeks on the same hours (bicycles²); the hours, their counts and the squares of these."""

MIN_DAYS: Final = 14
"""With fewer days on either side nothing is said."""

BASELINE_WEEKS: Final = 4
"""Weeks before a day that its baseline, the mean of four weeks, is made of."""

_BLOCK_DAYS = 7  # days of a week err together
_DRAWS = 4000


@dataclass(frozen=True)
class SkillChange:
    """Skill of a model on its held-out days and lately, each 1 − RMSE / RMSE of the baseline.

    `p_value` is the chance of a fall as large if the skill had not fallen. `error_rise` is the share by which the RMSE
    over the standard deviation of the counts (RSR, Moriasi et al. 2007) rose: skill falls in calm weeks too, in which
    the baseline gets better and the model no worse. All are None where either has too few days.
    """

    held_out: float | None
    lately: float | None
    p_value: float | None
    days: int
    error_rise: float | None = None

    @property
    def fall(self) -> float | None:
        """How much skill was lost; below 0 where it grew."""
        return None if self.held_out is None or self.lately is None else self.held_out - self.lately


def skill_change(held_out: pl.DataFrame, lately: pl.DataFrame, *, seed: int = 20_240_101) -> SkillChange:
    """Compare a model's skill lately with that on the days its training left out.

    The fall is tested against a moving-block bootstrap of whole weeks (Künsch 1989), centred, so that good and bad
    weeks of either side do not pass for a change.

    Args:
        held_out: `DAY_ERRORS` of the held-out days.
        lately: `DAY_ERRORS` of the days whose truth has arrived since.
        seed: of the bootstrap.
    """
    before, now = (
        frame.sort("service_date").select(DAY_ERRORS[1:]).cast(pl.Float64).to_numpy()
        for frame in (held_out, lately)
    )
    days = len(now)
    if min(len(before), days) < MIN_DAYS or 0 in (before[:, 1].sum(), now[:, 1].sum()):
        return SkillChange(None, None, None, days)
    was, has = float(_skill(before.sum(axis=0))), float(_skill(now.sum(axis=0)))
    draw = np.random.default_rng(seed)
    change = _skill(_resampled(now[:, :2], draw)) - _skill(_resampled(before[:, :2], draw))
    noise = change - change.mean()
    error = _error_to_spread(before.sum(axis=0))
    rise = _error_to_spread(now.sum(axis=0)) / error - 1 if error > 0 else None
    return SkillChange(was, has, float(np.mean(noise <= has - was)), days, rise)


def _error_to_spread(sums: NDArray[np.float64]) -> float:
    """RMSE over the standard deviation of the counts, from sums of `DAY_ERRORS`; 0 where the counts never change."""
    squared_error, _, hours, total, squares = sums
    spread = squares - total**2 / hours
    return float(np.sqrt(squared_error / spread)) if spread > 0 else 0.0


def fairly_based(scored: pl.DataFrame, impossible: pl.DataFrame) -> pl.DataFrame:
    """The rows whose baseline, the mean of the same hour in the four weeks before, is made of possible counts alone.

    One count of 5,000 makes the baseline of a small counter so bad for four weeks that any model has skill against it.

    Args:
        scored: day-ahead forecasts, has `service_date` and `counter_id`.
        impossible: `service_date` and `counter_id` of the counts that were impossible.
    """
    days = [
        impossible.select("counter_id", pl.col("service_date").dt.offset_by(f"{7 * week}d"))
        for week in range(1, BASELINE_WEEKS + 1)
    ]
    return scored.join(pl.concat(days), on=["counter_id", "service_date"], how="anti")


def _skill(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 - np.sqrt(sums[..., 0] / sums[..., 1]))


def _resampled(days: NDArray[np.float64], draw: np.random.Generator) -> NDArray[np.float64]:
    """[draw, error] sums over days drawn in blocks of a week, which may begin on any day and go round at the end."""
    blocks = -(-len(days) // _BLOCK_DAYS)
    start = draw.integers(len(days), size=(_DRAWS, blocks, 1))
    chosen = ((start + np.arange(_BLOCK_DAYS)) % len(days)).reshape(_DRAWS, -1)[:, : len(days)]
    return np.asarray(days[chosen].sum(axis=1))
