"""Asks MLflow's registry over REST which bundle the champion is.

Belongs here: the one call to MLflow and what its failures mean. Does not belong here: loading bundles. The
MLflow package is not used: one GET needs none of its hundred dependencies.
"""

from dataclasses import dataclass
from typing import Any

import httpx

from bike_assets.core.bundle import BUNDLE_ID_PATTERN
from bike_assets.core.errors import PermanentError, TransientError

_ALIAS_PATH = "/api/2.0/mlflow/registered-models/alias"
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


class MlflowRegistry:
    """A registered model's alias in an MLflow server."""

    def __init__(self, url: str, model_name: str, alias: str, timeout_seconds: float) -> None:
        self._url, self._model_name, self._alias = url, model_name, alias
        self._client = httpx.Client(base_url=url, timeout=timeout_seconds)

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
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS or answer.is_server_error:
            raise RegistryUnavailableError(f"MLflow at {self._url} answers with status {answer.status_code}")
        if not answer.is_success:
            raise NoChampionError(
                f"MLflow at {self._url} names no {self._alias} of {self._model_name} "
                f"(status {answer.status_code}{_error_code(answer)}); promote a model first"
            )
        return self._read(answer)

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


def _error_code(answer: httpx.Response) -> str:
    try:
        body: Any = answer.json()
        return f", {body['error_code']}"
    except (ValueError, KeyError, TypeError):
        return ""
