"""Who serves, who served before, and who may decide it: what the audit log says and what may follow.

Belongs here: reading the state of the championship from the log, and which change is allowed from there. Does not
belong here: whether a challenger is better (`promotion`), and carrying a change out
(`bike_assets.resources.championship`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from bike_assets.core.errors import PermanentError

Kind = Literal["promotion", "rollback"]


class NotAllowedError(PermanentError):
    """Whoever asks may not do this."""


@dataclass(frozen=True)
class Change:
    """One change of champion that was begun: from whom, to whom, asked for by whom, why."""

    kind: Kind
    operation_id: str
    version: str
    replaced: str | None
    actor: str
    reason: str


@dataclass(frozen=True)
class Proposal:
    """A challenger that won and waits for a person; `against` served when it was judged."""

    version: str
    against: str | None


@dataclass(frozen=True)
class Succession:
    """The championship after some row of the log.

    `earlier` are the champions before, the last of them last. A version that was rolled back is no longer among
    them, so that rolling back twice goes back two steps and never forth again. `barred` are versions that a person
    took out: they are not promoted again unless a person asks.
    """

    champion: str | None = None
    earlier: tuple[str, ...] = ()
    unfinished: Change | None = None
    proposal: Proposal | None = None
    barred: frozenset[str] = frozenset()
    finished: frozenset[str] = frozenset()

    @property
    def previous(self) -> str | None:
        """To whom a rollback would go."""
        return self.earlier[-1] if self.earlier else None

    def after(self, change: Change) -> "Succession":
        """When the change is done."""
        done = self.finished | {change.operation_id}
        if change.kind == "promotion":
            earlier = self.earlier if self.champion is None else (*self.earlier, self.champion)
            barred = self.barred - {change.version}
        else:
            earlier = self.earlier[:-1]
            barred = self.barred if self.champion is None else self.barred | {self.champion}
        return Succession(change.version, earlier, None, None, barred, done)


@dataclass(frozen=True)
class Roles:
    """Who may do what: names of people; empty allows everybody. `automation` always may what a policy decided."""

    promoters: tuple[str, ...] = ()
    approvers: tuple[str, ...] = ()

    def require(self, actor: str, action: Literal["promote", "roll back", "approve", "reject"]) -> None:
        """Refuse whoever may not.

        Raises:
            NotAllowedError: the actor is not among those that the settings name.
        """
        allowed = self.approvers if action in ("approve", "reject") else self.promoters
        setting = "BIKE_APPROVERS" if action in ("approve", "reject") else "BIKE_PROMOTERS"
        if allowed and actor not in allowed:
            raise NotAllowedError(f"{actor} may not {action}; ask one of {', '.join(allowed)} ({setting})")


def succession(rows: Iterable[Mapping[str, Any]]) -> Succession:
    """The championship as the log tells it.

    Args:
        rows: of the audit log in order, with at least event, operation_id, model_version, replaced_version, actor,
            reason and deployment_decision.
    """
    state = Succession()
    for row in rows:
        event, version = row["event"], row["model_version"]
        if event in ("promotion_begun", "rollback_begun"):
            kind: Kind = "promotion" if event == "promotion_begun" else "rollback"
            change = Change(
                kind, row["operation_id"], version, row["replaced_version"], row["actor"], row["reason"]
            )
            state = replace(state, unfinished=change)
        elif event in ("promoted", "rolled_back") and state.unfinished is not None:
            state = state.after(state.unfinished)
        elif event == "abandoned":
            state = replace(state, unfinished=None)
        elif event == "adopted":
            earlier = state.earlier if state.champion is None else (*state.earlier, state.champion)
            state = replace(state, champion=version, earlier=earlier)
        elif event == "judged":
            waits = row["deployment_decision"] == "awaits_approval"
            state = replace(state, proposal=Proposal(version, row["replaced_version"]) if waits else None)
        elif event == "rejected":
            state = replace(state, proposal=None, barred=state.barred | {version})
    return state


def plan_promotion(
    state: Succession, version: str, *, operation_id: str, actor: str, reason: str
) -> Change | None:
    """The change that makes a version champion; None where it is already."""
    if state.champion == version:
        return None
    return Change("promotion", operation_id, version, state.champion, actor, reason)


def plan_rollback(
    state: Succession, withdrawn: str | None, *, operation_id: str, actor: str, reason: str
) -> Change | None:
    """The change that takes a version back; None where it does not serve (any more).

    Args:
        state: the championship now.
        withdrawn: the version to take back. Two people who both see it fail take it back once. None stands for
            the champion of now.
        operation_id: under which the change is logged.
        actor: who asks.
        reason: why.

    Raises:
        PermanentError: there is nobody to go back to.
    """
    if withdrawn is not None and withdrawn != state.champion:
        return None
    if state.champion is None or state.previous is None:
        raise PermanentError(
            "no champion served before this one, so there is none to go back to; promote another version instead"
        )
    return Change("rollback", operation_id, state.previous, state.champion, actor, reason)


def require_proposal(state: Succession, version: str | None) -> str:
    """The version that waits for a person.

    Args:
        state: the championship now.
        version: which version the person means, or None for the one that waits.

    Raises:
        PermanentError: none waits, another does, or the champion it was compared with no longer serves.
    """
    if state.proposal is None:
        raise PermanentError("no challenger waits for approval; materialise champion to have one judged")
    if version is not None and version != state.proposal.version:
        raise PermanentError(
            f"version {version} does not wait for approval; version {state.proposal.version} does"
        )
    if state.proposal.against != state.champion:
        raise PermanentError(
            f"version {state.proposal.version} was compared with version {state.proposal.against}, but "
            f"{state.champion} serves now; materialise champion to have it judged again"
        )
    return state.proposal.version
