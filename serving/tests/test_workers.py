"""Several workers: one service to whoever asks it, scrapes it, kills one of them or promotes another champion."""

import os
import signal
import threading
import time
from collections import Counter

import httpx
import psutil
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

QUESTION = {"counter_ids": ["100-E", "200-N"], "target_hours": ["2024-03-31T08:00:00+02:00"]}


def workers_of(process):
    """The processes that answer: children of the parent that have a thread looking for the champion."""
    children = psutil.Process(process.process.pid).children()
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "spawn_main" in " ".join(child.cmdline())]


def metrics(process):
    with process.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")
    }


def ask(process):
    """A question over a connection of its own, so that any worker may take it."""
    with process.client() as client:
        answer = client.post("/predict", json=QUESTION)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def offline(city):
    """The forecasts each forecaster makes for the question."""

    def points(forecaster):
        frame = city.offline(forecaster)
        by_key = {
            (row["counter_id"], row["target_ts"].isoformat()): row for row in frame.iter_rows(named=True)
        }
        return [
            by_key[counter, "2024-03-31T06:00:00+00:00"]["forecast"] for counter in QUESTION["counter_ids"]
        ]

    return [points(0), points(1)]


def points(answer):
    return [forecast["forecast"] for forecast in answer["forecasts"]]


def test_workers_are_scraped_as_one_follow_the_champion_and_are_replaced_when_killed(
    registry, serve, offline, eventually
):
    versions = [registry.register("workers", forecaster) for forecaster in (0, 1)]
    registry.promote("workers", versions[0])
    process = serve("workers", registry.server.url, workers="2", poll_seconds="1")
    eventually(lambda: metrics(process).get("bike_serving_workers") == 2, what="two workers")

    for _ in range(40):
        ask(process)
    # Whichever worker is scraped tells of both.
    counted = metrics(process)
    name = f'bike_serving_predictions_total{{model_type="catboost",model_version="{versions[0]}"}}'
    assert counted[name] == 80
    assert counted['bike_serving_requests_total{method="POST",route="/predict",status="200"}'] == 40
    assert counted["bike_serving_model_loaded"] == 1
    per_worker = [child.memory_info().rss for child in workers_of(process)]
    assert counted["process_resident_memory_bytes"] == pytest.approx(sum(per_worker), rel=0.2)

    # A promotion reaches every worker; each answer is of one version.
    registry.promote("workers", versions[1])
    promoted, seen = time.monotonic(), Counter()
    while time.monotonic() < promoted + 5:
        answer = ask(process)
        which = versions.index(answer["model"]["version"])
        assert points(answer) == offline[which]
        seen[which] += 1
        models = [name for name in metrics(process) if name.startswith("bike_serving_model_info")]
        if len(models) == 1 and f'version="{versions[1]}"' in models[0]:
            break
    else:
        pytest.fail("five seconds after the promotion a worker still serves the old champion")

    # One is killed while questions come: what was being answered is cut off, and nothing is answered wrongly.
    wrong, cut, done = [], [], threading.Event()

    def stream():
        while not done.is_set():
            try:
                if points(ask(process)) != offline[1]:
                    wrong.append("another forecast")
            except httpx.TransportError:
                cut.append(time.monotonic())
            except AssertionError as error:
                wrong.append(str(error))

    threads = [threading.Thread(target=stream, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    victim, other = workers_of(process)
    os.kill(victim.pid, signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: {child.pid for child in workers_of(process)} - {victim.pid, other.pid}, what="another")
    eventually(lambda: metrics(process).get("bike_serving_workers") == 2, what="two workers again")
    time.sleep(0.5)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(when < killed + 0.5 for when in cut), "only what the killed worker held was cut off"
    # What it counted is not lost with it.
    assert metrics(process)[name] == 80 + 2 * seen[0]
    assert process.terminate() in (0, -signal.SIGTERM)
