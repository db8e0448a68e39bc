"""Drift, adjusted for the season: what to compare with, what may be tested, which counter left its city, and whether
the city left its year.

Belongs here: pure choices and measures, and the thresholds of drift. Does not belong here: the network's expectation
(`network`), the skill of a model (`skill`), Evidently (`bike_assets.assets.evidently_report`), thresholds for
retraining (`retraining`), data-quality rules (`bike_assets.checks`).

Why adjusted: against the months before, or the four weeks before, a default drift report calls the dataset
drifted in almost every week of an ordinary year, because bicycles have seasons. The same weekdays of the
same weeks a year earlier have them too.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from math import isfinite, log
from typing import Literal

import polars as pl

from bike_assets.core.errors import ContractError, PermanentError
from bike_assets.core.health import UNHEALTHY, State
from bike_assets.core.network import Network, Shift, growing_shifts, sudden_shifts
from bike_assets.core.skill import SkillChange

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

_WINDOWS, _PERSISTENT = 3, 2
_WEEK_DAYS = 7

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


@dataclass(frozen=True)
class DriftPolicy:
    """What counts as drift. Measured by `benchmarks/drift_alarms.py`.

    A column drifts from the distance `column_distance` on. The network has shifted where its level is off by the share
    `network_change` and by `sudden_z` standard deviations (a step in the last two weeks), `slow_z` (eight weeks that
    moved away from the time before them) or `trend_z` (sixteen). A counter drifts where its seven days, its own profile
    and the city taken off, fell by `counter_fall` or rose by `counter_rise`, at a false discovery rate of
    `counter_false_rate` over all counters, in two of three windows. The champion has lost skill where it fell by
    `skill_drop` since its held-out days at the level `skill_p`, and its error, over the spread of the counts, rose by
    the share `error_rise`.
    """

    column_distance: float = DRIFT_THRESHOLD
    network_change: float = 0.18
    sudden_z: float = 4.4
    slow_z: float = 3.5
    trend_z: float = 3.25
    counter_fall: float = 0.20
    counter_rise: float = 0.30
    counter_false_rate: float = 0.05
    skill_drop: float = 0.15
    skill_p: float = 0.01
    error_rise: float = 0.20

    def __post_init__(self) -> None:
        shares = {
            name: getattr(self, name)
            for name in ("network_change", "counter_fall", "counter_false_rate", "skill_drop", "skill_p")
        }
        if odd := [f"{name} {value}" for name, value in shares.items() if not 0 < value < 1]:
            raise PermanentError(f"drift policy: {', '.join(odd)} must lie between 0 and 1")
        bounds = ("column_distance", "sudden_z", "slow_z", "trend_z", "counter_rise", "error_rise")
        if odd := [f"{name} {getattr(self, name)}" for name in bounds if not getattr(self, name) > 0]:
            raise PermanentError(f"drift policy: {', '.join(odd)} must be above 0")


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


def counter_drift(health: pl.DataFrame, last: date, policy: DriftPolicy) -> pl.DataFrame:
    """Which counters moved apart from their own past and their city, by the last day.

    The level of seven days relative to the counter's own profile, the city's move taken off, and its deviation in
    robust standard deviations are those of `counter_health`. Each of three windows is tested on all counters at
    once, with Student's t of four degrees, whose tails are those of healthy counters, and the false discovery rate held
    (Benjamini and Hochberg 1995); a counter drifts that is found in two of the three.

    Args:
        health: rows of COUNTER_HEALTH.
        last: last day of the newest window; the others end two and four days earlier.
        policy: bounds.

    Returns:
        One row a counter that is known on `last`, worst first: `counter_id`, `state`, `change` (0.5 where half as many
        are counted), `deviation`, `p_value`, `windows` (0 to 3 in which it was found) and `drifted`.
    """
    ends = [last - timedelta(days=2 * window) for window in range(_WINDOWS)]
    tested = (
        health.filter(
            pl.col("service_date").is_in(ends) & pl.col("state").is_in([State.ALIVE, State.DRIFTING])
        )
        .drop_nulls(["change", "deviation"])
        .with_columns(p_value=_t4_two_sided(pl.col("deviation")))
        .with_columns(
            rank=pl.col("p_value").rank("max").over("service_date"), tests=pl.len().over("service_date")
        )
        .with_columns(
            limit=pl.when(pl.col("p_value") <= policy.counter_false_rate * pl.col("rank") / pl.col("tests"))
            .then("p_value")
            .max()
            .over("service_date")
        )
        .with_columns(
            found=(pl.col("p_value") <= pl.col("limit"))
            & ~pl.col("change").is_between(1 - policy.counter_fall, 1 + policy.counter_rise)
        )
    )
    windows = tested.group_by("counter_id").agg(windows=pl.col("found").sum())
    newest = tested.filter(service_date=last).select("counter_id", "p_value")
    return (
        health.filter(service_date=last)
        .select("counter_id", "state", "change", "deviation")
        .join(newest, on="counter_id", how="left")
        .join(windows, on="counter_id", how="left")
        .with_columns(pl.col("windows").fill_null(0))
        .with_columns(drifted=pl.col("windows") >= _PERSISTENT)
        .sort(
            "windows",
            pl.col("deviation").abs(),
            "counter_id",
            descending=[True, True, False],
            nulls_last=True,
        )
    )


def network_drift(history: Network, last: date, policy: DriftPolicy) -> Shift | None:
    """The shift of the network's level that is beyond the policy, the strongest; None where there is none."""
    limits = {"sudden": policy.sudden_z, "slow": policy.slow_z, "trend": policy.trend_z}
    least = -log(1 - policy.network_change)
    shifts = [
        shift
        for shift in [*sudden_shifts(history, last), *growing_shifts(history, last)]
        if abs(shift.z) >= limits[shift.kind] and abs(log(shift.change)) >= least
    ]
    return max(shifts, key=lambda shift: abs(shift.z) / limits[shift.kind], default=None)


@dataclass(frozen=True)
class Alarm:
    """Something a person should look at: what it is about (`network`, `counter`, `incident`, `new_counter`, `skill`),
    which (a counter's id; empty for the city), and why, in words."""

    about: Literal["network", "counter", "incident", "new_counter", "skill"]
    which: str
    why: str


def skill_fell(skill: SkillChange, policy: DriftPolicy) -> bool:
    """Whether the champion lost more skill than the policy allows, and not by chance. Unknown is no."""
    return (
        skill.fall is not None
        and skill.p_value is not None
        and skill.error_rise is not None
        and skill.fall >= policy.skill_drop
        and skill.p_value <= policy.skill_p
        and skill.error_rise >= policy.error_rise
    )


def alarms(
    shift: Shift | None,
    counters: pl.DataFrame,
    health: pl.DataFrame,
    last: date,
    skill: SkillChange | None = None,
) -> list[Alarm]:
    """What drift and counter health of the last week amount to, in words.

    Args:
        shift: of `network_drift`.
        counters: of `counter_drift`.
        health: rows of COUNTER_HEALTH, the last week and as much before it as there is.
        last: the last day.
        skill: of the champion, if it fell.
    """
    week = last - timedelta(days=_WEEK_DAYS)
    found = []
    if shift:
        found.append(
            Alarm(
                "network",
                "",
                f"{shift.kind} shift to {shift.change:.0%} of what was expected, {shift.first} to {shift.last}",
            )
        )
    if skill is not None:
        found.append(Alarm("skill", "", f"skill fell from {skill.held_out:.1%} to {skill.lately:.1%}"))
    for name, change in counters.filter("drifted").select("counter_id", "change").iter_rows():
        level = f"{change:.0%} of its usual level" if change is not None else "far from its usual level"
        found.append(Alarm("counter", name, f"{level}, the city taken off"))
    faulty = (
        health.filter((pl.col("service_date") > week) & pl.col("state").is_in(UNHEALTHY))
        .group_by("counter_id", maintain_order=True)
        .agg(pl.col("state").last(), pl.col("reason").last(), pl.len())
        .sort("counter_id")
    )
    found += [
        Alarm("incident", name, f"{state} on {days} of the last {_WEEK_DAYS} days: {reason}")
        for name, state, reason, days in faulty.iter_rows()
    ]
    first_seen = health.group_by("counter_id").agg(pl.col("service_date").min()).sort("counter_id")
    oldest = health["service_date"].min()
    found += [
        Alarm("new_counter", name, f"counted for the first time on {day}")
        for name, day in first_seen.iter_rows()
        if day > week and day != oldest
    ]
    return found


def _t4_two_sided(value: pl.Expr) -> pl.Expr:
    """P(|T| ≥ |value|) of Student's t with four degrees of freedom, in closed form."""
    share = value.abs() / (value**2 + 4).sqrt()
    return (1 - 1.5 * share + 0.5 * share**3).clip(0.0, 1.0)


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
