"""A challenger beside the champion: nobody waits for it, nobody fails because of it, and everybody keeps their arm."""

import json
import shutil
from datetime import timedelta

import pytest

from bike_assets.core.experiment import arm_of
from bike_serving.champion import Champion
from bike_serving.experiment import _WAITING
from bike_serving.registry import ModelRef, NoChampionError, RegistryUnavailableError

COUNTERS = ["100-E", "100-W", "200-N"]
WANTED = {"counter_ids": COUNTERS, "target_hours": ["2024-03-31T08:00:00+02:00", "2024-04-02T17:00:00+02:00"]}


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


@pytest.fixture
def start(in_process, city, tmp_path):
    """An application with an experiment, whose challenger is the second forecaster."""

    def made(ref=None, **settings):
        service = in_process(tmp_path, **settings)
        service.app.state.experiment._registry = Names(ref or named(city))
        service.app.state.experiment.look()
        return service

    return made


def named(city, version="2", forecaster=1):
    return ModelRef("bike-traffic", version, "run", city.write(version, forecaster).name)


def value(service, name, **labels):
    return service.app.state.metrics.registry.get_sample_value(name, labels) or 0.0


def values(answer):
    return [forecast["forecast"] for forecast in answer["forecasts"]]


def expected(city, forecaster):
    table = Champion(ModelRef("bike-traffic", "x", "run", "b"), city.load(city.write("x", forecaster))).newest
    from datetime import datetime

    hours = [datetime.fromisoformat(hour) for hour in WANTED["target_hours"]]
    return [json.loads(row)["forecast"] for row in table.look_up(COUNTERS, hours)]


# Shadow


def test_in_shadow_every_answer_is_the_champions_to_the_byte(start, local):
    service = start(experiment="shadow")

    assert (
        service.client().post("/predict", json=WANTED).content
        == local.client().post("/predict", json=WANTED).content
    )


def test_in_shadow_answers_are_compared_after_they_are_sent(start, city):
    service = start(experiment="shadow")
    experiment = service.app.state.experiment
    for path in ("/predict", "/v1/predict"):
        service.client().post(path, json=WANTED)
    assert value(service, "bike_serving_shadow_answers_total", result="compared") == 0, (
        "somebody waited for it"
    )

    while not experiment._answers.empty():
        experiment.compare(experiment._answers.get())

    assert value(service, "bike_serving_shadow_answers_total", result="compared") == 2
    assert value(service, "bike_serving_shadow_difference_count") == 12
    ours, theirs = expected(city, 0), expected(city, 1)
    total = sum(abs(t - o) / max(o, 1.0) for o, t in zip(ours, theirs, strict=True))
    assert total > 0
    assert value(service, "bike_serving_shadow_difference_sum") == pytest.approx(2 * total)


def test_in_shadow_what_was_refused_is_not_compared(start):
    service = start(experiment="shadow")
    service.client().post("/predict", json={**WANTED, "counter_ids": ["unheard of"]})
    service.client().get("/counters")

    assert service.app.state.experiment._answers.empty()


def test_in_shadow_more_than_can_be_compared_is_counted_and_costs_nothing(start):
    service = start(experiment="shadow")
    experiment = service.app.state.experiment
    for _ in range(_WAITING + 3):
        experiment.noted(b"{}")

    assert value(service, "bike_serving_shadow_answers_total", result="dropped") == 3


def test_in_shadow_an_answer_that_cannot_be_read_stops_nothing(start):
    service = start(experiment="shadow")
    service.app.state.experiment.compare(b"no json")

    assert value(service, "bike_serving_shadow_answers_total", result="failed") == 1


def test_in_shadow_another_issue_date_is_not_compared(start, city):
    service = start(experiment="shadow")
    service.app.state.experiment.compare(b'{"issue_date":"2024-03-01","forecasts":[]}')

    assert value(service, "bike_serving_shadow_answers_total", result="absent") == 1


# A share of the callers


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_each_caller_keeps_its_version_and_the_answer_names_it(start, city, share):
    service = start(experiment="ab", experiment_share=share)
    answers = {0: expected(city, 0), 1: expected(city, 1)}
    for role in service.keys:
        for _ in range(3):
            answer = service.client(role).post("/predict", json=WANTED).json()
            arm = arm_of(caller_id(service, role), "2", share)
            assert answer["model"]["version"] == ("2" if arm == "challenger" else "1")
            assert values(answer) == answers[arm == "challenger"]
    served = {
        arm: value(service, "bike_serving_experiment_answers_total", arm=arm)
        for arm in ("champion", "challenger")
    }
    assert sum(served.values()) == 3 * len(service.keys)
    if share in (0.0, 1.0):
        assert served["challenger"] == share * 3 * len(service.keys)


def caller_id(service, role):
    (found,) = [
        f"key:{key['id']}"
        for key in json.loads((service.state / "keys.json").read_text())["keys"]
        if key["role"] == role
    ]
    return found


def test_the_short_way_and_the_route_have_the_same_arm(start):
    service = start(experiment="ab", experiment_share=1.0)
    spelt = {**WANTED, "issue_date": "2024-03-30"}  # An older issue date is the route's.

    assert service.client().post("/predict", json=WANTED).json()["model"]["version"] == "2"
    assert service.client().post("/predict", json=spelt).json()["model"]["version"] == "2"


# A share of the counters


def test_each_counter_keeps_its_version_and_each_forecast_names_it(start, city):
    service = start(named(city, "4"), experiment="ab", experiment_by="counter", experiment_share=0.5)
    answer = service.client().post("/predict", json=WANTED).json()

    arms = {counter: arm_of(counter, "4", 0.5) for counter in COUNTERS}
    assert set(arms.values()) == {"champion", "challenger"}, "the draw of this city shows nothing"
    champion, challenger = expected(city, 0), expected(city, 1)
    for n, forecast in enumerate(answer["forecasts"]):
        is_challenger = arms[forecast["counter_id"]] == "challenger"
        assert forecast["model_version"] == ("4" if is_challenger else "1")
        assert forecast["forecast"] == (challenger if is_challenger else champion)[n]
    assert answer["model"]["version"] == "1"


def test_after_a_swap_the_champion_answers_alone_until_the_next_look(start, city):
    service = start(experiment="ab", experiment_by="counter", experiment_share=1.0)
    path = city.write("3")
    service.app.state.holder.current = Champion(
        ModelRef("bike-traffic", "3", "run", path.name), city.load(path)
    )

    answer = service.client().post("/predict", json=WANTED).json()
    assert answer["model"]["version"] == "3"
    assert "model_version" not in answer["forecasts"][0]

    service.app.state.experiment.look()
    answer = service.client().post("/predict", json=WANTED).json()
    assert answer["forecasts"][0]["model_version"] == "2"


# What an experiment must not do


@pytest.mark.parametrize("by", ["caller", "counter"])
@pytest.mark.parametrize(
    "ref",
    [
        NoChampionError("MLflow names no challenger"),
        RegistryUnavailableError("MLflow is away"),
        ModelRef("bike-traffic", "1", "run", "b" * 32),  # The challenger is the champion.
        ModelRef("bike-traffic", "2", "run", "c" * 32),  # A bundle that is not there.
        ModelRef("bike-traffic", "2", "run", "../../etc"),
        RuntimeError("a bug"),
    ],
    ids=["none", "away", "itself", "no bundle", "no id", "bug"],
)
def test_without_a_challenger_the_champion_answers_everybody(start, local, ref, by):
    service = start(ref, experiment="ab", experiment_share=1.0, experiment_by=by)

    answer = service.client().post("/predict", json=WANTED)
    assert answer.content == local.client().post("/predict", json=WANTED).content


def test_an_altered_bundle_takes_no_part(start, city, local):
    ref = named(city, "9")
    path = city.home / "bundles" / ref.bundle_id
    (path / "manifest.json").write_bytes((path / "manifest.json").read_bytes() + b" ")
    service = start(ref, experiment="ab", experiment_share=1.0)
    shutil.rmtree(path)

    assert service.client().post("/predict", json=WANTED).json()["model"]["version"] == "1"


@pytest.mark.parametrize("by", ["caller", "counter"])
def test_a_challenger_that_is_behind_takes_no_part(start, city, local, by):
    service = start(experiment="ab", experiment_share=1.0, experiment_by=by)
    experiment = service.app.state.experiment
    from dataclasses import replace

    table = experiment.challenger.newest
    experiment.challenger.newest = replace(table, issue_date=table.issue_date - timedelta(days=1))
    experiment._mixed = None
    experiment.look()
    assert service.client().post("/predict", json=WANTED).json()["model"]["version"] == "1"

    experiment.challenger.newest = replace(table, rows={"100-E": table.rows["100-E"]})
    experiment.look()
    assert (
        service.client().post("/predict", json=WANTED).content
        == local.client().post("/predict", json=WANTED).content
    )


def test_a_challenger_that_loses_its_alias_leaves(start):
    service = start(experiment="ab", experiment_share=1.0)
    assert service.client().post("/predict", json=WANTED).json()["model"]["version"] == "2"

    service.app.state.experiment._registry.ref = NoChampionError("MLflow names no challenger")
    service.app.state.experiment.look()
    assert service.client().post("/predict", json=WANTED).json()["model"]["version"] == "1"


def test_while_mlflow_is_away_the_challenger_stays(start):
    service = start(experiment="ab", experiment_share=1.0)
    service.app.state.experiment._registry.ref = RegistryUnavailableError("MLflow is away")
    service.app.state.experiment.look()

    assert service.client().post("/predict", json=WANTED).json()["model"]["version"] == "2"


def test_mistakes_are_told_as_always(start, local):
    service = start(experiment="ab", experiment_share=1.0)
    for wrong in ({**WANTED, "counter_ids": ["unheard of"]}, {**WANTED, "target_hours": ["yesterday"]}, {}):
        ours, theirs = (one.client().post("/predict", json=wrong) for one in (service, local))
        assert (ours.status_code, ours.json()["type"]) == (theirs.status_code, theirs.json()["type"])


def test_off_means_off(local):
    assert local.app.state.experiment is None


# The whole of it


@pytest.mark.integration
def test_a_running_service_follows_the_challenger_of_mlflow(registry, serve, eventually):
    name = "experiment"
    champion, challenger = registry.register(name, 0), registry.register(name, 1)
    registry.promote(name, champion)
    process = serve(name, registry.server.url, experiment="ab", experiment_share="1.0")
    with process.client() as client:

        def answered():
            answer = client.post("/predict", json=WANTED)
            return answer.json()["model"]["version"] if answer.status_code == 200 else None

        eventually(lambda: answered() == champion, what="a champion")
        registry.client.set_registered_model_alias(name, "challenger", challenger)
        eventually(lambda: answered() == challenger, what="the challenger")
        assert 'bike_serving_experiment_answers_total{arm="challenger"}' in client.get("/metrics").text
        registry.client.delete_registered_model_alias(name, "challenger")
        eventually(lambda: answered() == champion, what="the champion again")


@pytest.mark.integration
def test_a_running_service_compares_in_shadow(registry, serve, eventually):
    name = "shadow"
    champion, challenger = registry.register(name, 0), registry.register(name, 1)
    registry.promote(name, champion)
    registry.client.set_registered_model_alias(name, "challenger", challenger)
    process = serve(name, registry.server.url, experiment="shadow")
    with process.client() as client:
        eventually(lambda: client.get("/ready").status_code == 200, what="a champion")

        def compared():
            assert client.post("/predict", json=WANTED).json()["model"]["version"] == champion
            return 'bike_serving_shadow_answers_total{result="compared"}' in client.get("/metrics").text

        eventually(compared, what="a comparison")
