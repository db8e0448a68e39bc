"""Asks MLflow's registry over REST which bundle the champion is.

Belongs here: the calls to MLflow and what their failures mean. Does not belong here: loading bundles. The
MLflow package is not used: one GET needs none of its hundred dependencies.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from bike_assets.core.bundle import BUNDLE_ID_PATTERN
from bike_assets.core.errors import PermanentError, TransientError

_ALIAS_PATH = "/api/2.0/mlflow/registered-models/alias"
_SEARCH_PATH = "/api/2.0/mlflow/model-versions/search"
_RUN_PATH = "/api/2.0/mlflow/runs/get"
_BUNDLE_TAG = "bundle_id"


class RegistryUnavailableError(TransientError):
    """The registry cannot be reached or is busy: it may answer later."""


class NoChampionError(PermanentError):
    """The registry answers, but names no champion that could be served."""


@dataclass(frozen=True)
class ModelRef:
    """Which model, and which bundle of it."""

    name: str
    version: str
    run_id: str
    bundle_id: str


@dataclass(frozen=True)
class ModelVersion:
    """A registered version; accuracy on the held-out days of its training, one day ahead, None where unknown."""

    timestamp: datetime
    model_type: str | None
    version: str
    run_id: str
    model_uri: str
    is_champion: bool
    r2: float | None
    rmse: float | None


class MlflowRegistry:
    """A registered model's alias in an MLflow server."""

    def __init__(
        self,
        url: str,
        model_name: str,
        alias: str,
        timeout_seconds: float,
        credentials: tuple[str, str] | None = None,
    ) -> None:
        self._url, self._model_name, self._alias = url, model_name, alias
        self._client = httpx.Client(base_url=url, timeout=timeout_seconds, auth=credentials)

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def resolve(self) -> ModelRef:
        """The version that holds the alias, and the bundle its tag `bundle_id` names.

        Raises:
            RegistryUnavailableError: no connection, no answer in time, or a server error.
            NoChampionError: no such model or alias, no tag, or an answer that is none.
        """
        try:
            answer = self._client.get(_ALIAS_PATH, params={"name": self._model_name, "alias": self._alias})
        except httpx.TransportError as error:
            raise RegistryUnavailableError(
                f"MLflow at {self._url} cannot be reached ({type(error).__name__}); start it or check the URL"
            ) from error
        if _in_trouble(answer):
            raise RegistryUnavailableError(f"MLflow at {self._url} answers with status {answer.status_code}")
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise NoChampionError(
                f"MLflow at {self._url} does not know us; check BIKE_SERVING_MLFLOW_USERNAME and …_PASSWORD"
            )
        if not answer.is_success:
            raise NoChampionError(
                f"MLflow at {self._url} names no {self._alias} of {self._model_name} "
                f"(status {answer.status_code}{_error_code(answer)}); promote a model first"
            )
        return self._read(answer)

    def versions(self, limit: int = 20) -> list[ModelVersion]:
        """The newest versions of the model with the held-out accuracy of their trainings, newest first.

        Raises:
            RegistryUnavailableError: MLflow cannot be asked.
            NoChampionError: the model is not registered, or the answer is none.
        """
        champion = self._champion_version()
        query: dict[str, str | int] = {"filter": f"name='{self._quoted}'", "max_results": 1000}
        found = self._get(_SEARCH_PATH, query).get("model_versions", [])
        newest = sorted(found, key=lambda version: -int(version["version"]))[:limit]
        return [self._described(version, champion) for version in newest]

    def version_of_run(self, run_id: str) -> str:
        """The version that a training registered.

        Raises:
            RegistryUnavailableError: MLflow cannot be asked.
            NoChampionError: it registered none of this model.
        """
        query: dict[str, str | int] = {
            "filter": f"name='{self._quoted}' and run_id='{run_id}'",
            "max_results": 1,
        }
        found = self._get(_SEARCH_PATH, query).get("model_versions", [])
        if not found:
            raise NoChampionError(f"run {run_id} registered no version of {self._model_name}")
        return str(found[0]["version"])

    @property
    def _quoted(self) -> str:
        return self._model_name.replace("\\", "\\\\").replace("'", "\\'")

    def _champion_version(self) -> str | None:
        try:
            found = self._get(_ALIAS_PATH, {"name": self._model_name, "alias": self._alias})
        except NoChampionError:
            return None
        return str(found["model_version"]["version"])

    def _described(self, version: dict[str, Any], champion: str | None) -> ModelVersion:
        run_id = str(version.get("run_id", ""))
        data: dict[str, Any] = {}
        if run_id:
            try:
                data = self._get(_RUN_PATH, {"run_id": run_id})["run"].get("data", {})
            except NoChampionError:
                data = {}  # a run may be deleted while its version stays
        metrics = {metric["key"]: metric["value"] for metric in data.get("metrics", [])}
        parameters = {parameter["key"]: parameter["value"] for parameter in data.get("params", [])}
        return ModelVersion(
            timestamp=datetime.fromtimestamp(int(version["creation_timestamp"]) / 1000, UTC),
            model_type=str(parameters.get("family", "")) or None,
            version=str(version["version"]),
            run_id=run_id,
            model_uri=f"models:/{version['name']}/{version['version']}",
            is_champion=str(version["version"]) == champion,
            r2=_finite(metrics.get("holdout.day_1.r2")),
            rmse=_finite(metrics.get("holdout.day_1.rmse")),
        )

    def _get(self, path: str, query: dict[str, str | int]) -> dict[str, Any]:
        try:
            answer = self._client.get(path, params=query)
        except httpx.TransportError as error:
            raise RegistryUnavailableError(
                f"MLflow cannot be reached ({type(error).__name__}); start it or check the URL"
            ) from error
        if _in_trouble(answer):
            raise RegistryUnavailableError(f"MLflow answers with status {answer.status_code}")
        if not answer.is_success:
            raise NoChampionError(
                f"MLflow does not know that (status {answer.status_code}{_error_code(answer)})"
            )
        try:
            found = answer.json()
        except ValueError as error:
            raise NoChampionError("the registry does not answer like MLflow; check its URL") from error
        if not isinstance(found, dict):
            raise NoChampionError("the registry does not answer like MLflow; check its URL")
        return found

    def _read(self, answer: httpx.Response) -> ModelRef:
        try:
            version = answer.json()["model_version"]
            tags = {tag["key"]: tag["value"] for tag in version.get("tags", [])}
            ref = ModelRef(
                name=str(version["name"]),
                version=str(version["version"]),
                run_id=str(version.get("run_id", "")),
                bundle_id=str(tags.get(_BUNDLE_TAG, "")),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NoChampionError(
                f"{self._url} does not answer like MLflow; check the URL of the registry"
            ) from error
        if not BUNDLE_ID_PATTERN.fullmatch(ref.bundle_id):
            raise NoChampionError(
                f"version {ref.version} of {ref.name} has no tag {_BUNDLE_TAG} naming a bundle; promote again"
            )
        return ref


def _finite(value: Any) -> float | None:
    """A number as JSON may have it; MLflow sends NaN and infinity as they are, or as text."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _in_trouble(answer: httpx.Response) -> bool:
    """Whether MLflow is busy, failed, or cannot ask its database, which it calls a bad request of ours."""
    return (
        answer.status_code == httpx.codes.TOO_MANY_REQUESTS
        or answer.is_server_error
        or _error_code(answer).endswith("BAD_REQUEST")
    )


def _error_code(answer: httpx.Response) -> str:
    try:
        body: Any = answer.json()
        return f", {body['error_code']}"
    except (ValueError, KeyError, TypeError):
        return ""
