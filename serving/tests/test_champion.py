"""The holder of the champion, step by step: what it takes, what it refuses, what it remembers."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from bike_assets.core.bundle import load_or_create_keys
from bike_serving.champion import ChampionHolder
from bike_serving.metrics import Metrics
from bike_serving.registry import ModelRef, RegistryUnavailableError
from bike_serving.settings import Settings


class Names:
    """A registry that names what the test says."""

    def __init__(self, ref=None):
        self.ref = ref

    def resolve(self):
        if isinstance(self.ref, Exception):
            raise self.ref
        return self.ref

    def close(self):
        """Nothing to give back."""


AWAY = RegistryUnavailableError("MLflow is away")


@pytest.fixture
def refs(city):
    """Two versions, each with its bundle."""
    return [
        ModelRef("bike-traffic", version, "run", city.write(version, index).name)
        for index, version in enumerate(("1", "2"))
    ]


@pytest.fixture
def settings(city, tmp_path):
    return Settings(home=city.home, state_dir=tmp_path, poll_seconds=3600)


def holding(settings, ref):
    holder = ChampionHolder(settings, Names(ref), Metrics())
    holder.refresh()
    return holder


def rejected(holder):
    return holder._metrics.registry.get_sample_value("bike_serving_rejected_bundles_total")


def test_the_named_bundle_is_served_and_kept_while_it_is_named(settings, refs):
    holder = holding(settings, refs[0])
    first = holder.current
    assert first.ref == refs[0]
    assert holder.status.error is None
    holder.refresh()
    assert holder.current is first


@pytest.mark.parametrize("change", [{"version": "9"}, {"run_id": "other"}, {"name": "other"}])
def test_a_bundle_of_another_version_is_refused(settings, refs, change):
    holder = holding(settings, refs[0])
    holder._registry.ref = ModelRef(**{**vars(refs[1]), **change})
    holder.refresh()
    assert holder.current.ref == refs[0]
    assert "promote it again" in holder.status.error


def test_a_bundle_that_arrives_late_is_taken_when_it_is_there(settings, refs, city):
    late = city.home / "bundles" / refs[1].bundle_id
    hidden = late.rename(city.home / "hidden")
    eager = settings.model_copy(update={"poll_seconds": 1e-6})
    holder = holding(eager, refs[0])
    holder._registry.ref = refs[1]
    holder.refresh()
    assert "no such directory" in holder.status.error
    hidden.rename(late)
    holder.refresh()
    assert holder.current.ref == refs[1]
    assert holder.status.error is None


@pytest.mark.parametrize("serving_already", [True, False])
def test_a_refused_bundle_is_not_read_again_at_every_look(settings, refs, caplog, serving_already):
    """Neither the one the registry names nor, without a registry, the last good one."""
    holder = holding(settings, refs[0])
    reads = []

    def unreadable(path, key):
        reads.append(path.name)
        raise ValueError("out of luck")

    if serving_already:
        holder._compute = unreadable
        holder._registry.ref = refs[1]
    else:
        holder = ChampionHolder(settings, Names(AWAY), Metrics(), unreadable)
    for _ in range(5):
        holder.refresh()
        assert "out of luck" in holder.status.error
    assert reads == [refs[1 if serving_already else 0].bundle_id]
    assert rejected(holder) == 1
    assert (holder.current is not None) == serving_already
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


def test_a_refused_bundle_gets_a_new_chance_once_another_was_named(settings, refs, city):
    path = city.home / "bundles" / refs[1].bundle_id
    hidden = path.rename(city.home / "hidden")
    holder = holding(settings, refs[0])
    for ref in (refs[1], refs[0]):
        holder._registry.ref = ref
        holder.refresh()
        assert holder.current.ref == refs[0]
    hidden.rename(path)
    holder._registry.ref = refs[1]
    holder.refresh()
    assert holder.current.ref == refs[1]


def test_bundles_signed_by_a_stranger_are_refused(settings, refs, tmp_path):
    load_or_create_keys(tmp_path / "keys")
    holder = holding(settings.model_copy(update={"public_key": tmp_path / "keys" / "bundle.pub"}), refs[0])
    assert holder.current is None
    assert "not signed with the expected key" in holder.status.error


def test_without_a_registry_the_last_good_bundle_serves(settings, refs):
    holding(settings, refs[0])
    holder = holding(settings, AWAY)
    assert holder.current.ref == refs[0]
    assert holder.status.error == "MLflow is away"
    holder._registry.ref = refs[1]
    holder.refresh()
    assert holder.current.ref == refs[1]
    assert json.loads((settings.state_folder / "last_good.json").read_text()) == vars(refs[1])


def test_without_a_registry_and_a_last_good_bundle_there_is_nothing_to_serve(settings):
    holder = holding(settings, AWAY)
    assert holder.current is None
    assert holder.status.error == "MLflow is away"


def test_a_named_bundle_that_is_damaged_at_the_start_leaves_the_last_good_one(settings, refs):
    holding(settings, refs[0])
    holder = holding(settings, ModelRef("bike-traffic", "3", "run", "0" * 32))
    assert holder.current.ref == refs[0]
    assert "no such directory" in holder.status.error


def test_the_last_good_bundle_is_verified_like_any_other(settings, refs, city):
    holding(settings, refs[0])
    path = city.home / "bundles" / refs[0].bundle_id
    shutil.copytree(path, city.home / "intact")
    (path / "model.cbm").write_bytes(b"altered")
    holder = holding(settings, AWAY)
    assert holder.current is None
    assert "last good bundle cannot be served" in holder.status.error
    shutil.rmtree(path)
    (city.home / "intact").rename(path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"name": "bike-traffic"}', '"text"', "\\xff"])
def test_an_unreadable_memory_is_told_and_harmless(settings, content):
    (settings.state_folder / "last_good.json").write_text(content)
    holder = holding(settings, AWAY)
    assert holder.current is None
    assert "MLflow is away" in holder.status.error
    assert "last_good.json" in holder.status.error


def test_the_memory_leads_to_no_other_place(settings, refs, city):
    outside = ModelRef("bike-traffic", "1", "run", f"../{refs[0].bundle_id}")
    shutil.copytree(city.home / "bundles" / refs[0].bundle_id, city.home / refs[0].bundle_id)
    (settings.state_folder / "last_good.json").write_text(json.dumps(vars(outside)))
    holder = holding(settings, AWAY)
    assert holder.current is None
    assert "names no bundle" in holder.status.error


def test_the_last_good_bundle_of_another_model_is_not_served(settings, refs):
    holding(settings, refs[0])
    holder = holding(settings.model_copy(update={"model_name": "other"}), AWAY)
    assert holder.current is None


def test_a_memory_that_cannot_be_written_does_not_stop_the_service(settings, refs, tmp_path):
    (tmp_path / "file").write_text("")
    holder = holding(settings.model_copy(update={"state_dir": tmp_path / "file"}), refs[0])
    assert holder.current.ref == refs[0]
    assert holder.status.error is None


GUARD = {"rollback_requests": 10, "probation_seconds": 60}


def swapped(settings, refs, **answers):
    """A holder that went from the first to the second champion, both of which answered like this."""
    holder = holding(settings.model_copy(update=GUARD), refs[0])
    noted(holder, failed=0, seconds=0.001)
    holder._registry.ref = refs[1]
    holder.refresh()
    assert holder.current.ref == refs[1]
    noted(holder, **answers)
    return holder


def noted(holder, number=20, failed=0, seconds=0.001):
    for index in range(number):
        holder.current.record.add(index < failed, seconds)


def rollbacks(holder):
    return holder._metrics.registry.get_sample_value("bike_serving_rollbacks_total")


@pytest.mark.parametrize(
    ("answers", "said"),
    [({"failed": 4}, "20% of its 20 latest answers failed"), ({"seconds": 0.2}, "up to 200 ms")],
)
def test_a_new_champion_that_answers_worse_is_taken_back_and_kept_out(settings, refs, city, answers, said):
    holder = swapped(settings, refs, **answers)
    holder.refresh()
    assert holder.current.ref == refs[0]
    assert said in holder.status.error
    assert "rolled back" in holder.status.error
    assert rollbacks(holder) == 1
    holder.refresh()
    assert holder.current.ref == refs[0]
    assert rollbacks(holder) == 1
    assert json.loads((settings.state_folder / "last_good.json").read_text()) == vars(refs[0])

    restarted = holding(settings, refs[1])
    assert restarted.current.ref == refs[0]
    assert said in restarted.status.error

    newer = ModelRef("bike-traffic", "3", "run", city.write("3", 1).name)
    holder._registry.ref = newer
    holder.refresh()
    assert (holder.current.ref, holder.status.error) == (newer, None)
    holder._registry.ref = refs[1]  # promoted again after another: it gets its second chance
    holder.refresh()
    assert holder.current.ref == refs[1]


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"failed": 1},  # 5 % of 20: the margin
        {"number": 9, "failed": 9},  # too few to judge by
        {"seconds": 0.04},  # forty times as slow, and still fast
    ],
)
def test_a_new_champion_that_answers_as_well_stays(settings, refs, answers):
    holder = swapped(settings, refs, **answers)
    holder.refresh()
    assert holder.current.ref == refs[1]
    assert rollbacks(holder) == 0


def test_after_probation_a_champion_is_compared_no_more(settings, refs):
    holder = swapped(settings, refs)
    holder.current.serving_since -= 61
    holder.refresh()
    noted(holder, failed=20)
    holder.refresh()
    assert holder.current.ref == refs[1]


def test_what_one_worker_takes_back_the_others_take_back_too(settings, refs):
    first, second = (swapped(settings, refs) for _ in range(2))
    third = holding(settings, refs[1])  # started late, and never had the one before
    noted(first, failed=20)
    for worker in (first, second, third):
        worker.refresh()
        assert worker.current.ref == refs[0]
        assert "rolled back" in worker.status.error


def test_no_disk_to_write_to_does_not_keep_a_bad_champion_serving(settings, refs, tmp_path):
    (tmp_path / "file").write_text("")
    holder = swapped(settings.model_copy(update={"state_dir": tmp_path / "file"}), refs, failed=20)
    for _ in range(2):
        holder.refresh()
        assert holder.current.ref == refs[0]
        assert "rolled back" in holder.status.error


@pytest.fixture
def bucket(city):
    """A Cloud Storage with one bucket, which has the city's bundles; closed when it is shut down."""
    bundles = city.home / "bundles"

    class Bucket(BaseHTTPRequestHandler):
        def do_GET(self):
            address = urlsplit(self.path)
            name = unquote(address.path.removeprefix("/storage/v1/b/city/o").removeprefix("/"))
            if name:
                content = (bundles / name).read_bytes()
            else:
                (prefix,) = parse_qs(address.query)["prefix"]
                found = [file for file in bundles.glob("*/*") if f"{file.parent.name}/".startswith(prefix)]
                items = [
                    {"name": f"{file.parent.name}/{file.name}", "size": str(file.stat().st_size)}
                    for file in found
                ]
                content = json.dumps({"items": items}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            """Tests are quiet."""

    server = HTTPServer(("127.0.0.1", 0), Bucket)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_bundle_in_a_bucket_is_fetched_when_it_is_named(city, refs, bucket, tmp_path):
    settings = Settings(
        home=tmp_path,
        public_key=city.home / "keys" / "bundle.pub",
        bundles_url="gs://city",
        bundles_endpoint=f"http://127.0.0.1:{bucket.server_port}",
        poll_seconds=3600,
    )
    holder = holding(settings, refs[0])
    assert holder.current.ref == refs[0]
    assert [entry.name for entry in (tmp_path / "bundles").iterdir()] == [refs[0].bundle_id]

    bucket.shutdown()
    bucket.server_close()
    holder._registry.ref = refs[1]
    holder.refresh()
    assert holder.current.ref == refs[0], "what serves is kept when the bucket is away"
