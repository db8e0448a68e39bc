"""The partitions of the graph and how days of one table map to days of another.

A partition key is a local service day, written `2024-02-25`, and every table has it as `service_date`. For
counts it is the day that was counted; for features, predictions and reports it is the issue date. The forecast
issued on 2024-02-25 therefore reads counts up to the partition 2024-02-24.
"""

from datetime import date

import dagster as dg

from bike_assets.core.calendar import LOCAL_TZ
from bike_assets.core.features import LOOKBACK_DAYS


def service_days(start: date) -> dg.DailyPartitionsDefinition:
    """Local days from `start` to today. Today counts, because its forecast is issued in the morning."""
    return dg.DailyPartitionsDefinition(start_date=start.isoformat(), timezone=LOCAL_TZ, end_offset=1)


KNOWN_AT_ISSUE = dg.TimeWindowPartitionMapping(
    start_offset=-LOOKBACK_DAYS, end_offset=-1, allow_nonexistent_upstream_partitions=True
)
"""The days of counts that the features of an issue date look back on: never the issue date itself."""


def window(context: dg.AssetExecutionContext) -> tuple[date, date]:
    """First and last partition of this run, both included: a single day, or a range in one run."""
    keys = context.partition_key_range
    return date.fromisoformat(keys.start), date.fromisoformat(keys.end)
