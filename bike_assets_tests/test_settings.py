"""Settings: what the environment may say, and how it is refused when it may not."""

import os
import re
from dataclasses import fields, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from bike_assets.core.errors import PermanentError
from bike_assets.settings import REPOSITORY, Settings, load_settings
from bike_serving.settings import Settings as ServingSettings


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("BIKE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_without_any_setting_everything_stays_in_one_local_folder(tmp_path: Path) -> None:
    settings = load_settings()

    assert settings.env == "local"
    assert settings.source == "simulator"
    assert settings.home == (tmp_path / ".bike").resolve()
    for path in (
        settings.warehouse_path,
        settings.artifacts_dir,
        settings.bundles_dir,
        settings.keys_dir,
        settings.reports_dir,
        settings.dagster_home,
    ):
        assert path.is_relative_to(settings.home)
    assert settings.tracking_uri == f"sqlite:///{settings.home / 'mlflow.db'}"


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BIKE_ENV", "compose")
    monkeypatch.setenv("BIKE_SOURCE", "archive")
    monkeypatch.setenv("BIKE_SIMULATOR_FIRST_DAY", "2024-06-01")
    monkeypatch.setenv("BIKE_TRAINING_ROWS", "20000")
    monkeypatch.setenv("BIKE_MLFLOW_TRACKING_URI", "http://mlflow:5000")

    settings = load_settings()

    assert (settings.env, settings.source) == ("compose", "archive")
    assert settings.simulator_first_day == date(2024, 6, 1)
    assert settings.training_rows == 20_000
    assert settings.tracking_uri == "http://mlflow:5000"


def test_a_file_named_env_is_read_and_the_environment_comes_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("BIKE_SEED=5\nBIKE_TRAINING_DAYS=90\nPOSTGRES_PASSWORD=x\n")
    monkeypatch.setenv("BIKE_SEED", "6")

    settings = load_settings()

    assert (settings.seed, settings.training_days) == (6, 90)


def test_an_unknown_environment_is_refused_with_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIKE_ENV", "staging")

    with pytest.raises(PermanentError) as caught:
        load_settings()

    text = str(caught.value)
    assert "\n" not in text
    for word in ("BIKE_ENV", "staging", "local", "compose", "prod"):
        assert word in text


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BIKE_TRAINING_ROWS", "5"),
        ("BIKE_TRAINING_DAYS", "many"),
        ("BIKE_SIMULATOR_LAST_DAY", "2024-02-31"),
        ("BIKE_SOURCE", "oracle"),
        ("BIKE_ITERATIONS", "-1"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(PermanentError) as caught:
        load_settings()

    assert variable in str(caught.value)
    assert value in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_is_a_list_of_paths_as_path_itself_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIKE_DATA", os.pathsep.join(["/a/x.csv", "b c.csv.gz", ""]))

    assert load_settings().data == (Path("/a/x.csv"), Path("b c.csv.gz"))


def test_no_data_is_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIKE_DATA", "")

    assert load_settings().data == ()


def test_a_relative_home_means_the_same_folder_after_a_change_of_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BIKE_HOME", "here/../there")
    settings = load_settings()
    monkeypatch.chdir("/")

    assert settings.home == (tmp_path / "there").resolve()


def test_a_home_may_start_at_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    assert load_settings(home=Path("~/bike")).home == tmp_path.resolve() / "bike"


def test_arguments_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIKE_SEED", "6")

    assert load_settings(seed=9).seed == 9


def test_settings_cannot_be_changed() -> None:
    settings = load_settings()

    with pytest.raises(ValidationError):
        settings.seed = 1


@pytest.mark.parametrize(("env", "on"), [("local", False), ("compose", True), ("prod", True)])
def test_nothing_starts_by_itself_on_a_laptop(env: str, on: bool) -> None:
    assert load_settings(env=env).automation_on is on


def test_no_library_calls_home(monkeypatch: pytest.MonkeyPatch) -> None:
    switches = {
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        "DO_NOT_TRACK": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    for name in switches:
        # Set first, so that monkeypatch restores what was there.
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)

    load_settings()

    assert {name: os.environ.get(name) for name in switches} == switches


def test_what_a_person_has_set_for_a_library_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GX_ANALYTICS_ENABLED", "true")

    load_settings()

    assert os.environ["GX_ANALYTICS_ENABLED"] == "true"


def settings_with_defaults() -> dict[str, str]:
    """Every setting by its variable, with its default as a `.env` file writes it."""
    found: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        if is_dataclass(field.default):
            bounds = {
                f"{name}_{bound.name}": getattr(field.default, bound.name) for bound in fields(field.default)
            }
        else:
            bounds = {name: field.default}
        found |= {f"BIKE_{key.upper()}": value for key, value in bounds.items()}
    return {name: _written(value) for name, value in found.items()}


def _written(value: Any) -> str:
    if value in ((), None):
        return ""
    if isinstance(value, Path) and value.is_absolute():
        return str(value.relative_to(REPOSITORY))
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_the_example_file_has_every_setting_with_its_default() -> None:
    lines = (REPOSITORY / ".env.example").read_text(encoding="utf-8").splitlines()
    shown = dict(line[2:].split("=", 1) for line in lines if re.match(r"# BIKE_\w+=", line))
    assert shown == settings_with_defaults()

    set_for_the_service = {line.split("=", 1)[0] for line in lines if line.startswith("BIKE_")}
    assert set_for_the_service <= {f"BIKE_SERVING_{field.upper()}" for field in ServingSettings.model_fields}


def test_compose_hands_on_every_setting_that_it_does_not_make_itself() -> None:
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8"))
    given = compose["services"]["code-location"]["environment"]
    handed_on = {name for name, value in given.items() if value is None}
    made = {name for name, value in given.items() if value is not None and name.startswith("BIKE_")}

    # Where the project is stands in the image.
    assert handed_on | made | {"BIKE_DBT_PROJECT_DIR"} == settings_with_defaults().keys()
    assert not handed_on & made
    said = (
        (REPOSITORY / ".env.example")
        .read_text(encoding="utf-8")
        .partition("compose sets ")[2]
        .split("itself")[0]
    )
    assert set(re.findall(r"BIKE_\w+", said)) == made | {"BIKE_DBT_PROJECT_DIR"}


def test_dbt_has_the_bounds_of_the_settings_where_it_is_started_alone() -> None:
    profile = (REPOSITORY / "dbt_project" / "profiles.yml").read_text(encoding="utf-8")
    said = dict(re.findall(r"env_var\('(BIKE_BIGQUERY_\w+)', '([^']*)'\)", profile))

    ours = load_settings(env="prod").dbt_environment
    assert ours == {"BIKE_DBT_TARGET": "prod", **said}
