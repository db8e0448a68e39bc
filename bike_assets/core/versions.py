"""Semantic versions of models: what a reader may conclude from a number.

Belongs here: the number and what raises which part of it. Does not belong here: MLflow's own counting, which tells
versions apart.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import total_ordering
from typing import Any

from bike_assets.core.errors import ContractError


@total_ordering
@dataclass(frozen=True)
class SemanticVersion:
    """MAJOR.MINOR.PATCH, as semver.org writes it."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    def __lt__(self, other: "SemanticVersion") -> bool:
        return (self.major, self.minor, self.patch) < (other.major, other.minor, other.patch)

    @classmethod
    def parse(cls, text: str) -> "SemanticVersion":
        """Read what `str` wrote.

        Raises:
            ContractError: it is something else.
        """
        if not re.fullmatch(r"\d+\.\d+\.\d+", text):
            raise ContractError(f"{text!r} is no semantic version; write it as 1.4.2")
        return cls(*map(int, text.split(".")))


@dataclass(frozen=True)
class Recipe:
    """What a model is made by, as far as its number tells.

    `interface`: inputs and bundle format, which the service must understand; `method`: family and training settings.
    """

    interface: str
    method: str

    @classmethod
    def of(cls, features: Sequence[str], bundle_format: int, params: Mapping[str, Any]) -> "Recipe":
        """The recipe of a training."""
        return cls(_digest([list(features), bundle_format]), _digest(dict(params)))


def next_version(newest: tuple[SemanticVersion, Recipe] | None, recipe: Recipe) -> SemanticVersion:
    """The number of the next model.

    MAJOR rises with the interface: a service of an older release cannot load it. MINOR rises with the method: another
    family, or other settings. PATCH rises where only the data are newer. The first is 1.0.0.

    Args:
        newest: the highest number so far, and its recipe.
        recipe: of the model to be numbered.
    """
    if newest is None:
        return SemanticVersion(1, 0, 0)
    number, before = newest
    if recipe.interface != before.interface:
        return SemanticVersion(number.major + 1, 0, 0)
    if recipe.method != before.method:
        return SemanticVersion(number.major, number.minor + 1, 0)
    return SemanticVersion(number.major, number.minor, number.patch + 1)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
