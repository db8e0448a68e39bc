"""What the registry's answers mean, told by a server that gives each of them over real HTTP."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from bike_assets.core.errors import PermanentError, TransientError
from bike_serving.registry import MlflowRegistry, ModelRef, NoChampionError, RegistryUnavailableError

BUNDLE_ID = "0123456789abcdef" * 2


def version(**changes):
    tags = [{"key": "bundle_id", "value": BUNDLE_ID}]
    found = {"name": "bike-traffic", "version": "7", "run_id": "r", "tags": tags, **changes}
    return json.dumps({"model_version": found})


@pytest.fixture
def resolve():
    """Resolve the champion against a server that gives one fixed answer."""
    script = {}

    class Scripted(BaseHTTPRequestHandler):
        def do_GET(self):
            script.update(path=self.path, shown=self.headers["Authorization"])
            self.send_response(script["status"])
            self.end_headers()
            self.wfile.write(script["body"].encode())

        def log_message(self, *args):
            """Tests are quiet."""

    server = HTTPServer(("127.0.0.1", 0), Scripted)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    registries = []

    def ask(status, body, credentials=None, show="path"):
        script.update(status=status, body=body)
        url = f"http://127.0.0.1:{server.server_port}"
        registries.append(MlflowRegistry(url, "bike-traffic", "champion", 5, credentials))
        return registries[-1].resolve(), script[show]

    yield ask
    for registry in registries:
        registry.close()
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_alias_is_asked_for_and_its_tag_is_read(resolve):
    ref, path = resolve(200, version())
    assert ref == ModelRef("bike-traffic", "7", "r", BUNDLE_ID)
    assert path == "/api/2.0/mlflow/registered-models/alias?name=bike-traffic&alias=champion"


def test_a_server_that_asks_is_shown_name_and_password_and_others_nothing(resolve):
    assert resolve(200, version(), show="shown")[1] is None
    shown = resolve(200, version(), ("serving", "p:w"), show="shown")[1]
    assert base64.b64decode(shown.removeprefix("Basic ")) == b"serving:p:w"


@pytest.mark.parametrize(
    ("status", "body"),
    [(429, ""), (500, ""), (502, ""), (503, ""), (504, ""), (400, '{"error_code": "BAD_REQUEST"}')],
)
def test_a_server_in_trouble_may_answer_later(resolve, status, body):
    with pytest.raises(RegistryUnavailableError, match=str(status)) as caught:
        resolve(status, body)
    assert isinstance(caught.value, TransientError)


@pytest.mark.parametrize(
    ("status", "body", "match"),
    [
        (404, '{"error_code": "RESOURCE_DOES_NOT_EXIST"}', "names no champion.*RESOURCE_DOES_NOT_EXIST"),
        (400, "no JSON", "names no champion"),
        (400, '{"error_code": "INVALID_PARAMETER_VALUE"}', "names no champion.*INVALID_PARAMETER_VALUE"),
        (403, "[]", "names no champion.*403"),
        (302, "", "names no champion"),
        (401, "", "does not know us; check BIKE_SERVING_MLFLOW_USERNAME"),
        (200, "<html>", "does not answer like MLflow"),
        (200, "[]", "does not answer like MLflow"),
        (200, "{}", "does not answer like MLflow"),
        (200, version(tags=[]), "version 7 of bike-traffic has no tag bundle_id"),
        (200, version(tags=[{"key": "bundle_id", "value": "../../etc"}]), "no tag bundle_id"),
        (200, version(tags=[{"key": "bundle_id", "value": BUNDLE_ID + "\n"}]), "no tag bundle_id"),
    ],
)
def test_other_answers_name_no_champion(resolve, status, body, match):
    with pytest.raises(NoChampionError, match=match) as caught:
        resolve(status, body)
    assert isinstance(caught.value, PermanentError)


def test_no_server_is_no_answer():
    registry = MlflowRegistry("http://127.0.0.1:9", "bike-traffic", "champion", 1)
    with pytest.raises(RegistryUnavailableError, match=r"127\.0\.0\.1:9 cannot be reached"):
        registry.resolve()
    registry.close()
