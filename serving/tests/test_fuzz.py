"""schemathesis, with every check it has, asks a running service what its description allows and what it does not.

MLflow is a real server; Dagster is a stand-in, since thousands of trainings would prove nothing more. Every role asks:
an admin may do everything, a reader meets 403, a stranger 401.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bike_serving.security.access import Meter, Role
from bike_serving.security.keys import create_key

pytestmark = pytest.mark.integration

SERVING = Path(__file__).resolve().parent.parent
UNLIMITED = {Meter.PREDICT: 0, Meter.TRAIN: 0}
CASES = re.compile(r"Test cases:\s*\n?\s*([\d,]+) generated")


@pytest.fixture
def fuzzed(registry, serve, dagster, eventually):
    """A service with everything around it, and what it answers as."""
    dagster.answers["runOrError"] = {
        "__typename": "Run",
        "runId": "0d3b2c1a-1f6e-4c55-9d58-3a8a3f6f0c11",
        "jobName": "retrain",
        "status": "SUCCESS",
        "startTime": 1.0,
        "endTime": 2.0,
        "tags": [],
    }
    registry.promote("fuzz", registry.register("fuzz"))
    process = serve("fuzz", registry.server.url, dagster_url=f"http://127.0.0.1:{dagster.server_port}")
    with process.client() as client:
        eventually(lambda: client.get("/ready").status_code == 200)
    return process


def keys_of(process, folder):
    path = folder / "state" / "keys.json"
    return {
        "admin": process.key,
        "reader": create_key(path, "reader", Role.READER, UNLIMITED)[1],
        "stranger": None,
    }


def fuzz(process, folder, key, examples, seed=1):
    """How many cases were tried; whatever any check finds fails."""
    header = ["--header", f"X-API-Key: {key}"] if key else []
    description = folder / "openapi.json"
    with process.client() as client:
        description.write_text(client.get("/openapi.json").text)
    ran = subprocess.run(
        [
            *(
                str(Path(sys.executable).with_name("schemathesis")),
                "--config-file",
                str(SERVING / "schemathesis.toml"),
            ),
            *("run", str(description), "--url", process.url, "--checks", "all", *header),
            *("--max-examples", str(examples), "--seed", str(seed), "--no-color"),
            *("--generation-database", "none", "--suppress-health-check", "all", "--warnings", "off"),
            *(
                "--phases",
                "examples,coverage,fuzzing",
                "--continue-on-failure",
            ),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    shown = "\n".join(line[:300] for line in ran.stdout.splitlines())  # bodies may be long
    assert ran.returncode == 0, shown[-20_000:] + ran.stderr[-2000:]
    found = CASES.search(ran.stdout)
    assert found, ran.stdout[-3000:]
    return int(found[1].replace(",", ""))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("role", ["admin", "reader", "stranger"])
def test_no_check_finds_anything(fuzzed, tmp_path, role):
    assert fuzz(fuzzed, tmp_path, keys_of(fuzzed, tmp_path)[role], 5) > 500


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_no_check_finds_anything_in_fifty_thousand_cases(fuzzed, tmp_path):
    tried = {
        role: fuzz(fuzzed, tmp_path, key, {"admin": 1500, "reader": 400, "stranger": 80}[role])
        for role, key in keys_of(fuzzed, tmp_path).items()
    }
    print(tried)  # noqa: T201  the figures of the proof
    assert sum(tried.values()) >= 50_000
