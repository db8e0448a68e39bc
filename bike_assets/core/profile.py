"""The shape of a counter's day: what drift tests look at.

Belongs here: one row a counter and day, described by numbers that mean the same in every season of a city.
Does not belong here: which days are compared, and when a difference counts as drift (see `drift`).
"""

from typing import Final

import polars as pl

PROFILE_COLUMNS: Final = (
    "daily_count",
    "busiest_hour_count",
    "morning_share",
    "evening_share",
    "night_share",
    "zero_share",
    "missing_hours",
)
"""The numeric columns of `daily_profile`."""


def daily_profile(counts: pl.DataFrame) -> pl.DataFrame:
    """Each counter's day in a few numbers.

    Args:
        counts: cleaned counts: `service_date`, `counter_id`, `local_hour`, `hourly_count`.

    Returns:
        One row a counter and day, sorted by both: `service_date`, `counter_id` and `PROFILE_COLUMNS`:
        bicycles of the day and of its busiest hour; the shares of the day counted from 7 to 10, from 16 to 20
        and from 0 to 5 (null on a day without bicycles); the share of hours without any; hours not published.
    """
    count, hour = pl.col("hourly_count").cast(pl.Float64), pl.col("local_hour")
    total = count.sum()

    def share(first: int, last: int) -> pl.Expr:
        part = count.filter(hour.is_between(first, last)).sum()
        return pl.when(total > 0).then(part / total)

    return (
        counts.group_by("service_date", "counter_id")
        .agg(
            daily_count=total,
            busiest_hour_count=count.max(),
            morning_share=share(7, 9),
            evening_share=share(16, 19),
            night_share=share(0, 4),
            zero_share=(count == 0).mean(),
            missing_hours=(24 - count.count().cast(pl.Float64)).clip(0),
        )
        .select("service_date", "counter_id", *PROFILE_COLUMNS)
        .sort("service_date", "counter_id")
    )
