"""A search of options keeps its time, repeats itself, never looks ahead, and proposes only what is better."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from bike_assets.core import tuning
from bike_assets.core.calendar import days_between
from bike_assets.core.errors import PermanentError
from bike_assets.core.features import build_features
from bike_assets.core.intervals import target_day
from bike_assets.core.model import with_truth
from bike_assets.core.training import TrainConfig
from bike_assets.core.tuning import SPACE, draw, splits, tune
from bike_assets_tests.core.synthetic import city

FIRST, LAST = date(2023, 9, 1), date(2024, 1, 14)
CONFIG = TrainConfig(iterations=5, members=2, depth=2, thread_count=2)


def clock(step: float) -> Callable[[], float]:
    """A clock that goes on by `step` whenever it is read."""
    told = iter(np.arange(0.0, 1e6, step))
    return lambda: float(next(told))


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    counts = city(FIRST, LAST)
    days = days_between(FIRST + timedelta(days=35), LAST)
    return with_truth(build_features(counts, days), counts).gather_every(29)


@pytest.fixture
def small_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "SPACE", {"catboost": {"iterations": (1, 12), "learning_rate": (0.001, 0.3)}})


@pytest.mark.usefixtures("small_space")
def test_the_search_repeats_itself_and_proposes_what_won(rows: pl.DataFrame) -> None:
    found, again = (tune(rows, CONFIG, 1e9, clock(1.0), max_trials=4) for _ in range(2))
    assert [trial.options for trial in found.trials] == [trial.options for trial in again.trials]
    assert [trial.rmse for trial in found.trials] == [trial.rmse for trial in again.trials]
    assert found.trials[0].options == {}
    winner = min(found.trials, key=lambda trial: trial.rmse)
    assert found.best == replace(CONFIG, **winner.options)
    assert found.gain == pytest.approx(1 - winner.rmse / found.trials[0].rmse)
    assert len({trial.rmse for trial in found.trials}) == 4


def test_options_in_force_stay_where_nothing_beats_them(
    rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "SPACE", {"catboost": {"weight_power": (0.5, 0.5)}})
    found = tune(rows, CONFIG, 1e9, clock(1.0), max_trials=2)
    assert found.trials[1].options == {"weight_power": CONFIG.weight_power}
    assert found.best is CONFIG
    assert found.gain == 0


@pytest.mark.usefixtures("small_space")
def test_no_trial_begins_that_would_not_end_in_time(rows: pl.DataFrame) -> None:
    # The clock is read once before, twice a trial and once to judge: a trial takes 10 s of it, a round 30.
    assert len(tune(rows, CONFIG, 5.0, clock(10.0)).trials) == 1
    assert len(tune(rows, CONFIG, 100.0, clock(10.0)).trials) == 4


def test_a_trial_is_scored_on_days_that_its_training_ended_before(
    rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    errors = tuning._squared_errors

    def spy(before: pl.DataFrame, after: pl.DataFrame, config: TrainConfig) -> tuning.Array:
        seen.append((before, after))
        return errors(before, after, config)

    monkeypatch.setattr(tuning, "_squared_errors", spy)
    tune(rows, CONFIG, 1e9, clock(1.0), max_trials=1)
    newest = rows.select(target_day().max()).item()
    assert [after.select(target_day().max()).item() for _, after in seen] == [
        end for _, end in splits(newest)
    ]
    for before, after in seen:
        assert before.select(target_day().max()).item() < after["service_date"].min()


@pytest.mark.parametrize("family", SPACE)
def test_options_are_drawn_within_their_ranges_and_allowed(family: str) -> None:
    chance = np.random.default_rng(0)
    drawn = [draw(TrainConfig(family=family), chance) for _ in range(200)]
    for name, (low, high) in SPACE[family].items():
        values = [options[name] for options in drawn]
        assert low <= min(values) < max(values) <= high
        assert {type(value) for value in values} == {type(getattr(TrainConfig(), name))}
    for options in drawn:
        TrainConfig(family=family, **options)


def test_too_little_history_and_a_family_without_options_are_said(rows: pl.DataFrame) -> None:
    with pytest.raises(PermanentError, match="more than 56 issue dates"):
        tune(rows.filter(pl.col("service_date") > date(2023, 12, 24)), CONFIG, 1.0, clock(1.0))
    with pytest.raises(PermanentError, match="seasonal_naive has no options"):
        tune(rows, replace(CONFIG, family="seasonal_naive"), 1.0, clock(1.0))
