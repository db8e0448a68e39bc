"""The partitions of the graph and how days of one table map to days of another.

A partition key is a local service day, written `2024-02-25`, and every table has it as `service_date`. For
counts it is the day that was counted; for features, predictions and reports it is the issue date. The forecast
issued on 2024-02-25 therefore reads counts up to the partition 2024-02-24.
"""

from datetime import date, timedelta

import dagster as dg

from bike_assets.core.calendar import LOCAL_TZ
from bike_assets.core.features import LOOKBACK_DAYS, WARM_UP_DAYS
from bike_assets.settings import Settings


def service_days(start: date, last: date | None = None) -> dg.DailyPartitionsDefinition:
    """Local days from `start` to `last`, or to today. Today counts, because its forecast is issued in the morning."""
    if last is None:
        return dg.DailyPartitionsDefinition(start_date=start.isoformat(), timezone=LOCAL_TZ, end_offset=1)
    return dg.DailyPartitionsDefinition(
        start_date=start.isoformat(), end_date=(last + timedelta(days=1)).isoformat(), timezone=LOCAL_TZ
    )


def counted_and_issue_days(
    settings: Settings,
) -> tuple[dg.DailyPartitionsDefinition, dg.DailyPartitionsDefinition]:
    """Partitions of counts, and of what is issued from them.

    The simulated city has a first and a last day: the partitions end with it, so that the UI offers no day that
    cannot have counts, and calls the tables complete when they are. Real counts go on; their days end today.
    """
    if settings.source != "simulator":
        days = service_days(settings.partitions_start)
        return days, days
    first, last = settings.simulator_first_day, settings.simulator_last_day
    first_issue = min(first + timedelta(days=WARM_UP_DAYS), last)
    return service_days(first, last), service_days(first_issue, last + timedelta(days=1))


def weather_days(settings: Settings) -> dg.DailyPartitionsDefinition:
    """Partitions of weather: observed on days that are counted, forecast on days on which counts are forecast."""
    counted, issued = counted_and_issue_days(settings)
    if counted.end is None or issued.end is None:
        return counted
    return service_days(counted.start.date(), issued.end.date() - timedelta(days=1))


def has_day(partitions: dg.DailyPartitionsDefinition, day: date) -> bool:
    """Whether a day lies between the first partition and the last one, if there is a last one."""
    return partitions.start.date() <= day and (partitions.end is None or day < partitions.end.date())


KNOWN_AT_ISSUE = dg.TimeWindowPartitionMapping(
    start_offset=-LOOKBACK_DAYS, end_offset=-1, allow_nonexistent_upstream_partitions=True
)
"""The days of counts that the features of an issue date look back on: never the issue date itself."""

WEATHER_AT_ISSUE = dg.TimeWindowPartitionMapping(
    start_offset=-LOOKBACK_DAYS, end_offset=0, allow_nonexistent_upstream_partitions=True
)
"""The days of weather known then: observations of the days before, and the forecast issued that morning."""


def window(context: dg.AssetExecutionContext) -> tuple[date, date]:
    """First and last partition of this run, both included: a single day, or a range in one run."""
    keys = context.partition_key_range
    return date.fromisoformat(keys.start), date.fromisoformat(keys.end)
