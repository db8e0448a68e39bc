"""Who serves and who may decide it, read from the log alone."""

import pytest

from bike_assets.core.errors import PermanentError
from bike_assets.core.succession import (
    NotAllowedError,
    Proposal,
    Roles,
    Succession,
    plan_promotion,
    plan_rollback,
    require_proposal,
    succession,
)

ASKED = {"operation_id": "op", "actor": "anna", "reason": "why"}


def row(
    event: str, version: str | None = None, replaced: str | None = None, **more: str
) -> dict[str, str | None]:
    return {
        "event": event,
        "model_version": version,
        "replaced_version": replaced,
        "deployment_decision": None,
        **ASKED,
        **more,
    }


def promoted(version: str, replaced: str | None = None) -> list[dict[str, str | None]]:
    return [row("promotion_begun", version, replaced), row("promoted", version, replaced)]


def rolled_back(version: str, replaced: str) -> list[dict[str, str | None]]:
    return [row("rollback_begun", version, replaced), row("rolled_back", version, replaced)]


ONE_TWO_THREE = [*promoted("1"), *promoted("2", "1"), *promoted("3", "2")]


def test_nobody_serves_before_the_first_row() -> None:
    assert succession([]) == Succession()


def test_promotions_pile_up_and_rollbacks_take_down() -> None:
    state = succession(ONE_TWO_THREE)
    assert (state.champion, state.earlier, state.previous) == ("3", ("1", "2"), "2")

    state = succession([*ONE_TWO_THREE, *rolled_back("2", "3")])
    assert (state.champion, state.earlier, state.barred) == ("2", ("1",), {"3"})

    # Twice back is two steps back, and never forth again.
    state = succession([*ONE_TWO_THREE, *rolled_back("2", "3"), *rolled_back("1", "2")])
    assert (state.champion, state.earlier, state.barred) == ("1", (), {"2", "3"})


def test_a_person_may_promote_again_what_was_taken_back() -> None:
    state = succession([*ONE_TWO_THREE, *rolled_back("2", "3"), *promoted("3", "2")])

    assert (state.champion, state.earlier, state.barred) == ("3", ("1", "2"), frozenset())


def test_a_change_that_was_begun_changes_nothing_yet() -> None:
    state = succession([*promoted("1"), row("promotion_begun", "2", "1")])
    assert state.champion == "1"
    assert state.unfinished is not None
    assert (state.unfinished.kind, state.unfinished.version, state.unfinished.replaced) == (
        "promotion",
        "2",
        "1",
    )

    state = succession([*promoted("1"), row("promotion_begun", "2", "1"), row("abandoned", "2")])
    assert (state.champion, state.unfinished) == ("1", None)


def test_an_alias_moved_by_another_hand_is_taken_for_what_it_is() -> None:
    state = succession([*promoted("1"), row("adopted", "5", "1")])

    assert (state.champion, state.previous) == ("5", "1")


def test_a_proposal_waits_until_it_is_answered_or_judged_anew() -> None:
    waiting = [*promoted("1"), row("judged", "2", "1", deployment_decision="awaits_approval")]
    assert succession(waiting).proposal == Proposal("2", "1")
    assert require_proposal(succession(waiting), None) == "2"
    assert require_proposal(succession(waiting), "2") == "2"
    assert succession([*waiting, *promoted("2", "1")]).proposal is None
    assert succession([*waiting, row("judged", "3", "1", deployment_decision="no_gain")]).proposal is None
    rejected = succession([*waiting, row("rejected", "2")])
    assert (rejected.proposal, rejected.barred) == (None, {"2"})


def test_an_answer_to_something_that_does_not_wait_is_refused() -> None:
    waiting = [*promoted("1"), row("judged", "2", "1", deployment_decision="awaits_approval")]
    with pytest.raises(PermanentError, match="no challenger waits"):
        require_proposal(succession(promoted("1")), None)
    with pytest.raises(PermanentError, match="version 7 does not wait for approval; version 2 does"):
        require_proposal(succession(waiting), "7")
    with pytest.raises(PermanentError, match="compared with version 1, but 5 serves now"):
        require_proposal(succession([*waiting, row("adopted", "5", "1")]), "2")


def test_promoting_the_champion_is_no_change() -> None:
    assert plan_promotion(succession(ONE_TWO_THREE), "3", **ASKED) is None


def test_two_people_who_take_the_same_version_back_take_it_back_once() -> None:
    before = succession(ONE_TWO_THREE)
    first = plan_rollback(before, "3", **ASKED)
    assert first is not None
    assert (first.version, first.replaced) == ("2", "3")

    assert plan_rollback(before.after(first), "3", **ASKED) is None


def test_the_first_champion_has_nobody_to_go_back_to() -> None:
    for state in (succession([]), succession(promoted("1"))):
        with pytest.raises(PermanentError, match="none to go back to"):
            plan_rollback(state, None, **ASKED)


def test_roles_allow_those_they_name_and_everybody_where_they_name_nobody() -> None:
    roles = Roles(promoters=("anna", "ben"), approvers=("clara",))
    for actor, action in (
        ("anna", "promote"),
        ("ben", "roll back"),
        ("clara", "approve"),
        ("clara", "reject"),
    ):
        roles.require(actor, action)  # type: ignore[arg-type]
        Roles().require("anybody", action)  # type: ignore[arg-type]
    for actor, action in (("clara", "promote"), ("dan", "roll back"), ("anna", "approve"), ("", "reject")):
        with pytest.raises(NotAllowedError, match="may not"):
            roles.require(actor, action)  # type: ignore[arg-type]
