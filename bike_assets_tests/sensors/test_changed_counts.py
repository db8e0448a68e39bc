"""What ingestion changed is cleaned, and what it left as it was wakes nothing: real runs against a real portal."""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from bike_assets.assets.ingestion import build_raw_counts
from bike_assets.core.contracts import RAW_COUNTS
from bike_assets.jobs import CLEAN, INGEST
from bike_assets.partitions import service_days
from bike_assets.resources.source import CountsSourceResource
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.sensors.changed_counts import build_changed_counts_sensor
from bike_assets.settings import Settings
from bike_assets_tests.exports import api_frame
from bike_assets_tests.fakes.opendatasoft import FakePortal
from bike_assets_tests.tables import BETA_BACKFILL_POLICY, day_rows

pytestmark = BETA_BACKFILL_POLICY

FIRST, LAST = date(2024, 10, 20), date(2024, 10, 29)
RANGE = {ASSET_PARTITION_RANGE_START_TAG: str(FIRST), ASSET_PARTITION_RANGE_END_TAG: str(LAST)}


def city(until: date, **corrected: float) -> pl.DataFrame:
    """One counter's days up to one; of `day_21=100` the 21st has these counts."""
    days = [FIRST + timedelta(days=n) for n in range((until - FIRST).days + 1)]
    return api_frame(
        pl.concat(day_rows(day, count=lambda n, day=day: corrected.get(f"day_{day.day}", n)) for day in days)
    )


class Platform:
    """Ingestion and its sensor, as the daemon runs them, over a portal whose records may change."""

    def __init__(self, instance: dg.DagsterInstance, portal: FakePortal, folder: Path) -> None:
        self.instance, self.portal = instance, portal
        self.warehouse = DuckDBWarehouse(path=str(folder / "warehouse.duckdb"))
        settings = Settings(source="paris", home=folder, paris_portal=portal.url)
        days = service_days(FIRST)

        @dg.asset(partitions_def=days)
        def cleaned_counts() -> None: ...

        @dg.asset(partitions_def=days)
        def quarantined_counts() -> None: ...

        @dg.asset(partitions_def=days)
        def counter_health() -> None: ...

        self.repository = dg.Definitions(
            assets=[build_raw_counts(days), cleaned_counts, quarantined_counts, counter_health],
            jobs=[INGEST, CLEAN],
            sensors=[build_changed_counts_sensor(settings)],
            resources={"source": CountsSourceResource.from_settings(settings), "warehouse": self.warehouse},
        ).get_repository_def()

    def ingest(self) -> dg.RunRequest | None:
        """One ingestion of the window; what the sensor asks for after it."""
        done = self.repository.get_job("ingest").execute_in_process(
            instance=self.instance, tags=RANGE, raise_on_error=False
        )
        if not done.success:
            return None
        context = dg.build_run_status_sensor_context(
            sensor_name="changed_counts",
            dagster_event=done.all_events[-1],
            dagster_instance=self.instance,
            dagster_run=done.dagster_run,
        )
        answer = self.repository.get_sensor_def("changed_counts")(context)
        return answer if isinstance(answer, dg.RunRequest) else None

    def clean(self, success: bool) -> None:
        """A run of the clean job that ended so."""
        self.instance.add_run(
            dg.DagsterRun(
                job_name="clean",
                tags=RANGE,
                status=dg.DagsterRunStatus.SUCCESS if success else dg.DagsterRunStatus.FAILURE,
            )
        )


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with dg.instance_for_test() as instance, FakePortal(city(LAST - timedelta(days=1))) as portal:
        yield Platform(instance, portal, tmp_path)


def asked(request: dg.RunRequest | None) -> tuple[str, str] | None:
    return request and (
        request.tags[ASSET_PARTITION_RANGE_START_TAG],
        request.tags[ASSET_PARTITION_RANGE_END_TAG],
    )


def test_only_days_that_changed_are_written_and_wake_what_comes_after(platform: Platform) -> None:
    assert asked(platform.ingest()) == (str(FIRST), str(LAST))
    platform.clean(success=True)
    written = dict(
        platform.warehouse.read(RAW_COUNTS).select("service_date", "ingested_at").unique().iter_rows()
    )

    assert platform.ingest() is None

    platform.portal.records = city(LAST)  # The next morning.
    assert asked(platform.ingest()) == (str(LAST), str(LAST))
    platform.portal.records = city(LAST, day_23=100.0)  # A late correction.
    assert asked(platform.ingest()) == ("2024-10-23", str(LAST))

    now = dict(platform.warehouse.read(RAW_COUNTS).select("service_date", "ingested_at").unique().iter_rows())
    assert {day for day in now if now[day] != written.get(day)} == {LAST, date(2024, 10, 23)}


def test_a_cleaning_that_failed_is_asked_for_again_with_the_next_ingestion(platform: Platform) -> None:
    platform.ingest()
    platform.clean(success=False)

    assert asked(platform.ingest()) == (str(FIRST), str(LAST))
    platform.clean(success=True)
    assert platform.ingest() is None


def test_what_an_ingestion_that_failed_may_have_written_is_cleaned_after_the_next(platform: Platform) -> None:
    platform.ingest()
    platform.clean(success=True)
    right, platform.portal.records = platform.portal.records, platform.portal.records.drop("sum_counts")
    assert platform.ingest() is None
    platform.portal.records = right

    assert asked(platform.ingest()) == (str(FIRST), str(LAST))
    assert platform.ingest() is None
