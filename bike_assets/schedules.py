"""When things run by themselves. Off on a laptop, on in compose and the cloud, decided here by registration.

The city publishes yesterday's counts in the morning: ingestion at 06:15 (what it changed is cleaned by the sensor
`changed_counts`), weather and its forecast at 06:30, the tables about counters and errors at 06:45, because features
read where a new counter stands, and the forecast of counts at 07:00 local, so that it is there when people leave home;
monitoring on Mondays.
"""

from datetime import date, timedelta

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from bike_assets.core.calendar import LOCAL_TZ
from bike_assets.jobs import DESCRIBE, EXPERIMENT, INGEST, MONITOR, PREDICT, WEATHER
from bike_assets.partitions import has_day
from bike_assets.settings import Settings


def build_schedules(
    settings: Settings, partitions: dg.DailyPartitionsDefinition
) -> list[dg.ScheduleDefinition]:
    """The schedules of an environment."""
    status = dg.DefaultScheduleStatus.RUNNING if settings.automation_on else dg.DefaultScheduleStatus.STOPPED

    def refetched(name: str, today: date, last: date) -> dg.RunRequest | dg.SkipReason:
        """A run up to the day, from the first that may still be corrected."""
        first = max(today - timedelta(days=settings.refetch_days + 1), partitions.start.date())
        if last < first:
            return dg.SkipReason(f"no partition ends before {today}")
        return dg.RunRequest(
            run_key=f"{name}-{today}",
            tags={
                ASSET_PARTITION_RANGE_START_TAG: first.isoformat(),
                ASSET_PARTITION_RANGE_END_TAG: last.isoformat(),
            },
        )

    @dg.schedule(
        name="daily_ingest",
        cron_schedule="15 6 * * *",
        job=INGEST,
        execution_timezone=LOCAL_TZ,
        default_status=status,
    )
    def daily_ingest(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        """Yesterday, and the days before it once more for late corrections, in one run."""
        today = local_day(context)
        return refetched("ingest", today, today - timedelta(days=1))

    @dg.schedule(
        name="daily_weather",
        cron_schedule="30 6 * * *",
        job=WEATHER,
        execution_timezone=LOCAL_TZ,
        default_status=status,
    )
    def daily_weather(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        """The forecast of today, and what was observed meanwhile of the days before."""
        if settings.weather_source == "none":
            return dg.SkipReason("no source of weather is set (BIKE_WEATHER)")
        today = local_day(context)
        return refetched("weather", today, today)

    @dg.schedule(
        name="daily_describe",
        cron_schedule="45 6 * * *",
        job=DESCRIBE,
        execution_timezone=LOCAL_TZ,
        default_status=status,
    )
    def daily_describe(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        """Counters and realised errors, with yesterday's truth."""
        return dg.RunRequest(run_key=f"describe-{local_day(context)}")

    @dg.schedule(
        name="daily_forecast",
        cron_schedule="0 7 * * *",
        job=PREDICT,
        execution_timezone=LOCAL_TZ,
        default_status=status,
    )
    def daily_forecast(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        """The forecast issued today."""
        today = local_day(context)
        if not has_day(partitions, today):
            return _no_partition(today)
        return dg.RunRequest(run_key=f"forecast-{today}", partition_key=today.isoformat())

    @dg.schedule(
        name="daily_experiment",
        cron_schedule="15 7 * * *",
        job=EXPERIMENT,
        execution_timezone=LOCAL_TZ,
        default_status=status,
    )
    def daily_experiment(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        """The challenger's forecast of today beside the champion's, and what yesterday's truth says of both."""
        today = local_day(context)
        if not settings.shadow:
            return dg.SkipReason("no experiment is on (BIKE_SHADOW)")
        if not has_day(partitions, today):
            return _no_partition(today)
        return dg.RunRequest(run_key=f"experiment-{today}", partition_key=today.isoformat())

    @dg.schedule(
        name="weekly_monitoring",
        cron_schedule="0 8 * * 1",
        job=MONITOR,
        execution_timezone=LOCAL_TZ,
        default_status=status,
    )
    def weekly_monitoring(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        """Drift of the last four weeks and what follows from it."""
        today = local_day(context)
        if not has_day(partitions, today):
            return _no_partition(today)
        return dg.RunRequest(run_key=f"monitor-{today}", partition_key=today.isoformat())

    return [daily_ingest, daily_weather, daily_describe, daily_forecast, daily_experiment, weekly_monitoring]


def local_day(context: dg.ScheduleEvaluationContext) -> date:
    """The local day of a tick."""
    from zoneinfo import ZoneInfo

    return context.scheduled_execution_time.astimezone(ZoneInfo(LOCAL_TZ)).date()


def _no_partition(today: date) -> dg.SkipReason:
    return dg.SkipReason(f"the source ends before {today}; the simulated city has no counts of its own time")
