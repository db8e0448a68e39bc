"""Bundles in a bucket of Cloud Storage, for services that share no folder with the platform.

Belongs here: putting them there. Does not belong here: what a bundle is (`bike_assets.core.bundle`), and getting it,
which the service does without Google's libraries (`bike_serving.bucket`).
"""

import base64
import hashlib
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from bike_assets.core.errors import PermanentError, TransientError

if TYPE_CHECKING:
    from google.cloud.storage import Bucket

_LAST: Final = "manifest.json"
"""Written after everything else: who finds it finds the whole bundle."""

_PROOF_SECONDS: Final = 10.0
"""Whoever asks whether a bucket can be written waits for the answer."""


def put_bundle(folder: Path, url: str) -> None:
    """Put a bundle into a bucket, under its own name. Doing it twice is harmless, also at the same time.

    Every file is written on the condition that there is none (`ifGenerationMatch=0`), so that no writer can change what
    a service may be reading.

    Args:
        folder: the bundle.
        url: `gs://bucket/folder` that bundles are in.

    Raises:
        PermanentError: the address is none, the bucket refuses, or it holds another file of that name.
        TransientError: the bucket cannot be reached.
    """
    names = sorted((entry.name for entry in folder.iterdir()), key=lambda name: (name == _LAST, name))
    with _opened(url) as (bucket, place):
        for name in names:
            _put(bucket, f"{place}{folder.name}/{name}", folder / name)


def prove(url: str) -> None:
    """Put an object where bundles go, and take it away again.

    Args:
        url: `gs://bucket/folder` that bundles are in.

    Raises:
        PermanentError: the address is none, or the bucket refuses.
        TransientError: the bucket cannot be reached.
    """
    with _opened(url) as (bucket, place):
        probe = bucket.blob(f"{place}.doctor-{uuid.uuid4().hex}")
        probe.upload_from_string(b"", if_generation_match=0, timeout=_PROOF_SECONDS, retry=None)
        probe.delete(timeout=_PROOF_SECONDS)


@contextmanager
def _opened(url: str) -> Iterator[tuple["Bucket", str]]:
    """The bucket of an address, and what its objects' names begin with; what Google's client raises, as ours."""
    from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound
    from google.auth.exceptions import GoogleAuthError

    address = urlsplit(url)
    if address.scheme != "gs" or not address.netloc:
        raise PermanentError(f"{url!r} is no bucket; set BIKE_BUNDLES_URL to gs://bucket/folder")
    folder = address.path.strip("/")
    try:
        from google.cloud.storage import Client

        with closing(Client()) as client:
            yield client.bucket(address.netloc), f"{folder}/" if folder else ""
    except (Forbidden, NotFound, GoogleAuthError) as error:
        raise PermanentError(
            f"{url} cannot be written: {str(error).splitlines()[0].partition('. ')[0]}; give the identity "
            "roles/storage.objectUser on the bucket"
        ) from error
    except (GoogleAPIError, OSError) as error:
        raise TransientError(f"{url} cannot be reached: {str(error).splitlines()[0]}; run again") from error


def _put(bucket: "Bucket", name: str, file: Path) -> None:
    from google.api_core.exceptions import PreconditionFailed

    blob = bucket.blob(name)
    try:
        blob.upload_from_filename(str(file), if_generation_match=0, checksum="md5")
    except PreconditionFailed as error:
        blob.reload()
        if blob.md5_hash != base64.b64encode(_md5(file)).decode():
            raise PermanentError(
                f"gs://{bucket.name}/{name} is there already and is another file; find out who wrote it"
            ) from error


def _md5(file: Path) -> bytes:
    """What Cloud Storage knows of a file's content. Who wrote it says the bundle's signature."""
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).digest()
