"""Slim CI of the dbt models: what changed is built beside a warehouse that is only read, and a fault in it is found."""

import re
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from bike_assets.assets.dbt_models import CLEANING_MODELS
from bike_assets.assets.ingestion import store
from bike_assets.core.contracts import PREDICTIONS
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.settings import REPOSITORY
from bike_assets_tests.dbt_runs import PROJECT, dbt
from bike_assets_tests.homes import environment
from bike_assets_tests.tables import batch, day_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NOW = datetime(2024, 1, 8, tzinfo=UTC)
DAYS = [date(2024, 1, day) for day in range(1, 8)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What main's run leaves: a warehouse, and the manifest of the models it was made with."""
    folder = tmp_path_factory.mktemp("main")
    warehouse = DuckDBWarehouse(path=str(folder / "warehouse.duckdb"))
    for day in DAYS:
        store(warehouse, batch(day_rows(day, "c", lambda n: float(20 + n))), day, day, now=NOW)
    warehouse.replace(PREDICTIONS, PREDICTIONS.empty(), DAYS[0], DAYS[0])
    made = dbt("build", "--exclude-resource-type", "unit_test", warehouse=folder / "warehouse.duckdb")
    shutil.move(made, folder / "dbt")
    return folder


@pytest.fixture
def branch(tmp_path: Path) -> Path:
    """The project of a branch, at the commit of main."""
    for name in (".ci", "dbt_project"):
        shutil.copytree(
            REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("target", "logs", ".user.yml")
        )
    for arguments in (
        ("init", "--quiet"),
        ("add", "--all"),
        ("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message", "main"),
    ):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    return tmp_path


def slim(branch: Path, home: Path) -> tuple[int, set[str], str]:
    """Exit status, the models that were built, and all that was said. Nothing of the home may change."""
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    done = subprocess.run(
        [str(branch / ".ci" / "dbt-slim"), str(home)],
        env=environment(PATH=f"{Path(sys.executable).parent}:{environment()['PATH']}"),
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    built = set(re.findall(r"OK created sql \w+ model \w+\.(\w+)", done.stdout))
    return done.returncode, built, done.stdout + done.stderr


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_changed_model_is_built_with_what_follows_and_reads_the_rest_from_main(
    branch: Path, home: Path
) -> None:
    change(
        branch / "dbt_project" / "models" / "marts" / "daily_traffic.sql",
        "as daily_count,",
        "+ 1 as daily_count,",
    )

    status, built, said = slim(branch, home)

    assert (status, built) == (0, {"daily_traffic", "network_totals", "counter_months"}), said


def test_a_fault_in_a_model_or_in_what_is_said_of_its_columns_is_found(branch: Path, home: Path) -> None:
    models = branch / "dbt_project" / "models" / "marts"
    change(models / "network_totals.sql", "count(*) as counters", "-count(*) as counters")

    status, built, said = slim(branch, home)

    assert (status, built) == (1, {"network_totals"})
    assert re.search(r"FAIL \d+ columns_of_network_totals_hold", said), said


def test_where_no_model_changed_none_is_built_and_where_a_variable_did_all_are(
    branch: Path, home: Path
) -> None:
    assert slim(branch, home)[:2] == (0, set())

    change(branch / "dbt_project" / "dbt_project.yml", "spike_factor: 6", "spike_factor: 7")
    status, built, said = slim(branch, home)

    assert status == 0, said
    assert built == {path.stem for path in (PROJECT / "models" / "marts").glob("*.sql")}
    assert built > set(CLEANING_MODELS)


def test_a_home_that_lacks_its_manifest_is_named(branch: Path, tmp_path: Path) -> None:
    status, _, said = slim(branch, tmp_path / "dbt_project")

    assert status == 1
    assert said.splitlines() == [
        f"dbt-slim: {tmp_path}/dbt_project has no dbt/manifest.json; "
        f"make demo HOME_DIR={tmp_path}/dbt_project makes both"
    ]
