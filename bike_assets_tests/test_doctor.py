"""What the doctor finds when something is wrong, and that it changes nothing."""

import http.server
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from bike_assets import doctor
from bike_assets.doctor import Finding, diagnose, is_healthy
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets.settings import REPOSITORY, Settings, load_settings
from bike_assets_tests.emulators.processes import free_port
from bike_assets_tests.homes import bike_assets, one_json
from bike_assets_tests.resources.test_warehouse import DAY, TABLE, rows


def found(settings: Settings, seconds: float = 60) -> dict[str, Finding]:
    return {each.check: each for each in diagnose(settings, seconds)}


@pytest.fixture
def answers() -> Iterator[dict[str, str]]:
    """What a server of this test says at each path; the address is under ''."""
    said: dict[str, str] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = said.get(self.path.partition("?")[0])
            self.send_response(200 if text is not None else 503)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said[""] = f"http://127.0.0.1:{server.server_port}"
        yield said
        server.shutdown()


def test_a_laptop_before_the_first_demo_lacks_things_and_is_not_ill(settings: Settings) -> None:
    findings = found(settings)

    assert is_healthy(list(findings.values())), findings
    assert findings["packages"].outcome == findings["home"].outcome == findings["dagster"].outcome == "ok"
    assert (findings["warehouse"].outcome, findings["signing key"].outcome) == ("warn", "warn")
    assert "bike-assets demo" in findings["warehouse"].remedy
    assert all(each.remedy for each in findings.values() if each.outcome != "ok")


def test_a_warehouse_is_written_to_and_left_as_it_was(settings: Settings) -> None:
    warehouse = DuckDBWarehouse(path=str(settings.warehouse_path))
    warehouse.replace(TABLE, rows(), DAY, DAY)
    before = warehouse.query("SELECT table_schema, table_name FROM information_schema.tables")

    assert doctor._warehouse(settings).startswith("DuckDB")

    assert warehouse.query("SELECT table_schema, table_name FROM information_schema.tables").equals(before)


def test_a_file_that_is_no_warehouse_is_found(settings: Settings) -> None:
    settings.home.mkdir(parents=True)
    settings.warehouse_path.write_text("counter_id;count\n" * 500)

    finding = found(settings)["warehouse"]

    assert finding.outcome == "fail"
    assert str(settings.warehouse_path) in finding.found


def test_a_deployment_over_files_is_ill_and_its_instance_is_the_one_it_names(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    findings = found(settings.model_copy(update={"env": "compose"}))

    assert (tmp_path / "history").is_dir()
    assert not settings.dagster_home.exists()

    assert "BIKE_MLFLOW_TRACKING_URI" in findings["mlflow"].remedy
    assert "deploy/dagster.yaml" in findings["dagster"].remedy
    assert {findings[name].outcome for name in ("mlflow", "dagster")} == {"fail"}


def test_servers_are_asked_and_their_version_is_compared(settings: Settings, answers: dict[str, str]) -> None:
    served = settings.model_copy(
        update={"serving_url": answers[""], "source": "paris", "paris_portal": answers[""]}
    )
    served = served.model_copy(update={"open_meteo_forecast_url": answers[""] + "/forecast"})
    ill = found(served)
    assert {ill[name].outcome for name in ("service", "source", "weather")} == {"fail"}
    assert ill["service"].found == f"{answers['']}/ready answers 503"
    assert "BIKE_SERVING_URL" in ill["service"].remedy

    answers["/ready"] = "{}"
    answers[f"/api/explore/v2.1/catalog/datasets/{settings.paris_dataset}"] = "{}"
    answers["/forecast"] = "{}"
    well = found(served)
    assert {well[name].outcome for name in ("service", "source", "weather")} == {"ok"}


def test_a_package_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    real = version
    monkeypatch.setattr(doctor, "version", lambda name: "1.0" if name == "dagster-gcp" else real(name))

    finding = found(settings)["packages"]

    assert (finding.outcome, finding.remedy) == ("fail", "uv sync --locked")
    assert "dagster-gcp is 1.0 and not ==0.29.27" in finding.found


def test_who_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setattr(doctor, "_mlflow", lambda _: time.sleep(60) or "")

    finding = {each.check: each for each in diagnose(settings, 15)}["mlflow"]

    assert (finding.outcome, finding.found) == ("fail", "no answer within 15 s")


def test_the_command_says_what_to_do_and_fails_where_something_is_ill(tmp_path: Path) -> None:
    missing = {"BIKE_SOURCE": "archive", "BIKE_DATA": str(tmp_path / "gone.csv")}
    ill = bike_assets("doctor", "--home", tmp_path / "home", "--json", env=missing)

    assert ill.returncode == 1
    result = one_json(ill.stdout)
    (source,) = (check for check in result["checks"] if check["check"] == "source")
    assert (result["healthy"], source["outcome"]) == (False, "fail")
    assert "BIKE_DATA" in source["remedy"]
    assert ill.stderr.splitlines()[-1].startswith("error: source: no file"), ill.stderr


@pytest.mark.slow
def test_what_does_not_answer_in_the_cloud_is_named_with_its_address(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    (tmp_path / "dagster.yaml").write_bytes((REPOSITORY / "deploy" / "dagster.yaml").read_bytes())
    done = bike_assets(
        "doctor", "--home", tmp_path / "home", "--json",
        env={
            "BIKE_ENV": "prod",
            "BIKE_MLFLOW_TRACKING_URI": nobody,
            "BIKE_BIGQUERY_ENDPOINT": nobody,
            "BIKE_BUNDLES_URL": "gs://bundles/here",
            "STORAGE_EMULATOR_HOST": nobody,
            "DAGSTER_HOME": str(tmp_path),
            "DAGSTER_POSTGRES_HOST": "nobody.invalid",
            **{f"DAGSTER_POSTGRES_{name}": "x" for name in ("USER", "DB", "PASSWORD")},
        },
    )  # fmt: skip

    assert done.returncode == 1
    checks = {each["check"]: each for each in one_json(done.stdout)["checks"]}
    assert checks["mlflow"]["found"].startswith(f"{nobody}/version cannot be reached")
    assert "nobody.invalid" in checks["dagster"]["found"]
    assert "DAGSTER_POSTGRES_HOST" in checks["dagster"]["remedy"]
    assert checks["bundles"]["found"].startswith("gs://bundles/here cannot be reached")
    assert checks["warehouse"]["found"] == "no answer within 45 s"
    # One line a check, one line for the end: no library says anything else, also of the check that was given up.
    said = done.stderr.splitlines()
    assert said[:-1] == [f"asking: {name}" for name in checks]
    assert said[-1].startswith("error: warehouse: no answer")


@pytest.mark.slow
def test_bigquery_is_written_to_read_and_left_as_it_was(bigquery_warehouse: object, tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path)

    assert doctor._warehouse(settings).startswith("BigQuery project test-")
    from bike_assets.resources.bigquery import BigQueryWarehouse

    with BigQueryWarehouse.from_settings(settings).connection.get_client() as client:
        assert not list(client.list_tables("monitoring_audit"))
