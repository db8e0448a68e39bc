"""A look at the REST service from outside: down, back, and too many errors, against a real HTTP server."""

from collections.abc import Iterator, Mapping

import pytest

from bike_assets.core.alerts import Alert, Kind
from bike_assets.sensors.service_health import MIN_REQUESTS, MISSES, Seen, Watch, look_at_service
from bike_assets_tests.fakes.service import Answer, FakeService

KEY = "bk_reader"


class FakeServing(FakeService):
    """A fake of our REST service: its health and its count of requests are what the test says."""

    healthy = True
    answered: Mapping[str, int] = {}

    def respond(self, path: str, query: dict[str, str], headers: Mapping[str, str]) -> Answer:
        del query
        if path == "/metrics" and headers.get("X-API-Key") != KEY:
            return Answer.json({"title": "Unauthorized"}, 401)
        if path == "/ready":
            return Answer.json({"status": "ok"}, 200 if self.healthy else 503)
        lines = [
            "# HELP bike_serving_requests_total Requests answered",
            "# TYPE bike_serving_requests_total counter",
            *(
                f'bike_serving_requests_total{{method="POST",route="/predict",status="{status}"}} {count}.0'
                for status, count in self.answered.items()
            ),
            'bike_serving_requests_total{method="GET",route="/ready",status="503"} 1000.0',
            "bike_serving_requests_created 1.7e+09",
        ]
        return Answer(200, "text/plain", "\n".join(lines).encode())


@pytest.fixture
def service() -> Iterator[FakeServing]:
    with FakeServing() as server:
        yield server


def look(url: str, seen: Seen) -> tuple[Seen, list[Alert]]:
    return look_at_service(Watch(url, 0.05, KEY), seen)


def opened(found: list[Alert]) -> list[Kind]:
    return [alert.kind for alert in found if not alert.closes]


def test_a_service_that_does_not_answer_is_down_after_some_looks() -> None:
    seen = Seen()
    for misses in range(1, MISSES + 2):
        seen, found = look("http://127.0.0.1:1", seen)
        assert opened(found) == ([Kind.SERVICE_DOWN] if misses >= MISSES else [])
        assert seen.misses == misses


def test_a_service_without_a_model_is_down_and_back_with_one(service: FakeServing) -> None:
    service.healthy = False
    seen, found = Seen(), []
    for _ in range(MISSES):
        seen, found = look(service.url, seen)
    assert "503" in found[0].text

    service.healthy = True
    seen, found = look(service.url, seen)
    assert [(alert.kind, alert.closes) for alert in found] == [(Kind.SERVICE_DOWN, True)]
    assert seen.misses == 0


@pytest.mark.parametrize(
    ("answered", "told"),
    [
        ({"200": 200}, []),
        ({"200": 195, "500": 5}, []),
        ({"200": 189, "500": 10}, [Kind.API_ERRORS]),
        ({"200": 150, "500": 20, "503": 30}, [Kind.API_ERRORS]),
        ({"200": 100, "422": 100}, []),  # What clients do wrong is no error of the service.
        ({"500": MIN_REQUESTS - 1}, []),
        ({"500": MIN_REQUESTS}, [Kind.API_ERRORS]),
    ],
)
def test_the_share_of_errors_since_the_last_look_is_judged(
    service: FakeServing, answered: dict[str, int], told: list[Kind]
) -> None:
    service.answered = {"200": 1000, "500": 400}
    seen, found = look(service.url, Seen())
    assert opened(found) == [], "errors of before the first look"

    service.answered = {
        status: service.answered.get(status, 0) + answered.get(status, 0)
        for status in service.answered.keys() | answered.keys()
    }
    _, found = look(service.url, seen)
    assert opened(found) == told


def test_few_requests_are_added_up_until_they_say_something(service: FakeServing) -> None:
    seen, found = look(service.url, Seen())
    for errors in range(1, MIN_REQUESTS + 1):
        assert opened(found) == []
        service.answered = {"500": errors}
        seen, found = look(service.url, seen)
    assert opened(found) == [Kind.API_ERRORS]


def test_a_service_that_was_started_again_counts_anew(service: FakeServing) -> None:
    service.answered = {"200": 1000, "500": 900}
    seen, _ = look(service.url, Seen())
    service.answered = {"200": 100}
    seen, found = look(service.url, seen)

    assert opened(found) == []
    assert seen.requests == 100


def test_without_a_key_it_is_watched_whether_it_answers(service: FakeServing) -> None:
    watch = Watch(service.url, 0.05)
    service.answered = {"500": 0}
    seen, _ = look_at_service(watch, Seen())
    service.answered = {"500": 1000}
    seen, found = look_at_service(watch, seen)
    assert (opened(found), seen) == ([], Seen())
    assert "bk_reader" not in repr(Watch(service.url, 0.05, KEY))


@pytest.mark.parametrize("position", [{}, {"misses": "x", "requests": None, "failed": 0}, {"after": 3}])
def test_a_damaged_position_is_a_first_look(position: dict[str, object]) -> None:
    assert Seen.from_position(position) == Seen()


def test_a_position_survives_its_ledger() -> None:
    seen = Seen(1, 20.0, 3.0)
    assert Seen.from_position(seen.to_position()) == seen
