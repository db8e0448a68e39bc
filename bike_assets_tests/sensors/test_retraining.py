"""The sensor that closes the loop: a decision to retrain starts one training, whatever else happens."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from bike_assets.jobs import RETRAIN
from bike_assets.sensors.retraining import build_retraining_sensor
from bike_assets.settings import Settings


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as found:
        yield found


def repository() -> dg.RepositoryDefinition:
    @dg.asset
    def trained_model() -> None: ...

    @dg.asset(deps=[trained_model])
    def champion() -> None: ...

    @dg.asset
    def retraining_decision() -> None: ...

    return dg.Definitions(
        assets=[trained_model, champion, retraining_decision],
        jobs=[RETRAIN],
        sensors=[build_retraining_sensor(Settings())],
    ).get_repository_def()


class Sensor:
    """The sensor as the daemon runs it: ticks share a cursor."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.repository = repository()
        self.cursor: str | None = None

    def tick(self) -> Any:
        sensor = self.repository.get_sensor_def("retraining")
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, repository_def=self.repository
        ) as context:
            data = sensor.evaluate_tick(context)
        self.cursor = data.cursor
        return data


def decide(instance: dg.DagsterInstance, day: str, **metadata: Any) -> None:
    instance.report_runless_asset_event(
        dg.AssetMaterialization("retraining_decision", partition=day, metadata=metadata)
    )


def test_nothing_happens_before_the_first_decision(instance: dg.DagsterInstance) -> None:
    assert not Sensor(instance).tick().run_requests


def test_a_decision_to_retrain_starts_one_training_and_names_itself(instance: dg.DagsterInstance) -> None:
    sensor = Sensor(instance)
    decide(instance, "2024-02-26", retrain=True, decision="retrain_reactive")

    (request,) = sensor.tick().run_requests

    assert request.run_key == "retrain-2024-02-26"
    assert request.tags["bike.decision"] == "retrain_reactive"
    assert request.partition_key is None
    assert not sensor.tick().run_requests, "the same decision started a second training"


@pytest.mark.parametrize("metadata", [{"retrain": False, "decision": "fine"}, {"decision": "fine"}, {}])
def test_any_other_decision_starts_nothing_and_says_why(
    instance: dg.DagsterInstance, metadata: dict[str, Any]
) -> None:
    decide(instance, "2024-02-26", **metadata)

    data = Sensor(instance).tick()

    assert not data.run_requests
    assert "2024-02-26" in data.skip_message
    assert metadata.get("decision", "no decision") in data.skip_message


def test_a_decision_taken_twice_keeps_its_run_key(instance: dg.DagsterInstance) -> None:
    """Dagster starts no second run of a run key, so running a partition twice trains once."""
    sensor = Sensor(instance)
    keys = []
    for _ in range(2):
        decide(instance, "2024-02-26", retrain=True, decision="retrain_reactive")
        keys += [request.run_key for request in sensor.tick().run_requests]

    assert keys == ["retrain-2024-02-26"] * 2


def test_the_decision_of_another_day_starts_another_training(instance: dg.DagsterInstance) -> None:
    sensor = Sensor(instance)
    keys = []
    for day in ("2024-02-26", "2024-03-04"):
        decide(instance, day, retrain=True, decision="retrain_reactive")
        keys += [request.run_key for request in sensor.tick().run_requests]

    assert keys == ["retrain-2024-02-26", "retrain-2024-03-04"]


def test_a_newer_decision_overrules_an_older_one(instance: dg.DagsterInstance) -> None:
    decide(instance, "2024-02-26", retrain=True, decision="retrain_reactive")
    decide(instance, "2024-03-04", retrain=False, decision="fine")

    assert not Sensor(instance).tick().run_requests


def test_materialisations_of_other_assets_start_nothing(instance: dg.DagsterInstance) -> None:
    instance.report_runless_asset_event(
        dg.AssetMaterialization("drift_report", partition="2024-02-26", metadata={"retrain": True})
    )

    assert not Sensor(instance).tick().run_requests


def test_it_starts_the_training_job_whole() -> None:
    sensor = build_retraining_sensor(Settings())

    assert sensor.job_name == "retrain"
    keys = repository().get_job("retrain").asset_layer.executable_asset_keys
    assert {key.to_user_string() for key in keys} == {"trained_model", "champion"}


@pytest.mark.parametrize(
    ("env", "status"),
    [("local", dg.DefaultSensorStatus.STOPPED), ("compose", dg.DefaultSensorStatus.RUNNING)],
)
def test_it_is_off_on_a_laptop_and_on_elsewhere(env: str, status: dg.DefaultSensorStatus) -> None:
    assert build_retraining_sensor(Settings(env=env)).default_status == status  # type: ignore[arg-type]
