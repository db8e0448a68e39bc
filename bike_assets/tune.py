"""`bike-assets tune`: better training options for the home's counts, found within a time budget, kept in a file.

Belongs here: reading counts and writing files. Does not belong here: what is tried and how it is judged
(`bike_assets.core.tuning`).

    <home>/training_options.json   the best options; BIKE_TRAINING_OPTIONS names it to trainings and backtests
    <home>/tuning.json             every trial, as `--json` prints it
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

from bike_assets.assets.forecasting import training_config
from bike_assets.backtest import newest_day, read_counts, read_weather, whole
from bike_assets.core.backtest import BacktestConfig, WeatherMode, plan_origins, told_weather, training_data
from bike_assets.core.model import with_truth
from bike_assets.core.training import TrainConfig
from bike_assets.core.tuning import Trial, tune
from bike_assets.settings import Settings
from bike_assets.sources.base import busy_span

OPTIONS_FILE: Final = "training_options.json"
TRIALS_FILE: Final = "tuning.json"


def tune_home(
    settings: Settings,
    budget_seconds: float,
    *,
    rows: int,
    until: date | None = None,
    weather: WeatherMode = "known",
    output: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Search options on the counts up to a day, and write the best if any beat those in force.

    Args:
        settings: the home, its family and the options in force.
        budget_seconds: time for the trials; reading counts and making features comes before it.
        rows: rows that each trial takes at most. Fewer give more trials, each more by chance.
        until: last day of counts that is looked at; by default the newest.
        weather: what models are told of the weather.
        output: file of the best options; by default `OPTIONS_FILE` in the home.
        say: is told what happens, a line at a time.

    Returns:
        The result as `bike-assets tune --json` prints it.
    """
    config = replace(training_config(settings), max_rows=rows)
    last = until or newest_day(settings)
    counts = read_counts(settings, last)
    # A backtest that would begin tomorrow: the training of its one origin sees what ours may.
    tomorrow = last + timedelta(days=1)
    origins = plan_origins(
        BacktestConfig(tomorrow, tomorrow, window_days=settings.training_days), busy_span(counts)[0]
    )
    known = told_weather(read_weather(settings), origins, weather)
    say(f"features of issue dates {origins[0].train_from} to {last}")
    data = training_data(counts, origins[0], config, known)
    del counts, known

    def tell(trial: Trial) -> None:
        options = ", ".join(f"{name} {value}" for name, value in trial.options.items())
        say(f"RMSE {trial.rmse:.3f} in {trial.seconds:.0f} s: {options or 'the options in force'}")

    found = tune(with_truth(data.features, data.truth), config, budget_seconds, time.monotonic, progress=tell)
    written = None
    if found.gain > 0:
        written = output or settings.home / OPTIONS_FILE
        changed = asdict(found.best).items() - asdict(TrainConfig()).items()
        options = {name: value for name, value in sorted(changed) if name != "max_rows"}
        with whole(written) as temporary:
            temporary.write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")
    result = {
        "family": config.family,
        "until": last,
        "rows": rows,
        "trials": [asdict(trial) for trial in found.trials],
        "best": asdict(found.best),
        "gain": found.gain,
        "options_file": written and str(written),
    }
    with whole(settings.home / TRIALS_FILE) as temporary:
        temporary.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    return result
