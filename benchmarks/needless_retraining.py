"""Trainings that the default policy asks for in clean simulated years, where none is needed, and where one is.

    python benchmarks/needless_retraining.py [--seeds 10] [--first-seed 0] [--counters 12] [--worse]

Every seed is a simulated city of two years with weather, seasons, outages and replaced counters of its own and no
drift. The default model learns from the first year and forecasts every morning of the second; every Monday the
retraining decision is made as `retraining_decision` makes it, from the accuracy realised in four weeks and the skill
against the model's held-out days. Where the drift of the columns decides, they are compared as `drift_report` compares
them. Nothing is trained again: a cause that lasts is counted whenever the cooldown is over.

With --worse the model goes bad in the middle of the year: from then on its forecasts are those of the hour before, as
if a clock had been set wrong. Printed is after how many days a training is asked for.
"""

import argparse
import tempfile
import time
from collections import Counter
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import polars as pl
from drift_alarms import COLUMNS, FIRST, JUDGED, LAST, mondays

from bike_assets.assets.evidently_report import drift_report
from bike_assets.assets.monitoring import RATIO_COLUMNS, Realised, day_errors, with_ratios
from bike_assets.core.backtest import Origin, fit, issue, training_data
from bike_assets.core.calendar import local_columns
from bike_assets.core.drift import DriftPolicy, reference_days, skill_fell
from bike_assets.core.features import WARM_UP_DAYS
from bike_assets.core.health import NOT_LEARNED, UNHEALTHY, counter_health, of_healthy_days, without
from bike_assets.core.intervals import target_day
from bike_assets.core.profile import PROFILE_COLUMNS, daily_profile
from bike_assets.core.retraining import decide_retraining
from bike_assets.core.skill import fairly_based, skill_change
from bike_assets.core.training import TrainConfig
from bike_assets.settings import Settings
from bike_assets.sources.simulated_weather import SimulatedWeather
from bike_assets.sources.simulator import SimulatorSource

DAYS = Settings.model_fields["drift_days"].default
WORSE = date(JUDGED.year, 7, 3)


def cleaned(source: SimulatorSource, health: pl.DataFrame, counts: pl.DataFrame) -> pl.DataFrame:
    """Counts as a backtest takes them: what the simulator broke is flagged, as cleaning flags it."""
    faults = source.faults(FIRST, LAST).select("counter_id", "ts_utc", "fault")
    flagged = counts.join(faults, on=["counter_id", "ts_utc"], how="left").with_columns(
        is_outage=(pl.col("fault") == "zero").fill_null(value=False),
        is_spike=(pl.col("fault") == "spike").fill_null(value=False),
        is_stuck=pl.lit(value=False),
    )
    learned = without(flagged, health, NOT_LEARNED).select("counter_id", "ts_utc", is_believable=True)
    return flagged.join(learned, on=["counter_id", "ts_utc"], how="left").with_columns(
        is_believable=pl.col("is_believable").fill_null(value=False) & ~pl.col("is_spike")
    )


def realised(scored: pl.DataFrame, monday: date) -> Realised:
    """Accuracy of the four weeks before a Monday, all horizons together."""
    known = scored.filter(
        pl.col("service_date").is_between(monday - timedelta(days=DAYS), monday - timedelta(days=1))
    )
    truth = known["hourly_count"].cast(pl.Float64)
    errors = float(((known["forecast"] - truth) ** 2).sum())
    spread = float(((truth - truth.mean()) ** 2).sum())
    return Realised(1 - errors / spread, known.height, known["service_date"].n_unique())


def an_hour_late(scored: pl.DataFrame) -> pl.DataFrame:
    """Forecasts that from `WORSE` on are those of the hour before."""
    vintage = ["service_date", "counter_id", "horizon"]
    late = pl.col("forecast").shift(1).over(vintage, order_by="target_ts").fill_null(pl.col("forecast"))
    return scored.with_columns(
        forecast=pl.when(pl.col("service_date") >= WORSE).then(late).otherwise(pl.col("forecast"))
    )


def drift_share(
    counts: pl.DataFrame, health: pl.DataFrame, lately: pl.DataFrame, held_out: pl.DataFrame, monday: date
) -> float | None:
    """Share of the columns that drifted in the four weeks before a Monday, as `drift_report` tests them."""
    history = without(counts.filter(pl.col("service_date") < monday), health, UNHEALTHY)
    current = history.filter(pl.col("service_date") >= monday - timedelta(days=DAYS))
    reference = reference_days(
        current_days=current["service_date"].unique().to_list(),
        available_days=history["service_date"].unique().to_list(),
    )
    with tempfile.TemporaryDirectory() as folder:
        return drift_report(
            current=with_ratios(daily_profile(current), lately),
            reference=with_ratios(
                daily_profile(history.filter(pl.col("service_date").is_in(reference.days))), held_out
            ),
            columns=(*PROFILE_COLUMNS, *RATIO_COLUMNS),
            html_path=Path(folder) / "drift.html",
            json_path=Path(folder) / "drift.json",
            threshold=DriftPolicy().column_distance,
        ).share


def decisions(seed: int, counters: int, *, worse: bool) -> list[tuple[date, str, str]]:
    """Every Monday's decision, with its reasons."""
    source = SimulatorSource(seed=seed, counters=counters, first_day=FIRST, last_day=LAST)
    published = source.read(FIRST, LAST).counts.sort("published_until")
    rows = local_columns(published.unique(["counter_id", "ts_utc"], keep="last"))
    health = counter_health(rows.select(COLUMNS), FIRST, LAST)
    counts = cleaned(source, health, rows)
    weather = SimulatedWeather(seed=seed, last_day=LAST).read(FIRST, LAST).rows
    year = Origin(FIRST + timedelta(days=WARM_UP_DAYS), JUDGED - timedelta(days=1), JUDGED, LAST)
    data = training_data(counts, year, TrainConfig(), weather)
    forecaster = fit("catboost", data, TrainConfig())
    possible = counts.filter(~pl.col("is_spike")).select("counter_id", target_ts="ts_utc")
    scored = issue(forecaster, counts, year, data, weather).join(
        possible, on=["counter_id", "target_ts"], how="semi"
    )
    if worse:
        scored = an_hour_late(scored)
    all_horizons = of_healthy_days(
        scored.rename({"service_date": "issue_date"}).with_columns(
            service_date=scored.select(target_day()).to_series()
        ),
        health,
        "issue_date",
    )
    spikes = counts.filter("is_spike")
    ahead, held_out = (
        fairly_based(of_healthy_days(rows.filter(horizon=1), health), spikes).drop_nulls("mean4")
        for rows in (scored, forecaster.holdout)
    )
    answers: list[tuple[date, str, str]] = []
    trained = year.train_until
    for monday in mondays(JUDGED + timedelta(days=7), LAST):
        truth = realised(all_horizons, monday)
        lately = ahead.filter(
            pl.col("service_date").is_between(monday - timedelta(days=DAYS), monday - timedelta(days=1))
        )
        decide = partial(
            decide_retraining,
            truth.r2,
            n_truth_rows=truth.rows,
            n_truth_days=truth.days,
            skill_fell=skill_fell(skill_change(day_errors(held_out), day_errors(lately)), DriftPolicy()),
            days_since_training=(monday - trained).days,
        )
        answer = decide(1.0)
        if answer.decision == "retrain_proactive":
            answer = decide(drift_share(counts, health, lately, held_out, monday))
        trained = monday if answer.retrain else trained
        answers.append((monday, answer.decision, "; ".join(answer.reasons)))
    return answers


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--counters", type=int, default=12)
    parser.add_argument("--worse", action="store_true")
    args = parser.parse_args()
    started, kinds, trainings = time.perf_counter(), Counter[str](), 0
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        answers = decisions(seed, args.counters, worse=args.worse)
        kinds.update(decision for _, decision, _ in answers)
        asked = [answer for answer in answers if answer[1].startswith("retrain")]
        trainings += len(asked)
        print(f"seed {seed}: {len(answers)} Mondays, {len(asked)} trainings asked for", flush=True)
        for monday, decision, reasons in asked:
            print(f"  {monday} {decision}: {reasons}", flush=True)
        if args.worse:
            after = next(((monday - WORSE).days for monday, *_ in asked if monday > WORSE), None)
            print(f"  worse from {WORSE} on: a training is asked for after {after} days", flush=True)
    print(
        f"{args.seeds} years{'' if args.worse else ', clean'}, {kinds.total()} Mondays: {trainings} trainings "
        f"({dict(kinds)}), {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
