"""Whatever is sent, the answer is right or says what is wrong with the question: it is never the service that fails.

The cases are drawn from what breaks services: huge and odd numbers, text of every script, moments at the ends of the
calendar and around the clock changes, damaged tables. `make test` draws hundreds, `make test-all` ten thousand.
"""

import io
import json
from collections import Counter
from datetime import UTC, date, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bike_assets.core.calendar import hours_of_day
from bike_assets.core.features import build_features
from bike_serving import media
from bike_serving.champion import Champion
from bike_serving.problems import MEDIA_TYPE
from bike_serving.registry import ModelRef
from bike_serving.schemas import Problem

COUNTERS = ["100-E", "100-W", "200-N"]
CLOCK_CHANGES = [datetime(2024, 3, 31, 1, tzinfo=UTC), datetime(2024, 10, 27, 1, tzinfo=UTC)]

moments = st.one_of(
    st.datetimes(timezones=st.timezones()).map(lambda moment: moment.isoformat()),
    st.builds(
        lambda change, minutes, offset: (
            (change + timedelta(minutes=minutes)).astimezone(timezone(timedelta(minutes=offset))).isoformat()
        ),
        st.sampled_from(CLOCK_CHANGES),
        st.sampled_from([*range(-360, 361, 60), -30, 30, 1]),
        st.sampled_from([0, 60, 120, -720, 840, 345, 1439]),
    ),
    st.sampled_from(
        [
            *(
                "0001-01-01T00:00:00+14:00",
                "0001-01-01T00:00:00Z",
                "9999-12-31T23:00:00-14:00",
                "9999-12-31T23:00:00Z",
            ),
            *(
                "2024-03-31T02:00:00",
                "2024-03-31T02:30:00+01:00",
                "2024-10-27T02:00:00+02:00",
                "2024-02-30T00:00:00Z",
            ),
            *(
                "2024-03-31T24:00:00Z",
                "2024-03-31T08:00:60Z",
                "1e999",
                "٢٠٢٤-٠٣-٣١T٠٨:٠٠:٠٠Z",
                "2024-W13-7T08:00:00Z",
            ),
            *(
                "+2024-03-31T08:00:00Z",
                "2024-03-31T08:00:00+99:99",
                "2024-03-31t08:00:00z",
                "-0001-01-01T00:00:00Z",
            ),
        ]
    ),
)
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(max_size=200),
    st.sampled_from(
        ["../../etc/passwd", "http://169.254.169.254/", "'; drop table x;--", "{{7*7}}", "\x00", "\ud800"]
    ),
)
anything = st.recursive(
    odd,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=8,
)
counter_ids = st.one_of(st.sampled_from(COUNTERS), st.sampled_from(COUNTERS), odd)
hours = st.one_of(moments, moments, odd)
numbers = st.one_of(st.floats(0, 1000), odd)
few = {"min_size": 0, "max_size": 3}
names = st.sampled_from(
    [
        *("counter_ids", "target_hours", "issue_date", "affluence", "features_used"),
        *("weather", "records", "rows", "horizon", "inputs"),
    ]
)
days = st.one_of(
    st.dates().map(str), st.sampled_from(["2024-03-31", "2024-10-27", "0001-01-01", "9999-12-31"]), odd
)

near = st.builds(
    lambda change, hours, offset: (
        (change + timedelta(hours=hours)).astimezone(timezone(timedelta(hours=offset))).isoformat()
    ),
    st.sampled_from(CLOCK_CHANGES),
    st.integers(-3, 30),
    st.sampled_from([0, 1, 2, -8]),
)
sensible = st.fixed_dictionaries(
    {
        "counter_ids": st.lists(st.sampled_from(COUNTERS), min_size=1, max_size=3),
        "target_hours": st.lists(near, min_size=1, max_size=2),
    },
    optional={"affluence": st.booleans(), "features_used": st.booleans()},
)
plain = st.fixed_dictionaries(
    {"counter_ids": st.lists(counter_ids, **few), "target_hours": st.lists(hours, **few)},
    optional={
        "issue_date": days,
        "affluence": st.booleans() | odd,
        "features_used": st.booleans() | odd,
        "weather": st.lists(
            st.fixed_dictionaries(
                {"target_ts": hours}, optional={"rain_mm": numbers, "temperature_c": numbers}
            ),
            **few,
        ),
    },
)
records = st.fixed_dictionaries(
    {
        "records": st.lists(
            st.fixed_dictionaries(
                {"date_et_heure_de_comptage": hours},
                optional={"identifiant_du_compteur": counter_ids, "nom_du_compteur": odd, "latitude": odd},
            ),
            **few,
        )
    },
    optional={"model_type": st.sampled_from(["rf", "rf_class"]) | odd, "metric": odd},
)
counted = st.fixed_dictionaries(
    {
        "rows": st.lists(
            st.fixed_dictionaries({"counter_id": counter_ids, "target_ts": hours, "hourly_count": numbers}),
            **few,
        )
    },
    optional={"horizon": st.integers(1, 7) | odd},
)
tensors = st.fixed_dictionaries(
    {
        "inputs": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.sampled_from(["counter_id", "target_ts"]) | odd,
                    "shape": st.lists(st.integers(-1, 3), **few),
                    "datatype": st.just("BYTES") | odd,
                    "data": st.lists(counter_ids | hours, **few),
                }
            ),
            **few,
        )
    }
)
bodies = st.one_of(
    st.tuples(st.just("/v1/predict"), sensible),
    st.tuples(st.just("/v1/predict"), sensible),
    st.tuples(st.just("/v1/predict"), plain),
    st.tuples(st.just("/v1/predict"), records),
    st.tuples(st.sampled_from(["/v1/evaluate", "/v1/drift"]), counted),
    st.tuples(st.just("/v2/models/bike-traffic/infer"), tensors),
    st.tuples(
        st.sampled_from(["/v1/predict", "/v1/evaluate", "/v1/drift", "/v2/models/bike-traffic/infer"]),
        st.dictionaries(names, anything, max_size=4) | anything,
    ),
)
cells = st.one_of(moments, st.sampled_from(COUNTERS), st.text(max_size=20), st.floats().map(str))
tables = st.one_of(
    st.lists(st.tuples(cells, cells, cells), max_size=4).map(
        lambda rows: "counter_id,target_ts,hourly_count\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows)
    ),
    st.text(max_size=200),
)


@pytest.fixture(scope="module")
def asked(in_process, autumn, local, tmp_path_factory):
    """Two services, one on each eve of a clock change, and what each of their forecasts is, computed offline."""
    _, bundle = autumn
    other = in_process(tmp_path_factory.mktemp("autumn"))
    other.app.state.holder.current = Champion(ModelRef("bike-traffic", "1", "run", bundle.bundle_id), bundle)
    return [local.client(), other.client()]


@pytest.fixture(scope="module")
def truth(city, autumn):
    history, _ = autumn
    frames = [
        city.offline(),
        city.forecasters[0].predict(build_features(history, [date(2024, 10, 27)])),
    ]
    return [
        {(row["counter_id"], row["target_ts"]): row["forecast"] for row in frame.iter_rows(named=True)}
        for frame in frames
    ]


def checked(answer, right):
    """The answer, proved to be right or to say what is wrong."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == MEDIA_TYPE
        assert Problem.model_validate_json(answer.content).status == answer.status_code
        return answer.status_code
    found = json.loads(answer.content, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    if "forecasts" in found and found["issue_date"] in ("2024-03-31", "2024-10-27"):
        for row in found["forecasts"]:
            key = row["counter_id"], datetime.fromisoformat(row["target_ts"])
            assert key in right
            assert row["lower_90"] <= row["lower_80"] <= row["forecast"] <= row["upper_80"] <= row["upper_90"]
    return answer.status_code


def drawn(examples):
    """How many cases are drawn, the same ones at every run; none is made smaller, for none should fail."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def hostile(asked, truth, examples):
    seen = Counter()

    @drawn(examples)
    @given(case=bodies, where=st.integers(0, 1))
    def json_bodies(case, where):
        path, body = case
        try:
            content = json.dumps(body).encode()
        except (ValueError, RecursionError):
            return
        answer = asked[where].post(path, content=content, headers={"Content-Type": "application/json"})
        seen[checked(answer, truth[where])] += 1
        supposed = isinstance(body, dict) and body.get("weather")
        if (
            answer.status_code == 200
            and path == "/v1/predict"
            and "forecasts" in answer.json()
            and not supposed
        ):
            found = answer.json()
            if found["issue_date"] in ("2024-03-31", "2024-10-27"):
                for row in found["forecasts"]:
                    key = row["counter_id"], datetime.fromisoformat(row["target_ts"])
                    assert row["forecast"] == truth[where][key]

    @drawn(examples // 5)
    @given(
        body=tables,
        path=st.sampled_from(["/v1/predict", "/v1/evaluate", "/v1/drift"]),
        where=st.integers(0, 1),
    )
    def csv_bodies(body, path, where):
        content = body.encode("utf-8", "surrogatepass")
        seen[
            checked(
                asked[where].post(path, content=content, headers={"Content-Type": "text/csv"}), truth[where]
            )
        ] += 1

    @drawn(examples // 5)
    @given(
        path=st.sampled_from(["/v1/forecast", "/v1/counters/100-E/forecast"]),
        query=st.dictionaries(
            st.sampled_from(["as_of", "counter_id", "horizon", "issue_date", "format"]),
            moments
            | days.map(str)
            | st.integers(-1, 9).map(str)
            | st.sampled_from(["csv", "geojson", *COUNTERS]),
            max_size=3,
        ),
        where=st.integers(0, 1),
    )
    def queries(path, query, where):
        encodable = {name: value.encode("utf-8", "replace").decode() for name, value in query.items()}
        answer = asked[where].get(path, params=encodable)
        assert answer.status_code < 500, answer.text
        seen[answer.status_code] += 1

    json_bodies()
    csv_bodies()
    queries()
    return seen


def test_hostile_input_gets_an_error_of_the_client_or_a_right_answer(asked, truth):
    seen = hostile(asked, truth, 250)
    assert seen[200] > 20
    assert sum(seen.values()) > 300


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_ten_thousand_hostile_inputs(asked, truth):
    seen = hostile(asked, truth, 10_000)
    print(dict(seen))  # noqa: T201  the figures of the proof
    assert sum(seen.values()) >= 10_000
    assert seen[200] > 500


def test_damaged_parquet_and_arrow_end_nothing(asked):
    frame = pl.DataFrame({"counter_id": COUNTERS, "target_ts": ["2024-03-31T08:00:00Z"] * 3})
    for form, write in (
        (media.Form.PARQUET, frame.write_parquet),
        (media.Form.ARROW, frame.write_ipc_stream),
    ):
        out = io.BytesIO()
        write(out)
        intact = out.getvalue()
        for place in range(8, len(intact), len(intact) // 4):
            damaged = intact[:place] + bytes([intact[place] ^ 0xFF]) + intact[place + 1 :]
            headers = {"Content-Type": media.MEDIA_TYPES[form]}
            assert asked[0].post("/v1/predict", content=damaged, headers=headers).status_code < 500
        assert asked[0].post("/v1/predict", content=intact, headers=headers).status_code == 200


def test_both_hours_that_the_clock_shows_twice_are_answered_apart(asked, truth):
    hours = ["2024-10-27T02:00:00+02:00", "2024-10-27T02:00:00+01:00"]
    answer = asked[1].post("/v1/predict", json={"counter_ids": ["100-E"], "target_hours": hours}).json()
    expected = [datetime(2024, 10, 27, 0, tzinfo=UTC), datetime(2024, 10, 27, 1, tzinfo=UTC)]
    assert [datetime.fromisoformat(row["target_ts"]) for row in answer["forecasts"]] == expected
    assert [row["forecast"] for row in answer["forecasts"]] == [truth[1]["100-E", hour] for hour in expected]
    assert len(hours_of_day(date(2024, 10, 27))) == 25
