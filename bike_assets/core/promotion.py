"""Champion or challenger: who serves from now on, and why.

Belongs here: the promotion decision as a pure function of two models' errors on the same rows. Does not
belong here: scoring the models, moving an alias, writing a bundle.
"""

from dataclasses import dataclass
from datetime import date
from math import isclose, isfinite
from typing import Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bike_assets.core.errors import ContractError, PermanentError

Decision = Literal[
    "promote",
    "first_champion",
    "below_floor",
    "no_gain",
    "not_significant",
    "cannot_judge",
    "awaits_approval",
]
"""Every answer there is. Only `promote` and `first_champion` move the alias."""

NO_GAIN: Final[tuple[Decision, ...]] = ("below_floor", "no_gain", "not_significant")
"""Answers that say that a challenger is no better than the champion it was held against."""

_EXACT_DAYS = 14  # 2^14 sign patterns are cheap; beyond that they are drawn
_DRAWS = 20_000


@dataclass(frozen=True)
class DayError:
    """One model's error on one local day: rows scored and the sum of squared errors (bicycles²)."""

    day: date
    n: int
    squared_error: float


@dataclass(frozen=True)
class WindowScore:
    """One model's errors on one window.

    `total_squares` is Σ(truth − mean truth)² over all rows of the window, so that R² is that of the window
    and not a mean over days.
    """

    days: tuple[DayError, ...]
    total_squares: float

    def __post_init__(self) -> None:
        values = [self.total_squares, *(day.squared_error for day in self.days)]
        if not all(isfinite(value) and value >= 0 for value in values):
            raise ContractError(
                "promotion: a squared error is NaN, infinite or negative; score the window again"
            )
        dates = [day.day for day in self.days]
        if len(set(dates)) < len(dates):
            raise ContractError("promotion: a day stands twice in a window; sum the errors of a day first")

    @property
    def n(self) -> int:
        """Rows scored."""
        return sum(day.n for day in self.days)

    @property
    def r2(self) -> float | None:
        """Coefficient of determination, 1 − SSE/SST; None where the truth does not vary or is missing."""
        if self.total_squares == 0:
            return None
        return 1.0 - sum(day.squared_error for day in self.days) / self.total_squares


@dataclass(frozen=True)
class WindowScores:
    """One model on the two windows: the fixed baseline window and the current one. It trained on neither.

    `baseline` is None for a champion that learned from the window, as one does that is older than the window.
    """

    baseline: WindowScore | None
    current: WindowScore


@dataclass(frozen=True)
class PromotionPolicy:
    """When a challenger replaces the champion.

    `floor_r2`: R² on the baseline window that every champion reaches. `margin_r2`: least gain in R² on the
    current window. `p_value`: level of the one-sided paired test over days. `min_days`: days of truth each
    window needs. `require_approval`: a person has the last word.
    """

    floor_r2: float = 0.60
    margin_r2: float = 0.02
    p_value: float = 0.05
    min_days: int = 7
    require_approval: bool = False
    seed: int = 20_240_101

    def __post_init__(self) -> None:
        if not (isfinite(self.floor_r2) and self.floor_r2 < 1):
            raise PermanentError(f"promotion policy: floor_r2 is {self.floor_r2}; give a number below 1")
        if not (isfinite(self.margin_r2) and self.margin_r2 >= 0):
            raise PermanentError(f"promotion policy: margin_r2 is {self.margin_r2}; give 0 or more")
        if not 0 < self.p_value < 1:
            raise PermanentError(
                f"promotion policy: p_value is {self.p_value}; give a number between 0 and 1"
            )
        if self.min_days < 1:
            raise PermanentError(f"promotion policy: min_days is {self.min_days}; give 1 or more")


@dataclass(frozen=True)
class PromotionDecision:
    """The decision, its reasons in words, and the numbers it rests on (None: not known or not needed)."""

    promote: bool
    decision: Decision
    reasons: tuple[str, ...]
    baseline_r2: float | None
    champion_baseline_r2: float | None
    challenger_r2: float | None
    champion_r2: float | None
    gain_r2: float | None
    p_value: float | None
    n_days: int


def window_score(scored: pl.DataFrame) -> WindowScore:
    """Sum one model's errors by local day.

    Args:
        scored: one row a scored hour: `day` (Date), `truth` and `forecast` (bicycles an hour). Rows without
            truth are left out.

    Raises:
        ContractError: a column is missing, or a row with truth has no finite forecast.
    """
    missing = [name for name in ("day", "truth", "forecast") if name not in scored.columns]
    if missing:
        raise ContractError(f"promotion: column {', '.join(missing)} is missing from the scored rows")
    rows = scored.select("day", pl.col("truth", "forecast").cast(pl.Float64)).drop_nulls("truth")
    if odd := rows.filter(~pl.col("forecast").is_finite().fill_null(False)).height:
        raise ContractError(f"promotion: {odd:,} rows with truth have no finite forecast")
    days = (
        rows.group_by("day")
        .agg(n=pl.len(), squared_error=((pl.col("truth") - pl.col("forecast")) ** 2).sum())
        .sort("day")
    )
    truth = rows.get_column("truth").to_numpy()
    total = float(np.square(truth - truth.mean()).sum()) if truth.size else 0.0
    return WindowScore(tuple(DayError(*row) for row in days.iter_rows()), total)


def sign_flip_p_value(differences: NDArray[np.float64], seed: int) -> float:
    """One-sided paired permutation test: how likely a sum at least this large is if each sign were a coin's.

    Exact for up to 14 differences, else 20,000 seeded draws with the observed pattern counted among them
    (Phipson & Smyth 2010), so that the answer is never 0.

    Args:
        differences: champion's minus challenger's loss, one value a day: above 0 where the challenger is
        better.
    """
    observed = float(differences.sum())
    # Equal sums must count as equal although they are added in another order.
    bound = observed - 1e-9 * float(np.abs(differences).sum())
    if differences.size <= _EXACT_DAYS:
        patterns = np.arange(2**differences.size)[:, None] >> np.arange(differences.size)
        signs = (patterns & 1) * 2.0 - 1.0
        return float((signs @ differences >= bound).mean())
    generator = np.random.default_rng(seed)
    signs = generator.integers(0, 2, size=(_DRAWS, differences.size)) * 2.0 - 1.0
    return float((1 + (signs @ differences >= bound).sum()) / (1 + _DRAWS))


def decide_promotion(
    challenger: WindowScores,
    champion: WindowScores | None,
    policy: PromotionPolicy | None = None,
    *,
    approved: bool = False,
) -> PromotionDecision:
    """Decide whether the challenger becomes champion.

    The gates, in order: enough truth in the baseline window; R² ≥ floor there; and against a champion:
    enough truth in the current window, a gain in R² of at least the margin, and a paired test over days
    that calls the gain real. Without a champion the floor alone decides: some honest forecast is better
    than none.

    Args:
        challenger: the new model's errors.
        champion: the serving model's errors on exactly the same rows; None where nothing serves yet.
        policy: thresholds; defaults where None.
        approved: a person has agreed to this challenger (heeded only where the policy asks for it).

    Raises:
        ContractError: the two models were not scored on the same rows.
    """
    policy = policy or PromotionPolicy()
    if champion is not None:
        if challenger.baseline is not None and champion.baseline is not None:
            _same_rows(challenger.baseline, champion.baseline, "baseline")
        _same_rows(challenger.current, champion.current, "current")

    floor_r2 = challenger.baseline.r2 if challenger.baseline is not None else None
    old_floor_r2 = champion.baseline.r2 if champion is not None and champion.baseline is not None else None
    new_r2 = challenger.current.r2
    old_r2 = champion.current.r2 if champion is not None else None
    # Rounded, so that 0.82 − 0.80 reaches a margin of 0.02.
    gain = round(new_r2 - old_r2, 9) if new_r2 is not None and old_r2 is not None else None
    p_value: float | None = None
    reasons: list[str] = []

    def answer(decision: Decision, reason: str) -> PromotionDecision:
        reasons.append(reason)
        if decision in ("promote", "first_champion") and policy.require_approval and not approved:
            decision = "awaits_approval"
            reasons.append("a person has to approve it first: bike-assets champion approve")
        return PromotionDecision(
            promote=decision in ("promote", "first_champion"),
            decision=decision,
            reasons=tuple(reasons),
            baseline_r2=floor_r2,
            champion_baseline_r2=old_floor_r2,
            challenger_r2=new_r2,
            champion_r2=old_r2,
            gain_r2=gain,
            p_value=p_value,
            n_days=len(challenger.current.days),
        )

    if challenger.baseline is None:
        return answer("cannot_judge", "the challenger learned from the baseline window; train it again")
    if floor_r2 is None or len(challenger.baseline.days) < policy.min_days:
        return answer("cannot_judge", _too_little("baseline", challenger.baseline, policy))
    if floor_r2 < policy.floor_r2:
        return answer("below_floor", f"baseline R² {floor_r2:.3f} is below the floor {policy.floor_r2:.2f}")
    reasons.append(f"baseline R² {floor_r2:.3f} reaches the floor {policy.floor_r2:.2f}")
    if champion is None:
        return answer("first_champion", "no model serves yet")
    if gain is None or len(challenger.current.days) < policy.min_days:
        return answer("cannot_judge", _too_little("current", challenger.current, policy))
    change = f"current R² {new_r2:.3f} against {old_r2:.3f}: a change of {gain:+.3f}"
    if gain < policy.margin_r2:
        return answer("no_gain", f"{change}, below the margin {policy.margin_r2:.3f}")
    reasons.append(f"{change} reaches the margin {policy.margin_r2:.3f}")
    p_value = sign_flip_p_value(_daily_gain(challenger.current, champion.current), policy.seed)
    verdict = f"paired test over {len(challenger.current.days)} days: p = {p_value:.4f}"
    if p_value > policy.p_value:
        return answer("not_significant", f"{verdict}, above {policy.p_value:.3f}")
    return answer("promote", f"{verdict}, at most {policy.p_value:.3f}")


def _daily_gain(challenger: WindowScore, champion: WindowScore) -> NDArray[np.float64]:
    # Sums and not means of a day: their total is then exactly the gain in R² times SST.
    new = {day.day: day.squared_error for day in challenger.days}
    return np.array([day.squared_error - new[day.day] for day in champion.days], dtype=np.float64)


def _same_rows(challenger: WindowScore, champion: WindowScore, window: str) -> None:
    same_days = {day.day: day.n for day in challenger.days} == {day.day: day.n for day in champion.days}
    same_truth = isclose(challenger.total_squares, champion.total_squares, rel_tol=1e-9, abs_tol=1e-9)
    if not (same_days and same_truth):
        raise ContractError(
            f"promotion: challenger and champion were scored on different rows of the {window} window; "
            "score both on the same rows"
        )


def _too_little(window: str, score: WindowScore, policy: PromotionPolicy) -> str:
    if len(score.days) < policy.min_days:
        return f"{len(score.days)} days of truth in the {window} window, {policy.min_days} are needed"
    return f"the truth of the {window} window does not vary: R² is undefined"
