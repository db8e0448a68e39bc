"""Every rule of every suite: kept by good data, broken by one deliberate fault."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from bike_assets.checks import expectations
from bike_assets.checks.expectations import (
    MAX_FAILING_ROWS,
    ExpectationError,
    FailedExpectation,
    Rule,
    Suite,
    SuiteResult,
    cleaned_counts_suite,
    counter_health_suite,
    features_suite,
    filled_counts_suite,
    predictions_suite,
    raw_counts_suite,
    run_suite,
)
from bike_assets.core.contracts import (
    CLEANED_COUNTS,
    COUNTER_HEALTH,
    FILLED_COUNTS,
    PREDICTIONS,
    RAW_COUNTS,
    features_contract,
)

DAY = date(2024, 1, 10)
FEATURES = ("mean4", "level_28d")


def hours(days: int, counters: int, horizons: int = 1) -> pl.DataFrame:
    """One row a counter, day, hour and horizon, with the time columns the tables share."""
    rows = [
        (DAY + timedelta(days=d), f"c{c}", hour, h + 1)
        for c in range(counters)
        for d in range(days)
        for h in range(horizons)
        for hour in range(24)
    ]
    frame = pl.DataFrame(rows, schema=["service_date", "counter_id", "local_hour", "horizon"], orient="row")
    start = pl.col("service_date").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    ahead = pl.duration(days=pl.col("horizon") - 1, hours="local_hour")
    counts = 20 + 10 * pl.col("local_hour") % 50
    return frame.with_columns(ts_utc=start + ahead, target_ts=start + ahead, hourly_count=counts)


def good_raw() -> pl.DataFrame:
    now = datetime(2024, 1, 20, tzinfo=UTC)
    return RAW_COUNTS.conform(
        hours(4, 3).with_columns(
            counter_name=pl.lit("c"), site_id=pl.lit(None), site_name=pl.lit(None), latitude=pl.lit(48.8),
            longitude=pl.lit(2.3), installation_date=pl.lit(None), source=pl.lit("simulator"),
            source_file=pl.lit("f"), published_until=pl.lit(now), is_stray=pl.lit(False),
            ingested_at=pl.lit(now), content_hash=pl.lit("x"),
        )
    )  # fmt: skip


def good_cleaned() -> pl.DataFrame:
    return CLEANED_COUNTS.conform(
        hours(4, 3).with_columns(
            published_count=pl.col("hourly_count"), is_merged_hour=pl.lit(False), is_outage=pl.lit(False),
            is_spike=pl.lit(False), is_stuck=pl.lit(False), revisions=pl.lit(1),
            published_until=pl.lit(datetime(2024, 1, 20, tzinfo=UTC)),
        )
    )  # fmt: skip


def good_health() -> pl.DataFrame:
    return COUNTER_HEALTH.conform(
        hours(4, 5).filter(pl.col("local_hour") == 0).with_columns(
            state=pl.lit("alive"), known_hours=pl.lit(24), silent_days=pl.lit(0), daily_count=pl.lit(500.0),
            expected_count=pl.lit(500.0), change=pl.lit(1.0), deviation=pl.lit(0.0), stuck_hours=pl.lit(1),
            reason=pl.lit("as usual"),
        )
    )  # fmt: skip


def good_filled() -> pl.DataFrame:
    return FILLED_COUNTS.conform(
        hours(4, 3).with_columns(count_filled=pl.col("hourly_count"), fill_method=pl.lit("published"))
    )


def good_features() -> pl.DataFrame:
    base = hours(2, 2, horizons=7).with_columns(mean4=pl.col("hourly_count"), level_28d=pl.lit(30))
    return features_contract(FEATURES).conform(base)


def good_predictions() -> pl.DataFrame:
    count = pl.col("hourly_count")
    return PREDICTIONS.conform(
        hours(2, 2, horizons=7).with_columns(
            forecast=count, lower_80=count - 5, upper_80=count + 5, lower_90=count - 9, upper_90=count + 9,
            mean4=count, seasonal_naive=count, basis=pl.lit("history"), model_name=pl.lit("m"),
            model_version=pl.lit("1"), run_id=pl.lit("r"),
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Table:
    suite: Suite
    good: Callable[[], pl.DataFrame]


TABLES = {
    "raw_counts": Table(raw_counts_suite(), good_raw),
    "cleaned_counts": Table(cleaned_counts_suite(), good_cleaned),
    "counter_health": Table(counter_health_suite(), good_health),
    "filled_counts": Table(filled_counts_suite(), good_filled),
    "features": Table(features_suite(FEATURES), good_features),
    "predictions": Table(predictions_suite(), good_predictions),
}


def where(name: str, value: object, condition: pl.Expr) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Put a value into some rows of a column and keep its type."""
    return lambda frame: frame.with_columns(
        pl.when(condition).then(pl.lit(value)).otherwise(pl.col(name)).cast(frame.schema[name]).alias(name)
    )


FIRST = pl.int_range(pl.len()) == 0
HOUR = pl.col("local_hour_")  # every table has it here
FIRST_DAY = pl.col("service_date") == DAY

FAULTS: list[tuple[str, str, Callable[[pl.DataFrame], pl.DataFrame]]] = [
    ("raw_counts", "at least half of the usual rows", lambda f: f.filter(~FIRST_DAY | (HOUR < 9))),
    ("raw_counts", "half of its hours to three times", lambda f: f.filter(HOUR < 11)),
    ("raw_counts", "mean count is above 0", where("hourly_count", 0, FIRST_DAY)),
    ("raw_counts", "80 % of their hours", where("hourly_count", None, (pl.col("counter_id") == "c0") & (HOUR < 6))),
    ("raw_counts", "10 % of a day's counts are null", where("hourly_count", None, HOUR < 3)),
    ("raw_counts", "40 % of a day's counts are zero", where("hourly_count", 0, FIRST_DAY & (HOUR < 10))),
    ("raw_counts", "lies between 0 and 20,000", where("hourly_count", 20_001, FIRST)),
    ("raw_counts", "lies between 0 and 20,000", where("hourly_count", -1, FIRST)),
    ("raw_counts", "NaN or infinite", where("hourly_count", float("nan"), FIRST)),
    ("raw_counts", "at least -90 and at most 90", where("latitude", 91, FIRST)),
    ("raw_counts", "at least -180 and at most 180", where("longitude", -181, FIRST)),
    ("cleaned_counts", "is at least 0", where("hourly_count", -1, FIRST)),
    ("predictions", "at least 1 and at most 7", where("horizon", 0, FIRST)),
    ("raw_counts", "has rows", lambda f: f.head(0)),
    ("cleaned_counts", "identify one row", lambda f: pl.concat([f, f.head(1)])),
    ("cleaned_counts", "half to all of its hours", lambda f: pl.concat([f, f.filter(FIRST_DAY)])),
    ("cleaned_counts", "half to all of its hours", lambda f: f.filter(~FIRST_DAY | (HOUR < 11))),
    ("cleaned_counts", "40 % of a day's counts are zero", where("hourly_count", 0, FIRST_DAY & (HOUR < 10))),
    ("cleaned_counts", "80 % of their hours", lambda f: f.filter((pl.col("counter_id") != "c0") | (HOUR < 18))),
    ("cleaned_counts", "5 % of a day's hours are stuck", where("is_stuck", True, HOUR < 2)),
    ("cleaned_counts", "times the mean count", lambda f: f.with_columns(hourly_count=pl.col("hourly_count") * 3)),
    ("cleaned_counts", "come at other hours", where("hourly_count", 500, HOUR == 3)),
    ("counter_health", "has rows", lambda f: f.head(0)),
    ("counter_health", "identify one row", lambda f: pl.concat([f, f.head(1)])),
    ("counter_health", "each state is one of", where("state", "asleep", FIRST)),
    ("counter_health", "25 % of the counters are not alive", where("state", "dead", pl.col("counter_id") < "c2")),
    ("counter_health", "at least 0 and at most 24", where("known_hours", 26, FIRST)),
    ("counter_health", "is at least 0", where("change", -0.5, FIRST)),
    ("counter_health", "NaN or infinite", where("deviation", float("nan"), FIRST)),
    ("counter_health", "is never null", where("reason", None, FIRST)),
    ("filled_counts", "has rows", lambda f: f.head(0)),
    ("filled_counts", "identify one row", lambda f: pl.concat([f, f.head(1)])),
    ("filled_counts", "each method is one of", where("fill_method", "guess", FIRST)),
    ("filled_counts", "25 % of a day's hours are estimated", where("fill_method", "profile", HOUR < 7)),
    ("filled_counts", "is at least 0", where("count_filled", -1.0, FIRST)),
    ("filled_counts", "NaN or infinite", where("count_filled", float("inf"), FIRST)),
    ("cleaned_counts", "10 % of a day's counts are null", where("hourly_count", None, HOUR < 3)),
    ("cleaned_counts", "mean count is above 0", where("hourly_count", 0, FIRST_DAY)),
    ("cleaned_counts", "20 % of a day's hours are outages", where("is_outage", True, HOUR < 5)),
    ("cleaned_counts", "2 % of a day's hours are spikes", where("is_spike", True, HOUR == 8)),
    ("cleaned_counts", "lies between 0 and 20,000", where("hourly_count", 20_001, FIRST)),
    ("cleaned_counts", "at least 0 and at most 23", where("local_hour", 24, FIRST)),
    ("cleaned_counts", "at least 1", where("revisions", 0, FIRST)),
    ("cleaned_counts", "has rows", lambda f: f.head(0)),
    ("features", "identify one row", lambda f: pl.concat([f, f.head(1)])),
    ("features", "known in at least half", where("mean4", None, HOUR < 13)),
    ("features", "NaN or infinite", where("level_28d", float("inf"), FIRST)),
    ("features", "NaN or infinite", where("level_28d", float("nan"), FIRST)),
    ("features", "all 7 horizons", lambda f: f.filter(pl.col("horizon") != 4)),
    ("features", "at least 1 and at most 7", where("horizon", 8, pl.col("horizon") == 7)),
    ("features", "has rows", lambda f: f.head(0)),
    ("predictions", "identify one row", lambda f: pl.concat([f, f.head(1)])),
    ("predictions", "is at least 0", where("lower_90", -0.1, FIRST)),
    ("predictions", "NaN or infinite", where("upper_90", float("nan"), FIRST)),
    ("predictions", "lower_90 is at most lower_80", where("lower_80", 1, FIRST)),
    ("predictions", "lower_80 is at most forecast", where("forecast", 12, FIRST)),
    ("predictions", "forecast is at most upper_80", where("forecast", 26, FIRST)),
    ("predictions", "upper_80 is at most upper_90", where("upper_80", 100, FIRST)),
    ("predictions", "all 7 horizons", lambda f: f.filter(~FIRST_DAY | (pl.col("horizon") != 3))),
    ("predictions", "the forecasts of an issue date differ", where("forecast", 20, FIRST_DAY)),
    ("predictions", "has rows", lambda f: f.head(0)),
    *(
        (name, "is never null", where(column, None, FIRST))
        for name, column in [
            ("raw_counts", "counter_id"),
            ("raw_counts", "ts_utc"),
            ("cleaned_counts", "is_outage"),
            ("cleaned_counts", "ts_utc"),
            ("filled_counts", "ts_utc"),
            ("features", "target_ts"),
            ("predictions", "forecast"),
            ("predictions", "run_id"),
        ]
    ),
    *((name, "type of the contract", lambda f: f.cast({"counter_id": pl.Categorical})) for name in TABLES),
    *((name, "type of the contract", lambda f: f.drop("service_date")) for name in TABLES),
    ("features", "type of the contract", lambda f: f.drop("mean4")),
]  # fmt: skip


def run(name: str, fault: Callable[[pl.DataFrame], pl.DataFrame] | None = None) -> SuiteResult:
    table = TABLES[name]
    frame = table.good()
    if fault is not None:
        frame = fault(frame.with_columns(local_hour_=pl.int_range(pl.len()) % 24))
    return run_suite(table.suite, frame, history(table.good()))


def history(good: pl.DataFrame) -> pl.DataFrame:
    """The same days in the three weeks before."""
    return pl.concat(
        good.with_columns(
            pl.col(name) - pl.duration(weeks=weeks)
            for name in ("service_date", "ts_utc")
            if name in good.columns
        )
        for weeks in (1, 2, 3)
    )


@pytest.mark.parametrize("name", list(TABLES))
def test_good_data_keeps_every_rule(name: str) -> None:
    result = run(name)
    assert result.failures == ()
    assert result.passed
    assert (result.evaluated, result.skipped) == (len(TABLES[name].suite.rules), 0)
    assert result.n_rows == TABLES[name].good().height


@pytest.mark.parametrize(
    ("name", "rule", "fault"), FAULTS, ids=[f"{n}-{r}-{i}" for i, (n, r, _) in enumerate(FAULTS)]
)
def test_each_fault_breaks_its_rule(
    name: str, rule: str, fault: Callable[[pl.DataFrame], pl.DataFrame]
) -> None:
    result = run(name, fault)
    assert not result.passed
    assert any(rule in failure.rule for failure in result.failures), [f.line() for f in result.failures]


def test_every_kind_of_rule_has_a_fault_that_breaks_it() -> None:
    for name, table in TABLES.items():
        texts = [rule for suite, rule, _ in FAULTS if suite == name]
        unbroken = {rule.text for rule in table.suite.rules if not any(text in rule.text for text in texts)}
        assert not unbroken, f"{name}: {unbroken}"


def test_a_failure_names_rule_column_rows_and_shows_them() -> None:
    result = run("cleaned_counts", where("hourly_count", 30_000, pl.col("local_hour") == 8))
    failure = next(f for f in result.failures if "20,000" in f.rule)
    assert failure.column == "hourly_count"
    assert failure.n_unexpected == 12
    assert failure.share == pytest.approx(1 / 24)
    assert failure.observed == "12 rows, 4.2 %"
    assert len(failure.sample) == 12
    row = failure.sample[0]
    assert (row["counter_id"], row["hourly_count"]) == ("c0", 30_000)
    assert row["ts_utc"].hour == 8


def test_at_most_twenty_failing_rows_are_kept() -> None:
    result = run("cleaned_counts", where("hourly_count", 30_000, pl.lit(True)))
    failure = next(f for f in result.failures if "20,000" in f.rule)
    assert failure.n_unexpected == 288
    assert len(failure.sample) == 20


def test_a_failing_day_is_shown_with_its_figure() -> None:
    result = run("cleaned_counts", where("is_outage", True, FIRST_DAY))
    (failure,) = result.failures
    assert failure.sample == ({"service_date": DAY, "outage_share": 1.0},)
    assert failure.observed == "1 days, 25.0 %"


def test_both_halves_of_a_repeated_key_are_shown() -> None:
    result = run("cleaned_counts", lambda f: pl.concat([f, f.head(1)]))
    failure = next(f for f in result.failures if f.rule == "identify one row")
    assert failure.n_unexpected == 2
    assert failure.sample[0] == failure.sample[1]


@pytest.mark.parametrize(
    "fault",
    [
        lambda f: pl.concat([f, f.head(1)]),
        where("hourly_count", 30_000, pl.col("local_hour") == 8),
        where("counter_id", None, FIRST),
        where("is_outage", None, pl.lit(True)),
    ],
    ids=["repeated", "implausible", "null", "nothing but null"],
)
def test_in_blocks_as_at_once(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[pl.DataFrame], pl.DataFrame]
) -> None:
    at_once = run("cleaned_counts", fault)
    monkeypatch.setattr(expectations, "BLOCK_ROWS", 100)
    in_blocks = run("cleaned_counts", fault)
    assert not at_once.passed
    assert [shown(failure) for failure in in_blocks.failures] == [
        shown(failure) for failure in at_once.failures
    ]


def shown(failure: FailedExpectation) -> FailedExpectation:
    """The failure; which twenty of many rows are shown may differ."""
    return replace(failure, sample=()) if (failure.n_unexpected or 0) > MAX_FAILING_ROWS else failure


def test_a_rule_that_cannot_be_evaluated_raises_and_is_no_violation() -> None:
    wrong = Rule(
        "ExpectColumnValuesToBeBetween", "x", ("counter_id",), "days",
        {"column": "no_such_figure", "min_value": 0, "max_value": 1},
    )  # fmt: skip
    text = Rule(
        "ExpectColumnValuesToMatchRegex", "looks like a word", ("hourly_count",), "rows",
        {"column": "hourly_count", "regex": "("},
    )  # fmt: skip
    suite = cleaned_counts_suite()
    for rule in (wrong, text):
        with pytest.raises((ExpectationError, KeyError, pl.exceptions.ColumnNotFoundError)) as caught:
            run_suite(Suite("broken", suite.contract, (*suite.rules, rule)), good_cleaned())
        assert isinstance(caught.value, ExpectationError)


def test_rules_without_their_column_are_skipped_but_the_table_fails() -> None:
    result = run("cleaned_counts", lambda f: f.drop("hourly_count"))
    (failure,) = result.failures
    assert failure.column == "hourly_count"
    assert failure.sample == ({"column": "hourly_count", "type": "missing", "expected": "Int64"},)
    assert result.skipped >= 4


def test_a_suite_can_be_named() -> None:
    assert run_suite("cleaned_counts", good_cleaned()).passed
    assert run_suite("raw_counts", good_raw()).suite == "raw_counts"
    assert run_suite("predictions", good_predictions()).passed
    assert not run_suite("features", good_features()).passed  # the model's own inputs are not there
    with pytest.raises(ExpectationError, match="choose one of raw_counts"):
        run_suite("weather", good_raw())  # type: ignore[arg-type]


def test_half_a_million_rows_take_seconds_and_a_needle_is_found() -> None:
    n = 500_000
    counters, times = 100, n // 100
    start = datetime(2023, 1, 1, tzinfo=UTC)
    frame = CLEANED_COUNTS.conform(
        pl.DataFrame({"i": np.arange(n)}).with_columns(
            counter_id=pl.format("1000{}-1000", pl.col("i") // times),
            ts_utc=pl.lit(start) + pl.duration(hours=pl.col("i") % times),
            hourly_count=pl.col("i") % 97, published_count=pl.col("i") % 97, is_merged_hour=False,
            is_outage=False, is_spike=False, is_stuck=False, revisions=1,
            published_until=pl.lit(start),
        ).with_columns(service_date=pl.col("ts_utc").dt.date(), local_hour=pl.col("ts_utc").dt.hour())
    )  # fmt: skip
    assert frame["counter_id"].n_unique() == counters
    assert run_suite("cleaned_counts", frame.head(10)).n_rows == 10  # imports are not measured
    began = time.process_time()
    found = run_suite("cleaned_counts", pl.concat([frame, frame[[123_456]]]))
    assert time.process_time() - began < 8  # a loaded machine; 2 s on a quiet one
    assert "identify one row" in [failure.rule for failure in found.failures]
