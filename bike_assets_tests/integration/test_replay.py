"""A replay is the days themselves: killed and continued, beside another policy, against the same days in Dagster."""

import os
import signal
import time
import warnings
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import polars as pl
import pytest
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from polars.testing import assert_frame_equal

from bike_assets.clock import set_to
from bike_assets.core.calendar import LOCAL_TZ, days_between
from bike_assets.core.contracts import AUDIT_LOG, PREDICTIONS, RAW_COUNTS, RETRAINING_DECISIONS, TableContract
from bike_assets.core.features import FEATURE_LOOKBACK_DAYS
from bike_assets.home import open_instance, prepare
from bike_assets.resources.audit import AuditLog
from bike_assets.resources.registry import CHALLENGER, CHAMPION, PREVIOUS, ModelRegistry
from bike_assets.resources.source import WeatherSourceResource
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.settings import REPOSITORY, Settings
from bike_assets.sources.base import busy_span
from bike_assets_tests.homes import SMALL_CITY, bike_assets, one_json, settings_of, started

with warnings.catch_warnings():
    # dagster-dbt's SQL parser calls its own fast tokenizer old.
    warnings.simplefilter("ignore", DeprecationWarning)
    from bike_assets.build import build_defs
    from bike_assets.policies import Policies
    from bike_assets.replay import JOURNAL, Clock, KnownWeather, PublishedCounts, read_history
    from bike_assets.runner import materialize

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.soak,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),  # of Dagster, about its own options
]

MONDAY = date(2024, 11, 25)
FIRST, LAST = MONDAY, MONDAY + timedelta(days=9)
EAGER = """
[retraining]
r2_critical = 0.985
r2_warning = 0.99
cooldown_days = 1

[promotion]
floor_r2 = 0.1
margin_r2 = 0.0
p_value = 0.9
"""
"""Trains on the second Monday, and promotes what is better at all."""

FOLDER = Path(os.environ.get("BIKE_REAL_DATA") or REPOSITORY.parent / "shared" / "data")
EXPORTS = ("comptage-velo-2023.csv.gz", "comptage-velo-donnees-compteurs_2023-08_2024-02.parquet")
WEATHER = "weather_2023-01_2024-02.parquet"
PARIS = {
    "BIKE_SOURCE": "archive",
    "BIKE_DATA": os.pathsep.join(str(FOLDER / name) for name in EXPORTS),
    "BIKE_WEATHER": "file",
    "BIKE_WEATHER_DATA": str(FOLDER / WEATHER),
}
HOLIDAYS = date(2023, 8, 14), date(2023, 8, 22)
"""Two Mondays of the exports and the day after a training."""

RUNS_BEFORE_THE_KILL = 20
"""Runs of days after which the replay is killed: in the middle of the first week."""

OF_THE_RUN = {
    AUDIT_LOG.name: (
        "run_id",
        "dagster_run_id",
        "operation_id",
        "hash",
        "previous_hash",
        "signature",
        "bundle_id",
    ),
    PREDICTIONS.name: ("run_id",),
}
"""What two runs of one day cannot have in common."""


@pytest.fixture(scope="module")
def replays(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Both policies' results of one command, the first of them killed on its way and continued."""
    folder = tmp_path_factory.mktemp("replay")
    (folder / "eager.toml").write_text(EAGER)
    (folder / "patient.toml").write_text("[retraining]\ncooldown_days = 60\n")
    call = (
        *("replay", "--home", folder / "home", "--from", FIRST.isoformat(), "--to", LAST.isoformat()),
        *("--policy", folder / "eager.toml", "--policy", folder / "patient.toml", "--json"),
    )
    with started(*call) as process:
        deadline = time.monotonic() + 900
        while lived(folder) < RUNS_BEFORE_THE_KILL:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
    done = bike_assets(*call)
    assert done.returncode == 0, done.stderr
    result = one_json(done.stdout)
    assert Path(result["report"]).read_text().startswith("<!doctype html>")
    policies: list[dict[str, Any]] = result["policies"]
    return policies


def lived(folder: Path) -> int:
    """Runs of days that the replays of a home have noted."""
    return sum(
        not line.startswith('{"day": "before"')
        for path in folder.glob(f"home/replays/*/{JOURNAL}")
        for line in path.read_text().splitlines()
    )


def test_killed_and_continued_no_run_was_made_twice(replays: list[dict[str, Any]]) -> None:
    for result in replays:
        assert result["failures"] == []
        settings = Settings(home=Path(result["home"]))
        assert AuditLog.from_settings(settings).verify(warehouse(settings)) == []
        days = table(settings, PREDICTIONS)["service_date"].unique()
        assert sorted(days) == days_between(FIRST, LAST)


def test_policies_stand_side_by_side_and_decide_differently(replays: list[dict[str, Any]]) -> None:
    eager, patient = replays
    assert (eager["policy"], patient["policy"]) == ("eager", "patient")
    assert [each["day"] for each in eager["decisions"]] == ["2024-11-25", "2024-12-02"]
    assert [each["decision"] for each in eager["decisions"]] == ["cannot_judge", "retrain_reactive"]
    assert (len(eager["trainings"]), len(patient["trainings"])) == (2, 1)
    # In a week of this city the second model is no better; whether it is promoted is not what this is about.
    assert eager["champion"] in ("1", "2")
    assert patient["champion"] == "1"


def test_the_same_days_one_by_one_in_dagster_end_the_same(
    replays: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = eager(settings_of(tmp_path / "home", SMALL_CITY), tmp_path)
    live_by_hand(by_hand, FIRST, LAST, monkeypatch)

    assert_same_end(by_hand, replays[0])


@pytest.mark.skipif(
    not all((FOLDER / name).exists() for name in (*EXPORTS, WEATHER)),
    reason=f"no real exports in {FOLDER} (set BIKE_REAL_DATA to their folder)",
)
def test_days_of_the_real_exports_one_by_one_end_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = eager(settings_of(tmp_path / "home", PARIS), tmp_path)
    first, last = HOLIDAYS
    done = bike_assets(
        *("replay", "--home", tmp_path / "replay", "--from", first.isoformat(), "--to", last.isoformat()),
        *("--policy", tmp_path / "eager.toml", "--json"),
        env=PARIS,
    )
    assert done.returncode == 0, done.stderr
    (result,) = one_json(done.stdout)["policies"]
    assert len(result["trainings"]) == 2

    live_by_hand(by_hand, first, last, monkeypatch)

    assert_same_end(by_hand, result)


def eager(settings: Settings, folder: Path) -> Settings:
    """The settings by the eager policy, which is written to a file of the folder."""
    policy = folder / "eager.toml"
    policy.write_text(EAGER)
    return Policies.of(settings).read(policy).applied(settings)


def assert_same_end(by_hand: Settings, result: Mapping[str, Any]) -> None:
    """A replay ended with the decisions, forecasts, counts, log and models of the days lived one by one."""
    replayed = Settings(home=Path(result["home"]))
    for contract in (RETRAINING_DECISIONS, PREDICTIONS, RAW_COUNTS, AUDIT_LOG):
        # Raw counts have no key to be sorted by: exports may tell of an hour twice.
        assert_frame_equal(
            table(by_hand, contract), table(replayed, contract), check_row_order=bool(contract.key)
        )
    assert aliases(by_hand) == aliases(replayed)
    assert result["champion"] == aliases(by_hand)[CHAMPION]


def live_by_hand(settings: Settings, first: date, last: date, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every day's jobs in the order of their schedules, whole, with checks, dbt in processes of its own."""
    for name in ("DAGSTER_HOME", "BIKE_HOME", "BIKE_WAREHOUSE", "PATH"):  # put back afterwards
        monkeypatch.setenv(name, os.environ.get(name, ""))
    prepare(settings)
    history = read_history(settings)
    clock = Clock(moment(first, 0))
    definitions = build_defs(
        settings,
        {
            "source": dg.ResourceDefinition.hardcoded_resource(PublishedCounts(history, clock)),
            "weather": dg.ResourceDefinition.hardcoded_resource(
                KnownWeather(WeatherSourceResource.from_settings(settings), clock)
            ),
        },
    )
    oldest, until = busy_span(history.rows)[0], first - timedelta(days=1)
    with set_to(lambda: clock.moment.astimezone(UTC)), open_instance(settings) as instance:

        def run(job: str, *days: date) -> Mapping[str, Any]:
            tags = {}
            if len(days) == 2:
                tags = {
                    ASSET_PARTITION_RANGE_START_TAG: days[0].isoformat(),
                    ASSET_PARTITION_RANGE_END_TAG: days[1].isoformat(),
                }
            result = definitions.resolve_job_def(job).execute_in_process(
                instance=instance,
                partition_key=days[0].isoformat() if len(days) == 1 else None,
                tags=tags,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
            return {
                event.materialization.asset_key.to_user_string(): event.materialization.metadata
                for event in result.get_asset_materialization_events()
            }

        materialize(
            definitions, instance, ["raw_counts", "cleaned_counts", "counter_health"], days=(oldest, until)
        )
        materialize(definitions, instance, ["counters"])
        materialize(definitions, instance, ["raw_weather"], days=(oldest, until))
        first_issue = oldest + timedelta(days=FEATURE_LOOKBACK_DAYS)
        materialize(definitions, instance, ["features"], days=(first_issue, until))
        materialize(definitions, instance, ["trained_model", "champion"])
        for day in days_between(first, last):
            back, yesterday = day - timedelta(days=settings.refetch_days + 1), day - timedelta(days=1)
            clock.moment = moment(day, 6, 15)
            run("ingest", back, yesterday)
            run("clean", back, yesterday)
            clock.moment = moment(day, 6, 30)
            run("weather", back, day)
            clock.moment = moment(day, 6, 45)
            run("describe")
            clock.moment = moment(day, 7)
            run("predict", day)
            if day.weekday() == 0:
                clock.moment = moment(day, 8)
                if run("monitor", day)["retraining_decision"]["retrain"].value:
                    result = definitions.resolve_job_def("retrain").execute_in_process(
                        instance=instance,
                        tags={"bike.decision": "retrain_reactive"},
                        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                    )
                    assert result.success


def moment(day: date, hour: int, minute: int = 0) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=ZoneInfo(LOCAL_TZ))


def warehouse(settings: Settings) -> DuckDBWarehouse:
    return DuckDBWarehouse(path=str(settings.warehouse_path))


def table(settings: Settings, contract: TableContract) -> pl.DataFrame:
    """A table of a home but what is of its runs."""
    return warehouse(settings).read(contract).drop(OF_THE_RUN.get(contract.name, ()))


def aliases(settings: Settings) -> dict[str, str | None]:
    registry = ModelRegistry.from_settings(settings)
    found = {name: registry.by_alias(name) for name in (CHAMPION, PREVIOUS, CHALLENGER)}
    return {name: version.version if version else None for name, version in found.items()}
