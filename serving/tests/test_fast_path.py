"""The short way of /predict: to the byte what the route answers, and the route's business whenever in doubt."""

import asyncio
import json
import random

import httpx
import pytest

from bike_serving import app as app_module
from bike_serving.app import create_app
from bike_serving.champion import ChampionHolder
from bike_serving.registry import ModelRef
from bike_serving.security.access import Meter, Role
from bike_serving.security.keys import create_key
from bike_serving.settings import Settings

HOUR = "2024-03-31T08:00:00+02:00"
PLAIN = {"counter_ids": ["100-E"], "target_hours": [HOUR]}
JSON = {"content-type": "application/json"}


class Named:
    """A registry that names one bundle."""

    def __init__(self, ref):
        self.ref = ref

    def resolve(self):
        return self.ref

    def close(self):
        """Nothing to give back."""


class Client:
    """Asks an application of this process, as a reader without limits."""

    def __init__(self, app, key):
        self.app, self.key = app, key

    def request(self, method, path, **more):
        async def ask():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport,
                base_url="http://service",
                trust_env=False,
                headers={"X-API-Key": self.key},
            ) as client:
                return await client.request(method, path, **more)

        return asyncio.run(ask())

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, **more):
        return self.request("POST", path, **more)


@pytest.fixture(scope="module")
def clients(city, tmp_path_factory):
    """A service with the short way, and the same one without it."""
    ref = ModelRef("bike-traffic", "1", "run", city.write("1", 0).name)
    settings = Settings(home=city.home, state_dir=tmp_path_factory.mktemp("state"))
    _, key = create_key(settings.keys_path, "tests", Role.READER, {Meter.PREDICT: 0})

    class Loaded(ChampionHolder):
        def __init__(self, settings, _registry, metrics, _compute):
            super().__init__(settings, Named(ref), metrics)
            self.refresh()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_module, "ChampionHolder", Loaded)
        fast = create_app(settings)
        patch.setattr(app_module, "FastPredict", lambda app, **_kwargs: app)
        slow = create_app(settings)
        yield [Client(app, key) for app in (fast, slow)]


@pytest.fixture
def taken(monkeypatch):
    """Whether the short way answered, request by request."""
    from bike_serving.fast_path import FastPredict

    answers = []
    original = FastPredict._answer

    def noting(self, scope, body):
        answer = original(self, scope, body)
        answers.append(answer is not None)
        return answer

    monkeypatch.setattr(FastPredict, "_answer", noting)
    return answers


def same(clients, content, headers=JSON, path="/predict"):
    """The answer of both ways, which are equal in status, body and the headers that say something of it."""
    fast, slow = (client.post(path, content=content, headers=headers) for client in clients)
    assert fast.content == slow.content, content[:200]
    assert fast.status_code == slow.status_code
    kept = [(name, value) for name, value in fast.headers.raw if name not in VARYING]
    assert kept == [(name, value) for name, value in slow.headers.raw if name not in VARYING]
    return fast


VARYING = (b"x-request-id",)


@pytest.mark.parametrize("path", ["/predict", "/v1/predict"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"counter_ids": ["200-N", "100-E", "200-N"], "target_hours": [HOUR, "2024-04-01T09:00:00Z", HOUR]},
        {"issue_date": "2024-03-31"},
        {"issue_date": None},
        {"target_hours": ["2024-03-31 08:00:00.000+0200"]},
    ],
)
def test_common_questions_take_the_short_way_and_get_the_same_answer(clients, taken, path, change):
    answer = same(clients, json.dumps({**PLAIN, **change}), path=path)
    assert answer.status_code == 200
    assert taken == [True]
    assert len(answer.json()["forecasts"]) == len(set({**PLAIN, **change}["counter_ids"])) * len(
        set({**PLAIN, **change}["target_hours"])
    )


def text(**change):
    return json.dumps({**PLAIN, **change}).encode()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (text(issue_date="2024-03-29"), 200),
        (text(issue_date="2024-01-01"), 422),
        (text(issue_date="2024-3-31"), 422),
        (text(counter_ids=["nowhere"]), 404),
        (text(counter_ids=[]), 422),
        (text(counter_ids=[""]), 422),
        (text(counter_ids=["x" * 101]), 422),
        (text(counter_ids=["100-E"] * 201), 422),
        (text(target_hours=[HOUR] * 169), 422),
        (text(target_hours=["2024-03-31T08:00:00"]), 422),
        (text(target_hours=["2024-03-31T08:30:00Z"]), 422),
        (text(target_hours=["1999-01-01T00:00:00Z"]), 422),
        (text(target_hours=["0001-01-01T00:00:00+14:00"]), 422),
        (text(target_hours=[1]), 422),
        (text(more=1), 422),
        (b"", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 50_000, 400),
        (text() + b"{}", 400),
        (text().decode().encode("utf-16"), 400),
        (b"\xef\xbb\xbf" + text(), 200),
        (b'{"counter_ids": ["a\x01"], "target_hours": ["' + HOUR.encode() + b'"]}', 400),
        (b'{"counter_ids": ["\\ud800"], "target_hours": ["' + HOUR.encode() + b'"]}', 400),
        (b'{"counter_ids": 1, "counter_ids": ["100-E"], "target_hours": ["' + HOUR.encode() + b'"]}', 200),
        (
            b'{"counter_ids": ["200-N"], "counter_ids": ["100-E"], "target_hours": ["'
            + HOUR.encode()
            + b'"]}',
            200,
        ),
        (b'{"counter_ids": ["100-\\u0045"], "target_hours": ["' + HOUR.encode() + b'"]}', 200),
    ],
)
def test_every_other_body_gets_the_answer_of_the_route(clients, content, status):
    assert same(clients, content).status_code == status


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({}, "/predict"),
        ({"content-type": "application/json; charset=utf-8"}, "/predict"),
        ({"content-type": "text/plain"}, "/predict"),
        ({**JSON, "accept": "text/csv"}, "/predict"),
        ({**JSON, "content-encoding": "gzip"}, "/predict"),
        (JSON, "/predict?unknown=1"),
        (JSON, "/predict/"),
    ],
)
def test_what_the_short_way_does_not_know_is_not_its_business(clients, taken, headers, path):
    same(clients, text(), headers=headers, path=path)
    assert taken == []


def test_a_body_of_unknown_size_is_left_to_the_limit_of_bodies(clients, taken):
    async def chunks():
        yield text()[:10]
        yield text()[10:]

    fast, slow = (client.post("/predict", content=chunks(), headers=JSON) for client in clients)
    assert fast.content == slow.content
    assert fast.status_code == 200
    assert taken == []


def test_damaged_bodies_get_the_same_answer_both_ways(clients):
    """Bytes of good bodies changed, cut, doubled: whatever comes of it, both ways agree."""
    dice = random.Random(6)
    good = [text(), text(counter_ids=["100-E", "é\n"], issue_date="2024-03-31"), text(issue_date=None)]
    statuses = set()
    for _ in range(400):
        body = bytearray(dice.choice(good))
        for _ in range(dice.randint(1, 2)):
            at = dice.randrange(len(body))
            match dice.randrange(4):
                case 0:
                    body[at] = dice.choice(b'"{}[]:,\\ 0eZ\x00\xc3')
                case 1:
                    del body[at : at + dice.randint(1, 4)]
                case 2:
                    body[at:at] = dice.choice(
                        [b" ", b'"', b"\\u0041", b"null", b"NaN", b"\xed\xa0\x80", b"/**/"]
                    )
                case 3:
                    body[at:at] = body[at : at + dice.randint(1, 30)]
        statuses.add(same(clients, bytes(body)).status_code)
    assert statuses == {200, 400, 404, 422}


def test_both_ways_count_the_same(clients):
    def counts():
        return [
            {
                line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
                for line in client.get("/metrics").text.splitlines()
                if line.startswith(
                    ("bike_serving_requests_total{", "bike_serving_predictions", "bike_serving_vin")
                )
                and "_created" not in line
            }
            for client in clients
        ]

    before = counts()
    for content in (text(), text(counter_ids=["100-E", "100-W"]), text(counter_ids=["nowhere"]), b"{"):
        same(clients, content)
    fast, slow = (
        {name: value - was.get(name, 0) for name, value in now.items() if value != was.get(name, 0)}
        for was, now in zip(before, counts(), strict=True)
    )
    assert fast == slow
    assert fast['bike_serving_predictions_total{model_type="catboost",model_version="1"}'] == 3
    assert fast['bike_serving_requests_total{method="POST",route="/predict",status="200"}'] == 2


def test_without_a_champion_the_route_says_so(clients, monkeypatch):
    for client in clients:
        monkeypatch.setattr(client.app.state.holder, "current", None)
    assert same(clients, text()).status_code == 503
