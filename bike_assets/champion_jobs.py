"""The jobs with which a person, the command line or the REST service changes who serves.

Belongs here: configuration, and handing it on. Does not belong here: how a change is carried out
(`bike_assets.resources.championship`).
"""

from collections.abc import Callable
from typing import Final

import dagster as dg

from bike_assets import tags
from bike_assets.core.errors import PermanentError
from bike_assets.resources.audit import AuditLog, os_user
from bike_assets.resources.bundles import BundleStore
from bike_assets.resources.championship import Championship, ChampionStore, ChangeResult, Request
from bike_assets.resources.registry import CHALLENGER, ModelRegistry
from bike_assets.resources.warehouse import Warehouse


class ChangeConfig(dg.Config):
    """What is asked for."""

    version: str = ""
    """Number of the version in the registry. Default: the challenger (promote), the champion (rollback), the one that
    waits (approve, reject)."""

    actor: str = ""
    """Who asks. Default: the user of the operating system."""

    reason: str = ""
    """Why; stands in the audit log."""


def _promote(championship: Championship, version: str, request: Request) -> ChangeResult:
    registry = championship.registry
    chosen = registry.version(version) if version else registry.by_alias(CHALLENGER)
    if chosen is None:
        raise PermanentError("there is no challenger to promote; materialise trained_model first")
    return championship.promote(chosen, request)


def _rollback(championship: Championship, version: str, request: Request) -> ChangeResult:
    return championship.rollback(version or None, request)


def _approve(championship: Championship, version: str, request: Request) -> ChangeResult:
    return championship.approve(version or None, request)


def _reject(championship: Championship, version: str, request: Request) -> ChangeResult:
    return championship.reject(version or None, request)


def _job(
    name: str, description: str, change: Callable[[Championship, str, Request], ChangeResult]
) -> dg.JobDefinition:
    @dg.op(name=f"{name}_champion", description=description, pool=tags.WAREHOUSE_POOL, out=dg.Out(dg.Nothing))
    def carry_out(
        context: dg.OpExecutionContext,
        config: ChangeConfig,
        championship: ChampionStore,
        registry: ModelRegistry,
        bundles: BundleStore,
        warehouse: Warehouse,
        audit: AuditLog,
    ) -> None:
        request = Request(
            config.actor or os_user(),
            config.reason or "no reason given",
            operation_id=context.run.run_id,
            dagster_run_id=context.run.run_id,
        )
        result = change(championship.open(registry, bundles, warehouse, audit), config.version, request)
        context.log.info(result.text)
        context.add_output_metadata(
            {
                "outcome": result.outcome,
                "champion": result.champion or "none",
                "previous": result.previous or "none",
                "bundle_id": result.bundle_id or "none",
                "text": result.text,
            }
        )

    @dg.job(name=name, description=description)
    def job() -> None:
        carry_out()

    return job


CHAMPION_JOBS: Final = (
    _job("promote", "Make a version champion, whatever the policy says of it", _promote),
    _job("rollback", "Take the champion back and let the one before it serve", _rollback),
    _job("approve", "Promote the challenger that won and waits for a person", _approve),
    _job("reject", "Say no to the challenger that waits for a person", _reject),
)
