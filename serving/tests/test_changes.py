"""Jobs that the service asks Dagster for, told by a server that answers as Dagster's GraphQL API does."""

import pytest

from bike_serving.security.access import Role

RUN = "0d3b2c1a-1f6e-4c55-9d58-3a8a3f6f0c11"
REASON = "wrong since Monday"


@pytest.fixture
def service(in_process, dagster, tmp_path):
    return in_process(tmp_path, dagster_url=f"http://127.0.0.1:{dagster.server_port}")


@pytest.fixture
def admin(service):
    return service.client(Role.ADMIN)


@pytest.mark.parametrize(
    ("path", "body", "job", "ops"),
    [
        ("train", {}, "retrain", {}),
        (
            "train",
            {"train_until": "2024-02-29"},
            "retrain",
            {"trained_model": {"config": {"train_until": "2024-02-29"}}},
        ),
        ("promote_champion", {"version": "13"}, "promote", "13"),
        ("rollback", {"version": "12"}, "rollback", "12"),
        ("rollback", {}, "rollback", ""),
        ("approve", {"version": "13"}, "approve", "13"),
        ("reject", {}, "reject", ""),
    ],
)
def test_a_change_starts_the_platforms_job_and_says_where_its_run_is(
    service, admin, dagster, path, body, job, ops
):
    answer = admin.post(f"/v1/{path}", json={**body, "reason": REASON})
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/runs/{RUN}"
    assert answer.json() == {"run_id": RUN, "job": job, "location": f"/v1/runs/{RUN}"}
    ((field, variables),) = dagster.asked
    params = variables["params"]
    actor = f"key:{service.keys[Role.ADMIN].split('_')[1]}"
    if isinstance(ops, str):
        ops = {f"{job}_champion": {"config": {"version": ops, "actor": actor, "reason": REASON}}}
    assert field == "launchRun"
    assert params["runConfigData"] == ({"ops": ops} if ops else {})
    assert params["selector"] == {
        "repositoryLocationName": "bike_assets",
        "repositoryName": "__repository__",
        "jobName": job,
    }
    tags = {tag["key"]: tag["value"] for tag in params["executionMetadata"]["tags"]}
    assert (tags["bike/actor"], tags["bike/reason"]) == (actor, REASON)
    assert tags["bike/request_id"] == answer.headers["x-request-id"]


def test_the_jobs_and_configurations_are_those_of_the_platform():
    """The names in `routes.changes` are the platform's: its own code would take them."""
    from bike_assets.assets.forecasting import TrainingConfig
    from bike_assets.champion_jobs import CHAMPION_JOBS
    from bike_assets.jobs import RETRAIN

    told = {"version": "13", "actor": "key:1", "reason": REASON}
    assert {job.name for job in CHAMPION_JOBS} == {"promote", "rollback", "approve", "reject"}
    assert RETRAIN.name == "retrain"
    for job in CHAMPION_JOBS:
        assert list(job.graph.node_dict) == [f"{job.name}_champion"]
        op = job.graph.node_dict[f"{job.name}_champion"].definition
        fields = op.config_schema.config_type.fields
        assert set(fields) == set(told)
    assert "train_until" in TrainingConfig.model_fields


def test_asked_twice_with_one_key_one_run_is_started(admin, dagster):
    def ask():
        return admin.post("/v1/train", json={"reason": REASON}, headers={"Idempotency-Key": "monday"})

    assert ask().status_code == 202
    launched = dagster.asked[-1][1]["params"]["executionMetadata"]["tags"]
    dagster.answers["runsOrError"]["results"] = [{"runId": RUN}]
    assert ask().json()["run_id"] == RUN
    assert [field for field, _ in dagster.asked] == ["runsOrError", "launchRun", "runsOrError"]
    assert dagster.asked[-1][1]["filter"]["tags"][0] in launched
    odd = admin.post("/v1/train", json={"reason": REASON}, headers={"Idempotency-Key": "a b"})
    assert odd.status_code == 422


def test_a_promotion_may_name_the_training(admin, dagster, service, monkeypatch):
    from bike_serving.registry import NoChampionError, RegistryUnavailableError

    monkeypatch.setattr(service.app.state.registry, "version_of_run", lambda run_id: f"1{run_id[0]}")
    body = {"run_id": "3" + "0" * 31, "reason": REASON}
    assert admin.post("/v1/promote_champion", json=body).status_code == 202
    config = dagster.asked[-1][1]["params"]["runConfigData"]["ops"]["promote_champion"]["config"]
    assert config["version"] == "13"

    for error, status in ((NoChampionError("none"), 404), (RegistryUnavailableError("away"), 503)):

        def fail(_run_id, error=error):
            raise error

        monkeypatch.setattr(service.app.state.registry, "version_of_run", fail)
        assert admin.post("/v1/promote_champion", json=body).status_code == status


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("train", {}),
        ("train", {"reason": "no"}),
        ("train", {"reason": REASON, "train_until": "yesterday"}),
        ("train", {"reason": REASON, "data": "gs://bucket/data.csv"}),
        ("promote_champion", {"reason": REASON}),
        ("promote_champion", {"reason": REASON, "version": "1", "run_id": "0" * 32}),
        ("promote_champion", {"reason": REASON, "version": "../1"}),
        ("promote_champion", {"reason": REASON, "run_id": "0' or 1=1"}),
        ("rollback", {"reason": REASON, "version": 12}),
        ("approve", {"reason": "x" * 501}),
    ],
)
def test_what_is_wrong_with_a_change_is_said_and_starts_nothing(admin, dagster, path, body):
    assert admin.post(f"/v1/{path}", json=body).status_code == 422
    assert dagster.asked == []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"__typename": "PipelineNotFoundError", "message": "no job\nhere"}, 409),
        ({"__typename": "RunConfigValidationInvalid", "errors": [{"message": "odd"}]}, 409),
        ({"__typename": "PythonError", "message": "failed"}, 409),
        (b"{", 503),
        (b'{"data": null}', 503),
        (b'{"errors": [{"message": "schema"}]}', 503),
    ],
)
def test_what_dagster_does_not_start_is_told(admin, dagster, answer, status):
    dagster.answers["launchRun"] = answer
    refused = admin.post("/v1/train", json={"reason": REASON})
    assert refused.status_code == status
    assert refused.headers["content-type"] == "application/problem+json"
    assert "\n" not in refused.json()["detail"]


def test_a_run_is_told_by_its_id(service, dagster):
    reader = service.client()
    dagster.answers["runOrError"] = {
        "__typename": "Run",
        "runId": RUN,
        "jobName": "retrain",
        "status": "STARTED",
        "startTime": 1711864800.5,
        "endTime": None,
        "tags": [],
    }
    assert reader.get(f"/v1/runs/{RUN}").json() == {
        "run_id": RUN,
        "job": "retrain",
        "status": "STARTED",
        "started_at": 1711864800.5,
        "ended_at": None,
    }
    dagster.answers["runOrError"] = {"__typename": "RunNotFoundError", "message": "none"}
    assert reader.get(f"/v1/runs/{RUN}").status_code == 404
    dagster.answers["runOrError"] = {"__typename": "PythonError", "message": "x"}
    assert reader.get(f"/v1/runs/{RUN}").status_code == 503
    assert reader.get("/v1/runs/..%2f..%2fetc").status_code in (404, 422)
    assert reader.get("/v1/runs/all").status_code == 422


def test_without_dagster_that_is_said(in_process, tmp_path, dagster):
    alone = in_process(tmp_path).client(Role.ADMIN)
    answer = alone.post("/v1/train", json={"reason": REASON})
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:bike-serving:no-orchestrator")
    dagster.status = 502
    away = in_process(tmp_path / "away", dagster_url=f"http://127.0.0.1:{dagster.server_port}")
    answer = away.client(Role.ADMIN).post("/v1/train", json={"reason": REASON})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")


@pytest.mark.integration
def test_the_summary_is_what_mlflow_knows(registry, api, city, in_process, tmp_path):
    """Against a real MLflow server: versions newest first, the champion marked, accuracy of the training."""
    first, second = registry.register("summary"), registry.register("summary", 1)
    run_id = registry.client.get_model_version("summary", second).run_id
    registry.client.log_metric(run_id, "holdout.day_1.r2", 0.87)
    registry.client.log_metric(run_id, "holdout.day_1.rmse", float("nan"))
    registry.promote("summary", first)
    service = in_process(tmp_path, mlflow_url=registry.server.url, model_name="summary")
    found = service.client().get("/v1/model_summary").json()
    assert [(entry["version"], entry["is_champion"]) for entry in found] == [(second, False), (first, True)]
    assert (found[0]["r2"], found[0]["rmse"], found[0]["run_id"]) == (0.87, None, run_id)
    assert service.app.state.registry.version_of_run(run_id) == second
    assert (
        in_process(tmp_path / "none", mlflow_url=registry.server.url, model_name="it's none")
        .client()
        .get("/v1/model_summary")
        .json()
        == []
    )
