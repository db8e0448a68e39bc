"""Killed in the middle of any asset and run again, the tables are those of an undisturbed run."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import dagster as dg
import duckdb
import pytest

from bike_assets.home import open_instance
from bike_assets_tests.homes import (
    RUN_SECONDS,
    TINY_CITY,
    DemoHome,
    assert_same_tables,
    bike_assets,
    copy_home,
    forget_models,
    kill,
    one_json,
    run_logs,
    settings_of,
    started,
    tables,
    wait_for_step,
    without_runs,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(RUN_SECONDS)]

FEATURES = ("materialize", "features", "--from", "2024-11-01", "--to", "2025-01-01")
PREDICTIONS = ("materialize", "predictions", "--from", "2024-12-04", "--to", "2025-01-01")
MONITORING = ("materialize", "drift_report", "retraining_decision", "--partition", "2025-01-01")

Wound = Callable[[Path], None]


def emptied(table: str, condition: str = "TRUE") -> Wound:
    """The rows that the killed run would have written are not there beforehand."""

    def wound(home: Path) -> None:
        with duckdb.connect(str(home / "warehouse.duckdb")) as connection:
            connection.execute(f"DELETE FROM {table} WHERE {condition}")  # noqa: S608  names stand below

    return wound


def dbt_is_running(process: subprocess.Popen[str]) -> bool:
    """Whether the process has started dbt, looked up in /proc."""
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    for child in " ".join(path.read_text() for path in children).split():
        with contextlib.suppress(FileNotFoundError):
            if b"dbt" in Path(f"/proc/{child}/cmdline").read_bytes():
                return True
    return False


def kill_in(
    home: Path, step: str, arguments: Sequence[str | Path], *, after: float, group: bool = True
) -> None:
    """Run a command and kill it `after` seconds into a step."""
    before = run_logs(home)
    with started(*arguments, "--home", home) as process:
        wait_for_step(home, step, before, process)
        time.sleep(after)
        assert process.poll() is None, f"was done before it could be killed in {step}"
        kill(process, group=group)


@pytest.mark.parametrize(
    ("arguments", "step", "wound", "after"),
    [
        pytest.param(
            *(
                FEATURES,
                "features",
                emptied("bike_traffic_features.features", "service_date >= '2024-11-01'"),
                0.5,
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(PREDICTIONS, "predictions", emptied("bike_traffic_predictions.predictions"), 0.2),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(MONITORING, "drift_report", emptied("monitoring_audit.retraining_decisions"), 1.0),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(MONITORING, "retraining_decision", emptied("monitoring_audit.retraining_decisions"), 0.0),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["features", "predictions", "drift_report", "retraining_decision"],
)
def test_killed_in_an_asset_and_run_again(
    demo_home: DemoHome, tmp_path: Path, arguments: Sequence[str], step: str, wound: Wound, after: float
) -> None:
    home = copy_home(demo_home.path, tmp_path / "home")
    wound(home)
    kill_in(home, step, arguments, after=after)
    again = bike_assets(*arguments, "--home", home, "--json")
    assert again.returncode == 0, again.stderr
    one_json(again.stdout)
    assert_same_tables(tables(home), tables(demo_home.path))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home into which the tiny city was ingested without any trouble."""
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    done = bike_assets("ingest", "--home", home, env=TINY_CITY)
    assert done.returncode == 0, done.stderr
    return home


@pytest.mark.slow
def test_killed_in_raw_counts_and_ingested_again(tmp_path: Path, undisturbed: Path) -> None:
    home = tmp_path / "home"
    with started("ingest", "--home", home, env=TINY_CITY) as process:
        wait_for_step(home, "raw_counts", set(), process)
        time.sleep(0.1)
        assert process.poll() is None, "was done before it could be killed"
        kill(process, group=True)
    again = bike_assets("ingest", "--home", home, "--json", env=TINY_CITY)
    assert again.returncode == 0, again.stderr
    assert_same_tables(without_runs(tables(home)), without_runs(tables(undisturbed)))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for dbt in /proc")
@pytest.mark.parametrize(
    "group", [pytest.param(True, marks=pytest.mark.soak), False], ids=["dbt dies too", "dbt lives on"]
)
def test_killed_while_dbt_runs(tmp_path: Path, undisturbed: Path, group: bool) -> None:
    home = tmp_path / "home"
    with started("ingest", "--home", home, env=TINY_CITY) as process:
        deadline = time.monotonic() + RUN_SECONDS / 3
        while not dbt_is_running(process):
            assert process.poll() is None, "was done before dbt was seen"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(1.0)
        kill(process, group=group)
        # A dbt that lives on holds the warehouse: the next command waits for it.
        again = bike_assets("ingest", "--home", home, "--json", env=TINY_CITY)
    assert again.returncode == 0, again.stderr
    assert_same_tables(without_runs(tables(home)), without_runs(tables(undisturbed)))


@pytest.mark.slow
def test_a_killed_run_is_marked_as_failed_and_gives_back_its_place(
    demo_home: DemoHome, tmp_path: Path
) -> None:
    home = copy_home(demo_home.path, tmp_path / "home")
    kill_in(home, "features", FEATURES, after=0.2)
    settings = settings_of(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(settings.dagster_home))
        patch.setenv("BIKE_HOME", str(home))
        with open_instance(settings) as instance:
            (killed,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
            assert instance.event_log_storage.get_concurrency_run_ids() == {killed.run_id}
            again = bike_assets("materialize", "features", "--partition", "2025-01-01", "--home", home)
            assert again.returncode == 0, again.stderr
            assert instance.event_log_storage.get_concurrency_run_ids() == set()
            found = instance.get_run_by_id(killed.run_id)
            assert found is not None
            assert found.status == dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize(
    "arguments",
    [
        ("materialize", "raw_counts", "cleaned_counts", "--partition", "2024-10-27"),
        pytest.param(
            ("materialize", "features", "predictions", "--partition", "2024-12-10"), marks=pytest.mark.slow
        ),
    ],
    ids=["counts of the autumn day", "a vintage"],
)
def test_running_a_partition_again_changes_nothing(
    demo_home: DemoHome, tmp_path: Path, arguments: Sequence[str]
) -> None:
    """Not even `ingested_at`: it says when the platform first wrote the row in this form."""
    home = copy_home(demo_home.path, tmp_path / "home")
    done = bike_assets(*arguments, "--home", home, "--json")
    assert done.returncode == 0, done.stderr
    assert_same_tables(tables(home), tables(demo_home.path))


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(2400)
def test_killed_in_a_training_and_run_again(demo_home: DemoHome, tmp_path: Path) -> None:
    """Killed early and late in the training and in the promotion, the demo ends with the same numbers."""
    home = copy_home(demo_home.path, tmp_path / "home")
    forget_models(home)
    emptied("bike_traffic_predictions.predictions")(home)
    demo = ("demo", "--json")
    for step, after in (("trained_model", 1.0), ("trained_model", 4.0), ("champion", 0.0)):
        kill_in(home, step, demo, after=after)
    done = bike_assets(*demo, "--home", home)
    assert done.returncode == 0, done.stderr
    assert one_json(done.stdout)["accuracy"] == demo_home.result["accuracy"]
    assert one_json(done.stdout)["checks"] == demo_home.result["checks"]
    assert_same_tables(without_runs(tables(home)), without_runs(tables(demo_home.path)))


STEPS = (
    *("raw_counts", "dbt_cleaned_counts", "dbt_counters", "features", "trained_model", "champion"),
    *("predictions", "dbt_forecast_accuracy", "drift_report", "retraining_decision"),
)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_one_demo_killed_in_every_asset(demo_home: DemoHome, tmp_path: Path) -> None:
    """From nothing to the end with ten deaths on the way, alternately alone and with all its children."""
    home = tmp_path / "home"
    for position, step in enumerate(STEPS):
        kill_in(home, step, ("demo", "--json"), after=0.3 * (position % 3), group=position % 2 == 0)
    done = bike_assets("demo", "--home", home, "--json")
    assert done.returncode == 0, done.stderr
    result = one_json(done.stdout)
    assert result["accuracy"] == demo_home.result["accuracy"]
    assert result["drift"]["share"] == demo_home.result["drift"]["share"]
    assert_same_tables(without_runs(tables(home)), without_runs(tables(demo_home.path)))


DIE_WITH_A_TRANSACTION = """
import duckdb, os, signal, sys
connection = duckdb.connect(sys.argv[1])
connection.execute("SET checkpoint_threshold = '1TB'")
connection.execute("CREATE TABLE bike_traffic_raw.left_behind AS SELECT 1 AS one")
connection.execute("BEGIN")
connection.execute("DELETE FROM bike_traffic_predictions.predictions")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_log_of_changes_left_by_a_kill_is_taken_up(demo_home: DemoHome, tmp_path: Path) -> None:
    """A process that dies with a transaction open leaves DuckDB's write-ahead log, which the next one replays."""
    home = copy_home(demo_home.path, tmp_path / "home")
    subprocess.run([sys.executable, "-c", DIE_WITH_A_TRANSACTION, home / "warehouse.duckdb"], check=False)
    assert (home / "warehouse.duckdb.wal").exists()
    done = bike_assets("status", "--home", home, "--json")
    assert done.returncode == 0, done.stderr
    rows = {table["table"]: table["rows"] for table in one_json(done.stdout)["tables"]}
    assert rows["bike_traffic_predictions.predictions"] > 0
    found = tables(home)
    assert found.pop("bike_traffic_raw.left_behind").height == 1
    assert_same_tables(found, tables(demo_home.path))
