"""Causal masks: which counted hours a forecaster should not believe, judged by what was known that evening.

Belongs here: outage and spike rules that look backwards only, for features. Does not belong here:
the retrospective flags of `cleaned_counts`, which know how a run of zeros ended and would leak it.

All arrays are cubes [counter, day, hour of the local wall clock] of 64-bit floats, NaN where unknown.
"""

import numpy as np
from numpy.typing import NDArray

from bike_assets.core.cube import Cube, shift_days

MASK_LOOKBACK_DAYS = 28
"""The mask of a day depends on that day and this many days before it."""

SURELY_NONZERO = 12.0
"""Hours expected to hold this many bicycles are 0 by chance once in 160,000 (Poisson)."""

SPIKE_FACTOR = 5.0
SPIKE_MARGIN = 150.0


def weekly_median(cube: Cube, weeks: int = 4, at_least: int = 1, first: int = 0) -> Cube:
    """Median of the same hour of the week in the weeks before each day, NaN where fewer than `at_least` are known.

    Args:
        cube: counts.
        weeks: how many weeks before.
        at_least: how many of them must be known.
        first: position of the first day that is wanted.

    Returns:
        [counter, day, hour] of the days from `first` on.
    """
    past = np.stack([shift_days(cube, 7 * k)[:, first:] for k in range(1, weeks + 1)])
    past.sort(axis=0)  # NaN comes last
    known = np.sum(~np.isnan(past), axis=0)
    low = np.take_along_axis(past, np.maximum((known - 1) // 2, 0)[None], axis=0)[0]
    high = np.take_along_axis(past, np.minimum(known // 2, weeks - 1)[None], axis=0)[0]
    median = np.where(known % 2 == 1, low, 0.5 * (low + high))
    return np.asarray(np.where(known >= at_least, median, np.nan), dtype=np.float64)


def dead_days(cube: Cube) -> NDArray[np.bool_]:
    """[counter, day]: something is known of the day, and all of it is 0."""
    known = ~np.isnan(cube)
    return np.asarray(known.any(axis=2) & ~(cube > 0).any(axis=2))


def untrusted(cube: Cube, first: int = 0) -> NDArray[np.bool_]:
    """Hours that are part of an outage or a spike as far as that day and the four weeks before it tell.

    An outage is a whole day of zeros, or a zero where the same hour of the week had a median of at least
    `SURELY_NONZERO`. A spike is more than `SPIKE_FACTOR` times the largest median of the hour and its
    neighbours plus `SPIKE_MARGIN`.

    Args:
        cube: counts.
        first: position of the first day that is wanted.

    Returns:
        [counter, day, hour] of the days from `first` on.
    """
    usual = weekly_median(cube, first=first)
    cube = cube[:, first:]
    around = usual.copy()
    around[:, :, 1:] = np.fmax(around[:, :, 1:], usual[:, :, :-1])
    around[:, :, :-1] = np.fmax(around[:, :, :-1], usual[:, :, 1:])
    outage = dead_days(cube)[:, :, None] | ((cube == 0) & (usual >= SURELY_NONZERO))
    spike = cube > SPIKE_FACTOR * around + SPIKE_MARGIN  # False where nothing is known to compare with
    return np.asarray((outage & (cube == 0)) | spike)
