"""Bounds of the retraining matrix learned from history, to be shown beside the fixed ones or used in their place.

Belongs here: learning them. Does not belong here: applying them (`retraining`).

A city that is hard to forecast never reaches the R² that suits an easy one. What is unusual for this city is what lies
far from its own median, in robust standard deviations (Hampel 1974); what drift is unusual is what was seldom seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from bike_assets.core.retraining import RetrainingPolicy

MIN_HISTORY: Final = 12
"""Decisions of the past without which nothing is learned: a quarter of a year of weekly ones."""

MAX_LENIENCE: Final = 0.10
"""How far below the fixed bound a learned one may lie, so that slow decay is not taken for normal."""

_WARNING_DEVIATIONS: Final = 2.0
_CRITICAL_DEVIATIONS: Final = 3.0
_LEAST_SPREAD: Final = 0.005
_MAD_TO_SIGMA: Final = 1.4826


@dataclass(frozen=True)
class LearnedBounds:
    """The policy with learned bounds, or None where history is too short; and why so, in words."""

    policy: RetrainingPolicy | None
    reason: str


def learn_bounds(r2: Sequence[float], drift_share: Sequence[float], fixed: RetrainingPolicy) -> LearnedBounds:
    """Learn the four bounds of the matrix.

    R²: `r2_warning` two and `r2_critical` three robust standard deviations below the median, at most `MAX_LENIENCE`
    below the fixed ones. Drift share: `drift_warning` is exceeded by one decision in ten, `drift_critical` by one in
    a hundred; neither lies below its fixed one, since a calm past is no reason to alarm earlier.

    Args:
        r2: realised R² of earlier decisions, in any order.
        drift_share: drift shares of earlier decisions.
        fixed: the policy of the settings.
    """
    if min(len(r2), len(drift_share)) < MIN_HISTORY:
        return LearnedBounds(
            None,
            f"{min(len(r2), len(drift_share))} decisions so far, {MIN_HISTORY} are needed to learn bounds",
        )
    values = np.asarray(r2, dtype=np.float64)
    middle = float(np.median(values))
    spread = max(_MAD_TO_SIGMA * float(np.median(np.abs(values - middle))), _LEAST_SPREAD)
    warning = max(middle - _WARNING_DEVIATIONS * spread, fixed.r2_warning - MAX_LENIENCE)
    critical = max(middle - _CRITICAL_DEVIATIONS * spread, fixed.r2_critical - MAX_LENIENCE)
    often, seldom = np.quantile(np.asarray(drift_share, dtype=np.float64), (0.90, 0.99))
    drift_warning = min(max(float(often), fixed.drift_warning), 1.0)
    learned = replace(
        fixed,
        r2_critical=round(min(critical, warning), 4),
        r2_warning=round(warning, 4),
        drift_warning=round(drift_warning, 4),
        drift_critical=round(min(max(float(seldom), fixed.drift_critical, drift_warning), 1.0), 4),
    )
    return LearnedBounds(
        learned, f"of {len(r2)} decisions: median R² {middle:.3f}, robust standard deviation {spread:.3f}"
    )
