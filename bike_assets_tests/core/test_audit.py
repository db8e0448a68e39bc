"""The audit log is a chain: whatever is done to its rows afterwards is found."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bike_assets.core.audit import GENESIS, AuditEvent, Head, chain, faults
from bike_assets.core.contracts import AUDIT_LOG
from bike_assets.core.errors import ContractError

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = KEY.public_key()
PREDECESSOR = (
    "timestamp", "drift_detected", "rmse", "r2", "fine_tune_triggered", "fine_tune_success", "model_improvement",
    "env", "error_message", "double_evaluation_enabled", "baseline_regression", "r2_baseline", "r2_current",
    "r2_train", "deployment_decision", "model_uri", "run_id", "champion_r2_baseline",
)  # fmt: skip


def event(number: int) -> AuditEvent:
    return AuditEvent(
        "promoted",
        datetime(2024, 6, 1, 8, tzinfo=UTC) + timedelta(hours=number),
        date(2024, 6, 1),
        "anna",
        f"reason {number}, with é and a \n line",
        {"model_version": str(number), "r2": 0.1 * number, "drift_detected": True},
    )


def log(rows: int = 5) -> tuple[pl.DataFrame, Head]:
    """A log that was written one row at a time."""
    frames: list[pl.DataFrame] = []
    last, head = None, None
    for number in range(rows):
        frame, head = chain([event(number)], last, KEY)
        last = (head.sequence, head.hash)
        frames.append(frame)
    assert head is not None
    return pl.concat(frames), head


def test_the_columns_of_the_predecessor_are_all_there() -> None:
    assert set(PREDECESSOR) <= set(AUDIT_LOG.column_names)


def test_an_untouched_log_has_no_fault() -> None:
    rows, head = log()

    assert faults(rows, [head], PUBLIC) == []
    assert rows["sequence"].to_list() == [1, 2, 3, 4, 5]
    assert rows["previous_hash"][0] == GENESIS
    together, same_head = chain([event(number) for number in range(5)], None, KEY)
    assert together.equals(rows)
    assert same_head == head
    assert faults(AUDIT_LOG.empty(), [], PUBLIC) == []


def edited(column: str, value: object) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def edit(rows: pl.DataFrame) -> pl.DataFrame:
        here = pl.col("sequence") == 3
        return rows.with_columns(
            pl.when(here)
            .then(pl.lit(value, dtype=rows.schema[column]))
            .otherwise(pl.col(column))
            .alias(column)
        )

    return edit


EDITS = {
    column.name: edited(
        column.name,
        {
            pl.String: "x",
            pl.Float64: 0.5,
            pl.Boolean: False,
            pl.Int64: 9,
            pl.Int32: 9,
            pl.Date: date(2020, 1, 1),
        }.get(column.dtype, datetime(2020, 1, 1, tzinfo=UTC)),  # type: ignore[call-overload]
    )
    for column in AUDIT_LOG.columns
}


@pytest.mark.parametrize("column", EDITS)
def test_every_edited_cell_is_found(column: str) -> None:
    rows, head = log()
    changed = EDITS[column](rows)

    assert not changed.equals(rows)
    assert faults(changed, [head], PUBLIC) != []


@pytest.mark.parametrize("row", range(5))
def test_every_removed_row_is_found(row: int) -> None:
    rows, head = log()

    assert faults(rows.filter(pl.col("sequence") != row + 1), [head], PUBLIC) != []


def test_rows_cut_off_at_the_end_are_found_by_the_head_alone() -> None:
    rows, head = log()

    assert faults(rows.head(4), [head], PUBLIC) == [
        "the log ends at row 4, its signed head says 5: rows were cut off"
    ]
    assert faults(rows.head(0), [head], PUBLIC) != []
    assert "head is missing" in faults(rows, [], PUBLIC)[0]


@pytest.mark.parametrize("pair", [(0, 1), (1, 3), (3, 4)])
def test_rows_that_changed_places_are_found(pair: tuple[int, int]) -> None:
    rows, head = log()
    order = list(range(5))
    order[pair[0]], order[pair[1]] = order[pair[1]], order[pair[0]]
    moved = rows[order]

    assert faults(moved, [head], PUBLIC) != []
    # Also where the numbers were made to fit.
    assert faults(moved.with_columns(sequence=rows["sequence"]), [head], PUBLIC) != []


def test_a_repeated_row_is_found() -> None:
    rows, head = log()

    assert faults(pl.concat([rows, rows.tail(1)]), [head], PUBLIC) != []


def test_a_chain_forged_with_another_key_is_found() -> None:
    other = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
    rows, _ = log(2)
    forged, head = chain([event(7)], (2, rows["hash"][1]), other)
    both = pl.concat([rows, forged])
    _, honest = log(2)

    assert faults(both, [honest], PUBLIC) == ["row 3 (promoted) is not signed with the key of this home"]
    assert "head of row 3 is not signed" in " ".join(faults(both, [head], PUBLIC))
    # A forger who keeps number and hash of the head cannot keep its signature.
    assert faults(rows, [Head(2, honest.hash, head.signature)], PUBLIC) != []
    assert faults(rows, [Head(1, honest.hash, honest.signature)], PUBLIC) != []


def test_a_head_that_is_a_step_behind_is_what_a_killed_process_leaves() -> None:
    rows, _ = log(5)
    _, behind = log(4)

    assert faults(rows, [behind], PUBLIC) == []


def test_a_copy_of_a_head_finds_a_log_that_was_put_back_with_its_own() -> None:
    _, copy = log(5)
    earlier, head = log(3)

    assert faults(earlier, [head], PUBLIC) == []
    assert faults(earlier, [head, copy], PUBLIC) != []


def test_a_head_comes_back_from_its_line_and_nothing_else_does() -> None:
    _, head = log()

    assert Head.from_json(head.to_json()) == head
    for text in ("", "[]", "{}", '{"sequence": "x"}'):
        with pytest.raises(ContractError, match="head is not readable"):
            Head.from_json(text)


def test_events_hold_known_columns_and_a_moment_with_a_zone() -> None:
    with pytest.raises(ContractError, match="no column is called colour"):
        AuditEvent("trained", datetime.now(UTC), date(2024, 6, 1), "anna", "", {"colour": 1})
    with pytest.raises(ContractError, match="no column is called hash"):
        AuditEvent("trained", datetime.now(UTC), date(2024, 6, 1), "anna", "", {"hash": "0"})
    with pytest.raises(ContractError, match="no time zone"):
        AuditEvent("trained", datetime(2024, 6, 1), date(2024, 6, 1), "anna", "")  # noqa: DTZ001
