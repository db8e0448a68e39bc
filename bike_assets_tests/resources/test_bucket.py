"""Bundles in a bucket, over real HTTP: put by Google's client, fetched by the service's own calls."""

import contextlib
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.cloud import storage

from bike_assets.core.errors import BundleError, PermanentError, TransientError
from bike_assets.resources.bucket import prove, put_bundle
from bike_assets_tests.emulators.processes import free_port, storage_emulator
from bike_serving.bucket import BundleBucket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BUNDLE = "0123456789abcdef" * 2
FILES = {
    "manifest.json": b"{}",
    "manifest.sig": b"s" * 64,
    "model.cbm": bytes(300_000),
    "golden.parquet": b"g",
}


@pytest.fixture(scope="module")
def emulator() -> Iterator[str]:
    with storage_emulator() as endpoint:
        yield endpoint


@pytest.fixture
def url(emulator: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of this test."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    name = f"test-{uuid.uuid4().hex[:12]}"
    storage.Client(project="city").create_bucket(name)
    return f"gs://{name}/bundles"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / BUNDLE
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def test_what_was_put_is_fetched_once(url: str, emulator: str, bundle: Path, tmp_path: Path) -> None:
    put_bundle(bundle, url)
    bucket = BundleBucket(url, emulator)
    bucket.fetch(BUNDLE, tmp_path / "fetched")
    bucket.close()

    assert {file.name: file.read_bytes() for file in (tmp_path / "fetched" / BUNDLE).iterdir()} == FILES
    assert [entry.name for entry in (tmp_path / "fetched").iterdir()] == [BUNDLE], "leftovers"
    unreachable = BundleBucket(url, f"http://127.0.0.1:{free_port()}")
    unreachable.fetch(BUNDLE, tmp_path / "fetched")
    with pytest.raises(TransientError, match="cannot be reached"):
        unreachable.fetch("f" * 32, tmp_path / "fetched")


def test_a_bucket_is_proven_by_writing_to_it_and_left_as_it_was(url: str, bundle: Path) -> None:
    put_bundle(bundle, url)
    prove(url)

    name = url.split("/")[2]
    with contextlib.closing(storage.Client(project="city")) as client:
        assert len(list(client.list_blobs(name))) == len(FILES)
    with pytest.raises(PermanentError, match="cannot be written"):
        prove("gs://no-such-bucket/bundles")


def test_the_same_bundle_may_be_put_again_and_by_two_at_once(url: str, bundle: Path) -> None:
    faults: list[Exception] = []

    def put() -> None:
        try:
            put_bundle(bundle, url)
        except Exception as error:  # told by the test, not by a thread
            faults.append(error)

    writers = [threading.Thread(target=put) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert faults == []


def test_a_file_that_is_there_is_never_written_over(url: str, bundle: Path) -> None:
    put_bundle(bundle, url)
    (bundle / "model.cbm").write_bytes(b"another")

    with pytest.raises(PermanentError, match=r"model\.cbm is there already and is another file"):
        put_bundle(bundle, url)

    kept = storage.Client(project="city").bucket(url.split("/")[2]).blob(f"bundles/{BUNDLE}/model.cbm")
    assert kept.download_as_bytes() == FILES["model.cbm"]


def test_a_bundle_whose_writer_died_is_not_there_yet(
    url: str, emulator: str, bundle: Path, tmp_path: Path
) -> None:
    (bundle / "manifest.json").unlink()
    put_bundle(bundle, url)

    with pytest.raises(BundleError, match=f"holds no bundle {BUNDLE}"):
        BundleBucket(url, emulator).fetch(BUNDLE, tmp_path / "fetched")
    assert list((tmp_path / "fetched").iterdir()) == []


@pytest.mark.parametrize("name", ["folder/model.cbm", "x.sh", ".hidden.json"])
def test_a_name_that_is_no_bundles_is_never_written(
    url: str, emulator: str, bundle: Path, tmp_path: Path, name: str
) -> None:
    put_bundle(bundle, url)
    storage.Client(project="city").bucket(url.split("/")[2]).blob(
        f"bundles/{BUNDLE}/{name}"
    ).upload_from_string("x")

    with pytest.raises(BundleError, match="no file of a bundle"):
        BundleBucket(url, emulator).fetch(BUNDLE, tmp_path / "fetched")


def test_a_bucket_that_is_not_there_is_said_so(url: str, emulator: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="gs://nowhere cannot be written"):
        put_bundle(bundle, "gs://nowhere")
    with pytest.raises(BundleError, match="check BIKE_SERVING_BUNDLES_URL"):
        BundleBucket("gs://nowhere", emulator).fetch(BUNDLE, tmp_path / "fetched")
