"""API keys: made once, shown once, kept as hashes in a file that every worker follows.

Belongs here: the file of keys, and finding the caller whose key was presented. Does not belong here: HTTP headers, and
tokens of an identity provider (`bike_serving.security.tokens`).

A key is `bike_<id>_<secret>`. The secret is 256 random bits, so it cannot be guessed from its hash by trying, and one
HMAC-SHA256 with a salt of its own (RFC 2104) protects it as well as a slow function would, which would cost every
request tens of milliseconds. Slow hashes are for passwords, which people choose.
"""

import fcntl
import hmac
import json
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bike_assets.core.errors import PermanentError
from bike_serving.security.access import Meter, Role

log = logging.getLogger("bike_serving")

KEY_PREFIX: Final = "bike_"
_FORMAT: Final = 1
_NAME: Final = re.compile(r"[\w .@-]{1,60}")
_LOOK_SECONDS: Final = 1.0


class KeyFileError(PermanentError):
    """The file of keys cannot be used."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `limits` replace the service's own, requests a minute or hour by meter; 0 means unlimited."""

    id: str
    role: Role
    limits: Mapping[Meter, int]


@dataclass(frozen=True)
class ApiKey:
    """What is kept of a key."""

    id: str
    name: str
    role: Role
    salt: str
    digest: str
    created_at: str
    limits: dict[Meter, int]

    @property
    def caller(self) -> Caller:
        """Who presents it."""
        return Caller(f"key:{self.id}", self.role, self.limits)

    def matches(self, secret: str) -> bool:
        """Whether this is the key's secret; takes equally long in either case."""
        return hmac.compare_digest(_digest(bytes.fromhex(self.salt), secret), self.digest)


def _digest(salt: bytes, secret: str) -> str:
    return hmac.digest(salt, secret.encode(), "sha256").hex()


def read_keys(path: Path) -> dict[str, ApiKey]:
    """The keys in a file by their id; none where there is no file.

    Raises:
        KeyFileError: it is no file of keys, or others than its owner may write it.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o022:
                raise KeyFileError(f"keys {path}: other users may write it; run chmod 600 on it")
            stored = json.loads(file.read())
        if stored["format"] != _FORMAT:
            raise KeyFileError(f"keys {path}: format {stored['format']} is not {_FORMAT}")
        return {entry["id"]: _from_json(entry) for entry in stored["keys"]}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise KeyFileError(f"keys {path}: {error.strerror}; check its owner and mode") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KeyFileError(
            f"keys {path}: not a file of keys ({error}); restore it or make new keys"
        ) from error


def _from_json(entry: dict[str, Any]) -> ApiKey:
    limits = {Meter(name): int(limit) for name, limit in entry["limits"].items()}
    bytes.fromhex(entry["salt"])
    return ApiKey(**{**entry, "role": Role(entry["role"]), "limits": limits})


def create_key(
    path: Path, name: str, role: Role, limits: Mapping[Meter, int] | None = None
) -> tuple[str, str]:
    """Add a key to a file, which is made when missing.

    Returns:
        Its id, and the key itself: the only time that it can be seen.

    Raises:
        KeyFileError: the name is odd, or the file cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise KeyFileError(f"a key's name is 1 to 60 letters, digits, spaces or . _ @ -, not {name!r}")
    salt, secret = secrets.token_bytes(16), secrets.token_urlsafe(32)
    with _changing(path) as keys:
        key_id = secrets.token_hex(4)
        while key_id in keys:
            key_id = secrets.token_hex(4)
        keys[key_id] = ApiKey(
            key_id,
            name,
            role,
            salt.hex(),
            _digest(salt, secret),
            datetime.now(UTC).isoformat(timespec="seconds"),
            dict(limits or {}),
        )
    return key_id, f"{KEY_PREFIX}{key_id}_{secret}"


def revoke_key(path: Path, key_id: str) -> None:
    """Take a key out of a file; running services refuse it within a second or two.

    Raises:
        KeyFileError: there is no such key, or the file cannot be used.
    """
    with _changing(path) as keys:
        if keys.pop(key_id, None) is None:
            raise KeyFileError(f"keys {path}: no key {key_id}; bike-serving keys list shows the ids")


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, ApiKey]]:
    """The keys to be changed, written back whole: readers see the old file or the new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = read_keys(path)
            yield keys
            write_private(
                path,
                json.dumps({"format": _FORMAT, "keys": [asdict(key) for key in keys.values()]}, indent=1),
            )
    except OSError as error:
        raise KeyFileError(f"keys {path}: {error.strerror}; give a folder that can be written") from error


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)  # mkstemp makes it 0600
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)


class KeyRing:
    """The keys of a file, followed while it changes. Damage keeps the last good keys; a removed file has none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._stamp_now()
        self._keys = read_keys(path)
        self._found: dict[str, Caller] = {}
        self._look_at = time.monotonic() + _LOOK_SECONDS

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key: str) -> Caller | None:
        """Who holds the key; None where nobody does. A key that was found is remembered until the file changes."""
        self._follow()
        if caller := self._found.get(key):
            return caller
        key_id, _, secret = key.removeprefix(KEY_PREFIX).partition("_")
        found = self._keys.get(key_id)
        if found is None or not found.matches(secret):
            return None
        return self._found.setdefault(key, found.caller)

    def _follow(self) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
            self._found.clear()
        except KeyFileError as error:
            log.error("the keys read last stay in force: %s", error)

    def _stamp_now(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
