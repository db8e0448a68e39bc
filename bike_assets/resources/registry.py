"""MLflow: training runs, the model registry and its aliases.

Belongs here: everything that talks to MLflow. Runs are found by tag and handed on as ids, never as open handles,
because steps run in processes of their own and may be retried. Does not belong here: which model is better (see
`bike_assets.core.promotion`).
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dagster as dg
import polars as pl

from bike_assets.core.bundle import FORMAT_VERSION
from bike_assets.core.errors import PermanentError
from bike_assets.core.features import FEATURE_COLUMNS
from bike_assets.core.model import Forecaster
from bike_assets.core.versions import Recipe, SemanticVersion, next_version
from bike_assets.settings import Settings

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT: Final = "bike-traffic"
BACKTESTS: Final = "bike-traffic-backtests"
CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PREVIOUS: Final = "previous"
BASELINE_TAG: Final = "baseline_window"
"""Tag of the registered model: days that no training learns from; of a version: those that its training left out."""

TRAINING_SECONDS_TAG: Final = "training_seconds"
SEMANTIC_TAG: Final = "semantic_version"
_INTERFACE_TAG: Final = "recipe_interface"
_METHOD_TAG: Final = "recipe_method"
_FORECASTER_DIR: Final = "forecaster"
_HOLDOUT: Final = "holdout.parquet"
_RUN_TAG: Final = "bike.dagster_run_id"
_REPORT_TAG: Final = "bike.report"


@dataclass(frozen=True)
class ModelVersion:
    """One version in the registry."""

    name: str
    version: str
    run_id: str
    tags: Mapping[str, str]

    @property
    def trained_until(self) -> date:
        """Last local day of counts that the training saw."""
        return date.fromisoformat(self.tags["trained_until"])


class ModelRegistry(dg.ConfigurableResource):  # type: ignore[type-arg]
    """MLflow's tracking store and registry. MLflow takes seconds to import, so only using it does."""

    tracking_uri: str
    artifacts_dir: str
    ui_url: str
    model_name: str

    @classmethod
    def from_settings(cls, settings: Settings) -> "ModelRegistry":
        """The registry that the settings name."""
        return cls(
            tracking_uri=settings.tracking_uri,
            artifacts_dir=str(settings.artifacts_dir),
            ui_url=settings.mlflow_ui_url,
            model_name=settings.model_name,
        )

    def client(self) -> "MlflowClient":
        """A client of the tracking store and the registry."""
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)
        return mlflow.MlflowClient()

    def log_training(
        self,
        forecaster: Forecaster,
        *,
        dagster_run_id: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        example: pl.DataFrame,
    ) -> ModelVersion:
        """Log a training and register its model as challenger. Doing it twice for one Dagster run is harmless.

        Args:
            forecaster: the fitted model.
            dagster_run_id: finds the MLflow run again when the step is retried.
            params: settings of the training.
            metrics: measured on held-out days, never on rows of the training.
            tags: provenance: data hash, git commit, training window.
            example: a few rows of features, from which the signature is drawn.

        Returns:
            The registered version, with alias `challenger`.
        """
        import mlflow
        from mlflow.models import infer_signature

        client = self.client()
        experiment_id = self._experiment(client)
        found = client.search_runs([experiment_id], f"tags.`{_RUN_TAG}` = '{dagster_run_id}'", max_results=1)
        if found and (done := self._version_of(client, found[0].info.run_id)):
            # A step killed right after it registered has not named its challenger yet.
            client.set_registered_model_alias(self.model_name, CHALLENGER, done.version)
            return done
        run_id = found[0].info.run_id if found else None
        with mlflow.start_run(run_id=run_id, experiment_id=None if run_id else experiment_id) as run:
            mlflow.set_tags({_RUN_TAG: dagster_run_id, **tags})
            mlflow.log_params(dict(params))
            mlflow.log_metrics(dict(metrics))
            with tempfile.TemporaryDirectory() as folder:
                forecaster.save(Path(folder))
                mlflow.log_artifacts(folder, _FORECASTER_DIR)
                forecaster.holdout.write_parquet(Path(folder) / _HOLDOUT)
                mlflow.log_artifact(str(Path(folder) / _HOLDOUT))
            source, model_id = f"{run.info.artifact_uri}/{_FORECASTER_DIR}", None
            if (
                forecaster.config.family == "catboost"
            ):  # the one of our families that MLflow knows how to keep
                inputs = example.select(FEATURE_COLUMNS).cast(pl.Float64).to_pandas()
                logged = mlflow.catboost.log_model(
                    forecaster.catboost.trees,
                    name="model",
                    signature=infer_signature(inputs, forecaster.catboost.trees.predict(inputs)),
                    pip_requirements=["catboost"],
                )
                source, model_id = logged.model_uri, logged.model_id
        self._ensure_model(client)
        recipe = Recipe.of(FEATURE_COLUMNS, FORMAT_VERSION, params)
        version = client.create_model_version(
            self.model_name,
            source=source,
            run_id=run.info.run_id,
            # A server takes such a source from nobody who does not name it.
            model_id=model_id,
            tags={
                **tags,
                SEMANTIC_TAG: str(next_version(self._newest(), recipe)),
                _INTERFACE_TAG: recipe.interface,
                _METHOD_TAG: recipe.method,
            },
        )
        client.set_registered_model_alias(self.model_name, CHALLENGER, version.version)
        return _version(client.get_model_version(self.model_name, version.version))

    def baseline_window(self) -> str | None:
        """The days that were fixed for every training of this model; None before the first that had enough history."""
        from mlflow.exceptions import MlflowException

        try:
            tags: Mapping[str, str] = self.client().get_registered_model(self.model_name).tags
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return tags.get(BASELINE_TAG)

    def fix_baseline_window(self, window: str) -> None:
        """Fix the days that no training of this model learns from."""
        client = self.client()
        self._ensure_model(client)
        client.set_registered_model_tag(self.model_name, BASELINE_TAG, window)

    def describe(self, version: ModelVersion, text: str, files: Mapping[str, str]) -> None:
        """Write a version's description, and files beside its model.

        Args:
            version: the registered version.
            text: Markdown, as the registry shows it.
            files: name → content of artifacts of its run.
        """
        client = self.client()
        client.update_model_version(version.name, version.version, description=text)
        for name, content in files.items():
            client.log_text(version.run_id, content, name)

    def load_forecaster(self, version: ModelVersion) -> Forecaster:
        """The fitted model of a version, from the artifacts of its run."""
        import mlflow

        self.client()
        with tempfile.TemporaryDirectory() as folder:
            path = mlflow.artifacts.download_artifacts(
                run_id=version.run_id, artifact_path=_FORECASTER_DIR, dst_path=folder
            )
            return Forecaster.load(Path(path))

    def load_holdout(self, version: ModelVersion) -> pl.DataFrame:
        """Forecasts and truth of the days that the training of a version left out (`Forecaster.holdout`)."""
        import mlflow

        self.client()
        with tempfile.TemporaryDirectory() as folder:
            path = mlflow.artifacts.download_artifacts(
                run_id=version.run_id, artifact_path=_HOLDOUT, dst_path=folder
            )
            return pl.read_parquet(path)

    def log_report(self, name: str, day: date, files: Sequence[Path]) -> str:
        """Keep a report in MLflow, where a browser can open it; one run a report and day.

        Returns:
            Where a person opens the first file.
        """
        import mlflow

        client = self.client()
        experiment_id = self._experiment(client)
        run_name = f"{name} {day}"
        found = client.search_runs([experiment_id], f"tags.`{_REPORT_TAG}` = '{run_name}'", max_results=1)
        run_id = found[0].info.run_id if found else None
        with mlflow.start_run(
            run_id=run_id, experiment_id=None if run_id else experiment_id, run_name=run_name
        ) as run:
            mlflow.set_tag(_REPORT_TAG, run_name)
            for file in files:
                mlflow.log_artifact(str(file))
        return f"{self.run_url(run.info.run_id)}/artifacts/{files[0].name}"

    def log_backtest(
        self, name: str, *, params: Mapping[str, Any], metrics: Mapping[str, float], files: Sequence[Path]
    ) -> str:
        """Log a backtest as a run of an experiment of its own.

        Args:
            name: of the run; the same backtest run again is another run.
            params: what was backtested.
            metrics: measured on the period, by family.
            files: report and tables.

        Returns:
            Where a person opens the run.
        """
        import mlflow

        experiment_id = self._experiment(self.client(), BACKTESTS)
        with mlflow.start_run(experiment_id=experiment_id, run_name=name) as run:
            mlflow.log_params(dict(params))
            mlflow.log_metrics(dict(metrics))
            for file in files:
                mlflow.log_artifact(str(file))
        return f"{self.ui_url}/#/experiments/{experiment_id}/runs/{run.info.run_id}"

    def by_alias(self, alias: str) -> ModelVersion | None:
        """The version an alias points to, or None where there is none yet."""
        from mlflow.exceptions import MlflowException

        try:
            return _version(self.client().get_model_version_by_alias(self.model_name, alias))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def version(self, number: str) -> ModelVersion:
        """A version by its number.

        Raises:
            PermanentError: there is none.
        """
        from mlflow.exceptions import MlflowException

        try:
            return _version(self.client().get_model_version(self.model_name, number))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise PermanentError(
                    f"{self.model_name} has no version {number}; bike-assets champion summary lists them"
                ) from error
            raise

    def versions(self) -> list[ModelVersion]:
        """Every version, the oldest first."""
        found = self.client().search_model_versions(f"name = '{self.model_name}'")
        return sorted(map(_version, found), key=lambda version: int(version.version))

    def champion(self) -> ModelVersion:
        """The version that serves.

        Raises:
            PermanentError: none was promoted yet.
        """
        version = self.by_alias(CHAMPION)
        if version is None:
            raise PermanentError(
                f"{self.model_name} has no champion yet; materialise trained_model and champion first"
            )
        return version

    def set_alias(self, alias: str, version: ModelVersion) -> None:
        """Point an alias at a version. The registry does it in one step."""
        self.client().set_registered_model_alias(self.model_name, alias, version.version)

    def drop_alias(self, alias: str) -> None:
        """Take an alias away; one that is not there stays away."""
        if self.by_alias(alias) is not None:
            self.client().delete_registered_model_alias(self.model_name, alias)

    def tag_version(self, version: ModelVersion, key: str, value: str) -> None:
        """Set one tag of a version."""
        self.client().set_model_version_tag(self.model_name, version.version, key, value)

    def run_url(self, run_id: str) -> str:
        """Where a person opens a run."""
        experiment_id = self._experiment(self.client())
        return f"{self.ui_url}/#/experiments/{experiment_id}/runs/{run_id}"

    def _newest(self) -> tuple[SemanticVersion, Recipe] | None:
        """The highest semantic version, and how that model was made; versions of earlier releases have none."""
        numbered = [
            (
                SemanticVersion.parse(version.tags[SEMANTIC_TAG]),
                Recipe(version.tags[_INTERFACE_TAG], version.tags[_METHOD_TAG]),
            )
            for version in self.versions()
            if SEMANTIC_TAG in version.tags
        ]
        return max(numbered, key=lambda found: found[0], default=None)

    def _experiment(self, client: "MlflowClient", name: str = EXPERIMENT) -> str:
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        local = self.tracking_uri.startswith("sqlite:")
        location = Path(self.artifacts_dir).as_uri() if local else None
        return str(client.create_experiment(name, artifact_location=location))

    def _ensure_model(self, client: "MlflowClient") -> None:
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(
                self.model_name, description="Hourly bicycle traffic, seven days ahead, every counter"
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _version_of(self, client: "MlflowClient", run_id: str) -> ModelVersion | None:
        found = client.search_model_versions(f"name = '{self.model_name}' and run_id = '{run_id}'")
        return _version(found[0]) if found else None


def _version(found: Any) -> ModelVersion:
    return ModelVersion(
        name=found.name, version=str(found.version), run_id=found.run_id, tags=dict(found.tags)
    )
