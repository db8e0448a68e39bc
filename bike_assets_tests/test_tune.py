"""Options that a search found are kept in a file that trainings and backtests then use, and no typo survives in it."""

import json
from datetime import date, timedelta
from pathlib import Path

import pytest

from bike_assets.assets.forecasting import training_config
from bike_assets.core.calendar import days_between
from bike_assets.core.contracts import CLEANED_COUNTS
from bike_assets.core.errors import PermanentError
from bike_assets.core.training import TrainConfig
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.settings import load_settings
from bike_assets.tune import OPTIONS_FILE, TRIALS_FILE, tune_home
from bike_assets_tests.core.synthetic import city
from bike_assets_tests.homes import bike_assets, one_json, settings_of

FIRST, LAST = date(2024, 3, 1), date(2024, 6, 30)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that holds nothing but cleaned counts."""
    settings = settings_of(tmp_path_factory.mktemp("tune") / "home")
    counts = city(FIRST, LAST, counters=2)
    cleaned = counts.with_columns(
        published_count="hourly_count", is_outage=False, is_spike=False, is_stuck=False, revisions=1,
        published_until="ts_utc",
    )  # fmt: skip
    days = days_between(FIRST, LAST + timedelta(days=1))
    DuckDBWarehouse(path=str(settings.warehouse_path)).replace(CLEANED_COUNTS, cleaned, days[0], days[-1])
    return settings.home


@pytest.mark.slow
def test_the_best_options_are_written_and_used(home: Path, tmp_path: Path) -> None:
    # Free of any penalty and then exaggerated: what is drawn beats that.
    poor = tmp_path / "poor.json"
    poor.write_text(json.dumps({"linear_ridge": 0.01, "shrinkage": 1.5, "family": "log_linear"}))
    settings = load_settings(home=home, training_options=poor)
    told: list[str] = []
    found = tune_home(settings, 20.0, rows=2_000, say=told.append)
    assert found["gain"] > 0
    assert len(found["trials"]) > 1
    assert len(told) == len(found["trials"]) + 1
    assert json.loads((home / TRIALS_FILE).read_text())["gain"] == found["gain"]
    written = home / OPTIONS_FILE
    assert found["options_file"] == str(written)
    used = training_config(load_settings(home=home, training_options=written))
    assert used == TrainConfig(**{**found["best"], "max_rows": used.max_rows})
    assert used.family == "log_linear"
    assert used.linear_ridge >= 10


def test_the_command_prints_its_trials(home: Path) -> None:
    done = bike_assets("tune", "--home", str(home), "--budget", "1", "--rows", "1000", "--json")
    result = one_json(done.stdout)
    assert result["trials"][0]["options"] == {}
    assert result["best"]["max_rows"] == 1000


def test_a_variable_comes_before_the_file_and_the_file_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = tmp_path / "options.json"
    options.write_text('{"seed": 5, "max_rows": 9000, "depth": 4}')
    config = training_config(load_settings(home=tmp_path, training_options=options))
    assert (config.seed, config.max_rows, config.depth, config.members) == (5, 9000, 4, TrainConfig.members)
    monkeypatch.setenv("BIKE_SEED", "6")
    monkeypatch.setenv("BIKE_ITERATIONS", "7")
    config = training_config(load_settings(home=tmp_path, training_options=options))
    assert (config.seed, config.iterations, config.depth) == (6, 7, 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "run bike-assets tune"),
        ("[1]", "one JSON object"),
        ('{"detph": 4}', "no training option 'detph'"),
    ],
)
def test_a_file_that_is_no_options_is_refused_by_its_name(tmp_path: Path, text: str, said: str) -> None:
    options = tmp_path / "options.json"
    options.write_text(text)
    with pytest.raises(PermanentError, match=said) as caught:
        training_config(load_settings(home=tmp_path, training_options=options))
    assert str(options) in str(caught.value)
    options.unlink()
    with pytest.raises(PermanentError, match=r"options\.json"):
        training_config(load_settings(home=tmp_path, training_options=options))
