"""Bounds learned from history: what they are, how far they may go, and that they need history."""

import numpy as np
import pytest

from bike_assets.core.retraining import RetrainingPolicy
from bike_assets.core.thresholds import MAX_LENIENCE, MIN_HISTORY, learn_bounds

FIXED = RetrainingPolicy()
CALM = [0.1] * 20


def learned(r2: list[float], drift: list[float] | None = None) -> RetrainingPolicy:
    found = learn_bounds(r2, CALM if drift is None else drift, FIXED).policy
    assert found is not None
    return found


def test_bounds_lie_two_and_three_robust_deviations_below_the_median() -> None:
    # Median 0.90, median absolute deviation 0.02.
    policy = learned([0.88, 0.90, 0.92] * 7)

    sigma = 1.4826 * 0.02
    assert policy.r2_warning == pytest.approx(0.90 - 2 * sigma, abs=1e-4)
    assert policy.r2_critical == pytest.approx(0.90 - 3 * sigma, abs=1e-4)


def test_one_bad_week_moves_nothing() -> None:
    calm = [0.88, 0.90, 0.92] * 7

    assert learned([*calm, 0.1]).r2_warning == pytest.approx(learned(calm).r2_warning, abs=0.005)


def test_a_city_that_is_hard_to_forecast_is_excused_by_so_much_and_no_more() -> None:
    policy = learned([0.3, 0.32, 0.28] * 7)

    assert policy.r2_warning == pytest.approx(FIXED.r2_warning - MAX_LENIENCE)
    assert policy.r2_critical == pytest.approx(FIXED.r2_critical - MAX_LENIENCE)


def test_an_equal_history_still_leaves_room() -> None:
    policy = learned([0.9] * 20)

    assert (policy.r2_warning, policy.r2_critical) == pytest.approx((0.89, 0.885))


def test_drift_bounds_are_what_was_seldom_exceeded_and_never_below_the_fixed() -> None:
    drift = list(np.linspace(0.0, 1.0, 101))

    policy = learned([0.9] * 20, drift)
    assert (policy.drift_warning, policy.drift_critical) == pytest.approx((0.90, 0.99))
    calm = learned([0.9] * 20)
    assert (calm.drift_warning, calm.drift_critical) == (FIXED.drift_warning, FIXED.drift_critical)
    assert learned([0.9] * 20, [1.0] * 20).drift_critical == 1.0


def test_a_learned_policy_keeps_every_other_bound_and_may_be_used() -> None:
    for r2 in ([0.99] * 20, [0.0] * 20, [-3.0, 0.9] * 10):
        policy = learned(r2)
        assert policy.r2_critical <= policy.r2_warning < 1
        assert policy.cooldown_days == FIXED.cooldown_days


@pytest.mark.parametrize(
    ("r2", "drift", "enough"),
    [
        (MIN_HISTORY, MIN_HISTORY, True),
        (MIN_HISTORY - 1, MIN_HISTORY, False),
        (MIN_HISTORY, MIN_HISTORY - 1, False),
        (0, 0, False),
    ],
)
def test_too_little_history_teaches_nothing(r2: int, drift: int, enough: bool) -> None:
    found = learn_bounds([0.9] * r2, [0.1] * drift, FIXED)

    assert (found.policy is not None) is enough
    assert found.reason
