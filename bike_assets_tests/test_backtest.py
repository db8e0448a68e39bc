"""A backtest over a home: what is kept is used again, what changed is not, and a kill loses one origin at most."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from bike_assets.backtest import METRICS_FILE, backtest_id, needs_filling, read_counts, run_backtest
from bike_assets.core.backtest import BacktestConfig
from bike_assets.core.contracts import CLEANED_COUNTS
from bike_assets.core.errors import PermanentError
from bike_assets.core.training import TrainConfig
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.settings import Settings
from bike_assets_tests.core.synthetic import city
from bike_assets_tests.homes import DemoHome, bike_assets, copy_home, one_json, settings_of, started

FIRST, LAST = date(2024, 3, 1), date(2024, 7, 9)
CONFIG = BacktestConfig(
    date(2024, 6, 20),
    LAST,
    retrain="monthly",
    families=("seasonal_naive",),
    training=TrainConfig(max_rows=3_000, calibration_days=7),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home that holds nothing but cleaned counts."""
    settings = settings_of(tmp_path_factory.mktemp("backtest") / "home")
    _fill(settings, city(FIRST, LAST, counters=2))
    return settings


def _fill(settings: Settings, counts: pl.DataFrame, **flags: pl.Expr) -> None:
    cleaned = counts.with_columns(
        published_count=pl.col("hourly_count"),
        is_outage=False,
        is_spike=False,
        is_stuck=False,
        revisions=1,
        published_until=pl.col("ts_utc"),
    ).with_columns(**flags)
    DuckDBWarehouse(path=str(settings.warehouse_path)).replace(
        CLEANED_COUNTS, cleaned, FIRST, LAST + timedelta(days=1)
    )


def _metrics(result: dict[str, Any]) -> pl.DataFrame:
    return pl.read_parquet(Path(result["folder"]) / METRICS_FILE)


def test_finished_origins_are_kept_and_a_lost_one_is_made_again_alike(home: Settings) -> None:
    told: list[float] = []
    first = run_backtest(home, CONFIG, mlflow=False, progress=lambda _, share: told.append(share))
    assert first["origins_reused"] == 0
    assert [str(origin["first"]) for origin in first["origins"]] == ["2024-06-20", "2024-07-01"]
    assert told == sorted(told)
    assert told[-1] == 1
    before = _metrics(first)
    shutil.rmtree(Path(first["folder"]) / "forecasts" / "2024-07-01")
    again = run_backtest(home, CONFIG, mlflow=False)
    assert (again["id"], again["origins_reused"]) == (first["id"], 2)  # June, of both baselines
    assert_frame_equal(_metrics(again), before, rel_tol=1e-9)  # sums may be added in another order
    assert json.loads((Path(again["folder"]) / "result.json").read_text())["id"] == first["id"]
    report = (Path(again["folder"]) / "report.html").read_text()
    assert 'src="http' not in report
    assert all(
        word in report for word in ("Families side by side", "where it fails", "c01", "data:image/png")
    )


def test_other_counts_windows_and_settings_are_another_backtest_and_other_families_are_not(
    home: Settings, tmp_path: Path
) -> None:
    one = backtest_id(read_counts(home, LAST), CONFIG)
    other = settings_of(tmp_path / "home")
    counts = city(FIRST, LAST, counters=2)
    day = timedelta(days=1)
    tomorrow = counts.filter(service_date=LAST).with_columns(pl.col("service_date", "ts_utc") + day)
    _fill(other, pl.concat([counts, tomorrow]))
    assert backtest_id(read_counts(other, LAST), CONFIG) == one
    _fill(other, counts.with_columns(pl.col("hourly_count") + (pl.col("service_date") == FIRST)))
    assert backtest_id(read_counts(other, LAST), CONFIG) != one
    assert backtest_id(read_counts(home, LAST), replace(CONFIG, window_days=30)) != one
    assert backtest_id(read_counts(home, LAST), replace(CONFIG, training=TrainConfig(seed=1))) != one
    assert backtest_id(read_counts(home, LAST), replace(CONFIG, families=("catboost",))) == one


def test_a_home_is_filled_when_it_has_nothing_or_another_source_is_named(
    home: Settings, tmp_path: Path
) -> None:
    assert not needs_filling(home, named=False)
    assert needs_filling(home, named=True)
    assert needs_filling(settings_of(tmp_path / "none"), named=False)


def test_a_home_without_counts_of_the_period_says_so(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="run: bike-assets ingest"):
        run_backtest(settings_of(tmp_path / "none"), CONFIG, mlflow=False)


def test_a_training_learns_from_what_the_platform_learns_from(home: Settings, tmp_path: Path) -> None:
    other = settings_of(tmp_path / "home")
    spike = pl.col("ts_utc") == pl.col("ts_utc").max()
    _fill(other, city(FIRST, LAST, counters=2), is_spike=spike)
    counts = read_counts(other)
    assert counts.filter(~pl.col("is_believable")).height == 2
    assert counts.filter(pl.col("is_spike") == pl.col("is_believable")).is_empty()
    assert read_counts(home)["is_believable"].all()


@pytest.mark.slow
@pytest.mark.integration
def test_killed_and_run_again_it_goes_on_and_beats_the_naive_everywhere(
    demo_home: DemoHome, tmp_path: Path
) -> None:
    command = ("backtest", "--from", "2024-11-15", "--to", "2024-12-31", "--retrain", "monthly", "--json")
    whole = copy_home(demo_home.path, tmp_path / "whole")
    expected = one_json(bike_assets(*command, "--home", whole).stdout)
    cut = copy_home(demo_home.path, tmp_path / "cut")
    with started(*command, "--home", cut):  # which kills it
        _wait(lambda: bool(list((cut / "backtests").glob("*/forecasts/2024-11-15/catboost.parquet"))))
    found = one_json(bike_assets(*command, "--home", cut).stdout)
    assert 1 <= found["origins_reused"] < 6
    assert found["id"] == expected["id"]
    for family, row in expected["families"].items():
        assert found["families"][family]["all"] == pytest.approx(row["all"])
    judged = found["families"]["catboost"]["verdict"]
    assert (judged["months_lost"], judged["horizons_lost"]) == ([], [])
    assert judged["counters_won"] >= 0.95
    assert found["mlflow_run"].startswith("http")


def _wait(ready: Callable[[], bool]) -> None:
    for _ in range(3_000):
        if ready():
            return
        time.sleep(0.1)
    raise AssertionError("the first origin was never kept")
