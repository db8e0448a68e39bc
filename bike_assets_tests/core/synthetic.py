"""A tiny city of counts, made from a seed, for tests of the forecasting core."""

from datetime import date

import numpy as np
import polars as pl

from bike_assets.core.calendar import days_between, hours_of_day, local_columns
from bike_assets.core.contracts import UTC_TIMESTAMP

PROFILE = (
    np.array([2, 1, 1, 1, 1, 3, 8, 20, 30, 18, 12, 12, 14, 13, 13, 15, 20, 30, 28, 18, 12, 8, 6, 4]) / 12
)


def city(first: date, last: date, counters: int = 4, seed: int = 0) -> pl.DataFrame:
    """Cleaned counts of every hour: a daily profile, quiet weekends, a common mood a day, Poisson noise.

    Counter `c00` is the quietest.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for day in days_between(first, last):
        hours = hours_of_day(day)
        mood = rng.gamma(20, 1 / 20) * (0.5 if day.weekday() >= 5 else 1.0)
        for counter in range(counters):
            parts.append(
                pl.DataFrame(
                    {"counter_id": [f"c{counter:02}"] * len(hours), "ts_utc": hours},
                    schema_overrides={"ts_utc": UTC_TIMESTAMP},
                ).with_columns(level=pl.lit(mood * (5.0 + 30.0 * counter)))
            )
    frame = local_columns(pl.concat(parts))
    rate = PROFILE[frame["local_hour"].to_numpy()] * frame["level"].to_numpy()
    frame = frame.with_columns(
        hourly_count=pl.Series(rng.poisson(rate)).cast(pl.Int64), is_merged_hour=pl.lit(False)
    )
    return frame.select(
        "service_date", "counter_id", "ts_utc", "local_hour", "hourly_count", "is_merged_hour"
    ).sort("counter_id", "ts_utc")
