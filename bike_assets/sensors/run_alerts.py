"""What a run that ended has to tell: itself, its checks, and what it made.

Belongs here: reading alerts out of a run's events. Does not belong here: which of them are sent, and when
(`bike_assets.sensors.alerts`), and their words (`bike_assets.core.alerts`).

A run is read once, when it is over. Its failed checks are then told beside what it made, and not at all where the run
failed, for then the run's own message says why. Dagster's check events cannot be followed across runs on a laptop:
its SQLite log keeps a file a run.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
    WILL_RETRY_TAG,
)

from bike_assets.assets.counter_health import OPEN_INCIDENTS
from bike_assets.core import alerts
from bike_assets.core.alerts import COUNTER, Alert, Kind, counter_incident
from bike_assets.core.retraining import RetrainingPolicy

Event = dg.DagsterEventType

_ENDED: Final[tuple[Literal[Event.RUN_SUCCESS], Literal[Event.RUN_FAILURE]]] = (
    Event.RUN_SUCCESS,
    Event.RUN_FAILURE,
)
_READ: Final = {
    Event.ASSET_MATERIALIZATION_PLANNED,
    Event.ASSET_MATERIALIZATION,
    Event.ASSET_CHECK_EVALUATION,
    Event.STEP_FAILURE,
}

FRESHNESS: Final = "raw_counts.freshness"
SKILL: Final = "forecast_accuracy.beats_mean_of_four_weeks"
COUNTERS_ALIVE: Final = "counter_health.incidents"

_SHOWN: Final = 500

_OF_OURS: Final = re.compile(r"^(bike_assets\.core\.errors\.\w+|dagster\.\S+\.Failure): ")
"""Errors whose words are written for people; of others the type is worth reading."""

_EXPERIMENT_SCORES: Final = (("Effect", "effect"), ("Interval", "interval"), ("Days", "days"))


def newest_ending(instance: dg.DagsterInstance) -> int:
    """Storage id of the newest event with which a run ended, 0 where there is none."""
    found = [
        record.storage_id
        for event in _ENDED
        for record in instance.fetch_run_status_changes(event, limit=1, ascending=False).records
    ]
    return max(found, default=0)


def endings(instance: dg.DagsterInstance, after: int, limit: int) -> list[tuple[int, str]]:
    """Storage ids and runs of the oldest `limit` events with which runs ended after an event, in order."""
    found = [
        (record.storage_id, record.event_log_entry.run_id)
        for event in _ENDED
        for record in instance.fetch_run_status_changes(
            dg.RunStatusChangeRecordsFilter(event_type=event, after_storage_id=after),
            limit=limit,
            ascending=True,
        ).records
    ]
    # The oldest of both kinds together: what lies behind them is read the next time.
    return sorted(found)[:limit]


def alerts_of(
    instance: dg.DagsterInstance,
    run_id: str,
    open_now: Iterable[str],
    *,
    ui_url: str,
    policy: RetrainingPolicy,
    freshness: bool,
) -> list[Alert]:
    """Everything a run has to tell, in the order in which it matters.

    Args:
        instance: where the run is kept.
        run_id: a run that ended; one that is deleted meanwhile tells nothing.
        open_now: incidents that were told and are not over.
        ui_url: where people open Dagster.
        policy: says which drift is worth a word.
        freshness: whether the age of the newest count is told; not where a sensor watches it by the clock.
    """
    record = instance.get_run_record_by_id(run_id)
    if record is None:
        return []
    run = record.dagster_run
    if run.tags.get(WILL_RETRY_TAG) == "true":
        return []  # Dagster starts it again by itself, and the last attempt tells.
    url = f"{ui_url.rstrip('/')}/runs/{run_id}"
    events = instance.all_logs(run_id, of_type=_READ)
    planned = sorted({key for event in events if (key := _planned(event))})
    made = _materialisations(events)
    name = _name(run, planned)
    found: list[Alert] = []
    if run.status == dg.DagsterRunStatus.FAILURE:
        found.append(alerts.run_failed(name, planned, _error(events), _days(run), url))
    else:
        found.append(alerts.over(Kind.RUN_FAILED, f"run:{name}", f"{name} runs again", url=url))
        found += _successes(run, made, record.start_time, record.end_time, name, url)
    if health := made.get("counter_health"):
        found += _counters(health, open_now)
    if report := made.get("drift_report"):
        found += _drift(report, url, policy)
    if decision := made.get("retraining_decision"):
        found += _performance(decision, policy)
    if experiment := made.get("experiment_report"):
        found += _experiment(experiment)
    found += _checks(events, url, failed=run.status == dg.DagsterRunStatus.FAILURE, freshness=freshness)
    return found


def _name(run: dg.DagsterRun, planned: Sequence[str]) -> str:
    """The job; of a run without one, what it was to make."""
    if not run.job_name.startswith("__"):
        return run.job_name
    shown = ", ".join(planned[:4])
    return f"{shown} and {len(planned) - 4} more" if len(planned) > 4 else shown or "a run without assets"


def _days(run: dg.DagsterRun) -> str:
    first = run.tags.get(ASSET_PARTITION_RANGE_START_TAG) or run.tags.get(PARTITION_NAME_TAG) or ""
    last = run.tags.get(ASSET_PARTITION_RANGE_END_TAG) or first
    return first if first == last else f"{first} to {last}"


def _planned(event: dg.EventLogEntry) -> str | None:
    found = event.dagster_event
    if found is None or not found.is_asset_materialization_planned or found.asset_key is None:
        return None
    return found.asset_key.to_user_string()


def _materialisations(events: Sequence[dg.EventLogEntry]) -> dict[str, Mapping[str, Any]]:
    """Asset → metadata of its last materialisation in the run, as plain values."""
    made: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if materialisation := event.asset_materialization:
            values = {name: found.value for name, found in materialisation.metadata.items()}
            values["partition"] = materialisation.partition
            made[materialisation.asset_key.to_user_string()] = values
    return made


def _error(events: Sequence[dg.EventLogEntry]) -> str:
    """What was raised first, in one line: neither Dagster's words about it nor what it was raised from."""
    for event in events:
        if event.dagster_event and event.dagster_event.is_step_failure:
            error = event.dagster_event.step_failure_data.error
            while (
                error is not None and error.cause is not None and (error.cls_name or "").startswith("Dagster")
            ):
                error = error.cause
            if error is not None:
                return _OF_OURS.sub("", " ".join(error.message.split()))[:_SHOWN]
    return ""


def _successes(
    run: dg.DagsterRun,
    made: Mapping[str, Mapping[str, Any]],
    start: float | None,
    end: float | None,
    name: str,
    url: str,
) -> Iterator[Alert]:
    """What went well, once a run."""
    if counts := made.get("raw_counts"):
        rows, changed = int(counts.get("dagster/row_count", 0)), int(counts.get("changed_partitions", 0))
        yield alerts.ingestion_completed(_days(run), rows, changed, url)
    elif forecast := made.get("predictions"):
        rows = int(forecast.get("dagster/row_count", 0))
        yield alerts.predictions_generated(_days(run), rows, str(forecast.get("model", "")), url)
    elif trained := made.get("trained_model"):
        judged = made.get("champion", {})
        yield alerts.training_completed(
            str(trained.get("model", "")),
            str(judged.get("decision", "not judged yet")),
            str(judged.get("reasons", "materialise champion to have it judged")),
            (("Trained until", str(trained.get("trained_until", ""))),),
            url,
        )
    else:
        yield alerts.run_completed(name, (end or 0) - (start or end or 0), url)


def _counters(made: Mapping[str, Any], open_now: Iterable[str]) -> Iterator[Alert]:
    """The list of open incidents is whole: what was open and is not on it is over, or was corrected away."""
    known = made.get(OPEN_INCIDENTS)
    if not isinstance(known, list):
        return
    told = [counter_incident(row["counter_id"], row["state"], row["since"], row["reason"]) for row in known]
    lasting = {alert.incident for alert in told}
    yield from told
    for incident in sorted(open_now):
        if incident.startswith(COUNTER) and incident not in lasting:
            yield alerts.over(
                Kind.COUNTER_INCIDENT,
                incident,
                f"Counter {incident.removeprefix(COUNTER)} is no longer alarmed",
            )


def _drift(made: Mapping[str, Any], url: str, policy: RetrainingPolicy) -> Iterator[Alert]:
    share = made.get("drift_share")
    if not isinstance(share, int | float):
        return
    if share >= policy.drift_warning:
        report = str(made.get("report", url))
        counters = int(made.get("drifted_counters", 0))
        yield alerts.drift_detected(
            str(made["partition"]), share, str(made.get("drifted", "")), counters, report
        )
    else:
        yield alerts.over(Kind.DRIFT_DETECTED, "drift", "Data drift is over", f"Drift share {share:.0%}", url)


def _performance(made: Mapping[str, Any], policy: RetrainingPolicy) -> Iterator[Alert]:
    """By the accuracy the decision rests on, whatever was decided: a cooldown makes no forecast better."""
    r2 = made.get("r2")
    if not isinstance(r2, int | float):
        return
    decision, reasons = str(made.get("decision", "")), str(made.get("reasons", ""))
    if r2 < policy.r2_warning:
        critical = r2 < policy.r2_critical
        yield alerts.performance_degraded(str(made["partition"]), decision, reasons, r2, critical)
    else:
        text = f"R² {r2:.3f}"
        yield alerts.over(Kind.PERFORMANCE_DEGRADED, "performance", "Model performance is back", text)


def _experiment(made: Mapping[str, Any]) -> Iterator[Alert]:
    verdict = str(made.get("verdict", "continue"))
    if verdict not in ("continue", "nothing to compare"):
        scores = [(name, str(made[key])) for name, key in _EXPERIMENT_SCORES if key in made]
        yield alerts.experiment_stopped(
            verdict, str(made.get("experiment", "")), str(made.get("reasons", "")), scores
        )


def _checks(
    events: Sequence[dg.EventLogEntry], url: str, *, failed: bool, freshness: bool
) -> Iterator[Alert]:
    latest: dict[str, dg.AssetCheckEvaluation] = {}
    for event in events:
        if event.dagster_event and event.dagster_event_type == Event.ASSET_CHECK_EVALUATION:
            evaluation = event.dagster_event.asset_check_evaluation_data
            latest[f"{evaluation.asset_key.to_user_string()}.{evaluation.check_name}"] = evaluation
    for name, evaluation in latest.items():
        if name == COUNTERS_ALIVE or (name == FRESHNESS and not freshness):
            continue  # Told counter by counter, or by the clock.
        if evaluation.passed:
            incident = "data" if name == FRESHNESS else f"check:{name}"
            yield alerts.over(Kind.CHECK_FAILED, incident, f"Check passes again: {name}", url=url)
        elif not failed:
            yield _failed_check(name, evaluation, url)


def _failed_check(name: str, evaluation: dg.AssetCheckEvaluation, url: str) -> Alert:
    text = evaluation.description or ""
    metadata = evaluation.metadata
    if name == FRESHNESS and {"newest_hour", "age_days", "max_days"} <= metadata.keys():
        newest, age, most = (metadata[key].value for key in ("newest_hour", "age_days", "max_days"))
        return alerts.no_new_data(str(newest), float(str(age)), float(str(most)))
    if name == SKILL:
        skill = metadata.get("skill")
        records = skill.value.records if isinstance(skill, dg.TableMetadataValue) else []
        scores = [(f"Skill day {row.data.get('horizon')}", str(row.data.get("skill"))) for row in records]
        return alerts.metrics_degraded(
            text or "The mean of four weeks is as good at some horizon.", scores, url
        )
    asset, _, check = name.rpartition(".")
    return alerts.check_failed(asset, check, text, evaluation.severity == dg.AssetCheckSeverity.ERROR, url)
