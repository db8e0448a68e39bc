"""The folder of champion bundles, which the REST service reads."""

from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg

from bike_assets.core.bundle import (
    ISSUE_DAYS,
    WEATHER_CONTEXT_COLUMNS,
    BundleInfo,
    load_or_create_keys,
    write_bundle,
)
from bike_assets.core.contracts import CALIBRATIONS, CLEANED_COUNTS, COUNTERS, RAW_WEATHER, TableContract
from bike_assets.core.errors import PermanentError
from bike_assets.core.features import LOOKBACK_DAYS
from bike_assets.core.model import Forecaster
from bike_assets.resources.bucket import put_bundle
from bike_assets.resources.registry import ModelRegistry, ModelVersion
from bike_assets.resources.warehouse import Warehouse
from bike_assets.settings import Settings

BUNDLE_TAG = "bundle_id"
"""Tag of a model version that names the bundle to serve. The service reads it."""


class BundleStore(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Writes signed bundles into a folder, and into a bucket where one is named."""

    bundles_dir: str
    keys_dir: str
    bundles_url: str = ""

    @classmethod
    def from_settings(cls, settings: Settings) -> "BundleStore":
        """The folder and the bucket that the settings name."""
        return cls(
            bundles_dir=str(settings.bundles_dir),
            keys_dir=str(settings.keys_dir),
            bundles_url=settings.bundles_url,
        )

    def publish(
        self,
        version: ModelVersion,
        forecaster: Forecaster,
        warehouse: Warehouse,
        registry: ModelRegistry,
        calibrations: TableContract = CALIBRATIONS,
    ) -> str:
        """Write the bundle of a version with the newest counts, and name it in the registry.

        The bundle is whole on disk, and in the bucket, before the registry names it, so the service never looks for
        one that is not there. The same model and counts give the same bundle.

        Args:
            version: the registered version.
            forecaster: its fitted model.
            warehouse: holds the counts.
            registry: is told the bundle's id.
            calibrations: where those of the version's vintages are.

        Returns:
            The bundle's id.
        """
        newest = warehouse.newest_day(CLEANED_COUNTS)
        if newest is None:
            raise PermanentError(
                "there are no cleaned counts to forecast from; materialise cleaned_counts first"
            )
        context = warehouse.read(CLEANED_COUNTS, newest - timedelta(days=LOOKBACK_DAYS + ISSUE_DAYS), newest)
        path = write_bundle(
            Path(self.bundles_dir),
            forecaster,
            context,
            BundleInfo(
                model_name=version.name,
                model_version=version.version,
                run_id=version.run_id,
                git_commit=version.tags["git_commit"],
                data_hash=version.tags["data_hash"],
                trained_until=version.trained_until,
                metrics={
                    key.removeprefix("holdout."): float(value)
                    for key, value in version.tags.items()
                    if key.startswith("holdout.")
                },
                # When the model was trained and not when this was written: the same content is the same bundle.
                created_at=datetime.fromisoformat(version.tags["trained_at"]),
            ),
            load_or_create_keys(Path(self.keys_dir)).signing_key,
            warehouse.read(COUNTERS),
            warehouse.read(
                RAW_WEATHER,
                newest - timedelta(days=LOOKBACK_DAYS + ISSUE_DAYS),
                newest + timedelta(days=1),
                columns=WEATHER_CONTEXT_COLUMNS,
            ),
            warehouse.read(
                calibrations, newest - timedelta(days=ISSUE_DAYS), newest + timedelta(days=1)
            ).filter(run_id=version.run_id),
        )
        if self.bundles_url:
            put_bundle(path, self.bundles_url)
        registry.tag_version(version, BUNDLE_TAG, path.name)
        return path.name
