"""The audit log: what was decided about models, by whom and why, in rows that cannot be changed unseen.

Belongs here: what a row holds, how rows are chained and signed, and how a chain is verified. Does not belong here:
where rows are kept (`bike_assets.resources.audit`), and what follows from them for who serves (`succession`).

Every row carries the SHA-256 of its content and of the row before it, and an Ed25519 signature (RFC 8032) over that
hash. An edited, removed or moved row breaks the chain; rows cut off at the end leave the signed head, which is kept
beside the log, pointing past its end (Schneier and Kelsey 1999, secure audit logs, without their forward security).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Final, Literal

import polars as pl
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bike_assets.core.contracts import AUDIT_LOG
from bike_assets.core.errors import ContractError

Event = Literal[
    "retraining_decided",
    "trained",
    "judged",
    "promotion_begun",
    "promoted",
    "rollback_begun",
    "rolled_back",
    "abandoned",
    "approved",
    "rejected",
    "adopted",
    "compared",
]
"""What can happen. The two that end in `_begun` are written before anything changes, so that a process killed
afterwards leaves word of what it was about; `adopted` tells of an alias that was moved by another hand,
`compared` of the answer of an experiment."""

GENESIS: Final = "0" * 64
"""What stands in the place of a hash before the first row."""

_CHAIN: Final = ("previous_hash", "hash", "signature")
_SET_BY_CHAIN: Final = {"sequence", *_CHAIN}


@dataclass(frozen=True)
class AuditEvent:
    """One row to be: what happened, who did it, why, and any other columns of AUDIT_LOG by name."""

    event: Event
    at: datetime
    service_date: date
    actor: str
    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = set(AUDIT_LOG.column_names) - _SET_BY_CHAIN - {"event", "timestamp", "service_date", "actor"}
        if unknown := sorted(set(self.facts) - known):
            raise ContractError(f"audit log: no column is called {', '.join(unknown)}")
        if self.at.tzinfo is None:
            raise ContractError("audit log: the moment of an event has no time zone; give it in UTC")


@dataclass(frozen=True)
class Head:
    """How far the log goes: the newest row's number and hash, and a signature over both."""

    sequence: int
    hash: str
    signature: str

    def is_signed_by(self, key: Ed25519PublicKey) -> bool:
        """Whether whoever holds the key said so."""
        return _verifies(key, self.signature, _head_text(self.sequence, self.hash))

    def to_json(self) -> str:
        """One line, as it is kept beside the log; anyone may keep a copy elsewhere."""
        return json.dumps({"sequence": self.sequence, "hash": self.hash, "signature": self.signature})

    @classmethod
    def from_json(cls, text: str) -> "Head":
        """Read what `to_json` wrote.

        Raises:
            ContractError: it is something else.
        """
        try:
            found = json.loads(text)
            return cls(int(found["sequence"]), str(found["hash"]), str(found["signature"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ContractError("audit log: the head is not readable; restore it from a copy") from error


def chain(
    events: Sequence[AuditEvent], last: tuple[int, str] | None, key: Ed25519PrivateKey
) -> tuple[pl.DataFrame, Head]:
    """Rows that continue a log.

    Args:
        events: what happened, in order; at least one.
        last: number and hash of the newest row, None where there is none yet.
        key: what rows and head are signed with.

    Returns:
        Rows of AUDIT_LOG, and the head that names the last of them.
    """
    sequence, previous = last or (0, GENESIS)
    rows = []
    for event in events:
        sequence += 1
        row: dict[str, Any] = dict.fromkeys(AUDIT_LOG.column_names)
        row |= {
            **event.facts,
            "sequence": sequence,
            "timestamp": event.at.astimezone(UTC),
            "service_date": event.service_date,
            "event": event.event,
            "actor": event.actor,
            "reason": event.reason,
            "previous_hash": previous,
        }
        # Types first: what is hashed is what will be read back.
        (row,) = pl.DataFrame([row], schema=AUDIT_LOG.polars_schema).to_dicts()
        row["hash"] = previous = row_hash(row)
        row["signature"] = key.sign(bytes.fromhex(previous)).hex()
        rows.append(row)
    frame = AUDIT_LOG.conform(pl.DataFrame(rows, schema=AUDIT_LOG.polars_schema))
    return frame, Head(sequence, previous, key.sign(_head_text(sequence, previous)).hex())


def row_hash(row: Mapping[str, Any]) -> str:
    """SHA-256 over every column of a row but its own hash and signature, in one unambiguous form."""
    content = {name: row[name] for name in AUDIT_LOG.column_names if name not in ("hash", "signature")}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def faults(log: pl.DataFrame, heads: Iterable[Head], key: Ed25519PublicKey) -> list[str]:
    """What is wrong with a log, in words; empty where nothing is.

    Finds an edited cell, a removed, added, repeated or moved row, and rows cut off after any of the heads was
    written. It cannot find that log and every known head were put back together to an earlier state, which is why
    a copy of a head is worth keeping elsewhere.

    Args:
        log: rows of AUDIT_LOG in the order of `sequence`.
        heads: those that are known: the one kept beside the log, and copies.
        key: what rows and heads must be signed with.
    """
    found = []
    previous, number = GENESIS, 0
    hashes = {}
    for row in log.iter_rows(named=True):
        number += 1
        name = f"row {row['sequence']} ({row['event']})"
        if row["sequence"] != number:
            found.append(f"{name} stands where row {number} should be: rows were removed, added or moved")
            number = row["sequence"]
        if row["previous_hash"] != previous:
            found.append(f"{name} does not follow the row before it")
        if row["hash"] != row_hash(row):
            found.append(f"{name} was edited")
        elif not _verifies(key, row["signature"], bytes.fromhex(row["hash"])):
            found.append(f"{name} is not signed with the key of this home")
        previous = row["hash"]
        hashes[row["sequence"]] = row["hash"]
    known = list(heads)
    if not known and log.height:
        found.append("the signed head is missing: rows may have been cut off at the end")
    for head in known:
        if not head.is_signed_by(key):
            found.append(f"the head of row {head.sequence} is not signed with the key of this home")
        elif head.sequence > number:
            found.append(
                f"the log ends at row {number}, its signed head says {head.sequence}: rows were cut off"
            )
        elif hashes.get(head.sequence) != head.hash:
            found.append(f"row {head.sequence} is not the one its signed head names")
    return found


def _head_text(sequence: int, row_hash: str) -> bytes:
    return f"audit head {sequence} {row_hash}".encode()


def _verifies(key: Ed25519PublicKey, signature: str, content: bytes) -> bool:
    try:
        key.verify(bytes.fromhex(signature), content)
    except (InvalidSignature, ValueError):
        return False
    return True


def _plain(value: Any) -> str:
    if isinstance(value, datetime | date):
        return value.isoformat()
    raise TypeError(f"audit log: {type(value).__name__} has no plain form")
