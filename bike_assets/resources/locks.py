"""Locks between processes of one machine, given back by the kernel however their holder ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Wait until no other process or thread is inside with the same file, then keep others out.

    Args:
        path: an empty file of its own, made when missing. Containers that share the folder share the lock; machines
            that share it over a network may not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
