"""The registry over MLflow's server as deployments have it: over HTTP, with users, each of whom may do what it must."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from mlflow.exceptions import MlflowException

from bike_assets.resources.registry import CHALLENGER, CHAMPION, ModelRegistry, ModelVersion
from bike_assets_tests.emulators.processes import MlflowServer, mlflow_server
from bike_assets_tests.tables import TRAINED_UNTIL, small_features, small_forecaster, version_tags
from bike_serving.registry import MlflowRegistry, NoChampionError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    # MLflow, of type hints of its own, while it is imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("mlflow")
    with mlflow_server(f"sqlite:///{folder / 'mlflow.db'}", folder) as started:
        yield started


@pytest.fixture(scope="module")
def version(server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    """What the platform has trained, promoted and published."""
    with acting_as("platform", server) as registry:
        logged = registry.log_training(
            small_forecaster(),
            dagster_run_id="run-1",
            params={"iterations": 5},
            metrics={"holdout.day_1.r2": 0.9},
            tags=version_tags(),
            example=small_features(TRAINED_UNTIL, TRAINED_UNTIL).head(50),
        )
        registry.tag_version(logged, "bundle_id", "0" * 32)
        registry.set_alias(CHAMPION, logged)
        return logged


@contextmanager
def acting_as(user: str, server: MlflowServer) -> Iterator[ModelRegistry]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment(user).items():
            patch.setenv(name, value)
        yield ModelRegistry(
            tracking_uri=server.url, artifacts_dir="", ui_url=server.url, model_name="bike-traffic"
        )


def test_before_the_first_training_there_is_no_champion_and_no_fault(server: MlflowServer) -> None:
    with acting_as("platform", server) as registry:
        assert registry.by_alias(CHAMPION) is None
        assert registry.baseline_window() is None


def test_the_platform_trains_promotes_and_gets_its_model_back(
    server: MlflowServer, version: ModelVersion
) -> None:
    features = small_features(TRAINED_UNTIL, TRAINED_UNTIL).head(50)
    with acting_as("platform", server) as registry:
        for alias in (CHALLENGER, CHAMPION):
            found = registry.by_alias(alias)
            assert found is not None
            assert found.version == version.version
        again = registry.load_forecaster(version)
    assert again.predict(features).equals(small_forecaster().predict(features))


def test_the_service_reads_and_may_change_nothing(server: MlflowServer, version: ModelVersion) -> None:
    reader = MlflowRegistry(
        server.url, "bike-traffic", CHAMPION, 10, ("serving", server.passwords["serving"])
    )
    assert reader.resolve().version == version.version
    assert [each.r2 for each in reader.versions()] == [0.9]
    reader.close()

    with acting_as("serving", server) as registry:
        with pytest.raises(MlflowException, match="Permission denied"):
            registry.set_alias(CHALLENGER, version)
        with pytest.raises(MlflowException, match="Permission denied"):
            registry.fix_baseline_window("2024-01-01/2024-01-28")


@pytest.mark.parametrize("credentials", [None, ("serving", "guessed"), ("nobody", "x")])
def test_a_stranger_learns_nothing(
    server: MlflowServer, version: ModelVersion, credentials: tuple[str, str] | None
) -> None:
    stranger = MlflowRegistry(server.url, version.name, CHAMPION, 10, credentials)
    with pytest.raises(NoChampionError, match="does not know us"):
        stranger.resolve()
    stranger.close()
