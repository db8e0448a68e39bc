"""Counter health on faults with truth: how many are found, how soon, and how often a healthy counter is alarmed.

    python benchmarks/counter_health.py [--seeds 5] [--counters 40] [--data FILE...]

Every seed is a simulated city of two years. In each, every counter that is healthy around it gets a fault of seven
days a season, of every kind in turn; a fault is found when the counter has the state that names it on one of the
seven days. Healthy counter-weeks are those in which the simulator broke nothing and in the week before neither. With
--data, the same faults are put into real exports, where no truth is known, and what health finds there is listed.
"""

import argparse
import time
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from bike_assets.core.calendar import local_columns
from bike_assets.core.health import LOOKBACK_DAYS, State, counter_health, incidents
from bike_assets.sources.archive import ArchiveSource
from bike_assets.sources.simulator import SimulatorSource

FIRST, LAST = date(2022, 6, 1), date(2024, 5, 31)
FAULT_DAYS = 7
FAULTS: dict[str, tuple[float, tuple[State, ...]]] = {
    "dead (x0)": (0.0, (State.DEAD,)),
    "x0.3": (0.3, (State.DRIFTING, State.DEAD)),
    "halved (x0.5)": (0.5, (State.DRIFTING,)),
    "x0.7": (0.7, (State.DRIFTING,)),
    "doubled (x2)": (2.0, (State.DRIFTING,)),
    "stuck": (float("nan"), (State.STUCK,)),
}
KEY = ["counter_id", "service_date"]


def city(seed: int, counters: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Cleaned counts of a simulated city, and the counter-days on which it broke something."""
    source = SimulatorSource(seed=seed, counters=counters, first_day=FIRST, last_day=LAST)
    return final(source.read(*source.span()).counts), source.faults(FIRST, LAST).select(KEY).unique()


def final(published: pl.DataFrame) -> pl.DataFrame:
    """The last published row of every counter and hour, on the wall clock."""
    rows = published.sort("published_until").unique(["counter_id", "ts_utc"], keep="last")
    return local_columns(rows)


def plan(clean: pl.DataFrame, first: date, last: date, seed: int) -> pl.DataFrame:
    """A fault for every counter and season of 63 days: `counter_id`, `start`, `fault`."""
    draw = np.random.default_rng(seed)
    kinds = list(FAULTS)
    rows = []
    for number, counter in enumerate(clean["counter_id"].unique().sort()):
        start = first + timedelta(days=LOOKBACK_DAYS + int(draw.integers(20)))
        turn = number
        while start + timedelta(days=FAULT_DAYS) <= last:
            rows.append((counter, start, kinds[turn % len(kinds)]))
            turn += 1
            start += timedelta(days=63)
    return pl.DataFrame(rows, schema=["counter_id", "start", "fault"], orient="row")


def spoil(counts: pl.DataFrame, faults: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The counts with the faults in them."""
    draw = np.random.default_rng(seed)
    spread = faults.with_columns(
        service_date=pl.date_ranges("start", pl.col("start") + pl.duration(days=FAULT_DAYS - 1))
    ).explode("service_date")
    rows = counts.join(spread.select(*KEY, "fault"), on=KEY, how="left").with_columns(
        level=pl.col("hourly_count").median().over("counter_id")
    )
    value = rows["hourly_count"].cast(pl.Float64).to_numpy().copy()
    kind = rows["fault"].fill_null("").to_numpy()
    for fault, (factor, _) in FAULTS.items():
        at = (kind == fault) & ~np.isnan(value)
        if fault == "stuck":
            value[at] = np.maximum(rows["level"].to_numpy()[at].round(), 1)
        elif factor < 1:
            value[at] = draw.binomial(value[at].astype(np.int64), factor)
        else:
            value[at] *= factor
    return rows.with_columns(hourly_count=pl.Series(value, nan_to_null=True)).drop("fault", "level")


def found(health: pl.DataFrame, faults: pl.DataFrame) -> pl.DataFrame:
    """For each fault the day, 1 to 7, on which it was found, null where it was not."""
    named = pl.DataFrame(
        [(fault, state.value) for fault, (_, states) in FAULTS.items() for state in states],
        schema=["fault", "state"],
        orient="row",
    )
    hits = (
        faults.join(named, on="fault")
        .join(health.select(*KEY, "state"), on=["counter_id", "state"])
        .with_columns(day=(pl.col("service_date") - pl.col("start")).dt.total_days() + 1)
        .filter(pl.col("day").is_between(1, FAULT_DAYS))
        .group_by("counter_id", "start")
        .agg(pl.col("day").min())
    )
    return faults.join(hits, on=["counter_id", "start"], how="left")


def weeks(frame: pl.DataFrame) -> pl.DataFrame:
    """The counter-weeks of counter-days."""
    return frame.select("counter_id", week=pl.col("service_date").dt.truncate("1w")).unique()


def false_alarms(health: pl.DataFrame, broken: pl.DataFrame) -> tuple[int, int]:
    """Healthy counter-weeks that were alarmed, and all healthy ones."""
    sick = weeks(broken)
    sick = pl.concat([sick, sick.with_columns(pl.col("week") + pl.duration(days=7))]).unique()
    healthy = weeks(health).join(sick, on=["counter_id", "week"], how="anti")
    alarmed = weeks(health.filter(pl.col("state") != State.ALIVE))
    return healthy.join(alarmed, on=["counter_id", "week"], how="semi").height, healthy.height


def healthy_around(faults: pl.DataFrame, health: pl.DataFrame) -> pl.DataFrame:
    """Faults whose counter was alive, with a level, on the seven days before and during them."""
    alive = health.filter((pl.col("state") == State.ALIVE) & pl.col("change").is_not_null())
    days = faults.with_columns(
        service_date=pl.date_ranges(
            pl.col("start") - pl.duration(days=7), pl.col("start") + pl.duration(days=FAULT_DAYS - 1)
        )
    ).explode("service_date")
    whole = days.join(alive, on=KEY, how="semi").group_by("counter_id", "start").len()
    return faults.join(whole.filter(pl.col("len") == 7 + FAULT_DAYS), on=["counter_id", "start"], how="semi")


def trial(counts: pl.DataFrame, first: date, last: date, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What was found of the faults put into the counts, and the health of the counts without them."""
    start = first + timedelta(days=LOOKBACK_DAYS)
    health = counter_health(counts, start, last)
    faults = healthy_around(plan(counts, first, last, seed), health)
    return found(counter_health(spoil(counts, faults, seed), start, last), faults), health


def power(results: pl.DataFrame) -> None:
    """Print how many faults of each kind were found, and when."""
    print(f"{'fault':>14} {'faults':>7} {'found':>7} {'median day':>11}")
    for fault in FAULTS:
        rows = results.filter(pl.col("fault") == fault)
        share = rows["day"].is_not_null().mean() or 0.0
        print(f"{fault:>14} {rows.height:>7} {share:7.1%} {rows['day'].median() or float('nan'):>11.0f}")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--counters", type=int, default=40)
    parser.add_argument("--data", nargs="+", type=Path, default=[])
    args = parser.parse_args()

    results, alarmed, healthy, spent, days = [], 0, 0, 0.0, 0
    for seed in range(args.seeds):
        counts, broken = city(seed, args.counters)
        started = time.perf_counter()
        result, health = trial(counts, FIRST, LAST, seed)
        spent, days = spent + time.perf_counter() - started, days + 2 * health.height
        results.append(result)
        wrong, all_healthy = false_alarms(health, broken)
        alarmed, healthy = alarmed + wrong, healthy + all_healthy
    print(f"simulated: {args.seeds} seeds, {args.counters} counters, {FIRST} to {LAST}")
    power(pl.concat(results))
    print(f"healthy counter-weeks alarmed: {alarmed} of {healthy:,} = {alarmed / max(healthy, 1):.2%}")
    print(f"{days / spent:,.0f} counter-days a second\n")
    if not args.data:
        return
    source = ArchiveSource(args.data)
    counts = final(source.read(*source.span()).counts)
    daily = counts.group_by("service_date").len().filter(pl.col("len") >= 24 * 10)  # no stray rows
    first, *_, last = daily["service_date"].sort().to_list()
    result, health = trial(counts.filter(pl.col("service_date") >= first), first, last, 0)
    print(f"real exports, {first} to {last}, faults put into healthy weeks")
    power(result)
    all_weeks = weeks(health)
    for state in (State.SILENT, State.DEAD, State.STUCK, State.DRIFTING):
        count = weeks(health.filter(pl.col("state") == state)).height
        print(
            f"counter-weeks {state.value}: {count} of {all_weeks.height:,} = {count / all_weeks.height:.2%}"
        )
    print("\nincidents found, with the reason")
    with pl.Config(tbl_rows=-1, fmt_str_lengths=90, tbl_width_chars=200, tbl_hide_dataframe_shape=True):
        print(
            incidents(counter_health(counts, first, last)).select(
                "service_date", "counter_id", "closed_on", "status", "state", "days", "reason"
            )
        )


if __name__ == "__main__":
    main()
