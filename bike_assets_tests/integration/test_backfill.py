"""Days that are made at the same time, in no order, are the days that are made one after the other.

`uv run pytest -m soak bike_assets_tests/integration/test_backfill.py`: the instance of the containers (its queue of
runs, its pool, a real PostgreSQL), a daemon that starts four runs at a time, each a process."""

import random
import subprocess
import sys
import time
from datetime import date, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from bike_assets.home import open_instance
from bike_assets.settings import REPOSITORY
from bike_assets_tests.emulators.processes import postgres_server
from bike_assets_tests.homes import (
    TINY_CITY,
    assert_same_tables,
    environment,
    settings_of,
    tables,
    without_runs,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.soak,
    pytest.mark.integration,
    pytest.mark.timeout(7_200),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.BetaWarning"),
]

# The hour that comes twice is on 27 October.
DAYS = [date(2024, 10, 10) + timedelta(days=each) for each in range(30)]
CITY = {
    **TINY_CITY,
    "BIKE_SIMULATOR_FIRST_DAY": DAYS[0].isoformat(),
    "BIKE_SIMULATOR_LAST_DAY": DAYS[-1].isoformat(),
}
BACKFILL_SECONDS = 3_000.0


def one_by_one(home: Path) -> None:
    # What dbt brings warns when it is imported, which is an error outside of a test.
    from bike_assets.build import build_defs
    from bike_assets.jobs import CLEANED
    from bike_assets.runner import materialize

    settings = settings_of(home, CITY)
    definitions = build_defs(settings)
    with open_instance(settings) as instance:
        for assets in (["raw_counts"], list(CLEANED)):
            for day in DAYS:
                materialize(definitions, instance, assets, days=(day, day))


def in_parallel(home: Path, folder: Path) -> int:
    """Backfill both jobs, and how many runs were there at most at one moment."""
    with postgres_server() as postgres:
        variables = environment(**CITY, **postgres.instance(folder), BIKE_HOME=str(home))
        database = create_engine(postgres.url("dagster"))
        dagster = Path(sys.executable).parent
        workspace = ["--workspace", str(REPOSITORY / "workspace.yaml")]
        with subprocess.Popen(
            [str(dagster / "dagster-daemon"), "run", *workspace],
            env=variables, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as daemon:  # fmt: skip
            try:
                most = {}
                for job in ("ingest", "clean"):
                    shuffled = random.Random(7).sample(DAYS, len(DAYS))
                    subprocess.run(
                        [str(dagster / "dagster"), "job", "backfill", *workspace, "--job", job, "--noprompt",
                         "--partitions", ",".join(day.isoformat() for day in shuffled)],
                        env=variables, cwd=REPOSITORY, capture_output=True, timeout=300, check=True,
                    )  # fmt: skip
                    most[job] = wait_for_runs(database, job, len(DAYS))
            finally:
                daemon.terminate()
                daemon.wait(60)
                database.dispose()
    return most


def wait_for_runs(database: Engine, job: str, expected: int) -> int:
    """Wait until a job's runs have succeeded; the most that had begun and not ended at one moment."""
    deadline, most = time.monotonic() + BACKFILL_SECONDS, 0
    while True:
        with database.connect() as connection:
            found = connection.execute(
                text(
                    "SELECT status, count(*) AS number FROM runs WHERE pipeline_name = :job GROUP BY status"
                ),
                {"job": job},
            ).all()
        counts = {row.status: row.number for row in found}
        most = max(most, counts.get("STARTED", 0))
        assert "FAILURE" not in counts, counts
        if counts.get("SUCCESS", 0) == expected:
            return most
        assert time.monotonic() < deadline, counts
        time.sleep(0.5)


def test_thirty_days_in_parallel_are_thirty_days_one_by_one(tmp_path: Path) -> None:
    one_by_one(tmp_path / "one")
    at_once = in_parallel(tmp_path / "parallel", tmp_path)

    assert min(at_once.values()) > 1, f"nothing ran beside anything: {at_once}"
    one, other = (without_runs(tables(tmp_path / name)) for name in ("one", "parallel"))
    assert one["bike_traffic_raw.raw_counts"].get_column("service_date").n_unique() == len(DAYS)
    assert_same_tables(one, other)
