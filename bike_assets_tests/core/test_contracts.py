"""The table contracts: each rule kept by a good frame and broken by one change."""

import math
from datetime import UTC, date, datetime

import polars as pl
import pytest

from bike_assets.core import contracts
from bike_assets.core.contracts import Column, TableContract, features_contract
from bike_assets.core.errors import ContractError, PermanentError

TABLE = TableContract(
    schema="s",
    name="t",
    key=("counter_id", "ts_utc"),
    columns=(
        Column("counter_id", pl.String, "Counter"),
        Column("ts_utc", contracts.UTC_TIMESTAMP, "Hour"),
        Column("hourly_count", pl.Int64, "Bicycles", nullable=True, minimum=0, maximum=100),
        Column("share", pl.Float64, "Share", nullable=True),
    ),
)


def good() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "counter_id": ["a", "a", "b"],
            "ts_utc": [datetime(2024, 1, 1, hour, tzinfo=UTC) for hour in (0, 1, 0)],
            "hourly_count": [0, 100, None],
            "share": [0.5, None, -1.0],
        },
        schema=TABLE.polars_schema,
    )


ALL = [
    contracts.RAW_COUNTS,
    contracts.RAW_WEATHER,
    contracts.CALENDAR_HOURS,
    contracts.CLEANED_COUNTS,
    contracts.COUNTERS,
    contracts.PREDICTIONS,
    contracts.RETRAINING_DECISIONS,
    contracts.SHADOW_PREDICTIONS,
    contracts.EXPERIMENT_RESULTS,
    features_contract(["mean4"]),
]


def test_a_good_frame_keeps_the_contract() -> None:
    assert TABLE.violations(good()) == []
    TABLE.check(good())
    assert TABLE.conform(good()).equals(good())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            pl.lit(None, pl.String).alias("counter_id"),
            ["counter_id is null in 3 rows", "key (counter_id, ts_utc) repeats in 1 rows"],
        ),
        (pl.lit(-1, pl.Int64).alias("hourly_count"), ["hourly_count is below 0 in 3 rows"]),
        (pl.lit(101, pl.Int64).alias("hourly_count"), ["hourly_count is above 100 in 3 rows"]),
        (pl.lit(math.nan).alias("share"), ["share is NaN or infinite in 3 rows"]),
        (pl.lit(-math.inf).alias("share"), ["share is NaN or infinite in 3 rows"]),
        (pl.lit("a").alias("counter_id"), ["key (counter_id, ts_utc) repeats in 1 rows"]),
        (pl.lit(1, pl.Int32).alias("hourly_count"), ["column hourly_count is Int32, not Int64"]),
        (
            pl.col("ts_utc").dt.replace_time_zone(None),
            ["column ts_utc is Datetime(time_unit='us', time_zone=None), not"],
        ),
        (pl.col("ts_utc").dt.cast_time_unit("ms"), ["column ts_utc is Datetime(time_unit='ms'"]),
    ],
)
def test_a_broken_rule_is_named_with_its_rows(change: pl.Expr, words: list[str]) -> None:
    faults = TABLE.violations(good().with_columns(change))

    assert len(faults) == len(words)
    for fault, expected in zip(faults, words, strict=True):
        assert expected in fault
    with pytest.raises(ContractError, match=r"^s\.t: "):
        TABLE.check(good().with_columns(change))


def test_every_broken_rule_is_named_not_the_first_alone() -> None:
    frame = good().with_columns(hourly_count=pl.lit(-1, pl.Int64), share=pl.lit(math.inf))

    assert len(TABLE.violations(frame)) == 2


def test_a_missing_column_is_named() -> None:
    frame = good().drop("share", "ts_utc")

    assert TABLE.violations(frame) == ["column ts_utc is missing", "column share is missing"]
    with pytest.raises(ContractError, match="column ts_utc, share is missing"):
        TABLE.conform(frame)


def test_ends_of_a_range_belong_to_it() -> None:
    frame = good().with_columns(hourly_count=pl.Series([0, 100, 100], dtype=pl.Int64))

    assert TABLE.violations(frame) == []


def test_conform_orders_casts_and_leaves_out() -> None:
    loose = good().with_columns(pl.col("hourly_count").cast(pl.Float64), extra=pl.lit(1))

    assert TABLE.conform(loose.select(reversed(loose.columns))).equals(good())


def test_conform_refuses_what_it_cannot_convert_without_loss() -> None:
    with pytest.raises(ContractError, match=r"^s\.t: ") as caught:
        TABLE.conform(good().with_columns(hourly_count=pl.lit("many")))

    assert "\n" not in str(caught.value)


def test_conform_checks_what_it_converted() -> None:
    with pytest.raises(ContractError, match="below 0"):
        TABLE.conform(good().with_columns(hourly_count=pl.lit(-3.0)))


def test_a_broken_contract_cannot_be_retried() -> None:
    assert issubclass(ContractError, PermanentError)


@pytest.mark.parametrize("contract", ALL, ids=lambda contract: contract.name)
def test_every_table_is_stated_whole(contract: TableContract) -> None:
    assert contract.violations(contract.empty()) == []
    assert contract.relation == f"{contract.schema}.{contract.name}"
    assert len(set(contract.column_names)) == len(contract.columns)
    assert set(contract.key) <= set(contract.column_names)
    for column in contract.columns:
        assert column.description, column.name
        if column.name in contract.key:
            assert not column.nullable, f"{column.name} is part of the key"
        if isinstance(column.dtype, pl.Datetime):
            assert column.dtype == contracts.UTC_TIMESTAMP, column.name


def test_features_are_32_bit_and_may_be_unknown() -> None:
    contract = features_contract(["mean4", "level_28d"])

    assert contract.column_names == [
        "service_date",
        "counter_id",
        "target_ts",
        "horizon",
        "mean4",
        "level_28d",
    ]
    row = {
        "service_date": date(2024, 1, 1),
        "counter_id": "a",
        "target_ts": datetime(2024, 1, 1, tzinfo=UTC),
        "horizon": 7,
        "mean4": None,
        "level_28d": 1.5,
    }
    assert contract.violations(pl.DataFrame([row], schema=contract.polars_schema)) == []
    late = pl.DataFrame([row | {"horizon": 8}], schema=contract.polars_schema)
    assert contract.violations(late) == ["horizon is above 7 in 1 rows"]
