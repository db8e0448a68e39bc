"""The holder of the champion, step by step: what it takes, what it refuses, what it remembers."""

import json
import shutil

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
def test_a_refused_bundle_is_not_read_again_at_every_look(
    settings, refs, city, monkeypatch, caplog, serving_already
):
    """Neither the one the registry names nor, without a registry, the last good one."""
    holder = holding(settings, refs[0])
    reads = []

    def unreadable(path, key):
        reads.append(path.name)
        raise ValueError("out of luck")

    monkeypatch.setattr("bike_serving.champion.load_bundle", unreadable)
    if serving_already:
        holder._registry.ref = refs[1]
    else:
        holder = ChampionHolder(settings, Names(AWAY), Metrics())
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
