"""The sensors that send alerts, ticked over a real instance with real runs, against a fake of Discord."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from bike_assets.assets.counter_health import OPEN_INCIDENTS
from bike_assets.core.alerts import Ledger
from bike_assets.core.errors import PermanentError
from bike_assets.core.retraining import RetrainingPolicy
from bike_assets.home import open_instance
from bike_assets.resources.alerts import Alerts
from bike_assets.resources.registry import ModelRegistry, ModelVersion
from bike_assets.sensors import alerts as sensors
from bike_assets.sensors.alerts import build_alert_sensors
from bike_assets.settings import Settings
from bike_assets_tests.fakes.discord import FakeDiscord
from bike_assets_tests.fakes.service import Faults

WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@pytest.fixture
def discord(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDiscord]:
    with FakeDiscord(rate=1000) as server:
        monkeypatch.setenv("BIKE_ALERT_DISCORD_WEBHOOK", server.webhook)
        monkeypatch.delenv("BIKE_ALERT_WEBHOOK", raising=False)
        yield server


class Registry(ModelRegistry):
    """A registry that answers from memory."""

    serving: str = ""

    def by_alias(self, alias: str) -> ModelVersion | None:
        del alias
        tags = {"holdout.day_1.r2": "0.9312"}
        return ModelVersion("bike-traffic", self.serving, "5f1c9a3b7d2e4f60", tags) if self.serving else None

    def run_url(self, run_id: str) -> str:
        return f"http://127.0.0.1:5000/#/runs/{run_id}"


def registry(serving: str) -> Registry:
    """A registry in which this version is champion; none is where it is empty."""
    return Registry(tracking_uri="", artifacts_dir="", ui_url="", model_name="bike-traffic", serving=serving)


class Sensor:
    """A sensor as the daemon runs it: ticks share a cursor."""

    def __init__(
        self, instance: dg.DagsterInstance, name: str = "run_alerts", level: str = "notice", **more: Any
    ):
        self.instance, self.level = instance, level
        self.settings = Settings(**{"source": "simulator", "serving_url": "", **more})
        self.definition = {
            sensor.name: sensor for sensor in build_alert_sensors(self.settings, RetrainingPolicy())
        }[name]
        self.cursor: str | None = None
        self.registry = registry("")

    def tick(self) -> str:
        resources: dict[str, Any] = {"alerts": Alerts(level=self.level)}
        if "registry" in self.definition.required_resource_keys:
            resources["registry"] = self.registry
        with dg.build_sensor_context(self.instance, cursor=self.cursor, resources=resources) as context:
            data = self.definition.evaluate_tick(context)
        self.cursor = data.cursor
        return str(data.skip_message)


@pytest.fixture
def sensor(instance: dg.DagsterInstance, discord: FakeDiscord) -> Sensor:
    """The sensor of runs, after its first tick."""
    made = Sensor(instance)
    made.tick()
    return made


def run(
    instance: dg.DagsterInstance,
    asset: str = "raw_counts",
    *,
    error: str = "",
    metadata: dict[str, Any] | None = None,
    checks: dict[str, tuple[bool, dg.AssetCheckSeverity]] | None = None,
    check_metadata: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
    job: str = "ingest",
) -> str:
    """A real run of one asset that materialises with this metadata, with these checks, or raises."""

    @dg.asset(
        name=asset,
        check_specs=[dg.AssetCheckSpec(name, asset=asset) for name in checks or {}],
    )
    def made() -> dg.MaterializeResult:  # type: ignore[type-arg]
        if error:
            raise PermanentError(error) from OSError("what it came from")
        return dg.MaterializeResult(
            metadata=metadata or {},
            check_results=[
                dg.AssetCheckResult(
                    check_name=name,
                    passed=passed,
                    severity=severity,
                    description="why",
                    metadata=check_metadata,
                )
                for name, (passed, severity) in (checks or {}).items()
            ],
        )

    definition = dg.define_asset_job(job, selection=[made])
    resolved = dg.Definitions(assets=[made], jobs=[definition]).resolve_job_def(job)
    return resolved.execute_in_process(instance=instance, raise_on_error=False, tags=tags or {}).run_id


def test_what_happened_before_the_first_tick_is_not_told(
    instance: dg.DagsterInstance, discord: FakeDiscord
) -> None:
    run(instance, error="no such file")
    sensor = Sensor(instance)
    for _ in range(3):
        sensor.tick()

    assert discord.messages == []


def test_a_failed_run_is_told_once_with_its_cause_and_its_end_once(
    instance: dg.DagsterInstance, discord: FakeDiscord, sensor: Sensor
) -> None:
    failed = run(
        instance, error="export.csv: column counter_id is missing", tags={"dagster/partition": "2024-02-26"}
    )
    run(instance, error="export.csv: column counter_id is missing")
    sensor.tick()
    sensor.tick()

    (embed,) = discord.embeds
    assert embed["title"] == "Data ingestion failed"
    assert embed["description"].startswith("export.csv: column counter_id is missing")
    assert {"name": "Days", "value": "2024-02-26", "inline": True} in embed["fields"]
    assert embed["url"] == f"http://127.0.0.1:3000/runs/{failed}"

    run(instance)
    sensor.tick()
    run(instance)
    sensor.tick()

    assert discord.titles == ["Data ingestion failed", "ingest runs again"]


@pytest.mark.parametrize(
    ("asset", "title"),
    [
        ("predictions", "Predictions failed"),
        ("trained_model", "Training pipeline failed"),
        ("drift_report", "Run failed: monitor"),
    ],
)
def test_each_kind_of_failure_has_its_name(
    instance: dg.DagsterInstance, discord: FakeDiscord, sensor: Sensor, asset: str, title: str
) -> None:
    run(instance, asset, error="no", job="monitor")
    sensor.tick()

    assert discord.titles == [title]


def test_a_run_that_dagster_starts_again_is_told_by_its_last_attempt(
    instance: dg.DagsterInstance, discord: FakeDiscord, sensor: Sensor
) -> None:
    run(instance, error="no", tags={"dagster/will_retry": "true"})
    sensor.tick()
    assert discord.messages == []

    run(instance, error="no")
    sensor.tick()
    assert discord.titles == ["Data ingestion failed"]


def test_a_check_that_fails_is_told_once_until_it_passes(
    instance: dg.DagsterInstance, discord: FakeDiscord, sensor: Sensor
) -> None:
    for passed in (False, False, True, True, False):
        run(instance, "features", checks={"expectations": (passed, WARN)})
        sensor.tick()

    failed = "Check failed: features.expectations"
    assert discord.titles == [failed, "Check passes again: features.expectations", failed]


@pytest.mark.parametrize(("level", "told"), [("warning", ["a", "b"]), ("critical", ["b"])])
def test_the_level_says_whether_warnings_are_told(
    instance: dg.DagsterInstance, discord: FakeDiscord, level: str, told: list[str]
) -> None:
    sensor = Sensor(instance, level=level)
    sensor.tick()
    run(instance, "features", checks={"a": (False, WARN), "b": (False, ERROR)})
    sensor.tick()

    assert sorted(discord.titles) == [f"Check failed: features.{name}" for name in told]


def test_a_failed_run_tells_for_its_checks_too(
    instance: dg.DagsterInstance, discord: FakeDiscord, sensor: Sensor
) -> None:
    @dg.asset(check_specs=[dg.AssetCheckSpec("not_null", asset="cleaned_counts")])
    def cleaned_counts() -> Iterator[Any]:
        yield dg.AssetCheckResult(check_name="not_null", passed=False, severity=ERROR)
        raise RuntimeError("dbt test failed")

    definitions = dg.Definitions(
        assets=[cleaned_counts], jobs=[dg.define_asset_job("clean", [cleaned_counts])]
    )
    definitions.resolve_job_def("clean").execute_in_process(instance=instance, raise_on_error=False)
    sensor.tick()

    assert discord.titles == ["Run failed: clean"]


def test_the_age_of_the_newest_count_and_the_skill_have_messages_of_their_own(
    instance: dg.DagsterInstance, discord: FakeDiscord, sensor: Sensor
) -> None:
    old = {"newest_hour": "2024-02-20 22:00:00+00:00", "age_days": 5.9, "max_days": 3}
    run(instance, checks={"freshness": (False, WARN)}, check_metadata=old)
    run(instance, "forecast_accuracy", checks={"beats_mean_of_four_weeks": (False, WARN)}, job="describe")
    sensor.tick()

    assert discord.titles == ["No new data available", "Prediction metrics degraded"]
    assert "5.9 days old; 3 working days are too many" in discord.embeds[0]["description"]

    run(instance, checks={"freshness": (True, WARN)})
    sensor.tick()
    assert discord.titles[2:] == ["Check passes again: raw_counts.freshness"]


def test_successes_are_told_where_the_level_asks_for_them(
    instance: dg.DagsterInstance, discord: FakeDiscord
) -> None:
    sensor = Sensor(instance, level="info")
    sensor.tick()
    run(instance, metadata={"dagster/row_count": 2592, "changed_partitions": 1})
    run(
        instance,
        "predictions",
        metadata={"dagster/row_count": 18144, "model": "bike-traffic version 3"},
        job="predict",
    )
    run(instance, "trained_model", metadata={"model": "bike-traffic version 4"}, job="retrain")
    run(instance, "counters", job="describe")
    sensor.tick()

    assert discord.titles == [
        "Data ingestion completed",
        "Predictions generated",
        "Training completed",
        "Run completed: describe",
    ]
    assert discord.embeds[1]["fields"][:2] == [
        {"name": "Predictions", "value": "18,144", "inline": True},
        {"name": "Model", "value": "bike-traffic version 3", "inline": True},
    ]


def test_counters_are_told_one_by_one_when_they_stop_and_when_they_are_back(
    instance: dg.DagsterInstance, discord: FakeDiscord, sensor: Sensor
) -> None:
    def health(*dead: str) -> None:
        known = [
            {"counter_id": name, "state": "dead", "since": "2024-02-26", "reason": "24 hours of zero"}
            for name in dead
        ]
        run(instance, "counter_health", metadata={OPEN_INCIDENTS: dg.MetadataValue.json(known)}, job="clean")
        sensor.tick()

    health("100-E", "200-N")
    health("100-E", "200-N")
    health("200-N")
    health()
    health()

    assert discord.titles == [
        "Counter 100-E is dead",
        "Counter 200-N is dead",
        "Counter 100-E is no longer alarmed",
        "Counter 200-N is no longer alarmed",
    ]
    assert len(discord.messages) == 3, "what was found together was not sent together"


def test_drift_and_performance_open_and_close(
    instance: dg.DagsterInstance, discord: FakeDiscord, sensor: Sensor
) -> None:
    for share in (0.1, 0.4, 0.6, "nothing testable", 0.1):
        run(instance, "drift_report", metadata={"drift_share": share, "drifted": "level"}, job="monitor")
    for r2 in (0.8, 0.68, 0.6, 0.8):
        run(
            instance,
            "retraining_decision",
            metadata={"r2": r2, "decision": "wait", "reasons": "so"},
            job="monitor",
        )
    run(instance, "retraining_decision", metadata={"decision": "cannot_judge"}, job="monitor")
    sensor.tick()

    assert discord.titles == [
        "Data drift detected",
        "Data drift is over",
        "Model performance degraded",
        "Model performance degraded",  # From a warning to critical.
        "Model performance is back",
    ]
    assert [embed["color"] for embed in discord.embeds[2:4]] == [0xFFA500, 0xE74C3C]


def test_an_experiments_answer_is_told_once_an_experiment(
    instance: dg.DagsterInstance, discord: FakeDiscord, sensor: Sensor
) -> None:
    for rival, verdict in (
        ("2", "nothing to compare"),
        ("2", "continue"),
        ("2", "challenger_better"),
        ("2", "challenger_better"),
        ("3", "no_difference"),
    ):
        metadata = {"verdict": verdict, "experiment": f"version 1 against {rival}", "interval": "+1% to +3%"}
        run(instance, "experiment_report", metadata=metadata, job="experiment")
    sensor.tick()

    assert discord.titles == ["Experiment: challenger better", "Experiment: no difference"]
    assert {"name": "Interval", "value": "+1% to +3%", "inline": True} in discord.embeds[0]["fields"]


@pytest.mark.parametrize("cursor", ["", "nonsense", "17", '{"position": {"after": "x"}}', "{}"])
def test_a_damaged_cursor_starts_anew_and_tells_nothing_twice(
    instance: dg.DagsterInstance, discord: FakeDiscord, sensor: Sensor, cursor: str
) -> None:
    run(instance, error="no")
    sensor.tick()
    sensor.cursor = cursor
    sensor.tick()
    assert discord.titles == ["Data ingestion failed"]

    run(instance, "predictions", error="no", job="predict")
    sensor.tick()
    assert discord.titles == ["Data ingestion failed", "Predictions failed"]


def test_a_cursor_ahead_of_the_log_is_caught_up_with(
    instance: dg.DagsterInstance, discord: FakeDiscord, sensor: Sensor
) -> None:
    """As after a database was put back from a backup."""
    sensor.cursor = Ledger({"after": 10**9}).to_cursor()
    sensor.tick()
    run(instance, error="no")
    sensor.tick()

    assert discord.titles == ["Data ingestion failed"]


def test_a_tick_stops_when_its_time_is_over_and_the_next_goes_on(
    instance: dg.DagsterInstance, discord: FakeDiscord, sensor: Sensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "LOOKING_SECONDS", -1.0)
    for job in ("one", "two", "three"):
        run(instance, "counters", error="no", job=job)
    for told in (1, 2, 3, 3):
        sensor.tick()
        assert len(discord.embeds) == told

    assert discord.titles == ["Run failed: one", "Run failed: two", "Run failed: three"]


def test_a_tick_looks_at_a_bounded_number_of_runs(
    instance: dg.DagsterInstance, discord: FakeDiscord, sensor: Sensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "RUNS_A_TICK", 2)
    for job, error in (("one", "no"), ("two", ""), ("three", "no")):
        run(instance, "counters", error=error, job=job)
    sensor.tick()
    assert discord.titles == ["Run failed: one"]
    sensor.tick()
    assert discord.titles == ["Run failed: one", "Run failed: three"]


def test_while_discord_is_down_alerts_wait_and_then_arrive_once(
    instance: dg.DagsterInstance, discord: FakeDiscord, sensor: Sensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bike_assets.resources.alert_sinks._FIRST_WAIT_SECONDS", 0.001)
    discord.set_faults(Faults(1.0, kinds=("500",)))
    run(instance, error="no")
    assert "1 later" in sensor.tick()
    sensor.tick()
    assert discord.messages == []

    discord.set_faults(Faults())
    sensor.tick()
    sensor.tick()
    assert discord.titles == ["Data ingestion failed"]


def test_without_a_webhook_it_is_silent(
    instance: dg.DagsterInstance, discord: FakeDiscord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BIKE_ALERT_DISCORD_WEBHOOK")
    sensor = Sensor(instance)
    sensor.tick()
    run(instance, error="no")

    assert sensor.tick() == "nothing to tell"
    assert discord.requests.total() == 0


def test_another_champion_is_told_whoever_moved_the_alias(
    instance: dg.DagsterInstance, discord: FakeDiscord
) -> None:
    sensor = Sensor(instance, "champion_alerts")
    for version in ("", "1", "1", "2", "1"):
        sensor.registry = registry(version)
        sensor.tick()

    assert [embed["description"] for embed in discord.embeds] == [
        "Version 1 serves, the first one",
        "Version 2 serves in the place of version 1",
        "Version 1 serves in the place of version 2",
    ]
    assert {"name": "R² day 1, held out", "value": "0.931", "inline": True} in discord.embeds[0]["fields"]


def test_a_champion_that_serves_already_is_no_news(
    instance: dg.DagsterInstance, discord: FakeDiscord
) -> None:
    sensor = Sensor(instance, "champion_alerts")
    sensor.registry = registry("7")
    sensor.tick()
    sensor.cursor = "damaged"
    sensor.tick()

    assert discord.messages == []


def test_counts_that_stop_are_told_by_the_clock(instance: dg.DagsterInstance, discord: FakeDiscord) -> None:
    sensor = Sensor(instance, "data_alerts", source="paris")
    sensor.tick()
    assert discord.messages == [], "nothing was ever counted"

    now = datetime.now(UTC)
    for age in (1, 15, 15, 1):
        seen = {"newest_hour": str(now - timedelta(days=age))}
        run(instance, checks={"freshness": (True, WARN)}, check_metadata=seen)
        sensor.tick()

    assert discord.titles == ["No new data available", "New data again"]


def test_the_clock_and_the_check_do_not_both_tell(instance: dg.DagsterInstance, discord: FakeDiscord) -> None:
    sensor = Sensor(instance, source="paris")
    sensor.tick()
    run(instance, checks={"freshness": (False, WARN)})
    sensor.tick()

    assert discord.messages == []


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({"env": "local"}, "STOPPED"),
        ({"env": "local", "alert_discord_webhook": "https://discord.com/api/webhooks/1/t"}, "RUNNING"),
        ({"env": "local", "alert_discord_webhook": ""}, "STOPPED"),
        ({"env": "compose"}, "RUNNING"),
    ],
)
def test_they_run_by_themselves_where_there_is_someone_to_tell(settings: dict[str, Any], status: str) -> None:
    made = build_alert_sensors(Settings(**settings), RetrainingPolicy())

    assert {sensor.default_status.value for sensor in made} == {status}


def test_only_what_there_is_to_watch_is_watched() -> None:
    def names(**more: Any) -> set[str]:
        return {sensor.name for sensor in build_alert_sensors(Settings(**more), RetrainingPolicy())}

    assert names() == {"run_alerts", "champion_alerts"}
    assert names(source="paris", serving_url="http://127.0.0.1:8000") == {
        "run_alerts",
        "champion_alerts",
        "data_alerts",
        "service_alerts",
    }


def test_a_laptops_log_with_a_file_a_run_is_followed_in_order(discord: FakeDiscord, tmp_path: Path) -> None:
    """SQLite as a home has it: runs and their checks lie in files of their own, and ids are those of the index."""
    with open_instance(Settings(home=tmp_path)) as instance:
        sensor = Sensor(instance)
        sensor.tick()
        run(instance, error="no")
        run(instance, "features", checks={"expectations": (False, WARN)}, job="predict")
        run(instance, "counters", error="no", job="describe")
        run(instance)
        sensor.tick()
        sensor.tick()

    assert discord.titles == [
        "Data ingestion failed",
        "Check failed: features.expectations",
        "Run failed: describe",
        "ingest runs again",
    ]


def test_a_tick_that_dies_before_its_end_moves_no_cursor(
    instance: dg.DagsterInstance, discord: FakeDiscord, sensor: Sensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(instance, error="no")
    before = sensor.cursor
    monkeypatch.setattr(sensors, "deliver", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        sensor.tick()
    monkeypatch.undo()
    monkeypatch.setenv("BIKE_ALERT_DISCORD_WEBHOOK", discord.webhook)
    assert sensor.cursor == before

    sensor.tick()
    assert discord.titles == ["Data ingestion failed"]


def test_an_unheard_of_run_tells_nothing(instance: dg.DagsterInstance) -> None:
    """Deleted between its end and the tick."""
    from bike_assets.sensors.run_alerts import alerts_of

    gone = "00000000-0000-0000-0000-000000000000"
    assert alerts_of(instance, gone, (), ui_url="", policy=RetrainingPolicy(), freshness=True) == []
