"""Drift, adjusted for the season: what to compare with, what may be tested, and which counter left its city.

Belongs here: pure choices and measures. Does not belong here: Evidently
(bike_assets.assets.evidently_report), thresholds for retraining (retraining.py), data-quality rules
(bike_assets.checks).

Why adjusted: against the months before, or the four weeks before, a default drift report calls the dataset
drifted in almost every week of an ordinary year, because bicycles have seasons. The same weekdays of the
same weeks a year earlier have them too.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from math import isfinite
from typing import Literal

import polars as pl

from bike_assets.core.errors import ContractError

YEAR_DAYS = 364
"""52 weeks: the same weekday of the same week a year earlier."""

DRIFT_THRESHOLD = 0.25
"""Normed Wasserstein distance, in reference standard deviations, from which a column drifts.

Measured on Paris, March 2023 to February 2024, four-week windows against their `reference_days`: with the usual
0.1 a share of 30 % and more drifts in 84 % of the windows, with 0.25 in 20 % (50 % and more: 61 % and 4 %).
"""

COUNTER_Z_THRESHOLD = 6.0
"""Robust z from which a counter counts as drifted.

Measured on the same year: 2.8 % of counter-weeks, half of them at counters with an outage. A counter that
counts nothing for a week is found always, one at 30 % in 98 % of trials, at half in 77 %, at double in 81 %.
"""

MIN_MATCHED_HOURS = 24
"""Fewer matched hours than a day say nothing about a counter's level."""

_MIN_SCALE = 0.04  # in a city where all counters agree, 4 % of natural spread keeps small moves quiet

_REFERENCE_FLAGS = ("is_outage", "is_spike", "is_merged_hour")
_CURRENT_FLAGS = ("is_spike", "is_merged_hour")  # a current outage is what the test is for

_NEVER_TESTED = frozenset((
    "service_date", "counter_id", "counter_name", "site_id", "site_name", "target_ts", "ts_utc",
    "horizon", "local_hour", "latitude", "longitude", "installation_date", "source", "source_file",
    "published_until", "ingested_at", "content_hash", "model_name", "model_version", "run_id",
    "revisions", "hour", "target_hour", "weekday", "month", "week", "year", "quarter", "day", "season",
    "hour_of_week", "age_days",
))  # fmt: skip
_CALENDAR_WORDS = frozenset((
    "weekday", "dow", "doy", "month", "yearday", "holiday", "holidays", "vacation", "school",
    "bridge", "season", "sin", "cos", "calendar", "horizon",
))  # fmt: skip
_CALENDAR_PHRASES = (
    "is_weekend",
    "day_type",
    "day_of_",
    "hour_of_day",
    "days_to_",
    "days_since_",
    "week_of_year",
)

ReferenceKind = Literal["year_earlier", "preceding", "none"]


@dataclass(frozen=True)
class Reference:
    """The days to compare with, ascending, and where they come from."""

    kind: ReferenceKind
    days: tuple[date, ...]


@dataclass(frozen=True)
class DriftSummary:
    """What a drift test found.

    `scores` holds one distance a tested column; a column drifts where its score is at least `threshold`.
    `untestable` columns hold no value in one of the two periods: neither drifted nor not.
    """

    n_reference: int
    n_current: int
    columns: tuple[str, ...]
    drifted: tuple[str, ...]
    untestable: tuple[str, ...]
    scores: Mapping[str, float]
    threshold: float
    method: str

    @property
    def share(self) -> float | None:
        """Share of tested columns that drifted, 0 to 1; None where none could be tested."""
        return len(self.drifted) / len(self.columns) if self.columns else None


def summarise_drift(
    scores: Mapping[str, float],
    *,
    n_reference: int,
    n_current: int,
    threshold: float,
    method: str,
    untestable: Iterable[str] = (),
) -> DriftSummary:
    """Turn distances into a summary: drifted columns worst first.

    Raises:
        ContractError: a score is NaN, infinite or negative.
    """
    odd = [name for name, score in scores.items() if not (isfinite(score) and score >= 0)]
    if odd:
        raise ContractError(f"drift: the score of {', '.join(odd)} is NaN, infinite or negative")
    drifted = sorted(
        (name for name, score in scores.items() if score >= threshold), key=lambda name: -scores[name]
    )
    return DriftSummary(
        n_reference=n_reference,
        n_current=n_current,
        columns=tuple(scores),
        drifted=tuple(drifted),
        untestable=tuple(untestable),
        scores=dict(scores),
        threshold=threshold,
        method=method,
    )


def testable_columns(schema: Mapping[str, pl.DataType]) -> list[str]:
    """The numeric columns that may drift.

    Identifiers, timestamps, positions and calendar columns are left out: they differ between any two
    periods by their nature, and testing them finds drift that is none.
    """
    return [
        name
        for name, dtype in schema.items()
        if dtype.is_numeric()
        and name not in _NEVER_TESTED
        and not name.endswith("_id")
        and _CALENDAR_WORDS.isdisjoint(name.split("_"))
        and not any(phrase in name for phrase in _CALENDAR_PHRASES)
    ]


# pytest would collect the name in a test module that imports it.
testable_columns.__test__ = False  # type: ignore[attr-defined]


def reference_days(
    *,
    current_days: Collection[date],
    available_days: Collection[date],
    spread_weeks: int = 1,
    preceding_weeks: int = 4,
    season_weeks: int = 8,
    min_coverage: float = 0.8,
) -> Reference:
    """Choose the reference for a current window: the same weekdays in the same season.

    The same weeks 364 days earlier (and `spread_weeks` before and after them) if at least `min_coverage` of
    the exact days are available; else, for each weekday of the window, its most recent `preceding_weeks`
    days within `season_weeks` weeks before it. No chosen day lies in the window or after its first day.
    Where a weekday of the window has no such day at all there is no fair reference, and `kind` is `none`.

    Args:
        current_days: local days of the current window.
        available_days: local days with data.
        spread_weeks: weeks taken on either side of the year-earlier days.
        preceding_weeks: days taken of each weekday when there is no year-earlier data.
        season_weeks: how far back the same season reaches.
        min_coverage: share of the year-earlier days that must be available.

    Raises:
        ContractError: the current window is empty.
    """
    if not current_days:
        raise ContractError("drift: the current window has no day; materialise at least one day first")
    first = min(current_days)
    earlier = sorted(day for day in set(available_days) if day < first)
    known = set(earlier)
    shifted = {day - timedelta(days=YEAR_DAYS) for day in current_days}
    if len(shifted & known) >= min_coverage * len(shifted):
        shifts = [timedelta(weeks=weeks) for weeks in range(-spread_weeks, spread_weeks + 1)]
        return Reference("year_earlier", tuple(sorted({day + s for day in shifted for s in shifts} & known)))
    oldest = first - timedelta(weeks=season_weeks)
    chosen: list[date] = []
    for weekday in sorted({day.weekday() for day in current_days}):
        same = [day for day in earlier if day.weekday() == weekday and day >= oldest]
        if not same:
            return Reference("none", ())
        chosen += same[-preceding_weeks:]
    return Reference("preceding", tuple(sorted(chosen)))


def per_counter_drift(
    *, current: pl.DataFrame, reference: pl.DataFrame, threshold: float = COUNTER_Z_THRESHOLD
) -> pl.DataFrame:
    """Which counters moved apart from their city.

    Each counter's current hours are set against its own reference profile (mean of the same weekday and
    local hour), giving its change of level; the city's common move (the median change) is taken off in
    logarithms; what is left is measured in robust standard deviations, 1.4826 · MAD (Rousseeuw & Croux
    1993), over all counters.

    Args:
        current: rows of the current window: `counter_id`, `service_date`, `local_hour`, `hourly_count`, and
            the quality flags where known. Spikes and merged hours are left out.
        reference: the same columns of the reference days. Outages, too, are left out.
        threshold: absolute robust z from which a counter drifts.

    Returns:
        One row a counter, worst first: `counter_id`, `status` (`tested`, `no_current`, `no_reference`,
        `too_few_hours`), `n_current` and `n_reference` (hours with counts), `change` (current over
        reference level: 0.5 where half as many are counted), `city_change` (median of all counters), `z`,
        `drifted`. `change` and `z` are null where not tested.

    Raises:
        ContractError: a column is missing.
    """
    now = _counted(current, "current", _CURRENT_FLAGS)
    before = _counted(reference, "reference", _REFERENCE_FLAGS)
    slot = ["counter_id", "weekday", "local_hour"]
    profile = before.group_by(slot).agg(expected=pl.col("hourly_count").mean())
    levels = (
        now.join(profile, on=slot)
        .group_by("counter_id")
        .agg(matched=pl.len(), actual=pl.col("hourly_count").sum(), expected=pl.col("expected").sum())
    )
    counters = (
        now.group_by("counter_id")
        .agg(n_current=pl.len())
        .join(
            before.group_by("counter_id").agg(n_reference=pl.len()),
            on="counter_id",
            how="full",
            coalesce=True,
        )
        .join(levels, on="counter_id", how="left")
        .with_columns(pl.col("n_current", "n_reference", "matched").fill_null(0).cast(pl.Int64))
        .with_columns(
            status=pl.when(pl.col("n_current") == 0)
            .then(pl.lit("no_current"))
            .when(pl.col("n_reference") == 0)
            .then(pl.lit("no_reference"))
            .when(pl.col("matched") < MIN_MATCHED_HOURS)
            .then(pl.lit("too_few_hours"))
            .otherwise(pl.lit("tested"))
        )
        # One bicycle on either side keeps a dead counter finite.
        .with_columns(
            log_change=pl.when(pl.col("status") == "tested").then(
                ((pl.col("actual") + 1) / (pl.col("expected") + 1)).log()
            )
        )
        .with_columns(residual=pl.col("log_change") - pl.col("log_change").median())
        .with_columns(scale=pl.max_horizontal(1.4826 * pl.col("residual").abs().median(), pl.lit(_MIN_SCALE)))
        .with_columns(z=pl.col("residual") / pl.col("scale"))
    )
    return counters.select(
        "counter_id",
        "status",
        "n_current",
        "n_reference",
        change=pl.col("log_change").exp(),
        city_change=pl.col("log_change").median().exp(),
        z="z",
        drifted=(pl.col("z").abs() >= threshold).fill_null(False),
    ).sort(pl.col("z").abs(), "counter_id", descending=[True, False], nulls_last=True)


def _counted(frame: pl.DataFrame, which: str, flags: tuple[str, ...]) -> pl.DataFrame:
    needed = ("counter_id", "service_date", "local_hour", "hourly_count")
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise ContractError(f"drift: column {', '.join(missing)} is missing from the {which} counts")
    known = [pl.col(flag).fill_null(False) for flag in flags if flag in frame.columns]
    if known:
        frame = frame.filter(~pl.any_horizontal(known))
    return frame.drop_nulls("hourly_count").select(
        "counter_id",
        "local_hour",
        weekday=pl.col("service_date").dt.weekday(),
        hourly_count=pl.col("hourly_count").cast(pl.Float64),
    )
