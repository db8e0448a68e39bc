"""The promotion decision, gate by gate."""

from dataclasses import FrozenInstanceError, fields, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from bike_assets.core.errors import ContractError, PermanentError
from bike_assets.core.promotion import (
    DayError,
    PromotionPolicy,
    WindowScore,
    WindowScores,
    decide_promotion,
    sign_flip_p_value,
    window_score,
)

FIRST = date(2024, 1, 1)


def window(r2: float, days: int = 10, wobble: float = 0.0) -> WindowScore:
    """A window of the given R²; `wobble` moves error between even and odd days and leaves the sum."""
    total = 1000.0 * days
    mean = (1 - r2) * 1000.0
    errors = [
        DayError(FIRST + timedelta(days=i), 24, mean + (wobble if i % 2 else -wobble)) for i in range(days)
    ]
    return WindowScore(tuple(errors), total)


def scores(baseline: float, current: float, *, days: int = 10, wobble: float = 0.0) -> WindowScores:
    return WindowScores(window(baseline), window(current, days, wobble))


def test_a_better_challenger_is_promoted_with_its_numbers() -> None:
    answer = decide_promotion(scores(0.8, 0.85), scores(0.8, 0.75))
    assert answer.promote
    assert answer.decision == "promote"
    assert answer.gain_r2 == pytest.approx(0.10)
    assert answer.p_value == pytest.approx(1 / 1024)
    assert (answer.challenger_r2, answer.champion_r2) == pytest.approx((0.85, 0.75))
    assert answer.n_days == 10
    assert len(answer.reasons) == 3


def test_the_order_of_the_models_matters() -> None:
    assert not decide_promotion(scores(0.8, 0.75), scores(0.8, 0.85)).promote


@pytest.mark.parametrize(("baseline", "promoted"), [(0.5999, False), (0.60, True), (0.61, True)])
def test_the_floor_holds_for_the_first_champion(baseline: float, promoted: bool) -> None:
    answer = decide_promotion(scores(baseline, 0.9), None)
    assert answer.promote is promoted
    assert answer.decision == ("first_champion" if promoted else "below_floor")


def test_nothing_below_the_floor_is_promoted_even_over_a_worse_champion() -> None:
    answer = decide_promotion(scores(0.59, 0.9), scores(0.3, 0.1))
    assert (answer.promote, answer.decision) == (False, "below_floor")


@pytest.mark.parametrize(("gain", "decision"), [(0.019, "no_gain"), (0.02, "promote"), (-0.1, "no_gain")])
def test_the_margin_is_reached_or_not(gain: float, decision: str) -> None:
    assert decide_promotion(scores(0.8, 0.80 + gain), scores(0.8, 0.80)).decision == decision


def test_a_gain_that_hangs_on_a_few_days_is_not_significant() -> None:
    # The mean gain is 50 a day, yet half of the days lose 150 by it.
    answer = decide_promotion(scores(0.8, 0.80), scores(0.8, 0.75, wobble=200.0))
    assert answer.decision == "not_significant"
    assert answer.gain_r2 == pytest.approx(0.05)
    assert answer.p_value is not None
    assert answer.p_value > 0.05


def test_the_p_value_bound_counts_as_reached() -> None:
    policy = PromotionPolicy(p_value=1 / 1024)
    assert decide_promotion(scores(0.8, 0.85), scores(0.8, 0.75), policy).promote
    assert not decide_promotion(
        scores(0.8, 0.85), scores(0.8, 0.75), replace(policy, p_value=1 / 1025)
    ).promote


@pytest.mark.parametrize(("days", "decision"), [(0, "cannot_judge"), (6, "cannot_judge"), (7, "promote")])
def test_too_few_days_cannot_be_judged(days: int, decision: str) -> None:
    answer = decide_promotion(scores(0.8, 0.9, days=days), scores(0.8, 0.5, days=days))
    assert answer.decision == decision


def test_the_first_champion_needs_a_baseline_window_but_no_current_one() -> None:
    short = WindowScores(window(0.9, 6), window(0.9))
    assert decide_promotion(short, None).decision == "cannot_judge"
    assert decide_promotion(scores(0.9, 0.9, days=0), None).decision == "first_champion"


def test_why_nobody_can_judge_is_said() -> None:
    short = WindowScores(window(0.9, 6), window(0.9))
    assert "6 days of truth in the baseline window, 7 are needed" in decide_promotion(short, None).reasons
    flat = WindowScore(window(0.5, 7).days, 0.0)
    (reason,) = decide_promotion(WindowScores(flat, flat), None).reasons
    assert reason == "the truth of the baseline window does not vary: R² is undefined"
    learned = WindowScores(None, window(0.9))
    assert decide_promotion(learned, None).decision == "cannot_judge"
    assert "learned from the baseline window" in decide_promotion(learned, None).reasons[0]


def test_a_champion_that_learned_from_the_baseline_window_is_beaten_on_the_current_one() -> None:
    answer = decide_promotion(scores(0.8, 0.85), WindowScores(None, window(0.75)))
    assert (answer.decision, answer.champion_baseline_r2, answer.baseline_r2) == ("promote", None, 0.8)
    both = decide_promotion(scores(0.8, 0.85), scores(0.7, 0.75))
    assert both.champion_baseline_r2 == pytest.approx(0.7)


def test_truth_that_does_not_vary_cannot_be_judged() -> None:
    flat = WindowScore(window(0.5).days, 0.0)
    assert decide_promotion(WindowScores(flat, flat), None).decision == "cannot_judge"
    mixed = WindowScores(window(0.9), flat)
    assert decide_promotion(mixed, mixed).decision == "cannot_judge"


def test_approval_is_waited_for_only_where_the_policy_asks() -> None:
    policy = PromotionPolicy(require_approval=True)
    pair = scores(0.8, 0.85), scores(0.8, 0.75)
    assert decide_promotion(*pair, policy).decision == "awaits_approval"
    assert not decide_promotion(*pair, policy).promote
    assert decide_promotion(*pair, policy, approved=True).promote
    assert decide_promotion(scores(0.5, 0.9), None, policy, approved=True).decision == "below_floor"


def test_models_scored_on_different_rows_are_refused() -> None:
    champion = scores(0.8, 0.75)
    for other in (
        WindowScores(window(0.8, 9), window(0.85)),
        WindowScores(window(0.8), window(0.85, 11)),
        WindowScores(window(0.8), replace(window(0.85), total_squares=9_999.0)),
        WindowScores(window(0.8), replace(window(0.85, 11), total_squares=window(0.85).total_squares)),
    ):
        with pytest.raises(ContractError, match="different rows"):
            decide_promotion(other, champion)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_errors_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ContractError, match="NaN, infinite or negative"):
        WindowScore((DayError(FIRST, 24, bad),), 10.0)
    with pytest.raises(ContractError, match="NaN, infinite or negative"):
        WindowScore((), bad)


def test_a_day_may_stand_once_only() -> None:
    with pytest.raises(ContractError, match="twice"):
        WindowScore((DayError(FIRST, 24, 1.0), DayError(FIRST, 24, 1.0)), 10.0)


def test_a_window_may_have_more_days_than_a_year() -> None:
    days = tuple(DayError(FIRST + timedelta(days=number), 24, 1.0) for number in range(400))
    assert WindowScore(days, 1000.0).n == 400 * 24


@pytest.mark.parametrize(
    "broken",
    [
        {"floor_r2": float("nan")},
        {"floor_r2": float("-inf")},
        {"floor_r2": 1.0},
        {"floor_r2": 1.5},
        {"margin_r2": -0.1},
        {"margin_r2": float("inf")},
        {"p_value": 0.0},
        {"p_value": -0.1},
        {"p_value": 1.0},
        {"p_value": 1.5},
        {"min_days": 0},
    ],
)
def test_a_senseless_policy_is_refused(broken: dict[str, float]) -> None:
    with pytest.raises(PermanentError, match="promotion policy"):
        PromotionPolicy(**broken)  # type: ignore[arg-type]


def test_the_bounds_of_a_policy_are_allowed() -> None:
    assert PromotionPolicy(floor_r2=0.999, margin_r2=0.0, p_value=0.999, min_days=1).min_days == 1


def test_as_many_days_as_are_needed_are_enough() -> None:
    week, short = window(0.8, days=7), window(0.8, days=6)
    champion = WindowScores(week, window(0.7, days=7))
    assert decide_promotion(WindowScores(week, window(0.9, days=7)), champion).decision == "promote"
    champion = WindowScores(short, window(0.7, days=7))
    assert decide_promotion(WindowScores(short, window(0.9, days=7)), champion).decision == "cannot_judge"


@pytest.mark.parametrize(
    "frozen",
    [
        DayError(FIRST, 24, 1.0),
        window(0.8),
        scores(0.8, 0.8),
        PromotionPolicy(),
        decide_promotion(scores(0.8, 0.8), None),
    ],
)
def test_what_a_decision_is_made_of_cannot_be_changed_afterwards(frozen: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(frozen, fields(frozen)[0].name, None)


def test_a_gain_has_nine_digits() -> None:
    day = (FIRST, 24)
    champion = WindowScores(window(0.8), WindowScore((DayError(*day, 5_000_000_000.0),), 1e10))
    challenger = WindowScores(window(0.8), WindowScore((DayError(*day, 3_765_432_106.0),), 1e10))
    assert decide_promotion(challenger, champion).gain_r2 == 0.123456789


def test_truth_that_does_not_vary_is_named_as_what_lacks() -> None:
    flat = WindowScore(window(0.8).days, 0.0)
    answer = decide_promotion(WindowScores(window(0.8), flat), WindowScores(window(0.8), flat))
    assert answer.decision == "cannot_judge"
    assert answer.reasons[-1] == "the truth of the current window does not vary: R² is undefined"


def test_an_equal_challenger_reaches_a_margin_of_nothing() -> None:
    decision = decide_promotion(scores(0.8, 0.75), scores(0.8, 0.75), PromotionPolicy(margin_r2=0.0))
    assert decision.gain_r2 == 0
    assert "reaches the margin 0.000" in decision.reasons[1]


def test_the_sign_flip_test_is_exact_for_few_days() -> None:
    assert sign_flip_p_value(np.array([1.0, 1.0, 1.0]), seed=1) == 1 / 8
    assert sign_flip_p_value(np.array([3.0, -1.0, 1.0]), seed=1) == 3 / 8
    assert sign_flip_p_value(np.zeros(5), seed=1) == 1.0
    assert sign_flip_p_value(np.ones(14), seed=1) == 1 / 2**14


def test_the_sign_flip_test_counts_the_draws_and_what_was_observed() -> None:
    one_day = np.array([5.0, *np.zeros(14)])
    for seed in range(4):
        signs = np.random.default_rng(seed).integers(0, 2, size=(20_000, one_day.size))
        assert sign_flip_p_value(one_day, seed) == (1 + (signs[:, 0] == 1).sum()) / 20_001
    assert sign_flip_p_value(np.zeros(15), seed=1) == 1.0


def test_the_unit_of_the_losses_changes_nothing() -> None:
    for days in (12, 30):
        losses = np.random.default_rng(days).normal(0.3, 1.0, days)
        assert sign_flip_p_value(losses * 1e-4, seed=1) == sign_flip_p_value(losses, seed=1)


def test_the_drawn_sign_flip_test_repeats_and_nears_the_exact_one() -> None:
    generator = np.random.default_rng(3)
    differences = generator.normal(0.4, 1.0, 28)
    drawn = sign_flip_p_value(differences, seed=1)
    assert drawn == sign_flip_p_value(differences, seed=1)
    # Normal approximation of the same test.
    z = differences.sum() / np.sqrt((differences**2).sum())
    tail = (np.random.default_rng(4).normal(size=200_000) > z).mean()
    assert drawn == pytest.approx(tail, abs=0.01)
    assert sign_flip_p_value(np.full(28, 1.0), seed=1) == 1 / 20_001


def test_equal_models_are_called_different_rarely() -> None:
    generator = np.random.default_rng(5)
    alarms = sum(sign_flip_p_value(generator.normal(size=9), seed=1) <= 0.05 for _ in range(400))
    assert 5 <= alarms <= 36


def test_a_window_score_is_the_r2_of_all_rows() -> None:
    rows = pl.DataFrame(
        {
            "day": [FIRST, FIRST, FIRST + timedelta(days=1), FIRST + timedelta(days=1)],
            "truth": [0.0, 10.0, 20.0, None],
            "forecast": [1.0, 8.0, 20.0, 5.0],
        }
    )
    score = window_score(rows)
    assert [(day.n, day.squared_error) for day in score.days] == [(2, 5.0), (1, 0.0)]
    assert score.n == 3
    assert score.r2 == pytest.approx(1 - 5 / 200)
    assert window_score(rows.head(0)).r2 is None


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_a_row_with_truth_needs_a_forecast(bad: float | None) -> None:
    rows = pl.DataFrame(
        {"day": [FIRST], "truth": [1.0], "forecast": [bad]}, schema_overrides={"forecast": pl.Float64}
    )
    with pytest.raises(ContractError, match="1 rows with truth"):
        window_score(rows)
    with pytest.raises(ContractError, match="column truth is missing"):
        window_score(rows.drop("truth"))
