"""The access log: who asked what, when, and with what result, one JSON object a line.

Belongs here: writing lines. They hold no key, token, query or body. Does not belong here: diagnostics (the service's
own log) and counts (metrics).
"""

import asyncio
import fcntl
import logging
import os
import time
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

log = logging.getLogger("bike_serving")

MAX_BYTES: Final = 64 * 1024 * 1024
"""A log that grew beyond this becomes the newest of the kept ones."""

KEPT: Final = 4

_LOOK_EVERY: Final = 256


class AuditLog:
    """Appends to a file that several processes share. Lines are written whole, so they never mix.

    Requests that are answered in one turn of the event loop are written at its next, all at once. Where the file cannot
    be written, the service answers on and says so in its own log: once, until it can again.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._file: int | None = None
        self._lines: list[bytes] = []
        self._until_look = 0
        self._failing = False

    def write(self, **entry: Any) -> None:
        """Append one line: `at`, the moment now, and what else is told."""
        self._lines.append(msgspec.json.encode({"at": _now(), **entry}))
        if len(self._lines) > 1:
            return  # it goes with those that wait
        try:
            asyncio.get_running_loop().call_soon(self._flush)
        except RuntimeError:  # nothing else happens meanwhile
            self._flush()

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            if self._until_look <= 0:
                self._look()
            self._until_look -= len(lines)
            if self._file is not None:
                os.write(self._file, b"\n".join((*lines, b"")))
                self._failing = False
        except OSError as error:
            if not self._failing:
                log.error("the access log %s cannot be written: %s", self._path, error)
            self._failing = True
            self._close()

    def close(self) -> None:
        """Write what waits and close the file; the next line opens it again."""
        self._flush()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._until_look = 0

    def _look(self) -> None:
        """Open the file, again where another process moved it away, and move it away where it is full."""
        self._until_look = _LOOK_EVERY
        if self._file is not None and not self._still_there(self._file):
            self._close()
            self._until_look = _LOOK_EVERY
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._file).st_size > self._max_bytes:
            self._rotate(self._file)
            self._until_look = 0

    def _still_there(self, file: int) -> bool:
        try:
            return self._path.stat().st_ino == os.fstat(file).st_ino
        except FileNotFoundError:
            return False

    def _rotate(self, file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if self._still_there(file):  # else another process was faster
                for number in range(KEPT - 1, 0, -1):
                    older = self._path.with_name(f"{self._path.name}.{number}")
                    if older.exists():
                        older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _now() -> str:
    """The moment in UTC to the millisecond, ISO 8601."""
    seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{_second(seconds)}.{milliseconds:03}+00:00"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()
