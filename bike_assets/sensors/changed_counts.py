"""Cleans what ingestion changed, and nothing else.

Ingestion fetches the days of the re-fetch window again every morning, and most of them are as they were. A run of
the `clean` job starts at the first day that changed and goes on to the end of the window, because quality flags of a
day look at the days before it. It reads the event log and opens no warehouse.
"""

from collections.abc import Iterable
from typing import Final

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from bike_assets.assets.ingestion import CHANGED_FROM
from bike_assets.jobs import CLEAN, INGEST
from bike_assets.settings import Settings

_RUNS_LOOKED_AT: Final = 30


def build_changed_counts_sensor(settings: Settings) -> dg.SensorDefinition:
    """The sensor of an environment: running in compose and the cloud, stopped on a laptop."""

    @dg.run_status_sensor(
        run_status=dg.DagsterRunStatus.SUCCESS,
        monitored_jobs=[INGEST],
        request_job=CLEAN,
        name="changed_counts",
        default_status=(
            dg.DefaultSensorStatus.RUNNING if settings.automation_on else dg.DefaultSensorStatus.STOPPED
        ),
    )
    def changed_counts(context: dg.RunStatusSensorContext) -> dg.RunRequest | dg.SkipReason:
        """Cleans the days from the first that changed, once an ingestion; what failed before is done again with it."""
        run = context.dagster_run
        since = [
            *_changed_from(context.instance, run.run_id),
            *_left_undone(context.instance, INGEST.name, but=run.run_id),
            *_left_undone(context.instance, CLEAN.name),
        ]
        if not since:
            return dg.SkipReason(f"run {run.run_id} changed nothing")
        until = run.tags[ASSET_PARTITION_RANGE_END_TAG]
        return dg.RunRequest(
            run_key=f"clean-{run.run_id}",
            tags={ASSET_PARTITION_RANGE_START_TAG: min(since), ASSET_PARTITION_RANGE_END_TAG: until},
        )

    return changed_counts


def _changed_from(instance: dg.DagsterInstance, run_id: str) -> Iterable[str]:
    """What `raw_counts` said of a run."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
        event = entry.asset_materialization
        if event and event.asset_key == dg.AssetKey("raw_counts") and CHANGED_FROM in event.metadata:
            yield str(event.metadata[CHANGED_FROM].value)


def _left_undone(instance: dg.DagsterInstance, job: str, but: str = "") -> Iterable[str]:
    """First days of the job's runs since its last success: they may have written, or should have."""
    for run in instance.get_runs(dg.RunsFilter(job_name=job), limit=_RUNS_LOOKED_AT):
        if run.run_id == but:
            continue
        if run.status == dg.DagsterRunStatus.SUCCESS:
            return
        if start := run.tags.get(ASSET_PARTITION_RANGE_START_TAG):
            yield start
