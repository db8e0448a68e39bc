"""The API of a running service: right answers to right questions, and a clear word about every other one."""

import json
import re
from datetime import date, datetime, timedelta

import polars as pl
import pytest

from bike_serving.schemas import (
    MAX_BULK_BYTES,
    MAX_COUNTERS,
    MAX_HOURS,
    CountersResponse,
    ModelDescription,
    PredictResponse,
    Problem,
    Ready,
)

pytestmark = pytest.mark.integration

ISSUE_DATE = date(2024, 3, 31)
HOUR = "2024-03-31T08:00:00+02:00"
COUNTER_IDS = ["100-E", "100-W", "200-N"]
VALUES = ["forecast", "lower_80", "upper_80", "lower_90", "upper_90"]


def post(api, **body):
    return api.post("/predict", json={"counter_ids": ["100-E"], "target_hours": [HOUR], **body})


def refused(answer, status, *parts):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == status
    for part in parts:
        assert part in problem.detail
    return answer.json()


@pytest.mark.parametrize("days_back", [0, 5, 35])
def test_every_served_number_equals_the_offline_forecast_exactly(api, city, days_back):
    issue_date = ISSUE_DATE - timedelta(days=days_back)
    offline = city.offline(0, issue_date).sort("counter_id", "target_ts")
    hours = offline.get_column("target_ts").unique().sort().to_list()
    body = {"target_hours": [hour.isoformat() for hour in hours], "counter_ids": COUNTER_IDS}
    answer = post(api, **body, **({"issue_date": issue_date.isoformat()} if days_back else {}))
    assert answer.status_code == 200
    served = pl.DataFrame(answer.json()["forecasts"]).with_columns(
        pl.col("target_ts").str.to_datetime("%+", time_unit="us", time_zone="UTC"),
        pl.col("horizon").cast(pl.Int32),
    )
    assert answer.json()["issue_date"] == issue_date.isoformat()
    assert len(hours) == (167 if days_back < 7 else 168)  # the clock change takes an hour
    columns = ["counter_id", "target_ts", "horizon", *VALUES]
    assert served.select(columns).equals(offline.select(columns))


def test_an_answer_names_the_version_and_keeps_the_order_asked_for(api):
    hours = ["2024-04-01T09:00:00Z", HOUR]
    answer = post(
        api, counter_ids=["200-N", "100-E", "200-N"], target_hours=[*hours, "2024-04-01T11:00:00+02:00"]
    )
    body = PredictResponse.model_validate_json(answer.content)
    assert [(forecast.counter_id, forecast.target_ts) for forecast in body.forecasts] == [
        (counter_id, datetime.fromisoformat(hour)) for counter_id in ("200-N", "100-E") for hour in hours
    ]
    assert answer.json()["forecasts"][0]["target_ts"] == "2024-04-01T09:00:00Z"
    assert [forecast.horizon for forecast in body.forecasts] == [2, 1, 2, 1]
    assert body.model.name == "api"
    assert answer.json()["model"] == api.get("/model").json()["model"]


def test_unknown_counters_are_named_with_the_way_to_find_known_ones(api):
    body = refused(post(api, counter_ids=["100-E", "nowhere"]), 404, "nowhere", "GET /v1/counters")
    assert body["type"] == "urn:bike-serving:unknown-counter"
    assert body["counter_ids"] == ["nowhere"]


@pytest.mark.parametrize("hour", ["2024-03-30T22:00:00Z", "2024-04-06T22:00:00Z", "1999-01-01T00:00:00Z"])
def test_hours_outside_the_forecast_are_told_the_window(api, hour):
    body = refused(
        post(api, target_hours=[HOUR, hour]), 422, hour, "2024-03-30T23:00:00Z to 2024-04-06T21:00:00Z"
    )
    assert body["window"] == {"first": "2024-03-30T23:00:00Z", "last": "2024-04-06T21:00:00Z"}
    assert post(api, target_hours=list(body["window"].values())).status_code == 200


@pytest.mark.parametrize("day", ["2024-04-01", "2024-02-24", "0001-01-01", "9999-12-31"])
def test_issue_dates_outside_the_history_are_told_the_range(api, day):
    refused(post(api, issue_date=day), 422, day, "2024-02-25 to 2024-03-31")


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({"target_hours": ["2024-03-31T08:00:00"]}, ["target_hours.0", "no time zone", "+01:00"]),
        ({"target_hours": [HOUR, "2024-03-31T08:30:00+02:00"]}, ["target_hours.1", "not on the hour"]),
        ({"target_hours": ["2024-03-31T08:00:00.000001Z"]}, ["not on the hour"]),
        ({"target_hours": ["0001-01-01T00:00:00+14:00"]}, ["out of range"]),
        ({"target_hours": ["2024-02-30T08:00:00Z"]}, ["target_hours.0"]),
        ({"target_hours": ["tomorrow"]}, ["ISO 8601"]),
        ({"target_hours": [1711864800]}, ["ISO 8601"]),
        ({"target_hours": [None]}, ["ISO 8601"]),
        ({"target_hours": []}, ["target_hours", "at least 1"]),
        ({"target_hours": HOUR}, ["target_hours", "array"]),
        ({"target_hours": [HOUR] * (MAX_HOURS + 1)}, [str(MAX_HOURS)]),
        ({"counter_ids": []}, ["counter_ids", "at least 1"]),
        ({"counter_ids": [100]}, ["counter_ids.0", "string"]),
        ({"counter_ids": [""]}, ["counter_ids.0"]),
        ({"counter_ids": ["x" * 101]}, ["counter_ids.0"]),
        ({"counter_ids": ["x"] * (MAX_COUNTERS + 1)}, [str(MAX_COUNTERS)]),
        ({"counter_ids": None}, ["counter_ids"]),
        ({"issue_date": 20240331}, ["issue_date", "2024-02-26"]),
        ({"issue_date": "2024-03-31T00:00:00"}, ["issue_date"]),
        ({"issue_date": "2024-13-01"}, ["issue_date"]),
        ({"horizon": 3}, ["horizon"]),
    ],
)
def test_what_is_wrong_with_a_request_is_said(api, body, parts):
    refused(post(api, **body), 422, *parts)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b"[]", 422),
        (b'"text"', 422),
        (b"null", 422),
        (b'{"counter_ids": ["\\ud800"], "target_hours": ["2024-03-31T08:00:00Z"]}', 400),
        (b'{"counter_ids": [NaN], "target_hours": [Infinity]}', 422),
        (b'{"counter_ids": ["a\\u0000b"], "target_hours": ["2024-03-31T08:00:00Z"]}', 404),
    ],
)
def test_no_body_makes_the_service_fail(api, content, status):
    answer = api.post("/predict", content=content, headers={"content-type": "application/json"})
    refused(answer, status)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_is_refused(api, chunked):
    content = json.dumps({"counter_ids": ["x" * MAX_BULK_BYTES]}).encode()
    sent = iter([content[:1000], content[1000:]]) if chunked else content
    refused(
        api.post("/predict", content=sent, headers={"content-type": "application/json"}), 413, "4,194,304"
    )


def test_unknown_paths_and_methods_are_problems_too(api):
    refused(api.get("/nowhere"), 404)
    answer = api.get("/predict")
    refused(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_counters_are_listed_with_names_and_positions(api):
    body = CountersResponse.model_validate_json(api.get("/counters").content)
    assert [counter.counter_id for counter in body.counters] == COUNTER_IDS
    first = body.counters[0]
    assert first.counter_name == "Quai d'Orsay 100-E"
    assert (first.latitude, first.longitude, first.has_forecast) == (48.8629, 2.3137, True)
    assert api.get("/counters").json()["counters"][0]["last_seen"] == "2024-03-30T22:00:00Z"


def test_health_and_model_say_what_is_loaded(api):
    health = Ready.model_validate_json(api.get("/ready").content)
    assert (health.status, health.reason, health.last_poll.error) == ("ok", None, None)
    assert health.issue_date == ISSUE_DATE
    assert health.bundle_age_seconds > 0
    model = ModelDescription.model_validate_json(api.get("/model").content)
    assert model.model == health.model
    assert (model.issue_dates.first, model.issue_dates.last) == (date(2024, 2, 25), ISSUE_DATE)
    assert model.metrics == {"1": {"r2": 0.91}}
    assert model.counters == len(COUNTER_IDS)


def test_metrics_count_by_route_template_and_model_version(api):
    def value(sample):
        lines = [line for line in api.get("/metrics").text.splitlines() if line.startswith(sample + " ")]
        return float(lines[0].split()[-1]) if lines else 0.0

    version = api.get("/model").json()["model"]["version"]
    samples = {
        f'bike_serving_predictions_total{{model_type="catboost",model_version="{version}"}}': 2,
        'bike_serving_vintage_lookups_total{result="hit"}': 1,
        'bike_serving_requests_total{method="POST",route="/predict",status="200"}': 1,
        'bike_serving_requests_total{method="POST",route="/predict",status="404"}': 1,
        'bike_serving_requests_total{method="GET",route="unmatched",status="404"}': 2,
        'bike_serving_request_seconds_count{method="POST",route="/predict"}': 2,
    }
    before = {sample: value(sample) for sample in samples}
    assert post(api, counter_ids=["100-E", "200-N"]).status_code == 200
    assert post(api, counter_ids=["nowhere"]).status_code == 404
    api.get("/made-up/1")
    api.get("/made-up/2")
    assert {sample: value(sample) - before[sample] for sample in samples} == samples
    text = api.get("/metrics").text
    assert "made-up" not in text
    assert "bike_serving_model_loaded 1.0" in text
    assert f'version="{version}"' in next(
        x for x in text.splitlines() if x.startswith("bike_serving_model_info{")
    )


def test_the_documentation_has_examples_that_validate(api):
    document = api.get("/openapi.json").json()
    example = document["components"]["schemas"]["PredictRequest"]["examples"][0]
    refused(api.post("/predict", json=example), 404, example["counter_ids"][0])
    responses = document["paths"]["/v1/predict"]["post"]["responses"]
    assert set(responses) == {
        *("200", "400", "401", "403", "404", "406", "408", "413", "415", "422", "429", "503")
    }
    assert list(responses["422"]["content"]) == ["application/problem+json"]
    assert api.get("/", follow_redirects=False).headers["location"] == "/docs"
    page = api.get("/docs")
    # Nothing of another host, and everything of this one is there.
    parts = re.findall(r'(?:src|href|url)(?:=|: )["\']([^"\']+)', page.text)
    assert len(parts) == 4
    assert not [part for part in parts if "//" in part]
    assert "'self' 'unsafe-inline'" in page.headers["content-security-policy"]
    assert [api.get(f"/{part}").status_code for part in parts] == [200] * 4
    assert api.get("/docs/redoc.standalone.js").status_code == 422
