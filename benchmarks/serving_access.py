"""What it costs a request that the service asks who it is: each part alone, and the limit as a database would keep it.

python benchmarks/serving_access.py
"""

import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bike_serving.security.access import Role
from bike_serving.security.audit import AuditLog
from bike_serving.security.keys import KeyRing, create_key
from bike_serving.security.limits import RateLimiter

CALLS = 20_000
_UPSERT = """
insert into taken values (?, 1.0) on conflict (who) do update set full_at = full_at + 1.0 returning full_at
"""


def microseconds(call: Callable[[], object], calls: int = CALLS) -> float:
    """Mean processor time of a call, the best of three rounds: what else the machine does is not counted."""
    rounds = []
    for _ in range(3):
        began = time.process_time()
        for _ in range(calls):
            call()
        rounds.append((time.process_time() - began) / calls * 1e6)
    return min(rounds)


def database(folder: Path) -> Callable[[], object]:
    """The same count in SQLite, with a write-ahead log and without waiting for the disk."""
    connection = sqlite3.connect(folder / "limits.db", isolation_level=None)
    connection.executescript(
        "pragma journal_mode=wal; pragma synchronous=off; create table taken (who text primary key, full_at real)"
    )
    return lambda: connection.execute(_UPSERT, ("key:1 predict",)).fetchone()


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, key = create_key(folder / "keys.json", "benchmark", Role.READER)
        ring, limiter = KeyRing(folder / "keys.json"), RateLimiter(folder / "limits.bin")
        audit = AuditLog(folder / "audit.jsonl")
        line = {
            "at": "2026-11-25T17:00:00.000+00:00",
            "caller": "key:1",
            "path": "/v1/predict",
            "status": 200,
        }
        parts: dict[str, tuple[Callable[[], object], int]] = {
            "API key: HMAC-SHA256 and look-up": (lambda: ring.find(key), CALLS),
            "limit: shared table in memory": (lambda: limiter.take("key:1 predict", 10**6, 60), CALLS),
            "limit: SQLite": (database(folder), CALLS // 10),
            "access log: one line": (lambda: audit.write(**line), CALLS),
        }
        for what, (call, calls) in parts.items():
            print(f"{what:36} {microseconds(call, calls):7.2f} µs")


if __name__ == "__main__":
    main()
