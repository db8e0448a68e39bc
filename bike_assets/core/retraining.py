"""Retrain, wait, or leave alone: the decision matrix.

Belongs here: the retraining decision as a pure function of the champion's realised accuracy and the drift
of its inputs. Does not belong here: measuring either, starting a run, deciding on promotion.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from bike_assets.core.errors import ContractError, PermanentError

Decision = Literal[
    "retrain_forced",
    "retrain_reactive",
    "retrain_proactive",
    "wait",
    "fine",
    "cannot_judge",
    "cooldown",
    "tried",
    "over_budget",
    "not_worth_it",
]
"""Every answer there is. The three that begin with `retrain_` start a training."""


@dataclass(frozen=True)
class RetrainingPolicy:
    """The matrix's bounds.

    R² below `r2_critical` retrains at once; from there to below `r2_warning` it depends on the drift share:
    `drift_critical` and more retrains before accuracy falls further, `drift_warning` and more waits.
    `min_truth_rows` and `min_truth_days` are what a judgement needs. `cooldown_days` must have passed since
    the last training, and at most `max_trainings` are started in `budget_days`. Every hour that a training takes must
    promise a gain of `min_gain_per_hour` in R², unless accuracy is critical. `adaptive` puts bounds learned from
    history in the place of the four fixed ones (`bike_assets.core.thresholds`).

    For `no_gain_days` after a training whose model was no better than the champion, another is asked for only if
    accuracy is critical. The default is the four weeks whose truth a judgement looks at: before they are over, the next
    training learns from, and is judged by, much of what brought nothing the last time.
    """

    r2_critical: float = 0.65
    r2_warning: float = 0.70
    drift_warning: float = 0.30
    drift_critical: float = 0.50
    min_truth_rows: int = 500
    min_truth_days: int = 3
    cooldown_days: int = 7
    max_trainings: int = 4
    budget_days: int = 28
    min_gain_per_hour: float = 0.01
    no_gain_days: int = 28
    adaptive: bool = False

    def __post_init__(self) -> None:
        if not self.r2_critical <= self.r2_warning < 1:
            raise PermanentError(
                f"retraining policy: r2_critical {self.r2_critical} and r2_warning {self.r2_warning} "
                "must rise and stay below 1"
            )
        if not 0 < self.drift_warning <= self.drift_critical <= 1:
            raise PermanentError(
                f"retraining policy: drift_warning {self.drift_warning} and "
                f"drift_critical {self.drift_critical} must rise and lie above 0 and up to 1"
            )
        if (
            min(self.min_truth_rows, self.min_truth_days, self.max_trainings, self.budget_days) < 1
            or min(self.cooldown_days, self.no_gain_days) < 0
        ):
            raise PermanentError(
                "retraining policy: min_truth_rows, min_truth_days, max_trainings and budget_days must be 1 or more, "
                "cooldown_days and no_gain_days 0 or more"
            )
        if not (isfinite(self.min_gain_per_hour) and self.min_gain_per_hour >= 0):
            raise PermanentError(
                f"retraining policy: min_gain_per_hour is {self.min_gain_per_hour}; give 0 or more"
            )


@dataclass(frozen=True)
class RetrainingDecision:
    """The decision, its reasons in words, and its inputs: the audit row."""

    retrain: bool
    decision: Decision
    reasons: tuple[str, ...]
    r2: float | None
    drift_share: float | None
    n_truth_rows: int
    n_truth_days: int
    days_since_training: int | None


def decide_retraining(
    r2: float | None,
    drift_share: float | None,
    *,
    n_truth_rows: int,
    n_truth_days: int,
    days_since_training: int | None,
    days_since_no_gain: int | None = None,
    trainings_in_period: int = 0,
    expected_gain: float | None = None,
    training_hours: float | None = None,
    skill_fell: bool = False,
    force: bool = False,
    policy: RetrainingPolicy | None = None,
) -> RetrainingDecision:
    """Apply the matrix.

    | R² | drift share | answer |
    |---|---|---|
    | < 0.65 | any, even unknown | retrain (reactive) |
    | any, skill fell | any, even unknown | retrain (reactive) |
    | 0.65 to < 0.70 | ≥ 50 % | retrain (proactive) |
    | 0.65 to < 0.70 | 30 % to < 50 % | wait |
    | ≥ 0.70 | ≥ 30 % | wait |
    | ≥ 0.65 | < 30 % | fine |

    Too little truth, or a drift share that is not known and would decide, is `cannot_judge`. A retraining
    that the matrix wants but that comes too soon is `cooldown`, one too many is `over_budget`, one soon after another
    that brought nothing is `tried`, and one that promises less than its time is worth is `not_worth_it`. `tried` holds
    while R² is not critical and `not_worth_it` for proactive ones only, since a critical model is retrained at any
    price. What is not known forbids nothing. `force` is a person's order and overrides all of it.

    Args:
        r2: the champion's R² on forecasts whose truth has arrived; None where there is none.
        drift_share: share of tested columns that drifted, 0 to 1; None where it could not be measured.
        n_truth_rows: hours of truth behind `r2`.
        n_truth_days: days of truth behind `r2`.
        days_since_training: whole days since the champion's training or the last try; None if never.
        days_since_no_gain: whole days since a training whose model was judged no better than the present champion;
            None where there was none.
        trainings_in_period: trainings already started in the budget period.
        expected_gain: R² that a training is expected to win back, see `expected_gain`; None where not known.
        training_hours: hours that the last training took; None where not known.
        skill_fell: the champion lost skill against its own held-out days (`core.drift.skill_fell`).
        force: retrain whatever the numbers say.
        policy: bounds; defaults where None.

    Raises:
        ContractError: a number is NaN, infinite or out of its range.
    """
    policy = policy or RetrainingPolicy()
    _check(
        r2,
        drift_share,
        (n_truth_rows, n_truth_days, trainings_in_period),
        (days_since_training, days_since_no_gain),
    )
    for name, value in (("expected gain", expected_gain), ("training hours", training_hours)):
        if value is not None and not isfinite(value):
            raise ContractError(
                f"retraining: {name} is {value}; give a finite number, or None where not known"
            )
    decision, reason = _matrix(r2, drift_share, n_truth_rows, n_truth_days, skill_fell, policy)
    reasons = [reason]
    if force:
        decision = "retrain_forced"
        reasons.append("ordered by a person")
    elif decision in ("retrain_reactive", "retrain_proactive"):
        if days_since_training is not None and days_since_training < policy.cooldown_days:
            decision = "cooldown"
            reasons.append(
                f"trained {days_since_training} days ago, the cooldown is {policy.cooldown_days} days"
            )
        elif (
            days_since_no_gain is not None
            and days_since_no_gain < policy.no_gain_days
            and r2 is not None
            and r2 >= policy.r2_critical
        ):
            decision = "tried"
            reasons.append(
                f"a training {days_since_no_gain} days ago brought nothing, "
                f"another is asked for after {policy.no_gain_days} days"
            )
        elif trainings_in_period >= policy.max_trainings:
            decision = "over_budget"
            reasons.append(
                f"{trainings_in_period} trainings in the period already, {policy.max_trainings} are allowed"
            )
        elif (
            decision == "retrain_proactive"
            and expected_gain is not None
            and training_hours is not None
            and expected_gain < training_hours * policy.min_gain_per_hour
        ):
            decision = "not_worth_it"
            reasons.append(
                f"expected gain in R² {expected_gain:+.4f}, a training of {training_hours:.2f} hours must promise "
                f"{training_hours * policy.min_gain_per_hour:.4f}"
            )
    return RetrainingDecision(
        retrain=decision.startswith("retrain_"),
        decision=decision,
        reasons=tuple(reasons),
        r2=r2,
        drift_share=drift_share,
        n_truth_rows=n_truth_rows,
        n_truth_days=n_truth_days,
        days_since_training=days_since_training,
    )


def expected_gain(held_out_r2: float | None, realised_r2: float | None) -> float | None:
    """What a training is expected to win back: the R² that the champion had when it was new, less what it has now.

    A model trained on newer counts by the same recipe is expected to be as good as the champion was on the days that
    its own training held out. None where one of the two is not known.
    """
    if held_out_r2 is None or realised_r2 is None:
        return None
    return held_out_r2 - realised_r2


def _matrix(
    r2: float | None,
    drift_share: float | None,
    rows: int,
    days: int,
    skill_fell: bool,
    policy: RetrainingPolicy,
) -> tuple[Decision, str]:
    if r2 is None or rows < policy.min_truth_rows or days < policy.min_truth_days:
        return "cannot_judge", (
            f"{rows:,} hours of truth on {days} days; "
            f"{policy.min_truth_rows:,} on {policy.min_truth_days} are needed"
        )
    if r2 < policy.r2_critical:
        return "retrain_reactive", f"R² {r2:.3f} is below {policy.r2_critical:.2f}"
    if skill_fell:
        return "retrain_reactive", f"R² {r2:.3f}, but the skill it was trained with is lost"
    if drift_share is None:
        return "cannot_judge", f"R² {r2:.3f} alone does not decide and the drift share is not known"
    state = f"R² {r2:.3f}, drift share {drift_share:.0%}"
    if r2 < policy.r2_warning and drift_share >= policy.drift_critical:
        return (
            "retrain_proactive",
            f"{state}: below {policy.r2_warning:.2f} and {policy.drift_critical:.0%} or more",
        )
    if drift_share >= policy.drift_warning:
        return "wait", f"{state}: inputs drift, accuracy still holds"
    return "fine", f"{state}: nothing to do"


def _check(
    r2: float | None, drift_share: float | None, numbers: tuple[int, ...], since: tuple[int | None, ...]
) -> None:
    if r2 is not None and not (isfinite(r2) and r2 <= 1):
        raise ContractError(
            f"retraining: R² is {r2}; give a finite number of at most 1, or None where not known"
        )
    if drift_share is not None and not 0 <= drift_share <= 1:
        raise ContractError(f"retraining: drift share is {drift_share}; give 0 to 1, or None where not known")
    if min(*numbers, *(days for days in since if days is not None)) < 0:
        raise ContractError("retraining: rows, days and trainings cannot be negative")
