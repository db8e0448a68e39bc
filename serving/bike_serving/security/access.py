"""Which role a path needs and what its requests count as: one table for the whole service.

Belongs here: rules by path. A path that is not named needs a reader, so a route that somebody forgets here is closed,
not open. Does not belong here: how a caller proves its role.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

VERSION_PREFIX: Final = "/v1"
"""Where the API's routes are; the same path without it is an alias and falls under the same rule."""


class Role(StrEnum):
    """What a caller may do: a reader asks, an admin may also change what is served."""

    READER = "reader"
    ADMIN = "admin"


class Meter(StrEnum):
    """What requests are counted as; each has its own limit."""

    PREDICT = "predict"
    TRAIN = "train"


@dataclass(frozen=True, slots=True)
class Rule:
    """The role a path needs (None: open to everybody), and what its requests count as (None: nothing)."""

    role: Role | None = Role.READER
    meter: Meter | None = None

    def allows(self, role: Role) -> bool:
        """Whether a caller of this role may pass."""
        return self.role is not Role.ADMIN or role is Role.ADMIN


_OPEN: Final = Rule(role=None)
_ASK: Final = Rule()
_COMPUTE: Final = Rule(meter=Meter.PREDICT)
_CHANGE: Final = Rule(role=Role.ADMIN, meter=Meter.TRAIN)

_RULES: Final[Mapping[str, Rule]] = {
    "/health": _OPEN,
    "/ready": _OPEN,
    "/v2/health/live": _OPEN,
    "/v2/health/ready": _OPEN,
    "/webhooks/mlflow": _OPEN,  # believed by its signature: MLflow sends no key
    "/predict": _COMPUTE,
    "/forecast": _COMPUTE,
    "/evaluate": _COMPUTE,
    "/drift": _COMPUTE,
    "/monitor": _COMPUTE,
    "/train": _CHANGE,
    "/promote_champion": _CHANGE,
    "/rollback": _CHANGE,
    "/approve": _CHANGE,
    "/reject": _CHANGE,
}


def rule_of(path: str) -> Rule:
    """The rule for a path as the server decoded it."""
    path = path.removeprefix(VERSION_PREFIX)
    if rule := _RULES.get(path):
        return rule
    # Paths with a name in them: inference of the Open Inference Protocol, the forecast of one counter.
    return _COMPUTE if path.endswith(("/infer", "/forecast")) else _ASK
