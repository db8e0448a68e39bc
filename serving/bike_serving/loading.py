"""A process beside the service that opens new champions: what takes long happens where nobody waits.

Belongs here: that process (`python -m bike_serving.loading`), and asking it. It verifies a bundle, computes the newest
vintage, compares it with the golden set and makes the look-up table. Does not belong here: when to load and what a
champion is (`bike_serving.champion`).

Tenths of a second of computing beside the event loop would hold up requests, however often the interpreter's lock is
passed on. The process runs behind the service's own work, is started when there is something to load, and ends when
there was nothing for a while: champions change rarely, and its memory is better not held.

A request is a line, the paths of the bundle and of the public key as JSON. An answer is one byte (1 done, 0 refused),
its length in eight, and a `Computed` or why not.
"""

import io
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import msgspec

from bike_assets.core.errors import BikeError, BundleError, TransientError

if TYPE_CHECKING:  # a service starts this process before it imports anything large
    from bike_serving.forecasts import Computed

PATIENCE_SECONDS: Final = 120.0
"""For a bundle to be opened; a process that takes longer is replaced."""

IDLE_SECONDS: Final = 30.0
"""After which the process ends."""

_HEAD: Final = struct.Struct(">?Q")
_PIPE_BYTES: Final = 1 << 20
_NICE: Final = 10
"""How far behind the service's own processes it runs, once there is something that serves."""


class LoaderError(TransientError):
    """The process ended, or took too long."""


def compute(bundle: Path, public_key: Path) -> "Computed":
    """What there is to compute of a bundle that can be trusted.

    Raises:
        BundleError: it cannot.
    """
    from bike_assets.core.bundle import load_bundle, load_public_key
    from bike_serving.forecasts import ForecastTable

    loaded = load_bundle(bundle, load_public_key(public_key))
    stream = io.BytesIO()
    loaded.forecast().write_ipc_stream(stream)
    return ForecastTable.of(loaded.issue_date, loaded.forecast()).packed(stream.getvalue())


class Loader:
    """Asks the process, which it starts and replaces as needed. One thread at a time is served."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process before it is asked: what it imports need not be waited for."""
        with self._lock:
            self._running()

    def compute(self, bundle: Path, public_key: Path) -> "Computed":
        """What `compute` returns, computed by the process.

        Raises:
            BundleError: the bundle cannot be trusted.
            LoaderError: the process did not answer; the next question goes to another one.
        """
        question = json.dumps([str(bundle), str(public_key)]).encode() + b"\n"
        with self._lock:
            try:
                done, answer = self._ask(question)
            except (EOFError, BrokenPipeError):  # it ended for want of work, or was killed
                self._end()
                try:
                    done, answer = self._ask(question)
                except (EOFError, BrokenPipeError) as error:
                    self._end()
                    raise LoaderError(f"bundle {bundle}: the process that opens it ended") from error
        if not done:
            raise BundleError(answer.decode())
        from bike_serving.forecasts import Computed

        return msgspec.msgpack.decode(answer, type=Computed)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bike_serving.loading"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pipesize=_PIPE_BYTES,
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # it holds nothing that could be left half done
            process.communicate()

    def _ask(self, question: bytes) -> tuple[bool, bytearray]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None  # noqa: S101  PT018
        process.stdin.write(question)
        process.stdin.flush()
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            done, length = _HEAD.unpack(_read(process.stdout, _HEAD.size, deadline))
            return done, _read(process.stdout, length, deadline)
        except TimeoutError as error:
            self._end()
            raise LoaderError(f"a bundle was not opened in {PATIENCE_SECONDS:g} s") from error


def _read(stream: IO[bytes], size: int, deadline: float) -> bytearray:
    found = bytearray(size)
    missing = memoryview(found)
    while missing:
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        count = os.readv(stream.fileno(), [missing])
        if not count:
            raise EOFError
        missing = missing[count:]
    return found


def main() -> None:
    """Answer questions until there are none for a while, or nobody who asks."""
    # Seconds that pass while the service starts, too.
    import bike_serving.forecasts  # noqa: F401

    asked, told = sys.stdin.buffer, sys.stdout.buffer
    first = True
    while select.select([asked], [], [], IDLE_SECONDS)[0]:
        line = asked.readline()
        if not line:
            return
        try:
            done, answer = True, msgspec.msgpack.encode(compute(*map(Path, json.loads(line))))
        except BikeError as error:
            done, answer = False, str(error).encode()
        told.write(_HEAD.pack(done, len(answer)))
        told.write(answer)
        told.flush()
        if first:
            first = False
            os.nice(_NICE)


if __name__ == "__main__":
    main()
