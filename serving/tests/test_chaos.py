"""The machine fails around the service: a full disk, a clock that jumps.

The death of a worker is in test_workers, that of MLflow in test_service, damaged bundles in test_refusals.
"""

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from bike_serving import champion as champion_module
from bike_serving.champion import ChampionHolder
from bike_serving.metrics import Metrics
from bike_serving.registry import ModelRef, RegistryUnavailableError
from bike_serving.settings import Settings

QUESTION = {"counter_ids": ["100-E"], "target_hours": ["2024-03-31T08:00:00+02:00"]}


@pytest.mark.integration
@pytest.mark.slow
def test_on_a_full_disk_it_answers_follows_the_champion_and_starts_again(
    registry, serve, city, eventually, tmp_path
):
    """No file can grow by a byte: neither memory, access log, limits nor the log itself can be written."""
    versions = [registry.register("full", forecaster) for forecaster in (0, 1)]
    registry.promote("full", versions[0])
    process = serve("full", registry.server.url)
    process.kill()
    process.command = ["bash", "-c", f"ulimit -f 0; exec {' '.join(process.command)}"]
    for served in (0, 1):
        process.start()
        with process.client() as client:
            for version in (versions[served], versions[1]):
                registry.promote("full", version)
                eventually(lambda v=version: client.get("/model").json().get("model", {}).get("version") == v)
                answer = client.post("/predict", json=QUESTION)
                assert answer.status_code == 200, answer.text
                offline = city.offline(versions.index(version)).filter(counter_id="100-E")
                expected = offline.filter(target_ts=datetime(2024, 3, 31, 6, tzinfo=UTC))[
                    "forecast"
                ].to_list()
                assert [forecast["forecast"] for forecast in answer.json()["forecasts"]] == expected
        process.kill()


class Names:
    """A registry that names what the test says."""

    def __init__(self, ref):
        self.ref = ref

    def resolve(self):
        if isinstance(self.ref, Exception):
            raise self.ref
        return self.ref

    def close(self):
        """Nothing to give back."""


@pytest.mark.parametrize("jump", [timedelta(days=-9000), timedelta(days=9000)])
def test_a_clock_that_jumps_changes_nothing_of_what_is_served(city, tmp_path, monkeypatch, jump):
    class Jumped(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + jump

    refs = [
        ModelRef("bike-traffic", str(index), "run", city.write(str(index), index).name) for index in (0, 1)
    ]
    settings = Settings(home=city.home, state_dir=tmp_path, poll_seconds=0.01)
    holder = ChampionHolder(settings, Names(refs[0]), Metrics())
    holder.refresh()
    before = holder.current.answer(holder.current.newest, ["100-E"], [datetime(2024, 3, 31, 6, tzinfo=UTC)])
    monkeypatch.setattr(champion_module, "datetime", Jumped)
    monkeypatch.setattr(time, "time", lambda: (datetime.now(UTC) + jump).timestamp())
    holder.refresh()
    assert holder.status.error is None
    now = holder.current.answer(holder.current.newest, ["100-E"], [datetime(2024, 3, 31, 6, tzinfo=UTC)])
    assert now == before
    # Looking, being refused and trying again go by a clock that nobody can set.
    path = city.home / "bundles" / refs[1].bundle_id
    hidden = path.rename(tmp_path / "hidden")
    holder._registry.ref = refs[1]
    holder.refresh()
    assert holder.current.ref == refs[0]
    hidden.rename(path)
    holder._registry.ref = RegistryUnavailableError("away")
    holder.refresh()
    holder._registry.ref = refs[1]
    threading.Event().wait(0.05)
    holder.refresh()
    assert holder.current.ref == refs[1]
