"""The registry over a real MLflow on SQLite: what is logged is found again, and logging twice is harmless."""

from datetime import date
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.core.errors import PermanentError
from bike_assets.core.features import FEATURE_COLUMNS
from bike_assets.core.model import TrainConfig, make_forecaster
from bike_assets.resources.registry import CHALLENGER, CHAMPION, PREVIOUS, ModelRegistry, ModelVersion
from bike_assets_tests.tables import (
    TRAINED_UNTIL,
    registry_in,
    small_features,
    small_forecaster,
    version_tags,
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    """One registry for tests that only add to it; each logs under a Dagster run of its own."""
    return registry_in(tmp_path_factory.mktemp("mlflow"))


def log(registry: ModelRegistry, run: str = "run-1") -> ModelVersion:
    return registry.log_training(
        small_forecaster(),
        dagster_run_id=run,
        params={"iterations": 5},
        metrics={"holdout.day_1.r2": 0.9},
        tags=version_tags(),
        example=small_features(TRAINED_UNTIL, TRAINED_UNTIL).head(50),
    )


@pytest.fixture(scope="module")
def version(registry: ModelRegistry) -> ModelVersion:
    return log(registry)


def test_nobody_serves_before_the_first_training(tmp_path: Path) -> None:
    empty = registry_in(tmp_path)

    assert empty.by_alias(CHAMPION) is None
    assert empty.by_alias(CHALLENGER) is None
    with pytest.raises(PermanentError, match="bike-traffic has no champion yet; materialise"):
        empty.champion()


def test_a_training_becomes_the_challenger_with_its_provenance(
    registry: ModelRegistry, version: ModelVersion
) -> None:
    challenger = registry.by_alias(CHALLENGER)

    assert challenger == version
    assert version.name == "bike-traffic"
    assert version.trained_until == TRAINED_UNTIL
    assert version_tags().items() <= version.tags.items()
    run = registry.client().get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"iterations": "5"}
    assert run.data.metrics == {"holdout.day_1.r2": 0.9}
    assert version_tags().items() <= run.data.tags.items()


def test_the_model_carries_a_signature_of_all_inputs(registry: ModelRegistry, version: ModelVersion) -> None:
    from mlflow.models import get_model_info

    registry.client()
    signature = get_model_info(f"models:/{version.name}/{version.version}").signature

    assert signature is not None
    assert signature.inputs.input_names() == list(FEATURE_COLUMNS)
    assert signature.outputs is not None


def test_a_family_that_mlflow_does_not_know_is_kept_and_found_again(tmp_path: Path) -> None:
    registry = registry_in(tmp_path)
    features = small_features(TRAINED_UNTIL, TRAINED_UNTIL).head(50)
    truth = features.select("counter_id", ts_utc="target_ts", hourly_count="mean4")
    forest = make_forecaster("random_forest", TrainConfig(forest_trees=2, thread_count=1)).fit(
        features, truth
    )
    version = registry.log_training(
        forest, dagster_run_id="forest", params={}, metrics={}, tags=version_tags(), example=features
    )

    assert_frame_equal(registry.load_forecaster(version).predict(features), forest.predict(features))


def test_the_same_dagster_run_is_logged_once(registry: ModelRegistry, version: ModelVersion) -> None:
    again = log(registry)

    assert (again.version, again.run_id) == (version.version, version.run_id)
    client = registry.client()
    assert len(client.search_model_versions(f"run_id = '{version.run_id}'")) == 1


def test_a_step_killed_before_the_registration_goes_on_with_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_in(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ModelRegistry, "_ensure_model", _die)
        with pytest.raises(KeyboardInterrupt):
            log(registry)
    assert registry.by_alias(CHALLENGER) is None

    version = log(registry)

    client = registry.client()
    experiment = client.get_experiment_by_name("bike-traffic")
    assert [run.info.run_id for run in client.search_runs([experiment.experiment_id])] == [version.run_id]
    challenger = registry.by_alias(CHALLENGER)
    assert challenger is not None
    assert challenger.version == version.version


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_step_killed_between_registration_and_alias_still_names_its_challenger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_in(tmp_path)
    client = type(registry.client())
    with monkeypatch.context() as patch:
        patch.setattr(client, "set_registered_model_alias", _die)
        with pytest.raises(KeyboardInterrupt):
            log(registry)

    version = log(registry)

    challenger = registry.by_alias(CHALLENGER)
    assert challenger is not None
    assert challenger.version == version.version


def test_a_model_comes_back_with_the_same_forecasts(registry: ModelRegistry, version: ModelVersion) -> None:
    features = small_features(TRAINED_UNTIL, TRAINED_UNTIL)

    loaded = registry.load_forecaster(version)

    assert_frame_equal(loaded.predict(features), small_forecaster().predict(features), check_exact=True)


def test_the_held_out_days_come_back(registry: ModelRegistry, version: ModelVersion) -> None:
    holdout = registry.load_holdout(version)

    assert holdout.height > 0
    assert_frame_equal(holdout, small_forecaster().holdout, check_exact=True)


def test_an_alias_moves_and_the_others_stay(registry: ModelRegistry, version: ModelVersion) -> None:
    second = log(registry, "run-2")

    registry.set_alias(PREVIOUS, version)
    registry.set_alias(CHAMPION, version)
    registry.set_alias(CHAMPION, second)

    assert registry.champion().version == second.version
    previous = registry.by_alias(PREVIOUS)
    assert previous is not None
    assert previous.version == version.version


def test_versions_are_numbered_by_what_changed(registry: ModelRegistry, version: ModelVersion) -> None:
    second = log(registry, "numbered")

    assert version.tags["semantic_version"] == "1.0.0"
    assert second.tags["semantic_version"].startswith("1.0.")
    assert second.tags["semantic_version"] != "1.0.0"
    assert registry.version(second.version) == second
    assert second in registry.versions()
    with pytest.raises(PermanentError, match="has no version 999"):
        registry.version("999")


def test_an_alias_is_dropped_once_and_for_all(registry: ModelRegistry, version: ModelVersion) -> None:
    registry.set_alias("short", version)
    registry.drop_alias("short")
    registry.drop_alias("short")

    assert registry.by_alias("short") is None


def test_the_baseline_window_is_fixed_with_the_model(tmp_path: Path) -> None:
    empty = registry_in(tmp_path)
    assert empty.baseline_window() is None

    empty.fix_baseline_window("2024-03-01/2024-03-28")

    assert empty.baseline_window() == "2024-03-01/2024-03-28"


def test_a_tag_is_seen_by_the_next_reader(registry: ModelRegistry, version: ModelVersion) -> None:
    registry.set_alias("tagged", version)
    registry.tag_version(version, "bundle_id", "abc")

    found = registry.by_alias("tagged")
    assert found is not None
    assert found.tags["bundle_id"] == "abc"


def test_a_report_has_one_run_a_day_and_keeps_the_newest_files(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    page = tmp_path / "drift.html"
    for text in ("old", "new"):
        page.write_text(text)
        url = registry.log_report("drift report", date(2024, 6, 3), [page])
    registry.log_report("drift report", date(2024, 6, 10), [page])

    client = registry.client()
    experiment = client.get_experiment_by_name("bike-traffic")
    runs = client.search_runs([experiment.experiment_id], "tags.`bike.report` LIKE 'drift report%'")
    assert sorted(run.info.run_name for run in runs) == ["drift report 2024-06-03", "drift report 2024-06-10"]
    run_id = next(run.info.run_id for run in runs if run.info.run_name.endswith("06-03"))
    kept = client.download_artifacts(run_id, "drift.html", str(tmp_path / "."))
    assert Path(kept).read_text() == "new"
    assert url == f"{registry.run_url(run_id)}/artifacts/drift.html"
    assert url.startswith("http://mlflow.test/#/experiments/")


def test_artifacts_stay_in_their_folder(registry: ModelRegistry, version: ModelVersion) -> None:
    run = registry.client().get_run(version.run_id)

    assert run.info.artifact_uri.startswith(Path(registry.artifacts_dir).as_uri())
    assert isinstance(
        pl.read_parquet(next(Path(registry.artifacts_dir).rglob("holdout.parquet"))), pl.DataFrame
    )
