"""The access log: who asked what, when, and with what result, one JSON object a line.

Belongs here: writing lines. They hold no key, token, query or body. Does not belong here: diagnostics (the service's
own log) and counts (metrics).
"""

import fcntl
import logging
import os
from pathlib import Path
from typing import Any, Final

import msgspec

log = logging.getLogger("bike_serving")

MAX_BYTES: Final = 64 * 1024 * 1024
"""A log that grew beyond this becomes the newest of the kept ones."""

KEPT: Final = 4

_LOOK_EVERY: Final = 256


class AuditLog:
    """Appends to a file that several processes share. A line is one write, so lines never mix.

    Where it cannot be written, the service answers on and says so in its own log: once, until it can again.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._file: int | None = None
        self._until_look = 0
        self._failing = False

    def write(self, **entry: Any) -> None:
        """Append one line."""
        try:
            if self._until_look <= 0:
                self._look()
            self._until_look -= 1
            if self._file is not None:
                os.write(self._file, msgspec.json.encode(entry) + b"\n")
                self._failing = False
        except OSError as error:
            if not self._failing:
                log.error("the access log %s cannot be written: %s", self._path, error)
            self._failing = True
            self.close()

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._until_look = 0

    def _look(self) -> None:
        """Open the file, again where another process moved it away, and move it away where it is full."""
        self._until_look = _LOOK_EVERY
        if self._file is not None and not self._still_there(self._file):
            self.close()
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
