"""How much memory a command took, for its result and for benchmarks."""

import contextlib
import threading
from typing import Self

import psutil


class PeakMemory:
    """The most memory this process and its children (dbt) held together, sampled while the context is open."""

    INTERVAL_SECONDS = 0.1

    def __init__(self) -> None:
        self.megabytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(self.INTERVAL_SECONDS):
            total = 0
            for process in (me, *me.children(recursive=True)):
                # A child may end between being listed and being asked.
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
            self.megabytes = max(self.megabytes, total // 2**20)
