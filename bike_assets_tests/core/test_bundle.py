"""The champion bundle: what is written is what answers, and nothing that was tampered with is ever loaded."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bike_assets.core import bundle as bundle_module
from bike_assets.core.bundle import (
    CONTEXT_COLUMNS,
    ISSUE_DAYS,
    Bundle,
    BundleInfo,
    IssueDateError,
    UnknownCounterError,
    load_bundle,
    load_or_create_keys,
    load_public_key,
    write_bundle,
)
from bike_assets.core.calendar import hours_of_day, local_columns
from bike_assets.core.contracts import COUNTERS, PREDICTIONS
from bike_assets.core.errors import BundleError
from bike_assets.core.features import LOOKBACK_DAYS, build_features
from bike_assets.core.model import Forecaster, TrainConfig

LAST_DAY = date(2024, 4, 9)
HISTORY_DAYS = LOOKBACK_DAYS + ISSUE_DAYS + 20
COUNTER_IDS = ("100-E", "100-W", "200-N", "300-S")
MODEL_FILES = (
    "trees.npz",
    "model.cbm",
    "log_linear.npz",
    "calibration.json",
    "affluence.json",
    "context.parquet",
    "counters.parquet",
    "weather.parquet",
    "calibrations.parquet",
    "golden.parquet",
)
ALL_FILES = (*MODEL_FILES, "manifest.json", "manifest.sig")

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))

INFO = BundleInfo(
    model_name="bike-traffic",
    model_version="3",
    run_id="0123456789abcdef",
    git_commit="f" * 40,
    data_hash="a" * 64,
    trained_until=date(2024, 3, 10),
    metrics={"1": {"r2": 0.9, "rmse": 12.5}},
    created_at=datetime(2024, 4, 10, 5, tzinfo=UTC),
)


def city() -> pl.DataFrame:
    """Counts with a daily and a weekly shape that differ by counter, the spring clock change among them."""
    days = [LAST_DAY - timedelta(days=back) for back in reversed(range(HISTORY_DAYS))]
    hours = pl.DataFrame({"ts_utc": [hour for day in days for hour in hours_of_day(day)]}).with_columns(
        pl.col("ts_utc").cast(pl.Datetime("us", "UTC"))
    )
    frame = local_columns(hours).join(
        pl.DataFrame({"counter_id": COUNTER_IDS, "level": [40.0, 90.0, 15.0, 7.0]}), how="cross"
    )
    rush = (pl.col("local_hour") - 8).abs().clip(upper_bound=6).neg() + 7
    weekend = pl.when(pl.col("service_date").dt.weekday() >= 6).then(0.5).otherwise(1.0)
    noise = pl.struct("ts_utc", "counter_id").hash(seed=7) % 9
    return frame.with_columns(
        (pl.col("level") * rush * weekend / 7 + noise).round().cast(pl.Int64).alias("hourly_count"),
    )


def counters_table() -> pl.DataFrame:
    """Names and positions of the counters, and of one that has no counts any more."""
    ids = [*COUNTER_IDS, "999-gone"]
    return COUNTERS.conform(
        pl.DataFrame({"counter_id": ids}).with_columns(
            counter_name=pl.lit("Rue ") + pl.col("counter_id"),
            site_id=pl.lit("s"),
            site_name=pl.lit("Site"),
            latitude=pl.lit(48.85),
            longitude=pl.lit(2.35),
            first_seen=pl.lit(datetime(2020, 1, 1, tzinfo=UTC)),
            last_seen=pl.lit(datetime(2024, 4, 9, 21, tzinfo=UTC)),
            hours=pl.lit(100),
            mean_hourly_count=pl.lit(20.0),
            site_key=pl.lit("s"),
            counters_at_site=pl.lit(2),
            last_counted=pl.lit(None),
            status=pl.lit("active"),
            coverage=pl.lit(1.0),
            replaced_by=pl.lit(None),
        )
    )


@dataclass(frozen=True)
class Champion:
    """A fitted forecaster, its history, and the bundle written of both."""

    history: pl.DataFrame
    forecaster: Forecaster
    path: Path

    def write(self, root: Path, info: BundleInfo = INFO, key: Ed25519PrivateKey = KEY) -> Path:
        return write_bundle(root, self.forecaster, self.history, info, key, counters=counters_table())


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Champion:
    history = city()
    days = [LAST_DAY - timedelta(days=back) for back in range(8, 26)]
    truth = history.select("counter_id", "ts_utc", "hourly_count")
    forecaster = Forecaster().fit(build_features(history, days), truth, TrainConfig(iterations=15))
    root = tmp_path_factory.mktemp("bundles")
    path = write_bundle(root, forecaster, history, INFO, KEY, counters=counters_table())
    return Champion(history, forecaster, path)


@pytest.fixture
def copy(champion: Champion, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(champion.path, tmp_path / champion.path.name))


@pytest.fixture(scope="module")
def loaded(champion: Champion) -> Bundle:
    return load_bundle(champion.path, KEY.public_key())


def refused(path: Path, match: str) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        load_bundle(path, KEY.public_key())
    assert "\n" not in str(caught.value)


def resign(path: Path, change: Callable[[dict], None], key: Ed25519PrivateKey = KEY) -> Path:
    """Change the manifest and sign it again, as somebody who holds a key could."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    change(manifest)
    content = json.dumps(manifest).encode()
    (path / "manifest.json").write_bytes(content)
    (path / "manifest.sig").write_bytes(key.sign(content))
    target = path.with_name(bundle_module._bundle_id(content))
    path.rename(target)
    return target


def rehash(path: Path, name: str) -> Path:
    """Sign a changed file as if it had always been so."""
    content = (path / name).read_bytes()
    entry = {"sha256": bundle_module._sha256(content), "bytes": len(content)}
    return resign(path, lambda manifest: manifest["files"].update({name: entry}))


def test_a_bundle_holds_these_files_and_no_other(champion: Champion) -> None:
    assert sorted(entry.name for entry in champion.path.iterdir()) == sorted(ALL_FILES)
    assert (champion.path.stat().st_mode & 0o777) == 0o755  # the service may run as another user
    assert all((champion.path / name).stat().st_mode & 0o444 == 0o444 for name in ALL_FILES)


def test_loading_gives_back_what_was_written(loaded: Bundle, champion: Champion) -> None:
    assert loaded.info == INFO
    assert loaded.bundle_id == champion.path.name
    assert loaded.issue_date == LAST_DAY + timedelta(days=1)
    assert loaded.first_issue_date == loaded.issue_date - timedelta(days=ISSUE_DAYS)
    assert loaded.counters.get_column("counter_id").to_list() == list(COUNTER_IDS)
    assert loaded.counters.get_column("counter_name").to_list() == [f"Rue {c}" for c in COUNTER_IDS]


@pytest.mark.parametrize("days_back", [0, 1, 12, ISSUE_DAYS])
def test_the_answer_equals_the_offline_forecast_to_the_last_digit(
    loaded: Bundle, champion: Champion, days_back: int
) -> None:
    day = loaded.issue_date - timedelta(days=days_back)
    offline = champion.forecaster.predict(build_features(champion.history, [day])).sort(
        "counter_id", "target_ts"
    )
    served = loaded.forecast(issue_date=day)
    assert served.height == len(COUNTER_IDS) * sum(
        len(hours_of_day(day + timedelta(days=h))) for h in range(7)
    )
    assert served.select(offline.columns).equals(offline)
    PREDICTIONS.check(served)
    assert served.get_column("model_version").unique().to_list() == ["3"]


def test_counters_asked_for_alone_get_the_same_answer(loaded: Bundle) -> None:
    whole = loaded.forecast()
    for counter_id in COUNTER_IDS:
        alone = loaded.forecast([counter_id])
        assert alone.equals(whole.filter(pl.col("counter_id") == counter_id))
        assert alone.height == 7 * 24


def test_unknown_counters_are_named(loaded: Bundle) -> None:
    with pytest.raises(UnknownCounterError, match="nowhere") as caught:
        loaded.forecast(["100-E", "nowhere", "nowhere"])
    assert caught.value.counter_ids == ("nowhere",)


@pytest.mark.parametrize("days_back", [-1, ISSUE_DAYS + 1])
def test_an_issue_date_without_its_history_is_refused(loaded: Bundle, days_back: int) -> None:
    with pytest.raises(IssueDateError, match=str(loaded.first_issue_date)):
        loaded.forecast(issue_date=loaded.issue_date - timedelta(days=days_back))


def test_the_context_is_the_history_needed_and_no_more(champion: Champion) -> None:
    context = pl.read_parquet(champion.path / "context.parquet")
    assert tuple(context.columns) == CONTEXT_COLUMNS
    assert context.get_column("service_date").n_unique() == LOOKBACK_DAYS + ISSUE_DAYS


def test_writing_again_changes_nothing(champion: Champion, tmp_path: Path) -> None:
    first = champion.write(tmp_path)
    stamps = {file: file.stat().st_mtime_ns for file in first.iterdir()}
    shuffled = replace(champion, history=champion.history.sample(fraction=1, shuffle=True, seed=3))
    assert shuffled.write(tmp_path) == first == tmp_path / champion.path.name
    assert {file: file.stat().st_mtime_ns for file in first.iterdir()} == stamps
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == [first.name]


def test_new_counts_make_a_new_bundle_beside_the_old(champion: Champion, tmp_path: Path) -> None:
    first = champion.write(tmp_path)
    shorter = champion.history.filter(pl.col("service_date") < LAST_DAY)
    second = replace(champion, history=shorter).write(tmp_path)
    assert second != first
    assert load_bundle(second, KEY.public_key()).issue_date == LAST_DAY
    assert load_bundle(first, KEY.public_key()).issue_date == LAST_DAY + timedelta(days=1)


@pytest.mark.parametrize("step", ["_golden", "_manifest_bytes", "_publish"])
def test_a_writer_that_dies_leaves_nothing_to_be_seen(
    champion: Champion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    def killed(*args: object, **kwargs: object) -> None:
        """A killed process cleans nothing up."""

    with monkeypatch.context() as patched:
        patched.setattr(bundle_module, step, die)
        patched.setattr(bundle_module.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            champion.write(tmp_path)
    left = [entry.name for entry in tmp_path.iterdir() if entry.is_dir()]
    assert len(left) == 1
    assert not bundle_module.BUNDLE_ID_PATTERN.fullmatch(left[0])
    written = champion.write(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == [written.name]


def test_a_damaged_bundle_is_healed_by_writing_it_again(champion: Champion, tmp_path: Path) -> None:
    path = champion.write(tmp_path)
    (path / "model.cbm").write_bytes(b"cut")
    refused(path, "model.cbm was altered")
    assert champion.write(tmp_path) == path
    assert load_bundle(path, KEY.public_key()).forecast().height > 0
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == [path.name]


def test_without_a_counters_table_the_counters_are_still_listed(champion: Champion, tmp_path: Path) -> None:
    path = write_bundle(tmp_path, champion.forecaster, champion.history, INFO, KEY)
    counters = load_bundle(path, KEY.public_key()).counters
    assert counters.get_column("counter_id").to_list() == list(COUNTER_IDS)
    assert counters.get_column("counter_name").null_count() == len(COUNTER_IDS)


def test_what_cannot_become_a_bundle_says_why(champion: Champion, tmp_path: Path) -> None:
    def write(history: pl.DataFrame = champion.history, info: BundleInfo = INFO) -> None:
        write_bundle(tmp_path, champion.forecaster, history, info, KEY)

    with pytest.raises(BundleError, match="holds no counts"):
        write(champion.history.clear())
    with pytest.raises(BundleError, match="lacks column local_hour"):
        write(champion.history.drop("local_hour"))
    with pytest.raises(BundleError, match=r"metrics\.1\.r2 is nan"):
        write(info=replace(INFO, metrics={"1": {"r2": float("nan")}}))
    with pytest.raises(BundleError, match="created_at has no time zone"):
        write(info=replace(INFO, created_at=INFO.created_at.replace(tzinfo=None)))
    assert [entry for entry in tmp_path.iterdir() if entry.is_dir()] == []


@pytest.mark.parametrize("name", ALL_FILES)
def test_one_flipped_bit_anywhere_is_refused(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    for position in (0, len(content) // 2, len(content) - 1):
        content[position] ^= 1
        (copy / name).write_bytes(content)
        refused(copy, "altered|not signed")
        content[position] ^= 1


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_file_cut_off_or_emptied_is_refused(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    for kept in (content[:-1], b""):
        (copy / name).write_bytes(kept)
        refused(copy, "altered|not signed")


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    refused(copy, f"{name} is missing")


def test_a_bundle_signed_with_another_key_is_refused(champion: Champion, tmp_path: Path) -> None:
    path = champion.write(tmp_path, key=OTHER_KEY)
    assert path.name == champion.path.name
    refused(path, "not signed with the expected key")


def test_an_extra_file_is_refused(copy: Path) -> None:
    (copy / "notes.json").write_text("{}")
    refused(copy, "'notes.json' is not in its manifest")


def test_a_link_in_place_of_a_file_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "model.cbm").rename(tmp_path / "elsewhere.cbm")
    (copy / "model.cbm").symlink_to(tmp_path / "elsewhere.cbm")
    refused(copy, r"model\.cbm is missing")


@pytest.mark.parametrize(
    "name", ["../outside.json", "/etc/passwd", "a/b.json", "..", "model.pkl", "manifest.json"]
)
def test_a_signed_manifest_cannot_reach_outside_its_directory(copy: Path, name: str) -> None:
    (copy.parent / "outside.json").write_text("{}")
    entry = {"sha256": bundle_module._sha256(b"{}"), "bytes": 2}
    refused(
        resign(copy, lambda manifest: manifest["files"].update({name: entry})), "no file name of a bundle"
    )


@pytest.mark.parametrize("name", ["..", "bundles", "0" * 31, "G" * 32])
def test_only_a_bundle_id_is_opened(copy: Path, name: str) -> None:
    refused(copy.parent / name, "32 hexadecimal digits")


def test_an_absent_bundle_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / ("0" * 32), "no such directory")


def test_a_bundle_under_the_name_of_another_is_refused(copy: Path) -> None:
    renamed = copy.rename(copy.with_name("0" * 32))
    refused(renamed, f"holds the content of bundle {copy.name}")


def test_another_format_version_is_refused(copy: Path) -> None:
    refused(resign(copy, lambda manifest: manifest.update(format_version=99)), "format bike-bundle 99 is not")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["features"].pop(),
        lambda manifest: manifest["features"].reverse(),
        lambda manifest: manifest["features"][0].update(dtype="float64"),
        lambda manifest: manifest["features"][0].update(name="tomorrow"),
        lambda manifest: manifest.update(lookback_days=1),
    ],
)
def test_another_feature_schema_is_refused(copy: Path, change: Callable[[dict], None]) -> None:
    refused(resign(copy, change), "trained on other features")


@pytest.mark.parametrize("key", ["files", "model", "features", "created_at", "horizons"])
def test_a_manifest_that_lacks_a_key_is_refused(copy: Path, key: str) -> None:
    refused(resign(copy, lambda manifest: manifest.pop(key)), "cannot be read")


def test_signed_nonsense_is_refused_in_one_line(copy: Path) -> None:
    (copy / "trees.npz").write_bytes(b"not a model")
    refused(rehash(copy, "trees.npz"), "cannot be read")


def test_a_forecast_off_by_the_last_digit_fails_the_golden_set(copy: Path) -> None:
    golden = pl.read_parquet(copy / "golden.parquet")
    value = golden.item(0, "forecast")
    nudged = golden.with_columns(
        pl.when(pl.int_range(pl.len()) == 0)
        .then(value + abs(value) * 2**-52 + 5e-324)
        .otherwise(pl.col("forecast"))
        .alias("forecast")
    )
    assert not nudged.equals(golden)
    nudged.write_parquet(copy / "golden.parquet")
    refused(rehash(copy, "golden.parquet"), "differ from its golden set")


def test_keys_are_made_once_and_kept_private(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    first = load_or_create_keys(folder)
    assert (folder / "bundle.key").stat().st_mode & 0o777 == 0o600
    assert load_public_key(folder / "bundle.pub") == first.public_key
    again = load_or_create_keys(folder)
    assert again.signing_key.private_bytes_raw() == first.signing_key.private_bytes_raw()
    assert sorted(entry.name for entry in folder.iterdir()) == ["bundle.key", "bundle.pub"]


def test_a_private_key_others_can_read_is_refused(tmp_path: Path) -> None:
    load_or_create_keys(tmp_path)
    (tmp_path / "bundle.key").chmod(0o644)
    with pytest.raises(BundleError, match="chmod 600"):
        load_or_create_keys(tmp_path)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_files_that_hold_no_key_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BundleError, match="No such file"):
        load_public_key(tmp_path / "bundle.pub")
    for name in ("bundle.pub", "bundle.key"):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    with pytest.raises(BundleError, match="not a PEM public key"):
        load_public_key(tmp_path / "bundle.pub")
    with pytest.raises(BundleError, match="not an unencrypted PEM key"):
        load_or_create_keys(tmp_path)
