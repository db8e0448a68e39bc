"""Data-quality rules: one Great Expectations suite a table, and the runner that answers in plain types.

Belongs here: rules about tables, those that follow from a contract and those that only statistics can hold.
Does not belong here: Dagster's asset checks (they call `run_suite`), contracts
(`bike_assets.core.contracts`), drift.

Great Expectations sees pandas batches only; a rule names the view of the table it runs on:

- `rows`: every row (strings as integer codes, time as integers: uniqueness and nulls survive)
- `columns`: one row a contract column: its type, the type it should have, its share of nulls, its values that
  are not finite
- `days`: one row a `service_date`: its volume, shares and means, beside what was usual before
- `counters`: one row a counter: how many of its hours are there

The last three keep the rules few: each costs Great Expectations about 10 ms whatever the size of the table. They are
made by `bike_assets.checks.figures`.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import polars as pl
from numpy.typing import NDArray

from bike_assets.checks.figures import column_figures, counter_figures, day_figures
from bike_assets.core.contracts import (
    CLEANED_COUNTS,
    COUNTER_HEALTH,
    FILLED_COUNTS,
    PREDICTIONS,
    RAW_COUNTS,
    TableContract,
    features_contract,
)
from bike_assets.core.errors import PermanentError
from bike_assets.core.health import State
from bike_assets.core.imputation import FillMethod

if TYPE_CHECKING:
    import pandas as pd

View = Literal["columns", "rows", "days", "counters"]
SuiteName = Literal[
    "raw_counts", "cleaned_counts", "counter_health", "filled_counts", "features", "predictions"
]

VIEWS: tuple[View, ...] = get_args(View)
MAX_FAILING_ROWS = 20
BLOCK_ROWS = 2_000_000
"""Rows that are in pandas together, with every column that a rule on single rows reads: memory stays the same for any
table, and so does the cost of a row, as arrays of this size are reused and larger ones fetched from the system anew."""
PLAUSIBLE_HOURLY_COUNT = 20_000
"""No counter of any city counts more bicycles in an hour."""

_IDENTITY = ("column", "service_date", "counter_id", "ts_utc", "target_ts")


class ExpectationError(PermanentError):
    """A rule could not be evaluated: neither kept nor broken."""


@dataclass(frozen=True)
class Rule:
    """One expectation: class and arguments in Great Expectations, its meaning, its view, what it reads."""

    expectation: str
    text: str
    columns: tuple[str, ...]
    view: View
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def column(self) -> str:
        """The columns it is about, in words; `table` for a rule about the whole table."""
        return ", ".join(self.columns) or "table"


@dataclass(frozen=True)
class Suite:
    """The rules of one table and the contract that says which columns they find there."""

    name: str
    contract: TableContract
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class FailedExpectation:
    """A broken rule.

    `n_unexpected` and `share` (0 to 1) count rows of the rule's view, None where the rule is about the
    table as a whole; `observed` is what was found, in words; `sample` holds at most 20 of the failing rows.
    """

    expectation: str
    column: str
    rule: str
    n_unexpected: int | None
    share: float | None
    observed: str
    sample: tuple[dict[str, Any], ...]

    def line(self) -> str:
        """One line for people."""
        return f"{self.column}: {self.rule} ({self.observed})"


@dataclass(frozen=True)
class SuiteResult:
    """What a suite found in a table of `n_rows` rows.

    `skipped` rules had no row or no column of the right type to read; `unread` names them, `kept` those that hold.
    """

    suite: str
    passed: bool
    n_rows: int
    evaluated: int
    skipped: int
    failures: tuple[FailedExpectation, ...]
    kept: tuple[Rule, ...] = ()
    unread: tuple[Rule, ...] = ()


def raw_counts_suite() -> Suite:
    """Rules of raw counts."""
    return Suite(
        "raw_counts",
        RAW_COUNTS,
        (
            *_contract_rules(RAW_COUNTS),
            _not_empty(),
            _day_rule(
                "volume_ratio", 0.5, None, "each day has at least half of the usual rows", reads="counter_id"
            ),
            _day_rule(
                "completeness",
                0.5,
                3.1,
                "each day has half of its hours to three times as many rows a counter: exports overlap",
                reads="counter_id",
            ),
            *_count_rules(),
            _plausible_counts(),
        ),
    )


def cleaned_counts_suite() -> Suite:
    """Rules of cleaned counts. What is usual in Paris: `test_expectations_real.py`."""
    return Suite(
        "cleaned_counts",
        CLEANED_COUNTS,
        (
            *_contract_rules(CLEANED_COUNTS),
            _not_empty(),
            _day_rule(
                "completeness", 0.5, 1, "each day has half to all of its hours a counter", reads="counter_id"
            ),
            *_count_rules(),
            _day_rule(
                "weekday_ratio",
                0.3,
                2.5,
                "each day has 0.3 to 2.5 times the mean count of such weekdays before",
                reads="hourly_count",
            ),
            _day_rule(
                "hour_shift",
                None,
                0.2,
                "at most 20 % of a day's bicycles come at other hours than on such weekdays before",
                reads=("hourly_count", "local_hour"),
            ),
            _day_rule(
                "outage_share", None, 0.20, "at most 20 % of a day's hours are outages", reads="is_outage"
            ),
            _day_rule("spike_share", None, 0.02, "at most 2 % of a day's hours are spikes", reads="is_spike"),
            _day_rule("stuck_share", None, 0.05, "at most 5 % of a day's hours are stuck", reads="is_stuck"),
            _plausible_counts(),
        ),
    )


def counter_health_suite() -> Suite:
    """Rules of counter health."""
    return Suite(
        "counter_health",
        COUNTER_HEALTH,
        (
            *_contract_rules(COUNTER_HEALTH),
            _not_empty(),
            _day_rule(
                "unknown_state_share", None, 0, f"each state is one of {', '.join(State)}", reads="state"
            ),
            _day_rule(
                "unhealthy_share",
                None,
                0.25,
                "at most 25 % of the counters are not alive on a day",
                reads="state",
            ),
        ),
    )


def filled_counts_suite() -> Suite:
    """Rules of filled counts."""
    return Suite(
        "filled_counts",
        FILLED_COUNTS,
        (
            *_contract_rules(FILLED_COUNTS),
            _not_empty(),
            _day_rule(
                "unknown_method_share",
                None,
                0,
                f"each method is one of {', '.join(FillMethod)}",
                reads="fill_method",
            ),
            _day_rule(
                "estimated_share",
                None,
                0.25,
                "at most 25 % of a day's hours are estimated",
                reads="fill_method",
            ),
        ),
    )


def features_suite(feature_columns: Sequence[str]) -> Suite:
    """Rules of features.

    Args:
        feature_columns: names of the model's inputs.
    """
    contract = features_contract(feature_columns)
    complete = Rule(
        "ExpectColumnValuesToBeBetween",
        "each column is known in at least half of the rows",
        (),
        "columns",
        {"column": "null_share", "max_value": 0.5},
    )
    return Suite("features", contract, (*_contract_rules(contract), _not_empty(), _all_horizons(), complete))


def predictions_suite() -> Suite:
    """Rules of predictions."""
    ascending = ("lower_90", "lower_80", "forecast", "upper_80", "upper_90")
    ordered = (
        Rule(
            "ExpectColumnPairValuesAToBeGreaterThanB",
            f"{low} is at most {high}",
            (high, low),
            "rows",
            {"column_A": high, "column_B": low, "or_equal": True},
        )
        for low, high in pairwise(ascending)
    )
    return Suite(
        "predictions",
        PREDICTIONS,
        (
            *_contract_rules(PREDICTIONS),
            _not_empty(),
            *ordered,
            _all_horizons(),
            _day_rule(
                "forecast_deviation", 1e-6, None, "the forecasts of an issue date differ", reads="forecast"
            ),
        ),
    )


def suite_for(name: SuiteName) -> Suite:
    """The suite of a table by its name, with default thresholds.

    Raises:
        ExpectationError: there is no suite of that name.
    """
    if name == "features":
        from bike_assets.core.features import FEATURE_COLUMNS

        return features_suite(FEATURE_COLUMNS)
    builders: dict[str, Callable[[], Suite]] = {
        "raw_counts": raw_counts_suite,
        "cleaned_counts": cleaned_counts_suite,
        "counter_health": counter_health_suite,
        "filled_counts": filled_counts_suite,
        "predictions": predictions_suite,
    }
    if name not in builders:
        choices = ", ".join(get_args(SuiteName))
        raise ExpectationError(f"there is no suite {name}; choose one of {choices}")
    return builders[name]()


def run_suite(
    suite: SuiteName | Suite, frame: pl.DataFrame, history: pl.DataFrame | None = None
) -> SuiteResult:
    """Hold a table against its rules.

    Rules on a column that is missing or of another type are skipped: the rule about types is broken then, and
    the answer is a failure in any case.

    Args:
        suite: the suite, or the name of a table for its default suite.
        frame: the table, or some of its partitions.
        history: rows of the `figures.HISTORY_DAYS` before them, which say what is usual; without, rules that compare
            with earlier days find what they need in the frame, or nothing.

    Raises:
        ExpectationError: a rule could not be evaluated. That is no violation and never counted as one.
    """
    if isinstance(suite, str):
        suite = suite_for(suite)
    usable = _usable_columns(suite.contract, frame)
    runnable = [rule for rule in suite.rules if usable.issuperset(rule.columns)]
    if "service_date" not in usable:
        runnable = [rule for rule in runnable if rule.view not in ("days", "counters")]
    if frame.is_empty():
        runnable = [rule for rule in runnable if not rule.columns]
    failures: dict[int, FailedExpectation] = {}
    for view in VIEWS:
        rules = {index: rule for index, rule in enumerate(runnable) if rule.view == view}
        if rules:
            failures |= _validate(suite.name, rules, _view(view, frame, suite.contract, usable, history))
    return SuiteResult(
        suite=suite.name,
        passed=not failures,
        n_rows=frame.height,
        evaluated=len(runnable),
        skipped=len(suite.rules) - len(runnable),
        failures=tuple(failures[index] for index in sorted(failures)),
        kept=tuple(rule for index, rule in enumerate(runnable) if index not in failures),
        unread=tuple(rule for rule in suite.rules if rule not in runnable),
    )


def _contract_rules(contract: TableContract) -> tuple[Rule, ...]:
    rules = [
        Rule(
            "ExpectColumnPairValuesToBeEqual",
            "each column has the type of the contract",
            (),
            "columns",
            {"column_A": "type", "column_B": "expected"},
        ),
    ]
    if any(column.dtype.is_float() for column in contract.columns):
        rules.append(
            Rule(
                "ExpectColumnValuesToBeBetween",
                "no value is NaN or infinite",
                (),
                "columns",
                {"column": "not_finite", "max_value": 0},
            )
        )
    for column in contract.columns:
        name, low, high = column.name, column.minimum, column.maximum
        if not column.nullable:
            rules.append(
                Rule("ExpectColumnValuesToNotBeNull", "is never null", (name,), "rows", {"column": name})
            )
        if low is not None or high is not None:
            least = "" if low is None else f"at least {low:g}"
            most = "" if high is None else f"at most {high:g}"
            rules.append(_range_rule(name, low, high, f"is {' and '.join(filter(None, (least, most)))}"))
    if contract.key:
        rules.append(
            Rule(
                "ExpectCompoundColumnsToBeUnique",
                "identify one row",
                contract.key,
                "rows",
                {"column_list": list(contract.key)},
            )
        )
    return tuple(rules)


def _range_rule(name: str, low: float | None, high: float | None, text: str) -> Rule:
    return Rule(
        "ExpectColumnValuesToBeBetween",
        text,
        (name,),
        "rows",
        {"column": name, "min_value": low, "max_value": high},
    )


def _count_rules() -> tuple[Rule, ...]:
    """What counts of a city are like, before and after cleaning."""
    return (
        _day_rule("null_share", None, 0.10, "at most 10 % of a day's counts are null", reads="hourly_count"),
        _day_rule("zero_share", None, 0.40, "at most 40 % of a day's counts are zero", reads="hourly_count"),
        _day_rule("mean_count", 0.1, None, "each day's mean count is above 0", reads="hourly_count"),
        Rule(
            "ExpectColumnValuesToBeBetween",
            "at least 80 % of the counters have at least 80 % of their hours",
            ("counter_id", "ts_utc", "hourly_count"),
            "counters",
            {"column": "known_share", "min_value": 0.8, "mostly": 0.8},
        ),
    )


def _plausible_counts() -> Rule:
    return _range_rule(
        "hourly_count",
        0,
        PLAUSIBLE_HOURLY_COUNT,
        f"lies between 0 and {PLAUSIBLE_HOURLY_COUNT:,} bicycles an hour",
    )


def _not_empty() -> Rule:
    return Rule("ExpectTableRowCountToBeBetween", "has rows", (), "rows", {"min_value": 1})


def _all_horizons() -> Rule:
    return _day_rule("horizons", 7, 7, "each issue date has all 7 horizons", reads="horizon")


def _day_rule(
    figure: str, low: float | None, high: float | None, text: str, *, reads: str | tuple[str, ...]
) -> Rule:
    return Rule(
        "ExpectColumnValuesToBeBetween",
        text,
        (reads,) if isinstance(reads, str) else reads,
        "days",
        {"column": figure, "min_value": low, "max_value": high},
    )


def _usable_columns(contract: TableContract, frame: pl.DataFrame) -> frozenset[str]:
    return frozenset(
        column.name
        for column in contract.columns
        if column.name in frame.columns and frame.schema[column.name] == column.dtype
    )


def _view(
    view: View,
    frame: pl.DataFrame,
    contract: TableContract,
    usable: frozenset[str],
    history: pl.DataFrame | None,
) -> pl.DataFrame:
    match view:
        case "columns":
            return column_figures(frame, contract)
        case "rows":
            return frame
        case "days":
            return day_figures(frame, usable, history)
        case "counters":
            return counter_figures(frame, history)


def _pandas(frame: pl.DataFrame, columns: Iterable[str]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame({name: _plain(frame.get_column(name)) for name in columns}, index=range(frame.height))


def _plain(series: pl.Series) -> NDArray[Any]:
    """NumPy values on which rules are fast: text as codes, time as integers, all of 64 bits.

    Great Expectations compares 64-bit numbers as arrays and any other value by value. NaN becomes infinity, because
    pandas knows null as NaN.
    """
    if series.dtype == pl.String:
        series = series.cast(pl.Categorical)
    elif series.dtype.is_float():
        series = pl.select(pl.when(series.is_nan()).then(float("inf")).otherwise(series)).to_series()
    series = series.to_physical()
    return series.cast(pl.Float64 if series.dtype.is_float() else pl.Int64).to_numpy()


def _validate(suite: str, rules: Mapping[int, Rule], seen: pl.DataFrame) -> dict[int, FailedExpectation]:
    """The rules of one view that are broken, and where."""
    if any(rule.view != "rows" for rule in rules.values()):
        broken = _broken(suite, rules, seen.to_pandas())
    else:
        # Without a column it is a rule about the table, which no part of the rows can answer.
        broken = _broken(
            suite, {index: rule for index, rule in rules.items() if not rule.columns}, _pandas(seen, ())
        )
        single = {index: rule for index, rule in rules.items() if rule.columns}
        columns = sorted({name for rule in single.values() for name in _argument_columns(rule)})
        key = [name for rule in single.values() for name in rule.arguments.get("column_list", ())]
        for rows in _blocks(seen, key):
            for index, found in _broken(suite, single, _pandas(seen.select(columns)[rows], columns)).items():
                broken[index] = _with_block(broken.get(index), found, rows) | {"element_count": seen.height}
    return {index: _failure(rules[index], found, seen) for index, found in broken.items()}


def _blocks(frame: pl.DataFrame, key: Sequence[str]) -> Iterator[pl.Series]:
    """Row numbers of about `BLOCK_ROWS` rows at a time; rows of one key are in one block."""
    n = -(-frame.height // BLOCK_ROWS)
    number = pl.int_range(pl.len())
    if n > 1:
        block = pl.struct(key).hash() % n if key else number // BLOCK_ROWS
        part = frame.select(block).to_series()
        for i in range(n):
            yield (part == i).arg_true()
    elif n:
        yield frame.select(number).to_series()


def _with_block(
    before: Mapping[str, Any] | None, found: Mapping[str, Any], rows: pl.Series
) -> dict[str, Any]:
    """What was found in the blocks before, and in the one of these rows of the table."""
    known = before or {"unexpected_count": 0, "partial_unexpected_index_list": []}
    here = [int(rows[int(row)]) for row in found.get("partial_unexpected_index_list") or []]
    return {
        "unexpected_count": known["unexpected_count"] + int(found["unexpected_count"]),
        "partial_unexpected_index_list": sorted(known["partial_unexpected_index_list"] + here),
    }


def _broken(suite: str, rules: Mapping[int, Rule], batch: "pd.DataFrame") -> dict[int, Mapping[str, Any]]:
    """The rules that the batch breaks, and what Great Expectations says of each."""
    broken = {}
    for result in _great_expectations(batch, rules) if rules else ():
        index = int(result.expectation_config.meta["rule"])
        _raise_if_not_evaluated(suite, rules[index], result.exception_info)
        if not result.success:
            broken[index] = result.result
    return broken


def _great_expectations(batch: "pd.DataFrame", rules: Mapping[int, Rule]) -> list[Any]:
    with warnings.catch_warnings():
        # Great Expectations and what it imports use old names of their own; nothing a user could do about it.
        warnings.simplefilter("ignore", DeprecationWarning)
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        asset = context.data_sources.add_pandas("frame").add_dataframe_asset("table")
        expectations = [
            getattr(gx.expectations, rule.expectation)(**rule.arguments, meta={"rule": index})
            for index, rule in rules.items()
        ]
        answer = (
            asset.add_batch_definition_whole_dataframe("all")
            .get_batch({"dataframe": batch})
            .validate(
                gx.ExpectationSuite("rules", expectations=expectations),
                result_format={"result_format": "SUMMARY", "partial_unexpected_count": MAX_FAILING_ROWS},
            )
        )
    if len(answer.results) != len(rules):
        raise ExpectationError(f"Great Expectations answered {len(answer.results)} of {len(rules)} rules")
    return list(answer.results)


def _argument_columns(rule: Rule) -> list[str]:
    arguments = rule.arguments
    named = [arguments[key] for key in ("column", "column_A", "column_B") if key in arguments]
    return [*named, *arguments.get("column_list", [])]


def _raise_if_not_evaluated(suite: str, rule: Rule, info: Mapping[str, Any] | None) -> None:
    # An error also stands as success=False, either flat or once a metric.
    entries = [info or {}, *(value for value in (info or {}).values() if isinstance(value, Mapping))]
    for entry in entries:
        if entry.get("raised_exception"):
            message = str(entry.get("exception_message") or "no message").splitlines()[0]
            raise ExpectationError(
                f"suite {suite}: the rule that {rule.column} {rule.text} could not be evaluated: {message}"
            )


def _failure(rule: Rule, result: Mapping[str, Any], seen: pl.DataFrame) -> FailedExpectation:
    rows = [int(row) for row in result.get("partial_unexpected_index_list") or []][:MAX_FAILING_ROWS]
    shown = dict.fromkeys((*(name for name in _IDENTITY if name in seen.columns), *_argument_columns(rule)))
    sample = seen[rows, list(shown)] if rows else seen.clear()
    n_unexpected = share = None
    if "element_count" in result:
        n_unexpected = int(result["unexpected_count"])
        share = n_unexpected / max(int(result["element_count"]), 1)
        observed = f"{n_unexpected:,} {rule.view}, {100 * share:.1f} %"
    elif result.get("partial_missing_list") or result.get("partial_unexpected_list"):
        observed = (
            f"missing {list(result.get('partial_missing_list') or [])}, "
            f"unexpected {list(result.get('partial_unexpected_list') or [])}"
        )
    else:
        observed = f"found {result.get('observed_value')}"
    return FailedExpectation(
        expectation=rule.expectation,
        column=", ".join(sample["column"]) if rule.view == "columns" else rule.column,
        rule=rule.text,
        n_unexpected=n_unexpected,
        share=share,
        observed=observed,
        sample=tuple(sample.to_dicts()),
    )
