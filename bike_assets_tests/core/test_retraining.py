"""The retraining matrix, boundary by boundary."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from bike_assets.core.errors import ContractError, PermanentError
from bike_assets.core.retraining import RetrainingDecision, RetrainingPolicy, decide_retraining, expected_gain


def decide(r2: float | None, drift: float | None, **changes: Any) -> RetrainingDecision:
    known: dict[str, Any] = {"n_truth_rows": 10_000, "n_truth_days": 7, "days_since_training": 30, **changes}
    return decide_retraining(r2, drift, **known)


@pytest.mark.parametrize(
    ("r2", "drift", "decision"),
    [
        (-3.0, 0.0, "retrain_reactive"),
        (0.6499, 0.0, "retrain_reactive"),
        (0.6499, 1.0, "retrain_reactive"),
        (0.6499, None, "retrain_reactive"),
        (0.65, 0.50, "retrain_proactive"),
        (0.65, 1.0, "retrain_proactive"),
        (0.65, 0.4999, "wait"),
        (0.65, 0.30, "wait"),
        (0.65, 0.2999, "fine"),
        (0.65, 0.0, "fine"),
        (0.6999, 0.50, "retrain_proactive"),
        (0.6999, 0.4999, "wait"),
        (0.6999, 0.30, "wait"),
        (0.6999, 0.2999, "fine"),
        (0.70, 0.50, "wait"),
        (0.70, 1.0, "wait"),
        (0.95, 1.0, "wait"),
        (0.70, 0.30, "wait"),
        (0.70, 0.2999, "fine"),
        (1.0, 0.0, "fine"),
        (0.65, None, "cannot_judge"),
        (0.95, None, "cannot_judge"),
        (None, 1.0, "cannot_judge"),
        (None, None, "cannot_judge"),
    ],
)
def test_the_matrix(r2: float | None, drift: float | None, decision: str) -> None:
    answer = decide(r2, drift)
    assert answer.decision == decision
    assert answer.retrain is decision.startswith("retrain_")
    assert answer.reasons


@pytest.mark.parametrize(
    ("rows", "days", "decision"),
    [
        (500, 3, "retrain_reactive"),
        (499, 3, "cannot_judge"),
        (500, 2, "cannot_judge"),
        (0, 0, "cannot_judge"),
    ],
)
def test_too_little_truth_is_its_own_answer(rows: int, days: int, decision: str) -> None:
    assert decide(0.1, 1.0, n_truth_rows=rows, n_truth_days=days).decision == decision


@pytest.mark.parametrize(
    ("since", "decision"),
    [(0, "cooldown"), (6, "cooldown"), (7, "retrain_reactive"), (None, "retrain_reactive")],
)
def test_the_cooldown(since: int | None, decision: str) -> None:
    answer = decide(0.1, 0.0, days_since_training=since)
    assert answer.decision == decision


def test_the_cooldown_changes_no_other_answer() -> None:
    assert decide(0.9, 0.0, days_since_training=0).decision == "fine"
    assert decide(0.9, 0.4, days_since_training=0).decision == "wait"
    assert decide(None, None, days_since_training=0).decision == "cannot_judge"
    assert decide(0.66, 0.6, days_since_training=0).decision == "cooldown"


@pytest.mark.parametrize(
    ("since", "r2", "decision"),
    [
        (7, 0.66, "tried"),
        (27, 0.66, "tried"),
        (28, 0.66, "retrain_proactive"),
        (None, 0.66, "retrain_proactive"),
        (7, 0.65, "tried"),
        (7, 0.6499, "retrain_reactive"),
    ],
)
def test_a_training_that_brought_nothing_is_not_repeated_at_once(
    since: int | None, r2: float, decision: str
) -> None:
    answer = decide(r2, 0.6, days_since_no_gain=since)
    assert (answer.decision, answer.retrain) == (decision, decision.startswith("retrain_"))


def test_lost_skill_that_a_training_did_not_bring_back_is_not_tried_again_at_once() -> None:
    lost = {"skill_fell": True, "days_since_no_gain": 14}
    answer = decide(0.9, 0.0, **lost)
    assert answer.decision == "tried"
    assert answer.reasons[1] == "a training 14 days ago brought nothing, another is asked for after 28 days"
    assert decide(0.9, 0.0, **lost, policy=RetrainingPolicy(no_gain_days=14)).decision == "retrain_reactive"
    assert decide(0.9, 0.0, **{**lost, "days_since_no_gain": 400}).decision == "retrain_reactive"
    assert decide(0.9, 0.0, **lost, force=True).decision == "retrain_forced"
    assert decide(0.9, 0.0, **lost, days_since_training=6).decision == "cooldown"
    assert decide(0.9, 0.0, days_since_no_gain=14).decision == "fine", "it changes no other answer"


@pytest.mark.parametrize(
    ("trainings", "decision"), [(3, "retrain_reactive"), (4, "over_budget"), (300, "over_budget")]
)
def test_the_cost_bound(trainings: int, decision: str) -> None:
    assert decide(0.1, 0.0, trainings_in_period=trainings).decision == decision


def test_nobody_has_trained_unless_told() -> None:
    assert decide(0.1, 0.0, policy=RetrainingPolicy(max_trainings=1)).decision == "retrain_reactive"


@pytest.mark.parametrize(
    ("gain", "hours", "decision"),
    [
        (0.0199, 2.0, "not_worth_it"),
        (0.02, 2.0, "retrain_proactive"),
        (0.0201, 2.0, "retrain_proactive"),
        (-0.1, 0.0, "not_worth_it"),
        (0.0, 0.0, "retrain_proactive"),
        (None, 2.0, "retrain_proactive"),
        (-0.1, None, "retrain_proactive"),
    ],
)
def test_a_proactive_training_must_promise_what_its_time_is_worth(
    gain: float | None, hours: float | None, decision: str
) -> None:
    answer = decide(0.66, 0.6, expected_gain=gain, training_hours=hours)
    assert answer.decision == decision
    assert answer.retrain is (decision == "retrain_proactive")
    assert len(answer.reasons) == (2 if decision == "not_worth_it" else 1)
    if gain == 0.0199:
        assert answer.reasons[1].endswith("a training of 2.00 hours must promise 0.0200")


def test_a_critical_model_is_retrained_at_any_price() -> None:
    assert decide(0.5, 0.6, expected_gain=-1.0, training_hours=100.0).decision == "retrain_reactive"
    # And what the matrix does not want is not made better by being cheap.
    assert decide(0.9, 0.0, expected_gain=1.0, training_hours=0.0).decision == "fine"


def test_cooldown_and_budget_are_asked_before_the_price() -> None:
    poor = {"expected_gain": -1.0, "training_hours": 1.0}
    assert decide(0.66, 0.6, days_since_training=0, **poor).decision == "cooldown"
    assert decide(0.66, 0.6, trainings_in_period=4, **poor).decision == "over_budget"
    assert decide(0.66, 0.6, force=True, **poor).decision == "retrain_forced"


def test_a_training_is_expected_to_win_back_what_was_lost() -> None:
    assert expected_gain(0.9, 0.7) == pytest.approx(0.2)
    assert expected_gain(0.6, 0.7) == pytest.approx(-0.1)
    assert expected_gain(None, 0.7) is None
    assert expected_gain(0.9, None) is None


@pytest.mark.parametrize("name", ["expected_gain", "training_hours"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_price_that_is_no_number_is_refused(name: str, bad: float) -> None:
    with pytest.raises(ContractError, match=name.replace("_", " ")):
        decide(0.9, 0.0, **{name: bad})


def test_a_person_may_force_it_whatever_the_numbers_say() -> None:
    for answer in (
        decide(0.99, 0.0, force=True),
        decide(None, None, force=True, n_truth_rows=0, n_truth_days=0),
        decide(0.1, 0.0, force=True, days_since_training=0, trainings_in_period=9),
    ):
        assert (answer.retrain, answer.decision) == (True, "retrain_forced")
        assert "ordered by a person" in answer.reasons


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1.01])
def test_an_r2_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(ContractError, match="R²"):
        decide(bad, 0.0)


@pytest.mark.parametrize("bad", [float("nan"), -0.01, 1.01, 50.0])
def test_a_drift_share_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(ContractError, match="drift share"):
        decide(0.9, bad)


@pytest.mark.parametrize(
    "name",
    ["n_truth_rows", "n_truth_days", "days_since_training", "days_since_no_gain", "trainings_in_period"],
)
def test_negative_counts_are_refused(name: str) -> None:
    with pytest.raises(ContractError, match="negative"):
        decide(0.9, 0.0, **{name: -1})


def test_the_decision_keeps_its_inputs_for_the_audit() -> None:
    answer = decide(0.66, 0.55)
    assert (answer.r2, answer.drift_share, answer.n_truth_rows, answer.n_truth_days) == (
        0.66,
        0.55,
        10_000,
        7,
    )
    assert answer.days_since_training == 30


def test_the_budget_is_of_four_weeks() -> None:
    assert (RetrainingPolicy().budget_days, RetrainingPolicy().adaptive) == (28, False)


def test_the_bounds_are_the_policys() -> None:
    policy = RetrainingPolicy(r2_critical=0.8, r2_warning=0.9, drift_warning=0.1, drift_critical=0.2)
    assert decide(0.79, 0.0, policy=policy).decision == "retrain_reactive"
    assert decide(0.85, 0.2, policy=policy).decision == "retrain_proactive"
    assert decide(0.85, 0.1, policy=policy).decision == "wait"


@pytest.mark.parametrize(
    "broken",
    [
        {"r2_critical": 0.8},
        {"r2_warning": 1.0},
        {"r2_critical": float("nan")},
        {"drift_warning": 0.6},
        {"drift_critical": 1.1},
        {"drift_warning": 0.0},
        {"min_truth_rows": 0},
        {"cooldown_days": -1},
        {"r2_warning": 1.5},
        {"drift_warning": -0.1},
        {"no_gain_days": -1},
        {"max_trainings": 0},
        {"min_truth_days": 0},
        {"budget_days": 0},
        {"min_gain_per_hour": -0.01},
        {"min_gain_per_hour": float("nan")},
    ],
)
def test_a_senseless_policy_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(PermanentError, match="retraining policy"):
        RetrainingPolicy(**broken)


@pytest.mark.parametrize(
    "edge",
    [
        {"r2_critical": 0.7, "r2_warning": 0.7},
        {"drift_warning": 0.5, "drift_critical": 0.5},
        {"drift_critical": 1.0},
        {"min_truth_rows": 1},
        {"min_truth_days": 1},
        {"max_trainings": 1},
        {"budget_days": 1},
        {"cooldown_days": 0},
        {"no_gain_days": 0},
        {"min_gain_per_hour": 0.0},
    ],
)
def test_a_policy_may_stand_on_its_bounds(edge: dict[str, Any]) -> None:
    policy = RetrainingPolicy(**edge)
    assert {name: getattr(policy, name) for name in edge} == edge


@pytest.mark.parametrize("frozen", [RetrainingPolicy(), decide(0.9, 0.1)])
def test_what_a_decision_is_made_of_cannot_be_changed_afterwards(frozen: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        frozen.r2 = 0.1
