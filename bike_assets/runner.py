"""Materialises assets in this process, as the CLI and the demo do: same definitions, same instance as the UI.

Belongs here: starting a run over partitions and turning its outcome into numbers and errors. Does not belong
here: what is run, and in which order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from bike_assets.assets.dbt_models import DESCRIBING_MODELS
from bike_assets.assets.forecasting import newest_day
from bike_assets.assets.ingestion import newer_days
from bike_assets.assets.metadata import fault_lines
from bike_assets.core.errors import BikeError, PermanentError
from bike_assets.jobs import CLEANED
from bike_assets.recovery import COMMAND_TAG
from bike_assets.resources.warehouse import Warehouse
from bike_assets.settings import Settings


@dataclass
class Outcome:
    """What runs did: seconds by asset, and checks by result."""

    seconds: dict[str, float] = field(default_factory=dict)
    passed: int = 0
    warned: int = 0
    failed: int = 0
    faults: tuple[str, ...] = ()
    """What the source said was wrong with its input, a line each."""
    metadata: dict[str, Mapping[str, Any]] = field(default_factory=dict)


def materialize(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    assets: Sequence[str],
    *,
    days: tuple[date, date] | None = None,
    config: Mapping[str, Any] | None = None,
    outcome: Outcome | None = None,
) -> Outcome:
    """Materialise assets with their checks, over a range of partitions in one run where one is given.

    Args:
        definitions: what `build_defs` made.
        instance: where the run is recorded.
        assets: names of assets; Dagster puts them in order.
        days: first and last partition, both included.
        config: run configuration by asset name.
        outcome: earlier runs' outcome, to which this one is added.

    Raises:
        PermanentError: there is no such asset, or a step failed; the message is the step's own, in one line.
    """
    outcome = outcome or Outcome()
    repository = definitions.get_repository_def()
    known = {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()}
    if unknown := [name for name in assets if name not in known]:
        raise PermanentError(
            f"no asset is called {', '.join(unknown)}; choose from {', '.join(sorted(known))}"
        )
    tags = {COMMAND_TAG: "yes"}
    if days:
        tags |= {
            ASSET_PARTITION_RANGE_START_TAG: days[0].isoformat(),
            ASSET_PARTITION_RANGE_END_TAG: days[1].isoformat(),
        }
    result = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(name) for name in assets],
        tags=tags,
        run_config={
            "ops": {name: {"config": dict(values)} for name, values in (config or {}).items()},
            # The event log keeps everything; the terminal is for people.
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
        raise_on_error=False,
    )
    _record(result, outcome)
    for event in result.all_events:
        if event.is_step_failure:
            raise PermanentError(f"{event.step_key}: {root_cause(event.step_failure_data.error)}")
    if not result.success:
        raise PermanentError(f"the run of {', '.join(assets)} failed; see run {result.run_id} in the UI")
    return outcome


def run_job(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    job: str,
    config: Mapping[str, Mapping[str, Any]],
) -> Mapping[str, Any]:
    """Run a job of one step in this process.

    Args:
        definitions: what `build_defs` made.
        instance: where the run is recorded.
        job: its name.
        config: configuration by op.

    Returns:
        The metadata of the step's output.

    Raises:
        PermanentError: the step failed; the message is its own, in one line.
    """
    result = definitions.resolve_job_def(job).execute_in_process(
        instance=instance,
        tags={COMMAND_TAG: "yes"},
        run_config={
            "ops": {name: {"config": dict(values)} for name, values in config.items()},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
        raise_on_error=False,
    )
    found: Mapping[str, Any] = {}
    for event in result.all_events:
        if event.is_step_failure:
            raise PermanentError(f"{job}: {root_cause(event.step_failure_data.error)}")
        if event.is_successful_output:
            found = event.step_output_data.metadata
    if not result.success:
        raise PermanentError(f"the run of {job} failed; see run {result.run_id} in the UI")
    return found


def decide_and_retrain(
    settings: Settings,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    order: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, str]:
    """Decide on the day after the newest counts whether to retrain, and train where that is the answer.

    Args:
        settings: the home.
        definitions: what `build_defs` made of them.
        instance: where the runs are recorded.
        order: configuration of `retraining_decision`.
        say: is told what comes next.

    Returns:
        `decision` and `reasons`, and where a model was trained `challenger`, `verdict` and `champion`.

    Raises:
        PermanentError: a step failed.
    """
    today = newest_day(Warehouse.from_settings(settings)) + timedelta(days=1)
    # A person's order needs no report.
    for name in ("retraining_decision",) if order.get("force") else ("drift_report", "retraining_decision"):
        say(f"{name}: {today}")
        config = {name: order} if name == "retraining_decision" else None
        outcome = materialize(definitions, instance, [name], days=(today, today), config=config)
    decided = outcome.metadata["retraining_decision"]
    result = {name: f"{decided[name].value}" for name in ("decision", "reasons")}
    if decided["retrain"].value:
        say("trained_model, champion")
        made = materialize(definitions, instance, ["trained_model", "champion"]).metadata["champion"]
        result |= {
            "verdict" if name == "decision" else name: f"{made[name].value}"
            for name in ("challenger", "decision", "champion")
        }
    return result


def ingest(
    settings: Settings,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    days: tuple[date, date],
    say: Callable[[str], None],
) -> Outcome:
    """Fetch and clean the counts of a range of days, describe the counters, and fetch the weather.

    Args:
        settings: the home.
        definitions: what `build_defs` made of them.
        instance: where the runs are recorded.
        days: first and last local day.
        say: is told what comes next, and what is wrong with the input.

    Raises:
        PermanentError: a step failed.
    """
    counted = ["raw_counts", *CLEANED]
    say(f"{', '.join(counted)}: {days[0]} to {days[1]}")
    outcome = materialize(definitions, instance, counted, days=days)
    for fault in outcome.faults:
        say(fault)
    # Counts of earlier days than the home held until now: flags of the days after them look back on these.
    if after := newer_days(Warehouse.from_settings(settings), days[1]):
        materialize(definitions, instance, CLEANED, days=after, outcome=outcome)
    materialize(definitions, instance, [*DESCRIBING_MODELS], outcome=outcome)
    materialize_weather(settings, definitions, instance, days, outcome=outcome, progress=say)
    return outcome


def materialize_weather(
    settings: Settings,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    days: tuple[date, date],
    *,
    outcome: Outcome,
    progress: Callable[[str], None],
) -> None:
    """The weather of some days, and the forecast issued on the day after them; told, not raised, where there is none.

    Args:
        settings: the source of weather.
        definitions: what `build_defs` made of the settings.
        instance: where the run is recorded.
        days: first and last local day.
        outcome: to which the run is added.
        progress: is told what comes next, and why there is no weather.
    """
    if settings.weather_source == "none":
        return
    from bike_assets.partitions import weather_days  # Warns of beta options, which a session keeps quiet.

    newest = weather_days(settings).get_last_partition_key()
    last = days[1] + timedelta(days=1)
    days = (days[0], min(last, date.fromisoformat(newest)) if newest else last)
    progress(f"raw_weather: {days[0]} to {days[1]}")
    try:
        materialize(definitions, instance, ["raw_weather"], days=days, outcome=outcome)
    except BikeError as error:
        progress(f"no weather: {error}; everything else works without it")


def _record(result: dg.ExecuteInProcessResult, outcome: Outcome) -> None:
    for event in result.all_events:
        if event.is_step_success and event.step_key:
            name = event.step_key.removeprefix("dbt_")
            milliseconds = event.step_success_data.duration_ms
            outcome.seconds[name] = outcome.seconds.get(name, 0.0) + milliseconds / 1000
    for check in result.get_asset_check_evaluations():
        if check.passed:
            outcome.passed += 1
        elif check.severity == dg.AssetCheckSeverity.WARN:
            outcome.warned += 1
        else:
            outcome.failed += 1
    for event in result.get_asset_materialization_events():
        materialization = event.materialization
        outcome.metadata[materialization.asset_key.to_user_string()] = materialization.metadata
    faults = outcome.metadata.get("raw_counts", {}).get("faults")
    if faults is not None:
        outcome.faults = fault_lines(faults.value)


def root_cause(error: Any) -> str:
    """What a step's error says in one line: the outermost of our own messages, without its type, else the innermost."""
    text = "failed without a message"
    ours = [kind.__name__ for kind in _subclasses(BikeError)] + ["dagster._core.definitions.events.Failure"]
    while error is not None:
        text = " ".join(str(error.message).split())
        for kind in ours:
            marker = f"{kind}: "
            if text.startswith(marker) or f".{marker}" in text[:120]:
                return text.split(marker, 1)[1]
        error = error.cause
    return text


def _subclasses(kind: type) -> list[type]:
    return [kind, *(found for child in kind.__subclasses__() for found in _subclasses(child))]
