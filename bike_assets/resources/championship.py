"""Changes of champion, carried out so that a process may be killed between any two steps.

Belongs here: the order of steps, the lock around them, and mending what a dead process left. Does not belong here:
what may follow from what (`bike_assets.core.succession`), and whether a challenger is better
(`bike_assets.core.promotion`).

The steps of a change:

1. the log says what is about to happen (`promotion_begun`, `rollback_begun`);
2. the bundle is written with the newest counts and named by the version's tag;
3. the alias `champion` moves. MLflow does that in one step, and the service follows this alias: here it happens;
4. the alias `previous` moves and the version's tags say who, when and why;
5. the log says that it happened (`promoted`, `rolled_back`).

Whoever comes next finds a change that was begun and looks at the alias: where it moved, steps 4 and 5 are done now;
where it did not, the log says `abandoned` and nothing else changed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Final, Literal

import dagster as dg

from bike_assets import clock
from bike_assets.core.audit import Event
from bike_assets.core.errors import PermanentError
from bike_assets.core.succession import (
    Change,
    Roles,
    Succession,
    plan_promotion,
    plan_rollback,
    require_proposal,
    succession,
)
from bike_assets.resources.audit import AUTOMATION, AuditLog, version_facts
from bike_assets.resources.bundles import BUNDLE_TAG, BundleStore
from bike_assets.resources.locks import only_one
from bike_assets.resources.registry import CHAMPION, PREVIOUS, ModelRegistry, ModelVersion
from bike_assets.resources.warehouse import Warehouse
from bike_assets.settings import Settings

_STATE_COLUMNS: Final = (
    "sequence",
    "event",
    "operation_id",
    "model_version",
    "replaced_version",
    "actor",
    "reason",
    "deployment_decision",
)


@dataclass(frozen=True)
class Request:
    """Who asks for a change, why, and under which id: asking twice under one id is asking once."""

    actor: str
    reason: str
    operation_id: str
    dagster_run_id: str | None = None
    service_date: date | None = None


@dataclass(frozen=True)
class ChangeResult:
    """What came of a request."""

    outcome: Literal["changed", "unchanged", "rejected"]
    champion: str | None
    previous: str | None
    bundle_id: str | None
    text: str


class ChampionStore(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The championship of a home: its lock, and who may change it."""

    folder: str
    promoters: list[str]
    approvers: list[str]

    @classmethod
    def from_settings(cls, settings: Settings) -> "ChampionStore":
        """The championship that the settings name."""
        return cls(
            folder=str(settings.audit_dir),
            promoters=list(settings.promoters),
            approvers=list(settings.approvers),
        )

    def open(
        self, registry: ModelRegistry, bundles: BundleStore, warehouse: Warehouse, audit: AuditLog
    ) -> "Championship":
        """The championship over these stores."""
        return Championship(
            registry,
            bundles,
            warehouse,
            audit,
            Roles(tuple(self.promoters), tuple(self.approvers)),
            Path(self.folder) / "champion.lock",
        )


@dataclass(frozen=True)
class Championship:
    """Reads and changes who serves. Every method waits for changes of other processes and mends dead ones first."""

    registry: ModelRegistry
    bundles: BundleStore
    warehouse: Warehouse
    audit: AuditLog
    roles: Roles
    lock: Path

    def state(self) -> Succession:
        """Who serves now, as log and registry agree."""
        with self._alone() as state:
            return state

    def promote(
        self,
        version: ModelVersion,
        request: Request,
        *,
        against: str | None = "any",
        facts: Mapping[str, Any] | None = None,
    ) -> ChangeResult:
        """Make a version champion; unchanged where it is.

        Args:
            version: the version.
            request: who and why.
            against: the champion that it was found better than, None for none; by default whoever it is.
            facts: what the comparison found, columns of the log.

        Raises:
            NotAllowedError: the actor may not.
            PermanentError: another champion serves than the one compared with, or the bundle cannot be written.
        """
        if request.actor != AUTOMATION:
            self.roles.require(request.actor, "promote")
        with self._alone() as state:
            if done := self._done_before(state, request):
                return done
            if against not in ("any", state.champion):
                raise PermanentError(
                    f"version {version.version} was compared with version {against}, but {state.champion} serves now; "
                    "materialise champion again"
                )
            change = plan_promotion(
                state,
                version.version,
                operation_id=request.operation_id,
                actor=request.actor,
                reason=request.reason,
            )
            if change is None:
                return self._result("unchanged", state, f"version {version.version} serves already")
            return self._carry_out(state, change, request, facts or {})

    def rollback(self, withdrawn: str | None, request: Request) -> ChangeResult:
        """Take the champion back and let the one before it serve; unchanged where `withdrawn` does not serve.

        Args:
            withdrawn: the version to take back; None for the champion of now.
            request: who and why.

        Raises:
            NotAllowedError: the actor may not.
            PermanentError: there is nobody to go back to, or the bundle cannot be written.
        """
        self.roles.require(request.actor, "roll back")
        with self._alone() as state:
            if done := self._done_before(state, request):
                return done
            change = plan_rollback(
                state,
                withdrawn,
                operation_id=request.operation_id,
                actor=request.actor,
                reason=request.reason,
            )
            if change is None:
                return self._result("unchanged", state, f"version {withdrawn} does not serve")
            return self._carry_out(state, change, request, {})

    def approve(self, version: str | None, request: Request) -> ChangeResult:
        """Promote the challenger that won and waits for a person.

        Args:
            version: which one the person means; None for the one that waits.
            request: who and why.

        Raises:
            NotAllowedError: the actor may not.
            PermanentError: it does not wait (any more), or the bundle cannot be written.
        """
        self.roles.require(request.actor, "approve")
        with self._alone() as state:
            if done := self._done_before(state, request):
                return done
            chosen = require_proposal(state, version)
            change = plan_promotion(
                state, chosen, operation_id=request.operation_id, actor=request.actor, reason=request.reason
            )
            if change is None:
                return self._result("unchanged", state, f"version {chosen} serves already")
            self._log("approved", request, self.registry.version(chosen))
            return self._carry_out(state, change, request, {})

    def reject(self, version: str | None, request: Request) -> ChangeResult:
        """Say no to the challenger that waits. It is not judged again.

        Args:
            version: which one the person means; None for the one that waits.
            request: who and why.

        Raises:
            NotAllowedError: the actor may not.
            PermanentError: it does not wait (any more).
        """
        self.roles.require(request.actor, "reject")
        with self._alone() as state:
            chosen = require_proposal(state, version)
            self._log("rejected", request, self.registry.version(chosen))
            return self._result("rejected", state, f"version {chosen} was rejected")

    def record_verdict(self, version: ModelVersion, request: Request, **facts: Any) -> None:
        """Write down what a comparison found; `awaits_approval` is what `approve` and `reject` answer to.

        Args:
            version: the challenger.
            request: who judged, and why so.
            facts: columns of the log.
        """
        self._log("judged", request, version, **facts)

    @contextmanager
    def _alone(self) -> Iterator[Succession]:
        with only_one(self.lock):
            yield self._settle()

    def _settle(self) -> Succession:
        """Finish or abandon what a dead process began, and write down what another hand changed."""
        state = succession(self.audit.read(self.warehouse).select(_STATE_COLUMNS).iter_rows(named=True))
        alias = self.registry.by_alias(CHAMPION)
        serving = alias.version if alias else None
        if (change := state.unfinished) is not None:
            request = Request(change.actor, change.reason, change.operation_id)
            if serving == change.version:
                return self._finish(state, change, request, {})
            mended = replace(request, reason=f"its process ended before the alias moved: {change.reason}")
            self._log("abandoned", mended, self.registry.version(change.version))
            state = replace(state, unfinished=None)
        if serving != state.champion:
            reason = (
                f"the alias was moved by another hand, from {state.champion or 'none'} to {serving or 'none'}"
            )
            event = self.audit.event(
                "adopted",
                actor="unknown",
                reason=reason,
                model_version=serving,
                replaced_version=state.champion,
                model_name=self.registry.model_name,
            )
            self.audit.append(self.warehouse, event)
            earlier = state.earlier if state.champion is None else (*state.earlier, state.champion)
            state = replace(state, champion=serving, earlier=earlier)
        return state

    def _carry_out(
        self, state: Succession, change: Change, request: Request, facts: Mapping[str, Any]
    ) -> ChangeResult:
        version = self.registry.version(change.version)
        begun: Event = "promotion_begun" if change.kind == "promotion" else "rollback_begun"
        self._log(begun, request, version, replaced_version=change.replaced)
        try:
            self.bundles.publish(
                version, self.registry.load_forecaster(version), self.warehouse, self.registry
            )
        except Exception as error:
            self._log("abandoned", request, version, error_message=" ".join(str(error).split()))
            raise
        self.registry.set_alias(CHAMPION, version)
        after = self._finish(state, change, request, facts)
        verb = (
            "was promoted"
            if change.kind == "promotion"
            else f"serves again, {change.replaced} was taken back"
        )
        return self._result("changed", after, f"version {change.version} {verb}")

    def _finish(
        self, state: Succession, change: Change, request: Request, facts: Mapping[str, Any]
    ) -> Succession:
        after = state.after(change)
        version = self.registry.version(change.version)
        if after.previous is None:
            self.registry.drop_alias(PREVIOUS)
        else:
            self.registry.set_alias(PREVIOUS, self.registry.version(after.previous))
        done: Event = "promoted" if change.kind == "promotion" else "rolled_back"
        for key, value in (
            ("at", clock.now().isoformat(timespec="seconds")),
            ("by", change.actor),
            ("because", change.reason),
        ):
            self.registry.tag_version(version, f"{done}_{key}", value)
        self._log(
            done,
            request,
            version,
            replaced_version=change.replaced,
            bundle_id=version.tags.get(BUNDLE_TAG),
            **facts,
        )
        return after

    def _done_before(self, state: Succession, request: Request) -> ChangeResult | None:
        if request.operation_id in state.finished:
            return self._result("unchanged", state, "this request was carried out before")
        return None

    def _log(self, event: Event, request: Request, version: ModelVersion, **facts: Any) -> None:
        self.audit.append(
            self.warehouse,
            self.audit.event(
                event,
                actor=request.actor,
                reason=request.reason,
                service_date=request.service_date,
                operation_id=request.operation_id,
                dagster_run_id=request.dagster_run_id,
                **{**version_facts(version), **facts},
            ),
        )

    def _result(self, outcome: Any, state: Succession, text: str) -> ChangeResult:
        serving = self.registry.by_alias(CHAMPION)
        return ChangeResult(
            outcome, state.champion, state.previous, serving.tags.get(BUNDLE_TAG) if serving else None, text
        )
