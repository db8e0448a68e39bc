"""What time it is, for whatever stamps what it makes; a replay of past days sets it.

Belongs here: the one reading of the wall clock that ends up in tables, tags and the audit log. Does not belong here:
which day a run is about, which is its partition or an argument, and timeouts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime


def _wall_clock() -> datetime:
    return datetime.now(UTC)


_read: ContextVar[Callable[[], datetime]] = ContextVar("clock", default=_wall_clock)


def now() -> datetime:
    """This moment, in UTC."""
    return _read.get()()


@contextmanager
def set_to(read: Callable[[], datetime]) -> Iterator[None]:
    """Another clock, within the block and in this thread.

    Args:
        read: answers with the moment, in UTC.
    """
    before = _read.set(read)
    try:
        yield
    finally:
        _read.reset(before)
