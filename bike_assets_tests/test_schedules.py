"""Schedules: when each runs, what it asks for, and that a tick seen twice asks for nothing new."""

from datetime import UTC, date, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from dagster._utils.schedules import schedule_execution_time_iterator

from bike_assets.jobs import JOBS
from bike_assets.partitions import service_days
from bike_assets.schedules import build_schedules
from bike_assets.settings import Settings

PARIS = ZoneInfo("Europe/Paris")
PARTITIONS = service_days(date(2024, 1, 1))
REFETCH_DAYS = 14

SPRING = date(2024, 3, 31)
AUTUMN = date(2024, 10, 27)
ORDINARY = date(2024, 6, 12)


def schedules(env: str = "local") -> dict[str, dg.ScheduleDefinition]:
    return {
        schedule.name: schedule
        for schedule in build_schedules(Settings(env=env, refetch_days=REFETCH_DAYS), PARTITIONS)
    }  # type: ignore[arg-type]


def asked(name: str, at: datetime) -> list[dg.RunRequest]:
    """The run requests of a schedule's tick."""
    found = schedules()[name](dg.build_schedule_context(scheduled_execution_time=at))
    return [found] if isinstance(found, dg.RunRequest) else list(found)  # type: ignore[arg-type]


def partition_range(request: dg.RunRequest) -> tuple[str, str]:
    """First and last partition a run is asked for."""
    return request.tags[ASSET_PARTITION_RANGE_START_TAG], request.tags[ASSET_PARTITION_RANGE_END_TAG]


def local(day: date, hour: int, minute: int = 0) -> datetime:
    """A local wall time as the instant Dagster ticks at."""
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=PARIS).astimezone(UTC)


def ticks(name: str, start: datetime, n: int) -> list[datetime]:
    """The next instants of a schedule, on the local wall clock."""
    schedule = schedules()[name]
    found = islice(
        schedule_execution_time_iterator(
            start.timestamp(), schedule.cron_schedule, schedule.execution_timezone
        ),
        n,
    )
    return [tick.astimezone(PARIS) for tick in found]


@pytest.mark.parametrize(
    "day", [ORDINARY, SPRING, AUTUMN, SPRING + timedelta(days=1), AUTUMN + timedelta(days=1)]
)
def test_ingestion_asks_for_yesterday_and_the_days_that_may_be_corrected(day: date) -> None:
    (request,) = asked("daily_ingest", local(day, 6, 15))

    assert partition_range(request) == (
        (day - timedelta(days=REFETCH_DAYS + 1)).isoformat(),
        (day - timedelta(days=1)).isoformat(),
    )


@pytest.mark.parametrize("day", [ORDINARY, SPRING, AUTUMN])
def test_weather_asks_for_todays_forecast_and_the_days_whose_weather_may_be_known_now(day: date) -> None:
    (request,) = asked("daily_weather", local(day, 6, 30))

    assert partition_range(request) == (
        (day - timedelta(days=REFETCH_DAYS + 1)).isoformat(),
        day.isoformat(),
    )


def test_without_weather_there_is_nothing_to_fetch() -> None:
    without = {s.name: s for s in build_schedules(Settings(weather="none"), PARTITIONS)}
    tick = dg.build_schedule_context(scheduled_execution_time=local(ORDINARY, 6, 30))

    assert isinstance(without["daily_weather"](tick), dg.SkipReason)


def test_ingestion_asks_for_no_day_before_the_first_partition() -> None:
    (request,) = asked("daily_ingest", local(date(2024, 1, 3), 6, 15))

    assert partition_range(request) == ("2024-01-01", "2024-01-02")


def test_ingestion_waits_for_the_first_partition_to_end() -> None:
    answer = schedules()["daily_ingest"](
        dg.build_schedule_context(scheduled_execution_time=local(date(2024, 1, 1), 6, 15))
    )

    assert isinstance(answer, dg.SkipReason)


@pytest.mark.parametrize("day", [ORDINARY, SPRING, AUTUMN])
@pytest.mark.parametrize(("name", "hour"), [("daily_forecast", 7), ("weekly_monitoring", 8)])
def test_forecast_and_monitoring_ask_for_the_issue_date_itself(name: str, hour: int, day: date) -> None:
    (request,) = asked(name, local(day, hour))

    assert request.partition_key == day.isoformat()


def test_tables_without_partitions_are_asked_for_whole() -> None:
    (request,) = asked("daily_describe", local(ORDINARY, 6, 45))

    assert request.partition_key is None


@pytest.mark.parametrize(
    ("at", "day"),
    [
        (datetime(2024, 6, 11, 22, 30, tzinfo=UTC), "2024-06-12"),
        (datetime(2024, 1, 10, 23, 30, tzinfo=UTC), "2024-01-11"),
        (datetime(2024, 1, 10, 22, 30, tzinfo=UTC), "2024-01-10"),
    ],
)
def test_a_tick_after_local_midnight_is_of_the_new_local_day(at: datetime, day: str) -> None:
    assert asked("daily_forecast", at)[0].partition_key == day


@pytest.mark.parametrize(
    "name", ["daily_ingest", "daily_weather", "daily_forecast", "daily_describe", "weekly_monitoring"]
)
def test_a_tick_evaluated_twice_asks_for_the_same_runs_and_another_day_for_others(name: str) -> None:
    at = local(ORDINARY, 8)
    keys = [request.run_key for request in asked(name, at)]

    assert keys == [request.run_key for request in asked(name, at)]
    assert all(keys)
    assert not set(keys) & {request.run_key for request in asked(name, at + timedelta(days=7))}


@pytest.mark.parametrize(
    ("name", "clock"),
    [("daily_ingest", (6, 15)), ("daily_forecast", (7, 0)), ("daily_describe", (6, 45))],
)
@pytest.mark.parametrize("change", [SPRING, AUTUMN])
def test_each_local_day_has_one_tick_at_the_same_wall_time(
    name: str, clock: tuple[int, int], change: date
) -> None:
    found = ticks(name, local(change - timedelta(days=1), 0), 3)

    assert [tick.date() for tick in found] == [change + timedelta(days=offset) for offset in (-1, 0, 1)]
    assert {(tick.hour, tick.minute) for tick in found} == {clock}


def test_monitoring_runs_on_mondays() -> None:
    found = ticks("weekly_monitoring", local(SPRING, 0), 3)

    assert [tick.date() for tick in found] == [SPRING + timedelta(days=days) for days in (1, 8, 15)]
    assert {tick.hour for tick in found} == {8}


def test_forecasts_follow_what_they_read_and_monitoring_follows_all() -> None:
    first = {name: ticks(name, local(date(2024, 6, 10), 0), 1)[0] for name in schedules()}  # a Monday

    assert sorted(first, key=lambda name: first[name]) == [
        "daily_ingest",
        "daily_weather",
        "daily_describe",
        "daily_forecast",
        "daily_experiment",
        "weekly_monitoring",
    ]


def test_each_schedule_starts_a_job_of_the_graph() -> None:
    jobs = {schedule.name: schedule.job_name for schedule in schedules().values()}

    assert jobs == {
        "daily_ingest": "ingest",
        "daily_weather": "weather",
        "daily_forecast": "predict",
        "daily_experiment": "experiment",
        "daily_describe": "describe",
        "weekly_monitoring": "monitor",
    }
    assert set(jobs.values()) < {job.name for job in JOBS}


@pytest.mark.parametrize(
    ("env", "status"),
    [
        ("local", dg.DefaultScheduleStatus.STOPPED),
        ("compose", dg.DefaultScheduleStatus.RUNNING),
        ("prod", dg.DefaultScheduleStatus.RUNNING),
    ],
)
def test_schedules_are_off_on_a_laptop_and_on_elsewhere(env: str, status: dg.DefaultScheduleStatus) -> None:
    assert {schedule.default_status for schedule in schedules(env).values()} == {status}
