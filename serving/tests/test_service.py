"""The service as processes: it follows the champion, and nothing that breaks around it reaches a client."""

import signal
import subprocess
import sys
import threading
import time
from datetime import datetime

import pytest

pytestmark = pytest.mark.integration

HOURS = ["2024-03-31T08:00:00+02:00", "2024-04-02T17:00:00+02:00"]
COUNTERS = ["100-E", "200-N"]
QUESTION = {"counter_ids": COUNTERS, "target_hours": HOURS}


def ask(client, **more):
    answer = client.post("/predict", json={**QUESTION, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def served_version(client):
    answer = client.get("/model")
    return answer.json()["model"]["version"] if answer.status_code == 200 else None


def offline_points(city, forecaster):
    frame = city.offline(forecaster)
    hours = [datetime.fromisoformat(hour) for hour in HOURS]
    by_key = {(row["counter_id"], row["target_ts"]): row["forecast"] for row in frame.iter_rows(named=True)}
    return [by_key[counter_id, hour] for counter_id in COUNTERS for hour in hours]


def points(answer):
    return [forecast["forecast"] for forecast in answer["forecasts"]]


def metric(client, name):
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split(" ")[0].split("{")[0] == name)


def test_unavailable_until_a_champion_is_named_then_it_follows_each_promotion(
    registry, serve, city, eventually
):
    process = serve("follow", registry.server.url)
    with process.client() as client:
        health = eventually(
            lambda: (answer := client.get("/ready")) and "names no champion" in answer.text and answer
        )
        assert health.status_code == 503
        assert health.headers["content-type"] == "application/problem+json"
        assert "promote a model first" in health.json()["detail"]
        assert client.post("/predict", json=QUESTION).status_code == 503
        assert client.get("/counters").status_code == 503
        assert metric(client, "bike_serving_model_loaded") == 0

        first = registry.register("follow", forecaster=0)
        registry.promote("follow", first)
        eventually(lambda: client.get("/ready").status_code == 200, what="the first champion")
        assert points(ask(client)) == offline_points(city, 0)
        assert client.get("/ready").json()["status"] == "ok"

        second = registry.register("follow", forecaster=1)
        assert served_version(client) == first
        registry.promote("follow", second)
        eventually(lambda: served_version(client) == second, what="the second champion")
        answer = ask(client)
        assert points(answer) == offline_points(city, 1) != offline_points(city, 0)
        assert answer["model"]["bundle_id"] == registry.bundle_id("follow", second)
        assert metric(client, "bike_serving_swaps_total") == 1

        # Fresh counts give the same version a new bundle; here, to tell them apart, the other forecaster's.
        run_id = registry.client.get_model_version("follow", second).run_id
        renewed = city.write(second, 0, run_id, "follow")
        registry.client.set_model_version_tag("follow", second, "bundle_id", renewed.name)
        eventually(lambda: ask(client)["model"]["bundle_id"] == renewed.name, what="the renewed bundle")
        assert points(ask(client)) == offline_points(city, 0)


def test_no_request_fails_and_no_answer_is_mixed_while_champions_change(registry, serve, city, eventually):
    versions = [registry.register("swap", forecaster) for forecaster in (0, 1)]
    expected = {version: offline_points(city, index) for index, version in enumerate(versions)}
    bundle_ids = {version: registry.bundle_id("swap", version) for version in versions}
    registry.promote("swap", versions[0])
    process = serve("swap", registry.server.url)
    answers, failures, done = [], [], threading.Event()

    def stream():
        with process.client() as client:
            while not done.is_set():
                try:
                    answers.append(ask(client))
                    time.sleep(0.002)  # the clients are not to starve the service of the machine's cores
                except Exception as error:
                    failures.append(error)

    with process.client() as client:
        eventually(lambda: served_version(client) == versions[0])
        threads = [threading.Thread(target=stream) for _ in range(4)]
        for thread in threads:
            thread.start()
        for swap in range(1, 25):
            registry.promote("swap", versions[swap % 2])
            eventually(lambda swap=swap: served_version(client) == versions[swap % 2], what="a swap")
        done.set()
        for thread in threads:
            thread.join()
        assert metric(client, "bike_serving_swaps_total") == 24
    assert not failures
    assert len(answers) > 100
    assert {answer["model"]["version"] for answer in answers} == set(versions)
    for answer in answers:
        version = answer["model"]["version"]
        assert answer["model"]["bundle_id"] == bundle_ids[version]
        assert points(answer) == expected[version]


def test_a_damaged_bundle_is_refused_while_the_old_one_serves(registry, serve, city, eventually):
    good, bad = registry.register("damage", 0), registry.register("damage", 1)
    model_file = registry.bundle_path("damage", bad) / "model.cbm"
    intact = model_file.read_bytes()
    model_file.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    registry.promote("damage", good)
    process = serve("damage", registry.server.url)
    with process.client() as client:
        eventually(lambda: served_version(client) == good)
        registry.promote("damage", bad)
        health = eventually(lambda: (h := client.get("/ready").json())["status"] == "degraded" and h)
        assert "model.cbm was altered" in health["reason"]
        assert health["model"]["version"] == good
        assert points(ask(client)) == offline_points(city, 0)
        assert metric(client, "bike_serving_rejected_bundles_total") == 1

        model_file.write_bytes(intact)
        eventually(lambda: served_version(client) == bad, what="the mended bundle")
        eventually(lambda: client.get("/ready").json()["status"] == "ok", what="the end of that look")


def test_without_mlflow_it_serves_on_and_even_starts_again(registry, serve, city, eventually):
    version = registry.register("outage", 0)
    registry.promote("outage", version)
    process = serve("outage", registry.server.url)
    with process.client() as client:
        eventually(lambda: served_version(client) == version)
        registry.server.kill()
        health = eventually(lambda: (h := client.get("/ready").json())["status"] == "degraded" and h)
        assert "cannot be reached" in health["reason"]
        assert points(ask(client)) == offline_points(city, 0)
    assert process.terminate() in (0, -signal.SIGTERM)  # uvicorn hands the signal on once it has closed

    process.start()
    with process.client() as client:
        answer = eventually(lambda: (a := client.get("/ready")).status_code == 200 and a).json()
        assert answer["status"] == "degraded"
        assert "cannot be reached" in answer["reason"]
        assert points(ask(client)) == offline_points(city, 0)


def test_the_service_needs_nothing_of_the_platform():
    code = (
        "import sys, bike_serving.app, bike_serving.__main__; "
        "heavy = {'dagster', 'mlflow', 'dbt', 'evidently', 'great_expectations', 'duckdb', 'sqlalchemy'};"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}),"
        "sorted(name for name in sys.modules if name.startswith('bike_assets.') and '.core' not in name))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[] []"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--help"], "BIKE_SERVING_MLFLOW_URL"), (["--port", "99999"], "setting port")],
)
def test_the_command_explains_itself(arguments, expected):
    ran = subprocess.run([sys.executable, "-m", "bike_serving", *arguments], capture_output=True, text=True)
    assert expected in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
