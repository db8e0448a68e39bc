"""Counts as a dense cube [counter, local day, hour of the wall clock]: what looks at many days at once works on it.

Belongs here: from rows to the cube, and moving along its days. Does not belong here: which hours to believe
(`quality`), what follows from them (`features`, `health`, `imputation`).
"""

from collections.abc import Sequence
from datetime import date

import numpy as np
import polars as pl
from numpy.typing import NDArray

Cube = NDArray[np.float64]
"""64-bit floats, NaN where unknown."""


def count_cube(
    counts: pl.DataFrame, days: Sequence[date], extra: Sequence[str] = ()
) -> tuple[list[str], Cube, NDArray[np.bool_]]:
    """Cleaned counts as a cube. An hour that the clock shows twice is the mean of its two rows.

    Args:
        counts: counter_id, service_date, local_hour, hourly_count; rows of other days are left out.
        days: the local days of the second axis, each after the other.
        extra: counters that are wanted whether they have a row or not.

    Returns:
        Counter names (sorted), the cube, and [counter, day] whether any row is there.
    """
    rows = (
        counts.lazy()
        .filter(pl.col("service_date").is_between(days[0], days[-1]))
        .select(
            "counter_id",
            day=(pl.col("service_date") - days[0]).dt.total_days().cast(pl.Int64),
            hour=pl.col("local_hour").cast(pl.Int64),
            value=pl.col("hourly_count").cast(pl.Float64),
        )
        .collect()
    )
    names = sorted(set(rows["counter_id"].unique()) | set(extra))
    counter = rows["counter_id"].cast(pl.Enum(names)).to_physical().cast(pl.Int64)
    shape = (len(names), len(days), 24)
    flat = (counter * len(days) + rows["day"]) * 24 + rows["hour"]
    seen = np.zeros(shape[:2], dtype=bool)
    seen.reshape(-1)[(flat // 24).to_numpy()] = True
    known = rows["value"].is_not_null()
    where, value = flat.filter(known).to_numpy(), rows["value"].filter(known).to_numpy().astype(np.float64)
    size = shape[0] * shape[1] * 24
    with np.errstate(invalid="ignore"):
        cube = np.bincount(where, value, size) / np.bincount(where, minlength=size)
    return names, cube.reshape(shape), seen


def shift_days(cube: Cube, days: int) -> Cube:
    """The cube moved to the future: the result at day d holds the input at day d - days, NaN at the start."""
    moved = np.full_like(cube, np.nan)
    if days < cube.shape[1]:
        moved[:, days:] = cube[:, : cube.shape[1] - days]
    return moved
