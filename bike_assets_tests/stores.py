"""Stores that stand for MLflow and the bundle folder: they remember in memory what was done, in order.

Belongs here: what tests of the shell around the core put in the place of slow stores. Does not belong here: what is
tested with the real ones (`tables.registry_in`).
"""

from collections.abc import Callable
from datetime import date
from typing import Any, ClassVar

import polars as pl

from bike_assets.core.errors import PermanentError
from bike_assets.core.model import Forecaster
from bike_assets.resources.bundles import BUNDLE_TAG, BundleStore
from bike_assets.resources.registry import ModelRegistry, ModelVersion
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets_tests.tables import TRAINED_UNTIL, small_forecaster, version_tags


def version(number: str, trained_until: date = TRAINED_UNTIL) -> ModelVersion:
    """A version of the small model."""
    return ModelVersion("bike-traffic", number, f"run-{number}", version_tags(trained_until))


class Registry(ModelRegistry):
    """Stands for MLflow: aliases, forecasters and holdouts of the small model."""

    aliases: ClassVar[dict[str, ModelVersion]] = {}
    tags: ClassVar[dict[str, dict[str, str]]] = {}
    done: ClassVar[list[str]] = []
    broken: ClassVar[set[str]] = set()
    before_step: ClassVar[list[Callable[[str], None]]] = []

    def by_alias(self, alias: str) -> ModelVersion | None:
        found = self.aliases.get(alias)
        return self._tagged(found) if found else None

    def version(self, number: str) -> ModelVersion:
        known = [found for found in self.aliases.values() if found.version == number]
        return self._tagged(known[0] if known else version(number))

    def set_alias(self, alias: str, version: ModelVersion) -> None:
        self._step(f"{alias} -> {version.version}")
        self.aliases[alias] = version

    def drop_alias(self, alias: str) -> None:
        if alias in self.aliases:
            self._step(f"{alias} dropped")
            del self.aliases[alias]

    def tag_version(self, version: ModelVersion, key: str, value: str) -> None:
        self.tags.setdefault(version.version, {})[key] = value

    def load_forecaster(self, version: ModelVersion) -> Forecaster:
        return small_forecaster(1 if version.version in ("1", "2") else 9)

    def load_holdout(self, version: ModelVersion) -> pl.DataFrame:
        holdout = small_forecaster().holdout
        if version.version in self.broken:
            return holdout.with_columns(forecast=pl.col("forecast") * 5)
        return holdout

    def run_url(self, run_id: str) -> str:
        return f"http://mlflow.test/{run_id}"

    def _step(self, what: str) -> None:
        for hook in self.before_step:
            hook(what)
        self.done.append(what)

    def _tagged(self, found: ModelVersion) -> ModelVersion:
        tags = {**found.tags, **self.tags.get(found.version, {})}
        return ModelVersion(found.name, found.version, found.run_id, tags)


class Bundles(BundleStore):
    """Stands for the bundle folder."""

    fails: ClassVar[list[str]] = []

    def publish(
        self,
        version: ModelVersion,
        forecaster: Forecaster,
        warehouse: DuckDBWarehouse,
        registry: ModelRegistry,
    ) -> str:
        del forecaster, warehouse
        assert isinstance(registry, Registry)
        if self.fails:
            raise PermanentError(self.fails[0])
        registry._step(f"bundle of {version.version}")
        registry.tag_version(version, BUNDLE_TAG, "b" * 31 + version.version[-1])
        return "b" * 31 + version.version[-1]


def fresh_registry() -> Registry:
    """A registry in which nothing happened yet."""
    for memory in (Registry.aliases, Registry.tags, Registry.done, Registry.broken, Registry.before_step):
        memory.clear()
    Bundles.fails.clear()
    return Registry(tracking_uri="", artifacts_dir="", ui_url="", model_name="bike-traffic")


def no_bundles() -> Any:
    """A bundle folder that is none."""
    return Bundles(bundles_dir="", keys_dir="")
