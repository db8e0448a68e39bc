"""What can be replayed and where, and the journal that lets a replay go on."""

import warnings
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest

from bike_assets.core.contracts import CALIBRATIONS
from bike_assets.core.drift import DriftPolicy
from bike_assets.core.errors import PermanentError
from bike_assets.policies import Policies
from bike_assets.settings import Settings
from bike_assets.sources.as_of import History
from bike_assets.sources.simulator import SimulatorSource

with warnings.catch_warnings():
    # dagster-dbt's SQL parser calls its own fast tokenizer old.
    warnings.simplefilter("ignore", DeprecationWarning)
    from bike_assets.replay import (
        Engine,
        Journal,
        WarehouseOfOneProcess,
        _interrupted,
        plan_replay,
        read_history,
    )

FIRST, LAST = date(2024, 1, 1), date(2024, 6, 30)


@pytest.fixture(scope="module")
def history() -> History:
    return History.of(SimulatorSource(counters=2, first_day=FIRST, last_day=LAST).read(FIRST, LAST))


def run(day: str, what: str) -> dict[str, object]:
    return {"day": day, "what": what, "success": True}


def test_a_journal_is_read_again_and_a_line_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "home" / "replay.jsonl"
    journal = Journal.open(path)
    journal.add(run("2024-05-01", "daily_ingest"))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"day": "2024-05-01", "wha')

    again = Journal.open(path)
    assert again.find("2024-05-01", "daily_ingest") == run("2024-05-01", "daily_ingest")
    assert again.find("2024-05-01", "changed_counts") is None
    again.add(run("2024-05-01", "changed_counts"))
    assert [each["what"] for each in Journal.open(path).runs] == ["daily_ingest", "changed_counts"]


def test_a_day_that_is_over_is_not_lived_again(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "replay.jsonl")
    journal.add(run("before", "features"))
    asked: list[date] = []
    engine = object.__new__(Engine)
    engine.journal = journal
    engine.ticks = lambda day: asked.append(day) or []  # type: ignore[method-assign,func-returns-value]

    engine.live(date(2024, 5, 1))
    journal.add(run("2024-05-02", "daily_ingest"))
    engine.live(date(2024, 5, 1))
    engine.live(date(2024, 5, 2))

    assert asked == [date(2024, 5, 1), date(2024, 5, 2)]


@pytest.mark.parametrize("signal", [KeyboardInterrupt, dg.DagsterExecutionInterruptedError])
def test_a_run_that_a_signal_ended_is_no_run_that_failed(signal: type[BaseException]) -> None:
    @dg.op
    def train() -> None:
        raise signal

    @dg.job
    def retrain() -> None:
        train()

    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    assert _interrupted(retrain.execute_in_process(raise_on_error=False, run_config=quiet))


def test_a_replay_has_a_home_of_its_own_that_its_thresholds_name(tmp_path: Path, history: History) -> None:
    settings = Settings(home=tmp_path)
    first, last = date(2024, 5, 20), date(2024, 5, 26)
    plain = plan_replay(settings, history, first, last, Policies())
    strict = plan_replay(settings, history, first, last, Policies("strict", DriftPolicy(sudden_z=9.0)))

    assert plain.settings.home.parent == tmp_path.resolve() / "replays"
    assert plan_replay(settings, history, first, last, Policies()) == plain
    assert len({plain.settings.home, strict.settings.home}) == 2
    assert strict.settings.monitoring.sudden_z == 9.0
    other = plan_replay(settings.model_copy(update={"seed": 1}), history, first, last, Policies())
    assert other.settings.home != plain.settings.home


def test_a_replay_never_writes_to_production(tmp_path: Path, history: History) -> None:
    settings = Settings(home=tmp_path).model_copy(
        update={"env": "prod", "mlflow_tracking_uri": "http://mlflow"}
    )

    replay = plan_replay(settings, history, date(2024, 5, 20), date(2024, 5, 26), Policies())

    assert (replay.settings.env, replay.settings.mlflow_tracking_uri) == ("local", "")
    assert replay.settings.tracking_uri.startswith("sqlite")


@pytest.mark.parametrize(
    ("first", "last", "problem"),
    [
        (date(2024, 6, 2), date(2024, 6, 1), "lies before"),
        (date(2024, 6, 2), LAST + timedelta(days=2), "the counts end on 2024-06-30"),
        (date(2024, 4, 29), LAST, "replay from 2024-04-30 on"),
    ],
)
def test_days_that_cannot_be_replayed_are_refused(
    tmp_path: Path, history: History, first: date, last: date, problem: str
) -> None:
    with pytest.raises(PermanentError, match=problem):
        plan_replay(Settings(home=tmp_path), history, first, last, Policies())


def test_the_live_source_has_no_past(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="replay exports"):
        read_history(Settings(home=tmp_path, source="paris"))


def test_a_table_whose_making_was_taken_back_is_not_taken_for_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no room")

    warehouse = WarehouseOfOneProcess(path=str(tmp_path / "warehouse.duckdb"))
    with monkeypatch.context() as patch:
        patch.setattr("bike_assets.resources.warehouse._insert", broken)
        with pytest.raises(RuntimeError, match="no room"):
            warehouse.replace(CALIBRATIONS, CALIBRATIONS.empty(), LAST, LAST)

    assert not warehouse.exists(CALIBRATIONS)
    assert warehouse.read(CALIBRATIONS).is_empty()
    warehouse.replace(CALIBRATIONS, CALIBRATIONS.empty(), LAST, LAST)
    assert warehouse.exists(CALIBRATIONS)
