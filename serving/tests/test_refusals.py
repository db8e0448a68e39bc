"""A hundred bundles that must not serve, named by the registry one after the other while a good one serves on."""

import hashlib
import json
import random
import shutil

import pytest

from bike_assets.core.bundle import load_or_create_keys
from bike_serving.champion import ChampionHolder
from bike_serving.metrics import Metrics
from bike_serving.registry import ModelRef
from bike_serving.settings import Settings


class Names:
    """A registry that names what the test says."""

    def __init__(self, ref):
        self.ref = ref

    def resolve(self):
        return self.ref

    def close(self):
        """Nothing to give back."""


def flipped(folder, dice):
    """One bit of one file."""
    file = dice.choice(sorted(folder.iterdir()))
    content = bytearray(file.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    file.write_bytes(content)


def truncated(folder, dice):
    """One file cut off, perhaps to nothing."""
    file = dice.choice(sorted(folder.iterdir()))
    content = file.read_bytes()
    file.write_bytes(content[: dice.randrange(len(content))])


def lacking(folder, dice):
    """One file missing, the signature too."""
    dice.choice(sorted(folder.iterdir())).unlink()


def extended(folder, dice):
    """One file more, or bytes behind one."""
    if dice.random() < 0.5:
        (folder / dice.choice(["more.cbm", "model.pkl", ".hidden", "a.json"])).write_bytes(b"x")
    else:
        with dice.choice(sorted(folder.iterdir())).open("ab") as file:
            file.write(b"\0")


def linked(folder, dice):
    """One file a link to the same content elsewhere."""
    file = dice.choice(sorted(folder.iterdir()))
    elsewhere = folder.parent / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def resigned(folder, key, change):
    """The bundle with a changed manifest, signed again and named by it."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    change(manifest)
    content = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(content)
    (folder / "manifest.sig").write_bytes(key.sign(content))
    return folder.rename(folder.with_name(hashlib.sha256(content).hexdigest()[:32]))


def wrong_schema(manifest, dice):
    """What another release, or a careless one, might sign."""
    features = manifest["features"]
    match dice.randrange(7):
        case 0:
            features.pop(dice.randrange(len(features)))
        case 1:
            features[dice.randrange(len(features))]["name"] = "temperature_k"
        case 2:
            features[dice.randrange(len(features))]["dtype"] = "float64"
        case 3:
            features.insert(0, features.pop(dice.randrange(1, len(features))))
        case 4:
            manifest["format_version"] += dice.choice([-1, 1])
        case 5:
            manifest["lookback_days"] += 1
        case 6:
            del manifest[dice.choice(["features", "files", "model", "format", "horizons", "timezone"])]


def other_answers(manifest, folder, dice):
    """A golden set that the model does not reproduce, or a model that is another."""
    name = dice.choice(["golden.parquet", "trees.npz"])
    other = folder.parent / "other" / name
    content = other.read_bytes()
    (folder / name).write_bytes(content)
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


KINDS = {
    **dict.fromkeys(range(25), "flipped"),
    **dict.fromkeys(range(25, 40), "truncated"),
    **dict.fromkeys(range(40, 50), "lacking"),
    **dict.fromkeys(range(50, 60), "extended"),
    **dict.fromkeys(range(60, 65), "linked"),
    **dict.fromkeys(range(65, 75), "signed by a stranger"),
    **dict.fromkeys(range(75, 95), "schema"),
    **dict.fromkeys(range(95, 100), "golden set"),
}


@pytest.fixture
def bundles(city, tmp_path):
    """A folder of bundles: a good one, and another model's to copy from."""
    folder = tmp_path / "bundles"
    folder.mkdir()
    good = city.write("1", 0)
    shutil.copytree(good, folder / good.name)
    shutil.copytree(city.write("1", 1), folder / "other")
    return folder, good


def test_a_hundred_of_a_hundred_bad_bundles_are_refused_while_it_serves_on(city, bundles, tmp_path):
    folder, good = bundles
    settings = Settings(home=city.home, bundles_dir=folder, state_dir=tmp_path, poll_seconds=3600)
    holder = ChampionHolder(settings, Names(ModelRef("bike-traffic", "1", "run", good.name)), Metrics())
    holder.refresh()
    serving = holder.current
    assert serving is not None
    stranger = load_or_create_keys(tmp_path / "stranger").signing_key
    refusals = set()
    for number, kind in KINDS.items():
        dice = random.Random(number)
        bad = shutil.copytree(good, tmp_path / "made" / good.name)
        shutil.copytree(folder / "other", bad.parent / "other")
        match kind:
            case "signed by a stranger":
                bad = resigned(bad, stranger, lambda manifest: manifest["metrics"].clear())
            case "schema":
                bad = resigned(
                    bad, city.keys.signing_key, lambda manifest, dice=dice: wrong_schema(manifest, dice)
                )
            case "golden set":
                bad = resigned(
                    bad,
                    city.keys.signing_key,
                    lambda manifest, bad=bad, dice=dice: other_answers(manifest, bad, dice),
                )
            case _:
                globals()[kind](bad, dice)
        target = folder / bad.name
        shutil.rmtree(target, ignore_errors=True)
        bad.rename(target)
        holder._registry.ref = ModelRef("bike-traffic", "1", f"run{number}", target.name)
        holder.refresh()
        assert holder.current is serving, (number, kind)
        assert holder.status.error is not None, (number, kind)
        assert "promote it again" not in holder.status.error, "refused for its run, not for what is wrong"
        refusals.add(holder.status.error.split("; ")[-1])
        shutil.rmtree(tmp_path / "made")
    assert holder._metrics.registry.get_sample_value("bike_serving_rejected_bundles_total") == 100
    assert len(refusals) > 5, "they are refused for what is wrong with each"
