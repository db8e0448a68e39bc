"""Running assets in this process: outcomes add up, and a failure is the step's own message in one line."""

from collections.abc import Iterator
from datetime import date
from typing import Any

import dagster as dg
import pytest

from bike_assets.core.errors import ContractError, PermanentError
from bike_assets.partitions import service_days, window
from bike_assets.runner import Outcome, materialize
from bike_assets_tests.tables import BETA_BACKFILL_POLICY

pytestmark = BETA_BACKFILL_POLICY

PARTITIONS = service_days(date(2024, 1, 1))
RANGE = (date(2024, 2, 1), date(2024, 2, 29))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def graph(error: BaseException | None = None) -> dg.Definitions:
    """Two assets in a row and three checks; `lower` raises `error`."""

    class Limits(dg.Config):
        size: int = 1

    @dg.asset(partitions_def=PARTITIONS, backfill_policy=dg.BackfillPolicy.single_run())
    def upper(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        first, last = window(context)
        return dg.MaterializeResult(metadata={"window": f"{first} {last}"})

    @dg.asset(deps=[upper])
    def lower(config: Limits) -> dg.MaterializeResult:
        if error is not None:
            raise error
        return dg.MaterializeResult(metadata={"size": config.size})

    def check(name: str, passed: bool, severity: dg.AssetCheckSeverity) -> dg.AssetChecksDefinition:
        @dg.asset_check(asset=lower, name=name)
        def judge() -> dg.AssetCheckResult:
            return dg.AssetCheckResult(passed=passed, severity=severity)

        return judge

    return dg.Definitions(
        assets=[upper, lower],
        asset_checks=[
            check("good", True, dg.AssetCheckSeverity.WARN),
            check("fine", True, dg.AssetCheckSeverity.ERROR),
            check("doubtful", False, dg.AssetCheckSeverity.WARN),
            check("bad", False, dg.AssetCheckSeverity.ERROR),
        ],
    )


def test_checks_are_counted_by_result_and_seconds_by_asset(instance: dg.DagsterInstance) -> None:
    outcome = materialize(graph(), instance, ["lower"])

    assert (outcome.passed, outcome.warned, outcome.failed) == (2, 1, 1)
    assert outcome.seconds["lower"] > 0
    assert "upper" not in outcome.seconds


def test_a_range_is_one_run_and_its_metadata_is_kept(instance: dg.DagsterInstance) -> None:
    outcome = materialize(graph(), instance, ["upper"], days=RANGE)

    assert outcome.metadata["upper"]["window"].value == "2024-02-01 2024-02-29"
    assert instance.get_runs_count() == 1
    materialised = instance.get_materialized_partitions(dg.AssetKey("upper"))
    assert len(materialised) == 29
    assert {min(materialised), max(materialised)} == {"2024-02-01", "2024-02-29"}


def test_outcomes_add_up(instance: dg.DagsterInstance) -> None:
    outcome = Outcome()
    materialize(graph(), instance, ["upper"], days=RANGE, outcome=outcome)
    once = outcome.seconds["upper"]

    assert materialize(graph(), instance, ["upper"], days=RANGE, outcome=outcome) is outcome
    assert outcome.seconds["upper"] > once
    materialize(graph(), instance, ["lower"], outcome=outcome)
    materialize(graph(), instance, ["lower"], outcome=outcome)
    assert (outcome.passed, outcome.warned, outcome.failed) == (4, 2, 2)


def test_configuration_reaches_its_asset(instance: dg.DagsterInstance) -> None:
    outcome = materialize(graph(), instance, ["lower"], config={"lower": {"size": 7}})

    assert outcome.metadata["lower"]["size"].value == 7


def test_an_unknown_asset_is_refused_with_the_choices_before_anything_runs(
    instance: dg.DagsterInstance,
) -> None:
    with pytest.raises(PermanentError) as caught:
        materialize(graph(), instance, ["upper", "uper", "x"])

    assert str(caught.value) == "no asset is called uper, x; choose from lower, upper"
    assert instance.get_runs_count() == 0


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermanentError("counts are missing; ingest first"), "lower: counts are missing; ingest first"),
        (ContractError("s.t: column x is missing"), "lower: s.t: column x is missing"),
        (dg.Failure("no truth yet; wait", allow_retries=False), "lower: no truth yet; wait"),
        (ValueError("of\n  several lines"), "lower: ValueError: of several lines"),
    ],
)
def test_a_failing_step_ends_in_its_own_message_in_one_line(
    instance: dg.DagsterInstance, error: Exception, text: str
) -> None:
    with pytest.raises(PermanentError) as caught:
        materialize(graph(error), instance, ["lower"])

    assert str(caught.value) == text


def test_the_cause_stands_and_not_what_it_was_wrapped_in(instance: dg.DagsterInstance) -> None:
    outer = RuntimeError("something went wrong")
    outer.__cause__ = PermanentError("the file is not there; give another")

    with pytest.raises(PermanentError) as caught:
        materialize(graph(outer), instance, ["lower"])

    assert str(caught.value) == "lower: the file is not there; give another"


def test_a_failure_is_recorded_where_the_ui_shows_it(instance: dg.DagsterInstance) -> None:
    with pytest.raises(PermanentError):
        materialize(graph(PermanentError("no")), instance, ["lower"])

    (run,) = instance.get_runs()
    assert run.status is dg.DagsterRunStatus.FAILURE


def test_the_terminal_stays_quiet(instance: dg.DagsterInstance, capfd: Any) -> None:
    materialize(graph(), instance, ["lower"])

    assert capfd.readouterr() == ("", "")
