"""What both images start every command with: secrets that variables point to, in files and in Secret Manager."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bike_assets.settings import REPOSITORY
from bike_assets_tests.fakes.secret_manager import FakeSecretManager

PRINT = "import json, os; print(json.dumps(dict(os.environ)))"
VERSION = "projects/bike-traffic/secrets/paris-api-key/versions/latest"


def started(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "deploy" / "with-secrets"), sys.executable, "-c", PRINT],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def seen(**variables: str) -> dict[str, str]:
    done = started(**variables)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def refusal(**variables: str) -> str:
    done = started(**variables)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_a_file_gives_its_secret_and_other_variables_stay(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("p w'\"$x\u00e9\n", encoding="utf-8")

    found = seen(
        PGPASSWORD_FILE=str(password), BIKE_ALERT_WEBHOOK_FILE="", BIKE_SERVING_KEYS_FILE="/keys.json"
    )

    assert found["PGPASSWORD"] == "p w'\"$x\u00e9"
    assert found["BIKE_SERVING_KEYS_FILE"] == "/keys.json"
    assert not {"PGPASSWORD_FILE", "BIKE_ALERT_WEBHOOK_FILE", "BIKE_ALERT_WEBHOOK"} & found.keys()


def test_a_version_in_secret_manager_gives_its_secret() -> None:
    with FakeSecretManager() as google:
        google.versions[VERSION] = b"of the portal"
        found = seen(BIKE_PARIS_API_KEY_SECRET=VERSION, **google.environment)

    assert found["BIKE_PARIS_API_KEY"] == "of the portal"
    assert "BIKE_PARIS_API_KEY_SECRET" not in found


def test_what_cannot_be_had_is_said_in_a_line_and_nothing_starts(tmp_path: Path) -> None:
    assert "No such file" in refusal(PGPASSWORD_FILE=str(tmp_path / "none"))
    with FakeSecretManager() as google:
        assert "404" in refusal(PGPASSWORD_SECRET=VERSION, **google.environment)
        google.refused.add(VERSION)
        line = refusal(PGPASSWORD_SECRET=VERSION, **google.environment)
        assert "roles/secretmanager.secretAccessor" in line
        other = {"PGPASSWORD_SECRET": "../token"}
        assert "projects/P/secrets/S/versions/V" in refusal(**other, **google.environment)
    assert "PGPASSWORD_SECRET" in refusal(PGPASSWORD_SECRET=VERSION, GCE_METADATA_HOST="127.0.0.1:1")
