"""Rate limits that all worker processes of a host share: a small table in memory that they all map.

Belongs here: counting, and nothing about who is counted. Does not belong here: HTTP.

A limit of n in a period is a bucket of n tokens that refills evenly over it, kept as the moment when it will be full
(the generic cell rate algorithm, ATM Forum 1996): one number a caller and meter. Well-kept libraries share such counts
through a server (Redis, Memcached) or a database; docs/decisions/0023 has what they cost here.
"""

import fcntl
import hashlib
import logging
import mmap
import os
import struct
import time
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Final

log = logging.getLogger("bike_serving")

_SLOT: Final = struct.Struct("<Qd")
_WAYS: Final = 8
_BUCKETS: Final = 1024
_BUCKET_BYTES: Final = _WAYS * _SLOT.size
_BYTES: Final = _BUCKETS * _BUCKET_BYTES


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request may pass, how many more may follow at once, and seconds until the next may or all may."""

    allowed: bool
    remaining: int
    wait_seconds: int


class RateLimiter:
    """Counts requests. One thread of each process uses it."""

    def __init__(self, path: Path, shared: bool = True) -> None:
        """Map the table, which is made when missing. Where it cannot be, this process counts for itself.

        Args:
            path: the table's file; it keeps the counts over a restart, too.
            shared: whether other processes count into it at the same time. Only then is it locked.
        """
        self._file: int | None = None
        self._shared = shared
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # Space that is promised but not there would kill the process at the first write to it.
            os.posix_fallocate(self._file, 0, _BYTES)
            self._table = mmap.mmap(self._file, _BYTES)
        except OSError as error:
            log.warning("%s cannot be used (%s): every worker counts rate limits for itself", path, error)
            if self._file is not None:
                os.close(self._file)
            self._file = None
            self._table = mmap.mmap(-1, _BYTES)

    def close(self) -> None:
        """Give the table back."""
        self._table.close()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def take(self, who: str, limit: int, period_seconds: float) -> Verdict:
        """Count one request of somebody, if it may pass.

        Args:
            who: the caller and what is counted, as one text.
            limit: requests in the period, at least 1.
            period_seconds: over which an empty bucket refills.
        """
        name = _name(who)
        start = name % _BUCKETS * _BUCKET_BYTES
        # The clock that all processes share and nobody can set.
        now = time.monotonic()
        interval = period_seconds / limit
        lock = self._file if self._shared else None
        if lock is not None:
            fcntl.lockf(lock, fcntl.LOCK_EX, _BUCKET_BYTES, start)
        try:
            place, full_at = self._find(start, name)
            # A moment further away than an empty bucket's is of another boot of the machine, or of a higher limit.
            full_at = max(full_at, now) if full_at <= now + period_seconds + interval else now
            allowed = full_at + interval <= now + period_seconds + 1e-9
            if allowed:
                full_at += interval
                _SLOT.pack_into(self._table, place, name, full_at)
        finally:
            if lock is not None:
                fcntl.lockf(lock, fcntl.LOCK_UN, _BUCKET_BYTES, start)
        left = max(0, int((now + period_seconds - full_at) / interval + 1e-6))
        wait = full_at - now if allowed else full_at + interval - now - period_seconds
        return Verdict(allowed, left, max(1, ceil(wait)))

    def _find(self, start: int, name: int) -> tuple[int, float]:
        """Somebody's slot and moment; for a newcomer the slot whose owner has been quiet for longest."""
        oldest_place, oldest = start, float("inf")
        for place in range(start, start + _BUCKET_BYTES, _SLOT.size):
            owner, full_at = _SLOT.unpack_from(self._table, place)
            if owner == name:
                return place, full_at
            if full_at < oldest:
                oldest_place, oldest = place, full_at
        return oldest_place, 0.0


@lru_cache(maxsize=4096)
def _name(who: str) -> int:
    """What the table knows somebody by."""
    return int.from_bytes(hashlib.blake2b(who.encode(), digest_size=8).digest(), "little") or 1
