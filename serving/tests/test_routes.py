"""What the routes answer besides look-ups: right numbers, every form, and a clear word about every mistake."""

import io
import json
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from bike_assets.core.affluence import with_affluence
from bike_assets.core.calendar import hours_of_day, local_columns
from bike_assets.core.features import FEATURE_COLUMNS, build_features
from bike_assets.core.metrics import accuracy_table, join_truth
from bike_serving import media
from bike_serving.schemas import MAX_ROWS, Problem
from bike_serving.security.access import Role

ISSUE_DATE = date(2024, 3, 31)
HOUR = "2024-03-31T08:00:00+02:00"
VALUES = ["forecast", "lower_80", "upper_80", "lower_90", "upper_90"]
CSV, PARQUET, ARROW = (
    media.MEDIA_TYPES[form] for form in (media.Form.CSV, media.Form.PARQUET, media.Form.ARROW)
)


@pytest.fixture(scope="module")
def reader(local):
    return local.client()


def refused(answer, status, *parts):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    detail = Problem.model_validate_json(answer.content).detail
    for part in parts:
        assert part in detail
    return answer.json()


def predict(reader, **body):
    return reader.post("/v1/predict", json={"counter_ids": ["100-E"], "target_hours": [HOUR], **body})


def as_frame(content, kind):
    if kind == CSV:
        frame = pl.read_csv(content)
        return frame.with_columns(pl.col("target_ts").str.to_datetime("%+", time_unit="us", time_zone="UTC"))
    return (pl.read_parquet if kind == PARQUET else pl.read_ipc_stream)(io.BytesIO(content))


def encoded(frame, kind):
    out = io.BytesIO()
    {CSV: frame.write_csv, PARQUET: frame.write_parquet, ARROW: frame.write_ipc_stream}[kind](out)
    return out.getvalue()


# --- tables -----


@pytest.mark.parametrize("kind", [CSV, PARQUET, ARROW])
def test_a_table_is_answered_row_by_row_with_the_offline_numbers(reader, city, kind):
    offline = city.offline().sample(fraction=1, shuffle=True, seed=3)
    question = offline.select("counter_id", "target_ts")
    question = pl.concat([question, question.head(5)])  # repetitions are answered, too
    text = question.with_columns(pl.col("target_ts").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    sent = text if kind == CSV else question
    answer = reader.post(
        "/v1/predict", content=encoded(sent, kind), headers={"Content-Type": kind, "Accept": kind}
    )
    assert answer.status_code == 200, answer.text
    found = as_frame(answer.content, kind)
    expected = question.join(offline, on=["counter_id", "target_ts"], how="left", maintain_order="left")
    assert found.select("counter_id", "target_ts", *VALUES).equals(
        expected.select("counter_id", "target_ts", *VALUES)
    )
    assert answer.headers["x-model-version"] == "1"
    assert answer.headers["x-issue-date"] == "2024-03-31"


def test_hours_of_tables_may_be_written_in_every_usual_way(reader):
    hours = [
        "2024-03-31T08:00:00+02:00",
        "2024-03-31 06:00:00Z",
        "2024-03-31T06:00Z",
        "2024-03-31T08:00:00+0200",
    ]
    body = "target_ts;counter_id;more\n" + "".join(f"{hour};100-E;x\n" for hour in hours)
    answer = reader.post("/v1/predict", content=body, headers={"Content-Type": "text/csv; charset=utf-8"})
    forecasts = answer.json()["forecasts"]
    assert len(forecasts) == 4
    assert {json.dumps(forecast) for forecast in forecasts} == {json.dumps(forecasts[0])}
    assert forecasts[0]["forecast"] == predict(reader).json()["forecasts"][0]["forecast"]


@pytest.mark.parametrize(
    ("kind", "body", "parts"),
    [
        (CSV, b"counter_id\n100-E\n", ["no column target_ts"]),
        (CSV, b"counter_id,target_ts\n", ["no rows"]),
        (CSV, b"", ["csv table"]),
        (CSV, b"counter_id,target_ts\n100-E,2024-03-31T08:00:00\n", ["row 1", "time zone"]),
        (CSV, b"counter_id,target_ts\n100-E,2024-03-31T08:30:00Z\n", ["row 1"]),
        (CSV, b"counter_id,target_ts\n100-E,\n", ["row 1"]),
        (CSV, b"counter_id,target_ts\n100-E,0000-01-01T00:00:00Z\n", ["row 1"]),
        (CSV, b"counter_id,target_ts\n100-E,0001-01-01T00:00:00+14:00\n", ["row 1"]),
        (CSV, b"counter_id,target_ts\n100-E,9999-12-31T23:00:00-14:00\n", ["row 1"]),
        (CSV, b"counter_id,target_ts\n,2024-03-31T08:00:00Z\n", ["counter_id"]),
        (CSV, b"counter_id,target_ts\n" + b"x" * 101 + b",2024-03-31T08:00:00Z\n", ["too long"]),
        (CSV, b"counter_id,target_ts\n100-E,2024-05-31T08:00:00Z\n", ["outside the forecast"]),
        (CSV, b"counter_id,target_ts\na,b,c,d\n", ["csv table"]),
        (CSV, b"counter_id,target_ts\n\xff\xfe,\x00\n", []),
        (CSV, b"counter_id,target_ts\n" + b"1,2\n" * (MAX_ROWS + 1), ["more than 50,000 rows"]),
        (PARQUET, b"PAR1 and nothing of the kind PAR1", ["parquet table"]),
        (ARROW, b"\xff\xff\xff\xff\x10\x00\x00\x00 damaged", ["arrow table"]),
        (PARQUET, b"", ["parquet table"]),
    ],
)
def test_what_is_wrong_with_a_table_is_said(reader, kind, body, parts):
    refused(reader.post("/v1/predict", content=body, headers={"Content-Type": kind}), 422, *parts)


def test_a_small_body_that_claims_gigabytes_is_refused_and_the_service_lives(reader):
    rows = pl.select(pl.lit("x" * 40_000).repeat_by(30_000).explode().alias("counter_id")).with_row_index()
    frame = rows.select(pl.col("counter_id") + pl.col("index").cast(pl.String), target_ts=pl.lit(HOUR))
    out = io.BytesIO()
    frame.write_parquet(out, compression="zstd", compression_level=20)
    assert len(out.getvalue()) < 4_000_000 < 1_000_000_000 < frame.estimated_size()
    answer = reader.post("/v1/predict", content=out.getvalue(), headers={"Content-Type": PARQUET})
    refused(answer, 422, "far larger than it looks")
    assert predict(reader).status_code == 200


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/*", "text/csv"),
        ("text/csv;q=0.5, application/json;q=0.4", "text/csv"),
        ("text/csv;q=0, */*;q=0.1", "application/json"),
        ("text/csv;q=x, application/json", "application/json"),
        (f"application/xml, {PARQUET};q=0.2", PARQUET),
        ("application/xml", None),
        ("text/csv;q=0", None),
    ],
)
def test_the_form_of_an_answer_is_what_accept_wants_most(reader, accept, expected):
    body = {"counter_ids": ["100-E"], "target_hours": [HOUR]}
    answer = reader.post("/v1/predict", json=body, headers={"Accept": accept})
    if expected is None:
        refused(answer, 406, "json", "csv", "parquet", "arrow")
    else:
        assert answer.headers["content-type"].split(";")[0] == expected


def test_the_query_goes_before_accept_and_other_forms_are_not_read(reader):
    body = {"counter_ids": ["100-E"], "target_hours": [HOUR]}
    answer = reader.post("/v1/predict?format=csv", json=body, headers={"Accept": "application/json"})
    assert answer.headers["content-type"].startswith("text/csv")
    refused(reader.post("/v1/predict?format=xml", json=body), 422, "format")
    refused(reader.post("/v1/predict?format=geojson", json=body), 406, "csv")
    refused(
        reader.post("/v1/predict", content=b"<a/>", headers={"Content-Type": "application/xml"}),
        415,
        "text/csv",
    )


# --- beside the forecast -----


def test_affluence_is_the_models_own(reader, city):
    answer = predict(
        reader, counter_ids=["100-E", "200-N"], target_hours=[HOUR, "2024-04-01T01:00:00Z"], affluence=True
    )
    expected = with_affluence(city.offline(), city.forecasters[0].affluence)
    for forecast in answer.json()["forecasts"]:
        row = expected.row(
            by_predicate=(pl.col("counter_id") == forecast["counter_id"])
            & (pl.col("target_ts") == datetime.fromisoformat(forecast["target_ts"])),
            named=True,
        )
        assert forecast["high_probability"] == row["high_probability"]
        assert forecast["threshold"] == row["threshold"]
        assert forecast["affluence"] == ("high" if row["forecast"] > row["threshold"] else "low")
    assert {forecast["affluence"] for forecast in answer.json()["forecasts"]} == {"high", "low"}


def test_features_used_are_those_the_model_saw(reader, city):
    day = ISSUE_DATE - timedelta(days=4)
    hour = "2024-03-28T09:00:00+01:00"
    (found,) = predict(reader, target_hours=[hour], issue_date=str(day), features_used=True).json()[
        "forecasts"
    ]
    features = build_features(city.history, [day]).filter(
        counter_id="100-E", target_ts=datetime.fromisoformat(hour).astimezone(UTC)
    )
    assert found["features_used"] == features.select(FEATURE_COLUMNS).row(0, named=True)
    too_many = predict(
        reader,
        counter_ids=["100-E", "100-W", "200-N"] * 60,
        target_hours=[
            (datetime(2024, 3, 31, tzinfo=UTC) + timedelta(hours=h)).isoformat() for h in range(160)
        ],
        features_used=True,
    )
    assert too_many.status_code == 200  # repetitions are answered once


def test_other_weather_gives_the_forecast_that_the_same_code_makes_of_it(in_process_with_weather):
    reader, bundle = in_process_with_weather
    hours = hours_of_day(ISSUE_DATE + timedelta(days=1))
    usual = predict(reader, target_hours=[hours[8].isoformat()]).json()["forecasts"][0]
    asked = [{"target_ts": hour.isoformat(), "rain_mm": 8.0, "wind_kmh": 60} for hour in hours]
    wet = predict(reader, target_hours=[hours[8].isoformat()], weather=asked).json()["forecasts"][0]
    told = pl.DataFrame({"ts_utc": hours, "rain_mm": 8.0, "wind_kmh": 60.0}).with_columns(
        pl.col("ts_utc").cast(pl.Datetime("us", "UTC"))
    )
    expected = bundle.what_if(ISSUE_DATE, told).filter(counter_id="100-E", target_ts=hours[8])
    assert [wet[name] for name in VALUES] == list(expected.select(VALUES).row(0))
    assert wet["forecast"] < usual["forecast"]
    # What was expected anyway changes nothing, and a supposition is forgotten with its answer.
    same = [{"target_ts": hours[8].isoformat(), "rain_mm": 0.0}]
    assert predict(reader, target_hours=[hours[8].isoformat()], weather=same).json()["forecasts"][0] == usual
    assert predict(reader, target_hours=[hours[8].isoformat()]).json()["forecasts"][0] == usual


@pytest.fixture(scope="module")
def in_process_with_weather(city, in_process, tmp_path_factory):
    """A service whose model learned that rain keeps people from cycling."""
    from bike_assets.core.model import Forecaster, TrainConfig
    from bike_serving.champion import Champion
    from bike_serving.registry import ModelRef

    days = city.history.get_column("service_date").unique().sort().to_list()
    hours = city.history.select("ts_utc", "service_date").unique().sort("ts_utc")
    wet = pl.col("service_date").dt.ordinal_day() % 3 == 0
    observed = hours.with_columns(
        kind=pl.lit("observed"),
        temperature_c=pl.lit(12.0),
        rain_mm=pl.when(wet).then(6.0).otherwise(0.0),
        wind_kmh=pl.lit(10.0),
    )
    ahead = [day + timedelta(days=1) for day in days]
    known = local_columns(observed.rename({"service_date": "day"})).drop("day", "local_hour")
    told = [
        known.filter(pl.col("service_date").is_between(day, day + timedelta(days=6))).with_columns(
            service_date=pl.lit(day), kind=pl.lit("forecast")
        )
        for day in ahead
    ]
    coming = pl.DataFrame(
        {"ts_utc": [h for d in range(7) for h in hours_of_day(ISSUE_DATE + timedelta(days=d))]}
    )
    told.append(
        coming.select(
            pl.col("ts_utc").cast(pl.Datetime("us", "UTC")),
            service_date=pl.lit(ISSUE_DATE),
            kind=pl.lit("forecast"),
            temperature_c=pl.lit(12.0),
            rain_mm=pl.lit(0.0),
            wind_kmh=pl.lit(10.0),
        )
    )
    columns = ["service_date", "ts_utc", "kind", "temperature_c", "rain_mm", "wind_kmh"]
    weather = pl.concat([observed.select(columns), *(part.select(columns) for part in told)]).unique(
        ["service_date", "ts_utc", "kind"], keep="last"
    )
    history = city.history.with_columns(
        hourly_count=pl.when(wet).then(pl.col("hourly_count") // 3).otherwise(pl.col("hourly_count"))
    )
    issued = [ISSUE_DATE - timedelta(days=back) for back in range(8, 40)]
    features = build_features(history, issued, weather=weather)
    truth = history.select("counter_id", "ts_utc", "hourly_count")
    forecaster = Forecaster().fit(
        features, truth, TrainConfig(iterations=60, depth=3, thread_count=1, weather_dropout=0.0)
    )
    service = in_process(tmp_path_factory.mktemp("weather"))
    from bike_assets.core.bundle import write_bundle

    info = service.app.state.holder.current.bundle.info
    path = write_bundle(
        city.home / "bundles", forecaster, history, info, city.keys.signing_key, weather=weather
    )
    bundle = city.load(path)
    service.app.state.holder.current = Champion(ModelRef("bike-traffic", "1", "run", path.name), bundle)
    return service.client(), bundle


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({"weather": [{"target_ts": HOUR}] * 2}, ["given twice"]),
        ({"weather": [{"target_ts": HOUR, "rain_mm": -1}]}, ["weather.0.rain_mm"]),
        ({"weather": [{"target_ts": HOUR, "rain_mm": 1e9}]}, ["weather.0.rain_mm"]),
        ({"weather": [{"target_ts": HOUR}], "features_used": True}, ["leave weather out"]),
        ({"affluence": "yes"}, ["affluence"]),
        ({"affluence": True, "target_hours": ["2030-01-01T00:00:00Z"]}, ["outside the forecast"]),
        ({"affluence": True, "issue_date": "2030-01-01"}, ["issue dates are"]),
    ],
)
def test_what_is_wrong_with_a_wish_is_said(reader, body, parts):
    refused(predict(reader, **body), 422, *parts)


# --- the predecessor's form -----


def records(reader, *rows, **more):
    return reader.post("/v1/predict", json={"records": list(rows), "model_type": "rf", **more})


def test_records_are_answered_one_by_one_past_hours_as_forecast_on_their_morning(reader, city):
    past = "2024-03-20T08:00:00+01:00"
    answer = records(
        reader,
        {
            "identifiant_du_compteur": "100-E",
            "date_et_heure_de_comptage": HOUR,
            "mois_annee_comptage": "mars 2024",
        },
        {"nom_du_compteur": "Quai d'Orsay 200-N", "date_et_heure_de_comptage": past, "latitude": 48.8},
        {"identifiant_du_compteur": "100-E", "date_et_heure_de_comptage": HOUR},
    ).json()
    newest, older = city.offline(), city.offline(0, date(2024, 3, 20))

    def point(frame, counter_id, hour):
        moment = datetime.fromisoformat(hour).astimezone(UTC)
        return frame.filter(counter_id=counter_id, target_ts=moment)["forecast"].item()

    first = point(newest, "100-E", HOUR)
    assert answer["predictions"] == [first, point(older, "200-N", past), first]
    assert answer["model_metadata"] == {
        "run_id": "run",
        "is_champion": True,
        "model_type": "catboost",
        "version": "1",
        "r2": 0.91,
        "rmse": None,
    }
    assert "label" not in answer


def test_rf_class_says_busy_or_not(reader):
    rows = [
        {"identifiant_du_compteur": "100-E", "date_et_heure_de_comptage": hour}
        for hour in (HOUR, "2024-04-01T01:00:00Z")
    ]
    answer = records(reader, *rows, model_type="rf_class").json()
    assert answer["predictions"] == [1, 0]
    assert answer["label"] == ["forte", "faible"]


@pytest.mark.parametrize(
    ("row", "status", "part"),
    [
        ({"date_et_heure_de_comptage": HOUR}, 422, "identifiant_du_compteur or nom_du_compteur"),
        ({"nom_du_compteur": "nobody's", "date_et_heure_de_comptage": HOUR}, 404, "no counter has this name"),
        ({"identifiant_du_compteur": "nowhere", "date_et_heure_de_comptage": HOUR}, 404, "nowhere"),
        ({"identifiant_du_compteur": "100-E", "date_et_heure_de_comptage": "2024-03-31"}, 422, "ISO 8601"),
        (
            {"identifiant_du_compteur": "100-E", "date_et_heure_de_comptage": "2020-01-01T00:00:00Z"},
            422,
            "issue dates",
        ),
        (
            {"identifiant_du_compteur": "100-E", "date_et_heure_de_comptage": "2024-05-01T00:00:00Z"},
            422,
            "outside",
        ),
    ],
)
def test_what_is_wrong_with_a_record_is_said(reader, row, status, part):
    refused(records(reader, row), status, part)
    refused(records(reader), 422, "records")
    refused(records(reader, row, model_type="linear"), 422, "model_type")


# --- counters and vintages -----


def test_counters_come_as_points_and_rows(reader):
    found = reader.get("/v1/counters", headers={"Accept": "application/geo+json"}).json()
    assert found["features"][0]["geometry"] == {"type": "Point", "coordinates": [2.3137, 48.8629]}
    assert [feature["properties"]["counter_id"] for feature in found["features"]] == [
        "100-E",
        "100-W",
        "200-N",
    ]
    rows = pl.read_csv(reader.get("/v1/counters?format=csv").content)
    assert rows["counter_name"].to_list() == [f"Quai d'Orsay {name}" for name in ("100-E", "100-W", "200-N")]
    one = reader.get("/v1/counters/100-E").json()["counter"]
    assert (one["counter_name"], one["mean_hourly_count"] > 0, one["has_forecast"]) == (
        "Quai d'Orsay 100-E",
        True,
        True,
    )
    refused(reader.get("/v1/counters/nowhere"), 404, "nowhere")
    refused(reader.get("/v1/counters/" + "x" * 101), 422)


def test_a_forecast_is_not_sent_again_while_it_is_the_same(reader, in_process, tmp_path):
    first = reader.get("/v1/counters/100-E/forecast")
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    for known in (tag, f'W/{tag}, "other"', "*"):
        again = reader.get("/v1/counters/100-E/forecast", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert reader.get("/v1/counters/100-E/forecast", headers={"If-None-Match": '"other"'}).status_code == 200
    tags = {
        reader.get(path).headers["etag"]
        for path in (
            "/v1/counters/100-W/forecast",
            "/v1/counters/100-E/forecast?format=csv",
            "/v1/counters/100-E/forecast?issue_date=2024-03-01",
        )
    }
    assert len(tags | {tag}) == 4
    # Another champion, another tag.
    other = in_process(tmp_path)
    champion = other.app.state.holder.current
    object.__setattr__(champion.ref, "bundle_id", "0" * 32)
    assert other.client().get("/v1/counters/100-E/forecast").headers["etag"] != tag


def test_the_forecast_of_a_counter_is_the_vintage_in_every_form(reader, city):
    offline = city.offline().filter(counter_id="100-W").sort("target_ts")
    path = "/v1/counters/100-W/forecast"
    rows = reader.get(path).json()["forecasts"]
    assert [row["forecast"] for row in rows] == offline["forecast"].to_list()
    assert pl.read_csv(reader.get(f"{path}?format=csv").content)["upper_90"].equals(offline["upper_90"])
    points = reader.get(path, headers={"Accept": "application/geo+json"}).json()
    assert [point["properties"]["forecast"] for point in points["features"]] == offline["forecast"].to_list()
    assert points["issue_date"] == "2024-03-31"
    refused(reader.get("/v1/counters/nowhere/forecast"), 404, "nowhere")
    refused(reader.get(f"{path}?issue_date=2024-02-01"), 422, "2024-02-25 to 2024-03-31")
    refused(reader.get(f"{path}?issue_date=1711864800"), 422, "issue_date")


@pytest.mark.parametrize(
    ("as_of", "issued"),
    [
        ("2024-03-10", "2024-03-10"),
        ("2024-03-10T06:00:00Z", "2024-03-10"),  # 07:00 in Paris, the hour of issue
        ("2024-03-10T05:59:59Z", "2024-03-09"),
        ("2024-03-10T23:30:00-08:00", "2024-03-11"),
        ("2024-03-31T04:59:59Z", "2024-03-30"),  # summer time began at one o'clock
        ("2024-03-31T05:00:00Z", "2024-03-31"),
        ("9999-12-31T23:00:00Z", "2024-03-31"),
    ],
)
def test_a_vintage_is_what_was_known_then(reader, city, as_of, issued):
    answer = reader.get("/v1/forecast", params={"as_of": as_of, "counter_id": "200-N", "horizon": 2}).json()
    assert answer["issue_date"] == issued
    offline = (
        city.offline(0, date.fromisoformat(issued)).filter(counter_id="200-N", horizon=2).sort("target_ts")
    )
    assert [row["forecast"] for row in answer["forecasts"]] == offline["forecast"].to_list()


@pytest.mark.parametrize(
    "as_of",
    [
        "0001-01-01T00:00:00Z",
        "2024-02-25T05:59:59Z",
        "2024-02-24",
        "2024-04-01",
        "9999-12-31",
        "now",
        "2024-03-10T06:00:00",
    ],
)
def test_a_moment_that_cannot_be_answered_is_told_so(reader, as_of):
    refused(reader.get("/v1/forecast", params={"as_of": as_of}), 422)


def test_the_whole_city_comes_as_a_table(reader, city):
    answer = reader.get("/v1/forecast", headers={"Accept": PARQUET})
    offline = city.offline().sort("counter_id", "target_ts")
    assert as_frame(answer.content, PARQUET)["forecast"].equals(offline["forecast"])


# --- judging -----


def rows_of(city, *days):
    counted = city.history.filter(pl.col("service_date").is_in(list(days)))
    return counted.select(
        "counter_id", pl.col("ts_utc").alias("target_ts"), pl.col("hourly_count").cast(pl.Float64)
    )


def as_json(frame):
    return frame.with_columns(pl.col("target_ts").dt.strftime("%Y-%m-%dT%H:%M:%SZ")).to_dicts()


@pytest.mark.parametrize("horizon", [1, 3])
def test_an_evaluation_holds_counts_against_what_was_forecast(reader, city, horizon):
    days = [date(2024, 3, 25), date(2024, 3, 26)]
    rows = rows_of(city, *days)
    vintages = pl.concat([city.offline(0, day - timedelta(days=horizon - 1)) for day in days])
    truth = rows.rename({"target_ts": "ts_utc"})
    scored = join_truth(vintages.filter(horizon=horizon), truth).with_columns(
        mase_scale=pl.lit(None, pl.Float64)
    )
    expected = accuracy_table(scored).drop("mase").row(0, named=True)
    stranger = {"counter_id": "nowhere", "target_ts": "2024-03-25T08:00:00Z", "hourly_count": 3}
    answer = reader.post("/v1/evaluate", json={"rows": [*as_json(rows), stranger], "horizon": horizon}).json()
    assert answer["metrics"] == pytest.approx(expected, rel=1e-9)
    assert (answer["rows"], answer["unscored"]) == (rows.height + 1, 1)
    assert answer["metrics_in_training"] is None
    assert [counter["counter_id"] for counter in answer["by_counter"]] == ["100-E", "100-W", "200-N"]
    table = reader.post(
        f"/v1/evaluate?horizon={horizon}", content=encoded(rows, PARQUET), headers={"Content-Type": PARQUET}
    )
    assert table.json()["metrics"] == pytest.approx(expected, rel=1e-9)


def test_hours_of_the_training_are_scored_apart(reader, city):
    rows = rows_of(city, date(2024, 3, 22), date(2024, 3, 24))
    answer = reader.post("/v1/evaluate", json={"rows": as_json(rows)}).json()
    assert answer["trained_until"] == "2024-03-23"
    assert answer["metrics"]["n"] == answer["metrics_in_training"]["n"] == rows.height / 2


def test_drift_names_the_counter_that_left_its_city(reader, city):
    days = [date(2024, 3, 24) + timedelta(days=n) for n in range(7)]
    usual = rows_of(city, *days)
    moved = usual.with_columns(
        pl.when(pl.col("counter_id") == "200-N")
        .then(0.0)
        .otherwise(pl.col("hourly_count"))
        .alias("hourly_count")
    )
    for path in ("/v1/drift", "/v1/monitor"):
        quiet = reader.post(path, json={"rows": as_json(usual)}).json()["drift_summary"]
        assert (quiet["drift_detected"], quiet["drift_share"], quiet["tested_counters"]) == (False, 0.0, 3)
        answer = reader.post(path, json={"rows": as_json(moved)}).json()
        assert answer["drift_summary"]["drifted_counters"] == ["200-N"]
        assert answer["drift_summary"]["drift_share"] == pytest.approx(1 / 3)
        assert answer["counters"][0]["counter_id"] == "200-N"
        assert answer["reference"] == {
            "kind": "preceding",
            "first": "2024-02-25",
            "last": "2024-03-23",
            "days": 28,
        }


@pytest.mark.parametrize("path", ["/v1/evaluate", "/v1/drift"])
def test_what_is_wrong_with_counts_is_said(reader, path):
    row = {"counter_id": "100-E", "target_ts": HOUR, "hourly_count": 3}
    for wrong, part in (
        ([], "rows"),
        ([row, row], "given twice"),
        ([{**row, "hourly_count": -1}], "hourly_count"),
        ([{**row, "hourly_count": "3"}], "hourly_count"),
        ([{**row, "hourly_count": None}], "hourly_count"),
        ([{**row, "path": "/etc/passwd"}], "path"),
        ([{**row, "target_ts": "0001-01-01T00:00:00Z"}], ""),
        ([{**row, "target_ts": "9999-12-31T23:00:00Z"}], "") if path == "/v1/evaluate" else ([], "rows"),
    ):
        refused(reader.post(path, json={"rows": wrong}), 422, part)
    for content in (
        b'{"rows": [{"counter_id": "100-E", "target_ts": "%s", "hourly_count": NaN}]}' % HOUR.encode(),
    ):
        refused(
            reader.post(path, content=content, headers={"Content-Type": "application/json"}),
            422,
            "hourly_count",
        )
    for count in (b"NaN", b"inf", b"-1", b"", b"many", b"1e300"):
        body = b"counter_id,target_ts,hourly_count\n100-E,2024-03-25T08:00:00Z," + count + b"\n"
        refused(reader.post(path, content=body, headers={"Content-Type": CSV}), 422, "row 1")


# --- Open Inference Protocol -----


def tensors(counter_ids, hours):
    return [
        {"name": name, "shape": [len(data)], "datatype": "BYTES", "data": data}
        for name, data in (("counter_id", counter_ids), ("target_ts", hours))
    ]


def test_clients_of_the_open_inference_protocol_are_at_home(reader, local):
    assert reader.get("/v2").json()["name"] == "bike-serving"
    assert local.client(None).get("/v2/health/live").json() == {"live": True}
    assert local.client(None).get("/v2/health/ready").json() == {"ready": True}
    for place in ("/v2/models/bike-traffic", "/v2/models/bike-traffic/versions/1"):
        described = reader.get(place).json()
        assert [tensor["name"] for tensor in described["inputs"]] == ["counter_id", "target_ts"]
        assert reader.get(f"{place}/ready").json() == {"name": "bike-traffic", "ready": True}
        body = {
            "id": "a",
            "inputs": tensors(["100-E", "100-E"], [HOUR, HOUR]),
            "outputs": [{"name": "forecast"}],
        }
        answer = reader.post(f"{place}/infer", json=body).json()
        (output,) = answer["outputs"]
        expected = predict(reader).json()["forecasts"][0]["forecast"]
        assert output == {"name": "forecast", "datatype": "FP64", "shape": [2], "data": [expected, expected]}
        assert (answer["model_version"], answer["id"]) == ("1", "a")
    for place in ("/v2/models/other", "/v2/models/bike-traffic/versions/2"):
        for answer in (
            reader.get(place),
            reader.post(f"{place}/infer", json={"inputs": tensors(["100-E"], [HOUR])}),
        ):
            assert refused(answer, 404)["error"]


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        tensors(["100-E"], [HOUR, HOUR]),
        tensors(["100-E"], ["tomorrow"]),
        tensors(["100-E"], [HOUR])[:1] * 2,
        [{**tensor, "shape": [2]} for tensor in tensors(["100-E"], [HOUR])],
        [{**tensor, "datatype": "FP64"} for tensor in tensors(["100-E"], [HOUR])],
        tensors(["100-E"], ["2024-05-01T00:00:00Z"]),
    ],
)
def test_wrong_tensors_are_refused(reader, inputs):
    refused(reader.post("/v2/models/bike-traffic/infer", json={"inputs": inputs}), 422)


# --- what is asked for while nothing is loaded or the computer is busy -----


def test_without_a_model_only_health_and_the_description_answer(in_process, tmp_path):
    service = in_process(tmp_path)
    service.app.state.holder.current = None
    assert service.client(None).get("/health").json() == {"status": "alive"}
    for path in ("/ready", "/v2/health/ready"):
        refused(service.client(None).get(path), 503, "no model is loaded")
    for path in (
        "/v1/counters",
        "/v1/counters/100-E",
        "/v1/counters/100-E/forecast",
        "/v1/forecast",
        "/v1/model",
    ):
        refused(service.client().get(path), 503, "no model is loaded")
    refused(predict(service.client()), 503, "no model is loaded")
    assert service.client(Role.READER).get("/openapi.json").status_code == 200


def test_what_takes_too_long_is_given_up(in_process, tmp_path, monkeypatch):
    import time

    service = in_process(tmp_path, request_timeout_seconds=0.05)
    champion = service.app.state.holder.current
    monkeypatch.setattr(champion.bundle, "what_if", lambda *_: time.sleep(0.5))
    answer = predict(service.client(), weather=[{"target_ts": HOUR, "rain_mm": 1}])
    assert refused(answer, 503, "too much to compute")
    assert answer.headers["retry-after"] == "10"
