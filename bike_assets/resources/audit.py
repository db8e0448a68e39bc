"""Where the audit log is kept: rows in the warehouse, its signed head in a file beside them.

Belongs here: appending, reading, verifying. Does not belong here: what rows mean (`bike_assets.core.audit`).

The head is written after the rows. A process killed in between leaves a head that is one step behind, which is no
fault: the rows are signed themselves, and the next append moves the head on.
"""

import getpass
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import dagster as dg
import polars as pl

from bike_assets import clock
from bike_assets.core.audit import AuditEvent, Event, Head, chain, faults
from bike_assets.core.bundle import load_or_create_keys
from bike_assets.core.calendar import LOCAL_TZ
from bike_assets.core.contracts import AUDIT_LOG
from bike_assets.core.errors import PermanentError
from bike_assets.resources.locks import only_one
from bike_assets.resources.warehouse import Warehouse
from bike_assets.settings import Settings

AUTOMATION: Final = "automation"
"""The actor of what a policy decided and no person."""


class AuditLog(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The table `monitoring_audit.logs`, which only grows."""

    folder: str
    keys_dir: str
    env: str

    @classmethod
    def from_settings(cls, settings: Settings) -> "AuditLog":
        """The log of a home."""
        return cls(folder=str(settings.audit_dir), keys_dir=str(settings.keys_dir), env=settings.env)

    def append(self, warehouse: Warehouse, *events: AuditEvent) -> None:
        """Add rows, all of them or none, and move the head."""
        key = load_or_create_keys(Path(self.keys_dir)).signing_key
        with only_one(Path(self.folder) / "log.lock"):
            heads: list[Head] = []

            def after(last: pl.DataFrame) -> pl.DataFrame:
                newest = last.select("sequence", "hash").row(0) if last.height else None
                if newest is None and self._head_path.exists():
                    raise PermanentError(
                        f"{self._head_path} says that there is an audit log, but the warehouse holds none; restore the "
                        "warehouse, or move that file away to begin a new log"
                    )
                rows, head = chain(events, newest, key)
                heads.append(head)
                return rows

            warehouse.append(AUDIT_LOG, after)
            _write_whole(self._head_path, heads[-1].to_json() + "\n")

    def event(
        self,
        event: Event,
        *,
        actor: str,
        reason: str,
        service_date: date | None = None,
        **facts: Any,
    ) -> AuditEvent:
        """An event of now, with what every row of this process has in common.

        Args:
            event: what happened.
            actor: a person, or AUTOMATION.
            reason: why.
            service_date: the day it is about; by default today.
            facts: other columns of the log.
        """
        now = clock.now()
        return AuditEvent(
            event,
            now,
            service_date or now.astimezone(ZoneInfo(LOCAL_TZ)).date(),
            actor,
            reason,
            {
                "env": self.env,
                "executed_by": os_user(),
                **facts,
            },
        )

    def read(self, warehouse: Warehouse) -> pl.DataFrame:
        """All rows, in order."""
        return warehouse.read(AUDIT_LOG)

    def head(self) -> Head | None:
        """The signed head beside the log; None before the first row."""
        return (
            Head.from_json(self._head_path.read_text(encoding="utf-8")) if self._head_path.exists() else None
        )

    def verify(self, warehouse: Warehouse, copies: Sequence[Head] = ()) -> list[str]:
        """What is wrong with the log, in words.

        Args:
            warehouse: where the rows are.
            copies: heads that were kept elsewhere.
        """
        key = load_or_create_keys(Path(self.keys_dir)).public_key
        with only_one(Path(self.folder) / "log.lock"):
            here = self.head()
            return faults(self.read(warehouse), [*([here] if here else []), *copies], key)

    @property
    def _head_path(self) -> Path:
        return Path(self.folder) / "head.json"


def os_user() -> str:
    """The user of the operating system that this process runs as."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run as numbers that no user has
        return f"uid {os.getuid()}"


def version_facts(version: Any) -> Mapping[str, Any]:
    """What the log says of a model version (`bike_assets.resources.registry.ModelVersion`)."""
    return {
        "model_name": version.name,
        "model_version": version.version,
        "semantic_version": version.tags.get("semantic_version"),
        "data_hash": version.tags.get("data_hash"),
        "git_commit": version.tags.get("git_commit"),
        "run_id": version.run_id,
        "model_uri": f"models:/{version.name}/{version.version}",
    }


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
