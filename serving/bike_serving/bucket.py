"""Gets bundles out of a bucket of Cloud Storage, where the service shares no folder with the platform.

Belongs here: the calls to the bucket. Does not belong here: trusting what came; a bundle is verified when it is loaded,
wherever it came from. Google's libraries are not used: listing and getting need none of them.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx

from bike_assets.core.bundle import BUNDLE_ID_PATTERN
from bike_assets.core.errors import BundleError, TransientError

GOOGLE: Final = "https://storage.googleapis.com"
_TOKEN_URL: Final = (
    "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token"  # noqa: S105
)
"""Where a workload gets its identity's token; only inside of Google's network."""

_MANIFEST: Final = "manifest.json"
_FILE_NAME: Final = re.compile(r"[a-z0-9_]+\.(cbm|json|npz|parquet|sig)")
_MOST_FILES: Final = 32
_MOST_BYTES: Final = 1 << 30
_KEPT: Final = 8
"""Bundles that stay in the folder: those that serve and served last, and their challengers."""


class BundleBucket:
    """The folder of a bucket that the platform puts bundles in."""

    def __init__(self, url: str, endpoint: str = GOOGLE, timeout_seconds: float = 30.0) -> None:
        """Take `gs://bucket/folder`, and another address than Google's for an emulator, which is shown no token."""
        address = urlsplit(url)
        self._url, self._folder = url, address.path.strip("/")
        self._asks_for_token = endpoint == GOOGLE
        self._bucket_path = f"/storage/v1/b/{quote(address.netloc, safe='')}/o"
        self._client = httpx.Client(base_url=endpoint, timeout=timeout_seconds)

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def fetch(self, bundle_id: str, folder: Path) -> None:
        """Put a bundle into a folder unless it is there: all of it or nothing.

        Raises:
            BundleError: the bucket holds no such bundle, or something else than a bundle.
            TransientError: the bucket cannot be reached, or will not answer now.
        """
        if (folder / bundle_id).is_dir():
            return
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as temporary:
            whole = Path(temporary) / bundle_id
            whole.mkdir()
            headers = self._authorization()
            for name in self._names(bundle_id, headers):
                content = self._get(self._object(bundle_id, name), {"alt": "media"}, headers)
                with content as answer, (whole / name).open("wb") as file:
                    file.writelines(answer.iter_bytes())
            try:
                whole.rename(folder / bundle_id)
            except OSError:
                if not (folder / bundle_id).is_dir():  # else another worker was faster
                    raise
        _forget_old(folder)

    def _names(self, bundle_id: str, headers: dict[str, str]) -> list[str]:
        """The files of a bundle, of which there are few and none is huge."""
        prefix = self._path(bundle_id, "")
        query = {"prefix": prefix, "maxResults": str(_MOST_FILES + 1)}
        with self._get(self._bucket_path, query, headers) as answer:
            answer.read()
        try:
            found: list[dict[str, Any]] = answer.json().get("items", [])
            sizes = {str(each["name"]).removeprefix(prefix): int(each["size"]) for each in found}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{self._url} does not answer like Cloud Storage; check its address") from error
        if _MANIFEST not in sizes:
            raise BundleError(f"{self._url} holds no bundle {bundle_id}; promote the model again")
        if odd := [name for name in sizes if not _FILE_NAME.fullmatch(name)]:
            raise BundleError(f"bundle {bundle_id} in {self._url} holds {odd[0]!r}, no file of a bundle")
        if len(sizes) > _MOST_FILES or sum(sizes.values()) > _MOST_BYTES:
            raise BundleError(f"bundle {bundle_id} in {self._url} is larger than any bundle")
        return sorted(sizes)

    def _path(self, *parts: str) -> str:
        return "/".join((*filter(None, (self._folder,)), *parts))

    def _object(self, bundle_id: str, name: str) -> str:
        return f"{self._bucket_path}/{quote(self._path(bundle_id, name), safe='')}"

    @contextmanager
    def _get(self, path: str, query: dict[str, str], headers: dict[str, str]) -> Iterator[httpx.Response]:
        try:
            with self._client.stream("GET", path, params=query, headers=headers) as answer:
                if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
                    raise BundleError(
                        f"{self._url} refuses this workload; give it roles/storage.objectViewer on the bucket"
                    )
                if answer.status_code == httpx.codes.NOT_FOUND:
                    raise BundleError(f"{self._url} is not there; check BIKE_SERVING_BUNDLES_URL")
                if not answer.is_success:
                    raise TransientError(f"{self._url} answers with status {answer.status_code}")
                yield answer
        except httpx.TransportError as error:
            raise TransientError(f"{self._url} cannot be reached ({type(error).__name__})") from error

    def _authorization(self) -> dict[str, str]:
        if not self._asks_for_token:
            return {}
        try:
            answer = self._client.get(_TOKEN_URL, headers={"Metadata-Flavor": "Google"}).raise_for_status()
            return {"Authorization": f"Bearer {answer.json()['access_token']}"}
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise TransientError(
                f"{self._url}: this workload has no identity of Google's ({type(error).__name__}); give it one"
            ) from error


def _forget_old(folder: Path) -> None:
    """Remove what was fetched long ago. A bundle that serves is in memory, and can be fetched again."""
    bundles = [each for each in folder.iterdir() if BUNDLE_ID_PATTERN.fullmatch(each.name)]
    for old in sorted(bundles, key=lambda each: -each.stat().st_mtime_ns)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
