"""The short way of /predict: to the byte what the route answers, and the route's business whenever in doubt."""

import asyncio
import json
import random

import pytest

from bike_serving import app as app_module
from bike_serving import server as server_module
from bike_serving.app import create_app
from bike_serving.champion import ChampionHolder
from bike_serving.fast_path import ShortWay
from bike_serving.registry import ModelRef
from bike_serving.security.access import Meter, Role
from bike_serving.security.keys import create_key
from bike_serving.settings import Settings
from serving.tests.wire import TRUSTED_PROXY, Connection, answers

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
    """Asks an application of this process as bytes on a connection, as a reader without limits."""

    def __init__(self, app, key, short_way):
        self.app, self.key, self.short_way = app, key, short_way

    def raw(self, method, path, content=b"", headers=None):
        headers = {"host": "service", "x-api-key": self.key, **(headers or {})}
        if isinstance(content, list):
            headers["transfer-encoding"] = "chunked"
            content = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*content, b""))
        else:
            content = content.encode() if isinstance(content, str) else content
            headers["content-length"] = str(len(content))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + content

    def request(self, method, path, content=b"", headers=None):
        async def ask():
            connection = Connection(self.app, self.short_way)
            sent = await connection.send(self.raw(method, path, content, headers))
            connection.close()
            return sent

        [answer] = answers(asyncio.run(ask()))
        return answer

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, **more):
        return self.request("POST", path, **more)


@pytest.fixture(scope="module")
def make(city, tmp_path_factory):
    """A client of a service with a champion, by whether it has a short way; settings, and the limit of its key."""
    ref = ModelRef("bike-traffic", "1", "run", city.write("1", 0).name)

    class Loaded(ChampionHolder):
        def __init__(self, settings, _registry, metrics, _compute):
            super().__init__(settings, Named(ref), metrics)
            self.refresh()

    def made(short, limit=0, **options):
        settings = Settings(home=city.home, state_dir=tmp_path_factory.mktemp("state"), **options)
        _, key = create_key(settings.keys_path, "tests", Role.READER, {Meter.PREDICT: limit})
        app = create_app(settings)
        return Client(app, key, app.state.short_way if short else None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_module, "ChampionHolder", Loaded)
        yield made


@pytest.fixture(scope="module")
def clients(make):
    """A service with the short way, and the same one without it."""
    return [make(short) for short in (True, False)]


@pytest.fixture
def taken(monkeypatch):
    """Whether the short way answered, for every request that it recognised."""
    noted = []
    original = ShortWay.answer

    def noting(self, *arguments):
        answer = original(self, *arguments)
        noted.append(answer is not None)
        return answer

    monkeypatch.setattr(ShortWay, "answer", noting)
    return noted


def same(clients, content, headers=JSON, path="/predict"):
    """The answer of both ways, which are equal in status, body and the headers that say something of it."""
    fast, slow = (client.post(path, content=content, headers=headers) for client in clients)
    assert fast.content == slow.content, content[:200]
    assert fast.status_code == slow.status_code
    kept = [(name, value) for name, value in fast.headers.raw if name not in VARYING]
    assert kept == [(name, value) for name, value in slow.headers.raw if name not in VARYING]
    return fast


VARYING = (b"x-request-id", b"ratelimit")


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
    chunks = [text()[:10], text()[10:]]
    fast, slow = (client.post("/predict", content=chunks, headers=JSON) for client in clients)
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


def refusals(client, headers=None):
    return [client.post("/predict", content=text(), headers={**JSON, **(headers or {})}) for _ in range(4)]


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ({}, [200, 200, 429, 429]),  # refused as the short way's answers were counted
        ({"x-api-key": "bike_00000000_forged"}, [401] * 4),
        ({"x-api-key": ""}, [401] * 4),
        ({"authorization": "Basic !"}, [200, 200, 429, 429]),
        ({"x-request-id": "of-mine"}, [200, 200, 429, 429]),
        ({"x-request-id": "odd id"}, [200, 200, 429, 429]),
        ({"origin": "https://elsewhere.example"}, [200, 200, 429, 429]),
    ],
)
def test_who_may_ask_and_how_often_is_the_same_both_ways(make, headers, statuses):
    both = [make(short, limit=2) for short in (True, False)]
    fast, slow = (refusals(client, headers) for client in both)
    assert [answer.status_code for answer in fast] == statuses
    assert [answer.status_code for answer in slow] == statuses
    for ours, theirs in zip(fast, slow, strict=True):
        varying = {name for name in VARYING if name != b"ratelimit"} if statuses[0] == 200 else set(VARYING)
        if "x-request-id" in headers and headers["x-request-id"] == "of-mine":
            assert ours.headers["x-request-id"] == "of-mine"
        assert ours.content == theirs.content
        assert [(n, v) for n, v in ours.headers.raw if n not in varying] == [
            (n, v) for n, v in theirs.headers.raw if n not in varying
        ]
    assert written(both[0]) == written(both[1])


def written(client):
    """The access log of a client's service, without what differs from request to request."""
    client.app.state.short_way._access.audit.close()
    lines = (client.app.state.settings.state_folder / "audit.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        assert entry.pop("at")
        assert 0 <= entry.pop("ms") < 60_000
        if entry["request_id"] != "of-mine":
            assert entry.pop("request_id")
        entry["caller"] = entry["caller"] and entry["caller"].partition(":")[0]
    return entries


@pytest.mark.parametrize(
    ("peer", "logged"),
    [(TRUSTED_PROXY, "203.0.113.5"), ("192.0.2.7", "192.0.2.7")],
    ids=["trusted", "unknown"],
)
def test_the_access_log_tells_whom_a_trusted_proxy_asks_for(make, peer, logged):
    async def ask(client):
        connection = Connection(client.app, client.short_way, client=(peer, 1))
        headers = {**JSON, "x-forwarded-for": "203.0.113.5"}
        await connection.send(client.raw("POST", "/predict", text(), headers))
        connection.close()

    for client in (make(True), make(False)):
        asyncio.run(ask(client))
        assert [entry["client"] for entry in written(client)] == [logged]


def test_a_failure_of_the_short_way_is_nobodys_error(clients, taken, monkeypatch):
    monkeypatch.setattr("bike_serving.fast_path._look_up", lambda *_: 1 / 0)
    assert same(clients, text()).status_code == 200
    assert taken == [False]


def on_a_connection(client, *parts, then=None):
    """What is answered to parts of requests, on one connection."""

    async def ask():
        connection = Connection(client.app, client.short_way)
        await connection.send(*parts)
        if then:
            await then(connection)
        connection.close()
        return answers(connection.transport.sent), connection.transport.closed

    return asyncio.run(ask())


@pytest.mark.parametrize("cut", [1, 30, 200, -5])
def test_a_body_may_come_in_parts(clients, taken, cut):
    raw = clients[0].raw("POST", "/predict", text(), JSON)
    [answer], closed = on_a_connection(clients[0], raw[:cut], raw[cut:])
    assert answer.content == clients[1].post("/predict", content=text(), headers=JSON).content
    assert taken == [True]
    assert closed  # by the test: it was open until then


def test_the_rest_of_a_body_is_not_waited_for_long(clients, taken, monkeypatch):
    monkeypatch.setattr(server_module, "_WAITED_SECONDS", 0.01)
    raw = clients[0].raw("POST", "/predict", text(), JSON)

    async def late(connection):
        await asyncio.sleep(0.05)
        assert len(connection.state.tasks) == 1  # where the time of a body is limited
        await connection.send(raw[-5:])

    async def ask():
        connection = Connection(clients[0].app, clients[0].short_way)
        connection.protocol.data_received(raw[:-5])
        await late(connection)
        connection.close()
        return answers(connection.transport.sent)

    [answer] = asyncio.run(ask())
    assert answer.status_code == 200
    assert taken == []


def test_a_body_that_never_comes_is_given_up(make, monkeypatch):
    monkeypatch.setattr(server_module, "_WAITED_SECONDS", 0.01)

    async def ask(client):
        connection = Connection(client.app, client.short_way)
        connection.protocol.data_received(client.raw("POST", "/predict", text(), JSON)[:-5])
        while not connection.transport.sent:
            await asyncio.sleep(0.01)
        return answers(connection.transport.sent)

    for short in (True, False):
        [answer] = asyncio.run(asyncio.wait_for(ask(make(short, body_timeout_seconds=0.1)), 10))
        assert answer.status_code == 408


def test_answers_keep_the_order_of_their_questions(clients, taken):
    question = clients[0].raw("POST", "/predict", text(), JSON)
    other = clients[0].raw("GET", "/counters")
    found, _ = on_a_connection(clients[0], question + question + other + question)
    assert [answer.status_code for answer in found] == [200] * 4
    assert found[0].content == found[1].content == found[3].content
    assert "counters" in found[2].json()
    assert taken == [True, True]  # the last one waits behind the other


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"connection": "close"}, b"200 OK"),
        ({"expect": "100-continue"}, b"200 OK"),
        (
            {"connection": "upgrade", "upgrade": "h2c"},
            b"400 Bad Request",
        ),  # its body belongs to another protocol
    ],
)
def test_what_is_more_than_a_question_is_left_to_uvicorn(clients, taken, headers, status):
    raw = clients[0].raw("POST", "/predict", text(), {**JSON, **headers})

    async def ask():
        connection = Connection(clients[0].app, clients[0].short_way)
        await connection.send(raw)
        return connection.transport

    transport = asyncio.run(ask())
    assert b"HTTP/1.1 " + status in transport.sent
    assert transport.closed == (headers.get("connection") == "close")
    assert taken == []


def test_a_client_that_reads_nothing_is_not_written_to_without_end(clients, taken):
    async def ask():
        connection = Connection(clients[0].app, clients[0].short_way)
        connection.protocol.pause_writing()
        connection.protocol.data_received(clients[0].raw("POST", "/predict", text(), JSON))
        await asyncio.sleep(0.02)
        assert connection.transport.sent == b""
        connection.protocol.resume_writing()
        await connection.settle()
        return answers(connection.transport.sent)

    assert [answer.status_code for answer in asyncio.run(ask())] == [200]
    assert taken == []


def test_a_connection_may_end_and_the_server_may_stop_in_the_middle_of_a_body(clients, taken):
    raw = clients[0].raw("POST", "/predict", text(), JSON)

    async def ask():
        connection = Connection(clients[0].app, clients[0].short_way)
        connection.protocol.data_received(raw[:-5])
        connection.close()
        assert connection.protocol._patience is None
        stopping = Connection(clients[0].app, clients[0].short_way)
        stopping.protocol.data_received(raw[:-5])
        stopping.protocol.shutdown()
        assert not stopping.transport.closed
        await stopping.send(raw[-5:])
        return connection.transport.sent, stopping.transport

    nothing, stopping = asyncio.run(ask())
    assert nothing == b""
    assert answers(stopping.sent)[0].status_code == 200
    assert stopping.closed
    assert taken == []
