"""Alarms of the drift report: how often on clean years, how soon in each scenario, and what of it in real exports.

    python benchmarks/drift_alarms.py [--seeds 100] [--first-seed 0] [--counters 12] [--rival 2]
                                      [--data FILE... --weather FILE]

Every seed is a simulated city of two years, judged every Monday of the second as the drift report does. Its clean year
has outages, replaced counters and weather of its own: an alarm about a counter that the simulator itself broke or
opened is right and does not count. A scenario starts on a random day and is found when an alarm about it comes within
14 days. A trend of half a percent a day has moved the level by 7 % by then, less than the city's own weeks: its 14 days
count from the day on which it has moved it by half, the 100th. `--rival` seeds are also judged by Evidently's
own defaults, against the four weeks before. With --data the Mondays of real exports are listed with their alarms.
"""

import argparse
import multiprocessing
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from datetime import date, timedelta
from itertools import repeat
from pathlib import Path

import numpy as np
import polars as pl

from bike_assets.core.calendar import days_between, local_columns
from bike_assets.core.drift import Alarm, DriftPolicy, alarms, counter_drift, network_drift
from bike_assets.core.health import LOOKBACK_DAYS, counter_health
from bike_assets.core.network import Network, believable_days, network, network_level
from bike_assets.core.profile import PROFILE_COLUMNS, daily_profile
from bike_assets.sources.archive import ArchiveSource
from bike_assets.sources.base import busy_span
from bike_assets.sources.simulated_weather import SimulatedWeather
from bike_assets.sources.simulator import Scenario, SimulatorSource
from bike_assets.sources.weather import WeatherFiles

FIRST, JUDGED, LAST = date(2022, 1, 1), date(2023, 1, 2), date(2023, 12, 31)
WITHIN = dict.fromkeys(Scenario, 14) | {Scenario.TREND: 114}
SCENARIOS = (
    Scenario.HALVED_COUNTER,
    Scenario.DEAD_COUNTER,
    Scenario.STUCK_COUNTER,
    Scenario.NEW_COUNTER,
    Scenario.CITY_SHOCK,
    Scenario.STRIKE,
    Scenario.TREND,
)
CITY_WIDE = (Scenario.CITY_SHOCK, Scenario.STRIKE, Scenario.TREND)
COLUMNS = ["service_date", "counter_id", "ts_utc", "local_hour", "hourly_count"]


def final(published: pl.DataFrame) -> pl.DataFrame:
    """The last published row of every counter and hour."""
    rows = published.sort("published_until").unique(["counter_id", "ts_utc"], keep="last")
    return local_columns(rows).select(COLUMNS)


def mondays(first: date, last: date) -> list[date]:
    """Mondays from first to last."""
    return [day for day in days_between(first, last) if day.weekday() == 0]


def report(city: Network, health: pl.DataFrame, monday: date, policy: DriftPolicy) -> list[Alarm]:
    """The alarms of a Monday's drift report."""
    last = monday - timedelta(days=1)
    known = health.filter(pl.col("service_date").is_between(last - timedelta(days=120), last))
    return alarms(network_drift(city, last, policy), counter_drift(known, last, policy), known, last)


def extended(city: Network, health: pl.DataFrame, last: date) -> Network:
    """The network up to a day with the counters of other health; calendar and weather stay."""
    days = city.days[: city.days.index(last) + 1]
    return Network(days, network_level(believable_days(health), days), city.inputs[: len(days)])


def judge_seed(
    seed: int, counters: int, policy: DriftPolicy
) -> tuple[list[str], dict[str, bool], pl.DataFrame]:
    """What each clean Monday was alarmed of (empty: nothing), which scenarios were found, and the clean counts."""
    settings = {"seed": seed, "counters": counters, "first_day": FIRST, "last_day": LAST}
    source = SimulatorSource(**settings)  # type: ignore[arg-type]
    clean = final(source.read(FIRST, LAST).counts)
    health = counter_health(clean, FIRST, LAST)
    weather = SimulatedWeather(seed=seed, last_day=LAST).read(FIRST, LAST).rows.filter(kind="observed")
    city = network(believable_days(health), days_between(FIRST, LAST), weather)
    faults = source.faults(FIRST, LAST).select("service_date", "counter_id").unique()
    weeks = []
    for monday in mondays(JUDGED, LAST):
        month = faults.filter(pl.col("service_date").is_between(monday - timedelta(days=28), monday))
        broken = set(month["counter_id"])
        told = [
            alarm.about
            for alarm in report(city, health, monday, policy)
            if alarm.about != "new_counter" and alarm.which not in broken
        ]
        weeks.append("+".join(sorted(set(told))))
    found = {}
    draw = np.random.default_rng(seed)
    for scenario in SCENARIOS:
        start = JUDGED + timedelta(days=30 + int(draw.integers(214)))
        end = start + timedelta(days=WITHIN[scenario])
        new = final(
            SimulatorSource(**settings, scenario=scenario, scenario_start=start).read(start, end).counts  # type: ignore[arg-type]
        )
        before = clean.filter(
            pl.col("service_date").is_between(
                start - timedelta(days=LOOKBACK_DAYS + 1), start - timedelta(days=1)
            )
        )
        after = counter_health(pl.concat([before, new]), start, end)
        both = pl.concat([health.filter(pl.col("service_date") < start), after])
        moved = extended(city, both, end) if scenario in CITY_WIDE else city
        about = ("network",) if scenario in CITY_WIDE else ("counter", "incident", "new_counter")
        known = set(clean["counter_id"])
        first = {min(known)} if scenario is not Scenario.NEW_COUNTER else set(new["counter_id"]) - known
        found[f"{scenario}"] = any(
            alarm.about in about and (scenario in CITY_WIDE or alarm.which in first)
            for monday in mondays(start + timedelta(days=1), end)
            for alarm in report(moved, both, monday, policy)
        )
    return weeks, found, clean


def rival_weeks(clean: pl.DataFrame, first: date, last: date) -> list[bool]:
    """Whether Evidently's defaults call each Monday's week drifted, against the four weeks before."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    profile = daily_profile(clean)
    definition = DataDefinition(numerical_columns=list(PROFILE_COLUMNS))
    drifted = []
    for monday in mondays(first, last):
        week = profile.filter(
            pl.col("service_date").is_between(monday - timedelta(days=7), monday - timedelta(days=1))
        )
        before = profile.filter(
            pl.col("service_date").is_between(monday - timedelta(days=35), monday - timedelta(days=8))
        )
        current, reference = (
            Dataset.from_pandas(each.select(PROFILE_COLUMNS).to_pandas(), data_definition=definition)
            for each in (week, before)
        )
        result = Report([DataDriftPreset()]).run(current, reference).dict()["metrics"]
        drifted.append(float(result[0]["value"]["share"]) >= 0.5)
    return drifted


def real(paths: list[Path], weather: Path | None, policy: DriftPolicy, rival: bool) -> None:
    """The Mondays of real exports and their alarms."""
    source = ArchiveSource(paths)
    counts = source.read(*source.span()).counts
    first, last = busy_span(counts)
    clean = final(counts).filter(pl.col("service_date").is_between(first, last))
    health = counter_health(clean, first, last)
    observed = WeatherFiles((weather,)).read(first, last).rows if weather else None
    city = network(believable_days(health), days_between(first, last), observed)
    judged = mondays(first + timedelta(days=120), last)
    kinds: Counter[str] = Counter()
    opened: Counter[str] = Counter()
    before: set[tuple[str, str]] = set()
    for monday in judged:
        told = report(city, health, monday, policy)
        kinds.update({alarm.about for alarm in told})
        now = {(alarm.about, alarm.which) for alarm in told}
        opened.update({about for about, _ in now - before})
        before = now
        for alarm in told:
            if alarm.about in ("network", "counter"):
                print(f"{monday} {alarm.about} {alarm.which}: {alarm.why}")
    print(f"real exports, {len(judged)} Mondays from {judged[0]} to {judged[-1]}")
    for about in ("network", "counter", "incident", "new_counter"):
        print(
            f"  weeks with {about}: {kinds[about] / len(judged):.1%}; newly opened in {opened[about] / len(judged):.1%}"
        )
    if rival:
        weeks = rival_weeks(clean, judged[0], judged[-1])
        print(f"  Evidently's defaults: {np.mean(weeks):.1%} of weeks drifted")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--counters", type=int, default=12)
    parser.add_argument("--rival", type=int, default=2, help="seeds that Evidently's defaults judge too")
    parser.add_argument("--data", nargs="+", type=Path, default=[])
    parser.add_argument("--weather", type=Path, default=None)
    args = parser.parse_args()
    policy, started = DriftPolicy(), time.perf_counter()
    weeks: Counter[str] = Counter()
    found: Counter[str] = Counter()
    rival: list[bool] = []
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    os.environ["POLARS_MAX_THREADS"] = (
        "1"  # of the processes that begin here: each seed has a processor of its own
    )
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        judged = pool.map(judge_seed, seeds, repeat(args.counters), repeat(policy))
        for number, (told, hits, clean) in enumerate(judged):
            weeks.update(told)
            found.update(name for name, hit in hits.items() if hit)
            if number < args.rival:
                rival += rival_weeks(clean, JUDGED, LAST)
    if args.seeds:
        total = weeks.total()
        print(f"{args.seeds} seeds, {total:,} clean weeks, {time.perf_counter() - started:.0f} s")
        print(f"clean weeks alarmed: {1 - weeks[''] / total:.2%} ({dict(weeks)})")
        if rival:
            print(f"Evidently's defaults on {len(rival)} of them: {np.mean(rival):.1%} drifted")
        for scenario in SCENARIOS:
            print(
                f"{scenario:>16} found within {WITHIN[scenario]} days: {found[f'{scenario}'] / args.seeds:.1%}"
            )
    if args.data:
        real(args.data, args.weather, policy, args.rival > 0)


if __name__ == "__main__":
    main()
